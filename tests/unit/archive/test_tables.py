import errno
import json
import os
import random

import pytest

from medv_ray.archive.plan import read_rows
from medv_ray.errors import DataError


def codes(rows):
    return [row.error.code if row.error else None for row in rows]


def by_row(rows):
    return sorted(rows, key=lambda row: row.row)


@pytest.fixture
def images(make):
    for number in range(8):
        make.text(f"images/{number}.png", b"image %d" % number)
    return make.archive / "images"


def rows_of(make, images, name, content, **settings):
    table = make.text(name, content)
    planned = make.plan(archive=str(images), questions=str(table), **settings)
    return planned, by_row(make.rows(planned))


CSV = 'id,image,question,answer\n1,0.png,What?,yes\n2,1.png,"Two, or\nthree?",4\n'
JSONL = (
    '{"id": 1, "image": "0.png", "question": "What?", "answer": "yes"}\n'
    '{"id": 2, "image": "1.png", "question": "Two, or\\nthree?", "answer": 4}\n'
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", CSV),
        ("q.csv", "\ufeff" + CSV),
        ("q.csv", CSV.replace("yes\n", "yes\r\n").replace("answer\n", "answer\r\n")),
        ("q.csv", CSV.replace("yes\n", "yes\n\n") + "\n\n"),
        ("q.csv", CSV.rstrip("\n")),
        ("q.jsonl", JSONL),
        ("q.jsonl", "\ufeff" + JSONL.replace("\n{", "\r\n\n{")),
        ("q.jsonl", JSONL.rstrip("\n")),
        ("q.json", JSONL),
        ("q.json", "[" + ",".join(JSONL.splitlines()) + "]"),
        ("q.json", "\ufeff \n[\n " + " ,\n".join(JSONL.splitlines()) + "\n]\n"),
    ],
)
def test_every_form_of_a_table_gives_the_same_rows(make, images, name, content):
    _, rows = rows_of(make, images, name, content)
    assert [(r.id, r.row, r.question, r.image, r.reference) for r in rows] == [
        ("1", 0, "What?", b"image 0", "yes"),
        ("2", 1, "Two, or\nthree?", b"image 1", "4"),
    ]
    assert codes(rows) == [None, None]


def test_text_beyond_ascii_keeps_its_byte_spans(make, images):
    records = [{"image": "0.png", "question": q} for q in ("größer?", "腫瘍？", "🫁 ok?", "plain?")]
    for name, content in (
        ("a.json", json.dumps(records, ensure_ascii=False)),
        ("a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in records)),
        ("a.csv", "image,question\n" + "\n".join(f"{r['image']},{r['question']}" for r in records)),
    ):
        _, rows = rows_of(make, images, name, content)
        assert [row.question for row in rows] == [r["question"] for r in records]


def test_llava_conversations(make, images):
    def turns(key, *said, **more):
        return {"id": more.pop("id"), "image": "0.png", key: [
            {"from": who, "value": text} for who, text in said], **more}  # fmt: skip

    records = [
        turns("conversations", ("human", "Where is this?\n<image>"), ("gpt", "urinary"), id=3006),
        turns("conversatons", ("human", "<image>\nWhat?"), ("gpt", "b"), ("human", "2?"), id="x"),
        turns("conversations", ("human", "typed <image> and <image>"), id=5, answer="own"),
        turns("conversations", ("gpt", "no question"), id=6),
        {"id": 7, "image": ["1.png"], "conversations": [{"role": "user", "content": "R?"}]},
        {
            "id": 8,
            "image": ["1.png", "2.png"],
            "conversations": [{"role": "user", "content": "R?"}],
        },
    ]
    _, rows = rows_of(make, images, "test.json", json.dumps(records))
    assert [(r.id, r.question, r.reference) for r in rows] == [
        ("3006", "Where is this?", "urinary"),
        ("x", "What?", "b"),
        ("5", "typed  and <image>", "own"),
        ("6", None, None),
        ("7", "R?", None),
        ("8", "R?", None),
    ]
    assert codes(rows) == [None, None, None, "E1301", None, "E1109"]


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "0.png", "question": NaN}',
        '{"image": "0.png", "question": "a", "x": Infinity}',
        '{"image": "0.png", "question": "a", "question": "b"}',
        '{"image": "0.png", "question": "a", "answer": 1e400}',
        '{"image": "0.png", "question": "half',
        '{"image": "0.png", "question": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"image": "0.png", "question": "a", "n": ' + "9" * 5000 + "}",
        "[1, 2]",
        "17",
        "<html>",
    ],
)
def test_a_bad_json_line_costs_itself_only(make, images, line):
    good = '{"image": "1.png", "question": "good?"}'
    planned, rows = rows_of(make, images, "q.jsonl", f"{good}\n{line}\n{good}")
    assert codes(rows) == [None, "E1109", None]
    assert [row.id for row in rows] == ["q:0", "q:1", "q:2"]
    assert planned.rows == 3


def test_odd_cells_of_json_rows(make, images):
    records = [
        '{"id": 1.5, "image": "0.png", "question": "a"}',
        '{"id": 1e400, "image": "0.png", "question": "a"}',
        '{"id": "\\ud800", "image": "0.png", "question": "a"}',
        '{"id": "a", "image": "0.png", "question": "lone \\ud800"}',
        '{"id": "b", "image": "0.png", "question": "nul \\u0000"}',
        '{"id": "c", "image": "0.png", "question": ["a"]}',
        '{"id": "d", "image": 7, "question": "a"}',
        '{"id": "e", "image": "\\ud800.png", "question": "a"}',
        '{"id": "f", "image": "0.png", "question": "a", "answer": {"x": 1}}',
        '{"id": "g", "image": "0.png", "question": "a", "answer": true}',
        '{"id": "h", "question": "a"}',
        '{"image": "0.png", "question": "a"}',
        '{"id": "a ", "image": "0.png", "question": "a"}',
    ]
    _, rows = rows_of(make, images, "q.jsonl", "\n".join(records))
    assert codes(rows) == [
        "E1109", "E1109", "E1104", "E1304", "E1304", "E1109", "E1108", "E1108", "E1109", None,
        "E1111", "E1102", "E1103",
    ]  # fmt: skip
    assert rows[9].reference == "True"


def test_bad_csv_records_cost_themselves_only(make, images):
    text = 'image,question\n0.png,good?\n0.png\n0.png,a,b\n0.png,"a"b\n0.png,"half'
    _, rows = rows_of(make, images, "q.csv", text)
    assert codes(rows) == [None, "E1109", "E1109", "E1109", "E1109"]
    text = "image,question\n0.png," + "x" * 200_000 + "\n0.png,good?\n"
    assert codes(rows_of(make, images, "r.csv", text)[1]) == ["E1109", None]


def test_bytes_that_are_not_utf8_are_bad_text_of_their_row(make, images):
    _, rows = rows_of(make, images, "q.csv", b"image,question\n0.png,caf\xe9?\n0.png,good?\n")
    assert codes(rows) == ["E1304", None]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("q.csv", b"", "E1105"),
        ("q.csv", 'image,question\n0.png,"a\n0.png,b\n0.png,c\n', "E1105"),
        ("q.csv", 'image,question\n0.png,"a\n0.png,"b"\n', "E1105"),
        ("q.csv", "image,question,image\n0.png,a,b\n", "E1109"),
        ("q.csv", "image,text\n0.png,a\n", "E1101"),
        ("q.csv", "image;question\n0.png;a\n", "E1101"),
        ("q.csv", "image,question\n", "E1110"),
        ("q.csv", "image,question\n0.png,a\n".encode("utf-16"), "E1105"),
        ("q.json", '[{"image": "0.png", "question": "a"}, {"image"', "E1105"),
        ("q.json", "<html></html>", "E1105"),
        ("q.json", "[" * 100_000, "E1105"),
        ("q.json", '"text"', "E1105"),
        ("q.json", "[]", "E1110"),
        ("q.jsonl", '{"image": "0.png", "q": "a"}', "E1101"),
    ],
)
def test_a_table_that_cannot_be_read_as_a_whole(make, images, name, content, code):
    with pytest.raises(DataError) as caught:
        rows_of(make, images, name, content)
    assert caught.value.code == code
    assert str(make.root) not in str(caught.value)


def test_a_table_without_a_header_tells_nothing_of_its_first_row(make, images):
    row = '0.png,"Mrs. Huber, born 1941: is there a fracture?",yes\n'
    with pytest.raises(DataError, match="E1101: .*Is its first line a header") as caught:
        rows_of(make, images, "q.csv", row + row.replace("0", "1"))
    assert not any(word in str(caught.value) for word in ("0.png", "Huber", "1941", "yes"))
    with pytest.raises(DataError, match="E1101: .*no column 'question'; it has image, text[.]"):
        rows_of(make, images, "r.csv", "image,text\n0.png,a\n")


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl", "q.json"])
def test_damaged_tables_never_escape_the_catalogue(make, images, name):
    """Whatever a few changed bytes do: a DataError, or as many rows as were planned."""
    whole = {"q.csv": CSV, "q.jsonl": JSONL, "q.json": "[" + ",".join(JSONL.splitlines()) + "]"}
    picks = random.Random(3)
    odd = [b'"', b"\n", b"\r", b"\0", b",", b"{", b"]", b"\\", b"\xff", b"\xed\xa0\x80", b""]
    for _ in range(120):
        data = whole[name].encode()
        for _ in range(picks.randrange(1, 4)):
            at = picks.randrange(len(data))
            data = data[:at] + picks.choice(odd) + data[at + picks.randrange(2) :]
        try:
            planned, rows = rows_of(make, images, name, data)
        except DataError:
            continue
        assert [row.row for row in rows] == list(range(planned.rows))
        assert len({row.id for row in rows}) == planned.rows


def test_one_bad_table_of_two_is_listed(make, images):
    make.text("images/a.jsonl", JSONL)
    make.text("images/b.csv", "")
    planned = make.plan(archive=str(images))
    assert [(u.name, u.code) for u in planned.unreadable] == [("b.csv", "E1105")]
    assert codes(make.rows(planned)) == [None, None]


def test_questions_on_one_image_share_a_chunk(make, images):
    records = [{"image": f"{r % 8}.png", "question": f"q{r}?"} for r in range(32)]
    content = "\n".join(json.dumps(record) for record in records)
    planned, rows = rows_of(make, images, "q.jsonl", content)
    assert [row.row for row in rows] == list(range(32))
    assert [row.question for row in rows] == [f"q{r}?" for r in range(32)]
    for chunk in planned.chunks:  # 4 rows, 4 questions an image
        got = read_rows(planned.archive, chunk)
        assert len({row.image_name for row in got}) == 1
        assert len({id(row.image) for row in got}) == 1


def test_images_that_rows_name_are_looked_up_without_reading_them(make, images):
    planned, rows = rows_of(
        make, images, "q.csv", "image,question\n0.png,a\n0.png,b\nsub/no.png,c\n../x.png,d\n"
    )
    assert (planned.images.distinct, planned.images.missing) == (2, 2)
    assert codes(rows) == [None, None, "E1111", "E1108"]
    (images / "0.png").write_bytes(b"another image")
    changed = make.plan(archive=str(images), questions=str(make.archive / "q.csv"))
    assert changed.images.digest != planned.images.digest
    assert [c.key for c in changed.chunks] == [c.key for c in planned.chunks]


def test_limit_takes_the_first_rows(make, images):
    content = "image,question\n" + "".join(f"{r % 8}.png,q{r}\n" for r in range(20))
    planned, rows = rows_of(make, images, "q.csv", content, limit=7)
    assert [row.question for row in rows] == [f"q{r}" for r in range(7)]
    assert planned.rows == 7


def test_one_question_for_a_table_without_questions(make, images):
    table = make.text("q.csv", "image\n0.png\n1.png\n")
    planned = make.plan(archive=str(table), images=str(images), question="What is shown?")
    rows = by_row(make.rows(planned))
    assert [(row.question, row.image) for row in rows] == [
        ("What is shown?", b"image 0"),
        ("What is shown?", b"image 1"),
    ]


def test_relative_folders_mean_the_same_in_every_process(make, images, monkeypatch):
    make.text("q.csv", CSV)
    monkeypatch.chdir(make.root)
    planned = make.plan(archive="archive/images", questions="archive/q.csv")
    monkeypatch.chdir("/")
    assert codes(make.rows(planned)) == [None, None]


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, "E1108"), (errno.EMFILE, "E1107")])
def test_an_image_that_is_not_opened_today(make, images, monkeypatch, number, code):
    planned, _ = rows_of(make, images, "q.csv", CSV)
    real = os.open

    def refuse(path, *more):
        if str(path).endswith(".png"):
            raise OSError(number, "told by the system")
        return real(path, *more)

    monkeypatch.setattr(os, "open", refuse)
    if code == "E1108":
        assert codes(make.rows(planned)) == [code, code]
        return
    with pytest.raises(DataError) as caught:  # the chunk stays open
        make.rows(planned)
    assert caught.value.code == code


def test_a_folder_of_images_that_is_not_there(make, images):
    table = make.text("q.csv", CSV)
    with pytest.raises(DataError) as caught:
        make.plan(archive=str(images / "nowhere"), questions=str(table))
    assert caught.value.code == "E1110"


def test_real_vqa_rad_conversations(make, vqa_rad):
    planned = make.plan(
        archive=str(vqa_rad / "images"),
        questions=str(vqa_rad / "llava_format" / "test.json"),
        chunk_rows=32,
    )
    rows = make.rows(planned)
    assert (planned.rows, planned.images.distinct, planned.images.missing) == (451, 203, 0)
    assert codes(rows) == [None] * 451
    assert len({row.id for row in rows}) == 451
    assert not any("<image>" in row.question for row in rows)
