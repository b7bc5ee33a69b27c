"""Kinds 100 to 104: settings that are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from medv_ray.cli import serving
from medv_ray.on_ray import endpoint
from tests.corpus.bench import Bench
from tests.corpus.kinds import NONE, Kind, Outcome
from tests.corpus.sound import QUESTION, sound

SECRET_NAME, SECRET = "MEDV_CORPUS_SECRET", "hunter2-of-the-corpus"


@dataclass(frozen=True)
class Config:
    """A YAML file by path, and `--set` where there is no file. None: nothing of the kind."""

    score: str | bytes | None = None
    train: str | bytes | None = None
    endpoint: str | bytes | None = None
    ask: Sequence[str] | None = None
    prepare: Sequence[str] | None = None
    out: str = ""
    """Where a scoring job is to write: `inside` the archive, or into a folder that is `used`."""


def of(text: str | bytes | None = None, **more: object) -> Callable[[Path], Config]:
    """The same file for all that take one."""
    every = {} if text is None else dict.fromkeys(("score", "train", "endpoint"), text)
    return lambda folder: Config(**{**every, **more})  # type: ignore[arg-type]


def yaml(bench: Bench, text: str | bytes) -> Path:
    path = bench.folder() / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def score(bench: Bench, given: Config) -> Outcome:
    if given.score is None and not given.out:
        return NONE
    folder = bench.folder()
    (folder / "a.png").write_bytes(sound())
    flags = {} if given.score is None else {"config": yaml(bench, given.score)}
    if given.out:
        where = folder if given.out == "inside" else bench.folder()
        (where / "mine.txt").write_text("mine")
        flags["out"] = where / "run" if given.out == "inside" else where
    with mock.patch.dict(os.environ, {SECRET_NAME: SECRET}):
        question = None if given.score and b"question" in _bytes(given.score) else QUESTION
        outcome = bench.score(archive=str(folder), question=question, **flags)
    manifest = bench.last_run / "run.json"
    assert not manifest.exists() or SECRET not in manifest.read_text(), "a secret is in run.json"
    return outcome


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def train(bench: Bench, given: Config) -> Outcome:
    if given.train is None:
        return NONE
    return bench.start_training(yaml(bench, given.train))


def serve(bench: Bench, given: Config) -> Outcome:
    if given.endpoint is None:
        return NONE
    path = yaml(bench, given.endpoint)
    with mock.patch.object(endpoint, "run_endpoint", return_value=0):
        return bench.call(lambda: serving.serve_command(config=path), "read")


def ask(bench: Bench, given: Config) -> Outcome:
    return NONE if given.ask is None else bench.ask("a.png", sound(), sets=given.ask)


def prepare(bench: Bench, given: Config) -> Outcome:
    if given.prepare is None:
        return NONE
    folder = bench.folder()
    (folder / "a.png").write_bytes(sound())
    (folder / "rows.csv").write_text("image,question,answer\na.png,What?,a wall\n")
    return bench.prepare(source=str(folder / "rows.csv"), sets=given.prepare)


WAYS = {"score": score, "ask": ask, "train": train, "import": prepare, "endpoint": serve}
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def kinds() -> Iterator[Kind]:
    def several(number: int, name: str, want: str, note: str = "", **cases: object) -> Kind:
        made = {case.replace("_", " "): make for case, make in cases.items()}
        return Kind(number, name, want, made, note=note)  # type: ignore[arg-type]

    yield several(
        100,
        "numbers that YAML reads as text",
        "ok",
        "A field has its type, whatever YAML says.",
        **{
            "1e-5": of(
                train="stage: {lr: 1e-5}",
                score="abstain_below: 1e-9",
                endpoint="limits: {body_seconds: 3e1}",
            )
        },
    )
    yield several(
        101,
        "unknown name, name given twice",
        "E1001",
        unknown=of(
            "stage: {learning_rate: 1}\nsampler: {stepz: 3}",
            ask=["sampler.stepz=3"],
            prepare=["imag.max_pixels=3"],
        ),
        twice=of("seed: 1\nseed: 2"),
    )
    yield several(
        102,
        "code, billion laughs, 5 MB",
        "E1001",
        code=of("seed: !!python/object/apply:os.system ['touch /tmp/x']"),
        laughs=of(LAUGHS),
        **{"5 MB": of("seed: 1 #" + "x" * 5 * 10**6)},
    )
    blocks = ["sampler.gen_length=8", "sampler.block_length=3"]
    steps = ["sampler.gen_length=8", "sampler.block_length=4", "sampler.steps=3"]
    yield several(
        103,
        "numbers that do not divide",
        "E1002 E1601",
        L_by_B=of(
            score="sampler: {gen_length: 8, block_length: 3}",
            ask=blocks,
            endpoint="sampler: {gen_length: 8, block_length: 3}",
        ),
        steps_by_blocks=of(
            score="sampler: {gen_length: 8, block_length: 4, steps: 3}",
            ask=steps,
            endpoint="sampler: {gen_length: 8, block_length: 4, steps: 3}",
        ),
        batch_by_workers=of(
            train="workers: {num_workers: 3}\nshard: {engine: zero3}\nstage: {batch_size: 4}"
        ),
    )
    yield several(
        103,
        "numbers out of range",
        "E1001",
        epochs_0=of(train="stage: {epochs: 0}"),
        batch_of_minus_1=of(train="stage: {batch_size: -1}"),
        steps_0=of(
            score="sampler: {steps: 0}", ask=["sampler.steps=0"], endpoint="sampler: {steps: 0}"
        ),
        pixels_0=of(prepare=["image.max_pixels=0"]),
        NaN=of(
            score="sampler: {temperature: .nan}",
            ask=["sampler.temperature=NaN"],
            endpoint="sampler: {temperature: .nan}",
            train="stage: {lr: .nan}",
        ),
    )
    yield several(
        103,
        "output inside the input, output in use by others",
        "E1507",
        inside=of(out="inside"),
        used=of(out="used"),
    )
    yield several(104, "no UTF-8", "E1001", latin_1=of("seed: 1 # caf\u00e9".encode("latin-1")))
    yield several(
        104,
        "name of an environment variable",
        "ok",
        "Nothing is interpolated: the text stays as it is, and no secret gets into run.json.",
        question=of(score=f"archive: {{question: '${{{SECRET_NAME}}}'}}"),
    )
