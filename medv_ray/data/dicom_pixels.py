"""The stored values of one frame of a DICOM object; no other frame is decoded or copied.

Uncompressed pixels: PS3.5 section 8 and annex D. H rows, W columns.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.data import jpeg
from medv_ray.data.dicom_decoders import RLE, twelve_bits
from medv_ray.data.encoded import components_of, size_of
from medv_ray.errors import DataError

_UNDEFINED = 0xFFFFFFFF
_BY_PILLOW = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_J2K_HEAD = 2**16  # boxes of a JP2 file may stand in front of its codestream
_CUT = "the DICOM object's JPEG ends before its picture does."
_ITEM, _ITEMS_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True)
class Layout:
    """What a header says of its pixels; each number is checked already."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    """Position of the highest stored bit."""
    signed: bool
    by_plane: bool
    colours: str
    frames: int
    words: tuple[str, ...] = ()
    """For what was not as it should be."""

    @property
    def frame_bits(self) -> int:
        """Of one uncompressed frame."""
        samples = 2 if self.colours.endswith("_422") else self.samples
        return self.rows * self.columns * samples * self.allocated


@dataclass(frozen=True)
class PixelData:
    """Where the value of an object's PixelData lies in its bytes."""

    body: bytes
    start: int
    length: int
    """_UNDEFINED for pieces (fragments)."""
    syntax: str
    encapsulated: bool
    big: bool
    words: bool
    """Whether the bytes of a big-endian one are swapped in pairs (OW)."""

    def check(self, layout: Layout) -> None:
        """Raises DataError E1203 or E1207 where it is not as long as the header calls for."""
        held = min(self.length, len(self.body) - self.start)
        if not held:
            raise DataError("E1203", "the DICOM object's PixelData is empty.")
        if self.encapsulated:
            pieces = self._pieces()
            count = len(pieces)
            if count < layout.frames:
                detail = f"{layout.frames} frames, there are {count} pieces of pixel data."
                raise DataError("E1207", f"the header announces {detail}")
            begun = sum(map(_begins, pieces)) if count > layout.frames else 0
            if begun > layout.frames:
                detail = f"{layout.frames} frames, there are {begun} in the pixel data."
                raise DataError("E1207", f"the header announces {detail}")
            return
        if self.length == _UNDEFINED:
            raise DataError("E1207", "the pixels are in pieces and said to be uncompressed.")
        if layout.colours.endswith("_422") and layout.columns % 2:
            detail = "an odd number of columns does not fit colours of pixel pairs."
            raise DataError("E1207", detail)
        called_for = -(-layout.frame_bits * layout.frames // 8)
        # zeros behind the last row are padding, anything else are rows of a header that lies;
        # one byte makes the length even, and is the last but one where bytes are swapped
        behind = self.start + called_for + (called_for % 2 if self.length == called_for + 1 else 0)
        more = any(self.body[behind : self.start + held])
        if held < called_for or more:
            there = "more" if held > called_for else f"{held}"
            detail = f"{called_for} bytes of pixels, there are {there}."
            raise DataError("E1207", f"the header calls for {detail}")

    def _pieces(self) -> list[bytes | memoryview]:
        """The pieces (fragments) in their order, without the table of offsets in front.

        Raises DataError E1203 where one is not whole.
        """
        view, at = memoryview(self.body), self.start
        pieces: list[bytes | memoryview] = []
        while view[at : at + 4] == _ITEM:
            length = int.from_bytes(view[at + 4 : at + 8], "little")
            at += 8 + length
            pieces.append(view[at - length : at])
        if at > len(view) or view[at : at + 4] not in (_ITEMS_END, b""):
            raise DataError("E1203", "the DICOM object's pixel data end early, or are damaged.")
        return pieces[1:]

    def coded(self, layout: Layout, index: int) -> bytes | memoryview:
        """A compressed frame, no copy where it is one piece.

        Raises DataError E1203, and many types for damaged framing.
        """
        from pydicom.encaps import get_frame

        pieces = self._pieces()
        # one each, whatever a table of offsets says; with an extended one they always are
        if len(pieces) == layout.frames:
            return pieces[index]
        if layout.frames == 1:
            return b"".join(pieces)
        begins = [place for place, piece in enumerate(pieces) if _begins(piece)]
        if len(begins) == layout.frames and begins[0] == 0:
            return b"".join(pieces[begins[index] : [*begins, None][index + 1]])
        stream = io.BytesIO(self.body)  # shares the bytes
        stream.seek(self.start)
        return get_frame(stream, index, number_of_frames=layout.frames)

    def native(self, layout: Layout, index: int) -> NDArray[Any]:
        """Unsigned words of an uncompressed frame: uint[H, W], or uint[H, W, 3].

        As they are stored: the bits that are no value are still in them.
        """
        bits = layout.frame_bits
        first = bits * index
        low, high = first // 8, -(-(first + bits) // 8)
        if self.big and self.words and layout.allocated <= 8:
            low, high = low - low % 2, high + high % 2
        raw = np.frombuffer(self.body, np.uint8, high - low, self.start + low)
        if self.big and self.words and layout.allocated <= 8:
            raw = raw.view(np.uint16).byteswap().view(np.uint8)
        skipped = first - 8 * low
        if layout.allocated == 1:
            flat = np.unpackbits(raw, bitorder="little")[skipped : skipped + bits]
        else:
            flat = raw[skipped // 8 :][: bits // 8]
            order = ">" if self.big else "<"
            flat = flat.view(np.dtype(f"{order}u{layout.allocated // 8}"))
        if layout.colours.endswith("_422"):
            pairs = flat.reshape(layout.rows, layout.columns // 2, 4)
            words = np.empty((layout.rows, layout.columns // 2, 2, 3), flat.dtype)
            words[..., 0] = pairs[..., :2]
            words[..., 1:] = pairs[:, :, None, 2:]
            return words.reshape(layout.rows, layout.columns, 3)
        if layout.samples == 1:
            return flat.reshape(layout.rows, layout.columns)
        if layout.by_plane:
            return flat.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
        return flat.reshape(layout.rows, layout.columns, 3)


def _begins(piece: bytes | memoryview) -> bool:
    """Whether a piece (fragment) begins a frame: JPEG, JPEG 2000 or RLE (PS3.5 G.5)."""
    head = bytes(piece[:8])
    is_rle = 1 <= int.from_bytes(head[:4], "little") <= 15 and head[4:] == b"\x40\0\0\0"
    return is_rle or head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51"))


def values_of(words: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Stored values int[H, W] of words uint[H, W]: bits up to the highest stored one, and sign."""
    bits = words.dtype.itemsize * 8
    if layout.allocated == 1 or (layout.stored == bits and not layout.signed):
        return words.astype(words.dtype.newbyteorder("="), copy=False)
    kind = "i" if layout.signed else "u"
    up = bits - 1 - layout.high
    shifted = words.astype(words.dtype.newbyteorder("="))
    shifted <<= up
    values: NDArray[Any] = shifted.view(f"{kind}{words.dtype.itemsize}")
    values >>= bits - layout.stored
    return values


def decoded(frame: bytes | memoryview, syntax: str, layout: Layout) -> tuple[NDArray[Any], str]:
    """Stored values, int[H, W] or int[H, W, 3], of a compressed frame, and the colours they are in.

    Raises DataError E1207, E1211, and many types for damaged data.
    """
    markers = jpeg.Markers(None, (), None)
    if frame[:2] == b"\xff\xd8":
        frame = bytes(frame)
        markers = jpeg.read(frame)
    coding = markers.coding
    if coding is not None and coding.marker != jpeg.JPEG_LS:
        if coding.marker not in (jpeg.SOF0, jpeg.SOF1, jpeg.SOF2, jpeg.SOF3):
            raise DataError("E1211", f"the frames are a {coding}; imagecodecs may read it.")
        if markers.end is None or jpeg.uncoded(markers):
            raise DataError("E1203", _CUT)
    bits, samples, (width, height) = _coded(frame, syntax, layout, coding)
    if (width, height or layout.rows) != (layout.columns, layout.rows):
        detail = f"{width} x {height}, the header announces {layout.columns} x {layout.rows}."
        raise DataError("E1207", f"the frames are of {detail}")
    if samples != layout.samples:  # gdcm ends the process by some of these
        detail = f"hold {samples} samples per pixel, the header announces {layout.samples}."
        raise DataError("E1207", f"the frames {detail}")
    if bits > layout.allocated:
        detail = f"are of {bits} bits, the header allocates {layout.allocated}."
        raise DataError("E1207", f"the frames {detail}")
    # bits below the stored ones are in a frame that codes whole words
    unused = layout.high + 1 - layout.stored if bits > layout.stored else 0
    layout = replace(layout, stored=layout.stored + unused)
    if syntax in _BY_PILLOW and bits == 8:
        layout = replace(layout, allocated=8, stored=min(layout.stored, 8))
    if syntax == RLE and _has_another_row(frame, layout):
        raise DataError("E1207", "the RLE data hold more rows than the header announces.")
    values, colours = _read(frame, syntax, layout, coding)
    if coding is not None and coding.marker != jpeg.JPEG_LS and _may_be_filled(values, markers):
        # gdcm takes no surplus restart markers
        longer = jpeg.prolonged(bytes(frame), markers.end or 0, coding.marker != jpeg.SOF3)
        if not np.array_equal(values, _read(longer, syntax, layout, coding)[0]):
            raise DataError("E1203", _CUT)
    return values >> unused if unused else values, colours


def _coded(
    frame: bytes | memoryview, syntax: str, layout: Layout, coding: jpeg.Coding | None
) -> tuple[int, int, tuple[int, int]]:
    """Bits of a sample, samples of a pixel, width and height by the frame's own head; the header's
    where it has none.
    """
    if coding is not None:
        return coding.bits, len(coding.components), coding.size
    size = layout.columns, layout.rows
    if syntax == RLE and _begins(frame):  # a segment for each byte of a pixel
        return layout.allocated, int.from_bytes(frame[:4], "little") * 8 // layout.allocated, size
    head = bytes(frame[:_J2K_HEAD])
    parts, coded = components_of(head), size_of(head)
    if not parts or coded is None:
        return layout.stored, layout.samples, size
    return parts[0][0], len(parts), coded


def _may_be_filled(values: NDArray[Any], markers: jpeg.Markers) -> bool:
    """Whether a decoder may have filled in the end of a JPEG's values int[H, W] or int[H, W, 3].

    Where one scan holds all, what is filled in is the middle grey. Of others, and of lossless ones,
    that cannot be told. See `jpeg.prolonged` for what tells it, by another decoding.
    """
    coding = markers.coding
    if coding is None or coding.marker in (jpeg.SOF2, jpeg.SOF3) or len(markers.scans) > 1:
        return True
    last = int(values[-1, -1].flat[0]) % 2**coding.bits
    grey = 1 << (coding.bits - 1)
    return bool(abs(last - grey) <= 1 << max(coding.bits - 7, 0))


def _read(
    frame: bytes | memoryview, syntax: str, layout: Layout, coding: jpeg.Coding | None
) -> tuple[NDArray[Any], str]:
    if coding is not None and coding.bits == 12 and coding.marker in jpeg.HUFFMAN_DCT:
        grey = twelve_bits(bytes(frame), layout.samples)
        return (grey << 4).view(np.int16) >> 4 if layout.signed else grey, layout.colours
    return _by_pydicom(frame, syntax, layout, layout.rows)


class _OverrunError(ValueError):
    """For the panic of pylibjpeg-rle, which is written in Rust, by data that are too long."""


def _by_pydicom(
    frame: bytes | memoryview, syntax: str, layout: Layout, rows: int
) -> tuple[NDArray[Any], str]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    options: dict[str, Any] = {
        "rows": rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "photometric_interpretation": layout.colours,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if layout.samples > 1:
        options["planar_configuration"] = int(layout.by_plane)
    # gdcm makes something of JPEG data that Pillow refuses
    plugin = "pillow" if syntax in _BY_PILLOW else ""
    # pydicom pads what is odd, and cannot pad a view
    pieces: list[Any] = [bytes(frame) if len(frame) % 2 else frame]
    # raw: colours are converted by strips later
    try:
        array, found = get_decoder(UID(syntax)).as_array(
            encapsulate(pieces, has_bot=False), index=0, raw=True, decoding_plugin=plugin, **options
        )
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise _OverrunError from None
        raise
    return array, str(found["photometric_interpretation"])


def _has_another_row(frame: bytes | memoryview, layout: Layout) -> bool:
    """Decoders leave surplus RLE data out in silence; JPEG and JPEG 2000 know their size."""
    try:
        _by_pydicom(frame, RLE, layout, layout.rows + 1)
    except _OverrunError:
        return True
    except Exception:  # RuntimeError of pydicom, for whatever its plugins raised
        return False
    return True
