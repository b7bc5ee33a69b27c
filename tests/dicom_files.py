"""DICOM files for tests, made in memory; no sound one but holds a canary for a name."""

import io
import warnings
import zlib

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

EXPLICIT, DEFLATED, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
IMPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
JPEG, EXTENDED, LOSSLESS, JPEG_LS, JPEG_2000 = (
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70, 80, 90)
)
MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SECRET = "Canary^Patient"


def dataset(
    array: np.ndarray,
    colours: str = "MONOCHROME2",
    *,
    syntax: str = EXPLICIT,
    **elements: object,
) -> Dataset:
    """An MR image of `array` [H, W] or [H, W, 3], or frames of these; without elements that are
    None."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = MR
    ds.SOPInstanceUID = "1.2.3.4"
    ds.PatientName = SECRET
    ds.PatientID = SECRET
    rgb = array.shape[-1] == 3
    ds.Rows, ds.Columns = array.shape[-3:-1] if rgb else array.shape[-2:]
    if array.ndim > 2 + rgb:
        ds.NumberOfFrames = len(array)
    ds.SamplesPerPixel = 3 if rgb else 1
    if rgb:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = colours
    ds.BitsAllocated = ds.BitsStored = 8 * array.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    ds.PixelData = array.tobytes() + bytes(array.nbytes % 2)
    ds["PixelData"].VR = "OB" if array.dtype.itemsize == 1 else "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is wrong on purpose
        for name, value in elements.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
    return ds


def encode(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def dicom(array: np.ndarray, colours: str = "MONOCHROME2", **elements: object) -> bytes:
    return encode(dataset(array, colours, **elements))


def encapsulated(array: np.ndarray, syntax: str, frames: list[bytes], **elements: object) -> bytes:
    colours = "RGB" if array.shape[-1] == 3 else "MONOCHROME2"
    ds = dataset(array, colours, syntax=syntax, **elements)
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return encode(ds)


def picture(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def table(entries: int, first: int, bits: int, values: np.ndarray, kind: str = "US") -> Dataset:
    """An item of a sequence of lookup tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", kind, [entries, first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return item


def add_overlay(
    ds: Dataset,
    plane: np.ndarray,
    group: int = 0x6000,
    origin: tuple[int, int] = (1, 1),
    kind: str = "G",
    first_frame: int | None = None,
) -> Dataset:
    """With an overlay of bits [rows, columns] or [frames, rows, columns]."""
    elements: dict[int, tuple[str, object]] = {
        0x10: ("US", plane.shape[-2]),
        0x11: ("US", plane.shape[-1]),
        0x40: ("CS", kind),
        0x50: ("SS", list(origin)),
        0x100: ("US", 1),
        0x102: ("US", 0),
    }
    if plane.ndim == 3:
        elements[0x15] = "IS", str(len(plane))
    if first_frame is not None:
        elements[0x51] = "US", first_frame
    packed = np.packbits(plane.astype(np.uint8).ravel(), bitorder="little").tobytes()
    elements[0x3000] = "OW", packed + bytes(len(packed) % 2)
    for element, (vr, value) in elements.items():
        ds.add_new((group, element), vr, value)
    return ds


def before_pixels(data: bytes, elements: bytes) -> bytes:
    """With encoded elements in front of the first one about pixels."""
    start = data.index(b"\x28\0\x02\0US")
    return data[:start] + elements + data[start:]


def deep(data: bytes) -> bytes:
    """With sequences in sequences, 20,000 deep."""
    item = b"\x18\0\x10\x90SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4
    return before_pixels(data, item * 20_000)


def bomb(ds: Dataset, size: int) -> bytes:
    """With so many MiB of zeros behind a deflated data set, deflated with it."""
    data = encode(ds)
    start = data.index(DEFLATED.encode()) + len(DEFLATED)
    end = start + 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    while data[end : end + 2] == b"\2\0":  # the rest of the file's own elements
        end += 8 + int.from_bytes(data[end + 6 : end + 8], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [squeeze.compress(zlib.decompress(data[end:], -15))]
    parts += [squeeze.compress(bytes(2**20)) for _ in range(size)]
    return b"".join([data[:end], *parts, squeeze.flush()])
