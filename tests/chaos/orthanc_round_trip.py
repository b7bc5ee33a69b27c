"""Query, score, kill, resume, report, store, read back: a PACS from end to end, with jobs on Ray.

    apt-get install orthanc orthanc-dicomweb dcmtk dicom3tools
    python -m tests.chaos.orthanc_round_trip [--short] [--stand-in]

Instances go to a PACS by STOW-RS. One job scores those of a query without a stop; another is
SIGKILLed, each time after that run's first new commit, and resumed. Both must have every instance
once, with the same answer. Reports go to the PACS, twice, come back by QIDO-RS and WADO-RS, and are
read by highdicom, dsrdump and dciodvfy. Without Orthanc, or with `--stand-in`, the PACS is
tests/dicomweb_server.py; `server` says which. Answers are made of the picture's bytes, without a
model. One JSON line with the figures; exit code 1 if any of them is not what is promised.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import highdicom as hd
import httpx2
import pydicom
from typer.testing import CliRunner

from medv_ray.archive.pacs_listing import client_of, read_kept
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.rows import read_run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.cli import app
from medv_ray.dicomweb.client import Client
from medv_ray.dicomweb.multipart import related
from medv_ray.engine import Answer, Request
from medv_ray.errors import DataError
from medv_ray.on_ray.options import ScoreSettings
from tests.chaos.kill_runs import ROOT, Runs, leftovers
from tests.dicomweb_server import Pacs, basic, picture, serving
from tests.integration.stub import Stub

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "u", "p"
OTHERS = 6
"""Instances of another modality, which the query leaves out."""
CHUNK_ROWS = 4
ROW_S = 0.1
WINDOW_S = 1.0
START_S = 60.0
STARTS = 4
"""Of a job whose Ray does not come up, as it waits 30 s alone and other work may hold the cores."""
QUESTION = f"sleep:{ROW_S} what is this?"


class Seen(Stub):
    """Says the beginning of its picture's digest: the answer proves which one was fetched."""

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        ended = super().answer(requests)
        return [
            replace(one, text=f"seen {one.image_sha256[0][:16]}")
            if isinstance(one, Answer)
            else one
            for one in ended
        ]


def load(settings: ScoreSettings) -> Seen:
    return Seen()


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Orthanc with one user; the base of its DICOMweb service."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD}, "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_up(f"{url}/system"), "Orthanc does not start")
        yield f"{url}/dicom-web"
    finally:
        process.terminate()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx2.get(url, auth=(USER, PASSWORD)).status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(said: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + START_S
    while not said():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        time.sleep(0.2)


@contextmanager
def stand_in(folder: Path) -> Iterator[str]:
    """The tests' own server, for the same user."""
    with serving(Pacs(authorization=basic(USER, PASSWORD))) as pacs:
        yield pacs.url


@dataclass
class Jobs(Runs):
    """Scoring jobs on what the query finds; each is a process with a Ray of its own."""

    archive: dict[str, Any] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    failed_starts: list[int] = field(default_factory=list)
    patience_s: float = 600.0

    def start(self) -> subprocess.Popen[str]:
        more = {"archive": self.archive, "pool": {"max_actors": 1}}
        with (self.folder / "stderr").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.run_job", str(self.folder),
                 "tests.chaos.orthanc_round_trip:load"],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1",
                     "MEDV_TEST_SETTINGS": json.dumps(more)},
            )  # fmt: skip
        self.started.append(process)
        return process

    def ray_failed(self) -> bool:
        """Whether the last job ended because its Ray did not come up; it is counted."""
        failed = b"E1512: Ray did not start" in (self.folder / "stderr").read_bytes()
        self.failed_starts += [1] if failed else []
        return failed

    def end(self) -> None:
        """Leave no job behind, whatever happened."""
        for process in self.started:
            if process.poll() is None:
                self.note(process)
                process.kill()
                process.wait()

    def to_the_end(self) -> dict[str, Any]:
        """The job's last line."""
        for _ in range(STARTS):
            process = self.start()
            output = process.communicate(timeout=self.patience_s)[0]
            if process.returncode == 0 or not self.ray_failed():
                break
        self.check(process.returncode == 0, f"a job ended with {process.returncode}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1]) if output else {}
        return found

    def kill(self) -> int:
        """SIGKILL the job some time after its first new commit; the rows that are committed."""
        for _ in range(STARTS):
            before, process = self.commits(), self.start()
            ran = self.wait_for_commits(process, before)
            if ran or not self.ray_failed():
                break
        self.check(ran, "a job ended before its kill: too few rows")
        time.sleep(self.rng.uniform(0, WINDOW_S))
        self.note(process)
        process.kill()
        process.wait()
        return len(self.answers())

    def answers(self) -> dict[str, tuple[str, str, str]]:
        """Status, answer and digest by SOP Instance UID."""
        run = str(self.folder / "run")
        instances = read_kept(Store(run))[1]
        columns = ["image_paths", "status", "answer", "image_sha256"]
        rows = [row for table in read_run(run, columns) for row in table.to_pylist()]
        found = {
            instances[row["image_paths"][0]].uid: (row["status"], row["answer"],
                                                   row["image_sha256"])
            for row in rows
        }  # fmt: skip
        self.check(len(found) == len(rows), f"{len(rows) - len(found)} rows are there twice")
        return found


def send(client: Client, count: int) -> dict[str, str]:
    """Store instances in the PACS; the digest of each one's file by UID."""
    made = {f"2.25.1.1.{n}": picture(n, modality="CT") for n in range(count)}
    others = {f"2.25.2.1.{n}": picture(n, study=2, modality="MR") for n in range(OTHERS)}
    objects = [*made.values(), *others.values()]
    for first in range(0, len(objects), 20):
        boundary = uuid4().hex
        status, _ = client.store(related(objects[first : first + 20], boundary), boundary)
        assert status == 200, f"the PACS answered {status}"
    return {uid: hashlib.sha256(data).hexdigest() for uid, data in made.items()}


def medv(*words: object) -> dict[str, Any]:
    """What a command says, as JSON."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read_back(client: Client, jobs: Jobs, folder: Path) -> dict[str, Any]:
    """Every report that the PACS has, read by others' software and held against the rows."""
    entries, _ = client.json("instances", {"Modality": "SR", "limit": 1000})
    answers, seen = jobs.answers(), set()
    found = {"reports_read_back": len(entries or [])}
    tools = [tool for tool in ("dsrdump", "dciodvfy") if shutil.which(tool)]
    faults = dict.fromkeys(tools, 0)
    for number, entry in enumerate(entries or []):
        study, series, uid = (entry[t]["Value"][0] for t in ("0020000D", "0020000E", "00080018"))
        data = client.instance(f"studies/{study}/series/{series}/instances/{uid}", 10**6)
        report = hd.sr.srread(io.BytesIO(data))
        (group,) = report.content.get_image_measurement_groups()
        (used,) = group.source_images
        seen.add(used.referenced_sop_instance_uid)
        said = answers[used.referenced_sop_instance_uid][1]
        texts = [str(item.get("TextValue", "")) for item in items_of(report)]
        jobs.check(said in texts, "a report does not have its row's answer")
        jobs.check(report.PatientID == "CANARY-MRN-1", "a report names another patient")
        path = folder / f"back-{number}.dcm"
        path.write_bytes(data)
        for tool in tools:
            done = subprocess.run([tool, str(path)], capture_output=True, text=True)
            faults[tool] += done.returncode != 0 or "Error" in done.stdout + done.stderr
    jobs.check(seen == set(answers), "a row has no report in the PACS, or another one's")
    jobs.check(not any(faults.values()), f"reports with faults: {faults}")
    missing = {tool: "not here" for tool in ("dsrdump", "dciodvfy") if tool not in tools}
    return found | {"reports_with_faults": {"highdicom": 0, **faults, **missing}}


def items_of(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """All items of a report's tree."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items_of(item)


def round_trip(jobs: Jobs, url: str, token: Path, rows: int, kills: int) -> dict[str, Any]:
    """Every step once; the figures."""
    client = client_of(url, str(token))
    sent = send(client, rows)
    address = f"dicomweb+{url}"
    jobs.archive = {
        "archive": f"{address}?Modality=CT", "question": QUESTION, "chunk_rows": CHUNK_ROWS,
        "token_file": str(token),
    }  # fmt: skip
    whole = replace(jobs, folder=jobs.folder / "whole")  # its lists are ours
    whole.folder.mkdir()
    started_s = time.monotonic()
    said = whole.to_the_end()
    figures: dict[str, Any] = {"rows": said.get("rows"), "seconds_unbroken": round(
        time.monotonic() - started_s, 1)}  # fmt: skip
    jobs.check(said.get("answered") == rows, f"{said.get('answered')} of {rows} rows answered")
    kept = [jobs.kill() for _ in range(kills)]
    jobs.check(kept[-1] < rows, "no kill came in the middle: too few rows")
    resumed = jobs.to_the_end()
    jobs.check(resumed.get("new_rows") == rows - kept[-1], "what was committed was scored again")
    answers = jobs.answers()
    different = sum(answers.get(uid) != one for uid, one in whole.answers().items())
    wrong = sum(answers.get(uid, ("", "", ""))[2] != sha256 for uid, sha256 in sent.items())
    missing, more = len(sent.keys() - answers.keys()), len(answers.keys() - sent.keys())
    jobs.check(not (missing or more), f"{missing} instances missing, {more} too many")
    jobs.check(not different, f"{different} rows differ from the unbroken run's")
    figures |= {
        "driver_kills": kills, "rows_committed_at_kills": kept,
        "rows_after_resume": resumed.get("new_rows"), "missing": missing,
        "different_from_unbroken": different,
        "files_changed_on_the_way": wrong,  # a PACS may write its meta group anew
    }  # fmt: skip

    run, reports = jobs.folder / "run", jobs.folder / "reports"
    named = ["--identifiers", "--archive", address, "--token-file", token]
    made = [medv("export-sr", run, "--out", reports, *named) for _ in range(2)]
    stored = [medv("store", reports, "--to", address, "--token-file", token) for _ in range(2)]
    wanted = [rows, 0]
    jobs.check([one["written"] for one in made] == wanted, "reports were made twice or not at all")
    jobs.check([one["stored"] for one in stored] == wanted, "reports were stored twice or not")
    figures |= {"reports": made[0]["written"], "stored": stored[0]["stored"],
                "stored_again": stored[1]["stored"]}  # fmt: skip
    figures |= read_back(client, jobs, jobs.folder)
    prior = Prior.read(str(run))
    again = open_archive(ArchiveSettings(**jobs.archive), prior.images, prior.salt)
    grown = plan(again, "x", prior).growth.rows
    jobs.check(grown == 0, "reports in the PACS became rows")
    return figures | {"rows_added_by_reports": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="40 rows, 1 kill; else 200 and 4")
    parser.add_argument("--stand-in", action="store_true", help="the tests' server, not Orthanc")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, kills = (40, 1) if args.short else (200, 4)
    there = shutil.which("Orthanc") is not None and PLUGIN.exists() and not args.stand_in
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medv-pacs-") as name:
        folder = Path(name)
        token = folder / "token"
        token.write_text(f"Basic {USER}:{PASSWORD}")
        token.chmod(0o600)
        jobs = Jobs(folder, random.Random(args.seed))
        with (orthanc if there else stand_in)(folder / "pacs") as url:
            try:
                figures = round_trip(jobs, url, token, rows, kills)
            finally:
                jobs.end()
        figures["ray_starts_that_failed"] = len(jobs.failed_starts)
        figures["processes_left"] = leftovers(jobs)
    server = "Orthanc" if there else "stand-in after PS3.18"
    if there:
        said = subprocess.run(["Orthanc", "--version"], capture_output=True, text=True).stdout
        server = said.split("\n")[0].strip()
    figures = {"chaos": "orthanc_round_trip", "server": server, "seed": args.seed, **figures}
    figures |= {"seconds": round(time.monotonic() - started_s), "problems": jobs.problems}
    print(json.dumps(figures))
    sys.exit(1 if jobs.problems else 0)


if __name__ == "__main__":
    main()
