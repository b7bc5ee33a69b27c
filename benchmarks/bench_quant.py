r"""Weight-only int8 and int4 beside bfloat16: memory, agreement and speed in one process.

    python benchmarks/bench_quant.py --model small/stage2-chat/model --data pathvqa
    python benchmarks/bench_quant.py --layers 1 [--positions 32 128] [--repeats 5]

With `--model`: the same questions of a prepared PathVQA split, spread evenly over it, by each arm
in turn. Equal token ids and equal answers beside bfloat16's and float32's, accuracy with its
interval, bytes of the language tower's matrices.

With `--layers`: so many layers of LLaDA-8B's shape with random weights, which every arm holds in
its own form, on one thread. Each arm is checked against the bfloat16 weights first. Then every
repeat takes one forward pass of each arm in turn, for each number of positions. Time is the
process' CPU time, as other work may share the machine; `wall_s` stands beside it. `whole_*` figures
are extrapolated to 32 layers and no head, one token a pass: nothing of that size was run.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circumstances import circumstances
from medv_ray.data.dataset import Dataset
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.engine.predictor import load_model
from medv_ray.evaluation import recipes, results
from medv_ray.model.config import LanguageConfig
from medv_ray.model.llada import LanguageTower, Linear
from medv_ray.model.quantise import quantise_matrix
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import AnswerSettings, EngineSettings, ModelSettings, build

ARMS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantisation": "int8"},
    "int4": {"dtype": "bfloat16", "quantisation": "int4"},
}
WHOLE_LAYERS = 32
BOUNDS = {"bfloat16": 1e-6, "int8": 0.02, "int4": 0.2}
"""Of `check`."""


def matrices_of(module: nn.Module) -> list[Linear]:
    return [one for one in module.modules() if isinstance(one, Linear)]


def bytes_of(weight: Tensor) -> int:
    """Of a plain tensor, or of what torchao holds of it."""
    names = [*getattr(weight, "tensor_data_names", ())]
    return sum(getattr(weight, name).nbytes for name in names) if names else weight.nbytes


def answers_of(
    arm: str, model: str, requests: Sequence[Request]
) -> tuple[list[Answer], dict[str, Any]]:
    held = build(ModelSettings, {"path": model, "device": "cpu", **ARMS[arm]})
    asked = build(AnswerSettings, checkpoint_defaults(model))
    loaded, tokenizer = load_model(held)
    matrices = matrices_of(loaded)
    with Predictor(Engine(loaded, tokenizer, asked, EngineSettings())) as predictor:
        start = time.process_time()
        ended = predictor.answer(requests)
        seconds = time.process_time() - start
    found = [one for one in ended if isinstance(one, Answer)]
    if len(found) < len(requests):
        raise SystemExit("wrong result: a row was refused")
    return found, {
        "matrix_bytes": sum(bytes_of(one.weight) for one in matrices),
        "cpu_s": round(seconds, 2),
    }


def agree(model: str, data: Path, split: str, num_questions: int) -> dict[str, Any]:
    """Each arm's answers to the same questions."""
    recipe = next(one for one in recipes.recipes_of("pathvqa"))
    dataset = Dataset.open(data, split)
    step = max(1, len(dataset) // num_questions)
    questions = recipes.questions_of(dataset)[::step][:num_questions]
    requests = [
        Request(recipe.ask(one.question, one.choices), tuple(map(dataset.image, one.images)))
        for one in questions
    ]
    found: dict[str, list[Answer]] = {}
    lines: dict[str, Any] = {}
    for arm in ARMS:
        found[arm], lines[arm] = answers_of(arm, model, requests)
        texts = {q.id: a.text for q, a in zip(questions, found[arm], strict=True)}
        lines[arm]["accuracy"] = results.headline(recipe, questions, texts)
    for arm in ARMS:
        for other in ("float32", "bfloat16"):
            pairs = list(zip(found[arm], found[other], strict=True))
            tokens = [
                a == b for x, y in pairs for a, b in zip(x.token_ids, y.token_ids, strict=False)
            ]
            lines[arm][f"as_{other}"] = {
                "tokens": round(statistics.mean(tokens), 4),
                "answers": sum(x.text == y.text for x, y in pairs),
                "of": len(pairs),
            }
    return {"model": Path(model).parent.name, "split": split, "arms": lines}


def tower(arm: str, state: dict[str, Tensor], layers: int) -> LanguageTower:
    """LLaDA-8B's layers with these bfloat16 weights, in the arm's form."""
    with torch.device("meta"):
        made = LanguageTower(LanguageConfig(vocab_size=8, num_hidden_layers=layers))
    made.load_state_dict(state, assign=True)
    made.eval().requires_grad_(False)
    for one in matrices_of(made):
        if arm != "bfloat16":
            quantise_matrix(one, arm, 128, "cpu")
    return made


def check(arm: str, made: LanguageTower, state: dict[str, Tensor]) -> float:
    """How far the arm's products are from those of the bfloat16 weights, as a share of their norm.

    Raises SystemExit where that is no rounding.
    """
    worst = 0.0
    for name, one in made.named_modules():
        if isinstance(one, Linear):
            rows = torch.randn(2, one.in_features).to(torch.bfloat16)
            want = nn.functional.linear(rows, state[f"{name}.weight"]).float()
            worst = max(worst, float((one(rows).float() - want).norm() / want.norm()))
    if not worst < BOUNDS[arm]:
        raise SystemExit(f"wrong result, not timed: {arm} is {worst:.3f} off")
    return round(worst, 4)


def peak_extra(made: LanguageTower, x: Tensor) -> int:
    """Bytes that one forward pass takes beside what is held."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = status("VmRSS")
    made(x)
    return max(0, status("VmHWM") - before)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


def shape(layers: int, positions: Sequence[int], repeats: int) -> dict[str, Any]:
    """Forward passes of each arm in turn."""
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = LanguageTower(LanguageConfig(vocab_size=8, num_hidden_layers=layers))
    state = {
        name: torch.ones(one.shape, dtype=torch.bfloat16)
        if one.dim() == 1
        else torch.empty(one.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name, one in empty.state_dict().items()
    }
    arms = {arm: tower(arm, dict(state), layers) for arm in ARMS if arm != "float32"}
    lines: dict[str, Any] = {
        arm: {
            "matrix_bytes": sum(bytes_of(one.weight) for one in matrices_of(made)),
            "by_positions": {},
        }
        for arm, made in arms.items()
    }
    off = {arm: check(arm, made, state) for arm, made in arms.items()}
    for count in positions:
        x = torch.randn(1, count, empty.embed_tokens.embedding_dim).to(torch.bfloat16)
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        walls: dict[str, list[float]] = {arm: [] for arm in arms}
        said = {}
        for arm, made in arms.items():
            made(x)
            said[arm] = {"off": off[arm], "peak_extra_bytes": peak_extra(made, x)}
        for _ in range(repeats):
            for arm, made in arms.items():
                wall, start = time.perf_counter(), time.process_time()
                made(x)
                seconds[arm].append(time.process_time() - start)
                walls[arm].append(time.perf_counter() - wall)
        for arm in arms:
            ratios = [b / a for a, b in zip(seconds[arm], seconds["bfloat16"], strict=True)]
            middle = statistics.median(seconds[arm])
            lines[arm]["by_positions"][count] = {
                **said[arm],
                "cpu_s": round(middle, 3),
                "wall_s": round(statistics.median(walls[arm]), 3),
                "times_bfloat16": round(statistics.median(ratios), 2),
                "range": [round(min(ratios), 2), round(max(ratios), 2)],
                "whole_tokens_per_core_s": round(layers / WHOLE_LAYERS / middle, 4),
            }
    for line in lines.values():
        line["whole_matrix_bytes"] = line["matrix_bytes"] * WHOLE_LAYERS // layers
    return {"layers": layers, "threads": torch.get_num_threads(), "arms": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", help="trained checkpoint folder")
    parser.add_argument("--data", type=Path, help="prepared PathVQA")
    parser.add_argument("--split", default="test")
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--positions", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    line: dict[str, Any] = {"bench": "quant", **circumstances()}
    load = Path("/proc/loadavg").read_text().split()[0]
    with torch.inference_mode():
        if args.model:
            line["agreement"] = agree(args.model, args.data, args.split, args.questions)
        if args.layers:
            line["shape"] = shape(args.layers, args.positions, args.repeats)
    print(json.dumps(line | {"load_before": float(load)}))


if __name__ == "__main__":
    main()
