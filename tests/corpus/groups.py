"""All kinds, by group, with the way of an input into each path."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medv_ray.model.importing import import_folder
from medv_ray.serving.service import Service
from medv_ray.settings import ModelSettings
from medv_ray.training.checkpoint import Checkpoints
from tests.corpus import checkpoints, configs, dicoms, pictures, questions, requests, rows, tables
from tests.corpus.bench import Bench
from tests.corpus.checkpoints import Checkpoint
from tests.corpus.kinds import NONE, Group, Outcome, Way
from tests.corpus.questions import Asked
from tests.corpus.rows import Archive
from tests.corpus.sound import ANSWER, QUESTION, SOUND, sound
from tests.unit.serving.client import body_of, message
from tests.unit.serving.conftest import settings_of

File = tuple[str, bytes]


def score_picture(bench: Bench, file: File) -> Outcome:
    folder = bench.folder()
    for number in range(2):
        (folder / f"{SOUND}-{number}.png").write_bytes(sound())
    (folder / file[0]).write_bytes(file[1])
    return bench.score(archive=str(folder), question=QUESTION)


def import_picture(bench: Bench, file: File) -> Outcome:
    folder = bench.folder()
    (folder / "sound.png").write_bytes(sound())
    (folder / file[0]).write_bytes(file[1])
    rows = f"image,question,answer\nsound.png,{QUESTION},{SOUND}\n{file[0]},{QUESTION},{ANSWER}\n"
    (folder / "rows.csv").write_text(rows)
    return bench.prepare(source=str(folder / "rows.csv"))


def score_rows(bench: Bench, archive: Archive) -> Outcome:
    if archive.score is None:
        return NONE
    return bench.score(**archive.score, meanwhile=archive.meanwhile)


def import_rows(bench: Bench, archive: Archive) -> Outcome:
    return NONE if archive.prepare is None else bench.prepare(**archive.prepare)


def train_rows(bench: Bench, archive: Archive) -> Outcome:
    if archive.damage is None:
        return NONE
    return bench.train(sound(), damage=archive.damage)


def as_rows(bench: Bench, asked: Asked) -> Archive:
    """A table of two sound questions and this one."""
    folder = bench.folder()
    (folder / "b.png").write_bytes(asked.image)
    lines = rows.lines(rows.row(image="b.png", question=asked.question))
    return rows.text(folder, "rows.jsonl", lines)


PICTURE = {
    "score": score_picture,
    "ask": lambda bench, file: bench.ask(file[0], file[1]),
    "train": lambda bench, file: bench.train(file[1]),
    "import": import_picture,
    "endpoint": lambda bench, file: bench.request(body_of(messages=[message(QUESTION, file[1])])),
}


def either(picture: Way, archive: Way | None) -> Way:
    """The way of what is given."""

    def way(bench: Bench, given: Any) -> Outcome:
        if not isinstance(given, Archive):
            return picture(bench, given)
        return NONE if archive is None else archive(bench, given)

    return way


def loaded(way: Way) -> Way:
    """Through a path that loads weights, in whose folder a payload may lie."""

    def guarded(bench: Bench, given: Checkpoint) -> Outcome:
        outcome = way(bench, given)
        assert not given.sprung, "a payload has run"
        return outcome

    return guarded


def score_model(bench: Bench, given: Checkpoint) -> Outcome:
    if given.model is None:
        return NONE
    folder = bench.folder()
    (folder / "a.png").write_bytes(sound())
    sets = [] if given.adapter is None else [f"model.adapter={given.adapter}"]
    return bench.score(given.model, archive=str(folder), question=QUESTION, sets=sets)


def ask_model(bench: Bench, given: Checkpoint) -> Outcome:
    if given.model is None:
        return NONE
    sets = [] if given.adapter is None else [f"model.adapter={given.adapter}"]
    return bench.ask("a.png", sound(), model=given.model, sets=sets)


def train_model(bench: Bench, given: Checkpoint) -> Outcome:
    if given.run is not None:
        checkpoints = Checkpoints(given.run / "checkpoints", 2)
        return bench.call(lambda: checkpoints.latest(Alone()), "taken")
    if given.model is None or given.adapter is not None:
        return NONE
    return bench.start_training(model=str(given.model))


class Alone:
    """The one worker of a training."""

    rank, num_workers = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        return values


def import_model(bench: Bench, given: Checkpoint) -> Outcome:
    if given.source is None:
        return NONE
    source, out = given.source, bench.folder() / "out"
    return bench.call(lambda: import_folder(source, out), "imported")


def serve_model(bench: Bench, given: Checkpoint) -> Outcome:
    if given.model is None:
        return NONE
    adapters = {} if given.adapter is None else {"adapter": str(given.adapter)}
    settings = settings_of().model_copy(
        update={"model": ModelSettings(path=str(given.model), device="cpu"), "adapters": adapters}
    )
    return bench.call(lambda: Service.load(settings).close(), "read")


MODEL = {
    "score": loaded(score_model),
    "ask": loaded(ask_model),
    "train": loaded(train_model),
    "import": loaded(import_model),
    "endpoint": loaded(serve_model),
}
ROWS = {"score": score_rows, "train": train_rows, "import": import_rows}
QUESTION_WAYS = {
    "score": lambda bench, asked: score_rows(bench, as_rows(bench, asked)),
    "ask": lambda bench, asked: bench.ask("a.png", asked.image, asked.question),
    "train": lambda bench, asked: bench.train(asked.image, asked.question),
    "import": lambda bench, asked: import_rows(bench, as_rows(bench, asked)),
    "endpoint": lambda bench, asked: bench.request(
        body_of(messages=[message(asked.question, asked.image)])
    ),
}
GROUPS = (
    Group(
        "Pictures",
        "A file of a folder for `score`, the file that `ask` is about, a picture of a prepared "
        "dataset that nobody has checked for `train`, a file that a table names for `import`, a "
        "data URL for the endpoint. Two sound rows stand beside it.",
        PICTURE,
        tuple(pictures.kinds()),
    ),
    Group(
        "DICOM", "As pictures; each file holds a patient's name.", PICTURE, tuple(dicoms.kinds())
    ),
    Group(
        "Rows",
        "An archive for `score`, the bad file or table for `import`; for `train`, the rows of a "
        "prepared dataset damaged in the same way. `refused`: nothing is started. `not scored`: "
        "the file is named, all others are scored, exit status 1.",
        ROWS,
        tuple(rows.kinds()),
    ),
    Group(
        "Questions",
        "Asked about a sound picture; beside it, for `score` and `import`, stand two sound rows.",
        QUESTION_WAYS,
        tuple(questions.kinds()),
    ),
    Group(
        "Checkpoints",
        "The model of `score`, `ask` and the endpoint, the base of `train`, the pickles of "
        "`import`. `read`: the endpoint starts.",
        MODEL,
        tuple(checkpoints.kinds()),
    ),
    Group(
        "Requests",
        "To the endpoint; where it matters with API keys, shorter limits, or a host to fetch from.",
        {"endpoint": lambda bench, send: send(bench)},
        tuple(requests.kinds()),
    ),
    Group(
        "Settings",
        "A YAML file for `score`, `train` and the endpoint; `--set` for `ask` and `import`.",
        configs.WAYS,
        tuple(configs.kinds()),
    ),
    Group(
        "Tables and folders that users have",
        "What public threads complain of: rows that are sound, in forms that readers trip over. "
        "As rows above; a picture goes the way of pictures.",
        {path: either(PICTURE[path], ROWS.get(path)) for path in PICTURE},
        tuple(tables.kinds()),
    ),
)
