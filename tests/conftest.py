"""For every test: a thread for each process, as two processes share two cores; without a GPU,
Triton interprets kernels on the CPU; the garbage collector passes over what the imports left (0.4 s
a collection); decoding children are shared (tests/decoders.py), and so is what is the same in each
test and takes long: the certificates of a client (60 ms), the options of a command line (150 ms).
Nothing is forced to the disk (5 ms), as no test cuts the power.
"""

import functools
import gc
import logging
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest
import torch
import typer.testing
from hypothesis import HealthCheck, settings

from tests import interpreter
from tests.decoders import Kept
from tests.golden.tally import SESSION

DECODERS = Kept()
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes is a matter of who else works

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

PROCESSES = ("integration", "chaos", "slow")
"""Markers of tests that start processes; the Makefile asks for them alone."""
WHOLE_FILE = "\npytestmark = pytest.mark.integration\n"


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until the tests are collected: all of it stays
    for name, logger in logging.root.manager.loggerDict.items():
        # pytest puts its handlers on each logger that keeps to itself, six times a test: torch
        # has fifty
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True
    config.pluginmanager.register(SESSION, "golden tally")
    DECODERS.install()
    ssl.create_default_context = functools.cache(ssl.create_default_context)
    if made := getattr(typer.testing, "_get_command", None):
        typer.testing._get_command = functools.cache(made)
    os.fsync = os.fstat  # fails where fsync would: on what is no open file


def pytest_unconfigure() -> None:
    DECODERS.end()
    gc.unfreeze()  # else what C libraries hold is reported as leaked


@pytest.fixture
def own_decoders() -> Iterator[None]:
    """Every decoder starts its child and ends it."""
    DECODERS.on = False
    yield
    DECODERS.on = True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the tests that need no other process; one where Ray is started, or where
    single files or tests are asked for. `-n` says otherwise."""
    named = [argument for argument in config.args if ".py" in argument]
    alone = named or config.option.markexpr != "not integration" or config.option.usepdb
    return 0 if alone else min(2, os.cpu_count() or 1)


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """What is there when a file's tests begin is no longer looked through, as it mostly stays."""
    gc.collect()
    gc.freeze()


def mentions(path: Path, marker: str) -> bool:
    """Whether a test file, or the conftest.py beside it, gives anything that marker."""
    beside = (path, path.with_name("conftest.py"))
    return any(f"mark.{marker}" in file.read_text() for file in beside if file.exists())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether a file has no test of the one marker that the Makefile asks for: to import all files
    takes ten seconds and more."""
    if config.option.markexpr == "not integration" and collection_path.name.startswith("test_"):
        return True if WHOLE_FILE in collection_path.read_text() else None
    marker = {
        "integration and not chaos and not slow": "integration",
        "slow and not chaos": "slow",
        "chaos": "chaos",
    }.get(config.option.markexpr)
    if marker is None or not collection_path.name.startswith("test_"):
        return None
    return None if mentions(collection_path, marker) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # else it would be in no half of `make test`
        for marker in PROCESSES:
            if item.get_closest_marker(marker) and not mentions(item.path, marker):
                raise pytest.UsageError(f"{item.nodeid}: its file does not say mark.{marker}")


def pytest_collection_finish() -> None:
    interpreter.patch_once()
    gc.freeze()
    gc.enable()
