"""From a release to a prepared dataset: every record becomes a row or is counted by reason."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.data.conversations import IMAGE_WORD, checked, place_images
from medv_ray.data.dataset_writer import Row, Skip, write_dataset
from medv_ray.data.decode_child import Decoder
from medv_ray.data.images import TileSettings
from medv_ray.data.prompts import check_storable
from medv_ray.data.vqa.entries import SPLITS, Entry, Form
from medv_ray.data.vqa.forms import DATA_RAD, HUB, LLAVA, PATHVQA, SLAKE, TABLE
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import CATALOGUE, DataError, SettingsError

MAX_ID_BYTES = 512
CHECK_TILE = 32  # pixels; the tile itself is thrown away


class Kind(NamedTuple):
    """A dataset that can be prepared."""

    forms: tuple[Form, ...]
    """Tried in this order."""
    licence: str
    """As the release states it."""
    question_needed: bool = True
    """False for captions: the alignment stage drops the human's words."""
    image_needed: bool = True
    """False where rows of text alone are meant, and not ones that lost their image."""


_LLAVA_MED = "CC BY-NC 4.0; images of PubMed Central under their own licences"
_PATHVQA = "MIT by its card; pictures and captions stay with the textbooks' publishers"
KINDS: dict[str, Kind] = {
    "pathvqa-hf": Kind((HUB,), _PATHVQA),
    "pathvqa-official": Kind((PATHVQA,), _PATHVQA),
    "vqa-rad": Kind((DATA_RAD, HUB, LLAVA), "CC0 1.0"),
    "slake": Kind((SLAKE,), "CC BY 4.0"),
    "llava-med-stage1": Kind((LLAVA,), _LLAVA_MED, question_needed=False),
    "llava-med-stage2": Kind((LLAVA,), _LLAVA_MED, image_needed=False),
    "llava": Kind((LLAVA,), "unknown", image_needed=False),
    "table": Kind((TABLE,), "unknown"),
}


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Write the dataset and return the content of its dataset.json.

    Raises DataError E1101, E1105, E1115, E1116 for a source that cannot be read, E1110 for a split
    of which no row is left, SettingsError E1001 for an unknown split, and RunError as
    `write_dataset`. Bad rows raise nothing: they are counted.
    """
    kind = KINDS[settings.kind]
    form, found = find_form(settings)
    chosen = {split: found[split] for split in settings.splits or found}
    notes = [*form.notes]
    if settings.include_frame:
        notes.append("holds data_RAD's frame rows, which leak the test set")
    with Decoder(settings.image, tile_check(settings)) as decoder:
        pictures = Pictures(settings, form, decoder)
        rows = {
            split: split_rows(split, paths, form, settings, pictures, kind)
            for split, paths in chosen.items()
        }
        return write_dataset(
            settings.out,
            settings.name or settings.kind,
            rows,
            licence=settings.licence or kind.licence,
            notes=notes,
        )


def find_form(settings: PrepareSettings) -> tuple[Form, dict[str, list[Path]]]:
    """The layout of the source and the files of each split. Raises DataError E1115."""
    unknown = [split for split in settings.splits if split not in SPLITS]
    if unknown:
        names = ", ".join(SPLITS)
        raise SettingsError("E1001", f"--split {unknown[0][:20]!r}: one of {names}.")
    source, forms = Path(settings.source), KINDS[settings.kind].forms
    for form in forms:
        found = form.find(source)
        if source.is_file() and found and settings.splits:
            found = {settings.splits[0]: found["train"]} if len(settings.splits) == 1 else {}
        if found:
            break
    else:
        expected = "; or ".join(form.expects for form in forms)
        raise DataError("E1115", f"the source has none of the files looked for: {expected}.")
    absent = [split for split in settings.splits if split not in found]
    if absent:
        there = ", ".join(found)
        raise DataError("E1115", f"the source has no split {absent[0]!r}; it has {there}.")
    return form, found


def split_rows(
    split: str,
    paths: list[Path],
    form: Form,
    settings: PrepareSettings,
    pictures: Pictures,
    kind: Kind,
) -> Iterator[Row | Skip]:
    """Rows of one split, and a Skip for every record that becomes none."""
    seen: set[str] = set()
    number = -1
    for path in paths:
        for place, record in enumerate(form.records(path, settings)):
            number += 1
            source = f"{path.name}:{place}"
            try:
                if record is None:
                    raise DataError("E1109", "the record is no object.")
                entry = form.entry(record, split, settings)
                if isinstance(entry, str):
                    yield Skip(source, entry)
                    continue
                check_messages(entry, kind)
                row_id = check_id(entry.id or f"{split}-{number}", seen)
                images = tuple(pictures.read(image) for image in entry.images)
            except KeyError:
                yield Skip(source, CATALOGUE["E1109"].reason)
            except DataError as error:
                yield Skip(source, error.reason)
            else:
                seen.add(row_id)
                yield Row(
                    row_id, images, entry.messages, entry.answer_type, entry.question_type, source
                )


def check_messages(entry: Entry, kind: Kind) -> None:
    """Raises DataError E1109, E1111, E1117, E1301 or E1304 for what could not be trained on."""
    if kind.image_needed and not entry.images:
        raise DataError("E1111", "the row names no image.")
    check_storable(f"{entry.answer_type} {entry.question_type}")
    messages = checked(entry.messages)
    place_images(messages, len(entry.images))
    for role, words in messages:
        if role == "assistant" and not words.strip():
            raise DataError("E1117", "an answer is empty.")
        if role == "user" and kind.question_needed and not words.replace(IMAGE_WORD, "").strip():
            raise DataError("E1301", "a question is empty.")


def check_id(value: str, seen: set[str]) -> str:
    """The id in its normal form. Raises DataError E1103 (seen before), E1104 or E1304."""
    row_id = unicodedata.normalize("NFC", value).strip()
    if check_storable(row_id) > MAX_ID_BYTES or not row_id.isprintable():
        raise DataError("E1104", f"an id has more than {MAX_ID_BYTES} bytes or control characters.")
    if row_id in seen:
        raise DataError("E1103", "the id was seen before.")
    return row_id


def tile_check(settings: PrepareSettings) -> TileSettings | None:
    """None asks the decoder for the header only."""
    return TileSettings("square", CHECK_TILE) if settings.check == "decode" else None


class Pictures:
    """Encoded bytes of the images that rows name; each distinct one is checked once."""

    def __init__(self, settings: PrepareSettings, form: Form, decoder: Decoder) -> None:
        source = Path(settings.source)
        source = source.parent if source.is_file() else source
        folders = [settings.images] if settings.images else form.image_folders
        roots = [(source / folder).resolve() for folder in folders]
        self._roots = [root for root in roots if root.is_dir()]
        self._max_bytes = settings.image.max_bytes
        self._decoder = decoder
        self._verdicts: dict[bytes, DataError | None] = {}
        # questions about one image stand together
        self._load = lru_cache(maxsize=4)(self._load_file)

    def read(self, image: bytes | str) -> bytes:
        """Raises DataError E1108, E1111, E1112, E1201 .. E1212."""
        data = image if isinstance(image, bytes) else self._load(image)
        key = hashlib.sha256(data).digest()
        if key not in self._verdicts:
            try:
                self._decoder.prepare(data)
                self._verdicts[key] = None
            except DataError as error:
                self._verdicts[key] = error.with_traceback(None)
        verdict = self._verdicts[key]
        if verdict is not None:
            raise DataError(verdict.code, verdict.detail)
        return data

    def _load_file(self, name: str) -> bytes:
        # exports made on Windows have its separators
        relative = Path(name.strip().replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or "\0" in name:
            raise DataError("E1108", "the image path leaves the image folder.")
        for root in self._roots:
            path = root / relative
            try:
                if not path.is_file():
                    continue
                if not path.resolve().is_relative_to(root):
                    raise DataError("E1108", "the image path leaves the image folder.")
                size = path.stat().st_size
                if size > self._max_bytes:
                    limit = f"the limit is {self._max_bytes}"
                    raise DataError("E1112", f"the encoded image has {size} bytes; {limit}.")
                return path.read_bytes()
            except OSError as error:
                kind = type(error).__name__
                raise DataError("E1111", f"the image cannot be read ({kind}).") from None
        raise DataError("E1111", "the named image does not exist.")
