"""Answers in a form over HTTP: choices, canvases and JSON, as clients ask for them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from medv_ray.data.canvas import Template
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.serving.guard import App
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import KEY, MODEL, ask, body_of, message, tiles

CANVAS = "Cells: {{cells:int=0..9}}. Vessel: {{vessel:choice=yes|no}}. {{note:tokens=0..4}}"


class Report(BaseModel):
    kind: Literal["tile", "smear"]
    cells: int = Field(ge=0, le=12)
    note: str | None = Field(max_length=12)
    colours: list[str]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def messages() -> Any:
    row = tiles()[0]
    return [message(row.question, row.image)]


def test_parse_gives_the_clients_own_model(client: OpenAI) -> None:
    got = client.chat.completions.parse(model=MODEL, messages=messages(), response_format=Report)
    (choice,) = got.choices
    assert isinstance(choice.message.parsed, Report)
    assert choice.message.parsed == Report.model_validate_json(choice.message.content or "")
    assert choice.finish_reason == "stop"


def test_json_comes_in_a_stream_as_it_comes_whole(client: OpenAI) -> None:
    whole = client.chat.completions.parse(model=MODEL, messages=messages(), response_format=Report)
    with client.chat.completions.stream(
        model=MODEL, messages=messages(), response_format=Report
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.choices[0].message.content


def test_json_object_with_a_schema(app: App) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}}
    fields = {"response_format": {"type": "json_object"}, "diffusion": {"json_schema": schema}}
    body = ask(app, body_of(**fields)).json()
    said = json.loads(body["choices"][0]["message"]["content"])
    assert said["a"] in (1, 2)
    assert said["b"] in (True, False)
    (blanks,) = [one["blanks"] for one in body["medv"]]
    assert [(one["name"], one["value"]) for one in blanks] == [("a", said["a"]), ("b", said["b"])]


def test_choices_with_their_probabilities(client: OpenAI, predictor: Predictor) -> None:
    row = tiles()[0]
    form = Template.choosing(["yes", "no", "perhaps not"])
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8)
    request = Request(row.question, (row.image,), sampler=sampler, template=form)
    [want] = predictor.answer([request])
    assert isinstance(want, Answer)
    got = client.chat.completions.create(
        model=MODEL,
        messages=messages(),
        logprobs=True,
        top_logprobs=2,
        extra_body={"diffusion": {"choices": ["yes", "no", "perhaps not"]}},
    )
    (choice,) = got.choices
    assert choice.message.content == want.text
    assert choice.logprobs is not None
    (one,) = choice.logprobs.content or []
    shares = want.blanks[0].probabilities
    assert one.token == want.text
    assert math.exp(one.logprob) == pytest.approx(shares[want.text])
    best = sorted(shares, key=lambda text: -shares[text])[:2]
    assert [alternative.token for alternative in one.top_logprobs] == best
    (ours,) = got.model_extra["medv"]  # type: ignore[index]
    assert ours["forward_passes"] == 1
    assert ours["blanks"][0]["probabilities"] == pytest.approx(shares, abs=1e-6)


def test_a_choice_within_a_form_counts_once_among_the_logprobs(app: App) -> None:
    canvas = "Vessel: {{a:choice=yes|no}}. Cells: {{b:choice=one|two|three|four}}."
    body = ask(app, body_of(diffusion={"canvas": canvas}, logprobs=True)).json()
    content = body["choices"][0]["logprobs"]["content"]
    [ours] = body["medv"]
    shares = [one["probabilities"][one["value"]] for one in ours["blanks"]]
    assert max(shares) < 0.99, shares
    want = sum(map(math.log, shares))
    assert sum(one["logprob"] for one in content) == pytest.approx(want, abs=1e-3)
    assert len([one for one in content if one["logprob"] < 0]) == 2
    assert "".join(one["token"] for one in content) == body["choices"][0]["message"]["content"]


def test_a_canvas_in_a_stream_shows_what_is_given(app: App) -> None:
    options = {"include_denoise": True}
    fields = {"diffusion": {"canvas": CANVAS}, "stream": True, "stream_options": options}
    events = ask(app, body_of(**fields)).events
    committed = [one for e in events if "denoise" in e for one in e["denoise"]["committed"]]
    given = [one for one in committed if one["pinned"]]
    assert "".join(one["token"] for one in given).startswith("Cells:")
    steps = [e["denoise"]["step"] for e in events if "denoise" in e]
    assert steps[0] == -1, "what is given stands before the first step"
    assert len({one["position"] for one in committed}) == len(committed)
    text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
    (last,) = [e for e in events if "medv" in e]
    found = {one["name"]: one["value"] for one in last["medv"]["blanks"]}
    note = found["note"]
    assert text == f"Cells: {found['cells']}. Vessel: {found['vessel']}. {note}"
    assert last["medv"]["left_out"] == []
    places = [e["denoise"].get("blanks") for e in events if "denoise" in e]
    assert [one["name"] for one in places[0]] == ["cells", "vessel", "note"]
    assert places[1:] == [None] * len(places[1:]), "said once"
    blank = [p for one in places[0] for p in range(one["start"], one["stop"])]
    assert sorted(blank) == sorted(one["position"] for one in committed if not one["pinned"])


def test_a_stream_tells_which_given_tokens_the_answer_leaves_out(app: App) -> None:
    item = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    schema = {"type": "array", "items": item, "maxItems": 3}
    options = {"include_denoise": True}
    fields = {"diffusion": {"json_schema": schema}, "stream": True, "stream_options": options}
    events = ask(app, body_of(**fields)).events
    text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
    (last,) = [e for e in events if "medv" in e]
    out = last["medv"]["left_out"]
    given = [one for one in events[1]["denoise"]["committed"] if one["pinned"]]
    stay = "".join(one["token"] for one in given if one["position"] not in out)
    assert stay.count('{"a":') == len(json.loads(text)) == len(last["medv"]["blanks"])
    assert len(out) > 0 or len(json.loads(text)) == 3


def test_a_position_of_a_canvas_can_be_looked_at(app: App) -> None:
    """The state that a stream has shown, its last position masked."""
    fields = {"diffusion": {"canvas": CANVAS}, "stream": True}
    events = ask(app, body_of(**fields, stream_options={"include_denoise": True})).events
    steps = [e["denoise"] for e in events if "denoise" in e]
    tokens: list[int | None] = [None] * steps[0]["length"]
    for one in steps[0]["committed"]:
        tokens[one["position"]] = one["token_id"]
    masked = tokens.index(None)
    body = {**body_of(), "diffusion": {"canvas": CANVAS}, "tokens": tokens, "position": masked}
    reply = ask(app, body, path="/v1/inspect")
    assert reply.status == 200, reply.body
    assert reply.json()["alternatives"]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
LONG = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "x-tokens": 600}}}


@pytest.mark.parametrize(
    ("fields", "param", "rule"),
    [
        ({"diffusion": {"canvas": 5}}, "diffusion.canvas", "a text is expected"),
        ({"diffusion": {"canvas": "none"}}, "diffusion.canvas", "has no blank"),
        ({"diffusion": {"canvas": "{{a:tokens=0}}"}}, "diffusion.canvas", "1 at least"),
        ({"diffusion": {"canvas": "{{a:tokens=600}}"}}, "diffusion.canvas", "the limit is 512"),
        (
            {"diffusion": {"canvas": "{{a:tokens=512}}"}},
            "diffusion.canvas",
            "takes 513 tokens",
        ),
        ({"response_format": LONG}, "response_format", "response_format: it takes 603 tokens"),
        ({"diffusion": {"canvas": "x" * 10**6}}, "diffusion.canvas", "bytes; the limit is"),
        ({"diffusion": {"choices": "yes"}}, "diffusion.choices", "a list of texts"),
        ({"diffusion": {"choices": []}}, "diffusion.choices", "two choices at least"),
        ({"diffusion": {"choices": ["a"] * 2}}, "diffusion.choices", "are equal"),
        ({"diffusion": {"choices": [str(i) for i in range(10**4)]}}, "diffusion.choices", "10000"),
        ({"diffusion": {"choices": ["a", "b"], "canvas": CANVAS}}, "diffusion.canvas", "one of"),
        ({"diffusion": {"choices": ["a", "b"]}, "stop": "x"}, "stop", "is not cut"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", "of choices alone"),
        (
            {"logprobs": True, "top_logprobs": 2, "diffusion": {"canvas": CANVAS}},
            "top_logprobs",
            "of choices alone",
        ),
        ({"logprobs": True, "top_logprobs": 2, "response_format": SCHEMA}, "top_logprobs", "alone"),
        (
            {"top_logprobs": 2, "diffusion": {"choices": ["a", "b"]}},
            "top_logprobs",
            "needs logprobs",
        ),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "response_format.json_schema: is missing.",
        ),
        (
            {"response_format": {**SCHEMA, "type": "text"}},
            "response_format.json_schema",
            "response_format.json_schema: belongs to the type json_schema.",
        ),
        ({"response_format": SCHEMA, "diffusion": {"canvas": CANVAS}}, "diffusion.canvas", "one"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "is missing",
        ),
        (
            {
                "response_format": {
                    **SCHEMA,
                    "json_schema": {"schema": {"type": "string", "pattern": "\n"}},
                }
            },
            "response_format",
            "#/pattern",
        ),
        ({"diffusion": {"json_schema": {"type": "\n"}}}, "diffusion.json_schema", "#/type"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    app: App, fields: dict[str, Any], param: str | None, rule: str
) -> None:
    for stream in (False, True):
        reply = ask(app, body_of(**fields, stream=stream))
        assert reply.status == 400, reply.body
        assert reply.error["param"] == param
        assert reply.error["code"] in ("E1309", "E1701")
        assert rule in reply.error["message"]


def test_probabilities_of_a_form_in_front_of_a_suffix(app: App) -> None:
    """The suffix is no part of a form's answer."""
    form = {"canvas": "A: {{a:choice=yes|no}}.", "suffix": " end"}
    body = ask(app, body_of(logprobs=True, diffusion=form)).json()
    [choice] = body["choices"]
    tokens = [one["token"] for one in choice["logprobs"]["content"]]
    assert "".join(tokens) == choice["message"]["content"]
    assert body["usage"]["completion_tokens"] == len(tokens)


@pytest.mark.parametrize("form", [{}, {"canvas": "A: {{a:tokens=2}}."}])
def test_choices_that_are_null_are_none(app: App, form: dict[str, str]) -> None:
    body = ask(app, body_of(logprobs=True, diffusion={**form, "choices": None})).json()
    [choice] = body["choices"]
    tokens = [one["token"] for one in choice["logprobs"]["content"]]
    assert "".join(tokens).strip() == choice["message"]["content"]
