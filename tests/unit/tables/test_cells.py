"""Cells: pictures in every form, marks, dialogues."""

import base64
import time
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from medv_ray.data.vqa import entries
from medv_ray.errors import DataError
from medv_ray.tables.arrow_cells import cells_of
from medv_ray.tables.cells import (
    Picture,
    cell_text,
    check_marks,
    distinct,
    is_no_answer,
    last_exchange,
    pictures_of,
    without_marks,
)
from medv_ray.tables.ids import id_text
from medv_ray.tables.json_text import Repeated, strict_json

HEADS = {
    "png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a", "bmp": b"BM6\0",
    "tiff": b"II*\0", "motorola": b"MM\0*", "webp": b"RIFF", "dicom": bytes(128) + b"DICM",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("how", ["plain", "url", "lines", "urlsafe", "bytes"])
def test_base64_of_every_format(kind: str, how: str) -> None:
    data = HEADS[kind] + bytes(range(256))
    text = base64.b64encode(data).decode()
    value: Any = {
        "plain": text,
        "url": f"data:image/{kind};base64,{text}",
        "lines": base64.encodebytes(data).decode(),
        "urlsafe": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "bytes": text.encode(),
    }[how]
    assert pictures_of(value) == [Picture(None, data)]
    assert pictures_of([{"bytes": value, "path": "a"}]) == [Picture("a", data)]


@pytest.mark.parametrize(
    "path", ["a.png", "/9j/a.png", "R0lGOD/" + "x" * 60 + ".gif", "123/456/" * 10, "[a].png", "Qk"]
)
def test_a_path_is_no_base64(path: str) -> None:
    assert pictures_of(path) == [Picture(path, None)]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "E1111"), ("", "E1111"), ([], "E1111"), (["a", None], "E1111"), ({}, "E1111"),
        (float("nan"), "E1111"), (7, "E1108"), ("data:image/png,x", "E1108"),
        ("data:image/png;base64,a", "E1109"), ("iVBORw0KGgo" + "A" * 5000 + "\xe9", "E1109"),
    ],
)  # fmt: skip
def test_what_is_no_picture(value: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        pictures_of(value)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("cell", "text"), [("4.00", "4"), ("0E-8", "0"), ("1E-7", "0.0000001"), ("4.50", "4.50")]
)
def test_decimals_are_written_as_numbers(cell: str, text: str) -> None:
    assert cell_text(Decimal(cell), "answer") == text


def many_keys(count: int) -> None:
    keys = "".join(f'"{number}": 1, ' for number in range(count))
    found = strict_json(f'{{{keys} "0": 2}}')
    assert isinstance(found["0"], Repeated)
    assert found["1"] == 1


def many_blanks(count: int) -> None:
    text = "a" + " " * count + "b"
    assert without_marks(f"{text} <image>") == (text, 1)


def many_choices(count: int) -> None:
    choices = list(map(str, range(count)))
    assert len(distinct(choices)) == count
    with pytest.raises(DataError, match=f"choice {count + 1} is an earlier one"):
        distinct([*choices, "0"])


@pytest.mark.parametrize("read", [many_keys, many_blanks, many_choices])
def test_a_large_cell_does_not_take_the_square_of_its_length(read) -> None:
    began = time.process_time()
    read(60_000)
    assert time.process_time() - began < 3


def test_marks() -> None:
    assert without_marks("<image>\n <image>a b?\n<image>") == ("a b?", 3)
    assert without_marks(" a? ") == (" a? ", 0)
    assert without_marks("a?  <image> \n<image>\t") == ("a?", 2)
    assert without_marks(" <image> ") == ("", 1)
    with pytest.raises(DataError, match="E1307"):
        without_marks("<image> a <image> b")
    check_marks(1, 3)
    check_marks(2, 2)
    with pytest.raises(DataError, match="marks 2 images and the row has 1"):
        check_marks(2, 1)


def test_a_dialogue_as_json_text_in_a_cell() -> None:
    said = last_exchange('[{"role": "user", "content": "<image>a?"}]')
    assert (said.question, said.reference, said.marks) == ("a?", None, 1)


def test_answers_that_look_like_empty_cells() -> None:
    assert [is_no_answer(a) for a in ("N/A", " NaN ", "-", "no", "none of it", "0")] == [
        True, True, True, False, False, False
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ['["a.png", "b\'.png"]', ' [ "a.png",\n"b\'.png" ] ', "['a.png', \"b'.png\"]"],
)
def test_lists_that_are_written_as_text(text: str) -> None:
    assert [one.name for one in pictures_of(text)] == ["a.png", "b'.png"]


@pytest.mark.parametrize(
    "text", ["[1]", "[a.png]", "['a.png'", "[f(1)]", "['\\d', 2]", "[" * 9999 + "]"]
)
def test_names_in_brackets(text: str, recwarn: pytest.WarningsRecorder) -> None:
    assert [one.name for one in pictures_of(text)] == [text]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (True, "True"), (7.0, "7"), (7, "7"), (7.5, "7.5"), (1e30, "1e+30"), (b"yes", "yes"),
        (date(2020, 1, 2), "2020-01-02"), (float("nan"), None), (" ", None), (None, None),
    ],
)  # fmt: skip
def test_scoring_and_prepare_read_one_text_in_a_cell(cell: Any, text: str | None) -> None:
    assert cell_text(cell, "answer") == text
    assert entries.text(cell) == (text or "")


def test_scoring_and_prepare_read_one_id_in_16_bytes() -> None:
    cells = [b"patient-00000001", bytes(15) + b"\x01"]
    column = pa.array(cells, pa.binary(16))
    found = [id_text(cell) for cell in cells_of(column)]
    assert found == ["patient-00000001", "00000000-0000-0000-0000-000000000001"]
    assert found == [id_text(cell) for cell in column.to_pylist()]
