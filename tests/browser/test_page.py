"""The page in a real browser. Nothing here depends on what the model answers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.browser.steps import INSPECT, QUESTION, TILE, add_tile, ask, expect, field, sent, tokens

pytestmark = pytest.mark.integration
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FILE_EVENT = """(element, [kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], `${kind}.jpg`, { type: "image/jpeg" }));
  const event = { bubbles: true, cancelable: true };
  element.dispatchEvent(kind === "paste"
    ? new ClipboardEvent(kind, { ...event, clipboardData: data })
    : new DragEvent(kind, { ...event, dataTransfer: data }));
}"""


@pytest.mark.parametrize("way", ["choose", "drop", "paste", "example"])
def test_an_image_comes_in_and_is_asked_about(page: Any, way: str) -> None:
    if way == "choose":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose an image").click()
        chooser.value.set_files(TILE)
    elif way == "example":
        page.get_by_role("button", name="Try an example tile").click()
    else:
        encoded = base64.b64encode(TILE.read_bytes()).decode()
        page.locator("main").evaluate(FILE_EVENT, [way, encoded])
    expect(page.get_by_alt_text("Your image")).to_be_visible()

    request = sent(page, lambda: ask(page))

    parts = request["messages"][0]["content"]
    [image] = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert image == "data:image/jpeg;base64," + base64.b64encode(TILE.read_bytes()).decode()
    assert request["stream_options"] == {"include_denoise": True, "include_usage": True}
    assert "diffusion" not in request  # nothing differs from the defaults


def test_tokens_end_in_the_final_text(page: Any) -> None:
    add_tile(page)
    answer = ask(page)

    expect(tokens(page).first).to_be_visible()
    shown = [text for text in tokens(page).all_inner_texts() if text != "end"]
    assert "".join(shown) == answer.replace(" ", "")  # cells show their token without its space
    name = tokens(page).first.get_attribute("aria-label")
    assert re.fullmatch(r".+, [\d.]+ percent, step \d+", name)
    expect(page.get_by_text("Mean confidence")).to_be_visible()
    expect(page.get_by_text("Forward passes")).to_be_visible()


def test_scrubbing_shows_what_was_committed_by_then(page: Any) -> None:
    add_tile(page)
    ask(page)
    bar = page.get_by_role("slider", name="Denoising step")
    last = int(bar.get_attribute("max"))
    at_the_end = tokens(page).count()

    bar.fill("0")
    expect(tokens(page)).to_have_count(0)
    expect(bar).to_have_attribute("aria-valuetext", re.compile(rf"after step 0 of {last}, 0 of"))
    bar.press("ArrowRight")
    expect(bar).to_have_attribute("aria-valuetext", re.compile(f"after step 1 of {last}"))
    for name in tokens(page).evaluate_all("all => all.map((e) => e.ariaLabel)"):
        assert name.endswith("step 1")
    step = page.get_by_test_id("step")
    expect(step).to_contain_text(re.compile("Step 1 wrote"))
    expect(step).to_contain_text("Text by then:")
    bar.fill(str(last))
    expect(step).to_contain_text("Text by then: " + page.get_by_test_id("answer").inner_text())

    page.get_by_role("button", name="Play").click()
    expect(bar).to_have_value(str(last))
    expect(tokens(page)).to_have_count(at_the_end)


def test_pointing_shows_alternatives_and_heat_map(page: Any) -> None:
    add_tile(page)
    ask(page)
    heat = page.get_by_test_id("heat").first
    assert painted(heat) == 0

    with page.expect_request(INSPECT) as caught:
        tokens(page).first.hover()
    expect(page.get_by_role("row").first).to_be_visible()
    expect(heat).to_have_class(re.compile("drawn"))
    assert painted(heat) > 0
    request = json.loads(caught.value.post_data)
    assert request["tokens"][request["position"]] is None

    page.mouse.move(0, 0)
    expect(page.get_by_role("row")).to_have_count(0)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    tokens(page).first.hover()
    expect(page.get_by_role("row").first).to_be_visible()
    assert asked == []  # known already

    page.get_by_label("Attention heat map").uncheck()
    tokens(page).first.hover()
    expect(heat).not_to_have_class(re.compile("drawn"))


def test_a_new_question_takes_the_old_map_away(page: Any) -> None:
    add_tile(page)
    ask(page)
    tokens(page).first.click()
    heat = page.get_by_test_id("heat").first
    expect(heat).to_have_class(re.compile("drawn"))
    expect(page.get_by_text(f"in the answer to “{QUESTION}”")).to_be_visible()
    ask(page, "Where is the vessel located?")
    expect(heat).not_to_have_class(re.compile("drawn"))
    expect(page.get_by_text(f"in the answer to “{QUESTION}”")).to_have_count(0)


def painted(canvas: Any) -> int:
    """Pixels of the heat map that are not transparent."""
    return int(
        canvas.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            ".filter((value, i) => i % 4 === 3 && value > 0).length"
        )
    )


def test_by_keyboard_alone(page: Any) -> None:
    with page.expect_file_chooser() as chooser:
        tab_to(page, page.get_by_role("button", name="Choose an image"))
        page.keyboard.press("Enter")
    chooser.value.set_files(TILE)
    tab_to(page, field(page))
    page.keyboard.type("How many")
    page.keyboard.press("Shift+Enter")
    expect(field(page)).to_have_value("How many\n")
    page.keyboard.press("Backspace")
    page.keyboard.type(" large cells are there?")
    request = sent(page, lambda: page.keyboard.press("Enter"))
    assert request["messages"][0]["content"][1]["text"] == QUESTION
    page.get_by_test_id("answer").wait_for()

    first = page.locator("button.cell").first
    tab_to(page, first, back=True)
    expect(page.get_by_role("row").first).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("button.cell").nth(1)).to_be_focused()
    page.keyboard.press("Home")
    expect(first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("row")).to_have_count(0)


def tab_to(page: Any, wanted: Any, back: bool = False) -> None:
    for _ in range(40):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if wanted.evaluate("e => e === document.activeElement"):
            return
    raise AssertionError("Tab does not reach it")


def test_settings_always_divide_and_only_differences_are_sent(page: Any) -> None:
    numbers = {
        name: page.get_by_label(f"{name}, number")
        for name in ("Answer length", "Block length", "Steps")
    }
    answer = page.get_by_role("slider", name="Answer length")

    def values() -> list[int]:
        return [int(number.input_value()) for number in numbers.values()]

    def check() -> None:
        gen_length, block_length, steps = values()
        assert gen_length % block_length == 0
        assert steps % (gen_length // block_length) == 0

    for stop in (11, 14, 3, 9):
        answer.fill(str(stop))
        check()
        for name in ("Block length", "Steps"):
            slider = page.get_by_role("slider", name=name)
            most = int(slider.get_attribute("max"))
            assert slider.is_enabled() == (most > 0)
            for place in range(0, most + 1, 5) if most else ():
                slider.fill(str(place))
                check()
    for name, typed in (("Answer length", "30"), ("Block length", "7"), ("Steps", "17")):
        numbers[name].fill(typed)
        numbers[name].press("Enter")
        check()

    add_tile(page)
    request = sent(page, lambda: ask(page))
    gen_length, block_length, steps = values()
    for name, value in request["diffusion"].items():
        assert {"gen_length": gen_length, "block_length": block_length, "steps": steps}[
            name
        ] == value
    page.get_by_role("button", name="Defaults").click()
    assert "diffusion" not in sent(page, lambda: ask(page))


def test_a_follow_up_is_a_dialogue_with_one_image(page: Any) -> None:
    add_tile(page)
    answer = ask(page)
    second = sent(page, lambda: ask(page, "What colour are the large cells?"))
    roles = [message["role"] for message in second["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert second["messages"][1]["content"].strip() == answer
    assert second["messages"][2]["content"] == "What colour are the large cells?"

    page.get_by_role("button", name="New conversation").click()
    assert len(sent(page, lambda: ask(page))["messages"]) == 1


def test_curl_sends_what_the_page_would(page: Any, tmp_path: Path) -> None:
    tile = tmp_path / "it's $HOME.jpg"
    tile.write_bytes(TILE.read_bytes())
    question = 'A "quote", a \\ and `date` or $HOME?\nSecond line'
    add_tile(page, tile)
    field(page).fill(question)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")

    fake = tmp_path / "curl"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >args\ncat >body\n')
    fake.chmod(0o755)
    world = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MEDV_API_KEY": "k1"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=world, check=True, timeout=20)

    arguments = (tmp_path / "args").read_text().splitlines()
    assert "Authorization: Bearer k1" in arguments
    assert any(line.endswith("/v1/chat/completions") for line in arguments)
    request = sent(page, lambda: page.get_by_role("button", name="Ask", exact=True).click())
    del request["stream"], request["stream_options"]
    assert json.loads((tmp_path / "body").read_text()) == request


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_no_width_scrolls_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})

    def overflow() -> int:
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(page.evaluate(wide))

    assert overflow() == 0
    add_tile(page)
    ask(page, "W" * 120)
    ask(page)
    tokens(page).first.click()
    expect(page.get_by_role("row").first).to_be_visible()
    assert overflow() == 0


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_screenshots_are_kept(page: Any, width: int) -> None:
    """In build/screenshots, for a person to look at."""
    page.set_viewport_size({"width": width, "height": 900})
    SHOTS.mkdir(parents=True, exist_ok=True)

    def keep(name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            file = SHOTS / f"{width}-{scheme}-{name}.png"
            page.screenshot(path=file, full_page=True)
            assert file.stat().st_size > 10_000

    keep("empty")
    page.get_by_role("button", name="Try an example tile").click()
    expect(page.get_by_alt_text("Your image")).to_be_visible()
    ask(page)
    tokens(page).first.hover()
    expect(page.get_by_role("row").first).to_be_visible()
    keep("answered")


def test_history_reopens_and_clears(page: Any) -> None:
    add_tile(page)
    answer = ask(page)
    page.get_by_label("Image file").set_input_files(TILE)
    expect(page.get_by_role("article")).to_have_count(0)
    ask(page, "Where is the vessel located?")

    history = page.get_by_role("region", name="History")
    entry = history.get_by_role("button", name=QUESTION)
    expect(entry.locator("img")).to_be_visible()
    entry.click()
    expect(page.get_by_role("heading", name=QUESTION)).to_be_visible()
    expect(page.get_by_test_id("answer")).to_have_text(answer)
    expect(page.get_by_alt_text("Your image")).to_be_visible()

    history.get_by_role("button", name="Clear all").click()
    expect(history.get_by_role("listitem")).to_have_count(0)
    expect(page.get_by_alt_text("Your image")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask about a biomedical image")).to_be_visible()
    assert page.evaluate("localStorage.length") == 0


def test_two_presets_stand_side_by_side(page: Any) -> None:
    presets = ["exact", "fast"]
    add_tile(page)
    asked: list[Any] = []
    page.on("request", lambda r: asked.append(r.post_data_json) if "chat" in r.url else None)
    page.get_by_label("exact and fast side by side").check()
    ask(page)
    expect(page.get_by_text(re.compile(r"forward passes: fast \d+, exact \d+"))).to_be_visible()
    for preset in presets:
        expect(page.get_by_role("heading", name=preset, exact=True)).to_be_visible()
    expect(page.get_by_test_id("answer")).to_have_count(2)
    assert [body.get("diffusion", {}).get("preset", "exact") for body in asked] == presets
    assert asked[0]["messages"] == asked[1]["messages"]


def test_an_export_holds_the_dialogue_and_names_no_file(page: Any, tmp_path: Path) -> None:
    tile = tmp_path / "Jane Doe 1961.jpg"
    tile.write_bytes(TILE.read_bytes())
    add_tile(page, tile)
    question = '<b>Is</b> *it* & "so"?'
    answer = ask(page, question)
    page.get_by_text("Export the dialogue").click()

    def export(name: str) -> str:
        with page.expect_download() as caught:
            page.get_by_role("button", name=name, exact=True).click()
        return Path(caught.value.path()).read_text()

    picture = "data:image/jpeg;base64," + base64.b64encode(TILE.read_bytes()).decode()
    for name in ("HTML", "Markdown", "JSON"):
        text = export(name)
        assert picture in text
        assert "Jane" not in text
        assert "Research use only" in text
    kept = json.loads(text)
    assert kept["turns"][0]["question"] == question
    assert kept["turns"][0]["answers"][0]["text"].strip() == answer
    assert kept["picture"]["sha256"] == hashlib.sha256(TILE.read_bytes()).hexdigest()
    page.get_by_label("with the picture").uncheck()
    html = export("HTML")
    assert "data:image" not in html
    assert "&lt;b&gt;Is&lt;/b&gt; *it* &amp; &quot;so&quot;?" in html
    assert not re.search("<script|<link|src=|href=", html)


def test_the_question_is_in_the_first_screen_of_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 700})
    expect(field(page)).to_be_in_viewport(ratio=1)
    add_tile(page)
    expect(field(page)).to_be_in_viewport(ratio=1)
    ask(page)
    expect(field(page)).to_be_in_viewport(ratio=1)
    expect(page.get_by_test_id("answer")).to_be_in_viewport(ratio=1)
    answer = page.get_by_test_id("answer").bounding_box()
    form = page.get_by_role("form", name="Ask a question").bounding_box()
    assert answer["y"] + answer["height"] < form["y"]  # not behind it


def test_it_says_what_it_is_not(page: Any) -> None:
    expect(page.get_by_role("contentinfo")).to_contain_text(
        "Research use only. Not a medical device. Confidence is not calibrated."
    )
    add_tile(page)
    ask(page)
    expect(page.get_by_text("not calibrated · research use only")).to_be_visible()


def test_theme_follows_the_system_until_it_is_chosen(page: Any) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(ground) == light
