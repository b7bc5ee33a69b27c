"""The page in a real browser. Nothing here depends on what the model answers."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = api.expect
pytestmark = pytest.mark.integration

TILE = Path(__file__).parents[2] / "web" / "src" / "example.jpg"
QUESTION = "How many large cells are there?"
CHAT = "**/v1/chat/completions"
INSPECT = "**/v1/inspect"
FILE_EVENT = """(element, [kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], `${kind}.jpg`, { type: "image/jpeg" }));
  const told = { bubbles: true, cancelable: true };
  element.dispatchEvent(kind === "paste"
    ? new ClipboardEvent(kind, { ...told, clipboardData: data })
    : new DragEvent(kind, { ...told, dataTransfer: data }));
}"""


def add_tile(page: Any, tile: Path = TILE) -> None:
    page.get_by_label("Image file").set_input_files(tile)
    expect(page.get_by_alt_text("Your image")).to_be_visible()


def ask(page: Any, question: str = QUESTION) -> str:
    """Asks, waits for the answer, and gives its text."""
    before = page.get_by_test_id("answer").count()
    field(page).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.get_by_test_id("answer").nth(before)
    answer.wait_for()
    return str(answer.inner_text()).strip()


def field(page: Any) -> Any:
    return page.get_by_role("textbox", name=re.compile("question", re.IGNORECASE))


def tokens(page: Any) -> Any:
    return page.locator("button.cell.token")


def sent(page: Any, act: Callable[[], Any]) -> dict[str, Any]:
    with page.expect_request(CHAT) as caught:
        act()
    return dict(json.loads(caught.value.post_data))


def refuse(page: Any, address: str, status: int, code: str, **headers: str) -> None:
    error = {"message": f"Refused with {code}.", "type": "error", "param": None, "code": code}
    body = json.dumps({"error": error})
    page.route(
        address, lambda route: route.fulfill(status=status, body=body, headers=headers), times=1
    )


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


def painted(canvas: Any) -> int:
    """Pixels of the heat map that are not transparent."""
    return int(
        canvas.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            ".filter((value, i) => i % 4 === 3 && value > 0).length"
        )
    )


def test_a_failed_inspection_is_said_quietly(page: Any) -> None:
    add_tile(page)
    ask(page)
    refuse(page, INSPECT, 503, "E1999")
    tokens(page).first.click()
    expect(page.get_by_text("No alternatives: Refused with E1999.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text([""])


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


def test_the_key_is_asked_for_and_kept_for_the_tab(page: Any) -> None:
    keys: list[str | None] = []

    def guard(route: Any) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer right":
            route.fallback()
        else:
            error = {"message": "Wrong key.", "type": "error", "param": None, "code": "E1702"}
            route.fulfill(status=401, body=json.dumps({"error": error}))

    page.route(CHAT, guard)
    add_tile(page)
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="API key")
    for key in ("wrong", "right"):
        dialog.get_by_label("API key", exact=True).fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog.get_by_role("alert")).to_be_visible()
    page.get_by_test_id("answer").wait_for()
    assert keys == [None, "Bearer wrong", "Bearer right"]
    kept = page.evaluate("[JSON.stringify(localStorage), sessionStorage.medv_api_key]")
    assert kept == ["{}", "right"]
    page.get_by_role("button", name="Forget API key").click()
    assert page.evaluate("sessionStorage.medv_api_key ?? null") is None


def test_refusing_to_give_a_key_is_no_dead_end(page: Any) -> None:
    refuse(page, CHAT, 401, "E1702")
    add_tile(page)
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("E1702")
    page.get_by_role("button", name="Retry").click()
    page.get_by_test_id("answer").wait_for()


def test_an_error_stands_by_the_question_which_is_not_lost(page: Any) -> None:
    add_tile(page)
    refuse(page, CHAT, 400, "E1203")
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(re.compile(r"E1203\s+Refused with E1203\."))
    expect(field(page)).to_have_value(QUESTION)
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    ask(page)
    expect(page.get_by_role("alert")).to_have_text("")


def test_a_busy_endpoint_is_asked_again_after_retry_after(page: Any) -> None:
    add_tile(page)
    refuse(page, CHAT, 429, "E1704", **{"Retry-After": "1"})
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Asks again in 1 s.")).to_be_visible()
    expect(page.get_by_role("button", name="Retry now")).to_be_visible()
    page.get_by_test_id("answer").wait_for()


def test_network_loss_is_said_and_retry_helps(page: Any) -> None:
    add_tile(page)
    page.route(CHAT, lambda route: route.abort(), times=1)
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Retry").click()
    page.get_by_test_id("answer").wait_for()


def test_an_error_in_the_stream_keeps_what_was_there(page: Any) -> None:
    add_tile(page)
    committed = [{"position": 1, "token": " cells", "token_id": 5, "confidence": 0.5}]
    event = {"index": 0, "step": 0, "length": 4, "committed": committed}
    lines = [
        {"choices": [], "denoise": event},
        {"error": {"message": "The replica was lost.", "code": "E1305"}},
    ]
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
    page.route(CHAT, lambda route: route.fulfill(body=body), times=1)
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The replica was lost.")
    expect(tokens(page)).to_have_text(["cells"])
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Mean confidence")).to_be_visible()
    expect(page.get_by_role("article")).to_have_count(1)


def test_stop_ends_the_request(page: Any) -> None:
    add_tile(page)
    page.route(CHAT, lambda route: None, times=1)  # never answered
    field(page).fill(QUESTION)
    with page.expect_event("requestfailed"):
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").click()
    expect(field(page)).to_have_value(QUESTION)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


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


def test_files_that_cannot_be_shown_or_sent(page: Any) -> None:
    files = page.get_by_label("Image file")
    files.set_input_files({"name": "scan.dcm", "mimeType": "", "buffer": b"\0" * 128 + b"DICM"})
    expect(page.get_by_text("This browser cannot show scan.dcm (132 bytes)")).to_be_visible()
    field(page).fill(QUESTION)
    page.route(CHAT, lambda route: route.abort(), times=1)
    request = sent(page, lambda: page.keyboard.press("Enter"))
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:application/dicom;base64,AAAA")

    files.set_input_files({"name": "none.png", "mimeType": "image/png", "buffer": b""})
    expect(page.get_by_text("none.png is empty.")).to_be_visible()
    # In the page: 20 MB need not travel through playwright.
    page.get_by_label("Image file").evaluate(
        """(input) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(1 << 28)], "big.tif"));
          input.files = data.files;
          input.dispatchEvent(new Event("change", { bubbles: true }));
        }"""
    )
    expect(
        page.get_by_text(re.compile(r"big\.tif has 268\.4 MB; this endpoint takes"))
    ).to_be_visible()


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


def test_it_says_what_it_is_not(page: Any) -> None:
    expect(page.get_by_role("contentinfo")).to_contain_text(
        "Research use only. Not a medical device. Confidence is not calibrated."
    )


def test_theme_follows_the_system_until_it_is_chosen(page: Any) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(ground) == light
