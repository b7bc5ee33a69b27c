"""Archives that grow: what is scored stays, what was added is scored, what changed is refused."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.archive.survey import survey
from medv_ray.errors import RunError

pytestmark = pytest.mark.integration

IDENTITY = {"settings": {"steps": 64}, "model": "m"}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are named; that they are not by default, tests/canary holds."""
    monkeypatch.setenv("MEDV_NAMES", "1")


class Kind:
    """An archive of `rows` rows that can be made to grow by one."""

    def __init__(self, make, settings: dict, first: Callable, add: Callable) -> None:
        self.make, self.settings = make, settings
        self.first, self.add = first, add


def images(make) -> Kind:
    def put(*names: str) -> None:
        for name in names:
            make.text(name, name)

    return Kind(
        make, {"question": "What?"},
        lambda: put(*(f"{k:02d}.png" for k in range(10))),
        lambda turn: put(f"0{turn}a.png"),
    )  # fmt: skip


def parquet(make) -> Kind:
    return Kind(
        make, {},
        lambda: (make.parquet("b.parquet", rows=6), make.parquet("c.parquet", rows=4)),
        lambda turn: make.parquet(f"a{turn}.parquet", rows=1),
    )  # fmt: skip


def table(make, name: str, record: Callable[[int], str], header: str = "") -> Kind:
    def first() -> None:
        for number in range(5):
            make.text(f"{number}.png", f"{number}")
        make.text(name, header + "".join(record(k) for k in range(10)))

    def add(turn: int) -> None:
        make.text(f"new{turn}.png", "new")
        with (make.archive / name).open("a") as file:
            file.write(record(9 + turn))

    return Kind(make, {}, first, add)


def csv(make) -> Kind:
    return table(make, "q.csv", lambda k: f"{k % 5}.png,what {k}?\n", "image,question\n")


def csv_without_last_line_end(make) -> Kind:
    """The last line ends with the file; what is added brings the line end before it."""
    return table(make, "q.csv", lambda k: f"\n{k % 5}.png,what {k}?", "image,question")


def jsonl(make) -> Kind:
    record = lambda k: json.dumps({"id": k, "image": f"{k % 5}.png", "question": "q?"}) + "\n"  # noqa: E731
    return table(make, "q.jsonl", record)


def json_list(make) -> Kind:
    rows = [{"id": k, "image": f"{k % 5}.png", "question": "q?"} for k in range(12)]

    def write(count: int) -> None:
        for number in range(5):
            path = make.archive / f"{number}.png"
            if not path.exists():
                make.text(path.name, "x")
        make.text("q.json", json.dumps(rows[:count]))

    return Kind(make, {}, lambda: write(10), lambda turn: write(10 + turn))


def members(*numbers: int) -> list[tuple[str, bytes, dict]]:
    found: list[tuple[str, bytes, dict]] = []
    for number in numbers:
        found += [(f"{number}.jpg", b"x%d" % number, {}), (f"{number}.txt", b"what?", {})]
    return found


def tar_added(make) -> Kind:
    return Kind(
        make, {},
        lambda: make.tar(members(*range(10)), "b.tar"),
        lambda turn: make.tar(members(20 + turn), f"a{turn}.tar"),
    )  # fmt: skip


def tar_appended(make) -> Kind:
    def add(turn: int) -> None:
        with tarfile.open(make.archive / "b.tar", "a") as tar:
            for name, data, _ in members(20 + turn):
                path = make.root / name
                path.write_bytes(data)
                tar.add(path, name)

    return Kind(make, {}, lambda: make.tar(members(*range(10)), "b.tar"), add)


def two_tars(make) -> Kind:
    kind = tar_added(make)
    return Kind(make, {}, lambda: (kind.first(), kind.add(3)), kind.add)


KINDS = [
    images, parquet, csv, csv_without_last_line_end, jsonl, json_list, tar_added, tar_appended,
]  # fmt: skip


def grow(kind: Kind, out: str, stop_after: int | None = None, **settings) -> tuple[int, bool]:
    """How many rows were scored, and whether it ended."""
    planned = kind.make.plan(out=out, **{**kind.settings, **settings})
    scored = 0
    with Run.open(out, planned, IDENTITY, allow_added=True) as run:
        for done, chunk in enumerate(run.todo()):
            if done == stop_after:
                return scored, False
            run.commit(write_part(run.store, chunk, kind.make.records(planned, chunk)))
            scored += len(chunk.rows)
        assert run.finish().rows == planned.rows
    return scored, True


def answers(out: str) -> dict[tuple[int, int], tuple[str, str]]:
    """(id, chunk) by (file, row); no row comes twice."""
    rows = [row for part in read_run(out) for row in part.to_pylist()]
    found = {(row["file"], row["row"]): (row["id"], row["chunk"]) for row in rows}
    assert len(found) == len(rows) == len({row["id"] for row in rows})
    return found


@pytest.mark.parametrize("out", ["local"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fingerprint", ["fast", "full"])
def test_only_new_rows_are_scored_each_time(make, out, kind, fingerprint):
    kind = kind(make)
    kind.first()
    assert grow(kind, out, fingerprint=fingerprint) == (10, True)
    for turn in (1, 2):
        before = answers(out)
        kind.add(turn)
        assert grow(kind, out, fingerprint=fingerprint) == (1, True)
        after = answers(out)
        assert len(after) == 10 + turn
        assert {at: after[at] for at in before} == before
        assert grow(kind, out, fingerprint=fingerprint) == (0, True)
    manifest = json.loads(Store(out).read("run.json"))
    assert [one["rows"] for one in manifest["grown"]] == [1, 1]
    assert not manifest["mixed_with"]


@pytest.mark.integration
@pytest.mark.parametrize("out", ["s3"], indirect=True)
def test_the_same_with_the_run_on_an_object_store(make, out):
    """Where the run lies does not depend on the kind of archive; more kinds on a store, and their
    runs too, are below, by the other fingerprint."""
    test_only_new_rows_are_scored_each_time(make, out, images, "full")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_and_amid_growth(make, tmp_path, kind):
    kind, out = kind(make), str(tmp_path / "run")
    kind.first()
    assert grow(kind, out, stop_after=1) == (4, False)
    kind.add(1)
    assert grow(kind, out, stop_after=1)[1] is False
    committed = answers(out)
    kind.add(2)
    scored, ended = grow(kind, out)
    assert ended
    assert scored == 12 - len(committed)
    found = answers(out)
    assert {at: found[at] for at in committed} == committed
    planned = kind.make.plan(out=out, **kind.settings)
    with Run.open(out, planned, IDENTITY) as run:  # a resume needs no flag
        assert run.todo() == []


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_flag_growth_is_refused_and_the_flag_is_named(make, tmp_path, kind):
    kind, out = kind(make), str(tmp_path / "run")
    kind.first()
    grow(kind, out)
    kind.add(1)
    planned = make.plan(out=out, **kind.settings)
    with pytest.raises(RunError, match="--allow-added") as caught:
        Run.open(out, planned, IDENTITY)
    assert caught.value.code == "E1502"
    known = survey(planned, out, IDENTITY)
    assert known.changes
    assert known.added_rows == 1
    assert survey(planned, out, IDENTITY, allow_added=True).changes == ()


def change(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def swapped(path: Path) -> None:
    """One byte of an earlier row, in place."""
    data = bytearray(path.read_bytes())
    data[data.index(b"what")] = ord("W")
    change(path, bytes(data))


REFUSED = [
    (images, lambda at: change(at / "03.png", b"other"), "image '03.png' changed"),
    (images, lambda at: (at / "03.png").unlink(), "image '03.png' removed"),
    (images, lambda at: (at / "03.png").rename(at / "zz.png"), "image '03.png' removed"),
    (parquet, lambda at: os.utime(at / "b.parquet"), "'b.parquet' changed"),
    (parquet, lambda at: (at / "b.parquet").unlink(), "'b.parquet' removed"),
    (csv, lambda at: swapped(at / "q.csv"), "'q.csv' changed"),
    (csv, lambda at: change(at / "q.csv", b"image,question\n0.png,what 0?\n"), "'q.csv' changed"),
    (csv, lambda at: change(at / "2.png", b"other"), "image '2.png' changed"),
    (csv, lambda at: (at / "2.png").unlink(), "image '2.png' removed"),
    (
        jsonl,
        lambda at: change(at / "q.jsonl", b'{"image": "1.png", "question": "q?"}'),
        "'q.jsonl' changed",
    ),
    (tar_appended, lambda at: swapped(at / "b.tar"), "'b.tar' changed"),
    (two_tars, lambda at: (at / "b.tar").unlink(), "'b.tar' removed"),
]


@pytest.mark.parametrize(("kind", "spoil", "text"), REFUSED)
@pytest.mark.parametrize("grows", [True, False])
def test_what_changed_or_is_gone_is_refused_by_name(make, tmp_path, kind, spoil, text, grows):
    kind, out = kind(make), str(tmp_path / "run")
    kind.first()
    grow(kind, out)
    if grows:
        kind.add(1)
    spoil(make.archive)
    with pytest.raises(RunError) as caught:
        grow(kind, out)
    assert caught.value.code == "E1502"
    assert text in str(caught.value)
    assert str(make.root) not in str(caught.value)


def test_a_member_that_completes_an_earlier_row_changes_it(make, tmp_path):
    out = str(tmp_path / "run")
    kind = Kind(make, {}, lambda: make.tar([*members(1, 2), ("3.jpg", b"x", {})]), tar_appended)
    kind.first()
    grow(kind, out)
    (make.root / "3.txt").write_text("what?")
    with tarfile.open(make.archive / "a.tar", "a") as tar:
        tar.add(make.root / "3.txt", "3.txt")
    with pytest.raises(RunError, match=r"'a\.tar' changed"):
        grow(kind, out)


def test_settings_stay_checked(make, tmp_path):
    kind, out = images(make), str(tmp_path / "run")
    kind.first()
    grow(kind, out)
    kind.add(1)
    planned = make.plan(out=out, **kind.settings)
    with pytest.raises(RunError, match=r"settings\.steps: 64 -> 32"):
        Run.open(out, planned, {**IDENTITY, "settings": {"steps": 32}}, allow_added=True)
    with pytest.raises(RunError, match=r"archive\.chunk_rows: 4 -> 8"):
        grow(kind, out, chunk_rows=8)


def test_an_id_that_comes_again_belongs_to_the_earlier_row(make, tmp_path):
    """The new file and the new rows lie before the old ones in the order of names."""
    out = str(tmp_path / "run")
    line = "{},0.png,q?\n".format
    make.text("0.png", "x")
    make.text("b.csv", "id,image,question\n" + line("x"))
    make.text("c.csv", "id,image,question\n" + line("y"))
    kind = Kind(make, {}, None, None)
    grow(kind, out)
    before = answers(out)
    make.text("a.csv", "id,image,question\n" + line("x"))
    with (make.archive / "b.csv").open("a") as file:
        file.write(line("y"))
    assert grow(kind, out) == (2, True)
    found = answers(out)
    assert {at: found[at] for at in before} == before
    assert [found[at][0] for at in ((0, 0), (1, 0))] == ["x", "y"]


def test_stems_of_earlier_files_stay(make, tmp_path):
    out = str(tmp_path / "run")
    make.parquet("x/a.parquet", rows=2)
    kind = Kind(make, {}, None, None)
    grow(kind, out)
    make.parquet("y/a.parquet", rows=2)
    make.parquet("b/a.parquet", rows=2)
    assert grow(kind, out) == (4, True)
    ids = {row_id for row_id, _ in answers(out).values()}
    assert ids == {"a:0", "a:1", "y.a:0", "y.a:1", "b.a:0", "b.a:1"}


def test_limit_counts_the_earlier_rows_first(make, tmp_path):
    out = str(tmp_path / "run")
    kind = csv(make)
    kind.first()
    assert grow(kind, out, limit=11) == (10, True)
    make.text("a.csv", "image,question\n" + "1.png,more?\n" * 3)
    kind.add(1)
    assert grow(kind, out, limit=11) == (1, True)
    assert len(answers(out)) == 11


def test_an_image_that_was_missing_and_came_is_added(make, tmp_path):
    out = str(tmp_path / "run")
    make.text("1.png", "x")
    make.text("q.csv", "image,question\n1.png,a?\n2.png,b?\n")
    kind = Kind(make, {}, None, None)
    grow(kind, out)
    make.text("2.png", "y")
    hint = r"image '2\.png' added.* --allow-added --retry-quarantined scores"
    with pytest.raises(RunError, match=hint):
        Run.open(out, make.plan(out=out), IDENTITY)
    assert grow(kind, out) == (0, True)
    planned = make.plan(out=out)
    with Run.open(out, planned, IDENTITY, retry_quarantined=True) as run:
        assert [len(chunk.rows) for chunk in run.todo()] == [2]


def test_a_repaired_file_joins_behind_the_others(make, tmp_path):
    out = str(tmp_path / "run")
    make.parquet("b.parquet", rows=2, id=["x", "y"])
    make.text("a.parquet", b"")
    kind = Kind(make, {}, None, None)
    grow(kind, out)
    before = answers(out)
    make.parquet("a.parquet", rows=2, id=["y", "z"])
    planned = make.plan(out=out)
    with Run.open(out, planned, IDENTITY) as run:
        assert [chunk.file for chunk in run.todo()] == [0]
    assert grow(kind, out) == (2, True)
    assert {at: answers(out)[at] for at in before} == before


def test_a_plan_from_before_another_job_let_the_run_grow(make, tmp_path):
    kind, out = images(make), str(tmp_path / "run")
    kind.first()
    grow(kind, out)
    kind.add(1)
    stale = make.plan(**kind.settings)  # knows nothing of the run
    grow(kind, out)
    with pytest.raises(RunError, match="the run grew"):
        Run.open(out, stale, IDENTITY, allow_added=True)


def test_lists_of_images_are_checked_and_old_ones_removed(make, tmp_path):
    kind, out = images(make), tmp_path / "run"
    kind.first()
    grow(kind, str(out))
    kind.add(1)
    grow(kind, str(out))
    [listed] = (out / "inputs").iterdir()
    listed.write_bytes(listed.read_bytes()[:-1])
    with pytest.raises(RunError) as caught:
        make.plan(out=out, **kind.settings)
    assert caught.value.code == "E1506"


def test_a_run_folder_of_an_earlier_form_is_refused(make, tmp_path):
    from medv_ray.archive import manifest

    make.parquet()
    planned, out = make.plan(), tmp_path / "run"
    make.job(planned, out)
    found = json.loads((out / "run.json").read_text())
    manifest.write_manifest(Store(str(out)), {**found, "version": 1})
    with pytest.raises(RunError, match="version 1"):
        Run.open(str(out), make.plan(), IDENTITY, allow_mixed=True)


@pytest.mark.integration
@pytest.mark.parametrize("kind", [images, csv, tar_appended, parquet])
def test_an_archive_on_an_object_store(make, s3_server, kind):
    from pyarrow import fs

    name, kind = kind.__name__, kind(make)
    s3, out = fs.FileSystem.from_uri("s3://bucket")[0], f"s3://bucket/grow-out-{name}"
    place = f"bucket/grow-in-{name}"
    kind.settings["archive"] = f"s3://{place}"

    def upload() -> None:
        there = {info.base_name for info in s3.get_file_info(fs.FileSelector(place, True, True))}
        for path in make.archive.iterdir():
            if path.name not in there or path.suffix in (".csv", ".tar"):
                fs.copy_files(str(path), f"{place}/{path.name}", destination_filesystem=s3)

    s3.create_dir(place)
    kind.first()
    upload()
    assert grow(kind, out) == (10, True)
    kind.add(1)
    upload()
    assert grow(kind, out) == (1, True)
    assert len(answers(out)) == 11


@pytest.mark.parametrize("ids", [["b:0", "x#b:1", "y"], ["b:0", "b~2:7", "y"]])
def test_made_ids_of_a_file_that_is_added_meet_no_earlier_name(make, tmp_path, ids):
    make.parquet("a.parquet", rows=3, id=ids)
    kind, out = Kind(make, {}, lambda: None, lambda turn: None), str(tmp_path / "run")
    assert grow(kind, out) == (3, True)
    for name in ("b.parquet", "sub/b.parquet"):
        make.parquet(name, rows=2)
        assert grow(kind, out) == (2, True)
        assert grow(kind, out) == (0, True)
    assert {ids[0], "y"} <= {name for name, _ in answers(out).values()}  # all are distinct


def test_a_changed_file_is_no_growth(make, tmp_path):
    make.parquet("a.parquet", rows=3)
    make.parquet("b.parquet", rows=3)
    out = str(tmp_path / "run")
    make.job(make.plan(), out)
    make.parquet("a.parquet", rows=4, answer=["no"] * 4)
    make.parquet("c.parquet", rows=2)
    planned = make.plan(out=out)
    assert planned.growth.rows == 2
    with pytest.raises(RunError, match=r"'a\.parquet' changed"):
        Run.open(out, planned, IDENTITY, allow_added=True)


def test_a_folder_with_a_lost_image_did_not_grow(make, tmp_path):
    for name in ("1.png", "2.png"):
        make.text(name, name)
    out = str(tmp_path / "run")
    make.job(make.plan(question="q?"), out)
    (make.archive / "1.png").unlink()
    assert make.plan(out=out, question="q?").growth.rows == 0
