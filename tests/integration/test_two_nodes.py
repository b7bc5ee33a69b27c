"""Decoding on a node of its own; tests/integration/two_nodes.py says how."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import ROOT, environment


@pytest.mark.slow
def test_decoding_on_another_node_changes_no_row(tmp_path: Path, ray_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.two_nodes", str(tmp_path)],
        cwd=ROOT, env=environment(ray_folder), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    whole, split = said["whole"], said["split"]
    assert whole["exit_code"] == split["exit_code"] == 0
    assert whole["rows"] == split["rows"] == said["rows"]
    assert whole["digest"] == split["digest"]
    assert split["reasons"] == whole["reasons"]
    assert {"corrupt_image", "not_an_image", "empty_question"} <= set(whole["reasons"])
    assert split["warned"] == whole["warned"]
    assert split["tower_runs"] == whole["tower_runs"]
    assert split["deaths"] == 0
