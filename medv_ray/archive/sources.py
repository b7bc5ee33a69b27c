"""What an archive is made of, which files of it hold rows, and which are left out and why.

Four kinds: parquet files, question tables (csv, jsonl, json) beside a folder of images, tar shards,
and a folder of images with one fixed question. docs/archive.md describes each.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self

from pyarrow import fs
from pydantic import Field, PositiveInt, model_validator

from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.left_out import (
    EMPTY,
    HIDDEN,
    NO_IMAGE,
    UNNAMED,
    LeftOut,
    is_hidden,
    pictures_by_content,
)
from medv_ray.archive.store import (
    TROUBLE,
    Listing,
    Stored,
    absolute,
    list_folder,
    reason_of,
    resolve,
)
from medv_ray.errors import DataError, SettingsError
from medv_ray.formats import ENDINGS
from medv_ray.formats import ending as ending  # for the kinds' modules
from medv_ray.settings import Settings
from medv_ray.tables.columns import Asked
from medv_ray.tables.encoding import known_encoding
from medv_ray.tables.record import CELL_BYTES
from medv_ray.tables.records import ENDINGS as TABLE_ENDINGS
from medv_ray.tables.records import Reading

Kind = Literal["parquet", "table", "tar", "images"]
KnownImage = tuple[str, int, int, str | None]
"""Name, size, time and perhaps a digest."""
PARQUET_ENDINGS = (".parquet", ".pq")


class ArchiveSettings(Settings):
    """Where the rows lie, which columns they have, and how they are cut into chunks."""

    archive: str
    """File, folder, or pattern with `*`; local, or an `s3://` or `gs://` URI."""
    questions: str | None = None
    """A csv, tsv, jsonl, json or parquet file of questions; `archive` is then the folder of its
    images."""
    images: str | None = None
    """Folder that image paths in columns are relative to. Default: the archive's own folder."""
    question: str | None = None
    """One question for every image; a question column is then not looked at."""
    id_column: str | None = None
    """Column of row ids. Default: `id` where there is one, else ids made of file and row number;
    `none`: these in any case."""
    image_column: str = "image"
    """Encoded bytes, base64, a struct {bytes, path}, a path, or a list of these. Where there is no
    `image`, that of a known layout is taken (`images`, SLAKE's `img_name`)."""
    question_column: str = "question"
    """Text. Where there is no `question`, a dialogue is taken (`messages`, `conversations`)."""
    answer_column: str | None = None
    """The known answer, copied to the output as `reference`. Default: `answer` where it exists."""
    chunk_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows that are read, answered and committed together: what a kill can cost."""
    limit: PositiveInt | None = None
    """Only the first rows of the archive."""
    fingerprint: Literal["fast", "full"] = "fast"
    """How a changed input file is noticed: by size, time and both ends, or by its whole content."""
    encoding: str | None = None
    """Of csv, tsv and json files, such as `latin-1` or `cp1252`. Default: by the mark at the
    beginning of the file, else UTF-8."""
    max_cell_bytes: PositiveInt = CELL_BYTES
    """Longer questions and answers are quarantined; characters of a cell of text. Cells of
    other columns may have 2^26 at least."""
    max_image_bytes: PositiveInt = 256 * 2**20
    """Larger encoded images are quarantined, before they are read where the format allows it."""

    @model_validator(mode="after")
    def _one_source_of_questions(self) -> Self:
        if self.question is not None and not self.question.strip():
            raise ValueError("question is empty or white space")
        if self.question is not None and self.questions is not None:
            raise ValueError("give questions or question, not both")
        if self.encoding is not None:
            known_encoding(self.encoding)
        return self

    @property
    def asked(self) -> Asked:
        """The columns that are looked for."""
        question = None if self.question is not None else self.question_column
        return Asked(self.image_column, question, self.id_column, self.answer_column)

    @property
    def reading(self) -> Reading:
        """How text tables are read."""
        return Reading(self.encoding, self.max_cell_bytes)


class Beside(NamedTuple):
    """A file beside tables or parquet files. It is left out unless a row names it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Archive:
    """The files of an archive. Picklable and small: no row of it is held."""

    settings: ArchiveSettings
    kind: Kind
    uri: str
    """The folder of the archive, or the questions file's."""
    files: tuple[SourceFile, ...]
    images_uri: str
    """The folder that image paths are relative to."""
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    """Files of the listing that hold no row of it and that no row can name."""
    beside: Mapping[str, Beside] = field(default_factory=dict, repr=False, compare=False)
    """By path in the filesystem, what rows may name. An actor's copy has none."""
    images: tuple[Stored, ...] = field(default=(), repr=False, compare=False)
    """Of a folder of images, the pictures in order of names. An actor's copy has none."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "beside": {}, "images": ()}


@contextmanager
def listing() -> Iterator[None]:
    """Turn a failed listing into DataError E1110."""
    try:
        yield
    except TROUBLE as error:
        text = f"archive: cannot be listed ({reason_of(error)}: rights or network)."
        raise DataError("E1110", text) from error


@listing()
def open_archive(
    settings: ArchiveSettings, known: Mapping[str, KnownImage] | None = None
) -> Archive:
    """List the archive and tell its kind; no row is read.

    Images that are `known` by name, size and time from an earlier plan are not looked into again.

    Raises DataError E1110 when nothing is there or it cannot be listed, SettingsError E1001 when
    its kind is not clear.
    """
    left_out = LeftOut()
    if settings.questions is not None:
        images = absolute(settings.images or settings.archive)
        filesystem, path = resolve(images)
        if filesystem.get_file_info(path).type != fs.FileType.Directory:
            raise DataError("E1110", "archive: with --questions it is the folder of the images.")
        return asked_by_table(settings, images, left_out)
    folder = folder_of(settings.archive)
    images = absolute(settings.images or folder)
    found = list_files(settings.archive, left_out)
    kind, chosen, beside = choose(settings, found, left_out, known or {})
    if kind == "images":
        name = posixpath.basename(folder.rstrip("/")) or "images"
        size = sum(file.size for file in chosen)
        whole = SourceFile(name, resolve(folder)[1], size, 0, clean_stem(name))
        return Archive(settings, kind, folder, (whole,), images, left_out, images=tuple(chosen))
    paths = by_path(resolve(folder)[1], beside)
    return Archive(settings, kind, folder, source_files(chosen), images, left_out, paths)


def asked_by_table(settings: ArchiveSettings, images: str, left_out: LeftOut) -> Archive:
    """The archive of `--questions`: its tables, else its parquet files, beside their images."""
    pattern = str(settings.questions)
    listed = find_files(pattern)
    found = some_files(listed, left_out)
    uri = folder_of(pattern)
    filesystem, path = resolve(pattern)
    sorts = sorted_out(found, {})
    if filesystem.get_file_info(path).type == fs.FileType.File:
        # it is asked for by its name, which may begin with "_"
        sorts = {**sorted_out([], {}), sort_of(f"x{found[0].name}"): found}
    kind: Kind = "table" if sorts["table"] else "parquet"
    if not sorts[kind]:
        endings = ", ".join((*TABLE_ENDINGS, *PARQUET_ENDINGS))
        raise DataError("E1110", f"--questions: no {endings} file; save a spreadsheet as csv.")
    root, folder = resolve(uri)[1], resolve(images)[1]
    beside = by_path(root, what_is_beside(sorts, kind))
    names = [*(file.name for file in sorts[kind]), *(odd.name for odd in listed.odd)]
    counted = {f"{root}/{name}" for name in names}
    pictures = find_files(images)
    for odd in pictures.odd:
        if f"{folder}/{odd.name}" not in counted:
            left_out.add(odd.name, odd.reason)
    others = sorted_out(pictures.files, {})
    spare = [Beside(file.name, UNNAMED) for file in others.pop("images")]
    for path, one in by_path(folder, [*spare, *what_is_beside(others, "images")]).items():
        if path not in counted:
            beside.setdefault(path, one)
    return Archive(settings, kind, uri, source_files(sorts[kind]), images, left_out, beside)


def by_path(root: str, files: Iterable[Beside]) -> dict[str, Beside]:
    """Files below a folder, by their paths in its filesystem."""
    return {f"{root.rstrip('/')}/{file.name}": file for file in files}


def sorted_out(found: Iterable[Stored], known: Mapping[str, KnownImage]) -> dict[str, list[Stored]]:
    """The files of a listing by `sort_of`."""
    sorts: dict[str, list[Stored]] = {
        name: [] for name in ("parquet", "tar", "table", "images", "hidden", "other")
    }
    for file in found:
        image = known.get(file.name)
        was_image = image is not None and image[:3] == file
        sorts["images" if was_image else sort_of(file.name)].append(file)
    return sorts


def choose(
    settings: ArchiveSettings,
    found: list[Stored],
    left_out: LeftOut,
    known: Mapping[str, KnownImage],
) -> tuple[Kind, list[Stored], list[Beside]]:
    """The kind of an archive, the files of that kind, and what lies beside them for rows to name.

    Endings decide, but for pictures: a file of another ending is looked into, where one question
    is asked of every image, and where nothing else would hold a row.
    """
    sorts = sorted_out(found, known)
    if sorts["parquet"] and sorts["tar"]:
        raise SettingsError(
            "E1001", "archive holds both parquet and tar files; choose with a pattern, '*.tar'."
        )
    kind: Kind
    if sorts["parquet"] or sorts["tar"]:
        kind = "parquet" if sorts["parquet"] else "tar"
    else:
        if settings.question is not None or not (sorts["table"] or sorts["images"]):
            look_inside(settings, sorts, left_out)
        if settings.question is not None and sorts["images"]:
            kind = "images"
        elif sorts["table"]:
            kind = "table"
        elif sorts["images"]:
            raise SettingsError(
                "E1001", "archive holds images only: give --questions FILE or --question TEXT."
            )
        else:
            for file in what_is_beside(sorts, "images"):
                left_out.add(*file)
            raise DataError("E1110", f"archive: no file that holds rows among {left_out}.")
    beside = what_is_beside(sorts, kind)
    if kind in ("parquet", "table"):
        return kind, sorts[kind], beside
    for file in beside:
        left_out.add(*file)
    return kind, sorts[kind], []


def sort_of(name: str) -> str:
    """A kind of archive by the ending of a file; `hidden`, or `other`."""
    end = ending(name)
    if end in ENDINGS:
        return "hidden" if is_hidden(name) else "images"
    if is_hidden(name):
        return "hidden"
    kind = "other"
    if end in PARQUET_ENDINGS:
        kind = "parquet"
    elif end == ".tar" or name.endswith((".tar.gz", ".tgz")):
        kind = "tar"
    elif end in TABLE_ENDINGS:
        kind = "table"
    set_aside = any(part.startswith((".", "_")) for part in name.split("/"))
    return "hidden" if set_aside and kind != "other" else kind


def look_inside(
    settings: ArchiveSettings, sorts: dict[str, list[Stored]], left_out: LeftOut
) -> None:
    """Move the pictures among files of other endings to the images; count the rest."""
    filesystem, root = place_of(folder_of(settings.archive))
    answers = pictures_by_content(filesystem, root, sorts["other"])
    for file, answer in zip(sorts["other"], answers, strict=True):
        if answer is True:
            sorts["images"].append(file)
        else:
            left_out.add(file.name, str(answer))
    sorts["images"].sort()
    sorts["other"] = []


def what_is_beside(sorts: Mapping[str, list[Stored]], kind: Kind) -> list[Beside]:
    """What is no file of the archive's kind, and why."""
    names = {"parquet": "parquet", "tar": "tar", "table": "table", "images": "image"}
    result = []
    for sort, files in sorts.items():
        for file in files if sort != kind else ():
            reason = f"not a {names[kind]} file"
            if sort == "hidden":
                reason = HIDDEN
            elif sort == "images":
                reason = reason if kind == "tar" else UNNAMED
            elif not file.size:
                reason = EMPTY
            elif kind == "images":
                reason = NO_IMAGE if sort == "other" else "a table; --question is asked of images"
            result.append(Beside(file.name, reason))
    return result


def list_files(pattern: str, left_out: LeftOut | None = None) -> list[Stored]:
    """All files that a file name, folder or pattern with `*` stands for, sorted by name.

    What cannot be read as a file is counted in `left_out`. Raises DataError E1110 when there are
    none, or when they cannot be listed.
    """
    with listing():
        found = find_files(pattern)
    return some_files(found, LeftOut() if left_out is None else left_out)


def some_files(found: Listing, left_out: LeftOut) -> list[Stored]:
    """See `list_files`."""
    for odd in found.odd:
        left_out.add(odd.name, odd.reason)
    if not found.files:
        why = f"; left out: {left_out}" if left_out.total else ""
        raise DataError("E1110", f"archive: no such file or folder, or it is empty{why}.")
    return sorted(found.files)


def find_files(pattern: str) -> Listing:
    """`list_files` without its complaints."""
    filesystem, path = resolve(pattern)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return Listing([Stored(posixpath.basename(path), info.size, info.mtime_ns or 0)], [])
    base, glob = (path, "") if info.type == fs.FileType.Directory else split_glob(path)
    found = list_folder(filesystem, base)
    if not glob:
        return found
    matches = re.compile(glob_regex(glob)).fullmatch
    return Listing(
        [file for file in found.files if matches(file.name)],
        [odd for odd in found.odd if matches(odd.name)],
    )


def folder_of(pattern: str) -> str:
    """The URI of the folder that the names of `list_files` are relative to."""
    filesystem, path = resolve(pattern)
    kind = filesystem.get_file_info(path).type
    base = path if kind == fs.FileType.Directory else posixpath.dirname(path)
    if kind == fs.FileType.NotFound and "*" in path:
        base = split_glob(path)[0]
    if "://" not in pattern:
        return base
    scheme, _, rest = pattern.partition("://")
    query = "?" + rest.partition("?")[2] if "?" in rest else ""
    location = rest.partition("?")[0]
    cut = len(path) - len(base)
    return f"{scheme}://{location.rstrip('/')[:-cut] if cut else location}{query}"


@listing()
def would_list(pattern: str, name: str) -> bool:
    """Whether a file `name`, relative to the pattern's folder, would be part of the archive."""
    filesystem, path = resolve(pattern)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        return False
    glob = split_glob(path)[1]
    return not glob or re.fullmatch(glob_regex(glob), name) is not None


def split_glob(path: str) -> tuple[str, str]:
    """`a/b/*/c.parquet` -> (`a/b`, `*/c.parquet`); no pattern gives an empty second part."""
    if "*" not in path:
        return path, ""
    base = path[: path.index("*")].rpartition("/")[0]
    return base, path[len(base) :].lstrip("/")


def glob_regex(pattern: str) -> str:
    """`*` stays inside a folder, `**` crosses folders."""
    marked = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    return re.sub(r"\\\*", "[^/]*", marked)


def source_files(files: Iterable[Stored], taken: Iterable[str] = ()) -> tuple[SourceFile, ...]:
    """Give every file a stem of its own, and none of those that are taken: its name without folder
    and ending where unique."""
    listed, taken = list(files), set(taken)
    stems = [clean_stem(posixpath.basename(f.name)) for f in listed]
    seen: dict[str, int] = dict.fromkeys(taken, 1)
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
    longer = [clean_stem(f.name.replace("/", ".")) for f in listed]
    chosen = [s if seen[s] == 1 else long for s, long in zip(stems, longer, strict=True)]
    result = []
    for file, wanted in zip(listed, chosen, strict=True):
        stem = next(s for s in numbered(wanted) if s not in taken)
        taken.add(stem)
        result.append(SourceFile(file.name, file.name, file.size, file.mtime_ns, stem))
    return tuple(result)


def numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}~{number}"
        number += 1


def clean_stem(name: str) -> str:
    """A file name without its ending, with nothing in it that an id may not have."""
    stem = name.rpartition(".")[0] or name
    stem = "".join(c if c.isprintable() and c not in "/\\#" else "_" for c in stem)
    return stem.replace("..", "__").encode(errors="replace").decode()[:128].strip() or "file"


@lru_cache(maxsize=16)
def place_of(uri: str) -> tuple[Any, str]:
    """`resolve`, once per process."""
    return resolve(uri)


def file_path(archive: Archive, file: SourceFile) -> tuple[Any, str]:
    """Filesystem and path of an input file."""
    filesystem, root = place_of(archive.uri)
    return filesystem, file.path if archive.kind == "images" else f"{root}/{file.path}"


def check_unchanged(archive: Archive, file: SourceFile) -> None:
    """Compare a file's size and time with the listing's. Raises DataError E1107."""
    filesystem, path = file_path(archive, file)
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        raise DataError("E1107", f"{file.name} is not there any more; its rows are not scored.")
    if (info.size, info.mtime_ns or 0) != (file.size, file.mtime_ns):
        raise DataError("E1107", f"{file.name} changed while the job ran; its rows are not scored.")
