"""A picture for the eyes of a person: as it is decoded, its values before any window, its tiles.

Made in the decoder's child process, as all pictures from outside are. Long sides are made shorter
by a whole number, so that a reply stays small; the tiles are those of the whole picture.
H rows, W columns, of the picture that is shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.data.dicom import DicomFile
from medv_ray.data.frames import count_frames
from medv_ray.data.grey_values import GreyValues, of_picture
from medv_ray.data.images import Prepared, decode, open_at
from medv_ray.data.tiles import cut
from medv_ray.errors import DataError
from medv_ray.file_parts import FilePart

if TYPE_CHECKING:
    from medv_ray.settings import ImageSettings

MOST_SIDE = 2048
"""Of what is shown, in pixels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Viewed(Prepared):
    """A picture, and what the model is given of it."""

    picture: NDArray[np.uint8]
    """uint8[H, W, 3], as it is decoded."""
    values: GreyValues | None
    """Of grey pictures of DICOM, and of more than 8 bits."""
    frame: int
    frames: int
    """`frame` of so many."""
    reduced: int
    """The file's sides are so many times longer than those that are shown."""


class Viewer(Decoder):
    """`view` behind a child process, which starts with the first picture and ends with `close`."""

    purpose = "view"

    def __init__(self, image: ImageSettings, tiles: TileSettings) -> None:
        super().__init__(image, tiles)
        self._most_bytes += MOST_SIDE**2 * 6  # a colour, a value, an overlay

    def view(self, data: bytes, frame: int | None = None) -> Viewed:
        """A frame, counted from 1. None: the one that a question would be about.

        Raises as `Decoder.prepare`, and DataError E1210 where there is no such frame.
        """
        part = digest = ""
        if frame is not None:
            count = count_frames(io.BytesIO(data), len(data))
            if frame > count:
                detail = f"frame {frame} was asked for, the file holds {count}."
                raise DataError("E1210", detail)
            part, digest = FilePart(frame, count).text, hashlib.sha256(data).hexdigest()
        viewed = self._prepare(data, part, digest)
        assert isinstance(viewed, Viewed)
        return viewed

    def _understand(self, header: Any, payload: memoryview) -> Viewed:
        """Every field is checked: the child may have been taken over."""
        if not isinstance(header, dict) or header.get("code") is not None:
            super()._understand(header, payload)
        rows, columns = map(int, header["picture"])
        told, side = header["values"], self._side
        end = rows * columns * 3
        picture = np.frombuffer(payload, np.uint8, end).reshape(rows, columns, 3)
        values = None
        if told is not None:
            values, size = GreyValues.from_facts(told, payload[end:])
            end += size
        plain = super()._understand(header, payload[end:])
        return Viewed(
            tiles=plain.tiles.reshape(-1, side, side, 3),
            size_wh=plain.size_wh,
            warnings=plain.warnings,
            sha256=plain.sha256,
            picture=picture,
            values=values,
            frame=int(header["frame"]),
            frames=int(header["frames"]),
            reduced=int(header["reduced"]),
        )


def view(
    data: bytes, image: ImageSettings, tiles: TileSettings, part: FilePart | None
) -> tuple[dict[str, Any], memoryview]:
    """What `Viewer` reads, as JSON and bytes. Raises DataError E1112, E1201 .. E1213."""
    picture, words = decode(data, image, part)
    frame, frames = _place(words, part)
    values = _values(data, image, part)
    reduced = -(-max(picture.size) // MOST_SIDE)
    shown = picture.reduce(reduced) if reduced > 1 else picture
    if values is not None and reduced > 1:
        values = values.reduced(reduced)
    header = {
        "size_wh": picture.size,
        "warnings": words,
        "sha256": hashlib.sha256(data).hexdigest(),
        "picture": shown.size[::-1],
        "values": None if values is None else values.facts(),
        "frame": frame,
        "frames": frames,
        "reduced": reduced,
    }
    pieces = [np.asarray(shown).tobytes(), b"", cut(picture, tiles).tobytes()]
    if values is not None:
        pieces[1] = values.tobytes()
    return header, memoryview(b"".join(pieces))


def _place(words: list[str], part: FilePart | None) -> tuple[int, int]:
    """Which frame of how many it is: by the part, or by the words for the policy's choice."""
    if part is not None:
        return part.frame, part.of
    for word in words:
        name, _, value = word.partition(":")
        if name == "first_of_frames":
            return 1, int(value)
        if name == "frame":
            frame, _, of = value.partition("/")
            return int(frame), int(of)
    return 1, 1


def _values(data: bytes, image: ImageSettings, part: FilePart | None) -> GreyValues | None:
    source, index, _ = open_at(data, image, part)
    if isinstance(source, DicomFile):
        return source.grey_values(index)
    return of_picture(source)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """A PNG of uint8[H, W, 3] as a data: address; of one channel where it is grey."""
    is_grey = not (pixels != pixels[..., :1]).any()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if is_grey else pixels))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def packed(array: NDArray[Any]) -> str:
    """base64 of a zlib stream of uint16[H, W] (little-endian) or bool[H, W], row by row."""
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return base64.b64encode(zlib.compress(raw, 1)).decode()
