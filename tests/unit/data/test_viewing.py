"""What the page makes of the values under a window is what the decoder makes of the file."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from medv_ray.canvases import TileSettings
from medv_ray.data.grey_values import GreyValues
from medv_ray.data.images import decode
from medv_ray.data.viewing import view
from medv_ray.settings import ImageSettings
from tests.dicom_files import add_overlay, dataset, encode, table

TILES = TileSettings("square", 32)
SIGNED = (np.arange(48 * 64, dtype=np.int32).reshape(48, 64) * 3 % 4000 - 1000).astype(np.int16)
CROSS = np.zeros((48, 64), bool)
CROSS[20:23, 5:60] = CROSS[2:40, 31] = True


def values_of(data: bytes, **settings: str) -> GreyValues:
    header, payload = view(data, ImageSettings(**settings), TILES, None)
    rows, columns = header["picture"]
    return GreyValues.from_facts(header["values"], payload[rows * columns * 3 :])[0]


def shown(values: GreyValues, level: float, width: float) -> np.ndarray:
    """As web/src/window.ts does it."""
    x = values.low + values.step * values.numbers
    if values.function == "SIGMOID":
        grey = 255 / (1 + np.exp(-4 * (x - level) / width))
    elif values.function == "LINEAR_EXACT":
        grey = ((x - level) / width + 0.5) * 255
    else:
        grey = ((x - (level - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
    grey = np.rint(np.clip(grey, 0, 255))
    grey = 255 - grey if values.inverted else grey
    return grey if values.overlay is None else np.where(values.overlay, 255, grey)


def off(values: GreyValues, asked: tuple[float, float], data: bytes, **settings: str) -> int:
    """The most by which a pixel differs."""
    picture, _ = decode(data, ImageSettings(**settings))
    wanted = np.asarray(picture.convert("L")).astype(int)
    assert np.ptp(wanted) > 100
    return int(np.abs(shown(values, *asked) - wanted).max())


def padded(kind: type, lowest: int) -> Dataset:
    stored = SIGNED.astype(kind)
    stored[:, :20] = lowest
    ds = dataset(stored)
    ds.add_new(0x00280120, "SL" if kind is np.int32 else "SS", lowest)
    return ds


def in_unused_bits() -> Dataset:
    stored = (SIGNED.astype(np.int32) + 1000).astype(np.uint16) | CROSS.astype(np.uint16) << 15
    ds = add_overlay(dataset(stored, BitsStored=12, HighBit=11), CROSS)
    ds[0x60000100].value, ds[0x60000102].value = 16, 15
    del ds[0x60003000]
    return ds


def with_tables() -> Dataset:
    lut = table(256, 0, 16, np.arange(256, dtype=np.uint16) ** 2 // 16)
    stored = (SIGNED.astype(np.int32) % 256).astype(np.uint16)
    ds = dataset(stored, ModalityLUTSequence=[lut])
    lut.ModalityLUTType = "US"
    return ds


FILES = {
    "overlay": lambda: add_overlay(dataset(SIGNED), CROSS),
    "overlay over inverted": lambda: add_overlay(dataset(SIGNED, "MONOCHROME1"), CROSS),
    "overlay in unused bits": in_unused_bits,
    "overlay beside the picture": lambda: add_overlay(dataset(SIGNED), CROSS, origin=(-9, 40)),
    "inverse presentation": lambda: dataset(SIGNED, PresentationLUTShape="INVERSE"),
    "padding": lambda: padded(np.int16, -32768),
    "padding of 32 bits": lambda: padded(np.int32, -(2**31)),
    "rescaled by fractions": lambda: dataset(SIGNED, RescaleSlope="0.37", RescaleIntercept="1"),
    "modality table": with_tables,
    "extra palette": lambda: dataset(SIGNED, RedPaletteColorLookupTableDescriptor=[256, 0, 16]),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("window", ["file", "150/700", "1200/2300"])
def test_a_window_loses_nothing(kind: str, window: str) -> None:
    data = encode(FILES[kind]())
    values = values_of(data)
    asked = values.window
    if window != "file":
        level, width = map(float, window.split("/"))
        asked = (level, width)
        if kind == "rescaled by fractions":  # the page's rule is exact, and its words say so
            assert values.function == "LINEAR_EXACT"
            asked = (level - 0.5, width - 1)
    assert off(values, asked, data, window=window) <= 1


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", ["1", "0.37"])
def test_the_files_function_of_a_window_stays(function: str, slope: str) -> None:
    ds = dataset(
        SIGNED, WindowCenter="40", WindowWidth="400.5", VOILUTFunction=function,
        RescaleSlope=slope, RescaleIntercept="0",
    )  # fmt: skip
    data = encode(add_overlay(ds, CROSS))
    values = values_of(data)
    assert (values.function, values.window) == (function, (40, 400.5))
    assert off(values, (40, 400.5), data) <= 1


def test_padding_is_in_no_range() -> None:
    values = values_of(encode(padded(np.int32, -(2**31))))
    assert values.range == (SIGNED[:, 20:].min(), SIGNED[:, 20:].max())
    assert values.step == 1


def test_an_overlay_that_is_not_drawn_is_not_sent() -> None:
    data = encode(add_overlay(dataset(SIGNED), CROSS))
    assert values_of(data).overlay is not None
    assert values_of(data, overlays="ignore").overlay is None
    assert values_of(encode(add_overlay(dataset(SIGNED), CROSS, kind="R"))).overlay is None
    assert values_of(encode(dataset(SIGNED))).overlay is None


def test_a_thin_line_stays_when_the_picture_is_shown_smaller() -> None:
    values = values_of(encode(add_overlay(dataset(SIGNED), CROSS)))
    smaller = values.reduced(3)
    assert smaller.numbers.shape == (16, 22)
    assert smaller.overlay is not None
    assert smaller.overlay[:13, 10].all()
    assert smaller.numbers[5, 5] == pytest.approx(values.numbers[15:18, 15:18].mean(), abs=0.5)


@pytest.mark.parametrize("turn", range(1, 9))
def test_grey_of_16_bits_is_turned_as_the_picture_is(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind, how in (("TIFF", {"tiffinfo": {274: turn}}), ("PNG", {"exif": exif})):
        buffer = io.BytesIO()
        picture = Image.fromarray((SIGNED + 1000).astype(np.uint16))
        picture.save(buffer, kind, **how)
        values = values_of(buffer.getvalue())
        assert off(values, values.window, buffer.getvalue()) <= 1


def test_a_picture_of_one_value_has_a_window() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(buffer, "TIFF")
    values = values_of(buffer.getvalue())
    assert (values.low, values.window) == (0.5, (0.5, 0))
    assert not values.numbers.any()


def test_a_large_picture_is_looked_at_in_strips() -> None:
    """Its ends and its only fraction lie in different ones, and no float64 copy is made of it."""
    stored = np.zeros((1000, 2000), np.int32)
    stored[10, 0], stored[600, 5], stored[990, 1999] = -(2**20), 7, 2**20

    def meaning(strip: NDArray[Any]) -> NDArray[np.float64]:
        return strip.astype(np.float64) / 2

    tracemalloc.start()
    made = GreyValues.of(stored, meaning)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.step == 2**20 / 65535  # no whole numbers: 3.5 is among them
    assert (made.low, made.range) == (-(2**19), (-(2**19), 2**19))
    assert np.abs(made.low + made.step * made.numbers - stored / 2).max() <= made.step / 2
    assert peak < 8 * stored.size
