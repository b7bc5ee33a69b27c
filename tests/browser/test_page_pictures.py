"""Pictures on the page: zoom, frames, window, what the model is given, files that are refused."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.steps import QUESTION, TILE, add_tile, ask, expect, field, refuse, sent, tokens
from tests.dicom_files import add_overlay, dataset, encode

pytestmark = pytest.mark.integration
PICTURE = "**/v1/picture"
# black, grey and white columns far within 16 bits
DEEP = np.repeat(np.array([[1000, 1100, 1200, 3000]], np.uint16), 8, axis=1).repeat(24, axis=0)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def add(page: Any, name: str, data: bytes) -> None:
    file = {"name": name, "mimeType": "", "buffer": data}
    page.get_by_label("Image file").set_input_files(file)


def painted(page: Any, x: int) -> int:
    """Red of a pixel of what is shown, in the middle row."""
    js = "(c, x) => c.getContext('2d').getImageData(x, c.height >> 1, 1, 1).data[0]"
    return int(page.get_by_test_id("painted").evaluate(js, x))


def given(request: dict[str, Any]) -> tuple[str, bytes]:
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    return head, base64.b64decode(data)


def press(page: Any, question: str = QUESTION) -> dict[str, Any]:
    field(page).fill(question)
    return sent(page, lambda: page.keyboard.press("Enter"))


def test_zoom_by_keys_buttons_and_wheel(page: Any) -> None:
    add_tile(page)
    stage = page.get_by_role("group", name="Picture at 1.0 times its fit")
    stage.focus()
    page.keyboard.press("+")
    page.get_by_role("button", name="Zoom in").click()
    zoomed = page.get_by_role("group", name="Picture at 1.6 times its fit")
    expect(zoomed).to_be_visible()
    moved = page.locator(".moved").first
    before = moved.get_attribute("style")
    zoomed.focus()
    page.keyboard.press("ArrowRight")
    assert moved.get_attribute("style") != before
    page.keyboard.press("0")
    expect(stage).to_be_visible()

    page.get_by_role("button", name="Enlarge").click()
    dialog = page.get_by_role("dialog", name="Picture, large")
    dialog.locator(".stage").hover()
    page.mouse.wheel(0, -400)
    expect(dialog.get_by_role("group", name=re.compile("Picture at 2.7 times"))).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(stage).to_be_visible()


def test_a_window_changes_what_is_shown_and_what_is_asked_about(page: Any) -> None:
    data = saved(Image.fromarray(DEEP), "PNG")
    add(page, "deep.png", data)
    expect(page.get_by_role("img", name="Your image, deep.png")).to_be_visible()
    assert (painted(page, 0), painted(page, 31)) == (0, 255)
    assert given(press(page)) == ("data:image/png;base64", data)
    page.get_by_test_id("answer").wait_for()

    window = page.get_by_role("group", name="Window")
    window.get_by_label("Level").fill("1100.5")
    window.get_by_label("Width").fill("201")
    page.keyboard.press("Tab")
    expect(page.get_by_text("The model is given what is shown: window 1100.5/201.")).to_be_visible()
    assert [painted(page, x) for x in (0, 8, 16, 31)] == [0, 128, 255, 255]
    kind, png = given(press(page))
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert [int(shown[12, x]) for x in (0, 8, 16, 31)] == [0, 128, 255, 255]
    expect(page.get_by_text("About window 1100.5/201, as shown.")).to_be_visible()

    window.get_by_role("button", name="Reset").click()
    expect(page.get_by_text("The model is given what is shown")).to_have_count(0)
    page.get_by_role("button", name="Enlarge").click()
    large = page.get_by_role("dialog", name="Picture, large")
    for control in (large.get_by_label("Level"), large.get_by_role("button", name="Close")):
        expect(control).to_be_in_viewport(ratio=1)
    large.get_by_role("button", name="Close").click()
    expect(page.get_by_role("button", name="Enlarge")).to_be_focused()
    page.get_by_role("button", name="Window by drag").click()
    stage = page.locator(".stage").bounding_box()
    page.mouse.move(stage["x"] + 20, stage["y"] + 20)
    page.mouse.down()
    page.mouse.move(stage["x"] + 60, stage["y"] + 20)
    page.mouse.up()
    assert float(window.get_by_label("Width").input_value()) > 2001


@pytest.mark.parametrize("colours", ["MONOCHROME2", "MONOCHROME1"])
def test_an_overlay_stays_under_every_window(page: Any, colours: str) -> None:
    line = np.zeros((24, 32), bool)
    line[:, 5] = True
    add(page, "marked.dcm", encode(add_overlay(dataset(DEEP, colours), line)))
    window = page.get_by_role("group", name="Window")
    inverted = colours == "MONOCHROME1"
    assert (painted(page, 4), painted(page, 5)) == (255 * inverted, 255)
    window.get_by_label("Width").fill("501")
    window.get_by_label("Level").fill("1100.5")
    page.keyboard.press("Tab")
    assert (painted(page, 12), painted(page, 5)) == (127 if inverted else 128, 255)
    png = given(press(page))[1]
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[12]
    assert shown[[4, 5, 6]].tolist() == [painted(page, 4), 255, painted(page, 6)]


def test_frames_are_seen_and_asked_about(page: Any) -> None:
    pages = [Image.new("RGB", (32, 24), (60 * i, 0, 0)) for i in range(1, 4)]
    add(page, "pages.tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    frames = page.get_by_role("group", name="Frames")
    expect(frames).to_contain_text("1 of 3")
    assert painted(page, 5) == 60
    frames.get_by_role("button", name="Next frame").click()
    frames.get_by_role("button", name="Next frame").click()
    expect(frames).to_contain_text("3 of 3")
    expect(page.get_by_role("img", name="Your image, pages.tif, frame 3 of 3")).to_be_visible()
    assert painted(page, 5) == 180
    png = given(press(page))[1]
    assert np.asarray(Image.open(io.BytesIO(png)))[0, 0].tolist()[:3] == [180, 0, 0]
    page.get_by_text("What the model is given").click()
    tile = page.get_by_alt_text("The whole, as the vision tower sees it")
    expect(tile).to_be_visible()
    expect(page.get_by_text("The picture as it is shown here: frame 3 of 3.")).to_be_visible()


def test_a_map_and_an_export_keep_to_the_frame_that_was_asked_about(page: Any) -> None:
    pages = [Image.new("RGB", (32, 24), (60 * i, 0, 0)) for i in range(1, 4)]
    add(page, "pages.tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    frames = page.get_by_role("group", name="Frames")
    expect(frames).to_contain_text("1 of 3")
    ask(page)
    frames.get_by_role("button", name="Next frame").click()
    expect(frames).to_contain_text("2 of 3")
    expect(page.get_by_text("were about another frame or window")).to_be_visible()
    tokens(page).first.click()
    expect(page.get_by_text("lies on frame 1, which is not shown")).to_be_visible()
    heat = page.get_by_test_id("heat").first
    expect(heat).not_to_have_class(re.compile("drawn"))
    page.get_by_role("button", name="Show frame 1").click()
    expect(frames).to_contain_text("1 of 3")
    expect(heat).to_have_class(re.compile("drawn"))

    frames.get_by_role("button", name="Next frame").click()
    ask(page, "And here?")
    first = page.get_by_role("article").first
    expect(first).to_contain_text("About the file as it came.")
    first.get_by_role("button", name="Show it so again").click()
    expect(frames).to_contain_text("1 of 3")
    page.get_by_text("Export the dialogue").click()
    with page.expect_download() as caught:
        page.get_by_role("button", name="JSON", exact=True).click()
    exported = json.loads(Path(caught.value.path()).read_text())
    assert [turn["look"] for turn in exported["turns"]] == [0, 1]
    assert [look["about"] for look in exported["looks"]] == ["", "frame 2 of 3"]
    pictures = [base64.b64decode(look["data"].partition(",")[2]) for look in exported["looks"]]
    reds = [np.asarray(Image.open(io.BytesIO(png)))[0, 0, 0] for png in pictures]
    assert reds == [60, 120]


def test_what_the_model_is_given_is_shown(page: Any) -> None:
    add_tile(page)
    page.get_by_text("What the model is given").click()
    tile = page.get_by_alt_text("The whole, as the vision tower sees it")
    expect(tile).to_be_visible()
    assert tile.evaluate("e => e.naturalWidth") == 32
    expect(page.get_by_text("128 × 128 pixels become 1 tile of 32 × 32")).to_be_visible()


def test_a_file_that_is_refused_says_so_before_it_is_asked_about(page: Any) -> None:
    add(page, "broken.png", TILE.read_bytes()[:40])
    alert = page.get_by_role("region", name="Image").get_by_role("alert")
    expect(alert).to_contain_text("The endpoint does not read this file. E1203")
    expect(alert.get_by_role("button")).to_have_count(0)
    with page.expect_response(PICTURE):
        page.get_by_label("Image file").set_input_files(TILE)
    expect(alert).to_have_count(0)

    refuse(page, PICTURE, 503, "E1708")  # without Retry-After
    page.get_by_label("Image file").set_input_files(TILE)
    expect(alert).to_contain_text("has not read this file yet. E1708 Refused with E1708.")
    with page.expect_response(PICTURE):
        alert.get_by_role("button", name="Try again").click()
    expect(alert).to_have_count(0)

    refuse(page, PICTURE, 429, "E1705", **{"Retry-After": "1"})
    page.get_by_label("Image file").set_input_files(TILE)
    expect(alert).to_contain_text("It is asked again by itself.")
    expect(alert).to_have_count(0)
