"""Repeats among hashes that do not all fit into what is held."""

import random
import tempfile
import tracemalloc

import numpy as np
import pytest

from medv_ray.archive import id_hashes
from medv_ray.archive.id_hashes import IdHashes
from medv_ray.errors import RunError
from tests.small_disk import small_disk


def of(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def slowly(numbers: list[int]) -> list[int]:
    """Ordinals of numbers that came before."""
    return [at for at, number in enumerate(numbers) if number in numbers[:at]]


@pytest.mark.parametrize("held", [3, 64, 2000])
@pytest.mark.parametrize("compared", [1, 2**20])
def test_repeats_are_found_wherever_the_first_of_them_lies(monkeypatch, held, compared):
    monkeypatch.setattr(id_hashes, "COMPARED", compared)
    rng = random.Random(held)
    numbers = [rng.randrange(300) for _ in range(700)]
    hashes = IdHashes(held)
    for number in numbers:
        hashes.add(of(number))
    assert len(hashes) == 700
    assert hashes.repeats().tolist() == slowly(numbers)


@pytest.mark.parametrize("held", [2, 100])
def test_dropped_ones_are_no_repeats_and_repeat_nothing(held):
    hashes = IdHashes(held)
    for number in (1, 2, 3, 1, 4):
        hashes.add(of(number))
    hashes.drop(2)
    assert len(hashes) == 5
    for number in (3, 3, 4, 4, 1):
        hashes.add(of(number))
    assert hashes.repeats().tolist() == [6, 8, 9]  # the second 3 and 4, and the 1 of before
    hashes.add(of(2) + of(1))  # and further ones
    assert hashes.repeats().tolist() == [6, 8, 9, 10, 11]


def test_hashes_that_begin_alike_are_no_repeats():
    hashes = IdHashes()
    hashes.add(bytes(16) + bytes(8) + b"\1" * 8 + b"\1" * 8 + bytes(8) + bytes(16))
    assert hashes.repeats().tolist() == [3]


def test_nothing_repeats_in_nothing():
    assert IdHashes().repeats().tolist() == []


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(id_hashes, "COMPARED", 2**12)
    peaks = []
    for rows in (20_000, 60_000):
        numbers = np.random.default_rng(rows).integers(0, 256, (rows, 16), np.uint8)
        numbers[-1] = numbers[0]
        tracemalloc.start()
        hashes = IdHashes(2**12)
        for row in numbers:
            hashes.add(row.tobytes())
        assert hashes.repeats().tolist() == [rows - 1]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**17  # 40,000 hashes have 2^19 bytes more


def test_a_full_disk_for_temporary_files_is_named(monkeypatch, tmp_path):
    with small_disk(tmp_path / "disk", "8k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
        hashes = IdHashes(1000)
        for number in range(999):
            hashes.add(of(number))
        with pytest.raises(RunError, match="comparison of ids .TMPDIR. needs 24000 bytes"):
            hashes.add(of(999))
