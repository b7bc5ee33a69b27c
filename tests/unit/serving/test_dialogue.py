"""How the messages of real clients become a dialogue, and what none can be made of."""

from __future__ import annotations

from typing import Any

import pytest

from medv_ray.data.prompts import Turn
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.errors import DataError
from medv_ray.serving.dialogue import Dialogue, dialogue_of
from medv_ray.serving.guard import App
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest, ChatRequest
from tests.unit.serving.client import MODEL, ask, message, tiles

pytestmark = pytest.mark.integration

ONE, TWO = tiles()[0].image, tiles()[2].image


def say(role: str, *images: bytes, text: str = "hello?") -> dict[str, Any]:
    return message(text, *images, role=role)


def picture(image: bytes, role: str = "user") -> dict[str, Any]:
    """A message that is a picture alone."""
    return {"role": role, "content": say(role, image)["content"][:1]}


def read(*messages: dict[str, Any], **limits: int) -> Dialogue:
    asked = ChatRequest.model_validate({"model": MODEL, "messages": list(messages)})
    return dialogue_of(asked.messages, LimitSettings(**limits))


def test_neighbours_of_one_role_are_one_turn() -> None:
    found = read(
        {"role": "system", "content": "S."},
        {"role": "developer", "content": "D."},
        picture(ONE),
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": " "},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in "ef"]},
    )
    assert found.system == "S.\n\nD."
    assert found.turns == [
        Turn("user", "a\n\nb"),
        Turn("assistant", "c\n\nd"),
        Turn("user", "e\nf"),
    ]
    assert [one.field for one in found.pictures] == ["messages.2.content.0.image_url.url"]
    assert found.warnings == ()


def test_pictures_of_later_turns_go_to_the_first_and_that_is_said(
    app: App, predictor: Predictor
) -> None:
    messages = [say("user", ONE), say("assistant", text="a tile"), say("user", TWO, text="And?")]
    request = Request("And?", (ONE, TWO), (Turn("user", "hello?"), Turn("assistant", "a tile")))
    (want,) = predictor.answer([request])
    assert isinstance(want, Answer)
    for stream in (False, True):
        reply = ask(app, {"model": MODEL, "messages": messages, "stream": stream})
        ours = reply.events[-1]["medv"] if stream else reply.json()["medv"][0]
        assert ours["warnings"] == ["images_moved:1"]
        if not stream:
            assert reply.json()["choices"][0]["message"]["content"] == want.text
            assert reply.json()["usage"]["prompt_tokens"] == want.prompt_tokens
    assert read(*messages[:2], say("user", TWO, TWO)).warnings == ("images_moved:2",)


def test_a_first_turn_may_be_a_picture_alone(app: App, predictor: Predictor) -> None:
    messages = [picture(ONE), say("assistant", text="a tile"), say("user", text="What is it?")]
    request = Request("What is it?", (ONE,), (Turn("user", ""), Turn("assistant", "a tile")))
    (want,) = predictor.answer([request])
    assert isinstance(want, Answer)
    reply = ask(app, {"model": MODEL, "messages": messages}).json()
    assert reply["choices"][0]["message"]["content"] == want.text
    for bad in (Request("", (ONE,)), Request("?", (), (Turn("user", ""), Turn("assistant", "")))):
        (error,) = predictor.answer([bad])
        assert isinstance(error, DataError)
        assert error.code == "E1301"


def test_a_later_turn_may_be_a_picture_alone(app: App, predictor: Predictor) -> None:
    said = say("assistant", text="a tile")
    messages = [say("user"), said, picture(ONE), said, say("user", text="What is it?")]
    past = [Turn("user", "hello?"), Turn("assistant", "a tile")]
    shown = [Turn("user", ""), Turn("assistant", "a tile")]
    (want,) = predictor.answer([Request("What is it?", (ONE,), (*past, *shown))])
    assert isinstance(want, Answer)
    reply = ask(app, {"model": MODEL, "messages": messages}).json()
    assert reply["choices"][0]["message"]["content"] == want.text
    assert reply["medv"][0]["warnings"] == ["images_moved:1"]
    # two turns without a word, and one picture
    (error,) = predictor.answer([Request("?", (ONE,), (*shown, *shown))])
    assert isinstance(error, DataError)
    assert error.code == "E1301"


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_an_empty_answer_is_taken_as_history(app: App, content: Any) -> None:
    messages = [say("user"), {"role": "assistant", "content": content}, say("user")]
    assert ask(app, {"model": MODEL, "messages": messages}).status == 200
    del messages[1]["content"]
    assert ask(app, {"model": MODEL, "messages": messages}).status == 200


def test_an_answer_is_taken_back_as_it_came(app: App) -> None:
    asked = {"model": MODEL, "messages": [say("user", ONE)]}
    given = ask(app, asked).json()["choices"][0]["message"]
    messages = [say("user", ONE), given, say("user")]
    assert ask(app, {"model": MODEL, "messages": messages}).status == 200


SYSTEM = say("system")
ASKED, SAID = say("user"), say("assistant")
OUT_OF_ORDER: list[tuple[list[dict[str, Any]], str, str]] = [
    ([SAID], "messages.0.role", "E1701"),
    ([ASKED, SAID], "messages", "E1701"),
    ([SYSTEM], "messages", "E1701"),
    ([ASKED, SYSTEM, ASKED], "messages.1.role", "E1701"),
    ([ASKED, SAID, say("developer"), ASKED], "messages.2.role", "E1701"),
    ([SYSTEM, SAID, ASKED], "messages.1.role", "E1701"),
    ([say("system", ONE), ASKED], "messages.0.content", "E1701"),
    ([SYSTEM, say("developer", ONE), say("user", ONE)], "messages.1.content", "E1701"),
    ([say("user", ONE), say("assistant", ONE), ASKED], "messages.1.content", "E1701"),
    ([say("user", *[ONE] * 5)], "messages.0.images", "E1701"),
    ([say("user", *[ONE] * 3), SAID, say("user", ONE, ONE)], "messages.2.images", "E1701"),
    ([ASKED, SAID] * 32 + [ASKED], "messages", "E1701"),
    ([picture(ONE)], "messages.0.content", "E1301"),
    ([SYSTEM, picture(ONE), picture(TWO)], "messages.2.content", "E1301"),
    ([ASKED, SAID, picture(ONE)], "messages.2.content", "E1301"),
    ([{"role": "user", "content": " "}, SAID, ASKED], "messages.0.content", "E1301"),
    ([ASKED, {"role": "user", "content": None}], "messages.1.content", "E1701"),
    ([ASKED, {"role": "user", "content": []}], "messages.1.content", "E1701"),
    ([{"role": "system"}, ASKED], "messages.0.content", "E1701"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "param", "code"), OUT_OF_ORDER)
def test_what_is_no_dialogue(
    app: App, messages: list[dict[str, Any]], param: str, code: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        read(*messages)
    assert (refused.value.code, refused.value.param) == (code, param)
    error = ask(app, {"model": MODEL, "messages": messages}).error
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].startswith(param)
