"""From a release to a prepared dataset: every record becomes a row or is counted by reason."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.canvases import TileSettings
from medv_ray.data.conversations import checked, place_images
from medv_ray.data.dataset import Message
from medv_ray.data.dataset_writer import Row, Skip, write_dataset
from medv_ray.data.decode_child import Decoder
from medv_ray.data.prompts import check_storable
from medv_ray.data.vqa.entries import SPLITS, Entry, Form, front
from medv_ray.data.vqa.forms import DATA_RAD, HUB, LLAVA, OPEN_ENDED, PATHVQA, SLAKE, TABLE
from medv_ray.data.vqa.multiple_choice import (
    MEDFRAMEQA,
    MEDXPERTQA,
    MMMU_MED,
    OMNIMEDVQA,
    PMC_VQA,
)
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import CATALOGUE, DataError, SettingsError
from medv_ray.tables import names
from medv_ray.tables.cells import IMAGE_MARK, is_no_answer
from medv_ray.tables.ids import normal, repeated_id

BAD_ROW = CATALOGUE["E1109"].reason
DROPPED = "dropped_answer"
REPEATED_IDS = "rows have the id of an earlier one; they are called <id>#<split>-<row>"
OTHER_CASE = "rows name an image in another case than its file's"
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
    "llava-med-qa50": Kind((OPEN_ENDED,), _LLAVA_MED),
    "llava": Kind((LLAVA,), "unknown", image_needed=False),
    "table": Kind((TABLE,), "unknown"),
    "pmc-vqa": Kind((PMC_VQA,), "CC BY-SA; pictures of PubMed Central under their own licences"),
    "omnimedvqa": Kind((OMNIMEDVQA,), "of each dataset that it was made of"),
    "mmmu-med": Kind((MMMU_MED,), "Apache-2.0 by its card; pictures under their own licences"),
    "medxpertqa-mm": Kind((MEDXPERTQA,), "MIT by its card"),
    "medframeqa": Kind((MEDFRAMEQA,), "unknown; frames of videos"),
}


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Write the dataset and return the content of its dataset.json.

    Raises DataError E1101, E1105, E1112, E1115, E1116 for a source that cannot be read, E1110 for a
    split of which no row is left, SettingsError E1001 for an unknown split, and RunError as
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
            split: split_rows(notes, split, paths, form, settings, pictures, kind)
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


class Remarks:
    """What was changed or looks odd in a split, counted while its rows go by."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.doubtful: dict[str, list[int]] = defaultdict(list)
        """Lines of answers that look like empty cells."""

    def notes(self, split: str) -> Iterator[str]:
        """Notes for dataset.json."""
        for word, count in self.words.items():
            yield f"{split}: {count} {word}"
        for answer, lines in sorted(self.doubtful.items()):
            some = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
            yield (
                f"{split}: {len(lines)} answers are {answer!r}, as empty cells are written "
                f"(line {some}); --drop-answers {answer!r} leaves them out"
            )


def split_rows(
    notes: list[str],
    split: str,
    paths: list[Path],
    form: Form,
    settings: PrepareSettings,
    pictures: Pictures,
    kind: Kind,
) -> Iterator[Row | Skip]:
    """Rows of one split, and a Skip for every record that becomes none.

    What was counted on the way goes to `notes` after the last.
    """
    remarks = Remarks()
    row_names = RowNames(split)
    dropped = {answer.strip().casefold() for answer in settings.drop_answers}
    number = -1
    for path in paths:
        for index, read in enumerate(form.records(path, settings)):
            number += 1
            source = f"{path.name}:{index}"
            try:
                if read.error is not None:
                    raise read.error
                entry = form.entry(read.values, split, settings)
                if isinstance(entry, str):
                    yield Skip(source, entry, read.line)
                    continue
                answers = [m["value"] for m in entry.messages if m["from"] == "gpt"]
                if dropped.intersection(answer.strip().casefold() for answer in answers):
                    cause = "its answer is in --drop-answers"
                    yield Skip(source, DROPPED, read.line, cause)
                    continue
                check_messages(entry, kind)
                images, changed = pictures.read_all(entry.images)
                messages = marked(entry.messages, len(entry.images), len(images))
                row_id = row_names.name(entry.id, number)
            except KeyError as error:
                field = str(error.args[0])[:30]
                yield Skip(source, BAD_ROW, read.line, f"it has no {field!r}")
            except DataError as error:
                yield Skip(source, error.reason, read.line, error.detail)
            else:
                remarks.words.update((*entry.remarks, *changed))
                if entry.id is not None and row_id != normal(entry.id):
                    remarks.words[REPEATED_IDS] += 1
                for answer in filter(is_no_answer, answers):
                    remarks.doubtful[answer.strip()].append(read.line)
                kinds = entry.answer_type, entry.question_type
                yield Row(row_id, images, messages, *kinds, source, entry.choices, entry.groups)
    notes.extend(remarks.notes(split))


def marked(messages: list[Message], named: int, found: int) -> list[Message]:
    """The messages with a mark for each image, where one name stood for several."""
    start = front(named)
    if named == found or not messages[0]["value"].startswith(start):
        return messages
    first = {**messages[0], "value": front(found) + messages[0]["value"][len(start) :]}
    return [first, *messages[1:]]


class RowNames:
    """Ids of a split's rows, distinct: a repeated one becomes `<id>#<split>-<row>`."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._seen: set[str] = set()
        self._made = re.compile(rf"(?:.*#)?{split}-\d+", re.DOTALL)

    def name(self, own: str | None, number: int) -> str:
        """The id of a row. Raises DataError E1104."""
        made = f"{self._split}-{number}"
        text = normal(own or made)
        # an id that looks like one of ours gives way, so that ours stay distinct
        if text in self._seen or (text != made and self._made.fullmatch(text)):
            return repeated_id(text, made)
        self._seen.add(text)
        return text


def check_messages(entry: Entry, kind: Kind) -> None:
    """Raises DataError E1109, E1111, E1117, E1301, E1304 or E1308 for what could not be trained on,
    or asked."""
    if kind.image_needed and not entry.images:
        raise DataError("E1111", "the row names no image.")
    check_storable(f"{entry.answer_type} {entry.question_type}")
    messages = checked(entry.messages)
    place_images(messages, len(entry.images))
    for role, words in messages:
        if role == "assistant" and not words.strip():
            raise DataError("E1117", "an answer is empty.")
        if role == "assistant" and entry.choices and words not in entry.choices:
            raise DataError("E1308", "the answer is none of the choices.")
        if role == "user" and kind.question_needed and not words.replace(IMAGE_MARK, "").strip():
            raise DataError("E1301", "a question is empty.")


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
        self._load = lru_cache(maxsize=4)(self._load_named)
        self._listed = lru_cache(maxsize=1024)(self._list)

    def read_all(self, images: Sequence[bytes | str]) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
        """The encoded bytes, and words for what was changed to find them.

        Raises DataError E1108, E1111, E1112, E1201 .. E1212.
        """
        found: list[bytes] = []
        words: set[str] = set()
        for image in images:
            loaded, loose = ([image], False) if isinstance(image, bytes) else self._load(image)
            found += [self.checked(data) for data in loaded]
            words |= {OTHER_CASE} if loose else set()
        return tuple(found), tuple(words)

    def checked(self, data: bytes) -> bytes:
        """The bytes of an image that decodes. Raises DataError E1201 .. E1212."""
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

    def _load_named(self, name: str) -> tuple[list[bytes], bool]:
        """The file that a name means, or the files, and whether it differs in case.

        As it is written first, in each of the folders.
        """
        for root in self._roots:
            name = names.below(name, str(root)) if name.startswith("/") else name
        path = names.relative(name)
        outside = path.startswith("/")
        for root in [] if outside else self._roots:
            data = self._load_file(root, path)
            if data is not None:
                return [data], False
        for root in self._roots:
            found = names.find(name, root.name, partial(self._listed, root))
            loaded = [self._load_file(root, one.path) for one in found]
            if loaded and None not in loaded:
                return [data for data in loaded if data is not None], any(f.warnings for f in found)
        if outside:
            raise DataError("E1108", "the image path leaves the image folder.")
        raise DataError("E1111", "the named image does not exist.")

    def _list(self, root: Path, folder: str) -> names.Folder:
        try:
            return names.Folder(os.listdir(root / folder))
        except (OSError, ValueError):
            return names.Folder(())

    def _load_file(self, root: Path, relative: str) -> bytes | None:
        path = root / relative
        try:
            if not path.is_file():
                return None
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
