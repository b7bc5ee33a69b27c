"""Every kind of bad input through every path that it can take, and the table of what came of it.

    python -m tests.corpus --write docs/reliability.md
    python -m tests.corpus --check docs/reliability.md
    python -m tests.corpus --only 24 --only 56

Exit status 1 when an outcome is not one of those that are right, an input took over 5 s or 1 GiB,
or a message held an address, an absolute path, a stack or content of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.corpus.bench import Bench
from tests.corpus.groups import GROUPS
from tests.corpus.run import run
from tests.corpus.table import replaced, same, updated
from tests.decoders import Kept


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--write", type=Path, help="File whose tables, or lines of --only, are replaced."
    )
    parser.add_argument("--check", type=Path, help="File whose table is to be what came of it.")
    parser.add_argument("--only", type=int, action="append", help="Number of a kind.")
    asked = parser.parse_args()
    os.fsync = os.fstat  # as in tests: nobody cuts the power
    decoders, began_s = Kept(), time.monotonic()
    decoders.install()
    try:
        with tempfile.TemporaryDirectory() as folder, Bench(Path(folder)) as bench:
            results = run(bench, GROUPS, asked.only, say=lambda text: print(text, flush=True))
    finally:
        decoders.end()
    seconds = round(time.monotonic() - began_s)
    print(f"{results.summary} ({seconds} s)")
    print(json.dumps(results.figures | {"seconds": seconds}))
    if asked.write:
        change = updated if asked.only else replaced
        asked.write.write_text(change(asked.write.read_text(), GROUPS, results))
    changed = bool(asked.check) and not same(asked.check.read_text(), GROUPS, results)
    if changed:
        print(f"{asked.check.name}: its table is another one; make corpus", file=sys.stderr)
    return int(bool(results.faults) or changed)


if __name__ == "__main__":
    sys.exit(main())
