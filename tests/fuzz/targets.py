"""What reads bytes of others, each with a few sound inputs to begin with.

A target is called as the product calls it, in this process: also what the product runs in a child.
It returns the messages that a user would read, and raises what the product raises.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.sound import CANARY

Run = Callable[[bytes], list[str]]
MOST_SEED_BYTES = 2**15
MOST_CHUNKS = 50
QUESTION = f"Which organ of {CANARY} is shown?"


@dataclass(frozen=True)
class Target:
    name: str
    seeds: Callable[[], Iterator[bytes]]
    make: Callable[[Path], Run]
    """The call, which may write into this folder."""
    in_child: bool = False
    """Whether the product runs it in a child: a process that dies of it is told with a code."""


def rows(name: str, archive: Path) -> list[str]:
    """What a plan makes of an archive, and of each of its rows."""
    from medv_ray.archive.plan import plan
    from medv_ray.archive.reading import read_rows
    from medv_ray.archive.settings import ArchiveSettings
    from medv_ray.archive.sources import open_archive

    question = "What is shown?" if name == "dicomdir" else None
    where = str(archive / "DICOMDIR") if name == "dicomdir" else str(archive)
    settings = ArchiveSettings(archive=where, chunk_rows=8, question=question)
    planned = plan(open_archive(settings), "settings")
    said = [one.detail for one in planned.unreadable]
    for chunk in planned.chunks[:MOST_CHUNKS]:
        said += [str(row.error) for row in read_rows(planned.archive, chunk) if row.error]
    return [*said, str(planned.left_out)]


def archive_of(file: str) -> Callable[[Path], Run]:
    """The bytes are a file of this name beside a picture."""

    def make(folder: Path) -> Run:
        archive = folder / "archive"
        archive.mkdir(exist_ok=True)
        (archive / "a.png").write_bytes(small("PNG"))

        def run(data: bytes) -> list[str]:
            (archive / file).write_bytes(data)
            return rows(Path(file).stem.lower(), archive)

        return run

    return make


def small(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    from tests.corpus.pictures import encode, texture

    return encode(texture(32, 24).convert(mode), kind, **options)


RECORDS = [
    {"id": "a1", "image": "a.png", "question": QUESTION, "answer": "yes", "answer_type": "closed"},
    {"id": "a2", "image": "a.png", "question": f"<image>\n{QUESTION}", "answer": CANARY},
    {"id": 3, "image": ["a.png"], "question": "Is it?", "choices": ["yes", "no"], "answer": "no"},
    {"id": "a4", "image": "a.png", "conversations": [
        {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": CANARY}]},
]  # fmt: skip


def csv_seeds() -> Iterator[bytes]:
    text = f'id,image,question,answer\na1,a.png,"{QUESTION}",yes\na2,a.png,"a ""b"", c\nd",no\n'
    yield from (text.encode(), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode())
    yield text.replace(",", ";").replace("\n", "\r\n").encode("cp1252")
    yield f"id\timage\tquestion\n1\ta.png\t{QUESTION} \u00e9\n".encode("latin-1")


def jsonl_seeds() -> Iterator[bytes]:
    yield "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    for record in RECORDS:
        yield json.dumps(record).encode() + b"\r\n"


def json_seeds() -> Iterator[bytes]:
    yield json.dumps(RECORDS).encode()
    yield json.dumps({"data": RECORDS}, indent=1).encode()
    yield json.dumps({str(n): one for n, one in enumerate(RECORDS)}).encode()


def parquet_seeds() -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = [{name: r.get(name) for name in ("image", "question", "answer")} for r in RECORDS[:2]]
    whole = {"bytes": small("PNG"), "path": None}
    structs = [{**one, "image": whole, "id": f"{CANARY} {n}"} for n, one in enumerate(plain)]
    for records, options in (
        (plain, {"compression": "none"}),
        (plain, {"use_dictionary": False, "compression": "snappy", "write_page_checksum": True}),
        (structs, {"compression": "zstd", "data_page_version": "2.0"}),
    ):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), sink, **options)
        yield sink.getvalue()


def tar_seeds() -> Iterator[bytes]:
    members = [("a.png", small("PNG")), ("a.txt", QUESTION.encode())]
    members += [("b/c.jpg", small("JPEG")), ("b/c.json", json.dumps(RECORDS[0]).encode())]
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=kind, bufsize=512) as tar:
            tar.copybufsize = 512
            for name, data in members:
                long = name if kind == tarfile.USTAR_FORMAT else "long" * 40 + name
                info = tarfile.TarInfo(long)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        yield sink.getvalue()


def dicom_seeds() -> Iterator[bytes]:
    from tests.corpus import dicoms

    for kind in dicoms.kinds():
        for make in kind.cases.values() if kind.number not in (54, 55) else ():
            yield make(Path())[1]
    one = dicoms.dicom()
    yield one[132:]
    made = dicoms.dataset(dicoms.SIGNED, RescaleSlope="2", RescaleIntercept="-1024")
    yield dicoms.encode(made)
    for syntax, kind, more in (
        (dicoms.JPEG, "JPEG", {}),
        (dicoms.JPEG_2000, "JPEG2000", {"no_jp2": True}),
    ):
        yield dicoms.encapsulated(syntax, dicoms.picture(kind, **more))
    yield deflated()


def deflated() -> bytes:
    from tests.corpus import dicoms

    made = dicoms.dataset(dicoms.GREY)
    made.file_meta.TransferSyntaxUID = dicoms.DEFLATED
    return dicoms.encode(made)


def decode(folder: Path) -> Run:
    """What the child does with a picture's bytes, at the product's limits."""
    from medv_ray.canvases import TileSettings
    from medv_ray.data.decode_child import answer, check_reply
    from medv_ray.data.images import check_bytes
    from medv_ray.settings import ImageSettings

    image, tiles = ImageSettings(), TileSettings("square", 32)

    def run(data: bytes) -> list[str]:
        check_bytes(data, image)
        header, _ = answer(data, image, tiles)
        json.dumps(header)
        check_reply(header)  # raises what it tells
        return [str(word) for word in header["warnings"]]

    return run


def image_seeds() -> Iterator[bytes]:
    from tests.corpus import pictures

    yield small("JPEG")
    yield small("JPEG", progressive=True, quality=40)
    yield small("JPEG", "CMYK")
    yield pictures.turned("JPEG", 6)[:MOST_SEED_BYTES]
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"):
        yield small("PNG", "L" if mode == "I;16" else mode)
    for mode, how in (("RGB", "raw"), ("L", "tiff_lzw"), ("RGB", "jpeg"), ("1", "packbits"),
                      ("RGB", "tiff_adobe_deflate"), ("1", "group4"), ("RGBA", "raw")):  # fmt: skip
        yield small("TIFF", mode, compression=how)
    yield pictures.encode(pictures.grey16(4095), "TIFF")
    yield pictures.floats(0.0)
    for kind in ("GIF", "BMP", "WEBP"):
        yield small(kind)
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        yield pictures.frames(kind)


def frames(folder: Path) -> Run:
    """How many rows a picture file becomes, and what kind it is: asked of every file by a plan."""
    from medv_ray.data.frames import count_frames, tiff_frames
    from medv_ray.dicom_walk import referenced_files
    from medv_ray.formats import HEAD_BYTES, format_of, looks_like
    from medv_ray.slide_parts import slide_kind

    def run(data: bytes) -> list[str]:
        format_of(data[:HEAD_BYTES])
        looks_like(data[:HEAD_BYTES])
        count = count_frames(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[type-var]
        assert 1 <= count <= 2**17
        slide_kind(io.BytesIO(data))
        for walk in (referenced_files, lambda data: tiff_frames(io.BytesIO(data))):
            try:
                walk(data)
            except (ValueError, EOFError, IndexError, zlib.error):
                pass  # as their callers have it
            except Exception as error:
                if type(error).__name__ not in ("error", "StopIteration"):  # struct's
                    raise
        return []

    return run


def frames_seeds() -> Iterator[bytes]:
    yield from image_seeds()
    yield from dicom_seeds()
    yield from dicomdir_seeds()


def dicomdir_seeds() -> Iterator[bytes]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

    from tests.corpus.dicoms import encode

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    records = []
    for kind, names in (("PATIENT", None), ("IMAGE", "A.PNG"), ("IMAGE", ["SUB", "B"])):
        record = Dataset()
        record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, kind
        record.PatientName = CANARY
        if names:
            record.ReferencedFileID = names
        records.append(record)
    made.DirectoryRecordSequence = records
    yield encode(made)
    made["DirectoryRecordSequence"].is_undefined_length = True
    for record in records:
        record.is_undefined_length_sequence_item = True
    yield encode(made)


def settings(folder: Path) -> Run:
    """A file of settings, and `--set`, of everything that takes either."""
    from medv_ray.cli.terminal import merged, read_yaml
    from medv_ray.errors import SettingsError
    from medv_ray.on_ray.options import ScoreSettings
    from medv_ray.serving.options import ServeSettings
    from medv_ray.settings import build, override
    from medv_ray.training.job import TrainSettings

    file = folder / "settings.yaml"

    def run(data: bytes) -> list[str]:
        said = []
        file.write_bytes(data)
        values = override(merged(read_yaml(file), {"out": "o"}), ["archive=a"])
        try:
            override(values, [data[:9000].decode("latin-1")])
        except SettingsError as error:
            said.append(str(error))
        for kind in (ScoreSettings, TrainSettings, ServeSettings):
            try:
                build(kind, values)
            except SettingsError as error:
                said.append(str(error))
        return said

    return run


def settings_seeds() -> Iterator[bytes]:
    yield b"archive: a\nout: b\nmodel: {path: toy}\nsampler: {steps: 8, gen_length: 8}\nseed: 1\n"
    yield b"stage:\n  lr: 1e-5\n  name: x\n  trainable: [projector]\nmodel: m\ndata: d\nout: o\n"
    yield b"limits: {body_seconds: 3e1, queue: 4}\nimage: {window: 40/400, formats: [PNG, JPEG]}\n"
    yield b"sampler.steps=[" + b"9" * 40 + b"]"
    yield b'{"model": {"path": "toy"}, "prompt": {"question_suffix": "x \\u00e9"}, "seed": 1}'
    yield b"sampler:\n- 1\n- !!float 3\n- 2024-01-01\n- 0x1F\n- 1:30\n- .inf\n- ~\n- !!bool yes\n"
    yield b"a: &x [1]\nb: *x\nc: |\n  text\n  more\nd: >-\n  folded\n? [k]\n: v\n<<: {seed: 2}\n"


def ledger(folder: Path) -> Run:
    """A ledger as it lies, and as if each line matched its checksum."""
    from medv_ray.archive.ledger import FILE, Ledger
    from medv_ray.archive.rows import read_run
    from medv_ray.archive.store import Store

    store = Store(str(folder / "run"))
    store.make()
    file = folder / "run" / FILE

    def run(data: bytes) -> list[str]:
        if data[:1] == b"+":
            lines = data[1:].split(b"\n")
            data = b"".join(b"%08x " % zlib.crc32(line) + line + b"\n" for line in lines)
        file.write_bytes(data)
        Ledger.load(store, repair=True).counts()
        for _ in read_run(store.uri):
            pass
        return []

    return run


def ledger_seeds() -> Iterator[bytes]:
    from medv_ray.archive.ledger import render

    commits = [
        {"op": "commit", "key": f"{n:032x}", "source_key": f"{n + 9:032x}", "size": 7, "rows": 4,
         "part": f"rows/part-{n:016x}.parquet", "sha256": f"{n:064x}", "answered": 3,
         "abstained": 0, "quarantined": 1, "number": n + 1}
        for n in range(3)
    ]  # fmt: skip
    merge = {"op": "merge", "part": "rows/merged-a.parquet", "sha256": "a", "size": 9, "number": 4,
             "parts": [commits[0]["part"], commits[1]["part"]]}  # fmt: skip
    drop = {"op": "drop", "source_keys": [commits[2]["source_key"]], "number": 5}
    for records in (commits, [*commits, merge], [*commits, merge, drop]):
        yield b"".join(map(render, records))
        yield b"+" + b"\n".join(json.dumps(record).encode() for record in records)


def run_json(folder: Path) -> Run:
    """What a run folder says of itself: of a scoring run, of a training run, of a dataset."""
    from medv_ray.archive.manifest import read_manifest
    from medv_ray.archive.store import Store
    from medv_ray.data.dataset import read_index
    from medv_ray.errors import MedvError
    from medv_ray.training.checkpoint import read_manifest as of_checkpoint
    from medv_ray.training.run import read_run

    home = folder / "step-00000004"
    home.mkdir(exist_ok=True)

    def run(data: bytes) -> list[str]:
        said = []
        for name in ("run.json", "manifest.json", "dataset.json"):
            (home / name).write_bytes(data)
        for read in (
            lambda: read_manifest(Store(str(home))),
            lambda: of_checkpoint(home),
            lambda: read_run(home),
            lambda: read_index(home),
        ):
            try:
                read()
            except MedvError as error:
                said.append(str(error))
        return said

    return run


def run_json_seeds() -> Iterator[bytes]:
    from medv_ray.archive.manifest import seal

    yield seal(
        {"version": 2, "identity": {"a": {"b": [1, 2.5, None]}}, "files": [], "inputs": None}
    )
    yield b'{"identity": {"code": {"medv_ray": "1"}}, "settings": {"model": "m", "keep": 2}}'
    yield b'{"format": 1, "step": 4, "files": {"a": "b"}, "shapes": {}, "digest": "c"}'
    counts = b'"counts": {"train": {"sha256": "a"}}'
    yield b'{"format": 1, "name": "n", "splits": {"train": 3}, ' + counts + b"}"


def dicomweb(folder: Path) -> Run:
    """What a PACS answers: status and headers in the first line, and the body."""
    import httpx2

    from medv_ray.archive.pacs_listing import pacs_errors
    from medv_ray.dicom_objects import kind_of_class
    from medv_ray.dicomweb.address import parse
    from medv_ray.dicomweb.client import Client
    from medv_ray.dicomweb.search import search
    from medv_ray.errors import MedvError
    from medv_ray.evaluation.sr_store import DONE, FAILED, entries

    answers: list[httpx2.Response] = []

    def reply(request: httpx2.Request) -> httpx2.Response:
        return answers.pop() if answers else httpx2.Response(200, content=iter([b"[]"]))

    address = parse("dicomweb+http://localhost/dicom-web?Modality=CT&StudyDate=20240101-20240131")
    client = Client(address.base, tries=1, sleep=lambda seconds: None)
    client._http = httpx2.Client(transport=httpx2.MockTransport(reply))

    def run(data: bytes) -> list[str]:
        head, _, body = data.partition(b"\n")
        status, kind, later = (head.split(b"\t") + [b"", b""])[:3]
        code = int(status) if status.isdigit() and len(status) == 3 else 200
        given = {
            b"content-type": kind.replace(b"\r", b""),
            b"retry-after": later.replace(b"\r", b""),
        }
        said = []
        for ask in (
            lambda: [kind_of_class(one.sop_class) for one in search(client, address).instances],
            lambda: client.instance("studies/1/series/1/instances/1", 2**20),
            lambda: [entries(client.store(b"x", "b")[1], tag) for tag in (DONE, FAILED)],
        ):
            answers[:] = [
                httpx2.Response(max(code, 100), headers=dict(given), content=iter([body]))
            ]
            try:
                with pacs_errors("E1110"):
                    ask()
            except MedvError as error:
                said.append(str(error))
        return said

    return run


def dicomweb_seeds() -> Iterator[bytes]:
    from medv_ray.dicomweb.multipart import related

    def entry(number: int) -> dict[str, Any]:
        tags = {"0020000D": "1.2", "0020000E": "1.2.3", "00080018": f"1.2.3.{number}",
                "00080016": "1.2.840.10008.5.1.4.1.1.2", "00080060": "CT", "00280010": 64,
                "00080020": "20240102", "00100010": {"Alphabetic": CANARY}}  # fmt: skip
        return {tag: {"vr": "UI", "Value": [value]} for tag, value in tags.items()}

    listed = json.dumps([entry(1), entry(2)]).encode()
    yield b"200\tapplication/dicom+json\t\n" + listed
    yield b"429\ttext/html\t120\n<html>"
    yield b"503\t\tWed, 21 Oct 2026 07:28:00 GMT\n"
    kind = b'multipart/related; type="application/dicom"; boundary=abc'
    yield b"200\t" + kind + b"\t\n" + related([b"DICM" * 9, b"x"], "abc")
    yield b"200\tmultipart/related; boundary*=utf-8''abc\t\n" + related([b"DICM"], "abc")
    yield b"200\tapplication/dicom\t\nDICM"
    done = {"00081155": {"Value": ["1.2"]}, "00081197": {"Value": [273]}}
    stored = {"00081199": {"Value": [done]}, "00081198": {"Value": [done]}}
    yield b"409\tapplication/dicom+json\t\n" + json.dumps(stored).encode()


def pickles(folder: Path) -> Run:
    """The pickles of a dataset's release."""
    from medv_ray.data.vqa.pickles import load_plain

    file = folder / "rows.pkl"

    def run(data: bytes) -> list[str]:
        file.write_bytes(data)
        load_plain(file)
        return []

    return run


def pickle_seeds() -> Iterator[bytes]:
    value = [{"image": "a", "question": QUESTION, "answer": 2**70}, {"x": (1.5, None, {3}, b"y")}]
    for protocol in (0, 2, 4, 5):
        yield pickle.dumps(value, protocol)
    yield b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR."


def weights(folder: Path) -> Run:
    """The header of a file of weights."""
    import shutil

    from medv_ray.model.weights import read_headers
    from medv_ray.settings import TOY

    home = folder / "model"
    home.mkdir(exist_ok=True)
    shutil.copyfile(TOY / "config.json", home / "config.json")

    def run(data: bytes) -> list[str]:
        (home / "model.safetensors").write_bytes(data)
        read_headers(home)
        return []

    return run


def weights_seeds() -> Iterator[bytes]:
    import torch
    from safetensors.torch import save

    from medv_ray.model.shards import headers
    from medv_ray.settings import TOY

    names = list(headers(TOY))[:6]
    yield save({name: torch.zeros(2, 3) for name in names}, {"format": "pt"})
    yield save({"a": torch.zeros(1, dtype=torch.float16)})


def config(folder: Path) -> Run:
    """A checkpoint's config.json beside the toy's weights."""
    import os

    from medv_ray.model.weights import read_headers
    from medv_ray.settings import TOY

    home = folder / "model"
    home.mkdir(exist_ok=True)
    for file in TOY.glob("*.safetensors*"):
        os.symlink(file, home / file.name)

    def run(data: bytes) -> list[str]:
        (home / "config.json").write_bytes(data)
        read_headers(home)
        return []

    return run


def config_seeds() -> Iterator[bytes]:
    from medv_ray.settings import TOY

    yield (TOY / "config.json").read_bytes()


TARGETS = {
    one.name: one
    for one in (
        Target("csv", csv_seeds, archive_of("rows.csv")),
        Target("jsonl", jsonl_seeds, archive_of("rows.jsonl")),
        Target("json", json_seeds, archive_of("rows.json")),
        Target("parquet", parquet_seeds, archive_of("rows.parquet")),
        Target("tar", tar_seeds, archive_of("rows.tar")),
        Target("dicomdir", dicomdir_seeds, archive_of("DICOMDIR")),
        Target("dicom", dicom_seeds, decode, in_child=True),
        Target("image", image_seeds, decode, in_child=True),
        Target("frames", frames_seeds, frames),
        Target("settings", settings_seeds, settings),
        Target("ledger", ledger_seeds, ledger),
        Target("run_json", run_json_seeds, run_json),
        Target("dicomweb", dicomweb_seeds, dicomweb),
        Target("pickle", pickle_seeds, pickles),
        Target("weights", weights_seeds, weights),
        Target("config", config_seeds, config),
    )
}
