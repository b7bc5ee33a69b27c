"""Image preparation in a child process with limits on memory and time, restarted after a crash.

Decoders of image formats are C code that reads untrusted bytes. The child holds Pillow and numpy
only, no model and no secret; what it sends back is checked, and a picture that kills it costs one
quarantined row.

Protocol over two pipes, no pickle. Parent: a message of JSON settings, then two per image (uint64
size, bytes): which part of the file, as text, and the file, which is empty where it is the one that
the part before was of. Child: one byte when ready, then per image a header (uint32 and uint64
sizes), JSON, and the tiles as raw uint8.

Longer than a module should be: both ends of the protocol stand side by side.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from medv_ray.canvases import TileSettings
from medv_ray.data.causes import broken
from medv_ray.data.child_time import MOST_WALL, ChildTime
from medv_ray.data.encoded import open_header
from medv_ray.data.images import Prepared, check_bytes, inspect, prepare
from medv_ray.errors import CATALOGUE, DataError, MedvError, RunError, SettingsError
from medv_ray.file_parts import FilePart, Picture

if TYPE_CHECKING:
    from medv_ray.settings import ImageSettings

_SIZE = struct.Struct(">Q")
_REPLY = struct.Struct(">IQ")
_REPLY_JSON_BYTES = 2**16
_PIPE_BYTES = 2**20  # one tile of 384 x 384 fits, so that most replies are one write
_KEPT_BYTES = 2**25  # the most that glibc takes for the first of the two
_START_SECONDS = 60.0
_ORPHAN_CHECK_SECONDS = 5.0
_FEW_BYTES = b"GIF89a" + bytes(32)
Work = Callable[..., tuple[dict[str, Any], memoryview]]
Left = Callable[[], float]
"""Seconds to wait at most before it is asked again; none: time is over."""
_KINDS: dict[str, type[MedvError]] = {"E1001": SettingsError, "E1513": RunError}


class Decoder:
    """`prepare` behind a child process, which starts with the first image and ends with `close`.

    Without tile settings it is `inspect`: headers are read, and there are no tiles.
    Safe to call from several threads; images are prepared one at a time.
    """

    purpose = "prepare"
    """What the child does; `viewing.Viewer` has another."""

    def __init__(self, image: ImageSettings, tiles: TileSettings | None) -> None:
        self._image = image
        self._side = side = 1 if tiles is None else tiles.tile
        grid = () if tiles is None else tiles.grid
        cells = [width * height // side**2 for width, height in grid]
        self._most_bytes = (1 + max(cells, default=0)) * side**2 * 3
        setup = {
            "image": image.model_dump(mode="json"),
            "tiles": None if tiles is None else asdict(tiles),
            "parent": os.getpid(),
            "purpose": self.purpose,
        }
        self._setup = json.dumps(setup).encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._held = ""
        """Digest of the file that the child has kept."""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, picture: bytes | Picture) -> Prepared:
        """As `images.prepare`. Parts of one file, asked for one after the other, send it once.

        Raises DataError E1112, E1201 .. E1213 (E1209 when the child passed a limit or died), and
        RunError E1513 when a child does not start, or none reads what is sound.
        """
        if isinstance(picture, Picture):
            found: Prepared = self._prepare(picture.data, picture.part.text, picture.sha256)
            return replace(found, sha256=picture.sha256, part=picture.part)
        whole: Prepared = self._prepare(picture)
        return whole

    def _prepare(self, data: bytes, part: str = "", sha256: str = "") -> Any:
        check_bytes(data, self._image)
        with self._lock:
            how = self._try(data, part, sha256)
            # perhaps killed from outside, or spoilt by an image before: not this image's fault
            if isinstance(how, (str, RunError)):
                self._stop()
                how = self._try(data, part, sha256)
            if isinstance(how, RunError):
                raise how
            if isinstance(how, str):
                self._check_alive()
                what = self._what(data)
                raise DataError("E1209", f"the decoder ended ({how}) on {what}, twice.")
            return how

    def _check_alive(self) -> None:
        """Raises RunError E1513 unless a new child gives any answer to a picture of a few bytes."""
        self._process = self._process or self._start()
        try:
            self._exchange(self._process, _FEW_BYTES, max(self._image.decode_seconds, 30.0))
        except ValueError:  # an answer, though of no sense
            self._stop()
        except (EOFError, OSError) as error:
            how = self._stop(leaving=not isinstance(error, TimeoutError))
            raise broken(f"an image decoder ended ({how}) on a picture of a few bytes.") from None

    def _what(self, data: bytes) -> str:
        """In words, what is asked for."""
        return f"{len(data)} bytes"

    def _try(self, data: bytes, part: str, sha256: str) -> Any:
        """The reply, the child's word that it is broken, or how it ended.

        Raises DataError, SettingsError, and RunError when the child does not start.
        """
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = self._start()
        seconds = self._image.decode_seconds
        try:
            sent = b"" if part and self._held == sha256 else data
            self._held = sha256
            return self._understand(*self._exchange(self._process, sent, seconds, part))
        except (DataError, SettingsError):
            raise
        except RunError as error:
            return error
        except TimeoutError:
            self._stop()
            self._check_alive()
            detail = f"decoding {self._what(data)} took longer than {seconds:g} s."
            raise DataError("E1209", detail) from None
        except (EOFError, OSError):
            return self._stop(leaving=True)
        except (ValueError, KeyError, TypeError):
            self._stop()
            return "its reply made no sense"
        except BaseException:
            # interrupted between request and reply: the next image must not get this reply
            self._stop()
            raise

    def close(self) -> None:
        """End the child. The next `prepare` starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        # Where this process found its modules, the child finds them too; nothing else of the
        # environment goes along.
        keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        found = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        # each thread of a maths library would reserve address space
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # memory of one picture is kept for the next one: given back and asked for again, page by
        # page, it takes up to half as long as decoding
        kept = {
            "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-W", "ignore", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**keep, **one_thread, **kept, "PYTHONPATH": found, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError as error:  # no room for a process, an open file or memory; no interpreter
            word = errno.errorcode.get(error.errno or 0, type(error).__name__)
            raise broken(f"the image decoder did not start ({word}).") from None
        for pipe in _pipes(process):
            os.set_blocking(pipe, False)
            # a user's total is limited; smaller pipes are only slower
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        left = ChildTime(process.pid, _START_SECONDS).left
        try:
            _send(_pipes(process)[0], [_SIZE.pack(len(self._setup)), self._setup], left)
            _receive(_pipes(process)[1], 1, left)
        except (TimeoutError, EOFError, OSError):
            self._process = process
            how = self._stop(leaving=True)
            raise broken(f"the image decoder did not start ({how}).") from None
        return process

    def _stop(self, leaving: bool = False) -> str:
        """Kill and reap the child, and say how it ended; `leaving`: it closed its pipes already."""
        process, self._process, self._held = self._process, None, ""
        if process is None:
            return "not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1 if leaving else 0)
        ended = process.poll()
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.wait()
        if ended is None:
            return "stopped by its parent"
        return f"signal {-ended}" if ended < 0 else f"exit status {ended}"

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes, seconds: float, part: str = ""
    ) -> tuple[Any, memoryview]:
        left = ChildTime(process.pid, seconds).left
        stdin, stdout = _pipes(process)
        head = _SIZE.pack(len(part)) + part.encode("ascii") + _SIZE.pack(len(data))
        _send(stdin, [head, data], left)
        json_bytes, tile_bytes = _REPLY.unpack(_receive(stdout, _REPLY.size, left))
        if json_bytes > _REPLY_JSON_BYTES or tile_bytes > self._most_bytes:
            raise ValueError("a reply larger than any good one")
        header = json.loads(bytes(_receive(stdout, json_bytes, left)))
        return header, _receive(stdout, tile_bytes, left)

    def _understand(self, header: Any, payload: memoryview) -> Any:
        """The reply of a child that may have been taken over: every field is checked."""
        check_reply(header)
        width, height = header["size_wh"]
        words = tuple(str(word)[:100] for word in header["warnings"])
        tiles = np.frombuffer(payload, np.uint8).reshape(-1, self._side, self._side, 3)
        return Prepared(tiles, (int(width), int(height)), words, str(header["sha256"])[:64])


def check_reply(header: Any) -> None:
    """Raises the error that a reply tells, and ValueError for what is no reply."""
    if not isinstance(header, dict):
        raise ValueError("a reply of the wrong form")
    code = header.get("code")
    if code is not None:
        kind = _KINDS.get(code, DataError)
        raise kind(code if code in CATALOGUE else "E1209", str(header["detail"])[:500])


def _pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin.fileno(), process.stdout.fileno()


def _wait(pipe: int, event: int, left: Left) -> None:
    """Until the pipe is ready. Raises TimeoutError."""
    # not select(), which knows no descriptor above 1023
    poll = select.poll()
    poll.register(pipe, event)
    while (seconds := left()) > 0:
        if poll.poll(math.ceil(seconds * 1000)):
            return
    raise TimeoutError


def _send(pipe: int, pieces: Sequence[bytes | memoryview], left: Left | None = None) -> None:
    """All pieces at once, so that the other side wakes up once. Without `left` the pipe blocks."""
    views = [memoryview(piece) for piece in pieces]
    while any(views):
        try:
            sent = os.writev(pipe, views)
        except BlockingIOError:
            assert left is not None
            _wait(pipe, select.POLLOUT, left)
            continue
        for number, view in enumerate(views):
            views[number] = view[sent:]
            sent = max(sent - len(view), 0)


def _receive(pipe: int, size: int, left: Left) -> memoryview:
    """Raises EOFError when the other side is gone."""
    view = result = np.empty(size, np.uint8).data  # a bytearray is filled with zeros first
    while view:
        try:
            got = os.readv(pipe, [view])
        except BlockingIOError:
            _wait(pipe, select.POLLIN, left)
            continue
        if not got:
            raise EOFError
        view = view[got:]
    return result


def main() -> None:
    """The child. Ends at end of input, that is with its parent."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # nothing that a library prints reaches the protocol or a log
        os.dup2(nowhere, standard)
    # short of memory, the kernel is to end this process and not the one with the model
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    setup = json.loads(_message(requests))
    image = cast("ImageSettings", SimpleNamespace(**setup["image"]))
    # the grid as lists, which serve as well
    tiles = None if setup["tiles"] is None else TileSettings(**setup["tiles"])
    slides = None
    if "slides" in setup:
        from medv_ray.data.slide_shelf import Shelf  # it loads OpenSlide, which few need

        slides = Shelf(setup)
    work: Work | None = None
    if setup["purpose"] == "view":
        from medv_ray.data import viewing  # which builds on this module

        work = viewing.view
    with contextlib.suppress(MedvError):
        open_header(b"\0", image.formats)  # loads the plugins while files may still be opened
    limit(image.decode_bytes)
    _send(replies, [b"+"])
    held = b""
    while wait_for_request(requests, setup["parent"]):
        text = _message(requests).decode("ascii")
        part = FilePart.parse(text) if text else None
        (size,) = _SIZE.unpack(_exactly(requests, _SIZE.size))
        if size or part is None:
            held = b""  # there may be no room for both
        data = _exactly(requests, size) or held
        # Should the parent be gone by then, only these signals end a decoder that hangs.
        set_timers(image.decode_seconds)
        if slides is not None:
            header, payload = slides.answer(data)
        else:
            header, payload = answer(data, image, tiles, part, work)
        held = data if part is not None else b""
        del data
        said = json.dumps(header).encode()
        _send(replies, [_REPLY.pack(len(said), payload.nbytes), said, payload])
        set_timers(0)


def limit(memory_bytes: int) -> None:
    """Cap address space; no core dump, which would hold pixels, and no file written."""
    for what, amount in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))


def set_timers(seconds: float) -> None:
    """Of CPU time and of the clock, a second behind the parent's; 0: none."""
    for what, after in ((signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, seconds * MOST_WALL)):
        signal.setitimer(what, after and after + 1)


def wait_for_request(requests: BinaryIO, parent: int) -> bool:
    """False when the parent died while a copy of its pipe lives on."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while not poll.poll(_ORPHAN_CHECK_SECONDS * 1000):
        if os.getppid() != parent:
            return False
    return True


def answer(
    data: bytes,
    image: ImageSettings,
    tiles: TileSettings | None,
    part: FilePart | None = None,
    work: Work | None = None,
) -> tuple[dict[str, Any], memoryview]:
    """JSON header and tile bytes for one image. Its digest is the parent's to give for a part."""
    try:
        if work is not None:
            return work(data, image, tiles, part)
        if tiles is None:
            prepared = inspect(data, image, part)
        else:
            prepared = prepare(data, image, tiles, part)
    except MedvError as error:
        return {"code": error.code, "detail": error.detail}, memoryview(b"")
    header = {
        "size_wh": prepared.size_wh,
        "warnings": prepared.warnings,
        "sha256": prepared.sha256,
    }
    return header, np.ascontiguousarray(prepared.tiles).reshape(-1).data


def _message(requests: BinaryIO) -> bytes:
    """Ends the child when the input ends."""
    (size,) = _SIZE.unpack(_exactly(requests, _SIZE.size))
    return _exactly(requests, size)


def _exactly(requests: BinaryIO, size: int) -> bytes:
    data = requests.read(size)
    if len(data) < size:
        raise SystemExit
    return data


if __name__ == "__main__":
    main()
