"""What the page does when something goes wrong: keys, refusals, lost connections, bad files."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.browser.steps import (
    CHAT,
    INSPECT,
    QUESTION,
    add_tile,
    ask,
    expect,
    field,
    refuse,
    sent,
    tokens,
)

pytestmark = pytest.mark.integration


def test_a_failed_inspection_is_said_quietly(page: Any) -> None:
    add_tile(page)
    ask(page)
    refuse(page, INSPECT, 503, "E1999")
    tokens(page).first.click()
    expect(page.get_by_text("No alternatives: Refused with E1999.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text([""])


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


def test_an_empty_answer_is_explained_with_ways_on(page: Any) -> None:
    add_tile(page)
    ended = {"position": 0, "token": "<|eot_id|>", "token_id": 5, "confidence": 0.71}
    summary = {"confidence": 0.0, "forward_passes": 4, "seed": 0, "warnings": []}
    lines = [
        {"choices": [], "denoise": {"index": 0, "step": 0, "length": 4, "committed": [ended]}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "medv": summary}]},
    ]
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=body), times=1)
    assert ask(page) == "(no answer)"
    expect(page.get_by_text("ended its turn at the first position, with 71 %")).to_be_visible()
    with page.expect_request(INSPECT) as caught:
        page.get_by_role("button", name="See what else could stand first").click()
    assert json.loads(caught.value.post_data)["position"] == 0
    page.get_by_role("button", name="Reword the question").click()
    expect(field(page)).to_have_value(QUESTION)
    again = page.get_by_role("button", name=re.compile("Ask again with temperature"))
    request = sent(page, again.click)
    assert request["temperature"] > 0
    assert request["seed"] > 0


def test_stop_ends_the_request(page: Any) -> None:
    add_tile(page)
    page.route(CHAT, lambda route: None, times=1)  # never answered
    field(page).fill(QUESTION)
    with page.expect_request(CHAT):  # one that is stopped before it is sent does not fail
        page.keyboard.press("Enter")
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Stop").click()
    expect(field(page)).to_have_value(QUESTION)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_files_that_cannot_be_shown_or_sent(page: Any) -> None:
    files = page.get_by_label("Image file")
    files.set_input_files({"name": "scan.dcm", "mimeType": "", "buffer": b"\0" * 128 + b"DICM"})
    nobody = "Neither this browser nor the endpoint shows scan.dcm (132 bytes)"
    expect(page.get_by_text(nobody)).to_be_visible()
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
