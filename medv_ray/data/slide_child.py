"""Slides behind a child process, which opens them by path: they may hold gigabytes.

What comes out is a PNG, so that a tile of a slide is from here on a picture as any other.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

from medv_ray.data.decode_child import Decoder, check_reply
from medv_ray.errors import DataError, SettingsError
from medv_ray.file_parts import Splitter
from medv_ray.settings import ImageSettings, SlideSettings
from medv_ray.slide_parts import SlidePart, slide_kind

_LONGEST = 8192
"""No side of a picture is longer: SlideSettings.thumbnail_side, and tiles are shorter."""


def is_installed() -> bool:
    """Whether slides can be read: the extra medv-ray[wsi]."""
    return find_spec("openslide") is not None


def reader_of(image: ImageSettings, slides: SlideSettings) -> SlideReader | None:
    """None without the package: slides are then read as other files are."""
    return SlideReader(image, slides) if is_installed() else None


class SlideReader(Decoder):
    """Pictures of slides, one at a time. The child starts with the first, and ends with `close`.

    Safe to call from several threads, and may be pickled.
    """

    def __init__(self, image: ImageSettings, slides: SlideSettings) -> None:
        self._given = (image, slides)
        super().__init__(image.model_copy(update={"decode_seconds": slides.seconds}), None)
        self._most_bytes = (_LONGEST + 1) ** 2 * 3  # a PNG of noise is longer than its pixels
        setup = json.loads(self._setup)
        setup["slides"] = slides.model_dump(mode="json")
        self._setup = json.dumps(setup).encode()

    def __reduce__(self) -> Any:
        return SlideReader, self._given

    def thumbnail(self, path: str) -> tuple[bytes, str]:
        """As `SlideFiles`. Raises DataError E1203, E1204, E1209, E1211, E1216."""
        return self._ask(path, "thumbnail")

    def picture(self, path: str, part: SlidePart) -> bytes:
        """As `SlideFiles`. Raises DataError E1203, E1204, E1209, E1211, E1216."""
        return self._ask(path, part.text)[0]

    def parts(self, path: str) -> tuple[SlidePart, ...]:
        """What becomes rows. Raises DataError E1203, E1209, E1211, E1214, E1215, E1216."""
        lines = self._ask(path, "parts")[0].decode("ascii").splitlines()
        return tuple(SlidePart.parse(line) for line in lines)

    def _ask(self, path: str, part: str) -> tuple[bytes, str]:
        found: tuple[bytes, str] = self._prepare(json.dumps({"path": path, "part": part}).encode())
        return found

    def _what(self, data: bytes) -> str:
        return "a slide"

    def _understand(self, header: Any, payload: memoryview) -> Any:
        check_reply(header)
        return bytes(payload), str(header["words"])[:100]


class SlideSplitter:
    """Slides by their tiles or associated images, other files by `frames`. See
    `file_parts.Splitter`; a slide that cannot be planned is one row, which says why. Without a
    reader every slide is one row."""

    def __init__(
        self, reader: SlideReader | None, settings: SlideSettings, frames: Splitter | None
    ) -> None:
        self._reader, self._frames = reader, frames
        asked = settings.model_dump(mode="json", exclude={"seconds"}, exclude_defaults=True)
        mine = [f"slides.{name}={json.dumps(value)}" for name, value in asked.items()]
        self.key = " ".join([*([] if frames is None else [frames.key]), *mine])

    def parts(self, filesystem: Any, path: str) -> tuple[Any, ...]:
        """The rows of a picture file; none: it is one row as it is. Raises OSError."""
        # of an object store, the decoder refuses what is not a slide's first page
        kind = None
        if filesystem.type_name == "local":
            with open(path, "rb") as file:
                kind = slide_kind(file, path)
        if kind is None:
            return () if self._frames is None else self._frames.parts(filesystem, path)
        if self._reader is None:
            return ()
        try:
            return self._reader.parts(path)
        except DataError:
            return ()


def splitter_of(
    reader: SlideReader | None, settings: SlideSettings, frames: Splitter | None, is_local: bool
) -> Splitter | None:
    """By `slides` and the splitter of `image.frames`; None where every file is one row.

    Raises SettingsError E1003 without the package, E1001 for tiles of an object store.
    """
    is_several = settings.read == "tiles" or bool(settings.associated)
    if is_several and reader is None:
        detail = "slides are read with OpenSlide: pip install 'medv-ray[wsi]'."
        raise SettingsError("E1003", detail)
    if is_several and not is_local:
        detail = "tiles are read from slides on a disk; copy the slides of an object store there."
        raise SettingsError("E1001", f"slides.read: {detail}")
    if frames is None and not is_several:
        return None
    return SlideSplitter(reader if is_several else None, settings, frames)
