"""Decoding children that the tests share: to start one takes 0.3 s of a core.

A child that its `Decoder` closes stays for the next with the same settings. Where the child itself
is tested, the fixture `own_decoders` (tests/conftest.py) turns this off.
"""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

from medv_ray.data.decode_child import Decoder

MOST_KEPT = 6
_Key = tuple[bytes, tuple[str, ...]]


class Kept:
    """Idle children by the settings and the folders of modules that they were started with."""

    def __init__(self) -> None:
        self.on = True
        self._idle: OrderedDict[_Key, subprocess.Popen[bytes]] = OrderedDict()
        self._start, self._close = Decoder._start, Decoder.close

    def install(self) -> None:
        kept = self
        Decoder._start = lambda decoder: kept.start(decoder)  # type: ignore[method-assign]
        Decoder.close = lambda decoder: kept.close(decoder)  # type: ignore[method-assign]

    def start(self, decoder: Decoder) -> subprocess.Popen[bytes]:
        process = self._idle.pop(_key(decoder), None) if self.on else None
        return process if process and process.poll() is None else self._start(decoder)

    def close(self, decoder: Decoder) -> None:
        key = _key(decoder)
        with decoder._lock:  # so no picture is on its way
            if self.on and decoder._process and key not in self._idle:
                self._idle[key], decoder._process = decoder._process, None
        self._close(decoder)
        while len(self._idle) > MOST_KEPT:
            self._end(self._idle.popitem(last=False)[1])

    def end(self) -> None:
        while self._idle:
            self._end(self._idle.popitem()[1])

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.wait()


def _key(decoder: Decoder) -> _Key:
    return decoder._setup, tuple(sys.path)
