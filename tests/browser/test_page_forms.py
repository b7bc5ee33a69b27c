"""Answers in a form on the page: the box, its errors, blanks that fill, what is exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.steps import INSPECT, QUESTION, add_tile, ask, expect, field, sent, tokens

pytestmark = pytest.mark.integration
CANVAS = "Cells: {{cells:int=0..9}}\nVessel: {{vessel:choice=yes|no}}\n{{note:tokens=1..6}}"
FORM = "Form of the answer"


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
    expect(problem).to_have_text(re.compile("E1701.+the limit is 512"))
    box = write(page, "JSON schema", "{")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(problem).to_contain_text("This is no JSON")
    expect(box).to_have_value("{")
    page.get_by_role("button", name="A list").click()
    assert isinstance(json.loads(ask(page))["colours"], list)
    write(page, "Choices", "a\nb")
    page.get_by_role("combobox", name=FORM).select_option(label="Free text")
    assert "diffusion" not in sent(page, lambda: ask(page))
