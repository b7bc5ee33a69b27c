"""A DICOMweb server for tests, after PS3.18: QIDO-RS, WADO-RS and STOW-RS of instances.

A stand-in for Orthanc, with which `tests/chaos/orthanc_round_trip.py` does the same. It keeps
objects in memory, has the limits that real servers have, and does wrong what a test asks for.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medv_ray.archive import pacs_listing
from medv_ray.dicomweb.client import Client
from tests.dicom_files import CAPTURE, dicom

KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
BOUNDARY = "part-of-0.5"


@dataclass
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int = 0
    """Bytes that are announced and not sent."""


@dataclass
class Pacs:
    """What the server holds, and how it behaves."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """By SOP Instance UID, in order of arrival."""
    datasets: dict[str, Dataset] = field(default_factory=dict)
    authorization: str = ""
    """What each request must carry."""
    most: int = 1000
    """Results of one answer, whatever is asked for."""
    ignores: tuple[str, ...] = ()
    """Parameters that it does not know."""
    faults: list[Callable[[str, str], Reply | None]] = field(default_factory=list)
    """Asked with method and path before anything else; a Reply goes out instead."""
    refuses: set[str] = field(default_factory=set)
    """SOP classes that it does not store."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    """UIDs as they came, repeated ones too."""
    url: str = ""

    def add(self, data: bytes) -> Dataset:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        self.objects[dataset.SOPInstanceUID] = data
        self.datasets[dataset.SOPInstanceUID] = dataset
        return dataset

    def answer(self, method: str, path: str, query: str, headers: Any, body: bytes) -> Reply:
        for fault in self.faults:
            reply = fault(method, path)
            if reply is not None:
                return reply
        if self.authorization and headers.get("authorization") != self.authorization:
            return Reply(401, {"www-authenticate": "Bearer"})
        if method == "POST":
            return self._store(headers.get("content-type", ""), body)
        parts = path.strip("/").split("/")[1:]  # without dicom-web
        levels = dict(zip(parts[::2], parts[1::2], strict=False))
        named = [levels.get(k) for k in ("studies", "series", "instances")]
        wanted = dict(zip(KEYWORDS, named, strict=True))
        if parts[-1] == "instances":
            return self._search(wanted, parse_qs(query))
        uid = wanted["SOPInstanceUID"] or ""
        found = self.datasets.get(uid)
        if found is None or any(v and found[k].value != v for k, v in wanted.items()):
            return Reply(404)
        if parts[-1] == "metadata":
            told = {t: v for t, v in found.to_json_dict().items() if t < "7FE0"}
            return _json([told])
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\nMIME-Version: 1.0\r\n\r\n"
        whole = head.encode() + self.objects[uid] + f"\r\n--{BOUNDARY}--\r\n".encode()
        return Reply(200, {"content-type": kind}, whole)

    def _search(self, path: dict[str, str | None], query: dict[str, list[str]]) -> Reply:
        query = {name: values for name, values in query.items() if name not in self.ignores}
        fields = query.pop("includefield", [])
        limit = min(int(query.pop("limit", ["1000"])[0]), self.most)
        offset = int(query.pop("offset", ["0"])[0])
        asked = {k: v for k, v in path.items() if v} | {k: v[0] for k, v in query.items()}
        found = [one for one in self.datasets.values() if _fits(one, asked)]
        basic = ["00080016", "00080018", "00080020", "00080060", "0020000D", "0020000E", "00200013"]
        tags = {*basic, *fields}
        told = [{t: v for t, v in one.to_json_dict().items() if t in tags} for one in found]
        page = told[offset : offset + limit] if "limit" not in self.ignores else told[offset:]
        return _json(page) if page else Reply(204)

    def _store(self, kind: str, body: bytes) -> Reply:
        boundary = re.search(r"boundary=([^;]+)", kind)
        if boundary is None or not kind.startswith("multipart/related"):
            return Reply(415)
        good, bad = [], []
        for part in body.split(b"--" + boundary.group(1).strip('"').encode())[1:-1]:
            data = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            dataset = pydicom.dcmread(io.BytesIO(data))
            uid, sop_class = str(dataset.SOPInstanceUID), str(dataset.SOPClassUID)
            said = {"00081150": _ui(sop_class), "00081155": _ui(uid)}
            if sop_class in self.refuses:
                bad.append({**said, "00081197": {"vr": "US", "Value": [0x0122]}})
                continue
            self.stored.append(uid)
            self.add(data)
            good.append(said)
        answer: dict[str, Any] = {}
        if good:
            answer["00081199"] = {"vr": "SQ", "Value": good}
        if bad:
            answer["00081198"] = {"vr": "SQ", "Value": bad}
        reply = _json(answer)
        reply.status = 200 if not bad else 202 if good else 409
        return reply


def _ui(value: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [value]}


def _json(value: Any) -> Reply:
    return Reply(200, {"content-type": "application/dicom+json"}, json.dumps(value).encode())


def _fits(one: Dataset, asked: dict[str, str]) -> bool:
    for keyword, wanted in asked.items():
        value = str(one.get(keyword, ""))
        first, dash, last = wanted.partition("-")
        if keyword == "StudyDate" and dash:
            if not first <= value <= (last or "9"):
                return False
        elif value not in re.split(r"[,\\]", wanted):
            return False
    return True


@contextmanager
def serving(pacs: Pacs) -> Iterator[Pacs]:
    """Answer on a port of this machine; `pacs.url` is the base."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            pacs.seen.append((self.command, self.path))
            pacs.headers.append({k.lower(): v for k, v in self.headers.items()})
            reply = pacs.answer(self.command, parts.path, parts.query, self.headers, body)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body) + reply.cut))
            self.end_headers()
            try:
                self.wfile.write(reply.body)
            except OSError:  # the client had enough
                self.close_connection = True
            if reply.cut:
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, *said: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that had enough is none."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    pacs.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def picture(
    number: int, study: int = 1, series: int = 1, modality: str = "CT", **more: Any
) -> bytes:
    """A 16 x 16 secondary capture of a patient who is none."""
    pixels = ((number + np.arange(256)) % 256).astype(np.uint8).reshape(16, 16)
    said = {
        "SOPClassUID": CAPTURE,
        "StudyInstanceUID": f"2.25.{study}",
        "SeriesInstanceUID": f"2.25.{study}.{series}",
        "SOPInstanceUID": f"2.25.{study}.{series}.{number}",
        "PatientName": f"CANARY^NAME{study}",
        "PatientID": f"CANARY-MRN-{study}",
        "PatientBirthDate": "19000101",
        "PatientSex": "O",
        "StudyDate": f"202401{study:02d}",
        "StudyTime": "120000",
        "StudyID": str(study),
        "AccessionNumber": f"CANARY-ACC-{study}",
        "ReferringPhysicianName": "CANARY^DOCTOR",
        "Modality": modality,
        "InstanceNumber": number,
        "SeriesNumber": series,
    }
    return dicom(pixels, **said | more)


@contextmanager
def holding(pictures: Iterable[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    """A server with pictures; an archive's clients try twice and wait for nothing."""
    quick = partial(Client, tries=2, sleep=lambda wait_s: None)
    monkeypatch.setattr(pacs_listing, "Client", quick)
    pacs_listing.client_of.cache_clear()
    with serving(Pacs()) as pacs:
        for one in pictures:
            pacs.add(one)
        yield pacs
    pacs_listing.client_of.cache_clear()
