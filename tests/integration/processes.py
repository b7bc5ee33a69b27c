"""Processes below a process, from /proc."""

from collections import defaultdict
from pathlib import Path


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
