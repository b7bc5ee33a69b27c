"""Kinds 57 to 74: archives whose rows or files are not what they should be."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.kinds import Kind
from tests.corpus.sound import ANSWER, QUESTION, SOUND, sound

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PNG = "a.png"
"""A sound picture that lies beside tables."""


@dataclass(frozen=True)
class Archive:
    """What `score` and `import` are asked to read, and what `train` finds."""

    score: Mapping[str, Any] | None = None
    """Flags of `medv score`."""
    prepare: Mapping[str, Any] | None = None
    """Settings of jobs/prepare_vqa.py."""
    meanwhile: Callable[[], object] | None = None
    """What happens between the plan and the first row of a scoring job."""
    damage: Callable[[bytes], bytes] | None = None
    """Done to the parquet file of a prepared dataset."""


def row(name: str = "bad", **cells: Any) -> dict[str, Any]:
    """A sound row with some cells replaced; its id is `name`."""
    answer = SOUND if name.startswith(SOUND) else ANSWER
    return {"id": name, "image": PNG, "question": QUESTION, "answer": answer, **cells}


GOOD = [row(f"{SOUND}-{number}") for number in range(2)]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    """Rows with their picture as bytes, where it is the one that all rows have."""
    full = [
        {**one, "image": {"bytes": sound(), "path": PNG}} if one.get("image") == PNG else one
        for one in rows
    ]
    pq.write_table(pa.Table.from_pylist(full), path, **options)
    return path


def shards(folder: Path, damage: Callable[[bytes], bytes], **options: Any) -> Archive:
    """A sound file, and one that is damaged."""
    write_parquet(folder / "a.parquet", GOOD)
    bad = write_parquet(folder / "b.parquet", [row(f"bad-{n}") for n in range(4)], **options)
    bad.write_bytes(damage(bad.read_bytes()))
    return Archive({"archive": str(folder)}, {"source": str(bad)}, damage=damage)


def text(folder: Path, name: str, content: str | bytes, prepare: bool = True) -> Archive:
    """A table beside its picture."""
    (folder / PNG).write_bytes(sound())
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    source = {"source": str(folder / name), "id_column": "id"} if prepare else None
    return Archive({"archive": str(folder)}, source)


def lines(*rows: Mapping[str, Any] | str) -> str:
    """JSON Lines: two sound rows, then these."""
    found = [one if isinstance(one, str) else json.dumps(one) for one in [*GOOD, *rows]]
    return "\n".join(found) + "\n"


def jsonl(*rows: Mapping[str, Any] | str) -> Callable[[Path], Archive]:
    return lambda folder: text(folder, "rows.jsonl", lines(*rows))


def columns(**table: Any) -> Callable[[Path], Archive]:
    """A parquet file of one row with these columns in place of the sound ones."""

    def make(folder: Path) -> Archive:
        whole = {
            "id": ["bad"],
            "image": pa.array([{"bytes": sound(), "path": PNG}], IMAGE),
            "question": [QUESTION],
            "answer": [ANSWER],
            **table,
        }
        given = {name: column for name, column in whole.items() if column is not None}
        (folder / PNG).write_bytes(sound())
        pq.write_table(pa.table(given), folder / "a.parquet")
        return Archive({"archive": str(folder)}, {"source": str(folder / "a.parquet")})

    return make


def flip(data: bytes) -> bytes:
    """A bit near the end of the last page of the questions, or of a dataset's ids."""
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    column = next((one for one in columns if one.path_in_schema == "question"), columns[0])
    start = column.dictionary_page_offset or column.data_page_offset
    place = start + column.total_compressed_size - 3
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def bad_ids(*names: str) -> Callable[[Path], Archive]:
    return jsonl(*[row(name) for name in names])


WRITE_LARGE = """
import sys, pyarrow as pa, pyarrow.parquet as pq
image = pa.array([bytes(2**28)], pa.binary())
table = {"id": ["bad"], "image": image, "question": ["What?"], "answer": ["x"]}
pq.write_table(pa.table(table), sys.argv[1], compression="zstd", use_dictionary=False)
"""
WRITE_MANY = """
import sys, pyarrow as pa, pyarrow.parquet as pq
count = 10**7
def same(value):
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), [value])
table = pa.table({"image": same(""), "question": same("What is it?"), "answer": same("a wall")})
pq.write_table(table, sys.argv[1], row_group_size=count, store_schema=False)
"""


def written_elsewhere(code: str, folder: Path) -> Path:
    """By a process of its own, so that its memory is not counted."""
    path = folder / "b.parquet"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return path


def large_cell(folder: Path) -> Archive:
    path = written_elsewhere(WRITE_LARGE, folder)
    assert path.stat().st_size < 2**16
    return Archive({"archive": str(folder)}, {"source": str(path)})


def many_rows(folder: Path) -> Archive:
    written_elsewhere(WRITE_MANY, folder)
    return Archive({"archive": str(folder), "limit": 4})


def tar(folder: Path, *members: tuple[str, bytes, dict[str, Any]], cut: bool = False) -> Archive:
    """Two sound samples, then these; `cut`: the file ends in the middle of the last."""
    good = [(f"{SOUND}-{n}", kind) for n in range(2) for kind in ("png", "txt")]
    whole: list[tuple[str, bytes, dict[str, Any]]] = [
        (f"{name}.{kind}", sound() if kind == "png" else QUESTION.encode(), {})
        for name, kind in good
    ]
    with tarfile.open(folder / "a.tar", "w") as file:
        for name, data, fields in [*whole, *members]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info, io.BytesIO(data))
    if cut:
        os.truncate(folder / "a.tar", info.size // 2 + last_member(folder).offset_data)
    return Archive({"archive": str(folder)})


def last_member(folder: Path) -> tarfile.TarInfo:
    with tarfile.open(folder / "a.tar") as file:
        return file.getmembers()[-1]


def unsafe(name: str, **fields: Any) -> Callable[[Path], Archive]:
    return lambda folder: tar(folder, (name, b"", fields))


def huge_member(folder: Path) -> Archive:
    """Of 3 GB, all of them a hole of the file."""
    tar(folder)
    info = tarfile.TarInfo("bad.png")
    info.size = 3 * 10**9
    question = tarfile.TarInfo("bad.txt")
    question.size = len(QUESTION)
    last = last_member(folder)
    with (folder / "a.tar").open("r+b") as file:
        file.seek(last.offset_data + -(-last.size // 512) * 512)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(-(-info.size // 512) * 512, os.SEEK_CUR)
        file.write(question.tobuf(tarfile.GNU_FORMAT) + QUESTION.encode().ljust(512, b"\0"))
        file.write(bytes(1024))
        file.truncate()
    return Archive({"archive": str(folder)})


def pointing(prepared: Callable[[Path], str]) -> Callable[[Path], Archive]:
    """A row whose picture is at a path that is made for it."""

    def make(folder: Path) -> Archive:
        inner = folder / "in"
        inner.mkdir()
        (folder / "secret.png").write_bytes(sound())
        return text(inner, "rows.jsonl", lines(row(image=prepared(inner))))

    return make


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")
    return "pipe.png"


def directory(folder: Path) -> str:
    (folder / "folder.png").mkdir()
    return "folder.png"


def link(folder: Path) -> str:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return "link.png"


def changing(change: Callable[[Path], object]) -> Callable[[Path], Archive]:
    def make(folder: Path) -> Archive:
        write_parquet(folder / "a.parquet", GOOD)
        path = write_parquet(folder / "b.parquet", [row()])
        return Archive({"archive": str(folder)}, meanwhile=lambda: change(path))

    return make


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def kinds() -> Iterator[Kind]:
    def one(
        number: int, name: str, want: str, make: Callable[[Path], Archive], **more: Any
    ) -> Kind:
        return Kind(number, name, want, {"": make}, **more)

    train = {"train": "E1114"}
    yield one(
        57,
        "parquet without its footer",
        "E1105",
        lambda folder: shards(folder, lambda data: data[:-40]),
        wants=train,
    )
    yield one(
        58,
        "parquet whose footer's length lies",
        "E1105",
        wants=train,
        make=lambda folder: shards(
            folder, lambda data: data[:-8] + (2**31 - 1).to_bytes(4, "little") + data[-4:]
        ),
    )
    yield one(
        59,
        "shard of no bytes",
        "E1105",
        lambda folder: shards(folder, lambda data: b""),
        wants=train,
    )
    plain = {"compression": "none", "use_dictionary": False}
    yield one(
        60,
        "flipped byte in a page with a checksum",
        "E1105",
        wants=train,
        make=lambda folder: shards(folder, flip, write_page_checksum=True, **plain),
    )
    yield one(
        60,
        "flipped byte in a page without a checksum",
        "ok",
        wants=train,
        make=lambda folder: shards(folder, flip, **plain),
        note="Nothing in such a file tells it. What the project writes has checksums.",
    )
    yield one(61, "column missing", "E1101", columns(question=None))
    yield Kind(
        62,
        "column of the wrong type",
        "E1109",
        {
            "numbers as pictures": columns(image=[1]),
            "numbers as questions": columns(question=[1]),
            "lists of lists": columns(image=pa.array([[[1]]])),
        },
        {"import": "E1109 E1110 E1301 | ok"},
        "`import` writes numbers as text, in questions as in answers.",
    )
    yield Kind(
        62,
        "pictures as paths, bytes, struct",
        "ok",
        {
            "paths": columns(image=[PNG]),
            "bytes": columns(image=[sound()]),
            "struct without bytes": columns(image=pa.array([{"bytes": None, "path": PNG}], IMAGE)),
        },
    )
    named = "An id is a name and not a key: the row gets a name, and a warning says so."
    yield one(63, "null id", "ok id_missing", jsonl(row(id=None)), note=named)
    yield one(
        64,
        "the same id twice, in a shard and across shards",
        "ok id_repeated",
        note=named,
        make=lambda folder: (
            write_parquet(folder / "a.parquet", [*GOOD, row("a")]),
            write_parquet(folder / "b.parquet", [row("a"), row("a")]),
            Archive(
                {"archive": str(folder), "limit": None},
                {"source": str(folder / "b.parquet"), "id_column": "id"},
            ),
        )[-1],
    )
    yield Kind(
        65,
        "ids that differ in Unicode form, in a blank",
        "ok id_repeated",
        {"form": bad_ids("caf\u00e9", "cafe\u0301"), "blank": bad_ids("a", "a ")},
        note=named,
    )
    yield one(66, "id with /../", "ok", bad_ids("a/../b"), note="No file is ever named by an id.")
    yield Kind(
        66,
        "id with NUL, of 10 kB",
        "ok id_unusable",
        {"NUL": bad_ids("a\0b"), "10 kB": bad_ids("x" * 10_000)},
        {"import": "E1104"},
        named,
    )
    yield one(67, "cell of 256 MiB in a file of 30 kB", "E1112", large_cell)
    yield one(
        68,
        "row group of 10^7 rows",
        "E1111",
        many_rows,
        note="`--limit 4`: rows without a picture. Nothing holds the whole group.",
    )
    yield Kind(
        69,
        "JSON with odd numbers or keys, where nobody asks",
        "ok",
        {
            "NaN": jsonl('{"id":"b","image":"a.png","question":"What?","answer":"x","z":NaN}'),
            "1e400": jsonl('{"id":"b","image":"a.png","question":"What?","answer":"x","z":1e400}'),
            "5,000 digits": jsonl(
                '{"id":"b","image":"a.png","question":"What?","answer":"x","z":' + "9" * 5000 + "}"
            ),
            "a key twice": jsonl(
                '{"id":"b","image":"a.png","question":"What?","answer":"x","z":1,"z":2}'
            ),
        },
    )
    yield Kind(
        69,
        "the same where it is asked for",
        "E1109 E1301 E1303 | ok *",
        {
            "NaN": jsonl('{"id":"b","image":"a.png","question":NaN,"answer":"x"}'),
            "1e400": jsonl('{"id":"b","image":"a.png","question":1e400,"answer":"x"}'),
            "5,000 digits": jsonl(
                '{"id":"b","image":"a.png","answer":"x","question":' + "9" * 5000 + "}"
            ),
            "a key twice": jsonl(
                '{"id":"b","image":"a.png","answer":"x","question":"A?","question":"B?"}'
            ),
        },
    )
    yield one(69, "JSON 100,000 deep", "E1109", jsonl('{"id":"b","z":' + "[" * 100_000))
    yield one(
        69,
        "JSON with a byte order mark",
        "ok",
        lambda folder: text(folder, "rows.jsonl", "\ufeff" + lines(row())),
    )
    yield one(70, "lone surrogate", "E1304", jsonl(row(question="What\ud800?")))
    head = "id,image,question,answer\n"
    good = f"{SOUND}-0,a.png,What?,{SOUND}\r\n{SOUND}-1,a.png,What?,{SOUND}\r"
    yield one(
        71,
        "mixed line ends",
        "ok",
        lambda folder: text(folder, "rows.csv", f"{head}{good}bad,a.png,What?,x\n"),
    )
    yield Kind(
        71,
        "half a last line",
        "E1109",
        {
            "csv": lambda folder: text(folder, "rows.csv", f"{head}{good}bad,a.p"),
            "jsonl": jsonl('{"id":"b","image":"a.p'),
        },
    )
    yield Kind(
        72,
        "tar member outside, link, device",
        "E1106",
        {
            "../": unsafe("../bad.png"),
            "/": unsafe("/bad.png"),
            "link": unsafe("bad.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            "device": unsafe("bad.png", type=tarfile.CHRTYPE),
        },
    )
    yield one(
        72,
        "tar member twice",
        "E1301 | ok *",
        lambda folder: tar(
            folder,
            ("bad.png", sound(), {}),
            ("bad.png", sound(), {}),
            ("bad.txt", QUESTION.encode(), {}),
        ),
        note="A member is a row: the repeated one has no text of its own, and says so.",
    )
    yield one(72, "tar member of 3 GB", "E1112", huge_member)
    yield one(
        72,
        "tar cut in its last member",
        "E1105",
        lambda folder: tar(folder, ("bad.png", sound(), {}), cut=True),
    )
    yield Kind(
        73,
        "path out of the archive",
        "E1108",
        {
            "..": pointing(lambda folder: "../secret.png"),
            "absolute": pointing(lambda folder: str(folder.parent / "secret.png")),
            "link": pointing(link),
            "file://": pointing(lambda folder: "file:///etc/passwd"),
            "http://": pointing(lambda folder: "http://169.254.169.254/x.png"),
        },
        {"import": "E1108 E1111"},
    )
    yield Kind(
        73,
        "path to a pipe, to a folder",
        "E1108 E1111",
        {"pipe": pointing(fifo), "folder": pointing(directory)},
    )
    yield Kind(
        74,
        "shard deleted, replaced, appended to while the job runs",
        "E1107",
        {
            "deleted": changing(Path.unlink),
            "replaced": changing(lambda path: write_parquet(path, [row("other"), row("another")])),
            "appended": changing(append),
        },
    )
