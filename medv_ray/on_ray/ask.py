"""`medv ask`: one question, and the denoising as it happens. No Ray here."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from medv_ray.data.slide_child import reader_of
from medv_ray.engine import Answer, Predictor, Request, View
from medv_ray.errors import DataError, SettingsError, named
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import (
    AnswerSettings,
    ImageSettings,
    ModelSettings,
    SlideSettings,
    build,
    model_folder,
    override,
)
from medv_ray.slide_parts import slide_kind

MASK = "·"


def ask(image: Path, question: str, model: str, assignments: list[str], watch: bool) -> None:
    """Print the answer with its confidence. Raises MedvError."""
    held, settings = settings_of(model, assignments)
    data = read_image(image)
    console = Console(highlight=False, soft_wrap=True)
    request = Request(question, (data,), seed=settings.seed)
    with Predictor.load(held, settings) as predictor:
        answer = _watch(predictor, request, console) if watch else _answer(predictor, request)
    console.print(Text(answer.text or "(no answer)", style="bold"))
    passes, seconds = answer.forward_passes, answer.seconds
    text = f"confidence {answer.confidence:.3f}, {passes} forward passes, {seconds:.2f} s"
    console.print(text, style="dim")
    for word in answer.warnings:
        console.print(f"picture: {word}", style="yellow")


def settings_of(model: str, assignments: list[str]) -> tuple[ModelSettings, AnswerSettings]:
    """Of a checkpoint folder or `toy`, over what it recommends. Raises SettingsError."""
    path = model_folder(model)
    values = override(checkpoint_defaults(path), assignments)
    held = build(ModelSettings, {"path": path, **values.pop("model", {})})
    return held, build(AnswerSettings, values)


def read_image(image: Path) -> bytes:
    """A file's bytes; of a slide, where that can be read, a thumbnail. Raises SettingsError E1001,
    DataError E1203, E1204, E1209, E1211, E1216."""
    try:
        with image.open("rb") as file:
            kind = slide_kind(file, image.name)
        reader = reader_of(ImageSettings(), SlideSettings()) if kind is not None else None
        if reader is None:
            return image.read_bytes()
        with reader:
            try:
                return reader.thumbnail(str(image.absolute()))[0]
            except DataError as error:
                if error.code != "E1211" or kind != "scan":
                    raise
        return image.read_bytes()  # a TIFF that OpenSlide does not know
    except OSError as error:
        why = type(error).__name__
        raise SettingsError(
            "E1001", f"{named('IMAGE', image.name)} cannot be read ({why})."
        ) from None


def _answer(predictor: Predictor, request: Request) -> Answer:
    [ended] = predictor.answer([request])
    if isinstance(ended, DataError):
        raise ended
    return ended


def _watch(predictor: Predictor, request: Request, console: Console) -> Answer:
    """Every state in one place of the terminal; a line each where there is none."""
    answer: Answer | None = None
    with (
        Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live
    ):
        for view in predictor.watch(request):
            answer = view.answer
            if live is not None:
                live.update(render(view), refresh=True)
            else:
                console.print(render(view))
    assert answer is not None
    return answer


def render(view: View) -> Text:
    """Dots where the mask is; tokens from red, unsure, to green, sure."""
    text = Text(f"step {view.step:3}  ", style="dim")
    for token, confidence in zip(view.tokens, view.confidence, strict=True):
        if token is None:
            text.append(MASK, style="dim")
            continue
        sure = max(0.0, min(1.0, confidence))
        style = f"rgb({round(220 * (1 - sure))},{round(60 + 140 * sure)},60)"
        text.append(token.replace("\n", "⏎"), style=style)
    return text
