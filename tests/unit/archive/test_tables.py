import csv
import errno
import io
import json
import os
import random

import pytest

from medv_ray.archive.reading import read_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.errors import DataError, SettingsError
from medv_ray.settings import build
from medv_ray.tables import json_text
from medv_ray.tables.columns import listed


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


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"PK\x03\x04", "ZIP"), (b"\xd0\xcf\x11\xe0", "Office"), (b"\x1f\x8b\x08", "gzip")],
)
def test_a_spreadsheet_named_csv_is_not_taken_for_another_encoding(make, images, start, kind):
    with pytest.raises(DataError, match=f"look like .*{kind}.*Save a spreadsheet as csv") as caught:
        rows_of(make, images, "q.csv", start + b"\xa4\x9d" * 200)
    assert caught.value.code == "E1105"


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
        ("5", "typed <image> and <image>", "own"),
        ("6", None, "no question"),
        ("7", "R?", None),
        ("8", "R?", None),
    ]
    assert codes(rows) == [None, None, "E1307", "E1301", None, None]
    assert [len(row.images) for row in rows] == [1, 1, 0, 0, 1, 2]
    assert rows[0].warnings == ("image_mark",)


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "0.png", "question": NaN}',
        '{"image": "0.png", "question": "a", "question": "b"}',
        '{"image": "0.png", "image": "1.png", "question": "a"}',
        '{"image": "0.png", "question": "half',
        '{"image": "0.png", "question": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "[1, 2]",
        "17",
        "<html>",
    ],
)
def test_a_bad_json_line_costs_itself_only(make, images, line):
    good = '{"image": "1.png", "question": "good?"}'
    planned, rows = rows_of(make, images, "q.jsonl", f"{good}\n{line}\n{good}")
    wrong = "E1108" if line.count("image") == 2 else "E1109"
    assert codes(rows) == [None, wrong, None]
    assert [row.id for row in rows] == ["q:0", "q:1", "q:2"]
    assert planned.rows == 3


@pytest.mark.parametrize(
    "odd",
    ["NaN", "Infinity", "1e400", "9" * 5000, '{"a": 1, "a": 2}', '"\\ud800"', '1, "x": 2',
     "[" * 100 + "]" * 100],
)  # fmt: skip
def test_what_nobody_asks_for_harms_no_row(make, images, odd):
    line = '{"image": "1.png", "question": "good?", "x": ' + odd + "}"
    _, rows = rows_of(make, images, "q.jsonl", f"{line}\n{line}")
    assert codes(rows) == [None, None]


def test_an_answer_that_is_no_text_harms_no_row_unless_it_is_asked_for(make, images):
    lines = [f'{{"image": "1.png", "question": "a?", "answer": {a}}}' for a in ("NaN", "1e400")]
    _, rows = rows_of(make, images, "q.jsonl", "\n".join(lines))
    assert [(r.reference, r.warnings) for r in rows] == [(None, ()), (None, ("answer_is_no_text",))]
    _, rows = rows_of(make, images, "q.jsonl", "\n".join(lines), answer_column="answer")
    assert codes(rows) == [None, "E1109"]


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
        None, None, None, "E1304", "E1304", "E1109", "E1108", "E1108", None, None,
        "E1111", None, None,
    ]  # fmt: skip
    assert rows[9].reference == "True"
    assert [rows[n].id for n in (0, 1, 11, 12)] == ["1.5", "inf", "q:11", "a #q:12"]


def test_bad_csv_records_cost_themselves_only(make, images):
    text = 'image,question\n0.png,good?\n0.png\n0.png,a,b\n0.png,"a"b\n0.png,"half'
    _, rows = rows_of(make, images, "q.csv", text)
    assert codes(rows) == [None, "E1109", "E1109", "E1109", "E1109"]


def test_large_cells(make, images):
    """A question has a limit; a column that nobody asks for may be what it is."""
    large, lines = "x" * 200_000, "\n".join(["line"] * 40_000)
    text = f'image,question,note\n0.png,{large},a\n0.png,good?,{large}\n0.png,good?,"{lines}"\n'
    assert codes(rows_of(make, images, "a.csv", text)[1]) == [None, None, None]
    assert codes(rows_of(make, images, "b.csv", text, max_cell_bytes=1000)[1]) == [
        "E1112", None, None
    ]  # fmt: skip
    record = json.dumps({"image": "0.png", "question": "a?", "note": large})
    assert codes(rows_of(make, images, "c.jsonl", record, max_cell_bytes=1000)[1]) == [None]


LATIN = "image,question\n0.png,café?\n1.png,good?\n"


@pytest.mark.parametrize(
    ("data", "flag"),
    [
        (LATIN.encode("latin-1"), "--encoding latin-1"),
        (LATIN.replace("é", "’").encode("cp1252"), "--encoding cp1252"),
        (LATIN.encode("utf-16-le"), "--encoding utf-16-le"),
        (LATIN.encode("utf-16-be"), "--encoding utf-16-be"),
    ],
)
def test_another_encoding_is_named_and_can_be_given(make, images, data, flag):
    with pytest.raises(DataError, match=f"E1120: q.csv: .*{flag}[.]") as caught:
        rows_of(make, images, "q.csv", data)
    assert "caf" not in str(caught.value)
    _, rows = rows_of(make, images, "q.csv", data, encoding=flag.split()[1])
    assert [row.question for row in rows] == [f"caf{'’' if '1252' in flag else 'é'}?", "good?"]


def test_rows_that_are_not_utf8_can_be_left_out(make, images):
    _, rows = rows_of(make, images, "q.csv", LATIN.encode("latin-1"), encoding="utf-8")
    assert codes(rows) == ["E1304", None]
    with pytest.raises(SettingsError, match="latin-1, cp1252"):
        build(ArchiveSettings, {"archive": "x", "encoding": "utf-7"})


RECORDS = [
    {"image": f"{n}.png", "question": q}
    for n, q in enumerate(("größer, oder?", "腫瘍；？", 'say "a"\n| b', "🫁\tok?"))
]


def written(separator: str, **how) -> str:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, ["image", "question"], delimiter=separator, **how)
    writer.writeheader()
    writer.writerows(RECORDS)
    return sink.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["q.csv", "Q.TSV"])
def test_tables_as_spreadsheets_write_them(make, images, separator, encoding, end, name):
    text = written(separator, lineterminator=end)
    shown = {"encoding": encoding} if encoding == "gb18030" else {}
    _, rows = rows_of(make, images, name, text.encode(encoding), chunk_rows=2, **shown)
    assert [row.question for row in rows] == [record["question"] for record in RECORDS]
    assert codes(rows) == [None] * 4
    text = f"sep={separator}{end}" + text
    _, rows = rows_of(make, images, name, text.encode(encoding), chunk_rows=2, **shown)
    assert [row.question for row in rows] == [record["question"] for record in RECORDS]


@pytest.mark.parametrize(
    "text",
    [
        "image,question,,\n0.png,a?,,\n1.png,b?\n",
        "image,question\n0.png,a?,\n1.png,b?,,,\n",
        ",image,question,note,note\n0,0.png,a?,x,y\n1,1.png,b?,x,y\n",
        " image , question \n 0.png , a?\n1.png , b?\n",
        'image, question, note\n0.png, a?, "x, y"\n1.png, b?, "x\ny"\n',
        '"image","question","two\nlines"\n0.png,a?,x\n1.png,b?,y\n',
        "\n\nimage,question\n0.png,a?\n\n1.png,b?\n",
        "image;question;a,b,c\n0.png;a?;x,y\n1.png;b?;x\n",
        "question,image\na?,images/0.png\nb?,./1.png\n",
        "question,image\na?,/0.png\nb?,images\\1.png\n",
    ],
)
def test_headers_and_blanks_of_spreadsheets(make, images, text):
    _, rows = rows_of(make, images, "q.csv", text)
    assert codes(rows) == [None, None]
    assert [row.question.strip() for row in rows] == ["a?", "b?"]
    assert [row.image for row in rows] == [b"image 0", b"image 1"]
    assert [row.reference for row in rows] == [None, None]


def test_names_of_files_in_another_form(make):
    for name in (
        "images/é.png",
        "images/Scan/B.PNG",
        "images/x.png",
        "images/X.png",
        "images/y.png",
    ):
        make.text(name, name.encode())
    names = ["e\u0301.png", "É.PNG", "scan/b.png", "x.PNG", "x.png", "Y.png", "Images/y.png"]
    text = "image,question\n" + "".join(f"{name},a?\n" for name in names)
    planned, rows = rows_of(make, make.archive / "images", "q.csv", text)
    assert codes(rows) == [None, None, None, "E1111", None, None, None]  # x.PNG may be two files
    case = ("image_name_case",)
    assert [row.warnings for row in rows] == [(), case, case, (), (), case, ()]
    assert rows[2].image == b"images/Scan/B.PNG"
    assert rows[4].image_name == "x.png"
    assert (planned.images.missing, planned.images.examples) == (1, ("x.PNG",))


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ('"[""0.png"", ""1.png""]"', (b"image 0", b"image 1")),
        ("0.png;1.png", (b"image 0", b"image 1")),
        ("0.png | 1.png", (b"image 0", b"image 1")),
        ("0.png;no.png", None),
    ],
)
def test_several_pictures_in_a_cell_of_a_csv(make, images, cell, found):
    _, (row,) = rows_of(make, images, "q.csv", f"image,question\n{cell},Which?\n")
    assert (row.images or None, codes([row])) == (found, [None if found else "E1111"])


def test_pictures_of_one_cell_share_their_objects(make, images):
    record = json.dumps({"images": ["0.png", "1.png"], "question": "Which?"})
    _, rows = rows_of(make, images, "q.jsonl", "\n".join([record] * 3))
    assert [[id(image) for image in row.images] for row in rows] == [
        [id(image) for image in rows[0].images]
    ] * 3


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
@pytest.mark.parametrize(
    ("question", "bare"),
    [
        ("<image>What?", "What?"),
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("<image> What? <image>", None),  # two marks, one picture
        ("What is <image> here?", None),
        ("<image>", None),
        ("What is <IMAGE>?", "What is <IMAGE>?"),
    ],
)
def test_llavas_mark_in_a_plain_question(make, images, name, question, bare):
    rows = [{"image": "0.png", "question": question}]
    if name == "q.csv":
        sink = io.StringIO()
        writer = csv.DictWriter(sink, ["image", "question"])
        writer.writeheader()
        writer.writerows(rows)
        content = sink.getvalue()
    else:
        content = json.dumps(rows[0])
    _, (row,) = rows_of(make, images, name, content)
    if bare is None:
        assert row.error.code in ("E1109", "E1301", "E1307")
        return
    assert (row.error, row.question) == (None, bare)
    assert row.warnings == (() if bare == question else ("image_mark",))


def test_a_question_of_ones_own_stays_text(make, images):
    table = make.text("q.csv", "image\n0.png\n")
    planned = make.plan(archive=str(table), images=str(images), question="What does <image> mean?")
    assert make.rows(planned)[0].question == "What does <image> mean?"


def turns(*said: str) -> list[dict]:
    return [{"role": ("user", "assistant")[n % 2], "content": s} for n, s in enumerate(said)]


@pytest.mark.parametrize(
    ("record", "question", "images_", "code"),
    [
        ({"images": ["0.png"], "messages": turns("<image>What?", "x")}, "What?", 1, None),
        ({"image": "0.png", "messages": turns("What?")}, "What?", 1, None),
        (
            {"images": ["0.png", "1.png"], "messages": turns("<image><image>Which?")},
            "Which?", 2, None,
        ),
        ({"images": ["0.png"], "messages": turns("<image><image>Which?")}, "Which?", 0, "E1109"),
        ({"images": ["0.png"], "messages": turns("a?", "b", "<image>c?")}, None, 0, "E1307"),
        ({"images": ["0.png"], "messages": [{"role": "tool", "content": "x"}]}, None, 0, "E1109"),
        ({"images": ["0.png"], "messages": "text"}, None, 0, "E1109"),
        ({"images": ["0.png"], "messages": []}, None, 0, "E1301"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image", "image": "1.png"}, {"type": "text", "text": "What?"}]}]},
            "What?", 1, None,
        ),
        ({"images": ["0.png"], "conversations": [{"from": "human", "value": "<image>\nA?"}]},
         "A?", 1, None),
    ],
)  # fmt: skip
def test_messages(make, images, record, question, images_, code):
    _, (row,) = rows_of(make, images, "q.jsonl", json.dumps(record))
    assert (row.question, len(row.images), codes([row])[0]) == (question, images_, code)


def test_the_last_turn_is_asked_with_those_before_it(make, images):
    record = {"images": ["0.png"], "messages": turns("<image>\nA?", "b", "C?", "d")}
    _, (row,) = rows_of(make, images, "q.json", json.dumps([record]))
    assert (row.question, row.reference) == ("C?", "d")
    assert row.history == (("user", "A?"), ("assistant", "b"))


PLAIN = [{"image": "0.png", "question": "a?"}, {"image": "1.png", "question": "b?"}]


def renamed(**names: str) -> list[dict]:
    """The plain rows under other names, with the ids 5 and 6."""
    full = [{**row, "n": 5 + number} for number, row in enumerate(PLAIN)]
    return [{new: row[old] for new, old in names.items()} for row in full]


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("q.json", {"7": PLAIN[0], "8": PLAIN[1]}, ["7", "8"]),
        ("q.json", {"info": {"n": 1}, "data": PLAIN}, ["q:0", "q:1"]),
        ("q.jsonl", PLAIN, ["q:0", "q:1"]),
        ("q.json", renamed(img_name="image", question="question", qid="n"), ["5", "6"]),
        ("q.json", renamed(image_name="image", question="question", qid="n"), ["5", "6"]),
        ("q.jsonl", renamed(image="image", text="question", question_id="n"), ["5", "6"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_wrapped_tables_and_known_layouts(make, images, name, content, ids, indent):
    _, rows = rows_of(make, images, name, json.dumps(content, indent=indent), chunk_rows=1)
    assert [(r.id, r.question, r.image) for r in rows] == [
        (ids[0], "a?", b"image 0"), (ids[1], "b?", b"image 1")
    ]  # fmt: skip


def test_records_over_the_borders_of_what_is_read_at_once(make, images, monkeypatch):
    monkeypatch.setattr(json_text, "PIECE", 2**12)
    records = [{"image": "0.png", "question": f"ü{n}?", "note": "n" * 500} for n in range(60)]
    records[30]["note"] = 'ä"]}\\' * 7000
    for content in (records, {"data": records}, {f"k{n}": r for n, r in enumerate(records)}):
        _, rows = rows_of(make, images, "q.json", json.dumps(content, ensure_ascii=False))
        assert [row.question for row in rows] == [f"ü{n}?" for n in range(60)]


def test_what_is_told_of_a_missing_column(make, images):
    for name, content, shown in (
        ("a.csv", "Image,Question\n0.png,a\n",
         "has no column 'image' and no 'question'; it has Image, Question. "
         "Perhaps --image-column Image --question-column Question[?]"),
        ("b.json", '[{"filename": "0.png", "x": 1}]',
         "it has filename, x. Perhaps --image-column filename"),
        ("c.jsonl", '{"frage": "a?", "bild": "0.png"}',
         "--image-column bild --question-column frage"),
        ("d.csv", "image~question\n0.png~a\n", "none of its 1 .* Is something else than , ;"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"E1101: {name} .*{shown}"):
            rows_of(make, images, name, content)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("q.csv", b"", "E1105"),
        ("q.csv", 'image,question\n0.png,"a\n0.png,b\n0.png,c\n', "E1105"),
        ("q.csv", 'image,question\n0.png,"a\n0.png,"b"\n', "E1105"),
        ("q.csv", "image,question,image\n0.png,a,b\n", "E1109"),
        ("q.csv", "image,text\n0.png,a\n", "E1101"),
        ("q.csv", "image,question\n", "E1110"),
        ("q.csv", "image,question\n0.png,a\n".encode("utf-16") + b"x", "E1120"),
        ("q.jsonl", json.dumps({"image": "0.png", "question": "a"}, indent=1) * 2, "E1105"),
        ("q.jsonl", json.dumps({"image": "0.png", "question": "a"}, indent=1), "E1105"),
        ("q.json", "{", "E1105"),
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


@pytest.mark.parametrize("header", ['image,"text', "image,text,", "image,text\0"])
def test_a_torn_header_tells_nothing_of_the_row_that_it_swallows(make, images, header):
    row = '0.png,Does Mrs. Huber (born 1941) have a fracture of the hip?,"yes\n'
    with pytest.raises(DataError, match="E11") as caught:
        rows_of(make, images, "q.csv", header + row)
    assert not any(word in str(caught.value) for word in ("Huber", "1941", "fracture"))


def test_names_of_columns_are_listed_and_sentences_are_counted():
    names = ["image", "Frage 1", "Has Mrs. Huber a fracture?", "she was born in 1941", ""]
    assert listed(names) == "image, Frage 1, 2 whose name is a sentence"
    assert listed([]) == "none"


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
    assert (planned.images.distinct, planned.images.missing) == (1, 2)
    assert planned.images.examples == ("../x.png", "sub/no.png")
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


@pytest.mark.parametrize("cell", ["true", '["a"]', '{"a": 1}', '"a\\nb"', f'"{"x" * 600}"'])
@pytest.mark.parametrize("name", ["id", "qid"])
def test_an_id_that_is_no_name_harms_no_row_unless_it_is_asked_for(make, images, cell, name):
    cells = f'"image": "1.png", "question": "a?", "img_name": "1.png", "{name}": {cell}'
    if name == "qid":
        cells = cells.replace('"image": "1.png", ', "")
    _, rows = rows_of(make, images, "q.jsonl", "{" + cells + "}")
    assert [(row.id, row.error, row.warnings) for row in rows] == [("q:0", None, ("id_unusable",))]
    _, rows = rows_of(make, images, "q.jsonl", "{" + cells + "}", id_column=name)
    assert codes(rows) in (["E1104"], ["E1109"])


def test_an_empty_answer_is_none(make, images):
    _, rows = rows_of(make, images, "q.csv", "image,question,answer\n1.png,a?,\n1.png,a?, \n")
    assert [row.reference for row in rows] == [None, None]


@pytest.mark.parametrize("settings", [{}, {"id_column": "id", "answer_column": "late"}])
def test_a_column_counts_however_late_it_comes(make, settings):
    records = [
        {"image": "1.png", "question": "a?", **{f"{row}-{n}": n for n in range(10)}}
        for row in range(20)
    ]
    records.append({"image": "1.png", "question": "a?", "id": "me", "late": "yes"})
    make.text("1.png", b"png")
    make.text("a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    rows = make.rows(make.plan(**settings))
    assert sorted(row.id for row in rows)[-1] == "me"
