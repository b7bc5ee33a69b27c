"""Query, score, kill, resume, report, store, read back, with a real PACS.

    apt-get install orthanc orthanc-dicomweb dcmtk dicom3tools
    python -m tests.chaos.orthanc_round_trip

Rows are answered without a model. Ends with one line of JSON, or with what is wrong.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import highdicom as hd
import httpx2

from medv_ray.archive.pacs_listing import client_of
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.evaluation import sr_export, sr_store
from tests.dicomweb_server import picture
from tests.unit.archive.conftest import Make

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
ROWS = 40


class Answered(Make):
    """Each row answered, as reports need it."""

    @staticmethod
    def records(planned: Any, chunk: Any) -> list[dict]:
        more = {"confidence": 0.5}
        return [
            {**record, **more, "image_paths": [record["id"]]}
            for record in Make.records(planned, chunk)
        ]


@contextmanager
def orthanc(folder: Path):
    """Orthanc with the user u and the password p; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {"u": "p"}, "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx2.get(f"{url}/system", auth=("u", "p")).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name, orthanc(Path(name)) as url:
        folder = Path(name)
        token = folder / "token"
        token.write_text("Basic u:p")
        for number in range(ROWS):
            sent = httpx2.post(f"{url}/instances", content=picture(number), auth=("u", "p"))
            assert sent.status_code == 200, sent.status_code
        address = f"dicomweb+{url}/dicom-web"
        settings = ArchiveSettings(
            archive=f"{address}?Modality=CT", question="what?", chunk_rows=4, token_file=str(token)
        )
        make, out = Answered(folder), folder / "run"

        def planned():
            prior = Prior.read(str(out))
            return plan(open_archive(settings, prior.images, prior.salt), "x", prior)

        identity = {"settings": {}, "model": {"sha256": "ab" * 32}}
        assert make.job(planned(), out, identity, stop_after=3) is None
        summary = make.job(planned(), out, identity)
        assert summary is not None
        assert (summary.rows, summary.answered) == (ROWS, ROWS)
        about = sr_export.about_run(str(out), sr_export.Model("none", "none"))
        headers = sr_export.headers_in_pacs(str(out), settings)
        made = sr_export.export(str(out), folder / "reports", about, headers)
        stored = sr_store.store(folder / "reports", address, str(token))
        again = sr_store.store(folder / "reports", address, str(token))
        assert (made.written, stored["stored"], again["stored"]) == (ROWS, ROWS, 0)
        client = client_of(f"{url}/dicom-web", str(token))
        entries, _ = client.json("instances", {"Modality": "SR", "limit": 1000})
        assert len(entries) == ROWS
        path = "/".join(
            f"{level}/{entries[0][tag]['Value'][0]}"
            for level, tag in (
                ("studies", "0020000D"), ("series", "0020000E"), ("instances", "00080018"),
            )
        )  # fmt: skip
        back = hd.sr.srread(io.BytesIO(client.instance(path, 10**6)))
        assert back.PatientID == "CANARY-MRN-1"
        assert planned().growth.rows == 0, "reports are no rows"
        file = str(next((folder / "reports").glob("*.dcm")))
        said = subprocess.run(["dciodvfy", file], capture_output=True, text=True)
        assert "Error" not in said.stdout + said.stderr, said.stderr
        subprocess.run(["dsrdump", file], capture_output=True, check=True)
        print(json.dumps({"rows": ROWS, **stored, "server": "Orthanc", "dciodvfy_errors": 0}))


if __name__ == "__main__":
    main()
