"""What a request may say, and that a refusal names the field and nothing that stood in it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from medv_ray.serving.guard import App
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest, ChatRequest, parse
from medv_ray.serving.translate import sampler_of
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import MODEL, ask, encoded, message, tiles, url_of

CANARY = "Erika-Mustermann-4711"
TEXT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello?"}]}
PICTURE = url_of(tiles()[0].image)


def image_part(**fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": PICTURE, **fields}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"tools": []}, "tools"),
    ({"functions": None}, "functions"),
    ({"max_token": 3}, "max_token"),
    ({"logit_bias": {}}, "logit_bias"),
    ({"messages": [{"role": "user", "content": "?", "tool_calls": []}]}, "messages.0.tool_calls"),
    (user({"type": "text", "text": "?", "x": 1}), "messages.0.content.0.x"),
    (user(image_part(size=3)), "messages.0.content.0.image_url.size"),
    (user({**image_part(), "name": "a"}), "messages.0.content.0.name"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
    ({"a\nb\u202e" + "c" * 200: 1}, "a?b?" + "c" * 76),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": [{"role": "tool", "content": "?"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    (user({"type": "input_audio"}), "messages.0.content.0"),
    (user({"type": "text"}), "messages.0.content.0.text"),
    (user({"text": "?"}), "messages.0.content.0"),
    (user({"type": "image_url", "image_url": PICTURE}), "messages.0.content.0.image_url"),
    (user(image_part(detail="best")), "messages.0.content.0.image_url.detail"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 513}, "max_tokens"),
    ({"max_completion_tokens": 513}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 0.5, "diffusion": {"temperature": 0.6}}, "temperature"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop.1"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"top_p": 0.5}, "top_p"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"store": True}, "store"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"diffusion": []}, "diffusion"),
    ({"diffusion": {"step": 3}}, "diffusion"),
    ({"diffusion": {"steps": "many"}}, "diffusion"),
    ({"diffusion": {"preset": "slow"}}, "diffusion"),
    ({"diffusion": {"stop": [""]}}, "diffusion"),
    ({"diffusion": {"stop": ["a"] * 17}}, "diffusion.stop"),
    ({"diffusion": {"forbidden": ["<|eot_id|>"] * 17}}, "diffusion.forbidden"),
    ({"diffusion": {"forbidden": ["cell"]}}, "diffusion"),
    ({"diffusion": {"suffix": "x" * 4097}}, "diffusion"),
    ({"diffusion": {"suffix": "\0"}}, "diffusion"),
    ({"diffusion": {"gen_length": 513, "block_length": 513, "steps": 1}}, "diffusion.gen_length"),
    ({"diffusion": {"steps": 513}}, "diffusion.steps"),
    ({"diffusion": {"temperature": 1e300}}, "diffusion.temperature"),
    ({"diffusion": {"cfg_scale": 1e300}}, "diffusion.cfg_scale"),
    ({"max_tokens": 8, "diffusion": {"steps": 8}}, "max_tokens"),
]


def refused(app: App, body: dict[str, Any] | str) -> dict[str, Any]:
    reply = ask(app, body)
    assert 400 <= reply.status < 500, reply
    return reply.error


@pytest.mark.parametrize(("fields", "param"), UNKNOWN)
def test_unknown_fields_are_refused_by_their_names(
    app: App, fields: dict[str, Any], param: str
) -> None:
    told = refused(app, {**TEXT, **fields})
    assert (told["code"], told["param"]) == ("E1701", param)
    assert told["message"] == f"{param}: there is no such field."


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_wrong_values_are_refused_by_the_fields_name(
    app: App, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        told = refused(app, {**TEXT, "stream": stream, **fields})
        assert told["code"] in ("E1701", "E1001", "E1304")
        assert told["param"] == param
        assert param.partition(".")[0] in told["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"stop": ""}, "empty"),
        ({"stop": ["a", ""]}, "empty"),
    ],
)
def test_fields_that_do_not_fit_each_other(app: App, fields: dict[str, Any], words: str) -> None:
    told = refused(app, {**TEXT, **fields})
    assert told["code"] == "E1701"
    assert words in told["message"]


NEUTRAL: list[dict[str, Any]] = [
    {"top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "top_logprobs": 0},
    {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "store": False},
    {"user": "u", "metadata": {"a": "b"}, "response_format": {"type": "text"}},
    {"stop": None, "seed": None, "max_tokens": None, "temperature": None, "stop": []},  # noqa: F601
    {"temperature": 0, "n": 1, "stream": False},
    {"temperature": 0.5, "diffusion": {"temperature": 0.5}},
    {"stream": True, "stream_options": {"include_obfuscation": True}},
    {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "y"}]},
    {"messages": [{"role": "user", "content": "y", "name": "n"}]},
    user({"type": "text", "text": "a"}, image_part(detail="low"), {"type": "text", "text": "b"}),
]


@pytest.mark.parametrize("fields", NEUTRAL)
def test_fields_that_change_nothing_are_taken(app: App, fields: dict[str, Any]) -> None:
    assert ask(app, {**TEXT, **fields}).status == 200


def turn(role: str, *images: bytes) -> dict[str, Any]:
    return message("hello?", *images, role=role)


ROW = tiles()[0].image
DIALOGUES: list[tuple[list[dict[str, Any]], str]] = [
    ([turn("assistant")], "messages.0.role"),
    ([turn("user"), turn("user")], "messages.1.role"),
    ([turn("user"), turn("assistant")], "messages"),
    ([turn("system")], "messages"),
    ([turn("system"), turn("system"), turn("user")], "messages.1.role"),
    ([turn("user"), turn("system"), turn("user")], "messages.1.role"),
    ([turn("system"), turn("assistant"), turn("user")], "messages.1.role"),
    ([turn("user"), turn("assistant"), turn("assistant")], "messages.2.role"),
    ([turn("system", ROW), turn("user")], "messages.0.content"),
    ([turn("developer", ROW), turn("user", ROW)], "messages.0.content"),
    ([turn("user", ROW), turn("assistant", ROW), turn("user")], "messages.1.content"),
    ([turn("user"), turn("assistant"), turn("user", ROW)], "messages.2.content"),
    ([turn("user", *[ROW] * 5)], "messages.0.images"),
    ([turn("user"), turn("assistant")] * 32 + [turn("user")], "messages"),
]


@pytest.mark.parametrize(("messages", "param"), DIALOGUES)
def test_dialogues_out_of_order(app: App, messages: list[dict[str, Any]], param: str) -> None:
    told = refused(app, {"model": MODEL, "messages": messages})
    assert (told["code"], told["param"]) == ("E1701", param)


def test_text_is_bounded_before_it_is_made_into_tokens(app: App) -> None:
    half = "x" * 2**15
    for messages in (
        [{"role": "system", "content": half * 3}, {"role": "user", "content": "y"}],
        [
            {"role": "user", "content": "y"},
            {"role": "assistant", "content": half * 3},
            {"role": "user", "content": "y"},
        ],
        [{"role": "user", "content": [{"type": "text", "text": half}] * 3}],
    ):
        told = refused(app, {"model": MODEL, "messages": messages})
        assert (told["code"], told["param"]) == ("E1701", "messages")


# what an error may not repeat: anything that stood in the request


def canaries() -> list[dict[str, Any]]:
    """Requests that are refused, or fail later, with the canary in every place for text."""
    long = CANARY * 10
    places: list[dict[str, Any]] = [
        {"model": CANARY},
        {"messages": CANARY},
        {"messages": [{"role": CANARY, "content": CANARY}]},
        {"messages": [{"role": "user", "content": {"text": CANARY}}]},
        {"messages": [{"role": "user", "content": CANARY, "name": [CANARY]}]},
        {"messages": [{"role": "user", "content": CANARY}] * 2},
        {"messages": [{"role": "user", "content": CANARY + "\0"}]},
        {"messages": [{"role": "user", "content": CANARY * 2000}]},
        {"messages": [{"role": "user", "content": CANARY * 100}]},  # too many tokens
        {"messages": [{"role": "user", "content": CANARY * 9000}]},
        {"messages": [{"role": "system", "content": CANARY + "\0"}, turn("user")]},
        user({"type": CANARY, "text": CANARY}),
        user({"type": "text", "text": [CANARY]}),
        user(image_part(url=CANARY)),
        user(image_part(url=f"https://{CANARY}/a.png")),
        user(image_part(url=f"file:///{CANARY}")),
        user(image_part(url=f"data:image/png;base64,{CANARY}")),
        user(image_part(url=f"data:{CANARY}")),
        user(image_part(url=url_of(CANARY.encode()))),
        user(image_part(url=url_of(b"\x89PNG\r\n\x1a\n" + long.encode()))),
        user(image_part(detail=CANARY)),
    ]
    for name in (
        *("stream", "stream_options", "max_tokens", "temperature", "seed", "n", "logprobs"),
        *("top_logprobs", "top_p", "frequency_penalty", "response_format", "metadata", "store"),
        "diffusion",
    ):
        places.append({name: CANARY})
    places += [
        {"stop": [CANARY, 3]},
        {"stop": {CANARY: 1}},
        {"user": [CANARY]},
        {"metadata": {CANARY: 3}},
        {"response_format": {"type": CANARY}},
        {"stream_options": {"include_usage": CANARY}, "stream": True},
    ]
    for name in SamplerSettings.model_fields:
        for value in (CANARY, [CANARY], {CANARY: CANARY}, [[CANARY]]):
            places.append({"diffusion": {name: value}, "max_tokens": None})
    places.append({"diffusion": {"suffix": CANARY + "\0"}})
    places.append({"diffusion": {"suffix": CANARY * 1000}})
    places.append({"diffusion": {"stop": CANARY}})
    return [{**TEXT, **place} for place in places]


@pytest.mark.parametrize("stream", [False, True])
def test_no_error_repeats_what_was_sent(
    app: App, stream: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    statuses = []
    with caplog.at_level(logging.DEBUG):
        for body in canaries():
            given = {"stream": stream, **body}
            reply = ask(app, given)
            statuses.append(reply.status)
            if reply.status != 200:  # an answer may well repeat it
                assert 400 <= reply.status < 500
                assert CANARY not in reply.body.decode()
                assert CANARY[:12] not in reply.body.decode(), body
                assert len(reply.body) < 1000
                _ = reply.error
            assert CANARY[:12] not in str(reply.headers)
        broken = encoded(TEXT)[:-1] + f',"user":"{CANARY}'.encode()
        assert CANARY not in ask(app, broken).body.decode()
    assert statuses.count(200) < 8
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capfd.readouterr())


# lengths

LIMITS = LimitSettings()
BASES = [
    (8, 8, 8), (64, 64, 64), (64, 64, 16), (64, 16, 32), (256, 32, 256), (256, 32, 64), (24, 8, 3),
    (512, 512, 512), (96, 32, 3),
]  # fmt: skip


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({**TEXT, **fields}).encode())


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(BASES),
    st.integers(1, 512),
    st.sampled_from(["exact", "fast", "turbo", None]),
)
def test_max_tokens_gives_whole_blocks_and_no_token_more(
    base: tuple[int, int, int], wanted: int, preset: str | None
) -> None:
    gen_length, block_length, steps = base
    ours = SamplerSettings(gen_length=gen_length, block_length=block_length, steps=steps)
    extra: dict[str, Any] = {} if preset is None else {"diffusion": {"preset": preset}}
    got = sampler_of(ours, chat(max_tokens=wanted, **extra), LIMITS)
    assert 0 < got.gen_length <= wanted
    assert wanted - got.gen_length < got.block_length
    assert got.gen_length % got.block_length == 0
    assert got.steps % (got.gen_length // got.block_length) == 0
    assert got.steps <= LIMITS.max_steps
    if wanted == gen_length:
        assert (got.block_length, got.steps) == (block_length, steps)
    # as many tokens to a step as before, as near as whole steps come
    per_step = gen_length / steps
    steps_a_block = got.steps / (got.gen_length // got.block_length)
    assert abs(steps_a_block - got.block_length / per_step) <= 1
    assert got.preset == (preset or "exact")


@given(st.dictionaries(st.sampled_from(["gen_length", "block_length", "steps"]), st.integers()))
def test_lengths_are_whole_blocks_inside_the_limits_or_refused(lengths: dict[str, int]) -> None:
    base = SamplerSettings(gen_length=64, block_length=32, steps=64)
    try:
        got = sampler_of(base, chat(diffusion=lengths), LIMITS)
    except BadRequest as error:
        event(error.code)
        return
    assert got.gen_length % got.block_length == 0
    assert 0 < got.gen_length <= 512
    assert 0 < got.steps <= 512


def test_a_preset_fills_what_it_governs(app: App) -> None:
    base = SamplerSettings(preset="turbo", gen_length=8, block_length=8, steps=8)
    got = sampler_of(base, chat(diffusion={"preset": "fast"}), LIMITS)
    assert (got.preset, got.rule, got.threshold, got.cache) == ("fast", "threshold", 0.9, "none")
    got = sampler_of(base, chat(diffusion={"preset": "exact"}, temperature=0.5), LIMITS)
    assert (got.preset, got.rule, got.temperature) == ("exact", "schedule", 0.5)
    got = sampler_of(base, chat(diffusion={"threshold": 0.8}), LIMITS)
    assert (got.preset, got.threshold, got.cache) == ("custom", 0.8, "dual")
    assert sampler_of(base, chat(), LIMITS) == base


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.text(max_size=9) | st.sampled_from([*ChatRequest.model_fields]),
                        inner, max_size=4)))  # fmt: skip
def test_any_json_is_a_request_or_refused(value: Any) -> None:
    try:
        parse(ChatRequest, json.dumps(value).encode())
    except BadRequest as error:
        event(error.code)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(ChatRequest, body)
