import io
import json
import random
import tarfile
import tracemalloc

import pytest

from medv_ray.errors import DataError


def codes(rows):
    return [row.error.code if row.error else None for row in rows]


def test_members_of_one_key_are_a_row(make):
    make.tar(
        [
            ("b.jpg", b"image b", {}),
            ("b.txt", "größer?".encode(), {}),
            ("a.json", json.dumps({"question": "a?", "id": 7, "answer": "yes"}).encode(), {}),
            ("a.PNG", b"image a", {}),
            ("notes.cls", b"1", {}),
            ("dir", b"", {"type": tarfile.DIRTYPE}),
        ]
    )
    planned = make.plan()
    rows = make.rows(planned)
    assert [(r.id, r.question, r.image, r.reference) for r in rows] == [
        ("b", "größer?", b"image b", None),
        ("7", "a?", b"image a", "yes"),
    ]
    assert planned.ignored == 1


def test_keys_of_a_json_member_that_mean_nothing_here(make, tmp_path):
    for name, error in (("a", "none"), ("b", None)):
        said = {"question": "q?", "error": error, "warnings": []}
        members = [(f"{name}.jpg", b"x", {}), (f"{name}.json", json.dumps(said).encode(), {})]
        make.tar(members, f"{name}.tar")
    planned = make.plan()
    assert [(row.id, row.question, row.error) for row in make.rows(planned)] == [
        ("a", "q?", None), ("b", "q?", None),
    ]  # fmt: skip
    assert make.job(planned, tmp_path / "run").answered == 2


def test_a_key_keeps_its_dots_and_folders(make):
    make.tar([("s/1.2.840.113.dcm.jpg", b"x", {}), ("s/1.2.840.113.dcm.txt", b"q?", {})])
    rows = make.rows(make.plan())
    assert [(row.id, row.image_name, row.question) for row in rows] == [
        ("s:1.2.840.113.dcm", "s/1.2.840.113.dcm.jpg", "q?")
    ]


def test_members_need_not_lie_side_by_side(make):
    names = [f"{k:03d}" for k in range(50)]
    members = [(f"{n}.jpg", n.encode(), {}) for n in names]
    make.tar(members + [(f"{n}.txt", f"q {n}".encode(), {}) for n in reversed(names)])
    rows = make.rows(make.plan())
    assert [(row.id, row.image, row.question) for row in rows] == [
        (n, n.encode(), f"q {n}") for n in names
    ]


@pytest.mark.parametrize("order", ["iTIT", "TiTI", "iITT", "TTiI"])
def test_a_key_that_comes_twice_is_two_pairs(make, order):
    texts, images = iter((b"first?", b"second?")), {"i": ("A.JPG", b"1"), "I": ("A.jpg", b"2")}
    members = [("A.txt", next(texts)) if one == "T" else images[one] for one in order]
    make.tar([(name, data, {}) for name, data in members] + [("A.png", b"3", {})])
    rows = make.rows(make.plan())
    assert [(row.image, row.question) for row in rows[:2]] == [(b"1", "first?"), (b"2", "second?")]
    assert codes(rows) == [None, None, "E1301"]
    assert len({row.id for row in rows}) == 3


def test_labels_and_folders_of_backups_are_no_rows(make):
    folder = ("dir/", b"Ya.jpg\0", {"type": b"D"})
    make.tar([("ward 7", b"", {"type": b"V"}), folder, ("dir/a.jpg", b"x", {})])
    planned = make.plan(question="What?")
    assert [(row.id, row.image) for row in make.rows(planned)] == [("dir:a", b"x")]
    assert planned.ignored == 0


def test_attacks_become_quarantined_rows(make):
    make.tar(
        [
            ("good.jpg", b"x", {}),
            ("../up.jpg", b"x", {}),
            ("/etc/abs.jpg", b"x", {}),
            ("..\\win.jpg", b"x", {}),
            ("C:\\win.jpg", b"x", {}),
            ("link.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
            ("hard.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "good.jpg"}),
            ("device", b"", {"type": tarfile.CHRTYPE}),
            ("pipe.jpg", b"", {"type": tarfile.FIFOTYPE}),
            ("good.jpg", b"again", {}),
            ("ctrl\x07.jpg", b"x", {}),
            ("last.jpg", b"y", {}),
        ]
    )
    planned = make.plan(question="What?")
    rows = make.rows(planned)
    assert codes(rows) == [None, *["E1106"] * 8, None, None, None]
    assert (rows[10].id, rows[10].warnings) == ("a:10", ("id_unusable",))
    assert len({row.id for row in rows}) == 12
    assert [row.image for row in rows if row.error is None] == [b"x", b"again", b"x", b"y"]
    assert rows[9].id == "good#a:9"


def test_rows_that_lack_a_part(make):
    make.tar(
        [
            ("a.jpg", b"x", {}),
            ("b.txt", b"b?", {}),
            ("c.jpg", b"x", {}), ("c.json", b'{"question": NaN}', {}),
            ("d.jpg", b"x", {}), ("d.json", b"[]", {}),
            ("e.jpg", b"x", {}), ("e.txt", b"\xff\xfe", {}),
            ("f.jpg", b"x", {}), ("f.txt", b" " * (2**20 + 1), {}),
            ("g.jpg", b"x" * 200, {}), ("g.txt", b"g?", {}),
        ]
    )  # fmt: skip
    rows = make.rows(make.plan(max_image_bytes=100))
    assert codes(rows) == ["E1301", "E1111", "E1109", "E1109", "E1304", "E1109", "E1112"]
    assert rows[5].error.detail.endswith(f"{2**20 + 1} bytes; the limit is {2**20}.")


def test_a_member_that_claims_gigabytes_is_never_read(make):
    info = tarfile.TarInfo("huge.jpg")
    info.size = 3 * 2**30
    path = make.text("a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError) as caught:
        make.plan(question="q?")
    assert caught.value.code == "E1105"
    with path.open("r+b") as file:  # sparse: the shard is really that long
        file.truncate(512 + info.size + 1024)
    assert codes(make.rows(make.plan(question="q?"))) == ["E1112"]


@pytest.mark.parametrize(
    "damage", ["empty", "text", "cut member", "cut end", "header", "gzip", "more"]
)
def test_a_damaged_shard_is_listed_and_the_others_are_read(make, damage):
    members = [(f"{k}.jpg", b"x" * 600, {}) for k in range(5)]
    make.tar(members, "b.tar")
    path = make.tar(members, "a.tar")
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"<html>" * 500)
    elif damage == "cut member":
        data = data[: 1536 * 3 + 700]
    elif damage == "cut end":
        data = data[: 1536 * 3]  # on a member's border: only the end mark is missing
    elif damage == "header":
        data[1536 * 2 + 3] ^= 1
    elif damage == "gzip":
        data = bytearray(b"\x1f\x8b" + bytes(2000))
    else:
        data += io.BytesIO(path.read_bytes()).getvalue()
    path.write_bytes(data)
    planned = make.plan(question="q?")
    assert [(u.name, u.code) for u in planned.unreadable] == [("a.tar", "E1105")]
    rows = make.rows(planned)
    assert [row.id for row in rows] == ["0", "1", "2", "3", "4"]
    assert codes(rows) == [None] * 5


def test_damaged_headers_never_escape_the_catalogue(make):
    path = make.tar([(f"{k}.jpg", b"x" * 100, {}) for k in range(6)])
    whole = path.read_bytes()[: 1024 * 6 + 1024]
    picks = random.Random(4)
    for _ in range(150):
        data = bytearray(whole)
        header = 1024 * picks.randrange(6)
        data[header + picks.randrange(512)] = picks.randrange(256)
        path.write_bytes(data)
        try:
            planned = make.plan(question="q?")
        except DataError as error:
            assert error.code == "E1105"  # noqa: PT017
            continue
        assert len(make.rows(planned)) == planned.rows == 6


@pytest.mark.parametrize("size", [-1, -512])
def test_a_member_of_a_size_below_0_ends_its_shard_alone(make, size):
    make.tar([("k.jpg", b"image", {}), ("k.txt", b"what?", {})], "good.tar")
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    make.text("bad.tar", bytes(header) + bytes(1024))
    planned = make.plan()
    assert [(one.name, one.code) for one in planned.unreadable] == [("bad.tar", "E1105")]
    assert [row.id for row in make.rows(planned)] == ["k"]


def test_thousands_of_long_names_in_front_of_one_member(make):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    block = info.tobuf(tarfile.GNU_FORMAT) + b"a.jp\0".ljust(512, b"\0")
    make.tar([("b.jpg", b"x", {})], "b.tar")
    (make.archive / "a.tar").write_bytes(block * 3000 + bytes(1024))
    planned = make.plan(question="q?")
    assert [(u.name, u.code) for u in planned.unreadable] == [("a.tar", "E1105")]
    assert planned.rows == 1


def test_long_names_and_pax_headers(make):
    name = "d" * 90 + "/" + "n" * 150 + ".jpg"
    make.tar([(name, b"long", {}), ("é.jpg", b"accent", {})])
    rows = make.rows(make.plan(question="q?"))
    assert [row.image for row in rows] == [b"long", b"accent"]
    assert rows[1].id == "é"


def test_large_members_make_small_chunks(make, monkeypatch):
    monkeypatch.setattr("medv_ray.archive.tars.CHUNK_BYTES", 250)
    make.tar([(f"{k}.jpg", b"x" * 100, {}) for k in range(5)])
    planned = make.plan(question="q?")
    assert [len(chunk.rows) for chunk in planned.chunks] == [2, 2, 1]
    assert [row.id for row in make.rows(planned)] == list("01234")


def test_texts_of_a_shard_are_not_held_together(make):
    text = json.dumps({"question": "q" * 500_000}).encode()
    members = [(f"{n}.{end}", data, {}) for n in range(60) for end, data in
               (("json", text), ("jpg", b"img"))]  # fmt: skip
    make.tar(members)
    tracemalloc.start()
    planned = make.plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert planned.rows == 60
    assert peak < 12 * 2**20


@pytest.mark.parametrize(
    "data", [b"[1, 2]", b"{broken", b"\xff", b"7", b'{"messages": 7}', b" " * (2**20 + 1)]
)
def test_a_json_member_that_a_row_does_not_need(make, data):
    make.tar([("2.jpg", b"x", {}), ("2.txt", b"q?", {}), ("2.json", data, {})])
    (row,) = make.rows(make.plan())
    assert (row.id, row.question, row.error) == ("2", "q?", None)
    assert row.warnings == ("json_unusable",)
    (row,) = make.rows(make.plan(id_column="none"))
    assert row.error is None
    if len(data) > 100:
        return
    if not data.startswith(b'{"'):
        (row,) = make.rows(make.plan(id_column="id"))
        assert codes([row]) in (["E1109"], ["E1304"])
    make.tar([("2.jpg", b"x", {}), ("2.json", data, {})])
    assert codes(make.rows(make.plan())) in (["E1109"], ["E1304"])


def test_an_id_in_a_json_member_that_is_no_name(make):
    said = json.dumps({"question": "q?", "id": [1]}).encode()
    make.tar([("2.jpg", b"x", {}), ("2.json", said, {})])
    (row,) = make.rows(make.plan())
    assert (row.id, row.error, row.warnings) == ("a:0", None, ("id_unusable",))
