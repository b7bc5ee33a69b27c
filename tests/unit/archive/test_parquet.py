import base64
import os
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive import cursor
from medv_ray.archive.reading import read_rows
from medv_ray.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(120))


def codes(rows):
    return [row.error.code if row.error else None for row in rows]


def test_hugging_face_rows_come_back_in_order(make):
    make.parquet(rows=10, row_group_size=6)
    planned = make.plan()
    assert [len(chunk.rows) for chunk in planned.chunks] == [4, 2, 4]  # chunks end with row groups
    rows = make.rows(planned)
    assert [row.row for row in rows] == list(range(10))
    assert [row.id for row in rows] == [f"a:{r}" for r in range(10)]
    assert [row.image for row in rows] == [b"img%d" % (r // 3) for r in range(10)]
    assert rows[3].question == "what is a.parquet 3?"
    assert {row.reference for row in rows} == {"yes"}


def test_repeated_images_share_one_object(make):
    make.parquet(rows=4)
    rows = make.rows(make.plan())
    assert rows[0].image is rows[1].image is rows[2].image
    assert rows[3].image == b"img1"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 1, 3], [1, 1, 0]])
def test_chunks_read_in_any_order_hold_the_same_rows(make, order):
    make.parquet(rows=20)
    planned = make.plan()
    for number in order:
        rows = read_rows(planned.archive, planned.chunks[number])
        assert [row.image for row in rows] == [
            b"img%d" % (r // 3) for r in planned.chunks[number].rows
        ]


def test_the_next_chunk_continues_where_the_last_one_ended(make, monkeypatch):
    make.parquet(rows=40)
    planned = make.plan()
    opened = []
    real = cursor.Cursor.__init__
    monkeypatch.setattr(
        cursor.Cursor, "__init__", lambda self, *a: (opened.append(a), real(self, *a))[1]
    )
    make.rows(planned)
    assert len(opened) == 1


def test_image_cells_may_be_bytes_structs_or_paths(make, tmp_path):
    make.text("pics/1.png", b"one")
    make.parquet("a.parquet", rows=1, image=pa.array([b"raw"]))
    make.parquet("b.parquet", rows=1, image=pa.array(["pics/1.png"]))
    make.parquet("c.parquet", rows=1, image=pa.array([r"pics\1.png"]).dictionary_encode())
    swapped = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    make.parquet(
        "d.parquet", rows=1, image=pa.array([{"path": "pics/1.png", "bytes": None}], swapped)
    )
    make.parquet(
        "e.parquet", rows=1, image=pa.array([{"path": "no.png", "bytes": b"own"}], swapped)
    )
    make.parquet("f.parquet", rows=1, image=pa.array([b"view"], pa.binary_view()))
    rows = make.rows(make.plan())
    assert [row.image for row in rows] == [b"raw", b"one", b"one", b"one", b"own", b"view"]
    assert [row.image_name for row in rows][3:5] == ["pics/1.png", "no.png"]


def test_paths_out_of_the_archive_and_odd_files_are_refused(make, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    make.text("in.png", b"in")
    os.symlink(tmp_path / "secret.png", make.archive / "link.png")
    os.symlink(make.archive / "in.png", make.archive / "inside.png")
    os.mkfifo(make.archive / "fifo.png")
    (make.archive / "folder.png").mkdir()
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "fifo.png", "folder.png",
             "http://x/y.png", "C:\\x.png", "a\0b", "gone.png", None, "", "inside.png",
             str(make.archive / "in.png")]  # fmt: skip
    make.parquet(rows=len(names), image=pa.array(names))
    rows = make.rows(make.plan())
    assert codes(rows) == [*["E1108"] * 8, "E1111", "E1111", "E1111", None, None]
    assert all(str(tmp_path) not in str(row.error) for row in rows)


def test_a_row_without_bytes_and_path_is_an_image_missing(make):
    make.parquet(rows=2, image=pa.array([{"bytes": None, "path": None}, None], pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())])))  # fmt: skip
    assert codes(make.rows(make.plan())) == ["E1111", "E1111"]


def test_no_row_is_lost_by_its_id(make):
    """Rows without one are named by file and row, repetitions by their id and that."""
    ids = ["x", None, "", "x ", "a/../b", "nul\0", "y" * 10_000, "cafe\u0301", "caf\u00e9", "ok"]
    make.parquet("a.parquet", rows=10, id=ids)
    make.parquet("b.parquet", rows=2, id=["ok", "fine"])
    planned = make.plan()
    rows = make.rows(planned)
    assert codes(rows) == [None] * 12
    assert [r.id for r in rows] == [
        "x", "a:1", "a:2", "x #a:3", "a/../b", "a:5", "a:6", "cafe\u0301", "caf\u00e9#a:8", "ok",
        "ok#b:0", "fine",
    ]  # fmt: skip
    assert [r.warnings for r in rows[:4]] == [
        (), ("id_missing",), ("id_missing",), ("id_repeated",)
    ]  # fmt: skip
    assert [r.warnings for r in rows[5:7]] == [("id_unusable",)] * 2
    asked = codes(make.rows(make.plan(id_column="id")))
    assert asked == [None] * 5 + ["E1104"] * 2 + [None] * 5
    assert planned.duplicates == 3


def test_whole_number_ids_and_another_id_column(make):
    make.parquet(rows=3, qid=[7, 8, 7], id=[None, None, None])
    assert [r.id for r in make.rows(make.plan(id_column="qid"))] == ["7", "8", "7#a:2"]
    assert [r.id for r in make.rows(make.plan(id_column="none"))] == ["a:0", "a:1", "a:2"]


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (pa.array([7.0, None]), ["7", "a:1"]),
        (pa.array([7.0, float("nan")]), ["7", "a:1"]),
        (pa.array([bytes(15) + b"0"] * 2, pa.binary(16)), [
            "00000000-0000-0000-0000-000000000030", "00000000-0000-0000-0000-000000000030#a:1"]),
        (pa.array([b"a1", b"\xff\0"]), ["a1", "ff00"]),
        (pa.array([1, 2], pa.decimal128(5, 2)), ["1", "2"]),
        (pa.array([0, 86_400], pa.timestamp("s")), ["1970-01-01T00:00:00", "1970-01-02T00:00:00"]),
        (pa.array(["ä/1", "b"], pa.large_string()).dictionary_encode(), ["ä/1", "b"]),
        (pa.array([[1], [2]]), ["a:0", "a:1"]),  # no name, and nobody asked for it
    ],
)  # fmt: skip
def test_ids_of_every_type(make, cells, ids):
    make.parquet(rows=2, id=cells)
    rows = make.rows(make.plan())
    assert [row.id for row in rows] == ids
    assert codes(rows) == [None, None]


LISTS = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}]


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (pa.array([LISTS], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
         (b"one", b"two")),
        (pa.array([[b"one", b"two"]], pa.large_list(pa.large_binary())), (b"one", b"two")),
        (pa.array([["pics/1.png", "pics/2.png"]]), (b"ONE", b"TWO")),
        (pa.array([{"path": "pics/1.png"}]), (b"ONE",)),
        (pa.array(['["pics/1.png", "pics/2.png"]']), (b"ONE", b"TWO")),
        (pa.array([base64.b64encode(PNG).decode()]), (PNG,)),
        (pa.array(["data:image/png;base64," + base64.encodebytes(PNG).decode()]), (PNG,)),
        (pa.array([base64.urlsafe_b64encode(PNG).rstrip(b"=")]), (PNG,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["image", "images"])
def test_pictures_in_every_form(make, cells, found, name):
    make.text("pics/1.png", b"ONE")
    make.text("pics/2.png", b"TWO")
    make.parquet(rows=1, **{"image": None, name: cells})
    planned = make.plan()
    (row,) = make.rows(planned)
    assert row.error is None
    assert row.images == found
    assert planned.images.missing == 0
    assert planned.images.distinct == (len(found) if found[0] in (b"ONE",) else 0)


def test_one_lost_picture_of_several_costs_the_row(make):
    make.text("1.png", b"ONE")
    make.parquet(rows=2, image=pa.array([["1.png", "no.png"], []]))
    planned = make.plan()
    assert codes(make.rows(planned)) == ["E1111", "E1111"]
    assert planned.images.examples == ("no.png",)


def test_messages_of_llama_factory_and_ms_swift_as_parquet(make):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image><image>Which?"},
        {"role": "assistant", "content": "Left."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "It is larger."},
    ]
    make.parquet(rows=1, image=None, question=None, answer=None, messages=[said],
                 images=pa.array([[b"one", b"two"]]))  # fmt: skip
    (row,) = make.rows(make.plan())
    assert (row.question, row.reference, row.system) == ("Why?", "It is larger.", "Be brief.")
    assert row.history == (("user", "Which?"), ("assistant", "Left."))
    assert row.images == (b"one", b"two")
    assert row.warnings == ("image_mark",)


def test_files_of_the_same_name_in_two_folders_get_different_ids(make):
    make.parquet("x/a.parquet", rows=2)
    make.parquet("y/a.parquet", rows=2)
    ids = [row.id for row in make.rows(make.plan())]
    assert len(set(ids)) == 4
    assert ids[0] == "x.a:0"


def test_text_that_cannot_be_stored_is_named(make):
    questions = pa.array([b"fine", b"\xff\xfe", b"nul\0", b"  ", None]).cast(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 5, questions.buffers())
    make.parquet(rows=5, question=broken)
    rows = make.rows(make.plan())
    assert codes(rows) == [None, "E1304", "E1304", "E1301", "E1301"]
    assert rows[1].question is None


def test_one_question_for_all_needs_no_question_column(make):
    make.parquet(rows=2, question=None)
    with pytest.raises(DataError) as caught:
        make.plan()
    assert caught.value.code == "E1101"
    rows = make.rows(make.plan(question="What is shown?"))
    assert [row.question for row in rows] == ["What is shown?"] * 2


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"image": None}, "E1101"),
        ({"image": pa.array([[1], [2]])}, "E1109"),
        ({"image": pa.array([1, 2])}, "E1109"),
        ({"question": pa.array([1, 2])}, "E1109"),
    ],
)
def test_missing_and_mistyped_columns_stop_before_anything_starts(make, columns, code):
    make.parquet(rows=2, **columns)
    with pytest.raises(DataError) as caught:
        make.plan()
    assert caught.value.code == code
    assert "a.parquet" in str(caught.value)
    assert str(make.root) not in str(caught.value)


def test_a_named_column_that_is_missing_is_named_in_the_message(make):
    make.parquet(rows=2)
    for setting in ("id_column", "answer_column", "image_column", "question_column"):
        with pytest.raises(DataError, match="no column 'nope'"):
            make.plan(**{setting: "nope"})


def test_unreadable_files_are_listed_and_the_rest_is_planned(make):
    whole = make.parquet("a.parquet", rows=3).read_bytes()
    make.text("b.parquet", b"")
    make.text("c.parquet", whole[: len(whole) // 2])
    make.text("d.parquet", b"<html>not found</html>" * 10)
    make.text("e.parquet", whole[:-8] + (2**30).to_bytes(4, "little") + b"PAR1")
    make.parquet("f.parquet", rows=3, image=None)
    make.parquet("g.parquet", rows=2)
    planned = make.plan()
    assert planned.rows == 5
    assert [(u.name, u.code) for u in planned.unreadable] == [
        ("b.parquet", "E1105"), ("c.parquet", "E1105"), ("d.parquet", "E1105"),
        ("e.parquet", "E1105"), ("f.parquet", "E1101"),
    ]  # fmt: skip
    assert [row.id for row in make.rows(planned)] == ["a:0", "a:1", "a:2", "g:0", "g:1"]


def test_an_archive_of_unreadable_files_only_raises(make):
    make.text("a.parquet", b"")
    with pytest.raises(DataError) as caught:
        make.plan()
    assert caught.value.code == "E1105"


def flip_data(path, group: int) -> None:
    """Flip a bit in the middle of the first column of a row group."""
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(group).column(0)
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_page_costs_its_rows_and_no_others(make):
    images = pa.array([os.urandom(200) for _ in range(24)])
    path = make.parquet(rows=24, row_group_size=8, image=images)
    flip_data(path, group=1)
    planned = make.plan()
    rows = make.rows(planned)
    assert codes(rows) == [*[None] * 8, *["E1105"] * 8, *[None] * 8]
    assert [row.row for row in rows] == list(range(24))
    assert rows[9].id == "a:9"
    assert codes(make.rows(planned)) == codes(rows)  # remembered damage and found damage agree


def test_no_row_before_a_damaged_page_is_lost(make):
    """Many pages in one row group, damage in a late one: batches are larger than pages."""
    path = make.archive / "a.parquet"
    images = pa.array([os.urandom(50) for _ in range(400)])
    questions = [f"q{r}?" for r in range(400)]
    pq.write_table(
        pa.table({"image": images, "question": questions}),
        path,
        data_page_size=1000,
        write_batch_size=20,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    data[data.index(images[310].as_py())] ^= 1
    path.write_bytes(data)
    planned = make.plan(chunk_rows=32)
    found = codes(make.rows(planned))
    first = found.index("E1105")
    assert 280 < first <= 310
    assert found == [None] * first + ["E1105"] * (400 - first)
    backwards = [
        code for c in planned.chunks[::-1] for code in codes(read_rows(planned.archive, c))
    ]
    assert backwards.count("E1105") == 400 - first


def test_a_damaged_id_column_leaves_the_other_files_ids_in_order(make):
    path = make.parquet("a.parquet", rows=8, id=[f"a{r}" for r in range(8)])
    make.parquet("b.parquet", rows=4, id=["a0", None, "b2", "b2"])
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(4)
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    planned = make.plan()
    assert [(u.name, u.code) for u in planned.unreadable] == [("a.parquet", "E1105")]
    assert codes(make.rows(planned)) == [None] * 4
    assert [row.id for row in make.rows(planned)] == ["a0", "b:1", "b2", "b2#b:3"]


def test_flipped_bits_anywhere_never_escape_the_catalogue(make):
    """No crash, no other exception, every planned row comes back; damage to data is noticed."""
    images = [os.urandom(40) for _ in range(12)]
    path = make.parquet(rows=12, row_group_size=6, image=pa.array(images), id=list(range(12)))
    whole = path.read_bytes()
    picks = random.Random(2)
    for _ in range(150):
        data = bytearray(whole)
        data[picks.randrange(len(data))] ^= 1 << picks.randrange(8)
        path.write_bytes(data)
        try:
            planned = make.plan()
        except DataError:
            continue
        rows = make.rows(planned)
        assert len(rows) == planned.rows
        assert all(row.image in images for row in rows if row.error is None)


def test_a_cell_larger_than_the_limit_is_not_handed_on(make):
    make.parquet(rows=3, image=pa.array([b"a" * 10, b"b" * 101, b"c" * 10]))
    assert codes(make.rows(make.plan(max_image_bytes=100))) == [None, "E1112", None]


def test_a_bomb_is_refused_by_its_footer(make, monkeypatch):
    monkeypatch.setattr("medv_ray.archive.parquet.BOMB_BYTES", 2**20)
    path = make.archive / "a.parquet"
    table = pa.table({"image": pa.array([bytes(4 * 2**20)]), "question": ["q"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(cursor.Cursor, "take", lambda *_: pytest.fail("the bomb was read"))
    assert codes(make.rows(make.plan())) == ["E1112"]


def test_large_images_make_small_chunks(make, monkeypatch):
    monkeypatch.setattr("medv_ray.archive.parquet.CHUNK_BYTES", 4000)
    make.parquet(rows=8, image=pa.array([os.urandom(1000) for _ in range(8)]))
    planned = make.plan(chunk_rows=8)
    assert 1 < len(planned.chunks) <= 8
    assert [row.row for row in make.rows(planned)] == list(range(8))


@pytest.mark.parametrize("fate", ["vanished", "replaced", "appended"])
def test_a_file_that_changes_after_planning_raises_before_any_row(make, fate):
    path = make.parquet(rows=4)
    other = make.parquet("b.parquet", rows=4)
    planned = make.plan()
    if fate == "vanished":
        path.unlink()
    elif fate == "replaced":
        shutil.copy(other, path)
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError) as caught:
        read_rows(planned.archive, planned.chunks[0])
    assert caught.value.code == "E1107"
    assert str(make.root) not in str(caught.value)
    assert len(read_rows(planned.archive, planned.chunks[1])) == 4


def test_a_failing_disk_is_not_taken_for_a_damaged_file(make, monkeypatch):
    make.parquet(rows=4)
    planned = make.plan()

    def broken(*shown):
        def take(*_):
            raise OSError(*shown)
            yield

        return take

    monkeypatch.setattr(cursor.Cursor, "take", broken("Corrupt snappy data"))
    assert codes(make.rows(planned)) == ["E1105"] * 4
    cursor._open.damaged.clear()
    monkeypatch.setattr(cursor.Cursor, "take", broken(5, "Input/output error"))
    with pytest.raises(DataError) as caught:
        make.rows(planned)
    assert caught.value.code == "E1107"


def test_real_vqa_rad_parquet(make, vqa_rad):
    rows = make.rows(make.plan(archive=str(vqa_rad / "hf_parquet"), chunk_rows=32))
    assert len(rows) == 120
    assert codes(rows) == [None] * 120
    assert all(row.image[:2] == b"\xff\xd8" for row in rows)


def text_of(cells: list[bytes]) -> pa.Array:
    """Text as writers leave it that do not check it."""
    return pa.Array.from_buffers(pa.string(), len(cells), pa.array(cells).buffers())


def one_each(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)


DAYS = pa.array([1, 3_000_000, 2], pa.int32()).cast(pa.date32())
TWICE = pa.StructArray.from_arrays([DAYS, DAYS], ["x", "x"])
TEXTS = text_of([b"ok", b"\xff\xfe", b"fine"])
OWN = pa.array([b"first", b"second", b"third"])


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("answer", DAYS),
        ("id", DAYS),
        ("answer", pa.array([1, 2**62, 5], pa.duration("ms"))),
        ("answer", pa.array([1, 2, 3], pa.timestamp("us", tz="Mars/City"))),
        ("answer", TWICE),
        ("answer", pa.StructArray.from_arrays([TEXTS], ["text"])),
        ("image", one_each(pa.StructArray.from_arrays([OWN, TEXTS], ["bytes", "path"]))),
    ],
)
def test_a_cell_that_python_has_no_value_for_costs_nothing_else(make, column, cells):
    make.parquet(rows=3, **{column: cells})
    rows = make.rows(make.plan())
    assert codes(rows) == [None] * 3
    said = {"answer": "answer_is_no_text", "id": "id_unusable"}.get(column)
    assert said is None or said in rows[1].warnings
    assert column != "id" or [row.id for row in rows] == ["1970-01-02", "a:1", "1970-01-03"]


def test_a_message_that_is_not_utf8_costs_its_own_row(make):
    said = pa.StructArray.from_arrays([pa.array(["user"] * 3), TEXTS], ["role", "content"])
    make.parquet(rows=3, question=None, messages=one_each(said))
    assert codes(make.rows(make.plan())) == [None, "E1109", None]


def test_names_beside_one_that_is_not_utf8_are_looked_up(make):
    make.text("ok", b"first")
    make.text("fine", b"last")
    make.parquet(rows=3, image=pa.StructArray.from_arrays([TEXTS], ["path"]))
    planned = make.plan()
    assert planned.images.distinct == 2
    assert [row.image for row in make.rows(planned)] == [b"first", None, b"last"]


def test_a_struct_whose_bytes_are_none_is_refused_by_its_type(make):
    make.parquet(rows=3, image=pa.array([{"bytes": [1, 2], "path": "p"}] * 3))
    with pytest.raises(DataError) as caught:
        make.plan()
    assert caught.value.code == "E1109"
    assert "list<element: int64>" in str(caught.value)


@pytest.mark.parametrize("path", [["p"], 1, b"\xff"])
def test_a_struct_whose_path_is_no_text_has_its_bytes_alone(make, path):
    paths = text_of([path] * 3) if isinstance(path, bytes) else pa.array([path] * 3)
    make.parquet(rows=3, image=pa.StructArray.from_arrays([OWN, paths], ["bytes", "path"]))
    assert [row.image for row in make.rows(make.plan())] == OWN.to_pylist()
    rows = make.rows(make.plan(max_image_bytes=1))
    assert codes(rows) == ["E1112"] * 3
    assert {row.image_names for row in rows} == {(None,)}
