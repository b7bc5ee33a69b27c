"""A scoring job as a process of its own: `python -m tests.integration.run_job FOLDER [FACTORY]`.

Prints the job's last line as `medv score` does, and ends with its exit code. FOLDER/in.parquet is
scored into FOLDER/run; `chunk_rows` and other settings come as JSON in MEDV_TEST_SETTINGS.
"""

import json
import os
import sys
from pathlib import Path

from medv_ray.cli import exit_code_of, print_json, summary_of
from medv_ray.on_ray.score import score
from tests.integration import stub


def main() -> int:
    folder = Path(sys.argv[1])
    factory = sys.argv[2] if len(sys.argv) > 2 else stub.STUB
    more = json.loads(os.environ.get("MEDV_TEST_SETTINGS", "{}"))
    settings = stub.settings(folder, **more)
    outcome = score(settings, factory=factory)
    print_json(summary_of(outcome, settings))
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
