"""The child process's side of slides: requests in JSON, pictures out. The last slide stays open."""

from __future__ import annotations

import io
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from medv_ray.data.slides import Slide, plan_parts
from medv_ray.errors import DataError, MedvError
from medv_ray.slide_parts import SlidePart

if TYPE_CHECKING:
    from medv_ray.settings import SlideSettings

_HEAD = 4096


class Shelf:
    """Answers requests {path, part}: part is the text of one, `thumbnail`, or `parts`, which asks
    for the texts of all parts that become rows."""

    def __init__(self, setup: dict[str, Any]) -> None:
        import openslide  # noqa: F401  # loads the library while there is room

        self._settings = cast("SlideSettings", SimpleNamespace(**setup["slides"]))
        self._background: int = setup["image"]["background"]
        self._max_pixels: int = setup["image"]["max_pixels"]
        self._open: tuple[str, Slide] | None = None

    def answer(self, data: bytes) -> tuple[dict[str, Any], memoryview]:
        """JSON header and an encoded picture, or lines of text."""
        try:
            request = json.loads(data)
            return self._answer(str(request["path"]), str(request["part"]))
        except MedvError as error:
            self._close()  # OpenSlide reads nothing more of a slide that failed once
            return {"code": error.code, "detail": error.detail}, memoryview(b"")
        except (ValueError, KeyError, TypeError):
            return {"code": "E1202", "detail": "no request for a slide."}, memoryview(b"")
        except MemoryError:
            self._close()
            detail = "reading the slide takes more memory than allowed."
            return {"code": "E1209", "detail": detail}, memoryview(b"")

    def _answer(self, path: str, wanted: str) -> tuple[dict[str, Any], memoryview]:
        slide = self._slide(path)
        if wanted == "parts":
            texts = [part.text for part in plan_parts(slide, self._settings)]
            return {"words": ""}, memoryview("\n".join(texts).encode())
        whole = wanted == "thumbnail"
        if whole and self._settings.read == "tiles":
            plan_parts(slide, self._settings)  # says why there are no tiles
            detail = "no tiles were planned, as looking through the slide took too long then."
            raise DataError("E1209", detail)
        part = slide.whole(self._settings.thumbnail_side) if whole else SlidePart.parse(wanted)
        if part.out_width * part.out_height > self._max_pixels:
            size = f"{part.out_width} x {part.out_height}"
            raise DataError("E1204", f"the picture has {size} pixels, more than are allowed.")
        buffer = io.BytesIO()
        slide.read(part).save(buffer, "PNG", compress_level=1)
        words = f"slide_thumbnail:{part.width}x{part.height}" if whole else ""
        return {"words": words}, memoryview(buffer.getvalue())

    def _slide(self, path: str) -> Slide:
        if self._open is None or self._open[0] != path:
            self._close()
            self._open = (path, Slide(path, self._background))
            uid = self._open[1].dicom_uid
            if uid and not _is_of(path, uid):
                raise DataError("E1216", "the file is no slide of its own.")
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None


def _is_of(path: str, uid: str) -> bool:
    """Whether a DICOM file is the instance of this UID: OpenSlide opens a slide by any of its
    files, which lie in one folder."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    return re.search(re.escape(uid.encode()) + rb"(?![.\d])", head) is not None
