"""Digests in place of ids and picture names, and the ways back."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medv_ray.archive import mapping
from medv_ray.archive import pseudonyms as names
from medv_ray.archive.mapping import read_mapping, restore
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.pseudonyms import PrivacySettings, Pseudonyms
from medv_ray.archive.rows import read_run
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.cli import app
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.settings import AnswerSettings
from tests.integration import stub

SALT = b"0123456789abcdef0123456789abcdef"
PATIENTS = ["MRN-0001", "MRN-0002", "MRN-0002", "", "Mueller^Anna"]


def write_table(folder: Path, ids: list[str]) -> Path:
    """A csv of ids and pictures by path; the third picture is broken."""
    pictures = folder / "in" / "ward7"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = ["id,image,question,answer"]
    for number, one in enumerate(ids):
        picture = pictures / f"{one or 'none'}-{number}.png"
        picture.write_bytes(stub.png(number) if number != 2 else b"")
        lines.append(f"{one},ward7/{picture.name},what is it?,yes")
    table = folder / "in" / "questions.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def score(
    folder: Path, privacy: dict[str, Any], stop_after: int | None = None, **more: Any
) -> Path:
    """Score `folder/in/questions.csv` as a job does, with the stub and without Ray."""
    settings = PrivacySettings(**privacy)
    out = str(folder / "run")
    known = names.find(settings, out, more.get("new_run", False))
    given = ArchiveSettings(archive=str(folder / "in" / "questions.csv"), chunk_rows=2)
    prior = Prior.read(out)
    archive = open_archive(given, prior.images)
    planned = plan(archive, "digest", prior)
    identity = {} if known is None else {"privacy": known.identity}
    keep = (lambda: None) if known is None else lambda: names.keep_salt(settings, out, known)
    with Run.open(out, planned, identity, pseudonyms=known, keep=keep, **more) as run:
        scorer = ChunkScorer(archive, Store(out), AnswerSettings(), stub.Stub, known)
        for chunk in run.todo()[:stop_after]:
            part, _ = scorer.score(chunk)
            run.commit(part)
        if stop_after is None:
            run.finish()
    return folder / "run"


def rows_of(run: Path) -> list[dict[str, Any]]:
    table = pa.concat_tables(read_run(str(run))).sort_by([("row", "ascending")])
    return list(table.to_pylist())


def texts_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_pseudonym_is_an_hmac() -> None:
    known = Pseudonyms(SALT)
    expected = hmac.new(SALT, b"id\0MRN-0001", hashlib.sha256).hexdigest()[:32]
    assert known.of_id(" MRN-0001 ") == expected
    assert known.of_image("MRN-0001") != expected
    assert Pseudonyms(SALT[::-1]).of_id("MRN-0001") != expected
    assert SALT.decode() not in repr(known)


def test_rows_are_as_without_but_for_their_names(tmp_path: Path) -> None:
    write_table(tmp_path, PATIENTS)
    plain = rows_of(score(tmp_path, {}, new_run=True))
    run = score(tmp_path, {"ids": "digest"}, new_run=True)
    hidden = rows_of(run)
    known = names.of_run(str(run))
    assert known is not None
    for before, after in zip(plain, hidden, strict=True):
        assert after.pop("id") == known.of_id(before.pop("id"))
        paths = before.pop("image_paths")
        assert after.pop("image_paths") == [known.of_image(path) for path in paths]
        assert after.pop("chunk") != ""
        assert before.pop("chunk") != ""
        assert after == before
    assert len({row["answer"] for row in plain}) > 1
    found = b"".join(
        data
        for name, data in texts_of(run).items()
        if not name.startswith(("private/", "run.json", "inputs/"))
    )
    for table in [run / "quarantine" / "quarantine.parquet", *(run / "rows").iterdir()]:
        found += str(pq.read_table(table).to_pylist()).encode()
    assert b"MRN" not in found
    assert b"ward7" not in found
    assert not (run / "private" / "mapping").exists()
    assert (run / "private" / "salt").stat().st_mode & 0o777 == 0o600
    assert (run / "private").stat().st_mode & 0o777 == 0o700


def test_the_mapping_leads_back(tmp_path: Path) -> None:
    write_table(tmp_path, PATIENTS)
    plain = rows_of(score(tmp_path, {}, new_run=True))
    run = score(tmp_path, {"ids": "digest", "mapping": True}, new_run=True)
    folder = run / "private" / "mapping"
    [file] = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    table = pa.concat_tables(read_run(str(run))).sort_by([("row", "ascending")])
    back = restore(table, read_mapping(str(folder))).to_pylist()
    for name in ("id", "image_paths"):
        assert [row[name] for row in back] == [row[name] for row in plain]
    with pytest.raises(RunError, match="lacks 5 rows"):
        restore(table, read_mapping(str(folder)).slice(0, 0))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RunError, match="E1506"):
        read_mapping(str(folder))


def test_a_run_goes_on_and_grows_under_its_salt(tmp_path: Path) -> None:
    table = write_table(tmp_path, PATIENTS)
    privacy = {"ids": "digest", "mapping": True}
    run = score(tmp_path, privacy, stop_after=1)
    assert len(list((run / "private" / "mapping").iterdir())) == 1
    score(tmp_path, privacy)
    with table.open("a") as file:
        file.write("MRN-0001,ward7/MRN-0001-0.png,and now?,no\n")
    score(tmp_path, privacy, allow_added=True)
    score(tmp_path, privacy, retry_quarantined=True)
    rows = rows_of(run)
    back = read_mapping(str(run / "private" / "mapping"))
    whole = restore(pa.Table.from_pylist(rows, schema=next(read_run(str(run))).schema), back)
    assert whole.column("id").to_pylist() == [
        "MRN-0001", "MRN-0002", "MRN-0002#questions:2", "questions:3", "Mueller^Anna",
        "MRN-0001#questions:5",
    ]  # fmt: skip
    assert back.num_rows == 6
    for other in ({"ids": "digest"}, {}):
        with pytest.raises(RunError, match="E1502"):
            score(tmp_path, other)
    (run / "private" / "salt").write_bytes(SALT)
    with pytest.raises(RunError, match=r"E1502.*privacy\.salt_check"):
        score(tmp_path, privacy)


def test_a_new_run_has_a_new_salt(tmp_path: Path) -> None:
    """Else what was handed on of the earlier one could be joined."""
    write_table(tmp_path, PATIENTS)
    found = []
    for _ in range(2):
        run = score(tmp_path, {"ids": "digest"}, new_run=True)
        found.append({row["id"] for row in rows_of(run)})
        assert names.of_run(str(run)) is not None
    assert found[0] & found[1] == set()


def test_a_salt_of_ones_own_joins_runs(tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_table(folder, PATIENTS)
        run = score(folder, {"ids": "digest", "salt_file": str(salt)})
        assert not (run / "private").exists()
        found.append([row["id"] for row in rows_of(run)])
    assert found[0] == found[1]
    assert salt.stat().st_mode & 0o777 == 0o600
    assert len(salt.read_bytes().strip()) >= 32


@pytest.mark.parametrize(
    ("data", "mode", "word"),
    [(SALT, 0o640, "chmod 600"), (b"short", 0o600, "fewer than 32"), (b"", 0o600, "0 bytes")],
)
def test_a_salt_that_is_none_is_refused(tmp_path: Path, data: bytes, mode: int, word: str) -> None:
    salt = tmp_path / "salt"
    salt.write_bytes(data)
    salt.chmod(mode)
    with pytest.raises(SettingsError, match=word):
        names.find(PrivacySettings(ids="digest", salt_file=str(salt)), str(tmp_path / "run"))


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ids=digest"):
        PrivacySettings(mapping=True)
    for given in ({}, {"salt_file": str(tmp_path / "salt"), "mapping": True}):
        settings = PrivacySettings(ids="digest", **given)
        with pytest.raises(SettingsError, match="needs a run folder on a disk"):
            names.find(settings, "s3://bucket/run?endpoint_override=127.0.0.1:1&scheme=http")


def invoke(*words: str) -> SimpleNamespace:
    done = CliRunner().invoke(app, list(words))
    return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr)


def test_rows_joins_by_salt_and_by_mapping(tmp_path: Path) -> None:
    write_table(tmp_path, PATIENTS)
    run = score(tmp_path, {"ids": "digest", "mapping": True})
    beside = tmp_path / "ages.csv"
    beside.write_text("id,age\nMRN-0002,61\nMRN-0001,52\nMueller^Anna,47\n")
    out = tmp_path / "out.csv"
    joined = invoke("rows", str(run), "--join", str(beside), "--csv", str(out))
    assert joined.code == 0, joined.err
    assert "3 of 5 rows have a row" in joined.err
    assert "MRN" not in out.read_text()
    assert "ward7" not in out.read_text()
    assert "61" in out.read_text()
    folder = str(run / "private" / "mapping")
    known = invoke("rows", str(run), "--join", str(beside), "--csv", str(out), "--mapping", folder)
    assert known.code == 0, known.err
    assert "3 of 5 rows have a row" in known.err
    assert "MRN-0002#questions:2" in out.read_text()
    assert "ward7/MRN-0001-0.png" in out.read_text()
    os.rename(run / "private", tmp_path / "kept")
    lost = invoke("rows", str(run), "--join", str(beside))
    assert lost.code == 2
    assert "--salt-file" in lost.err
    salt = str(tmp_path / "kept" / "salt")
    assert invoke("rows", str(run), "--join", str(beside), "--salt-file", salt).code == 0
    (tmp_path / "kept" / "salt").write_bytes(SALT)
    assert "not the salt" in invoke(
        "rows", str(run), "--join", str(beside), "--salt-file", salt
    ).err  # fmt: skip
    shown = invoke("rows", str(run))
    assert shown.code == 0
    assert "MRN" not in shown.out


def test_a_disk_that_fails_costs_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk without its mapping is not committed."""
    write_table(tmp_path, PATIENTS)

    def full(*given: Any) -> None:
        raise RunError("E1503", "full.")

    with monkeypatch.context() as patch:
        patch.setattr(mapping, "write_private", full)
        patch.setattr(names, "keep_salt", lambda *given: None)
        with pytest.raises((RunError, DataError), match="E1503"):
            score(tmp_path, {"ids": "digest", "mapping": True})
    assert not (tmp_path / "run" / "rows").exists()


def test_two_jobs_that_make_one_salt(tmp_path: Path) -> None:
    """The second one has made up another."""
    settings = PrivacySettings(ids="digest", salt_file=str(tmp_path / "salt"))
    made = [names.find(settings, str(tmp_path / "run")) for _ in range(2)]
    for found in made:
        assert found is not None
    names.keep_salt(settings, "", Pseudonyms(made[0].salt))  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="start again"):
        names.keep_salt(settings, "", Pseudonyms(made[1].salt))  # type: ignore[union-attr]
