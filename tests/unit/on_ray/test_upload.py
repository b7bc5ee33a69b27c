"""What `ray job submit` uploads with cluster/runtime_env.yaml: packed by Ray's own code."""

import tomllib
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
MOST_BYTES = 5_000_000


def test_what_is_uploaded(tmp_path: Path) -> None:
    made = tmp_path / "upload.zip"
    create_package(str(ROOT), made, include_gitignore=True, excludes=[])
    names = set(zipfile.ZipFile(made).namelist())
    needed = (
        *("jobs/score_archive.py", "jobs/finetune_pathvqa.py", "medv_ray/cli/__init__.py"),
        *("kernels/medv_kernels/reference.py", "medv_ray/assets/medv-tiny/model.safetensors"),
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"),  # of a wheel
        "medv_ray/serving/page/index.html",
    )
    assert sorted(set(needed) - names) == []
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [name.replace(".", "/") for name in setup["packages"]]
    folders = [name.replace("medv_kernels", "kernels/medv_kernels") for name in folders]
    assert [one for one in folders if f"{one}/__init__.py" not in names] == []  # of a wheel
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops <= {"medv_ray", "kernels", "jobs", "cluster"}
    assert made.stat().st_size < MOST_BYTES, "more goes into .rayignore"


def test_runs_and_data_are_not(tmp_path: Path) -> None:
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    kept, left = ("jobs/a.py", "medv_ray/runs.py"), ("runs/r/rows/p.parquet", "demo-run/x", "web/y")
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    made = tmp_path.with_suffix(".zip")
    create_package(str(tmp_path), made, include_gitignore=True, excludes=[])
    names = {one for one in zipfile.ZipFile(made).namelist() if not one.startswith(".")}
    assert names == set(kept)
