"""What a request may say, and that a refusal names the field and nothing that stood in it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medv_ray.serving.guard import App
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest, ChatRequest, InspectRequest, Wire, parse
from medv_ray.serving.responses import ResponsesRequest
from medv_ray.serving.translate import sampler_of
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import MODEL, ask, encoded, tiles, url_of

CANARY = "Erika-Mustermann-4711"
TEXT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello?"}]}
PICTURE = url_of(tiles()[0].image)


def image_part(**fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": PICTURE, **fields}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"max_token": 3}, "max_token"),
    ({"guided": None}, "guided"),
    ({"messages": [{"role": "user", "content": "?", "tools": []}]}, "messages.0.tools"),
    (user({"type": "text", "text": "?", "x": 1}), "messages.0.content.0.x"),
    (user(image_part(size=3)), "messages.0.content.0.image_url.size"),
    (user({**image_part(), "name": "a"}), "messages.0.content.0.name"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    # a name of `neutral`, where it stands for nothing
    ({"stream": True, "stream_options": {"store": False}}, "stream_options.store"),
    (user(image_part(cache_control=None)), "messages.0.content.0.image_url.cache_control"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
    ({"a\nb\u202e" + "c" * 200: 1}, "a?b?" + "c" * 76),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": [{"role": "tool", "content": "?"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
    (user(image_part()), "messages.0.content"),
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
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 0.5, "diffusion": {"temperature": 0.6}}, "temperature"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop.1"),
    ({"logprobs": 1}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
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


def refused(app: App, body: dict[str, Any] | str | bytes) -> dict[str, Any]:
    reply = ask(app, body)
    assert 400 <= reply.status < 500, reply
    return reply.error


@pytest.mark.parametrize(("fields", "param"), UNKNOWN)
def test_unknown_fields_are_refused_by_their_names(
    app: App, fields: dict[str, Any], param: str
) -> None:
    said = refused(app, {**TEXT, **fields})
    assert (said["code"], said["param"]) == ("E1701", param)
    assert said["message"] == f"{param}: there is no such field."


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_wrong_values_are_refused_by_the_fields_name(
    app: App, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        said = refused(app, {**TEXT, "stream": stream, **fields})
        assert said["code"] in ("E1701", "E1001", "E1301", "E1304")
        assert said["param"] == param
        assert param.partition(".")[0] in said["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"stream_options": {"include_denoise": True}, "stream": None}, "stream=true"),
        ({"stop": ""}, "empty"),
        ({"stop": ["a", ""]}, "empty"),
    ],
)
def test_fields_that_do_not_fit_each_other(app: App, fields: dict[str, Any], words: str) -> None:
    said = refused(app, {**TEXT, **fields})
    assert said["code"] == "E1701"
    assert words in said["message"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatRequest, {"messages": [{}] * 4000}),
        (ChatRequest, {"messages": [{"role": "user", "content": ["x"] * 60000}]}),
        (InspectRequest, {**TEXT, "tokens": ["x"] * 60000, "position": 0}),
        (ResponsesRequest, {"input": [{}] * 4000}),
        (ResponsesRequest, {"input": [{"role": "user", "content": ["x"] * 60000}]}),
    ],
)
def test_a_list_is_looked_at_up_to_its_first_error(kind: type[Wire], fields: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": MODEL, **fields})
    assert caught.value.error_count() < 5


NEUTRAL: list[dict[str, Any]] = [
    {"safety_identifier": "a", "prompt_cache_key": "b"},
    {"stream_options": {"include_usage": False, "include_obfuscation": True}},
    {"stream_options": {}, "stream": False},
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


def test_of_our_own_fields_null_is_absent(app: App) -> None:
    optional = [name for name in ChatRequest.model_fields if name not in ("model", "messages")]
    assert ask(app, {**TEXT, **dict.fromkeys(optional)}).status == 200
    assert ask(app, {**TEXT, "stream": True, "stream_options": dict.fromkeys(USAGE)}).status == 200


USAGE = ("include_usage", "include_denoise", "include_obfuscation")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expecting value in line 1, column 1"),
        (b'{"model":\n"x', "unterminated string in line 2, column 1"),
        (b'{"model": 1,}', "line 1, column"),
        (b"[" * 50_000 + b"]" * 50_000, "nested too deeply"),
        (b'{"seed":' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"user":"\\ud83d"}', "half a surrogate pair"),
        (b'{"metadata":{"\\ude00":"x"}}', "half a surrogate pair"),
        (b'{"temperature":NaN}', "NaN"),
        (b'{"temperature":-Infinity}', "-Infinity"),
        ('{"user":"é"}'.encode("latin-1"), "no UTF-8 at byte 9"),
        ("{}".encode("utf-16"), "no UTF-8 at byte 0"),
        (b'{"n":1,"n":1}', "twice"),
        (b"[]", "an object is expected"),
    ],
)
def test_json_errors_say_what_is_wrong(app: App, body: bytes, words: str) -> None:
    said = refused(app, body)
    assert said["code"] == "E1701"
    assert words in said["message"]


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud83d"', '"\\u00e9"'])
def test_whole_pairs_and_a_byte_order_mark_are_taken(app: App, text: str) -> None:
    body = encoded(TEXT)[:-1] + f',"user":{text}}}'.encode()
    assert ask(app, b"\xef\xbb\xbf" + body).status == 200


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
        said = refused(app, {"model": MODEL, "messages": messages})
        assert (said["code"], said["param"]) == ("E1701", "messages")


# what an error may not repeat: anything that stood in the request


def canaries() -> list[dict[str, Any]]:
    """Requests that are refused, or fail later, with the canary in every place for text."""
    long = CANARY * 10
    spots: list[dict[str, Any]] = [
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
        {
            "messages": [
                {"role": "system", "content": CANARY + "\0"},
                {"role": "user", "content": "hello?"},
            ]
        },
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
        spots.append({name: CANARY})
    spots += [
        {"stop": [CANARY, 3]},
        {"stop": {CANARY: 1}},
        {"user": [CANARY]},
        {"metadata": {CANARY: 3}},
        {"response_format": {"type": CANARY}},
        {"stream_options": {"include_usage": CANARY}, "stream": True},
    ]
    for name in SamplerSettings.model_fields:
        for value in (CANARY, [CANARY], {CANARY: CANARY}, [[CANARY]]):
            spots.append({"diffusion": {name: value}, "max_tokens": None})
    spots.append({"diffusion": {"suffix": CANARY + "\0"}})
    spots.append({"diffusion": {"suffix": CANARY * 1000}})
    spots.append({"diffusion": {"stop": CANARY}})
    return [{**TEXT, **spot} for spot in spots]


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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.text(max_size=9) | st.sampled_from([*ChatRequest.model_fields]),
                        inner, max_size=4)))  # fmt: skip
def test_any_json_is_a_request_or_refused(value: Any) -> None:
    try:
        parse(ChatRequest, json.dumps(value).encode())
    except BadRequest as error:
        event(error.code)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(ChatRequest, body)
