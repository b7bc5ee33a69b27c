"""Lines of a batch file: which are read, and what is said of those that cannot be."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from medv_ray.serving.batch import lines
from medv_ray.serving.batch.lines import BadLine, Raw
from tests.unit.serving.batch.requests import CHAT, line, write


def raws(data: bytes, limit: int = 100, **start: int) -> list[Raw]:
    return list(lines.read_lines(io.BytesIO(data), limit, **start))


def test_lines_are_read_with_the_offset_behind_them() -> None:
    data = b"\xef\xbb\xbf{}\r\n\n12\n345"
    found = raws(data)
    assert [one.data for one in found] == [b"{}", b"", b"12", b"345"]
    assert [one.end for one in found] == [7, 8, 11, 14]
    assert raws(data, number=2, end=8) == found[2:]
    assert [lines.is_blank(one) for one in found] == [False, True, False, False]


@pytest.mark.parametrize("size", [9, 10, 11, 12, 70000, 200000])
def test_a_line_over_the_limit_is_read_past(size: int) -> None:
    data = b"a\n" + b"x" * size + b"\nb\n" + b"y" * size
    found = raws(data, 10)
    long = b"x" * size if size <= 10 else None
    assert [one.data for one in found] == [b"a", long, b"b", long and b"y" * size]
    assert [one.end for one in found] == [2, size + 3, size + 5, 2 * size + 5]


def test_a_survey_counts_and_finds_repeated_ids(tmp_path: Path) -> None:
    given = ["a", "b", "a", "", "c", "no json", "b", "a"]
    rows = [one if one in ("", "no json") else line(one) for one in given]
    found = lines.survey(str(write(tmp_path / "in", rows)), 1000)
    assert found.total == 7
    assert [n for n, again in enumerate(found.repeats) if again] == [3, 7, 8]


def test_a_survey_of_nothing(tmp_path: Path) -> None:
    assert lines.survey(str(write(tmp_path / "in", ["", " "])), 1000).total == 0


def test_a_survey_holds_no_lines(tmp_path: Path) -> None:
    pad = "x" * 2000
    path = write(tmp_path / "in", ({**line(f"r{i % 4999}"), "pad": pad} for i in range(5000)))
    tracemalloc.start()
    found = lines.survey(str(path), 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.total, sum(found.repeats)) == (5000, 1)
    assert path.stat().st_size > 10_000_000
    assert peak < 2_000_000


BAD: dict[str, tuple[Any, str, str | None]] = {
    "no JSON": ("{bad", "it is no JSON that can be read", None),
    "a list": ("[1]", "an object is expected", None),
    "not UTF-8": (b'{"custom_id": "\xff"}', "no UTF-8 at byte 15", None),
    "NaN": ('{"custom_id": NaN}', "NaN, which is no JSON", None),
    "custom_id": ({"method": "POST", "url": CHAT, "body": {}}, "is missing", "custom_id"),
    "empty id": (line(""), "at least 1 character", "custom_id"),
    "long id": (line("x" * 513), "at most 512 characters", "custom_id"),
    "id": (line("a", custom_id=7), "valid string", "custom_id"),
    "method": (line("a", method="GET"), "'POST'", "method"),
    "url": (line("a", url="/v1/embeddings"), "'/v1/chat/completions'", "url"),
    "other url": (line("a", url="/v1/responses"), "the batch's endpoint is", "url"),
    "body": (line("a", body="x"), "an object is expected", "body"),
    "more": (line("a", priority=1), "there is no such field", "priority"),
    "stream": (line("a", body={"stream": True}), "answers are whole", "body.stream"),
    "values": (line("a", body={"x": [0] * 70000}), "more than 65536 values", None),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_named_with_its_number_and_field(what: str) -> None:
    given, words, param = BAD[what]
    data = json.dumps(given) if isinstance(given, dict) else given
    data = data.encode() if isinstance(data, str) else data
    with pytest.raises(BadLine) as refused:
        lines.read(Raw(17, 99, data), False, CHAT, 2**20)
    assert refused.value.code == "E1715"
    assert refused.value.detail.startswith("line 17")
    assert words in refused.value.detail
    assert refused.value.param == param
    made = json.loads(lines.refused("n", Raw(17, 99, data), refused.value))
    assert made["response"] is None
    assert made["error"]["line"] == 17
    assert made["error"]["param"] == param


def test_sound_lines_are_read() -> None:
    for url in lines.ENDPOINTS:
        data = json.dumps(line("ä", url=url)).encode()
        found = lines.read(Raw(1, 9, data), False, None, 2**20)
        assert (found.custom_id, found.url) == ("ä", url)
    with pytest.raises(BadLine, match="an earlier line has the same one"):
        lines.read(Raw(1, 9, data), True, None, 2**20)
    with pytest.raises(BadLine, match="over 9 bytes"):
        lines.read(Raw(1, 9, None), False, None, 9)


def test_half_a_surrogate_comes_out_as_json() -> None:
    raw = Raw(1, 9, b'{"custom_id": "\\ud800"}')
    with pytest.raises(BadLine) as refused:
        lines.read(raw, False, None, 99)
    assert json.loads(lines.refused("n", raw, refused.value))["custom_id"] == "\ud800"
