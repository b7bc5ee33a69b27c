"""Kinds 31 to 56: DICOM files. All name a patient, whom no message may name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from tests import dicom_files as files
from tests.corpus.kinds import Kind
from tests.corpus.pictures import of
from tests.corpus.sound import CANARY
from tests.dicom_files import CAPTURE, DEFLATED, JPEG, JPEG_2000, JPEG_LS, RLE, bomb, deep, encode

UNKNOWN = "1.2.840.10008.1.2.4.99"
GREY = (np.add.outer(np.arange(64), 3 * np.arange(64)) % 251).astype(np.uint8)
SIGNED = np.linspace(-1200, 3000, 64 * 64).astype(np.int16).reshape(64, 64)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], -1)
NAMED = {"SOPClassUID": CAPTURE, "PatientName": CANARY, "PatientID": CANARY}


def dataset(array: np.ndarray, colours: str = "MONOCHROME2", **elements: Any) -> Dataset:
    """A secondary capture of [H, W], [H, W, 3] or [frames, H, W]."""
    return files.dataset(array, colours, **NAMED | elements)


def dicom(array: np.ndarray = GREY, colours: str = "MONOCHROME2", **elements: Any) -> bytes:
    return encode(dataset(array, colours, **elements))


def encapsulated(syntax: str, frame: bytes, **elements: Any) -> bytes:
    return files.encapsulated(GREY, syntax, [frame], **NAMED | elements)


def picture(kind: str, **options: Any) -> bytes:
    return files.picture(GREY, kind, **options)


def ybr() -> bytes:
    return dicom(np.asarray(Image.fromarray(COLOUR).convert("YCbCr")), "YBR_FULL")


def noise() -> bytes:
    return np.random.default_rng(5).bytes(400)


def palette() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        found[f"{colour}PaletteColorLookupTableData"] = bytes(range(256))
    return found


def preamble(start: bytes) -> Callable[[], bytes]:
    return lambda: start + dicom()[len(start) :]


def kinds() -> Iterator[Kind]:
    def one(number: int, name: str, want: str, note: str = "", **cases: Any) -> Kind:
        made = {case.replace("_", " "): of("a.dcm", make) for case, make in cases.items()}
        if len(made) == 1:
            made = {"": next(iter(made.values()))}
        return Kind(number, name, want, made, note=note)

    def jpeg_2000(rows: int) -> Callable[[], bytes]:
        return lambda: encapsulated(JPEG_2000, picture("JPEG2000", no_jp2=True), Rows=rows)

    yield one(31, "cut at 50 %", "E1203 E1207", whole=lambda: dicom()[: len(dicom()) // 2])
    yield one(32, "cut in the header", "E1203 E1207", whole=lambda: dicom()[:300])
    yield one(33, "preamble alone", "E1203", whole=lambda: dicom()[:132])
    yield one(34, "no DICM", "E1202", whole=lambda: dicom()[:128] + b"MCID" + dicom()[132:])
    yield one(35, "a PE program's preamble", "ok executable_preamble", whole=preamble(b"MZ\x90\0"))
    yield one(36, "an ELF program's preamble", "ok executable_preamble", whole=preamble(b"\x7fELF"))
    yield one(
        37, "Rows doubled", "E1203 E1207", plain=lambda: dicom(Rows=128), JPEG_2000=jpeg_2000(128)
    )
    yield one(
        38, "Rows halved", "E1203 E1207", plain=lambda: dicom(Rows=32), JPEG_2000=jpeg_2000(32)
    )
    yield one(39, "Rows 0", "E1207", whole=lambda: dicom(Rows=0))
    yield one(40, "65,535 squared", "E1204", whole=lambda: dicom(Rows=65535, Columns=65535))
    yield one(41, "10^9 frames", "E1207", whole=lambda: dicom(NumberOfFrames=10**9))
    yield one(42, "-1 frames", "E1207", whole=lambda: dicom(NumberOfFrames=-1))
    yield one(43, "no PixelData", "E1203 E1202", whole=lambda: dicom(PixelData=None))
    yield one(44, "empty PixelData", "E1203", whole=lambda: dicom(PixelData=b""))
    yield one(
        45,
        "no PhotometricInterpretation",
        "E1207",
        whole=lambda: dicom(PhotometricInterpretation=None),
    )
    yield one(
        46, "MONOCHROME1", "ok monochrome1_inverted", whole=lambda: dicom(GREY, "MONOCHROME1")
    )
    yield one(
        47, "PALETTE COLOR without a table", "E1207", whole=lambda: dicom(GREY, "PALETTE COLOR")
    )
    yield one(
        47, "PALETTE COLOR", "ok palette", whole=lambda: dicom(GREY, "PALETTE COLOR", **palette())
    )
    yield one(48, "YBR_FULL", "ok ycbcr", whole=ybr)
    yield one(49, "BitsStored over BitsAllocated", "E1207", whole=lambda: dicom(BitsStored=12))
    yield one(50, "slope 0", "E1207", whole=lambda: dicom(RescaleSlope="0"))
    yield one(
        51,
        "slope NaN, 1e308",
        "E1207 E1208",
        NaN=lambda: dicom(RescaleSlope="nan"),
        **{"1e308": lambda: dicom(SIGNED, RescaleSlope="1e308")},
    )
    yield one(
        52,
        "WindowWidth 0, -1, NaN",
        "E1207",
        **{
            width: lambda w=width: dicom(WindowCenter="1", WindowWidth=w)
            for width in ("0", "-1", "nan")
        },
    )
    yield one(
        53,
        "two windows",
        "ok dicom_window",
        note="The word holds which one was taken: `dicom_window:1:40:400`.",
        whole=lambda: dicom(SIGNED, WindowCenter=["40", "300"], WindowWidth=["400", "1500"]),
    )
    yield one(
        54,
        "deflated bomb of 400 MB",
        "E1209",
        whole=lambda: bomb(dataset(GREY, syntax=DEFLATED), 400),
    )
    yield one(55, "sequences 20,000 deep", "E1203 E1209", whole=lambda: deep(dicom()))
    yield one(
        56,
        "random bytes for a frame",
        "E1203 E1211",
        **{
            name: lambda s=syntax: encapsulated(s, noise())
            for name, syntax in (
                ("JPEG", JPEG),
                ("JPEG 2000", JPEG_2000),
                ("JPEG-LS", JPEG_LS),
                ("RLE", RLE),
            )
        },
    )
    yield one(
        56,
        "unknown transfer syntax",
        "E1211",
        whole=lambda: encapsulated(JPEG_LS, noise()).replace(JPEG_LS.encode(), UNKNOWN.encode()),
    )
    yield one(56, "BurnedInAnnotation YES", "E1212", whole=lambda: dicom(BurnedInAnnotation="YES"))
