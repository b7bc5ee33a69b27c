"""Which products a CPU makes: named, said once, and never by a timing."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from medv_kernels import cpu, private_torch
from medv_kernels.linear import PackedWeight, pack


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The choice is made anew in each test, and again after it."""
    for made in (cpu.choice, cpu.has_onednn):
        made.cache_clear()
    yield
    for made in (cpu.choice, cpu.has_onednn):
        made.cache_clear()


def test_the_choice_names_library_instructions_and_vendor() -> None:
    library, instructions, vendor = cpu.choice().split("-")
    assert library == (
        "onednn" if cpu.has_onednn() else "mkl" if torch.backends.mkl.is_available() else "blas"
    )
    assert instructions == torch.backends.cpu.get_cpu_capability().lower()
    assert vendor in (*cpu.VENDORS.values(), "other")


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 17\n", "amd"),
        ("vendor_id\t: GenuineIntel\n", "intel"),
        ("vendor_id\t: HygonGenuine\n", "other"),
        ("CPU implementer\t: 0x41\n", "other"),
        (None, "other"),
    ],
)
def test_vendors(text: str | None, vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, errors: str | None = None) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert cpu.choice().endswith(f"-{vendor}")


def test_it_is_said_once_and_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(cpu.log, "info", lambda text, made: said.append(text % made))
    with monkeypatch.context() as patch:
        for clock in ("time", "perf_counter", "process_time", "monotonic"):
            patch.setattr(time, clock, None)
        first = cpu.choice()
        pack(torch.zeros(4, 4))
        assert cpu.choice() == first
    assert said == [f"CPU products: {first}"]


def test_without_onednn_the_weight_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight = torch.randn(6, 4)
    assert pack(weight) is weight
    assert cpu.choice().split("-")[0] in ("mkl", "blas")


@pytest.mark.parametrize("name", private_torch.NAMES)
def test_a_torch_without_the_names_is_named_and_does_without(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {other: None for other in private_torch.NAMES if other != name}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**kept))
    weight = torch.randn(6, 4)
    assert pack(weight) is weight
    assert f"torch {torch.__version__} has no {name} any more" in caplog.text


def test_this_torch_has_the_names() -> None:
    assert cpu.has_onednn() == torch.backends.mkldnn.is_available()
    assert not private_torch.missing()


def test_what_follows_a_product_is_what_torch_would_do_after_it() -> None:
    generator = torch.manual_seed(0)
    weight, rows = torch.randn(48, 20, generator=generator), torch.randn(2, 9, 20)
    times = torch.randn(2, 9, 48)
    packed = pack(weight)
    if not isinstance(packed, PackedWeight):
        pytest.skip("this torch has no oneDNN")
    want = rows @ weight.T
    torch.testing.assert_close(packed.product(rows), want)
    torch.testing.assert_close(packed.product(rows, silu=True), functional.silu(want))
    torch.testing.assert_close(packed.product(rows, times=times), want * times)
