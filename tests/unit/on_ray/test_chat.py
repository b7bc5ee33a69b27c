import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.data import synthetic
from medv_ray.data.prompts import Turn
from medv_ray.engine import View
from medv_ray.errors import SHOW_NAMES, MedvError
from medv_ray.on_ray.chat import Local, Remote, Said
from tests.unit.client.scripted import Reply, Scripted, Server, running, toy_endpoint

pytestmark = pytest.mark.integration

runner = CliRunner()
ASKED = "How many large cells are there?"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with toy_endpoint() as url:
        yield url


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two pictures with the known answer to ASKED."""
    folder, found = tmp_path_factory.mktemp("tiles"), []
    for row in synthetic.rows(120):
        if row.question == ASKED and row.answer not in [answer for _, answer in found]:
            found.append((folder / row.image_name, row.answer))
            found[-1][0].write_bytes(row.image)
    return found[:2]


def chat(image: Path, lines: list[str], *arguments: str) -> Result:
    return runner.invoke(app, ["chat", str(image), *arguments], input="\n".join(lines) + "\n")


@pytest.mark.parametrize("where", ["here", "endpoint"])
def test_a_dialogue(
    where: str, url: str, tiles: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOW_NAMES, "1")
    (one, first), (other, second) = tiles
    lines = [
        ASKED, "", "What colour are they?", "/image nowhere.png", "/new", ASKED,
        f"/image '{other}'", ASKED, "/what", "/quit", ASKED,
    ]  # fmt: skip
    result = chat(one, lines, *(["--url", url] if where == "endpoint" else []))
    answers = result.stdout.splitlines()
    assert len(answers) == 4, result.output
    assert (answers[0], answers[2], answers[3]) == (first, first, second)
    assert result.stderr.count("confidence") == 4
    assert "nowhere.png" in result.stderr
    assert "/image PATH" in result.stderr
    assert str(other.parent) not in result.stderr
    assert result.exit_code == 1  # of a script, as a line of it failed


@pytest.mark.parametrize("tile", [0, 1])
def test_an_endpoint_shows_what_is_seen_here(
    tile: int, url: str, tiles: list[tuple[Path, str]]
) -> None:
    image = tiles[tile][0].read_bytes()
    history = [Turn("user", "Describe the picture."), Turn("assistant", "")]
    states: list[list[tuple[str | None, ...]]] = []
    said: list[list[Said]] = []
    for asked in (Local("toy", []), Remote(url, None, [])):
        with closing(asked):
            events = list(asked.ask("Describe the picture.", image, []))
            views = [event for event in events if isinstance(event, View)]
            states.append([view.tokens for view in views if view.answer is None])
            events += asked.ask(ASKED, image, history)
            said.append([event for event in events if isinstance(event, Said)])
    here, there = states
    assert there[: len(here)] == here
    assert len(there) - len(here) in (0, 1)  # the last step, which here comes with the answer
    counts = [sum(token is not None for token in tokens) for tokens in there]
    assert counts == list(range(1, len(there) + 1))
    for one, other in zip(*said, strict=True):
        assert (one.text, one.forward_passes) == (other.text, other.forward_passes)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_settings_reach_both(url: str, tiles: list[tuple[Path, str]]) -> None:
    for more in ([], ["--url", url, "--model", "medv-tiny"]):
        result = chat(tiles[0][0], ["Describe the picture."], *more, "--set", "sampler.steps=2")
        assert result.exit_code == 0, result.output
        assert "2 forward passes" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--set", "sampler.steps=0"], "E1001"),
        (["--url", "URL", "--model", "other"], "E1706"),
        (["--url", "URL", "--set", "image.max_pixels=3"], "E1001"),
        (["--url", "file:///etc/passwd"], "E1001"),
    ],
)
def test_what_cannot_begin(
    arguments: list[str], code: str, url: str, tiles: list[tuple[Path, str]]
) -> None:
    result = chat(tiles[0][0], [ASKED], *[url if a == "URL" else a for a in arguments])
    assert result.exit_code == 2
    assert code in result.stderr
    assert not result.stdout


def test_the_first_picture_must_be_one(tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>")
    assert "E1202" in chat(page, [ASKED]).stderr
    assert "E1001" in chat(tmp_path / "none.png", [ASKED]).stderr


def test_errors_of_an_endpoint_are_told(tiles: list[tuple[Path, str]]) -> None:
    denoise = {"step": 0, "length": 2, "committed": [{"position": 1, "token": "a"}]}
    good = (
        {"choices": [{"delta": {"content": "f\x1b[2Jour"}}]},
        {"choices": [], "medv": {"confidence": 1.0, "forward_passes": 2, "warnings": ["w"]}},
    )
    replies = [
        Reply(429, retry_after="1"),
        Reply(503, code="nonsense"),
        Reply(cut=True),
        Reply(events=({"error": {"message": "gone", "code": "E1708"}},)),
        Reply(events=("text",)),
        Reply(events=({"choices": [], "denoise": denoise},)),
        Reply(events=good),
    ]
    served = Scripted(lambda number: replies[number])
    with running(served) as url:
        result = chat(tiles[0][0], [ASKED] * len(replies), "--url", url)
    assert result.stdout == "f�[2Jour\n"
    assert result.stderr.count("RunError") == len(replies) - 1
    assert "picture: w" in result.stderr
    assert all(len(body["messages"]) == 1 for body in served.bodies)  # no failed turn is kept


def test_a_lost_endpoint_is_told(tiles: list[tuple[Path, str]]) -> None:
    server = Server()
    server.app = Scripted(lambda number: Reply())
    asked = Remote(server.url, "m", [])
    server.stop()
    with closing(asked), pytest.raises(MedvError, match="does not answer"):
        list(asked.ask(ASKED, tiles[0][0].read_bytes(), []))


def test_the_dialogue_goes_along(tiles: list[tuple[Path, str]]) -> None:
    served = Scripted(lambda number: Reply())
    with running(served) as url:
        chat(tiles[0][0], ["one?", "two?", "/new", "three?"], "--url", url)
    shapes: list[list[Any]] = [
        [m["role"] if isinstance(m["content"], str) else "picture" for m in body["messages"]]
        for body in served.bodies
    ]
    assert shapes == [["picture"], ["picture", "assistant", "user"], ["picture"]]
    assert json.dumps(served.bodies[1]).count("data:image/") == 1


def test_ctrl_c_stops_the_answer_alone(
    tiles: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Turn]] = []
    answers = Local.ask

    def ask(self: Local, question: str, image: bytes, history: list[Turn]) -> Iterator[View | Said]:
        asked.append(list(history))
        for event in answers(self, question, image, history):
            if len(asked) == 1:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(Local, "ask", ask)
    result = chat(tiles[0][0], [ASKED, ASKED])
    assert result.exit_code == 0
    assert "stopped" in result.stderr
    assert result.stdout.strip() == tiles[0][1]
    assert asked == [[], []]
