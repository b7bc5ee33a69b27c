"""The toy model behind each path, in one process and without Ray: score, ask, train, import and the
endpoint, each through the function that its command calls."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from medv_ray.archive.rows import read_run
from medv_ray.archive.run import Run
from medv_ray.cli import score_command
from medv_ray.cli.terminal import exit_code_of, merged, read_yaml
from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.prompts import load_tokenizer
from medv_ray.data.vqa import prepare as preparing
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.engine import Predictor
from medv_ray.errors import CATALOGUE, DataError
from medv_ray.model import weights
from medv_ray.on_ray import ask as asking
from medv_ray.on_ray import score as scoring
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.on_ray.predictor import RowPredictor, load_predictor
from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from medv_ray.settings import (
    TOY,
    AnswerSettings,
    ModelSettings,
    SamplerSettings,
    build,
    override,
)
from medv_ray.training.check import check
from medv_ray.training.job import TrainSettings
from medv_ray.training.samples import Samples
from medv_ray.training.stages import StageSettings
from medv_ray.training.survey import survey_stage
from tests.corpus.kinds import CODE, Outcome
from tests.corpus.sound import ANSWER, QUESTION, SOUND, sound
from tests.unit.serving.client import Connection, Reply, encoded
from tests.unit.serving.conftest import NO_KEYS, settings_of

SHORT = SamplerSettings(gen_length=8, block_length=8, steps=8)
REASONS = {entry.reason: code for code, entry in CATALOGUE.items()}


class Heard(logging.Handler):
    """All that is printed and logged meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.err, self.logged = io.StringIO(), io.StringIO(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(self.format(record))

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(
            text for text in (self.out.getvalue(), self.err.getvalue(), *self.logged) if text
        )


@contextlib.contextmanager
def hearing() -> Iterator[Heard]:
    heard, root = Heard(), logging.getLogger()
    root.addHandler(heard)
    try:
        with contextlib.redirect_stdout(heard.out), contextlib.redirect_stderr(heard.err):
            yield heard
    finally:
        root.removeHandler(heard)


def code_in(text: str) -> str:
    """The code that a message begins with, E1509 where it has none."""
    found = CODE.search(text)
    return found[0] if found else "E1509"


def plain(words: Sequence[str]) -> list[str]:
    """Warnings without their values."""
    return sorted({word.partition(":")[0] for word in words})


def ended(run: Callable[[], int | None]) -> int:
    """The exit status of a command, but for one that ends this process too."""
    status = exit_code_of(run)
    if status in (130, 143):  # Ctrl-C, SIGTERM
        raise SystemExit(status)
    return status


class Bench:
    """What the paths share. Use as a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = self.last_run = root
        self._numbers = itertools.count()
        self._ends: list[Callable[[], None]] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end()

    def folder(self) -> Path:
        """A new one."""
        made = self.root / f"{next(self._numbers):04d}"
        made.mkdir()
        return made

    @cached_property
    def predictor(self) -> Predictor:
        model = ModelSettings(path=str(TOY), device="cpu")
        made = Predictor.load(model, AnswerSettings(sampler=SHORT))
        self._ends.append(made.close)
        return made

    @cached_property
    def service(self) -> Service:
        made = Service.load(settings_of(ongoing=200, per_key=200))
        self._ends.append(made.close)
        return made

    @cached_property
    def app(self) -> App:
        return make_app(self.service, NO_KEYS)

    @cached_property
    def _training(self) -> tuple[Any, StageSettings, Any]:
        stage = StageSettings(
            name="corpus", lr=1e-4, batch_size=1, epochs=1, trainable=("vision", "language")
        )
        return load_tokenizer(TOY), stage, weights.load(TOY)

    def score(self, model: Path = TOY, **flags: Any) -> Outcome:
        """`medv score` of an archive whose sound rows have ids that begin so; `meanwhile` happens
        when it is planned."""
        meanwhile, sets = flags.pop("meanwhile", None), flags.pop("sets", [])
        self.last_run = Path(flags.pop("out", self.folder() / "run"))
        out = str(self.last_run)

        def drive(*given: Any) -> None:
            if meanwhile is not None:
                meanwhile()
            self._drive(*given)

        with hearing() as heard, mock.patch.object(scoring, "_drive", drive):
            status = ended(
                lambda: score_command(model=str(model), out=out, assignments=sets, **flags)
            )
        summary = _last_json(heard.out.getvalue())
        if summary is None:
            assert status, "no summary, and exit status 0"
            return Outcome(f"refused {code_in(heard.err.getvalue())}", heard.all)
        return self._scored(out, summary, status, heard)

    def _scored(self, out: str, summary: dict[str, Any], status: int, heard: Heard) -> Outcome:
        rows = pa.concat_tables(read_run(out)).to_pylist() if summary["rows"] else []
        counted = [summary[name] for name in ("answered", "abstained", "quarantined", "not_scored")]
        assert sum(counted) == summary["rows"], "rows are missing"
        for row in rows:
            if row["id"].startswith(SOUND):
                assert row["status"] != "quarantined", f"a sound row: {row['code']}"
        bad = [row for row in rows if not row["id"].startswith(SOUND)]
        said = [
            row["code"]
            if row["status"] == "quarantined"
            else " ".join(["answered", *plain(row["warnings"])])
            for row in bad
        ]
        for name in summary["files_not_scored"]:
            said.append(f"not scored {_unread(Path(out), name)}")
        if not said:
            said = [f"left out: {group['reason']}" for group in summary["left_out"]["groups"]]
        assert bool(status) == bool(summary["not_scored"] or summary["files_not_scored"]), "status"
        reasons = [row["reason"] or "" for row in rows]
        told = [(Path(out) / name).read_text() for name in ("events.jsonl", "metrics.json")]
        return Outcome(together(said), (*heard.all, *reasons, *told))

    def _drive(self, run: Run, settings: Any, session: Any, *_: object) -> None:
        """In place of the pool of actors: the chunk scorer that each of them has."""

        def make() -> RowPredictor:
            shared = settings.model.path == str(TOY) and settings.model.adapter is None
            return self.predictor if shared else load_predictor(settings)

        scorer = ChunkScorer(run.plan.archive, run.store, settings.answer, make)
        progress = mock.Mock()
        while todo := scoring.next_chunks(run, scoring.PASS_CHUNKS):
            for chunk in todo:
                try:
                    part, reasons = scorer.score(chunk)
                except DataError as error:
                    result: dict[str, Any] = {"skip": [error.code, error.detail]}
                else:
                    result = {"part": part.to_json(), "reasons": reasons, "processor": "CPU"}
                result["counters"] = scorer.take_counters()
                scoring._take(run, session, progress, [(chunk, result)])
        if scorer._predictor._predictor is not self.__dict__.get("predictor"):
            scorer.close()

    def ask(
        self,
        name: str,
        data: bytes,
        question: str = QUESTION,
        model: Path | None = None,
        sets: Sequence[str] = (),
    ) -> Outcome:
        """`medv ask` about a file."""
        image = self.folder() / name
        image.write_bytes(data)
        loaded = contextlib.nullcontext(self.predictor) if model is None else None
        how = mock.patch.object(Predictor, "load", return_value=loaded) if loaded else None
        with hearing() as heard, how or contextlib.nullcontext():
            status = ended(
                lambda: asking.ask(image, question, str(model or TOY), list(sets), watch=False)
            )
        printed = heard.out.getvalue()
        if status:
            return Outcome(code_in(heard.err.getvalue()), heard.all)
        words = re.findall(r"^picture: (.*)$", printed, re.MULTILINE)
        return Outcome(" ".join(["answered", *plain(words)]), heard.all)

    def train(
        self,
        image: bytes,
        question: str = QUESTION,
        damage: Callable[[bytes], bytes] | None = None,
    ) -> Outcome:
        """A row of a prepared dataset that nobody has checked, made ready to learn; `damage` is
        done to the file of rows."""
        folder = self.folder() / "data"
        talk = [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": ANSWER},
        ]
        row = Row("r0", (image,), talk)
        with hearing() as heard:
            status = ended(lambda: _learn(folder, row, damage, *self._training))
        if status:
            return Outcome(f"stops {code_in(heard.err.getvalue())}", heard.all)
        return Outcome("taken", heard.all)

    def start_training(self, config: Path | None = None, **flags: Any) -> Outcome:
        """What `jobs/finetune_pathvqa.py` does before Ray starts."""
        folder = self.folder()
        given = {
            "stage": self._training[1].model_dump(mode="json"),
            "model": str(TOY),
            "data": str(folder / "data"),
            "out": str(folder / "run"),
            "shard": {"engine": "plain"},
            "watch": [],
        }
        talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a wall"}]
        write_dataset(folder / "data", "corpus", {"train": [Row("r0", (sound(),), talk)]})

        def begin() -> None:
            values = merged(merged(given, read_yaml(config) if config else {}), flags)
            check(build(TrainSettings, values))

        return self.call(begin, "taken")

    def prepare(self, **fields: Any) -> Outcome:
        """`jobs/prepare_vqa.py` of a table whose sound rows' answers are `sound`."""
        out, sets = self.folder() / "data", fields.pop("sets", [])
        values = {"kind": "table", "out": str(out), "splits": ["train"], **fields}
        found: dict[str, Any] = {}

        def run() -> None:
            settings = build(PrepareSettings, override(values, sets))
            found.update(preparing.prepare(settings))

        with hearing() as heard:
            status = ended(run)
        if status:
            return Outcome(f"refused {code_in(heard.err.getvalue())}", heard.all)
        skipped = list(csv.DictReader(io.StringIO((out / "skipped.csv").read_text())))
        data = Dataset.open(out)
        taken = Counter(example.conversations[-1]["value"] == SOUND for example in data)
        said = [REASONS.get(row["reason"], row["reason"]) for row in skipped]
        said += ["taken"] * (taken[False] > 0)
        causes = [row["cause"] for row in skipped]
        return Outcome(together(said), (*heard.all, *causes, *found["notes"]))

    def call(self, command: Callable[[], object], good: str) -> Outcome:
        """A command that leaves nothing to look at."""
        with hearing() as heard:
            status = ended(lambda: None if command() else None)
        return Outcome(f"refused {code_in(heard.err.getvalue())}" if status else good, heard.all)

    def request(self, body: dict[str, Any] | bytes | str, **named: Any) -> Outcome:
        """POST /v1/chat/completions."""
        with hearing() as heard:
            reply = sent(self.app, body, **named)
        return replied(reply, heard)


def sent(app: App, body: dict[str, Any] | bytes | str, **named: Any) -> Reply:
    """The reply to a request, however long a busy machine takes."""
    return asyncio.run(asyncio.wait_for(Connection(encoded(body), **named).run(app), 300))


def replied(reply: Reply, heard: Heard) -> Outcome:
    """What a reply of the endpoint is."""
    if reply.status != 200:
        error = reply.error
        return Outcome(f"{reply.status} {error['code']}", (*heard.all, reply.body.decode()))
    words = reply.json()["medv"][0]["warnings"]
    return Outcome(" ".join(["answered", *plain(words)]), heard.all)


def together(said: Sequence[str]) -> str:
    """Each once."""
    return "; ".join(sorted(set(said)))


def _learn(folder: Path, row: Row, damage: Callable[[bytes], bytes] | None, *held: Any) -> None:
    tokenizer, stage, model = held
    write_dataset(folder, "corpus", {"train": [row]})
    if damage is not None:
        file = folder / "train.parquet"
        file.write_bytes(damage(file.read_bytes()))
    data = Dataset.open(folder)
    survey_stage(data, tokenizer, stage, model.config)
    samples = Samples(data, tokenizer, stage, model, 0)
    try:
        samples(0)
    finally:
        samples.close()


def _last_json(printed: str) -> dict[str, Any] | None:
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def _unread(out: Path, name: str) -> str:
    """Why a file was not scored."""
    for line in (out / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "skip" and event["file"] == name:
            return str(event["code"])
    return "E1105"
