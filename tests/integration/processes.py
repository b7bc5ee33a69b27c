"""What a job's process is started with, and the processes below it, from /proc."""

import os
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(ray_folder: Path) -> dict[str, str]:
    """As in an activated virtual environment, with Ray's files in `ray_folder`."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": str(ray_folder),
        "OMP_NUM_THREADS": "1",
    }


def descendants(root: int) -> list[int]:
    """Process ids below `root`, `root` left out."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children[parent].append(int(stat.parent.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children[todo.pop()]
        found += below
        todo += below
    return found


def command(pid: int) -> str:
    """The command line; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, UnicodeDecodeError):
        return ""


def actors(root: int) -> list[int]:
    """Scoring actors below `root`."""
    return [pid for pid in descendants(root) if "ScoreChunk" in command(pid)]


def decoding_actors(root: int) -> list[int]:
    """Those that decode in front of them."""
    return [pid for pid in descendants(root) if "DecodeChunk" in command(pid)]
