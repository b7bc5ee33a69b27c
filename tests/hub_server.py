"""A Hugging Face hub for tests: what huggingface_hub asks of one, in memory, by its HTTP interface.

Repositories of models and datasets with commits, trees in pages, files by range, and commits with
LFS. It does wrong what a test asks for (`faults`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS = (".safetensors", ".parquet", ".tar", ".png")
Files = dict[str, bytes]


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    """Bytes that are announced and not sent."""


@dataclass
class Repository:
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Put these files in the place of all; the commit."""
        number = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[number] = dict(files)
        self.refs[branch] = number
        return number

    def at(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Hub:
    """What the server holds, and how it behaves."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    """By `models/org/name` or `datasets/org/name`."""
    readers: tuple[str, ...] = ()
    """Tokens that see what is private, and pass gates."""
    writers: tuple[str, ...] = ()
    page: int = 1000
    faults: list[Callable[[str, str], Reply | None]] = field(default_factory=list)
    """Asked with method and path before anything else; a Reply goes out instead."""
    asked: list[str] = field(default_factory=list)
    uploads: Files = field(default_factory=dict)
    url: str = ""

    def put(self, name: str, files: Files, **more: Any) -> str:
        """A repository's next commit."""
        return self.repositories.setdefault(name, Repository(**more)).commit(files)

    def blobs(self) -> Files:
        """All that is held, of any repository, by its oid."""
        held = [one for each in self.repositories.values() for one in each.commits.values()]
        return {oid_of(path, data): data for files in held for path, data in files.items()}


def oid_of(path: str, data: bytes) -> str:
    if path.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    found["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if path.endswith(LFS):
        found["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 127}
    return found


def listed(files: Files, under: str, recursive: bool) -> list[dict[str, Any]]:
    start = f"{under}/" if under else ""
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts)):
            folder = start + "/".join(parts[:depth])
            if recursive or depth == 1:
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or len(parts) == 1:
            found[path] = entry(path, data)
    return list(found.values())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.asked.append(f"{self.command} {path}")
        reply = next((r for f in self.hub.faults if (r := f(self.command, path))), None)
        reply = reply or self.reply(path, parse_qs(parts.query), body)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) - reply.cut])
        if reply.cut:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, path: str, query: dict[str, list[str]], body: bytes) -> Reply:
        hub = self.hub
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := re.fullmatch(r"/lfs/(\w{64})", path):
            hub.uploads[found[1]] = body
            return Reply()
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return as_json(
                {"transfer": "basic", "objects": [*map(self.lfs, json.loads(body)["objects"])]}
            )
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info|preupload|commit)/(.+))?",
            path,
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            name, verb, rest = f"{api[1]}/{api[2]}", api[3] or "revision", api[4] or "main"
        elif file:
            name, verb, rest = (
                f"{(file[1] or 'models/')}{file[2]}".replace("//", "/"),
                "resolve",
                file[3],
            )
        else:
            return error(404, "EntryNotFound")
        held = hub.repositories.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if held is None or (held.private and token not in (*hub.readers, *hub.writers)):
            return error(404 if token in (*hub.readers, *hub.writers) else 401, "RepoNotFound")
        if held.gated and verb == "resolve" and token not in hub.readers:
            return error(403 if token else 401, "GatedRepo")
        if verb in ("preupload", "commit"):
            if token not in hub.writers:
                return error(403, "")
            if verb == "preupload":
                return self.preupload(held, body)
            return self.commit(name.partition("/")[2], held, body)
        revision, _, under = rest.partition("/")
        at = held.at(revision)
        if at is None:
            return error(404, "RevisionNotFound")
        files = held.commits[at]
        if verb == "revision":
            siblings = [{"rfilename": one} for one in sorted(files)]
            about = {"id": name.partition("/")[2], "private": held.private, "gated": held.gated}
            return as_json({**about, "sha": at, "siblings": siblings, "tags": [], "downloads": 0})
        if verb == "paths-info":
            return as_json(
                self.infos(files, parse_qs(body.decode()) if body[:1] != b"{" else json.loads(body))
            )
        if verb == "tree":
            return self.tree(
                path,
                query,
                listed(
                    files, under, "recursive" in query and query["recursive"][0].lower() == "true"
                ),
            )
        assert file
        return self.file(files, file[4], at)

    def infos(self, files: Files, asked: dict[str, Any]) -> list[dict[str, Any]]:
        everything = {one["path"]: one for one in listed(files, "", True)}
        return [everything[path] for path in asked["paths"] if path in everything]

    def tree(self, path: str, query: dict[str, list[str]], found: list[dict[str, Any]]) -> Reply:
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {}
        if end < len(found):
            more = "&".join(f"{k}={v[0]}" for k, v in {**query, "cursor": [str(end)]}.items())
            headers["Link"] = f'<{self.hub.url}{path}?{more}>; rel="next"'
        if not found:
            return error(404, "EntryNotFound")
        return as_json(found[start:end], headers)

    def file(self, files: Files, name: str, commit: str) -> Reply:
        if name not in files:
            return error(404, "EntryNotFound")
        data = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid_of(name, data)}"'}
        if name.endswith(LFS):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part and self.command == "GET":
            start, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            if start >= len(data):
                return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return Reply(206, data[start : end + 1], headers)
        return Reply(200, data, {**headers, "Content-Length": str(len(data))})

    def create(self, asked: dict[str, Any]) -> Reply:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            return error(403 if token else 401, "")
        kind = asked.get("type") or "model"
        name = f"{asked['organization']}/{asked['name']}"
        if f"{kind}s/{name}" in self.hub.repositories:
            return error(409, "")
        visible = asked.get("private") is False or asked.get("visibility") == "public"
        made = Repository(private=not visible)
        made.commit({".gitattributes": b""})
        self.hub.repositories[f"{kind}s/{name}"] = made
        return as_json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def lfs(self, one: dict[str, Any]) -> dict[str, Any]:
        found = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in self.hub.blobs():
            found["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
        return found

    def preupload(self, held: Repository, body: bytes) -> Reply:
        now = held.commits[held.refs["main"]]
        return as_json({
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": oid_of(one["path"], now[one["path"]]) if one["path"] in now else None,
                }
                for one in json.loads(body)["files"]
            ]
        })  # fmt: skip

    def commit(self, name: str, held: Repository, body: bytes) -> Reply:
        files = dict(held.commits[held.refs["main"]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if (
                line["key"] == "header"
                and value.get("parentCommit", held.refs["main"]) != held.refs["main"]
            ):
                return error(412, "")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.hub.blobs() | self.hub.uploads)[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        number = held.commit(files)
        return as_json(
            {
                "success": True,
                "commitOid": number,
                "commitUrl": f"{self.hub.url}/{name}/commit/{number}",
                "hookOutput": "",
            }
        )


def as_json(value: Any, headers: dict[str, str] | None = None) -> Reply:
    return Reply(
        200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {})
    )


def error(status: int, code: str) -> Reply:
    return Reply(
        status, b'{"error": "no"}', {"X-Error-Code": code, "Content-Type": "application/json"}
    )


@contextmanager
def hub(patch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """A running hub, which this process' huggingface_hub asks, with an empty cache."""
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, held))
    server.daemon_threads = True
    held.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    settle(patch, held.url, cache)
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()


def settle(patch: pytest.MonkeyPatch, url: str, cache: str) -> None:
    """What huggingface_hub took from the environment when it was imported."""
    from huggingface_hub import constants, file_download

    patch.setenv("HF_ENDPOINT", url)
    patch.setenv("HF_HOME", cache)
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    patch.setattr(constants, "HF_HUB_CACHE", f"{cache}/hub")
    patch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this hub speaks LFS alone
    patch.setattr("time.sleep", lambda _: None)  # between its tries
