"""Files of several frames and pages, each frame of one grey."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

SIDE = 24


def page(grey: int, **tags: int) -> Image.Image:
    """A picture of one grey; `tags` are those of a page of a TIFF, as t254=1."""
    image = Image.new("L", (SIDE, SIDE), grey)
    info = {int(name[1:]): value for name, value in tags.items()}
    image.encoderinfo = {"tiffinfo": info}  # what Pillow takes for each page of its own
    return image


def tiff(pages: Sequence[Image.Image], **options: object) -> bytes:
    buffer = io.BytesIO()
    first = getattr(pages[0], "encoderinfo", {})
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **{**first, **options})
    return buffer.getvalue()


def greys(kind: str, values: Sequence[int], **options: object) -> bytes:
    """An animation of any kind that Pillow writes."""
    frames = [Image.new("RGB", (SIDE, SIDE), (value, 0, 0)) for value in values]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def dicom(values: Sequence[int], implicit: bool = False, **elements: object) -> bytes:
    """Uncompressed frames of one grey each, shown as they are stored."""
    frames = np.stack([np.full((SIDE, SIDE), value, np.uint8) for value in values])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.NumberOfFrames, ds.Rows, ds.Columns = str(len(values)), SIDE, SIDE
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.WindowCenter, ds.WindowWidth = "128", "256"
    ds.PixelData = frames.tobytes()
    for name, value in elements.items():
        setattr(ds, name, value)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
