"""The model card of an exported folder: where its weights come from, and what they are for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medv_ray import hub
from medv_ray.data.dataset import read_index
from medv_ray.errors import DataError
from medv_ray.model.importing import KNOWN_LICENCES, LICENCES, card_value, licence_of
from medv_ray.model.weights import IMPORT_NOTE
from medv_ray.settings import ImageSettings, PromptSettings
from medv_ray.training.job import MODEL, TrainSettings
from medv_ray.training.stages import StageSettings

CARD = "README.md"
LICENCE_NAME = "license_name"
"""By which the next stage's card knows a licence that is no single word."""
SHOWN_CHARACTERS = 300
RECIPE = (
    *("trainable", "lr", "projector_lr", "vision_lr", "batch_size", "epochs", "max_steps"),
    *("optimizer", "schedule", "warmup_ratio", "weight_decay", "clip", "template", "system"),
    *("aspect", "merge", "token_after_image"),
    *("targets", "answer_fill", "padding", "attention", "lora", "seed"),
)
"""Settings of the stage that the card names; run.json has all."""
USE = """\
Research on questions about biomedical images. The model is no medical device: its answers were not
checked by anyone but for the figures above, and must not decide on a diagnosis or a treatment. It
answers every question, also one that the picture does not answer, and one about a picture of a kind
that it was not trained on. What its base model does wrong, it may do wrong too. Figures of the
validation split served to watch the training; publish those of a test split
(`medv eval`, docs/evaluation.md)."""


def card(
    settings: TrainSettings,
    identity: Mapping[str, Any],
    manifest: Mapping[str, Any],
    dtype: str,
) -> str:
    """Markdown, without a path of this machine.

    Args:
        settings, identity: of the run.
        manifest: of the checkpoint that is exported.
    """
    base, stage = Path(settings.model), settings.stage
    licence, link = base_licence(base)
    named = licence is not None and re.fullmatch(r"[\w.+-]+", licence) is not None
    front = ["---", "library_name: medv_ray", f"license: {licence if named else 'other'}"]
    front += [f"license_link: {link}"] if link else []
    front += [f"{LICENCE_NAME}: {json.dumps(licence)}"] if licence and not named else []
    recipe = stage.model_dump(mode="json", include={*RECIPE})
    if manifest["num_steps"] == stage.max_steps:
        del recipe["epochs"]  # they were not what ended it
    ended = manifest["step"] < manifest["num_steps"]
    whole = f"{manifest['step']} of {manifest['num_steps']} updates" if ended else "all updates"
    looks = manifest.get("validation") or {}
    base_sha256, data_sha256 = identity["base_sha256"], identity["data_sha256"]
    lines = [
        *front,
        "---",
        "",
        f"# {name_of(base)}, finetuned by {stage.name}",
        "",
        f"Made by medv_ray {identity['code']['medv_ray']}: {whole} of one stage, weights in "
        f"{dtype}.",
        "",
        "| | |",
        "|---|---|",
        f"| base | {name_of(base)}, sha256 {base_sha256} |",
        *data_lines(settings, identity, data_sha256),
        "",
        "## Recipe",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {json.dumps(recipe[name])} |" for name in RECIPE if name in recipe),
        "",
        *asking_lines(stage),
        "## Results",
        "",
        *result_lines(looks),
        "",
        "## Licence",
        "",
        *licence_lines(base, licence, link),
        "",
        "## Use and limits",
        "",
        USE,
    ]
    return "\n".join(lines) + "\n"


def name_of(folder: Path) -> str:
    """A folder's name; of a run's model, the run's too; of one of the hub's, its commit too."""
    if (of := hub.origin(str(folder))) is not None:
        return str(of)
    return f"{folder.parent.name}/{folder.name}" if folder.name == MODEL else folder.name


def data_lines(settings: TrainSettings, identity: Mapping[str, Any], sha256: str) -> list[str]:
    """Rows of the table on the data; what dataset.json says where it lies there still."""
    survey = identity["survey"]
    counts = f"{survey['rows']} rows, {survey['images']} pictures, {survey['targets']} targets"
    lines = [f"| rows that were trained on | split {settings.split}: {counts}, sha256 {sha256} |"]
    try:
        index = read_index(Path(settings.data))
    except DataError:
        return [*lines, "| dataset | not where it lay when the model was trained |"]
    if index["counts"].get(settings.split, {}).get("sha256") != sha256:
        return [*lines, "| dataset | changed since the model was trained |"]
    splits = ", ".join(f"{split} {rows}" for split, rows in index["splits"].items())
    said = one_line(str(index.get("licence") or "")) or "not stated"
    name = one_line(str(index.get("name") or "")) or "without a name"
    return [f"| dataset | {name} ({splits}) |", *lines, f"| licence of the data | {said} |"]


def asking_lines(stage: StageSettings) -> list[str]:
    """How to ask as the stage taught; nothing of a stage that taught no chat."""
    if stage.template != "llada":
        return []
    prompt, image = PromptSettings(), ImageSettings()
    taught: dict[str, Any] = {
        "prompt.system": stage.system,
        "prompt.token_after_image": stage.token_after_image,
        **{f"image.{name}": value for name, value in stage.image.model_dump(mode="json").items()},
        "image.aspect": stage.aspect,
    }
    usual = {
        **{f"prompt.{name}": value for name, value in prompt.model_dump(mode="json").items()},
        **{f"image.{name}": value for name, value in image.model_dump(mode="json").items()},
    }
    others = [(name, value) for name, value in taught.items() if value != usual[name]]
    sets = [shlex.quote(f"{n}={v if isinstance(v, str) else json.dumps(v)}") for n, v in others]
    said = " ".join(f"--set {one}" for one in sets)
    text = "Scoring asks as the training did, by default."
    if said:
        text = f"To ask as the training did: `medv score ... {said}`, or the same of `medv serve`."
    return ["## Asking", "", text, ""]


def result_lines(looks: Mapping[str, Any]) -> list[str]:
    """Figures of the last and of the best validation before the checkpoint."""
    shown = [(words, looks.get(words)) for words in ("last", "best")]
    rows = [
        f"| {words} | {one['step']} | {figure(one['loss'])} | {share(one, 'accuracy')} "
        f"| {share(one, 'accuracy_open', 'rows_open')} "
        f"| {share(one, 'accuracy_closed', 'rows_closed')} |"
        for words, one in shown
        if one is not None
    ]
    if not rows:
        return ["The training looked at no validation split (`--validate-every`)."]
    split = looks.get("split")  # older checkpoints do not say it
    of = f"{looks['rows']} rows of split {split}" if split else "rows of a validation split"
    return [
        f"On {of}; answers are right where they are the reference's words "
        "(open) or where the first yes or no is the reference's (closed). "
        f"`best` is by {looks.get('by')}.",
        "",
        "| validation | update | loss | right | open | closed |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def share(one: Mapping[str, Any], name: str, rows: str = "rows") -> str:
    """A share and how many rows it is of."""
    return "-" if one.get(name) is None else f"{one[name]:.1%} of {one[rows]}"


def base_licence(base: Path) -> tuple[str | None, str | None]:
    """The licence's name where the base says one in a line, and the file that holds its text."""
    found = licence_of(base, None)
    if found["from"] in LICENCES:
        return None, found["from"]
    name = found["text"]
    if name == "other":
        said = (base / CARD).read_text(encoding="utf-8", errors="replace")
        name = card_value(said, LICENCE_NAME)
    elif name is None and (base / IMPORT_NOTE).is_file():
        note = json.loads((base / IMPORT_NOTE).read_bytes()).get("licence") or {}
        name = note.get("text")
    return one_line(name or "") or None, None


def licence_lines(base: Path, licence: str | None, link: str | None) -> list[str]:
    """The base's, which the finetuned weights stay under."""
    if link:
        said = f"As its base, {name_of(base)}: the text is in [{link}]({link})."
    elif licence:
        said = f"As its base, {name_of(base)}: {licence}."
    else:
        said = f"The folder of its base, {name_of(base)}, names none; the base's holds here too."
    return [said, "", f"Of known bases: {KNOWN_LICENCES} The data have a licence of their own."]


def one_line(text: str) -> str:
    """Short enough for a cell of a table, without what would end it."""
    return " ".join(text.replace("|", " ").split())[:SHOWN_CHARACTERS]
