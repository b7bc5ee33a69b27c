"""`medv chat`: a dialogue about an image, in this process or with an endpoint. No Ray here."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from medv_ray.client.endpoint import Endpoint, messages_of, printable
from medv_ray.data.images import inspect
from medv_ray.data.prompts import Turn
from medv_ray.engine import Predictor, Request, View
from medv_ray.errors import MedvError, RunError, SettingsError
from medv_ray.on_ray.ask import read_image, render, settings_of
from medv_ray.settings import ImageSettings, override

HELP = "/image PATH: another picture. /new: forget the dialogue. /quit or Ctrl-D: end."


class Said(NamedTuple):
    """An answer."""

    text: str
    confidence: float
    forward_passes: int
    warnings: tuple[str, ...] = ()


class Local:
    """Answers from a checkpoint in this process."""

    def __init__(self, model: str, assignments: list[str]) -> None:
        """Raises CheckpointError, SettingsError."""
        held, settings = settings_of(model, assignments)
        self.image, self._seed = settings.image, settings.seed
        self._predictor = Predictor.load(held, settings)

    def ask(self, question: str, image: bytes, history: list[Turn]) -> Iterator[View | Said]:
        """The response after every step, then the answer. Raises MedvError."""
        request = Request(question, (image,), tuple(history), self._seed)
        for view in self._predictor.watch(request):
            yield view
            if view.answer is not None:
                ended = view.answer
                yield Said(ended.text, ended.confidence, ended.forward_passes, ended.warnings)

    def close(self) -> None:
        """End the image decoder's child processes."""
        self._predictor.close()


class Remote:
    """Answers of an endpoint."""

    def __init__(self, url: str, model: str | None, assignments: list[str]) -> None:
        """Raises MedvError."""
        values = override({}, assignments)
        asked = {"diffusion": values.pop("sampler", {})}
        asked |= {"seed": values.pop("seed")} if "seed" in values else {}
        if values:
            raise SettingsError(
                "E1001", f"--set {min(values)[:30]}: with --url, only sampler.* and seed."
            )
        self.image = ImageSettings()
        self._endpoint = Endpoint(url)
        try:
            asked["model"] = self._endpoint.model(model)["id"]
        except MedvError:
            self.close()
            raise
        self._asked: dict[str, Any] = asked | {"stream_options": {"include_denoise": True}}

    def ask(self, question: str, image: bytes, history: list[Turn]) -> Iterator[View | Said]:
        """See Local."""
        body = {**self._asked, "messages": messages_of(question, [image], history)}
        try:
            yield from _events(self._endpoint.stream(body))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise RunError("E1708", "the endpoint sent chunks of an unknown kind.") from None

    def close(self) -> None:
        """Close its connections."""
        self._endpoint.close()


def _events(chunks: Iterator[dict[str, Any]]) -> Iterator[View | Said]:
    """Views of a stream's denoising, then its answer."""
    tokens: list[str | None] = []
    confidence: list[float] = []
    text = ""
    ours: dict[str, Any] = {"confidence": 0.0, "forward_passes": 0, "warnings": []}
    for chunk in chunks:
        if denoise := chunk.get("denoise"):
            tokens = tokens or [None] * denoise["length"]
            confidence = confidence or [0.0] * denoise["length"]
            for one in denoise["committed"]:
                tokens[one["position"]] = str(one["token"])
                confidence[one["position"]] = float(one["confidence"])
            yield View(denoise["step"] + 1, tuple(tokens), tuple(confidence))
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
        ours = chunk.get("medv") or ours
    warnings = tuple(str(word) for word in ours["warnings"])
    yield Said(text, ours["confidence"], ours["forward_passes"], warnings)


def chat(asked: Local | Remote, image: Path) -> int:
    """Ask line by line until the end of the input; 1 if a question of a script came to nothing.

    Raises MedvError when the first image is none.
    """
    dialogue = Dialogue(asked)
    dialogue.begin(image)
    if sys.stdin.isatty():
        dialogue.note(HELP)
        with suppress(ImportError):
            import readline  # noqa: F401  # input() has a history then
    with suppress(KeyboardInterrupt):
        for line in _lines():
            if line.split() == ["/quit"]:
                break
            dialogue.take(line)
    return int(dialogue.failed and not sys.stdin.isatty())


def _lines() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while True:
            if line := input(prompt).strip():
                yield line


class Dialogue:
    """A dialogue about a picture."""

    def __init__(self, asked: Local | Remote) -> None:
        self._asked = asked
        self._console = Console(highlight=False, soft_wrap=True)
        self._notes = Console(highlight=False, soft_wrap=True, stderr=True)
        self._image = b""
        self._history: list[Turn] = []
        self.failed = False

    def note(self, text: str, style: str = "dim") -> None:
        """Say something that is no answer."""
        self._notes.print(Text(printable(text), style))

    def begin(self, path: Path) -> None:
        """Begin with another picture. Raises MedvError; the one before is kept then."""
        data = read_image(path.expanduser())
        inspect(data, self._asked.image)
        self._image, self._history = data, []

    def take(self, line: str) -> None:
        """Answer a line, or do what it says. What goes wrong is said."""
        word, _, rest = line.partition(" ")
        try:
            if word == "/image":
                self.begin(Path(rest.strip().strip("'\"")))
                self.note("another picture; what was said is forgotten.")
            elif word == "/new":
                self._history = []
                self.note("what was said is forgotten.")
            elif word.startswith("/"):
                self.note(HELP)
            else:
                self._answer(line)
        except MedvError as error:
            self.failed = True
            self.note(str(error), "red")
        except KeyboardInterrupt:
            self.note("stopped; the question is forgotten.")

    def _answer(self, question: str) -> None:
        started_s = time.monotonic()
        said = self._watch(question)
        seconds = time.monotonic() - started_s
        self._history += [Turn("user", question), Turn("assistant", said.text)]
        self._console.print(Text(printable(said.text) or "(no answer)", style="bold"))
        figures = f"confidence {said.confidence:.3f}, {said.forward_passes} forward passes"
        self.note(f"{figures}, {seconds:.2f} s")
        for word in said.warnings:
            self.note(f"picture: {word}", "yellow")

    def _watch(self, question: str) -> Said:
        """Every state in one place of the terminal, which the answer then takes."""
        shown = self._console.is_terminal
        live = Live(console=self._console, auto_refresh=False, transient=True) if shown else None
        with live or nullcontext():
            for event in self._asked.ask(question, self._image, self._history):
                if isinstance(event, Said):
                    return event
                if live is not None:
                    tokens = tuple(t and printable(t) for t in event.tokens)
                    live.update(render(replace(event, tokens=tokens)), refresh=True)
        raise RunError("E1509", "no answer came.")
