"""Pickles of a release: plain data comes out, nothing in them ever runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from medv_ray.data.vqa.pickles import load_plain
from medv_ray.data.vqa.prepare import prepare
from medv_ray.errors import DataError
from tests.unit.data.releases import official_row, settings, write_official

PLAIN = [
    {"a": 1, "b": [1.5, None, True], "c": ("x", {"y", "z"}), "d": "ä", "e": frozenset({2})},
    official_row("train_0001", 100422000, "where are liver stem cells?", "in the canals", "other"),
]


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.how = function, arguments

    def __reduce__(self) -> Any:
        return self.how


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "train_vqa.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert load_plain(path) == PLAIN


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"r\x40\0\0\0", b"p2147483647\n"])
def test_a_number_of_an_object_takes_no_memory(tmp_path: Path, put: bytes) -> None:
    """Room for 34 GiB in ten bytes."""
    path = tmp_path / "train_vqa.pkl"
    path.write_bytes(b"\x80\x02]" + put + b".")
    with pytest.raises(DataError, match="E1105.*no complete pickle .ValueError."):
        load_plain(path)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "train_vqa.pkl"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsa.")
    assert load_plain(path) == [{"sent": "café"}]


def hostile(marker: Path) -> list[Any]:
    touch = f"touch {marker}"
    return [
        [PLAIN[1], Calls(os.system, touch)],
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(exec, f"open({str(marker)!r}, 'w')"),
        {"label": Calls(open, str(marker), "w")},
        Calls(getattr, {}, "keys"),
        Calls(bytearray, 10),
        Calls(str, [["x"] * 9] * 9),  # nested further, a small file makes text without end
        Path("x"),
        Calls,
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something_is_refused(
    tmp_path: Path, number: int, protocol: int
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "train_vqa.pkl"
    path.write_bytes(pickle.dumps(hostile(marker)[number], protocol=protocol))
    with pytest.raises(DataError) as caught:
        load_plain(path)
    assert caught.value.code == "E1116"
    assert caught.value.__cause__ is None
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0astr.format\x93.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"Pan id\n.",
    ],
    ids=["global", "python2", "dotted", "inst", "persistent"],
)
def test_opcodes_that_name_something(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train_vqa.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_plain(path)
    assert caught.value.code == "E1116"


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x05", b"no pickle", pickle.dumps(PLAIN)[:-20], b"\x80\xff.", b"l0."]
)
def test_a_damaged_pickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train_vqa.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_plain(path)
    assert caught.value.code == "E1105"


def test_a_hostile_release_prepares_nothing(tmp_path: Path) -> None:
    write_official(tmp_path / "pvqa", "train", [Calls(os.system, f"touch {tmp_path / 'ran'}")])
    with pytest.raises(DataError, match="E1116"):
        prepare(settings("pathvqa-official", tmp_path / "pvqa"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    write_official(tmp_path / "pvqa", "train", {"a": 1})
    with pytest.raises(DataError, match="E1105"):
        prepare(settings("pathvqa-official", tmp_path / "pvqa"))
