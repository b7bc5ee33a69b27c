"""Kinds that public threads complain of: sound rows and pictures that readers trip over."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus import dicoms
from tests.corpus.kinds import Kind
from tests.corpus.pictures import encode, of, png, texture
from tests.corpus.rows import GOOD, IMAGE, PNG, Archive, lines, row, text
from tests.corpus.sound import ANSWER, QUESTION, SOUND, sound

Make = Callable[[Path], Any]
FIRST = 105


def deep(colour: int, channels: int) -> bytes:
    """16 bits a channel, of which values up to 4095 are used."""
    ramp = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    planes = [ramp, ramp[::-1], ramp[:, ::-1]][: channels if colour == 2 else 3]
    if colour == 6:
        planes.append(np.full_like(ramp, 65535))
    pixels = np.stack(planes, -1).astype(">u2")
    data = b"".join(b"\0" + line.tobytes() for line in pixels)
    return png(64, 48, zlib.compress(data), depth=16, colour=colour)


def without_scans() -> bytes:
    """A progressive JPEG that ends behind its first scans, with an end mark."""
    data = encode(texture(), "JPEG", quality=90, progressive=True)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    return data[: starts[len(starts) // 2]] + b"\xff\xd9"


def clear_bmp() -> bytes:
    """Four bytes a pixel, the fourth 0 everywhere, in a header that calls it alpha."""
    picture = texture().convert("RGBA")
    picture.putalpha(0)
    width, height = picture.size
    pixels = np.asarray(picture)[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    head = (head + masks + b"BGRs").ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 124 + len(pixels), 0, 0, 138) + head + pixels


def twelve_bit_jpeg() -> bytes:
    """A DICOM file with a JPEG whose header calls for 12 bits."""
    frame = dicoms.picture("JPEG")
    place = frame.index(b"\xff\xc0")
    frame = (
        frame[: place + 1] + b"\xc1" + frame[place + 2 : place + 4] + b"\x0c" + frame[place + 5 :]
    )
    bits = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    return dicoms.encapsulated("1.2.840.10008.1.2.4.51", frame, **bits)


def csv(
    separator: str = ",",
    name: str = "rows.csv",
    first: str = "",
    encoding: str = "utf-8",
    question: str = "What?",
    image: str = PNG,
    score: Mapping[str, Any] | None = None,
) -> Make:
    """Two sound rows and another, as a program writes them."""

    def make(folder: Path) -> Archive:
        cells = [["id", "image", "question", "answer"]]
        cells += [[f"{SOUND}-{n}", PNG, "What?", SOUND] for n in range(2)]
        cells += [["bad", image, question, ANSWER]]
        table = first + "".join(separator.join(line) + "\n" for line in cells)
        made = text(folder, name, table.encode(encoding))
        given = dict(score or {})
        return Archive({**made.score, **given}, {**made.prepare, **given})  # type: ignore[dict-item]

    return make


def named(stored: str, asked: str) -> Make:
    """A row whose picture is stored under another spelling of its name."""

    def make(folder: Path) -> Archive:
        (folder / stored).parent.mkdir(parents=True, exist_ok=True)
        (folder / stored).write_bytes(sound())
        return text(folder, "rows.jsonl", lines(row(image=asked)))

    return make


def parquet(rows: int = 1, flags: Mapping[str, Any] | None = None, **table: Any) -> Make:
    """A file of these columns, those of a sound row where they are not given."""

    def make(folder: Path) -> Archive:
        whole = {
            "id": [f"bad-{n}" for n in range(rows)],
            "image": pa.array([sound()] * rows),
            "question": ["What?"] * rows,
            "answer": [ANSWER] * rows,
            **table,
        }
        given = {name: column for name, column in whole.items() if column is not None}
        pq.write_table(pa.table(given), folder / "a.parquet")
        (folder / PNG).write_bytes(sound())
        more = dict(flags or {})
        return Archive(
            {"archive": str(folder), **more}, {"source": str(folder / "a.parquet"), **more}
        )

    return make


def structs(count: int = 2) -> pa.Array:
    return pa.array([[{"bytes": sound(), "path": PNG}] * count], pa.list_(IMAGE))


def json_file(
    content: Any, name: str = "rows.json", indent: int | None = None, **more: Any
) -> Make:
    """Also with other settings of a preparation."""

    def make(folder: Path) -> Archive:
        images = folder / "images"
        images.mkdir()
        (images / PNG).write_bytes(sound())
        made = text(folder, name, json.dumps(content, indent=indent))
        return Archive(
            {**made.score, **more.get("score", {})},  # type: ignore[dict-item]
            {"source": str(folder / name), **more.get("prepare", {})},
        )

    return make


def tar(*members: tuple[str, bytes], **flags: Any) -> Make:
    def make(folder: Path) -> Archive:
        with tarfile.open(folder / "a.tar", "w") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return Archive({"archive": str(folder / "a.tar"), **flags})

    return make


def folder_of(name: bytes, data: Callable[[], bytes]) -> Make:
    """A folder of a sound picture and this file, about which one question is asked."""

    def make(folder: Path) -> Archive:
        (folder / f"{SOUND}.png").write_bytes(sound())
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(data())
        return Archive({"archive": str(folder), "question": QUESTION})

    return make


PLAIN = row(question="What?")
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a wall"}]
TURNS = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a wall"}]
SAMPLE = ("b.png", sound())


def kinds() -> Iterator[Kind]:
    number = iter(range(FIRST, 200))

    def one(name: str, want: str, note: str = "", wants: Any = None, **cases: Make) -> Kind:
        made = {case.replace("_", " "): make for case, make in cases.items()}
        if len(made) == 1:
            made = {"": next(iter(made.values()))}
        return Kind(next(number), name, want, made, wants or {}, note)

    yield one(
        "16 bits a channel, 12 of them used",
        "ok colour16_scaled",
        RGB=of("a.png", lambda: deep(2, 3)),
        RGBA=of("a.png", lambda: deep(6, 3)),
    )
    yield one(
        "progressive JPEG without its last scans",
        "E1203 | ok scans_missing",
        whole=of("a.jpg", without_scans),
    )
    yield one("BMP whose alpha is 0 everywhere", "ok alpha_ignored", whole=of("a.bmp", clear_bmp))
    yield one("12-bit JPEG in DICOM", "ok dicom_range", whole=of("a.dcm", twelve_bit_jpeg))
    yield one(
        "LLaVA's `<image>` at an end of the question",
        "ok image_mark",
        first=csv(question="<image> What?"),
        last=csv(question="What? <image>"),
    )
    yield one(
        "DICOM among PNGs, without an ending, in a tar",
        "ok dicom_range",
        folder=folder_of(b"IM0001", dicoms.dicom),
        tar=tar(("b.dcm", dicoms.dicom()), ("b.txt", b"What?")),
    )
    yield one(
        "separators of spreadsheets",
        "ok",
        semicolon=csv(";"),
        tab=csv("\t"),
        tsv=csv("\t", "rows.tsv"),
        bar=csv("|"),
        Excel=csv(";", first="sep=;\n"),
    )
    yield one("csv in UTF-16", "ok", whole=csv(encoding="utf-16"))
    yield one("csv in Latin-1", "E1120", whole=csv(encoding="latin-1", question="O\u00f9 ?"))
    yield one(
        "the same, named with --encoding",
        "ok",
        whole=csv(encoding="latin-1", question="O\u00f9 ?", score={"encoding": "latin-1"}),
    )
    yield one("file name in another Unicode form", "ok", whole=named("e\u0301.png", "\u00e9.png"))
    yield one("file name in another case", "ok image_name_case", whole=named("B.PNG", "b.png"))
    yield one(
        "blanks round a path, the folder's own name before it",
        "ok",
        blanks=csv(image=f" {PNG} "),
        own_name=in_images(),
    )
    yield one("picture that is not there", "E1111", whole=csv(image="no.png"))
    yield one("ids that pandas made floats", "ok *", whole=parquet(2, id=[7.0, None]))
    upper = {
        "id": None,
        "image": None,
        "question": None,
        "answer": None,
        "Image": pa.array([sound()]),
        "Question": ["What?"],
        "Answer": ["a"],
    }
    chosen = {"image_column": "Image", "question_column": "Question", "answer_column": "Answer"}
    yield one(
        "columns with capitals", "E1101", "The message names the flags.", whole=parquet(**upper)
    )
    yield one("the same, named", "ok", whole=parquet(flags=chosen, **upper))
    slake = [{"img_name": PNG, "question": "What?", "answer": "a", "qid": 3, "q_lang": "en"}]
    yield one(
        "SLAKE's columns",
        "ok",
        "Without its own kind, `import` asks for the columns.",
        wants={"import": "ok | E1101 E1115"},
        whole=json_file(slake),
    )
    yield one(
        "JSON: an object of objects, rows inside an object",
        "ok *",
        objects=json_file({"a": PLAIN, "b": PLAIN}),
        inside=json_file({"data": [PLAIN]}),
    )
    yield one(
        "JSON object over several lines in a .jsonl",
        "E1105",
        whole=json_file(PLAIN, "rows.jsonl", indent=1),
    )
    yield one(
        "several pictures a row",
        "ok *",
        structs=parquet(image=structs()),
        column_images=parquet(image=None, images=structs()),
        paths=json_file([row(image=[PNG, PNG])], "rows.json"),
    )
    yield one(
        "`messages` and `images`, as LLaMA-Factory has them",
        "ok image_mark",
        whole=json_file([{"messages": TURNS, "images": [PNG]}]),
    )
    yield one("pictures as base64", "ok", whole=parquet(image=[base64.b64encode(sound()).decode()]))
    talks = [{"id": "a", "image": PNG, "conversations": TALK}] * 3
    yield one(
        "LLaVA's dialogues, three with one id",
        "ok image_mark id_repeated",
        whole=json_file(talks, "train.json", prepare={"kind": "llava"}),
    )
    yield one(
        "file name that is no UTF-8",
        "left",
        "Counted and named, with its bytes escaped.",
        whole=folder_of(b"b\xff.png", sound),
    )
    columns = json.dumps({"text": "What?", "caption": "x"}).encode()
    yield one(
        "tar whose JSON has a column to name",
        "ok",
        whole=tar(SAMPLE, ("b.json", columns), question_column="text"),
    )
    yield one(
        "tar with text and JSON of one key, with macOS's side files",
        "ok *",
        both=tar(SAMPLE, ("b.txt", b"What?"), ("b.json", b'{"width":3}')),
        macOS=tar(("._b.png", b"\0\5\x16\7"), SAMPLE, ("b.txt", b"What?")),
    )
    yield one(
        "ids like train/1.png, UUIDs as bytes",
        "ok",
        slash=parquet(id=["train/1.png"]),
        UUID=parquet(id=pa.array([bytes(range(16))])),
    )
    yield one(
        "names with : and .. inside a part",
        "ok",
        colon=named("12:30:05.png", "12:30:05.png"),
        dots=named("a..b.png", "a..b.png"),
    )
    yield one(
        "cell of 200,000 characters that nobody asks for",
        "ok",
        csv=wide_cell("x" * 200_000),
        lines=wide_cell('"' + "y\n" * 100_000 + '"'),
    )
    yield one(
        "columns without a name, a comma at each line's end",
        "ok",
        empty=padded(",,", ",,"),
        at_the_end=padded("", ","),
    )
    yield one(
        "answers `N/A` and `nan`",
        "ok",
        "`import` counts and lists them; --drop-answers.",
        whole=json_file([row(answer="N/A"), row("b", answer="nan"), *GOOD]),
    )


def in_images() -> Make:
    """Paths that begin with the name of the folder that holds the pictures."""

    def make(folder: Path) -> Archive:
        images = folder / "images"
        images.mkdir()
        (images / PNG).write_bytes(sound())
        rows = "".join(f"{name},images/a.png,What?,{ANSWER}\n" for name in ("bad-0", "bad-1"))
        (folder / "rows.csv").write_text("id,image,question,answer\n" + rows)
        table = str(folder / "rows.csv")
        return Archive(
            {"archive": str(images), "questions": table}, {"source": table, "images": str(images)}
        )

    return make


def wide_cell(cell: str) -> Make:
    head = "id,image,question,answer,report\n"
    return lambda folder: text(
        folder, "rows.csv", f"{head}bad-0,a.png,What?,x,{cell}\nbad-1,a.png,What?,x,y\n"
    )


def padded(head: str, line: str) -> Make:
    rows = "".join(f"bad-{n},a.png,What?,x{line}\n" for n in range(2))
    return lambda folder: text(folder, "rows.csv", f"id,image,question,answer{head}\n{rows}")
