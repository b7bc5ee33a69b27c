"""The two decoders of a model: of pictures that stand alone, and of those of a group."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.data.images import Prepared, Refused
from medv_ray.file_parts import FilePart, Picture

if TYPE_CHECKING:
    from medv_ray.settings import ImageSettings

Key = tuple[str, FilePart | None, bool]
"""Digest of the encoded bytes, the part of them, and whether it is one of a group."""


class Decoders:
    """Pictures into tiles. Safe to call from several threads."""

    def __init__(self, image: ImageSettings, tiles: TileSettings) -> None:
        # the reference pads each image of a group and cuts no tiles
        self._of = {
            False: Decoder(image, tiles),
            True: Decoder(image, replace(tiles, aspect="pad")),
        }

    def prepare(self, picture: bytes | Picture, several: bool) -> Prepared:
        """An image ready for the vision tower; `several`: it is one of a group.

        Raises as `Decoder.prepare`.
        """
        return self._of[several].prepare(picture)

    def close(self) -> None:
        """End the child processes."""
        for decoder in self._of.values():
            decoder.close()


def key_of(data: bytes | Picture | Prepared | Refused, several: bool) -> Key:
    """What tells an image from others."""
    if isinstance(data, bytes):
        return (hashlib.sha256(data).hexdigest(), None, several)
    return (data.sha256, data.part, several)
