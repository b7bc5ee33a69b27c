"""lmms-eval itself, in an environment of its own, over the embedded toy: five questions, offline.

    python tests/clients/run_lmms_eval.py                    # installs (GBs), asks; minutes
    python tests/clients/run_lmms_eval.py --folder /tmp/lmms # the environment is kept there

Compares lmms-eval's answers with those of `Predictor`, and its figures with those of
`medv_ray.evaluation` over these answers. Prints what it found; 1 if something differs. No part of
`make test`, as it installs packages.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from medv_ray.data import synthetic
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.engine import Predictor, Request
from medv_ray.evaluation.metrics import Judged, values
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings, build

ROOT = Path(__file__).resolve().parents[2]
COUNT = 5
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "MEDV_ANY_SPLIT": "1",
}  # fmt: skip
KEPT = ("PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run lmms-eval over the embedded toy.")
    parser.add_argument("--folder", type=Path, help="of the environment, which is kept there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        python = environment((args.folder or work) / "venv")
        rows = asked()
        written(work / "data", rows)
        figures, samples = evaluated(python, work)
        return compared(rows, figures, samples)


def asked() -> list[synthetic.Row]:
    """Questions; to two of them the toy's answer is not the reference."""
    rows = list(synthetic.rows(COUNT, seed=11))
    rows[1] = replace(rows[1], answer=f"dark {rows[1].answer} and red")
    rows[4] = replace(rows[4], answer={"yes": "no", "no": "yes"}[rows[4].answer])
    return rows


def environment(folder: Path) -> Path:
    """The interpreter of an environment that holds lmms-eval and this package."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[lmms-eval]"], check=True)
    return python


def written(folder: Path, rows: list[synthetic.Row]) -> None:
    """The questions as a prepared dataset under VQA-RAD's name."""
    split = [
        Row(
            row.id,
            (row.image,),
            on_one_image([(row.question, row.answer)]),
            "closed" if row.answer in ("yes", "no") else "open",
        )
        for row in rows
    ]
    write_dataset(folder, "vqa-rad", {"test": split}, licence="Apache-2.0")


def evaluated(python: Path, work: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures by metric, and lmms-eval's log of the answers."""
    medv = python.with_name("medv")
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    env = kept | OFFLINE | {"HOME": str(work), "MEDV_DATA": str(work / "data")}
    tasks = subprocess.run(
        [medv, "lmms-tasks"], env=env, cwd=work, capture_output=True, text=True, check=True
    ).stdout.strip()
    command = [
        python.with_name("lmms-eval"), "--model", "llada_medv", "--model_args", "pretrained=toy",
        "--tasks", "medv_vqa_rad", "--include_path", tasks, "--batch_size", "2",
        "--log_samples", "--output_path", work / "out",
    ]  # fmt: skip
    subprocess.run(command, env=env, cwd=work, check=True, timeout=1200)
    made = [*(work / "out").rglob("*_results.json"), *(work / "out").rglob("*_samples_*.jsonl")]
    if len(made) != 2:  # it exits with 0 after an error, too
        raise SystemExit("FAILED: lmms-eval wrote no results")
    told, log = made
    found = json.loads(told.read_text())["results"]["medv_vqa_rad"]
    figures = {
        name.removesuffix(",none"): value
        for name, value in found.items()
        if name.endswith(",none") and "stderr" not in name and isinstance(value, float)
    }
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    return figures, sorted(samples, key=lambda sample: int(sample["doc_id"]))


def compared(
    rows: list[synthetic.Row], figures: dict[str, float], samples: list[dict[str, Any]]
) -> int:
    """1 where an answer or a figure is another one than ours."""
    sampler = build(SamplerSettings, checkpoint_defaults(str(TOY))["sampler"])
    model = ModelSettings(path=str(TOY), device="cpu")
    with Predictor.load(model, AnswerSettings(sampler=sampler)) as predictor:
        ours = predictor.answer([Request(row.question, (row.image,)) for row in rows])
    said = [text if isinstance(text := s["filtered_resps"], str) else text[0] for s in samples]
    judged = [
        Judged(row.id, answer, row.answer, "closed" if row.answer in ("yes", "no") else "open")
        for row, answer in zip(rows, said, strict=True)
    ]
    wanted = {name: fmean(of.values()) for name, of in values(judged).items() if of}
    texts = [getattr(answer, "text", "") for answer in ours]
    print(json.dumps({"answers": said, "figures": figures}, indent=1))
    if said != texts:
        print(f"FAILED: Predictor answers {texts}")
    # lmms-eval's mean rounds each sum
    counted = figures.keys() == wanted.keys() and all(
        math.isclose(figures[name], wanted[name], rel_tol=1e-12) for name in wanted
    )
    if not counted:
        print(f"FAILED: medv_ray.evaluation counts {json.dumps(wanted, indent=1)}")
    same = said == texts and counted
    if same:
        print(f"{len(rows)} answers and {len(figures)} figures equal ours")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
