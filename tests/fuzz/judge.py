"""What every parser promises: a value or an error of the catalogue, in time, in memory, and without
an address, a path, a stack or a word of the content in what it says."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from medv_ray.errors import CATALOGUE, MedvError
from tests.corpus.measures import MOST_S, leaks
from tests.fuzz.targets import Run


@dataclass
class Verdict:
    seconds: float
    """Of the processor."""
    faults: list[str] = field(default_factory=list)
    where: str = ""
    """What is alike in faults of one cause."""


def judge(run: Run, data: bytes, folder: Path) -> Verdict:
    """One input through one parser."""
    began_s = time.thread_time()
    faults: list[str] = []
    said: list[str] = []
    where = ""
    try:
        said = run(data)
    except MedvError as error:
        said = [str(error)]
        if error.code not in CATALOGUE or error.code == "E1509":
            faults.append(f"{error.code} is no error of a user's")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "medv_ray" in frame.filename] or frames
        where = f"{type(error).__name__} {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        faults.append(f"{type(error).__name__} came out of it ({where})")
    seconds = time.thread_time() - began_s
    if seconds > MOST_S:
        faults.append(f"{seconds:.1f} s")
    for message in said:
        faults += [f"a message holds {what}: {message[:300]}" for what in leaks(message, folder)]
    return Verdict(seconds, faults, where or (faults[0][:60] if faults else ""))
