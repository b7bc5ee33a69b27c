"""Answers in a form on the page: the box, its errors, blanks that fill, what is exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.steps import CHAT, INSPECT, QUESTION, add_tile, ask, expect, field, sent, tokens

pytestmark = pytest.mark.integration
CANVAS = "Cells: {{cells:int=0..9}}\nVessel: {{vessel:choice=yes|no}}\n{{note:tokens=1..6}}"
FORM = "Form of the answer"
REPORT = """Modality: {{modality:choice=CT|MR|X-ray|ultrasound|microscopy}}
Stain: {{stain:choice=H&E|IHC|none}}
Organ: {{organ:tokens=1..4}}, as far as a tile that was drawn by a program can be of one
Large cells: {{large_cells:int=0..20}}, colour {{colour_of_the_large_cells:choice=pink|brown}}

Vessel: {{vessel:choice=present|absent}}, located {{where:tokens=1..6}}
Finding: {{finding:tokens=2..8}}"""


def write(page: Any, kind: str, text: str) -> Any:
    """The box with `text` in it."""
    box = page.get_by_role("combobox", name=FORM)
    if not box.is_visible():
        page.get_by_text(FORM).click()
    box.select_option(label=kind)
    written = page.get_by_role("textbox", name=kind)
    written.fill(text)
    return written


def test_blanks_fill_between_what_is_given(page: Any) -> None:
    add_tile(page)
    expect(page.get_by_role("combobox", name=FORM)).to_be_hidden()  # folded away
    write(page, "Text with blanks", CANVAS)
    answers: list[str] = []
    request = sent(page, lambda: answers.append(ask(page)))
    assert request["diffusion"] == {"canvas": CANVAS}

    values = page.get_by_role("table").locator("tbody tr")
    expect(values).to_have_count(3)
    got = [row.locator("td.value") for row in values.all()]
    cells, vessel, note = [value.inner_text().split("\n")[0].strip() for value in got]
    assert answers == [f"Cells: {cells}\nVessel: {vessel}\n{note}"]
    shares = page.get_by_label("Probabilities of vessel").get_by_role("listitem")
    assert sorted(re.sub(r"[^a-z]", "", text) for text in shares.all_inner_texts()) == ["no", "yes"]
    row = page.get_by_role("group", name=re.compile("Tokens of the answer"))
    assert "".join(row.locator(".given").all_inner_texts()).startswith("Cells:")
    assert "eot" not in row.inner_text()
    said = "".join(tokens(page).all_inner_texts()).replace("␣", "")
    assert said == f"{cells}{vessel}{note}".replace(" ", "")
    unused = page.get_by_role("button", name=re.compile(r"\+\d+ unused"))
    if unused.count():  # an end token is no word
        unused.click()
        assert "".join(tokens(page).all_inner_texts()).replace("␣", "") == said

    page.get_by_role("slider", name="Denoising step").fill("0")
    expect(tokens(page)).to_have_count(0)
    expect(row.locator(".given").first).to_be_visible()
    expect(got[1]).to_contain_text("▢")
    masks = page.locator("button.cell.mask")
    with page.expect_request(INSPECT) as caught:
        masks.first.click()
    asked = json.loads(caught.value.post_data)
    assert asked["diffusion"] == {"canvas": CANVAS}
    assert asked["tokens"][asked["position"]] is None
    assert asked["tokens"][0] is not None  # what is given
    expect(page.get_by_text("What could stand here")).to_be_visible()

    page.get_by_text("Export the dialogue").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON", exact=True).click()
    (turn,) = json.loads(Path(download.value.path()).read_text())["turns"]
    assert turn["form"] == {"canvas": CANVAS}
    blanks = {one["name"]: str(one["value"]) for one in turn["answers"][0]["blanks"]}
    assert blanks == {"cells": cells, "vessel": vessel, "note": note}
    for name in ("HTML", "Markdown"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        text = Path(download.value.path()).read_text().replace("\\", "")
        assert "{{cells:int=0..9}}" in text
        assert f"vessel: {vessel} (confidence" in text


def test_what_is_wrong_with_a_form_stands_beside_it_and_nothing_is_lost(page: Any) -> None:
    add_tile(page)
    box = write(page, "Choices", "yes")
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    problem = page.locator("details").get_by_role("alert")
    expect(problem).to_have_text(re.compile("E1309.+two choices at least"))
    expect(box).to_have_value("yes")
    expect(field(page)).to_have_value(QUESTION)
    expect(page.get_by_role("article")).to_have_count(0)
    box.fill("yes\n\nno ")
    expect(problem).to_have_count(0)
    request = sent(page, lambda: ask(page))
    assert request["diffusion"] == {"choices": ["yes", "no"]}
    expect(page.get_by_label("Probabilities of answer").get_by_role("listitem")).to_have_count(2)

    box = write(page, "Text with blanks", "{{a:tokens=600}}")
    field(page).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(problem).to_have_text(re.compile("E1309.+the limit is 512"))
    box = write(page, "JSON schema", "{")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(problem).to_contain_text("This is no JSON")
    expect(box).to_have_value("{")
    expect(page.get_by_role("button", name="A list")).to_have_count(0)  # written text stays
    box.fill("")
    page.get_by_role("button", name="A list").click()
    page.get_by_role("button", name="Findings").click()
    page.get_by_role("button", name="A list").click()
    assert isinstance(json.loads(ask(page))["colours"], list)
    write(page, "Choices", "a\nb")
    page.get_by_role("combobox", name=FORM).select_option(label="Free text")
    assert "diffusion" not in sent(page, lambda: ask(page))


def test_a_report_of_eight_blanks_stays_within_every_window(page: Any) -> None:
    add_tile(page)
    write(page, "Text with blanks", REPORT)
    answer = ask(page)
    values = page.get_by_role("table").locator("tbody tr")
    expect(values).to_have_count(8)
    card, row = page.get_by_role("article"), page.get_by_role("group", name=re.compile("Tokens of"))
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for width in (390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(wide) == 0
        right = card.bounding_box()["x"] + card.bounding_box()["width"]
        for part in [*values.locator("td").all(), *row.locator(".given, .cell").all()]:
            box = part.bounding_box()
            assert box["x"] + box["width"] <= right
    # line by line, as it was written
    assert row.inner_text().count("\n\n") == answer.count("\n\n") == 1

    page.get_by_role("button", name=re.compile(r"\+\d+ unused")).click()
    page.locator("button.cell.tail").first.click()
    expect(page.locator(".details .token")).to_have_text("end of the blank")


def test_a_form_that_is_being_filled_shows_how_far_it_is(page: Any) -> None:
    add_tile(page)
    write(page, "Text with blanks", REPORT)
    field(page).fill(QUESTION)
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    rate = {"offline": False, "latency": 0, "uploadThroughput": -1}
    slow.send("Network.emulateNetworkConditions", {**rate, "downloadThroughput": 2500})
    page.get_by_role("button", name="Ask", exact=True).click()
    tokens(page).first.wait_for()
    bar = page.get_by_role("slider", name="Denoising step")
    most = bar.get_attribute("max")
    # nobody knows how many steps a form takes: its tokens are counted
    expect(page.locator("output").filter(has_text="tokens")).to_have_text(
        re.compile(rf"step \d+\s*\d+ of {most} tokens")
    )
    expect(page.locator("p.making")).to_have_count(0)
    slow.send("Network.emulateNetworkConditions", {**rate, "downloadThroughput": -1})
    page.get_by_test_id("answer").wait_for()
    expect(page.locator("output").filter(has_text="tokens")).to_contain_text(
        f"{most} of {most} tokens"
    )


@pytest.mark.parametrize(("param", "beside"), [("diffusion.steps", 0), ("diffusion.canvas", 1)])
def test_only_a_fault_of_the_form_stands_beside_it(page: Any, param: str, beside: int) -> None:
    add_tile(page)
    write(page, "Text with blanks", CANVAS)
    field(page).fill(QUESTION)
    error = {"message": f"{param}: is odd.", "type": "error", "param": param, "code": "E1701"}
    body = json.dumps({"error": error})
    page.route(CHAT, lambda route: route.fulfill(status=400, body=body), times=1)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="is odd")).to_have_count(1)
    expect(page.locator("details").get_by_role("alert")).to_have_count(beside)
