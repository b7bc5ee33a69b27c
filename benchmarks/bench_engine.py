r"""End to end on the toy's archive: rows a second of each preset and of the reference's loop, and
how far they agree.

    python benchmarks/bench_engine.py [--rows 1200] [--timed 400] [--repeats 5]

One process, one model (medv-tiny), one thread, L = B = Z = 24; short questions and captions of 16
to 20 tokens. Agreement is taken over all rows first, by equal token ids. Then a repeat answers the
first `--timed` of them with each arm in turn, every time with a fresh engine: decoding, vision
tower, denoising. The reference's loop takes each question alone: its picture is decoded
and goes through the tower again, the language head runs on every position of the sequence, all
Z steps are taken, and the answer is cut at the end of turn afterwards.
Prints one JSON line: rows/s, NFE, TPF, TPS to the end of text and to L, seconds an answer.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from circumstances import circumstances
from medv_ray.data import synthetic
from medv_ray.data.images import prepare
from medv_ray.data.prompts import SpecialIds, Turn, build, load_tokenizer
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.engine.resolve import resolve
from medv_ray.model import weights
from medv_ray.model.denoise import splice
from medv_ray.model.medv import Medv
from medv_ray.settings import TOY, AnswerSettings, EngineSettings, PromptSettings, SamplerSettings
from reference_structure import sample as reference_sample

LENGTH = 24
LONG = 8
"""Tokens of an answer that counts as long."""
KINDS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "fast": {"preset": "fast"},
    "turbo": {"preset": "turbo"},
    "dual": {"cache": "dual", "refresh_interval": 32},
}
"""`dual` commits one token a step as `exact` does: it shows what the cache alone changes."""
Arm = Callable[[Sequence[synthetic.Row]], tuple[list[tuple[int, ...]], dict[str, Any]]]


def sampler(kind: str) -> SamplerSettings:
    return SamplerSettings(gen_length=LENGTH, block_length=LENGTH, steps=LENGTH, **KINDS[kind])


def by_engine(model: Medv, tokenizer: Any, kind: str) -> Arm:
    """The engine, one request after the other as on a CPU."""

    def run(
        rows: Sequence[synthetic.Row],
    ) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
        settings = AnswerSettings(sampler=sampler(kind))
        with Predictor(Engine(model, tokenizer, settings, EngineSettings())) as predictor:
            ended = predictor.answer([Request(row.question, (row.image,)) for row in rows])
        answers = [answer for answer in ended if isinstance(answer, Answer)]
        if len(answers) < len(rows):
            raise SystemExit("wrong result, not timed: a row was refused")
        said = {
            "NFE": statistics.mean(answer.forward_passes for answer in answers),
            "seconds": [answer.seconds for answer in answers],
        }
        return [answer.token_ids for answer in answers], said

    return run


def by_reference(model: Medv, tokenizer: Any) -> Arm:
    """The reference's loop: batch 1, nothing kept between questions."""
    special = SpecialIds.of(tokenizer)
    settings = AnswerSettings()
    spec = resolve(sampler("exact"), tokenizer, special)
    tiles = model.config.tiling(settings.image.aspect)

    def answer(row: synthetic.Row) -> tuple[int, ...]:
        picture = prepare(row.image, settings.image, tiles)
        image = model.encode_image(torch.from_numpy(picture.tiles), picture.size_wh)
        ids = build(tokenizer, [Turn("user", row.question)], 1, PromptSettings())
        prompt = splice(model, torch.tensor(ids), [image])

        def logits_of(x: Tensor) -> Tensor:
            embeds = torch.cat((prompt[None], model.embed(x[:, len(prompt) :])), 1)
            return model.hidden(embeds) @ model.head.T

        found = reference_sample(
            logits_of,
            torch.zeros(len(prompt), dtype=torch.int64),
            gen_length=LENGTH,
            block_length=LENGTH,
            steps=LENGTH,
            mask_id=spec.mask_id,
            forbidden=spec.forbidden_ids,
        ).tolist()
        return tuple(found[: found.index(special.eot)] if special.eot in found else found)

    def run(
        rows: Sequence[synthetic.Row],
    ) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
        found, seconds = [], []
        with torch.inference_mode():
            for row in rows:
                start = time.perf_counter()
                found.append(answer(row))
                seconds.append(time.perf_counter() - start)
        return found, {"NFE": float(LENGTH), "seconds": seconds}

    return run


def agreement(found: Sequence[tuple[int, ...]], exact: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Rows whose tokens are those of the exact preset."""
    long = [i for i, ids in enumerate(exact) if len(ids) >= LONG]
    return {
        "rows": len(exact),
        "equal": sum(a == b for a, b in zip(found, exact, strict=True)) / len(exact),
        "long_rows": len(long),
        "long_equal": sum(found[i] == exact[i] for i in long) / max(1, len(long)),
    }


def measure(rows: Sequence[synthetic.Row], timed: int, repeats: int) -> dict[str, Any]:
    tokenizer = load_tokenizer(TOY)
    model = weights.load(TOY, dtype=torch.float32, device="cpu", logit_size=len(tokenizer))
    model.pack(2**30)
    arms: dict[str, Arm] = {name: by_engine(model, tokenizer, name) for name in KINDS}
    arms["reference"] = by_reference(model, tokenizer)
    answers, said = {}, {}
    for name, run in arms.items():
        answers[name], said[name] = run(rows)
    truth = [tokenizer.encode(row.answer, add_special_tokens=False) for row in rows]
    rate: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            start = time.perf_counter()
            found, more = run(rows[:timed])
            rate[name].append(len(found) / (time.perf_counter() - start))
            said[name]["seconds"] += more["seconds"]
            if found != answers[name][:timed]:
                raise SystemExit(f"wrong result, not timed: {name} differs from itself")
    tokens = {name: sum(map(len, ids)) / len(rows) for name, ids in answers.items()}
    return {
        "bench": "engine",
        "L=B=Z": LENGTH,
        "rows_timed": timed,
        "arms": {
            name: {
                "rows_s": spread(rate[name]),
                "over_exact": spread(
                    [a / b for a, b in zip(rate[name], rate["exact"], strict=True)]
                ),
                "over_reference": spread(
                    [a / b for a, b in zip(rate[name], rate["reference"], strict=True)]
                ),
                "agreement": agreement(answers[name], answers["exact"]),
                "as_reference": sum(
                    a == b for a, b in zip(answers[name], answers["reference"], strict=True)
                )
                / len(rows),
                "right": sum(list(a) == b for a, b in zip(answers[name], truth, strict=True))
                / len(rows),
                "NFE": said[name]["NFE"],
                "TPF": tokens[name] / said[name]["NFE"],
                "TPS_to_end": tokens[name] * statistics.median(rate[name]),
                "TPS_to_L": LENGTH * statistics.median(rate[name]),
                "answer_s": percentiles(said[name]["seconds"]),
            }
            for name in arms
        },
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        **circumstances(),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1200, help="one in four is a caption")
    parser.add_argument("--timed", type=int, default=400, help="rows of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = synthetic.rows(args.rows * 3 // 4, args.seed, captions=True)
    print(json.dumps(measure(list(asked), args.timed, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
