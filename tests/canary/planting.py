"""Plants identifiers wherever a row can hold them, but in pixels.

Every canary holds WORD or NUMBER, which nothing else does. What looks like a number or a name (the
18 kinds of HIPAA, 45 CFR 164.514(b)(2)) holds one of them where such a thing has letters or digits.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

WORD = "qzxcanary"
NUMBER = "739184620551"

IDENTIFIERS = {
    "name": f"{WORD}^Anna",
    "address": f"{WORD} street 7, Springfield",
    "birth date": f"1937-02-03/{NUMBER}",
    "phone": f"+1 555 {NUMBER}",
    "fax": f"fax {NUMBER}",
    "e-mail": f"{WORD}@example.org",
    "social security number": f"078-05-{NUMBER}",
    "record number": f"MRN-{NUMBER}",
    "health plan": f"HP{NUMBER}",
    "account": f"acc-{WORD}",
    "licence": f"D-{WORD}-77",
    "plate": f"B {WORD} 12",
    "device serial": f"SN{NUMBER}",
    "url": f"https://{WORD}.example.org/p",
    "ip": f"10.0.0.7#{NUMBER}",
    "biometric": f"iris {WORD} template",
    "accession": f"ACC{NUMBER}",
    "uid": f"1.2.826.0.1.{NUMBER}.5",
}
QUESTION = f"Is the heart of {WORD} Anna, born {NUMBER}, large?"
ANSWER = f"{WORD} says yes"
FOLDER = f"ward {WORD}"
FILE = f"{WORD}^Anna MRN{NUMBER}"

Pixels = np.ndarray[Any, Any]


def pixels(seed: int = 0, side: int = 48) -> Pixels:
    """uint8[side, side, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def everything() -> str:
    """All identifiers in one text."""
    return "; ".join(f"{kind}: {value}" for kind, value in IDENTIFIERS.items())


def jpeg(seed: int = 0) -> bytes:
    """EXIF and a comment."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = exif[0x0131] = everything()  # description, artist, software
    exif[0x9286] = b"ASCII\0\0\0" + everything().encode()
    return _saved(Image.fromarray(pixels(seed)), "JPEG", exif=exif, comment=everything().encode())


def png(seed: int = 0) -> bytes:
    """Text chunks, plain and packed, XMP and EXIF."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", everything())
    info.add_text("Description", everything(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", f"<x:xmpmeta>{everything()}</x:xmpmeta>")
    exif = Image.Exif()
    exif[0x010E] = everything()
    return _saved(Image.fromarray(pixels(seed)), "PNG", pnginfo=info, exif=exif)


def tiff(seed: int = 0) -> bytes:
    """ImageDescription, Artist, Software, HostComputer."""
    tags = dict.fromkeys((270, 315, 305, 316), everything())
    return _saved(Image.fromarray(pixels(seed)), "TIFF", tiffinfo=tags)


def dicom(seed: int = 0) -> bytes:
    """The attributes of PS3.15 table E.1-1, a private block, free text, a nested item."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    uid = IDENTIFIERS["uid"]
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
    data.StudyInstanceUID, data.SeriesInstanceUID = uid + ".1", uid + ".2"
    data.PatientName, data.PatientID = IDENTIFIERS["name"], IDENTIFIERS["record number"]
    data.AccessionNumber = IDENTIFIERS["accession"]
    data.PatientAddress = IDENTIFIERS["address"]
    data.DeviceSerialNumber = IDENTIFIERS["device serial"]
    data.StationName = WORD
    data.InstitutionName = data.ReferringPhysicianName = data.OperatorsName = IDENTIFIERS["name"]
    data.StudyDescription = data.SeriesDescription = f"{WORD} chest"
    data.ImageComments = data.PatientComments = everything()
    other = Dataset()
    other.PatientID = IDENTIFIERS["record number"]
    data.OtherPatientIDsSequence = [other]
    block = data.private_block(0x0019, f"{WORD} vendor", create=True)
    block.add_new(1, "LT", everything())
    data.Modality, data.PhotometricInterpretation = "OT", "RGB"
    data.BurnedInAnnotation = "NO"
    data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    array = pixels(seed)
    data.Rows, data.Columns, _ = array.shape
    data.PixelData = array.tobytes()
    held = io.BytesIO()
    pydicom.dcmwrite(held, data, enforce_file_format=True)
    return held.getvalue()


def _saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


PICTURES = {"jpg": jpeg, "png": png, "tif": tiff, "dcm": dicom}


def bad(data: bytes) -> list[bytes]:
    """Ways in which a picture is damaged: cut, without its middle, turned to text."""
    half = len(data) // 2
    return [data[:half], data[: half // 2], everything().encode(), b""]


def pictures() -> dict[str, bytes]:
    """By a name with an ending: sound ones and damaged ones."""
    found = {}
    for number, (ending, make) in enumerate(PICTURES.items()):
        sound = make(number)
        found[f"{FILE}-{number}.{ending}"] = sound
        for way, data in enumerate(bad(sound)):
            found[f"{FILE}-{number}-{way}.{ending}"] = data
    return found


def write_folder(root: Path) -> Path:
    """A folder of pictures, whose folder names are canaries too, with files that are none."""
    folder = root / "in" / FOLDER
    folder.mkdir(parents=True)
    for name, data in pictures().items():
        (folder / name).write_bytes(data)
    (folder / f"{FILE}.txt").write_text(everything())
    (folder / f"{FILE}.pdf").write_bytes(b"%PDF" + everything().encode())
    return root / "in"


def records() -> list[dict[str, Any]]:
    """Rows for tables, sound and damaged, with columns that nobody asks for."""
    names = list(pictures())
    more = {kind.replace(" ", "_"): value for kind, value in IDENTIFIERS.items()}
    rows: list[dict[str, Any]] = [
        {
            "id": f"{WORD}-{number}", "image": f"{FOLDER}/{name}", "question": QUESTION,
            "answer": ANSWER, **more,
        }
        for number, name in enumerate(names)
    ]  # fmt: skip
    first = rows[0]
    rows += [
        {**first, "id": f"{WORD}-0"},  # again
        {**first, "id": f"{WORD}\x07"},
        {**first, "id": WORD * 100},
        {**first, "question": ""},
        {**first, "question": f"{WORD} <image> inside"},
        {**first, "question": QUESTION * 2000},
        {**first, "question": f"{QUESTION}\0"},
        {**first, "image": f"../{FILE}.png"},
        {**first, "image": f"{FOLDER}/no {FILE}.png"},
        {**first, "image": f"https://{WORD}.example.org/{FILE}.png"},
        {**first, "image": f"/nowhere/{FILE}.png"},
        {**first, "image": ""},
    ]
    return rows


def write_table(root: Path, ending: str) -> Path:
    """A table of `records` beside the folder of pictures: csv, jsonl, json or parquet."""
    archive = write_folder(root)
    path = archive / f"cases.{ending}"
    rows = records()
    if ending == "csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            file.write(f"{WORD},too few\n")
            file.write(",".join([WORD] * 40) + "\n")
    elif ending == "jsonl":
        lines = [json.dumps({**row, f"key {WORD}": 1, "extra": {WORD: [NUMBER]}}) for row in rows]
        path.write_text("\n".join([*lines, f'{{"id": "{WORD}', f'["{WORD}"]', WORD]) + "\n")
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table.replace_schema_metadata({"note": everything()}), path)
    return archive


def write_dialogues(root: Path) -> Path:
    """jsonl of messages with history and a system text."""
    archive = write_folder(root)
    name = next(iter(pictures()))
    said = [
        {"role": "system", "content": f"You help {WORD}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": f"And {WORD}?"},
        {"role": "assistant", "content": ANSWER},
    ]
    odd = [{"role": WORD, "content": QUESTION}]
    lines = [
        json.dumps({"id": f"{WORD}{number}", "image": f"{FOLDER}/{name}", "messages": messages})
        for number, messages in enumerate([said, odd, WORD, said[:3]])
    ]
    (archive / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    return archive


def write_tar(root: Path) -> Path:
    """Members and PAX headers of canaries; a link and a name that leads out."""
    archive = root / "in"
    archive.mkdir(parents=True)
    with tarfile.open(archive / "shard.tar", "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes, **more: Any) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), {"comment": everything()}
            member.uname = member.gname = WORD
            for field, value in more.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))

        for name, data in pictures().items():
            key = name.rpartition(".")[0]
            add(f"{FOLDER}/{name}", data)
            add(f"{FOLDER}/{key}.json", json.dumps({"question": QUESTION, WORD: NUMBER}).encode())
        add(f"{FOLDER}/{FILE}-bad.png", png())
        add(f"{FOLDER}/{FILE}-bad.json", f'{{"question": "{WORD}'.encode())
        add(f"{FOLDER}/{FILE}.doc", b"x")
        add(f"../{FILE}.png", png())
        add(f"{FILE}-link.png", b"", type=tarfile.SYMTYPE, linkname=f"/etc/{WORD}")
    return archive


def write_prepared(folder: Path, count: int = 12) -> Path:
    """A prepared dataset of train and test, with options and groups; its pictures are sound."""
    from medv_ray.data.conversations import on_one_image
    from medv_ray.data.dataset_writer import Row, write_dataset

    def rows() -> Iterator[Row]:
        sound = [data for name, data in pictures().items() if name.count("-") == 1]
        for number in range(count):
            closed = number % 2 == 0
            asked = f"{number} {QUESTION}"
            yield Row(
                f"{WORD}-{number}",
                (sound[number % len(sound)],),
                on_one_image([(asked, "yes" if closed else ANSWER)]),
                "closed" if closed else "open",
                WORD,
                choices=() if closed else (ANSWER, f"no {WORD}"),
                groups={"modality": f"{WORD} chest", f"ward {WORD}": NUMBER},
            )

    write_dataset(folder, "tiny", {"train": rows(), "test": rows()})
    return folder
