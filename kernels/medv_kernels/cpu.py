"""Which products of matrices a CPU makes, by what it is and what torch was built with.

Never by a timing: two actors on one kind of machine must choose alike, since libraries differ in
the last bits.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch

from medv_kernels import private_torch

log = logging.getLogger(__name__)

VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "ARM": "arm"}


@functools.cache
def has_onednn() -> bool:
    """Whether this torch has oneDNN, and lets a weight be laid out for it once. A torch that has
    only lost the names for that is named in the log."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    gone = private_torch.missing()
    if gone:
        log.warning(
            "torch %s has no %s any more: CPU products are made without a weight that is laid out "
            "once, slower. Another torch (constraints.txt) has it.",
            torch.__version__,
            ", ".join(gone),
        )
    return not gone


@functools.cache
def choice() -> str:
    """Library, instruction set and vendor, "onednn-avx512-amd": where two CPUs give the same,
    float32 answers have the same bits. Said once in the log."""
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    library = "onednn" if has_onednn() else "mkl" if mkl else "blas"
    made = f"{library}-{torch.backends.cpu.get_cpu_capability().lower()}-{_vendor()}"
    log.info("CPU products: %s", made)
    return made


def _vendor() -> str:
    """The maker, after which MKL chooses its kernels; "other" where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return "other"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return VENDORS.get(names[0], "other") if names else "other"
