"""`medv doctor`: each check passes on what is sound and names what is not, and none raises."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import socket
import ssl
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.data import causes
from medv_ray.errors import CheckpointError
from medv_ray.on_ray import doctor, doctor_cluster, doctor_gpu, doctor_model, findings
from medv_ray.on_ray.cluster import longest_folder
from medv_ray.on_ray.doctor_cluster import JOBS, MODE, ask, check_cluster, is_beyond, listeners
from medv_ray.on_ray.findings import Check, guarded
from medv_ray.settings import TOY

ROOT = Path(__file__).parents[3]
runner = CliRunner()
Answers = dict[str, tuple[int, str]]
OPEN: Answers = {JOBS: (200, "[]"), MODE: (200, '{"authentication_mode": "disabled"}')}
TOKEN: Answers = {
    JOBS: (401, "Unauthorized: Missing authentication token"),
    MODE: (200, '{"authentication_mode": "token"}'),
}
"""What ray 2.60's dashboard says to a stranger, without and with a token."""


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts servers that answer as they are told, on the loopback address; gives theirs."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers, off_s: float = 0.0, host: str = "127.0.0.1") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answers.get(self.path, (404, ""))
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + off_s, usegmt=True))
                if status == 302:
                    self.send_header("Location", body)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer((host, 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs beside the tests is not looked at."""
    for name in doctor_cluster.NAMED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor_cluster, "TRIED", 1)
    real = listeners
    monkeypatch.setattr(
        doctor_cluster,
        "listeners",
        lambda port: set() if port == doctor_cluster.PORT else real(port),
    )


def only(found: Iterator[Check]) -> Check:
    [one] = found
    return one


def test_an_open_dashboard_fails_and_the_shipped_settings_pass(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_model", lambda model: iter(()))  # a second of a model
    for answers, code in ((OPEN, 1), (TOKEN, 0)):
        result = runner.invoke(app, ["doctor", "--dashboard", serve(answers)])
        assert result.exit_code == code, result.output
        assert ("takes jobs without a token" in result.output) == bool(code)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.setenv(name, serve(OPEN))
        assert runner.invoke(app, ["doctor"]).exit_code == 1
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # of this process: it proves nothing of that Ray
    result = runner.invoke(app, ["doctor", "--dashboard", serve(OPEN), "--json"])
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["faults"] == 1
    [fault] = [one for one in told["checks"] if one["state"] == "fault"]
    assert fault["name"].startswith("ray dashboard 127.0.0.1:")
    assert "RAY_AUTH_MODE=token" in fault["fix"]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (OPEN, "open"),
        ({**OPEN, JOBS: (200, '[{"submission_id": "a"}]')}, "open"),
        (TOKEN, "token"),
        ({**TOKEN, JOBS: (403, "Forbidden: Invalid authentication token")}, "token"),
        ({JOBS: (401, "a proxy of somebody's")}, "other"),
        ({JOBS: (200, "<html>")}, "other"),
        ({JOBS: (302, "http://127.0.0.1:1/")}, "other"),
        ({}, "other"),
    ],
)
def test_what_a_dashboard_says_to_a_stranger(
    serve: Callable[..., str], answers: Answers, kind: str
) -> None:
    port = int(serve(answers).rpartition(":")[2])
    assert ask("127.0.0.1", port).kind == kind


def test_a_long_list_of_jobs_is_a_list(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_cluster, "ANSWER_BYTES", 16)
    port = int(serve({**OPEN, JOBS: (200, json.dumps([{"a": 1}] * 9))}).rpartition(":")[2])
    assert ask("127.0.0.1", port).kind == "open"


def test_who_is_said_to_reach_it(serve: Callable[..., str]) -> None:
    here = only(check_cluster(serve(OPEN)))
    assert "every user and program of this machine" in here.said
    beyond = only(check_cluster(serve(OPEN, host="0.0.0.0")))
    assert "who reaches that address can run code" in beyond.said
    guarded_beyond = only(check_cluster(serve(TOKEN, host="0.0.0.0")))
    assert guarded_beyond.state == "warning"
    assert only(check_cluster(serve(TOKEN))).state == "ok"
    other = only(check_cluster(serve({})))
    assert (other.state, "HTTP 404" in other.said) == ("warning", True)


def test_a_token_over_tls_is_enough_beyond_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cluster, "ask", lambda *_: doctor_cluster.Reply("token", 401))
    assert only(check_cluster("https://10.0.0.5:8265")).state == "ok"
    assert only(check_cluster("http://10.0.0.5:8265")).state == "warning"
    for name in doctor_cluster.NAMED:  # both name one: asked once
        monkeypatch.setenv(name, "https://10.0.0.5")
    assert only(check_cluster()).name == "ray dashboard 10.0.0.5:8265"


def test_a_named_dashboard_that_does_not_answer_is_a_fault() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]  # nobody listens
        found = only(check_cluster(f"127.0.0.1:{port}"))
    assert (found.state, found.said) == ("fault", "nothing answers")
    assert found.fix


@pytest.mark.parametrize("address", ["http://a:99999", "ray://a:10001", "http://", "[::1"])
def test_a_name_that_is_no_address_is_a_fault(address: str) -> None:
    found = only(check_cluster(address))
    assert (found.state, "http://HOST:8265" in found.fix) == ("fault", True)


def test_what_listens_and_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cluster, "ASK_S", 0.05)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setattr(doctor_cluster, "PORT", mute.getsockname()[1])
        monkeypatch.setattr(doctor_cluster, "listeners", lambda port: {"127.0.0.1"})
        found = only(check_cluster())
    assert (found.state, "has not answered" in found.said) == ("warning", True)


def test_what_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cluster, "ASK_S", 0.3)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        one, _ = listening.accept()
        with one:
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
            while not over.wait(0.05):
                one.sendall(b" ")

    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        dripping = threading.Thread(target=drip, args=(slow,), daemon=True)
        dripping.start()
        began_s = time.monotonic()
        assert ask("127.0.0.1", slow.getsockname()[1]).kind == "silent"
        assert time.monotonic() - began_s < 5
        over.set()
        dripping.join()


def test_a_certificate_that_nobody_signed_hides_no_open_dashboard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts: list[ssl.SSLContext] = []

    class Secure:
        def __init__(self, host: str, port: int, timeout: float, context: ssl.SSLContext) -> None:
            contexts.append(context)

    monkeypatch.setattr(doctor_cluster.http.client, "HTTPSConnection", Secure)
    monkeypatch.setattr(doctor_cluster, "_get", lambda connection, path: (200, None, b"[]"))
    assert ask("10.0.0.5", 8265, "https").kind == "open"
    [context] = contexts
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_dashboards_of_this_machine_are_found_by_themselves(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(check_cluster()).state == "ok"
    port = int(serve(OPEN).rpartition(":")[2])
    monkeypatch.setattr(doctor_cluster, "PORT", port)
    monkeypatch.setattr(doctor_cluster, "listeners", listeners)
    assert only(check_cluster()).state == "fault"
    monkeypatch.setattr(doctor_cluster, "listeners", lambda port: {"0.0.0.0"})
    assert "who reaches that address" in only(check_cluster()).said
    # named and found: asked once
    assert only(check_cluster(f"http://127.0.0.1:{port}")).state == "fault"


def test_a_dashboard_that_ray_has_moved_up_is_found(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray does where another program has its port; what else listens there is left alone."""
    port = int(serve(OPEN).rpartition(":")[2])
    monkeypatch.setattr(doctor_cluster, "PORT", port - 2)
    monkeypatch.setattr(doctor_cluster, "TRIED", 3)
    monkeypatch.setattr(
        doctor_cluster, "listeners", lambda one: set() if one == port - 2 else {"127.0.0.1"}
    )
    monkeypatch.setattr(
        doctor_cluster, "ask", lambda *a: doctor_cluster.Reply("silent") if a[1] < port else ask(*a)
    )
    found = only(check_cluster())
    assert (found.state, found.name) == ("fault", f"ray dashboard 127.0.0.1:{port}")


@pytest.mark.parametrize(("off_s", "word"), [(3600, "ahead of"), (-60, "behind")])
def test_a_head_with_another_time(serve: Callable[..., str], off_s: float, word: str) -> None:
    found = [*check_cluster(serve(TOKEN, off_s=off_s))]
    assert [one.state for one in found] == ["ok", "warning"]
    assert word in found[1].said


@pytest.mark.parametrize(
    ("address", "family", "is_open"),
    [
        ("127.0.0.1", socket.AF_INET, False),
        ("0.0.0.0", socket.AF_INET, True),
        ("::1", socket.AF_INET6, False),
        ("::", socket.AF_INET6, True),
    ],
)
def test_a_port_that_answers_beyond_the_machine(
    address: str, family: socket.AddressFamily, is_open: bool
) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        port = listener.getsockname()[1]
        assert listeners(port) == {address}
        assert is_beyond("127.0.0.1", port) is is_open


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(one.state == "ok" for one in doctor.check_packages() if one.name in doctor.LEAST)
    real = metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            raise metadata.PackageNotFoundError(name)
        return {"torch": "2.9.1+cu128", "ray": "2.60.0rc1", "deepspeed": "0.18"}.get(
            name, ""
        ) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {one.name: one for one in doctor.check_packages()}
    wrong = {name: one.state for name, one in found.items() if one.state != "ok"}
    assert wrong == {"torch": "fault", "transformers": "fault", "deepspeed": "warning"}
    assert "2.11 or newer" in found["torch"].said
    assert "medv-ray[train]" in found["deepspeed"].fix


def test_versions_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    found = (re.match(r"([\w-]+)[^>]*>=([\d.]+)", one) for one in asked)
    bounds = {one[1]: one[2] for one in found if one is not None}
    needed = doctor.LEAST | {name: least for name, (least, *_) in doctor.OPTIONAL.items()}
    assert {name: bounds[name] for name in needed} == needed


class Gpu:
    """Stands in for torch's view of one."""

    def __init__(self, free: float = 0.9, major: int = 9, error: Exception | None = None) -> None:
        self._free, self._major, self._error = free, major, error

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self._error:
            raise self._error
        return int(self._free * 2**37), 2**37

    def get_device_name(self, index: int) -> str:
        return "A card"

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self._major, 0


def a_torch(gpu: Gpu, product: float = 1.0) -> Any:
    def ones(*shape: int, device: str) -> torch.Tensor:
        return torch.ones(*shape) * product

    return SimpleNamespace(cuda=gpu, ones=ones)


@pytest.mark.parametrize(
    ("gpu", "product", "state", "said"),
    [
        (Gpu(), 1.0, "ok", "115.2 GiB of 128.0 GiB free"),
        (Gpu(free=0.2), 1.0, "warning", "25.6 GiB of"),
        (Gpu(major=7), 1.0, "warning", "no bfloat16"),
        (Gpu(error=RuntimeError("at 0x7f00")), 1.0, "fault", "does not compute (RuntimeError)"),
        (Gpu(), 1.5, "fault", "multiplies wrongly"),
    ],
)
def test_a_gpu(gpu: Gpu, product: float, state: str, said: str) -> None:
    found = only(doctor_gpu._gpu(a_torch(gpu, product), 0))
    assert (found.state, said in found.said) == (state, True), found
    assert "0x" not in found.said
    assert bool(found.fix) == (state != "ok")


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_gpu, "DRIVER", tmp_path / "none")
    assert doctor_gpu._none(None).state == "warning"
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(doctor_gpu, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "built for CPUs alone" in doctor_gpu._none(None).said
    assert doctor_gpu._none("12.8").state == "fault"
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        hidden = doctor_gpu._none("12.8")
        assert (hidden.state, "CUDA_VISIBLE_DEVICES" in hidden.said) == ("warning", True)


def test_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert only(doctor_gpu._triton(False)).state == "ok"
    for agrees, state in ((True, "ok"), (False, "fault")):
        monkeypatch.setattr(doctor_gpu, "_kernel_agrees", lambda agrees=agrees: agrees)
        assert only(doctor_gpu._triton(True)).state == state

    def broken() -> bool:
        raise RuntimeError("PTX at /home/someone")

    monkeypatch.setattr(doctor_gpu, "_kernel_agrees", broken)
    found = only(doctor_gpu._triton(True))
    assert (found.state, "home" in found.said) == ("fault", False)

    def read_only() -> bool:
        raise OSError(errno.EROFS, "Read-only file system", "/home/someone/.triton")

    monkeypatch.setattr(doctor_gpu, "_kernel_agrees", read_only)
    found = only(doctor_gpu._triton(True))
    assert ("home" in found.said, "TRITON_CACHE_DIR" in found.fix) == (False, True)
    monkeypatch.setattr(doctor_gpu, "COMPILERS", ("no-such-compiler",))
    assert "C compiler" in only(doctor_gpu._triton(True)).said

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert [only(doctor_gpu._triton(gpu)).state for gpu in (True, False)] == ["fault", "warning"]


def test_the_kernel_is_compared_with_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # the CPU's path, on both sides
    assert doctor_gpu._kernel_agrees()


def test_a_torch_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise OSError("libcuda.so.1 at /usr/lib")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = [*doctor_gpu.check_processor()]
    assert [one.state for one in found] == ["ok", "fault"]
    assert "/usr" not in found[1].said


def test_disk_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(doctor, "longest_folder", lambda: 1000)

    def usage(free: float) -> Callable[[Any], Any]:
        return lambda path: SimpleNamespace(total=2**40, free=int(free))

    for free, state in ((2**39, "ok"), (2**30, "warning"), (2**40 * 0.04, "warning")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", usage(free))
        assert only(doctor.check_disk(None)).state == state
    monkeypatch.undo()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    temporary, results = doctor.check_disk(str(tmp_path / "a" / "b"))
    assert (temporary.state, results.name, results.state) == ("fault", "results", "ok")
    assert "RAY_TMPDIR" in temporary.fix
    assert str(tmp_path) not in temporary.said
    file = tmp_path / "a file"
    file.touch()
    for out, state in {
        file: "fault", f"file://{tmp_path}": "ok", "s3://bucket/run": "warning"
    }.items():  # fmt: skip
        found = [*doctor.check_disk(str(out))][1]
        assert (found.name, found.state) == ("results", state), found


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["max 100000\n"], 8), (["150000 100000\n"], 1), (["50000 100000\n"], 1),
        (["400000 100000\n"], 4), (["-1\n", "100000\n"], 8), (["300000\n", "100000\n"], 3),
        (["1600000\n", "100000\n"], 8), ([], 8),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], share: int
) -> None:
    names = [str(number) for number in range(max(1, len(texts)))]
    for name, text in zip(names, texts, strict=False):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(findings, "CPU_LIMITS", ((tmp_path, "cpu", names),))
    monkeypatch.setattr(findings.os, "sched_getaffinity", lambda _: set(range(8)))
    assert findings.cores() == share
    [cpu, *_] = doctor_gpu.check_processor()
    assert cpu.said == f"{share} cores"


def test_a_temporary_folder_whose_name_is_too_long_for_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's own check is asked, with the name that it makes."""
    from ray._private.utils import validate_socket_filepath

    for fits in (True, False):
        folder = "/" + "x" * (longest_folder() - fits)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        [temporary] = doctor.check_disk(None)
        assert temporary.state == "fault"
        assert ("its name has" in temporary.said) is not fits
        session = f"session_2026-11-30_06-32-04_500452_{os.getpid()}"
        path = f"{folder}/ray/{session}/sockets/plasma_store"
        with nullcontext() if fits else pytest.raises(OSError, match="AF_UNIX"):
            validate_socket_filepath(path)


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 8 * 2**30), (str(4 * 2**30), 3 * 2**30), (str(2**28), 0)]
)
def test_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int
) -> None:
    texts = {
        "meminfo": f"MemTotal: {2**24} kB\nMemAvailable: {2**23} kB\n", "memory.max": f"{limit}\n",
        "memory.current": str(2**31), "memory.stat": f"anon 1\ninactive_file {2**30}\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(findings, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(findings, "CGROUPS", ((tmp_path, *findings.CGROUPS[0][1:]),))
    assert findings.free_memory() == free
    [memory, *_] = doctor.check_memory()
    assert memory.state == ("ok" if free > doctor.LOW_BYTES else "warning")
    assert doctor_model._free(False) == free


@pytest.mark.parametrize(
    ("own", "free", "cores"),
    [
        ("0::/slurm/job_7/step\n", 2**30, 3),  # its own has no limit, that of the job has
        ("0::/\n", 8 * 2**30, 8), ("", 8 * 2**30, 8),
        ("0::/../slurm/job_7\n", 8 * 2**30, 8),  # outside of what a container sees
        ("4:memory:/slurm/job_7\n0::/docker/none/such\n", 8 * 2**30, 8),
    ],
)  # fmt: skip
def test_limits_are_those_of_every_group_that_holds_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, free: int, cores: int
) -> None:
    step = tmp_path / "slurm" / "job_7" / "step"
    step.mkdir(parents=True)
    for folder, memory, cpu in ((step, "max", "max"), (step.parent, 2**31, 300_000)):
        (folder / "memory.max").write_text(f"{memory}\n")
        (folder / "cpu.max").write_text(f"{cpu} 100000\n")
        (folder / "memory.current").write_text(str(2**30))
        (folder / "memory.stat").write_text("inactive_file 0\n")
    (tmp_path / "meminfo").write_text(f"MemAvailable: {2**23} kB\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(findings, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(findings, "OWN", tmp_path / "own")
    monkeypatch.setattr(findings, "CGROUPS", ((tmp_path, *findings.CGROUPS[0][1:]),))
    monkeypatch.setattr(findings, "CPU_LIMITS", ((tmp_path, *findings.CPU_LIMITS[0][1:]),))
    monkeypatch.setattr(findings.os, "sched_getaffinity", lambda _: set(range(8)))
    assert (findings.free_memory(), findings.cores()) == (free, cores)


def test_shared_memory_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*doctor.check_pictures()] == []
    for free, state in ((2**30, "ok"), (2**20, "warning")):
        usage = SimpleNamespace(total=2**40, free=free)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, usage=usage: usage)
        _, shared = doctor.check_memory()
        assert (shared.name, shared.state) == ("shared memory", state)
    monkeypatch.setattr(causes, "works", lambda name: name != "PNG")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    broken, missing = doctor.check_pictures()
    assert (broken.state, "PNG" in broken.said) == ("fault", True)
    assert (missing.state, "DICOM" in missing.said) == ("warning", True)


def test_memory_of_a_gpu_is_that_of_the_one_that_a_model_goes_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rooms = {0: 5, 1: 9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: (rooms[index], 10))
    assert doctor_model._free(True) == 5


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept, state in ((True, "ok"), (False, "warning"), (None, "warning")):
        monkeypatch.setattr(doctor_cluster, "is_kept", lambda kept=kept: kept)
        assert only(doctor_cluster.check_clock()).state == state
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert only(doctor_cluster.check_clock()).state == "fault"


def test_the_kernel_is_asked_and_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def adjtimex(status: int) -> Callable[[Any], int]:
        def call(buffer: Any) -> int:
            asked.append(buffer.raw[:4])
            buffer[40:44] = status.to_bytes(4, "little")
            return 0

        return call

    def library(call: Callable[[Any], int]) -> None:
        monkeypatch.setattr(
            doctor_cluster.ctypes, "CDLL", lambda name: SimpleNamespace(adjtimex=call)
        )

    for status, kept in ((0x2001, True), (0x40, False)):
        library(adjtimex(status))
        assert doctor_cluster.is_kept() is kept
    library(lambda buffer: -1)
    assert doctor_cluster.is_kept() is None
    assert set(asked) == {bytes(4)}, "modes = 0"


def test_a_sound_model_and_a_short_answer() -> None:
    model, licence, answer = doctor_model.check_model("toy")
    assert [one.state for one in (model, licence, answer)] == ["ok"] * 3
    assert "F32 100%" in model.said
    assert "passes" in answer.said


def test_a_model_that_is_not_there_or_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(doctor_model.check_model(str(tmp_path))).state == "fault"
    monkeypatch.setattr(doctor_model, "_free", lambda gpu: 1000.0)
    found = [*doctor_model.check_model(str(TOY))]
    assert (found[-1].state, "not tried" in found[-1].said) == ("warning", True)


def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from medv_ray import engine
    from medv_ray.engine import Answer
    from medv_ray.errors import DataError

    def answer(confidence: float) -> Answer:
        return Answer("a", (1,), (confidence,), (0,), 2, 0.1, "stop")

    def broken() -> Any:
        raise RuntimeError("at 0x7f00 in /home/someone")

    ends: dict[str, Callable[[], Any]] = {
        "one in 2 passes": lambda: answer(0.5),
        "no numbers": lambda: answer(math.nan),
        "E1303": lambda: DataError("E1303", "too long."),
        "RuntimeError on the": broken,
    }
    for said, end in ends.items():
        predictor = SimpleNamespace(answer=lambda requests, end=end: [end()])
        monkeypatch.setattr(
            engine.Predictor, "load", lambda *_, predictor=predictor: nullcontext(predictor)
        )
        found = doctor_model._answers(str(TOY), 10, True)
        assert said in found.said
        assert (found.state == "ok") == (said == "one in 2 passes")
        assert "0x" not in found.said
        assert "home" not in found.said
    monkeypatch.setattr(doctor_model, "_free", lambda gpu: 4 * 1000 * doctor_model.ROOM)
    assert doctor_model._answers(str(TOY), 1001, True).state == "warning"
    assert "not tried" not in doctor_model._answers(str(TOY), 1000, True).said


def test_a_model_that_lacks_a_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for file in TOY.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors[max(tensors)]
    save_file(tensors, folder / "model.safetensors")
    found = only(doctor_model.check_model(str(folder)))
    assert (found.state, "E1402" in found.said) == ("fault", True), found


@pytest.mark.parametrize(
    ("name", "text", "state", "said"),
    [
        ("LICENSE", "\n# Apache License\nVersion 2.0", "ok", "Apache License"),
        ("LICENSE", "ASU Non-Commercial License", "warning", "no commercial use"),
        ("README.md", "---\nlicense: cc-by-nc-4.0\n---\n", "warning", "cc-by-nc-4.0"),
        ("README.md", "a model", "warning", "names none"),
    ],
)
def test_a_licence(tmp_path: Path, name: str, text: str, state: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    found = doctor_model._licence(tmp_path)
    assert (found.state, said in found.said) == (state, True), found


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Iterator[Check]:
        yield Check("ok", "first", "")
        raise RuntimeError("at /home/someone")

    found = [*guarded("a check", broken)]
    assert [one.state for one in found] == ["ok", "fault"]
    assert "home" not in found[1].said

    def refused() -> Iterator[Check]:
        raise CheckpointError("E1402", "no config.json.")
        yield

    assert "E1402" in only(guarded("model", refused)).said
    monkeypatch.setattr(doctor, "check_memory", broken)
    monkeypatch.setattr(doctor, "check_model", lambda model: iter(()))
    names = [one.name for one in doctor.check_all()]
    assert names.index("clock") > names.index("first")


def test_every_finding_that_is_not_fine_has_a_next_step() -> None:
    """In the source, as most cannot be had at once."""
    for module in (doctor, doctor_cluster, doctor_gpu, doctor_model):
        text = Path(str(module.__file__)).read_text()
        for call in re.findall(r'Check\(\s*"(?:fault|warning)",(.*?)\)\n', text, re.DOTALL):
            assert call.count(",") >= 2, (module.__name__, call)


@pytest.mark.parametrize(("guarded", "kind"), [(False, "open"), (True, "token")])
def test_the_way_in_which_ray_itself_refuses_strangers(
    guarded: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own middleware before the two routes; tests/integration/test_doctor.py asks whole
    dashboards."""
    import ray
    from aiohttp import web
    from ray._private.authentication import authentication_utils
    from ray._private.authentication.http_token_authentication import get_token_auth_middleware

    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: guarded)
    head = Path(ray.__file__).parent / "dashboard"
    assert f'"{MODE}",' in (head / "http_server_head.py").read_text(), "open without a token"
    assert f'routes.get("{JOBS}")' in (head / "modules" / "job" / "job_head.py").read_text()

    async def jobs(_: Any) -> Any:
        return web.json_response([])

    async def mode(_: Any) -> Any:
        return web.json_response({"authentication_mode": "token" if guarded else "disabled"})

    middleware = get_token_auth_middleware(SimpleNamespace(web=web), [MODE], ["/static/"])
    made = web.Application(middlewares=[middleware])
    made.add_routes([web.get(JOBS, jobs), web.get(MODE, mode)])
    loop = asyncio.new_event_loop()
    web_runner = web.AppRunner(made)
    loop.run_until_complete(web_runner.setup())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        loop.run_until_complete(web.SockSite(web_runner, listening).start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        reply = ask("127.0.0.1", listening.getsockname()[1])
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(web_runner.cleanup())
    loop.close()
    assert reply.kind == kind
    assert reply.date is not None
