"""The decoder's child: same result, limits, death and orphans."""

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from medv_ray.canvases import TileSettings
from medv_ray.data import child_time, decode_child
from medv_ray.data.child_time import ChildTime
from medv_ray.data.decode_child import Decoder
from medv_ray.data.images import prepare
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.settings import ImageSettings

pytestmark = pytest.mark.integration

TILES = TileSettings("anyres_max", 32, ((32, 32), (64, 32), (64, 64)))
NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = png(NOISE)


SLOW_SIDE = 6000


def large(side: int) -> bytes:
    """A picture of one colour that takes a while to decode, in a few kB."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 7).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def slow_image() -> bytes:
    return large(SLOW_SIDE)


@pytest.fixture
def shared() -> Iterator[Decoder]:
    """Its child may have served other tests."""
    with Decoder(ImageSettings(), TILES) as decoder:
        yield decoder


@pytest.fixture
def decoder(own_decoders: None) -> Iterator[Decoder]:
    """Its child is its own, to be harmed; no busy machine makes it late."""
    with Decoder(ImageSettings(decode_seconds=100), TILES) as decoder:
        yield decoder


def child(decoder: Decoder) -> subprocess.Popen[bytes]:
    assert decoder._process is not None
    return decoder._process


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    return ChildTime(process.pid, 1.0)._used()


def wait_until(true: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """No process, or one that is dead and not yet reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_same_result_as_in_process(shared: Decoder) -> None:
    for array in (NOISE, NOISE[..., 0], (NOISE[..., 0].astype(np.uint16) * 9)):
        data = png(array)
        got, want = shared.prepare(data), prepare(data, ImageSettings(), TILES)
        assert np.array_equal(got.tiles, want.tiles)
        assert got.tiles.flags.writeable
        assert (got.size_wh, got.warnings, got.sha256) == (want.size_wh, want.warnings, want.sha256)


def test_errors_come_through_and_the_child_stays(shared: Decoder) -> None:
    shared.prepare(GOOD)
    pid = child(shared).pid
    for data in (b"", b"<html>", GOOD[:300], png(NOISE[:9])):
        with pytest.raises(DataError) as here:
            prepare(data, ImageSettings(), TILES)
        with pytest.raises(DataError) as there:
            shared.prepare(data)
        assert str(there.value) == str(here.value)
    assert child(shared).pid == pid
    with Decoder(ImageSettings(formats=("FOO",)), TILES) as other, pytest.raises(SettingsError):
        other.prepare(GOOD)


def test_headers_only(slow_image: bytes) -> None:
    cut = png(np.full((20, 30, 3), 9, np.uint8))[:60]
    with Decoder(ImageSettings(max_pixels=2 * SLOW_SIDE**2), None) as decoder:
        found = decoder.prepare(slow_image)
        assert (found.size_wh, len(found.tiles)) == ((SLOW_SIDE, SLOW_SIDE), 0)
        assert found.sha256 == hashlib.sha256(slow_image).hexdigest()
        assert decoder.prepare(cut).size_wh == (30, 20)  # its header is whole
        pid = child(decoder).pid
        with pytest.raises(DataError, match="E1202"):
            decoder.prepare(b"<html>")
        with pytest.raises(DataError, match="E1205"):
            decoder.prepare(png(np.zeros((2, 30), np.uint8)))
        assert child(decoder).pid == pid


def test_too_large_a_file_is_not_even_sent() -> None:
    with Decoder(ImageSettings(max_bytes=100), TILES) as decoder:
        with pytest.raises(DataError) as caught:
            decoder.prepare(GOOD)
        assert caught.value.code == "E1112"
        assert decoder._process is None


def kill_soon(decoder: Decoder, pids: list[int], times: int) -> threading.Thread:
    """Kill the decoder's first `times` children in the middle of their work."""

    def work() -> None:
        for _ in range(times):
            wait_until(lambda: decoder._process is not None and decoder._process.pid not in pids)
            wait_until(lambda: busy(child(decoder).pid))
            pids.append(child(decoder).pid)
            os.kill(pids[-1], signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def busy(pid: int) -> bool:
    """Idle, a child holds about 45 MB."""
    with open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * 4096 > 60e6


@pytest.mark.integration
def test_killed_twice_on_one_image(decoder: Decoder, slow_image: bytes) -> None:
    killed: list[int] = []
    thread = kill_soon(decoder, killed, times=2)
    with pytest.raises(DataError, match=r"signal 9.*twice") as caught:
        decoder.prepare(slow_image)
    thread.join()
    assert caught.value.code == "E1209"
    assert decoder.prepare(GOOD).size_wh == (64, 48)
    assert child(decoder).pid not in killed


@pytest.mark.integration
def test_killed_once_is_not_the_images_fault(decoder: Decoder, slow_image: bytes) -> None:
    killed: list[int] = []
    thread = kill_soon(decoder, killed, times=1)
    assert decoder.prepare(slow_image).size_wh == (SLOW_SIDE, SLOW_SIDE)
    thread.join()
    child(decoder).kill()  # and between two images
    assert decoder.prepare(GOOD).size_wh == (64, 48)


@pytest.mark.usefixtures("own_decoders")
def test_time_limit(slow_image: bytes) -> None:
    with Decoder(ImageSettings(decode_seconds=0.1), TILES) as decoder:
        decoder.prepare(GOOD)
        pid = child(decoder).pid
        with pytest.raises(DataError, match=r"longer than 0\.1 s") as caught:
            decoder.prepare(slow_image)
        assert caught.value.code == "E1209"
        assert gone(pid)
        assert decoder.prepare(GOOD).size_wh == (64, 48)


@pytest.mark.usefixtures("own_decoders")
def test_a_child_that_waits_for_a_core_is_not_late(slow_image: bytes) -> None:
    """It is held until its time on the clock is over: what counts is what it did itself."""
    with Decoder(ImageSettings(), TILES) as measured:
        measured.prepare(GOOD)
        before = cpu_s(child(measured))
        whole = measured.prepare(slow_image)
        used_s = cpu_s(child(measured)) - before
    limit_s = max(2 * used_s, 2.0)
    with Decoder(ImageSettings(decode_seconds=limit_s), TILES) as decoder:
        decoder.prepare(GOOD)
        process, until_s = child(decoder), time.monotonic() + 1.2 * limit_s

        def starve() -> None:
            while time.monotonic() < until_s:
                for signal_, seconds in ((signal.SIGSTOP, 0.2), (signal.SIGCONT, 0.02)):
                    os.kill(process.pid, signal_)
                    time.sleep(seconds)

        starving = threading.Thread(target=starve)
        starving.start()
        try:
            began_s = time.monotonic()
            found = decoder.prepare(slow_image)
            assert time.monotonic() - began_s > limit_s
        finally:
            starving.join()
        assert np.array_equal(found.tiles, whole.tiles)
        assert child(decoder) is process


def test_time_is_the_childs_own_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, used = 100.0, 5.0
    monkeypatch.setattr(child_time.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(ChildTime, "_used", lambda _: used)
    time_ = ChildTime(1, 2.0)
    assert time_.left() == 2.0
    now_s = 101.5
    assert time_.left() == 0.5  # stands still
    used = 5.5
    assert time_.left() == 1.5  # works
    for _ in range(18):
        now_s, used = now_s + 1, used + 0.01
        left = time_.left()
    assert left == pytest.approx(0.5)  # ten times on the clock
    used = 7.0
    assert time_.left() == 0.0
    monkeypatch.undo()
    assert ChildTime(2**23, 1.0).left() == pytest.approx(1.0, abs=0.1)  # nobody tells


@pytest.mark.usefixtures("own_decoders")
def test_a_child_that_stands_still_is_replaced() -> None:
    """Stopped, it does not even read: the request is larger than the pipe."""
    with Decoder(ImageSettings(decode_seconds=0.3), TILES) as decoder:
        decoder.prepare(GOOD)
        os.kill(child(decoder).pid, signal.SIGSTOP)
        with pytest.raises(DataError) as caught:
            decoder.prepare(GOOD + bytes(3 * 2**20))
        assert caught.value.code == "E1209"
        assert decoder.prepare(GOOD).warnings == ()


def test_memory_limit(decoder: Decoder, slow_image: bytes) -> None:
    decoder.prepare(GOOD)
    with open(f"/proc/{child(decoder).pid}/statm") as pages:
        idle = int(pages.read().split()[0]) * 4096
    with Decoder(ImageSettings(decode_bytes=idle + 2**25), TILES) as small:
        assert small.prepare(GOOD).size_wh == (64, 48)
        with pytest.raises(DataError, match="memory") as caught:
            small.prepare(slow_image)
        assert caught.value.code == "E1209"
        assert small.prepare(GOOD).size_wh == (64, 48)


def test_limits_of_the_child(shared: Decoder) -> None:
    shared.prepare(GOOD)
    with open(f"/proc/{child(shared).pid}/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[0] for line in file}
    assert limits["Max address space"] == str(2 * 2**30)
    assert limits["Max core file size"] == "0"
    assert limits["Max file size"] == "0"
    with open(f"/proc/{child(shared).pid}/environ") as file:
        names = {entry.split("=")[0] for entry in file.read().split("\0") if entry}
    assert names <= {
        "PYTHONPATH",
        "LC_ALL",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "LD_LIBRARY_PATH",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
    }
    with open(f"/proc/{child(shared).pid}/maps") as file:
        maps = file.read()
    assert "libtorch" not in maps
    assert os.getsid(child(shared).pid) == child(shared).pid


def test_it_says_nothing_on_the_standard_streams(
    decoder: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[4000:4100] = b"PATIENT NAME" * 8 + b"...."  # libtiff complains about such bytes by itself
    with contextlib.suppress(DataError):
        decoder.prepare(bytes(data))
    decoder.prepare(GOOD)
    assert [os.readlink(f"/proc/{child(decoder).pid}/fd/{n}") for n in range(3)] == [os.devnull] * 3
    decoder.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("own_decoders")
def test_no_descriptor_leaks() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Decoder(ImageSettings(decode_seconds=5), TILES) as decoder:
        before = descriptors()
        decoder.prepare(GOOD)
        inside = len(os.listdir(f"/proc/{child(decoder).pid}/fd"))
        for turn in range(20):
            decoder.prepare(GOOD)
            with contextlib.suppress(DataError):
                decoder.prepare(GOOD[: 60 + 9 * turn])
            if turn == 9:
                child(decoder).kill()
        assert descriptors() == before + 2
        assert len(os.listdir(f"/proc/{child(decoder).pid}/fd")) == inside
    assert descriptors() == before


def test_the_child_ends_with_its_parent() -> None:
    code = """
        import sys, time
        from medv_ray.data.decode_child import Decoder
        from medv_ray.canvases import TileSettings
        from medv_ray.settings import ImageSettings
        decoder = Decoder(ImageSettings(), TileSettings("square", 32))
        decoder.prepare(sys.stdin.buffer.read())
        print(decoder._process.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(GOOD)
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(pid))


@pytest.mark.usefixtures("own_decoders")
def test_an_orphan_that_hangs_ends_itself() -> None:
    """Its own alarms are set for each image, one second behind the parent's limits."""
    wide = TileSettings("square", 1024)  # a reply larger than the pipe, which nobody reads
    with Decoder(ImageSettings(decode_seconds=0.2), wide) as decoder:
        process = decoder._process = decoder._start()
        whole_file = decode_child._SIZE.pack(0)
        data = decode_child._SIZE.pack(len(GOOD)) + GOOD
        os.write(decode_child._pipes(process)[0], whole_file + data)
        wait_until(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGALRM


def no_child(_: Decoder) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_lying_child_is_not_believed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "_start", no_child)
    tiles = bytearray(32 * 32 * 3)
    true = {"size_wh": [64, 48], "warnings": ["palette"], "sha256": "0" * 64}
    for header, payload in (
        ({**true, "size_wh": [64]}, tiles),
        ({**true, "size_wh": "wide"}, tiles),
        (true, tiles[:-1]),
        ({"code": "E9999"}, b""),
        ([], b""),
        ({"warnings": []}, tiles),
    ):
        monkeypatch.setattr(decoder, "_exchange", lambda *_, reply=(header, payload): reply)
        with pytest.raises(DataError) as caught:
            decoder.prepare(GOOD)
        assert caught.value.code == "E1209"


def test_a_reply_larger_than_any_good_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = decode_child._REPLY.pack(10, 2**40)
    monkeypatch.setattr(Decoder, "_start", no_child)
    monkeypatch.setattr(decode_child, "_receive", lambda _pipe, size, _deadline: huge[:size])
    with pytest.raises(DataError) as caught:
        decoder.prepare(GOOD)
    assert caught.value.code == "E1209"


@pytest.mark.usefixtures("own_decoders")
def test_a_child_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoder(ImageSettings(), TILES) as decoder, pytest.raises(RunError, match="did not start"):
        decoder.prepare(GOOD)


def test_threads_share_one_child(shared: Decoder) -> None:
    results: list[bool] = []
    pictures = [np.roll(NOISE, shift, 1) for shift in range(8)]

    def work(picture: np.ndarray) -> None:
        want = prepare(png(picture), ImageSettings(), TILES).tiles
        results.extend(np.array_equal(shared.prepare(png(picture)).tiles, want) for _ in range(5))

    threads = [threading.Thread(target=work, args=(picture,)) for picture in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(results)
