"""What /v1/picture shows of a picture: the same that the model is given, and values behind it."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medv_ray.data.images import decode, prepare
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from medv_ray.windows import PRESETS
from tests.dicom_files import add_overlay, dataset, dicom, encode
from tests.unit.serving.client import KEY, MODEL, Reply, ask, encoded, tiles, url_of
from tests.unit.serving.conftest import KEYS

PICTURE = "/v1/picture"
RAMP = (np.arange(40 * 60, dtype=np.uint16) * 27 % 4096).reshape(40, 60)


def look(app: App, data: bytes, **fields: Any) -> Reply:
    body = {"model": MODEL, "image_url": {"url": url_of(data)}, **fields}
    return ask(app, encoded(body), path=PICTURE)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def values(sent: dict[str, Any]) -> np.ndarray:
    return sent["low"] + sent["step"] * array(sent, "data", "<u2")


def array(sent: dict[str, Any], name: str, kind: str) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(sent[name]))
    return np.frombuffer(raw, kind).reshape(sent["rows"], sent["columns"])


def windowed(x: np.ndarray, level: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2."""
    return np.clip(((x - (level - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def test_a_picture_and_its_tiles_are_those_that_the_model_gets(app: App, service: Service) -> None:
    data = tiles()[0].image
    shown = look(app, data).json()
    image = service.settings.image
    whole, _ = decode(data, image)
    given = prepare(data, image, service.tiles(MODEL))
    assert np.array_equal(pixels(shown["picture"]), np.asarray(whole))
    assert [pixels(one).tolist() for one in shown["tiles"]["pictures"]] == given.tiles.tolist()
    assert (shown["width"], shown["height"]) == given.size_wh
    assert (shown["frame"], shown["frames"], shown["reduced"]) == (1, 1, 1)
    assert shown["values"] is None
    columns, rows = shown["tiles"]["columns"], shown["tiles"]["rows"]
    assert 1 + columns * rows == len(given.tiles)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_come_whole_with_a_window_that_shows_them(app: App, kind: str) -> None:
    shown = look(app, saved(Image.fromarray(RAMP), kind)).json()
    sent = shown["values"]
    assert np.array_equal(values(sent), RAMP)
    grey = windowed(RAMP.astype(float), *sent["window"])
    assert np.abs(grey - pixels(shown["picture"])[..., 0]).max() <= 0.51
    assert (sent["inverted"], sent["unit"], sent["presets"]) == (False, "", {})


def test_floats_keep_their_range(app: App) -> None:
    fine = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    sent = look(app, saved(Image.fromarray(fine), "TIFF")).json()["values"]
    assert np.abs(values(sent) - fine).max() < 1e-5
    assert sent["window"] == pytest.approx([0.5, 1.0])


def test_a_ct_is_sent_in_hounsfield_units_with_the_presets(app: App) -> None:
    stored = RAMP.astype(np.uint16)
    data = dicom(
        stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40,
        WindowWidth=400, SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
    )  # fmt: skip
    shown = look(app, data).json()
    sent = shown["values"]
    assert np.array_equal(values(sent), stored.astype(int) - 1024)
    assert (sent["window"], sent["unit"], sent["inverted"]) == ([40, 400], "HU", False)
    assert sent["presets"] == {name: list(window) for name, window in PRESETS.items()}
    grey = windowed(values(sent), 40, 400)
    assert np.abs(grey - pixels(shown["picture"])[..., 0]).max() <= 0.51


def test_black_that_is_stored_as_white_is_sent(app: App) -> None:
    shown = look(app, dicom(RAMP, "MONOCHROME1")).json()
    sent = shown["values"]
    assert sent["inverted"]
    grey = 255 - windowed(values(sent), *sent["window"])
    assert np.abs(grey - pixels(shown["picture"])[..., 0]).max() <= 1


def test_what_is_drawn_over_every_window_is_sent(app: App) -> None:
    cross = np.zeros(RAMP.shape, bool)
    cross[10, 5:50] = True
    shown = look(app, encode(add_overlay(dataset(RAMP, "MONOCHROME1"), cross))).json()
    assert "overlays_drawn:1" in shown["warnings"]
    sent = shown["values"]
    assert np.array_equal(array(sent, "overlay", "?"), cross)
    assert (sent["function"], sent["range"]) == ("LINEAR", [RAMP.min(), RAMP.max()])
    assert look(app, dicom(RAMP)).json()["values"]["overlay"] is None


def test_each_frame_can_be_seen(app: App) -> None:
    pages = [Image.new("RGB", (32, 24), (40 * i, 0, 0)) for i in range(1, 4)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    own = look(app, data).json()
    assert (own["frame"], own["frames"]) == (1, 3)
    third = look(app, data, frame=3).json()
    assert (third["frame"], third["frames"]) == (3, 3)
    assert pixels(third["picture"])[0, 0].tolist() == [120, 0, 0]
    assert pixels(third["tiles"]["pictures"][0])[0, 0].tolist() == [120, 0, 0]
    refused = look(app, data, frame=4)
    assert (refused.status, refused.error["code"]) == (400, "E1210")
    assert "frame 4" in refused.error["message"]
    assert refused.error["param"] == "image_url.url"


def test_a_large_picture_is_shown_smaller(app: App) -> None:
    wide = np.arange(4200 * 100, dtype=np.uint32).reshape(100, 4200) % 65536
    shown = look(app, saved(Image.fromarray(wide.astype(np.uint16)), "PNG")).json()
    assert (shown["width"], shown["height"], shown["reduced"]) == (4200, 100, 3)
    assert pixels(shown["picture"]).shape[:2] == (34, 1400)
    assert values(shown["values"])[1, 1] == wide[4, 4]  # the mean of nine


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "E1201"),
        (b"no picture at all", "E1202"),
        (saved(Image.new("L", (8, 8)), "PNG"), "E1205"),
    ],
)
def test_what_the_chat_refuses_is_refused_here(app: App, data: bytes, code: str) -> None:
    reply = look(app, data)
    assert (reply.status, reply.error["code"]) == (400, code)


@pytest.mark.parametrize("fields", [{"frame": 0}, {"frame": "1"}, {"window": "40/400"}])
def test_fields_are_checked(app: App, fields: dict[str, Any]) -> None:
    reply = look(app, tiles()[0].image, **fields)
    assert (reply.status, reply.error["code"]) == (400, "E1701")
    assert next(iter(fields)) in reply.error["message"]


def test_limits_and_keys_hold(limited: Any) -> None:
    assert look(limited(keys=KEYS), tiles()[0].image).status == 401
    assert look(limited(max_body_bytes=1000), tiles()[0].image).status == 413
    body = encoded({"model": MODEL, "image_url": {"url": url_of(tiles()[0].image)}})
    alice = {"authorization": f"Bearer {KEY}"}
    assert ask(limited(keys=KEYS), body, path=PICTURE, headers=alice).status == 200
