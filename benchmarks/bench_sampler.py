r"""The exact sampler against one of the reference's structure: same model, same tokens, CPU
seconds.

    python benchmarks/bench_sampler.py [--vocabulary 126464 --vocabulary 8192] [--repeats 5]
    python benchmarks/bench_sampler.py --dual       our own full recompute against its dual cache

Set-up: random weights, body width 256 x 8 layers, float32, 1 thread, 64-token prompt, L = B = Z =
64. Weights are packed once, outside the clock, as an engine does at its start.
Both arms alternate in one process; a repeat whose tokens differ is an error, not a figure.
Prints one JSON line per vocabulary: best, median and range of process CPU seconds of each arm;
GFLOP/s of one product of the body and one of the head with either library, which bound the ratio;
and, from a run apart, where a step's time goes.

With --dual: a prompt of 779 tokens, a refresh every 32 steps. First, in four steps of 16 tokens, a
refresh at every step must give the tokens of full recompute; each arm must repeat itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from circumstances import circumstances
from medv_kernels import reference
from medv_kernels.linear import linear, pack
from medv_ray.diffusion.sampler import SampleSpec, sample
from medv_ray.model.cache import Cached
from medv_ray.model.config import LanguageConfig, ModelConfig
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.medv import Medv
from reference_structure import sample as reference_sample

PROMPT, LENGTH = 64, 64
LONG_PROMPT, REFRESH = 779, 32


def build_model(vocabulary: int) -> Medv:
    """A random tower of the benchmark's shape; logits are spread as a trained head's are."""
    torch.manual_seed(0)
    language = LanguageConfig(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=vocabulary,
    )
    model = Medv(ModelConfig(language=language, vision=None)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
        model.lm_head.weight.normal_(0, 0.25)
    return model


def arms(model: Medv, prompt: Tensor, mask_id: int) -> dict[str, Callable[[], Tensor]]:
    """The two samplers as functions of nothing that return int64[LENGTH]."""
    packed = copy.deepcopy(model)  # as Predictor.load and Engine do with a tower of this size
    packed.pack(2**30)
    head = pack(packed.head)
    spec = SampleSpec(gen_length=LENGTH, block_length=LENGTH, steps=LENGTH, mask_id=mask_id)

    def ours() -> Tensor:
        denoiser = FullRecompute(packed, [packed.embed(prompt)])
        for state in sample(denoiser, spec, head=head):
            final = state
        return final.x[0]

    def reference() -> Tensor:
        return reference_sample(
            lambda ids: model.logits(ids),
            prompt,
            gen_length=LENGTH,
            block_length=LENGTH,
            steps=LENGTH,
            mask_id=mask_id,
        )

    return {"reference": reference, "ours": ours}


def best_of(run: Callable[[], object], times: int = 10) -> float:
    """Process CPU seconds of the fastest of some calls."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


@torch.no_grad()
def products(vocabulary: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of torch's default product and of a packed one, in the sampler's shapes."""
    shapes = {"body 128x256x768": (128, 768), "head 32x256xV": (32, vocabulary)}
    found = {}
    for name, (rows, tall) in shapes.items():
        x, weight = torch.randn(rows, 256), torch.randn(tall, 256)
        packed, flop = pack(weight), 2 * rows * 256 * tall
        found[name] = {
            "default": flop / best_of(lambda x=x, w=weight: linear(x, w)) / 1e9,
            "packed": flop / best_of(lambda x=x, w=packed: linear(x, w)) / 1e9,
        }
    return found


def split(run: Callable[[], Tensor]) -> dict[str, float]:
    """Seconds in the body, the head's products, the selection, and all else of one answer."""
    spent = dict.fromkeys(("body", "head", "select", "all"), 0.0)

    def watched(part: str, call: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **options: object) -> object:
            start = time.process_time()
            made = call(*args, **options)
            spent[part] += time.process_time() - start
            return made

        return timed

    places = {
        "body": (Medv, "hidden"),
        "head": (reference, "linear"),
        "select": (reference, "choose"),
    }
    kept = {part: getattr(*place) for part, place in places.items()}
    for part, (owner, name) in places.items():
        setattr(owner, name, watched(part, kept[part]))
    try:
        watched("all", run)()
    finally:
        for part, (owner, name) in places.items():
            setattr(owner, name, kept[part])
    spent["rest"] = spent["all"] - sum(spent[part] for part in places)
    return spent


def measure(vocabulary: int, repeats: int) -> dict[str, object]:
    """Interleaved repeats; raises if the tokens of the arms ever differ."""
    model = build_model(vocabulary)
    prompt = torch.randint(0, vocabulary - 1, (PROMPT,), generator=torch.manual_seed(1))
    both = arms(model, prompt, vocabulary - 1)
    tokens = {name: run() for name, run in both.items()}  # warm-up and check
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(repeats):
        for name, run in both.items():
            start = time.process_time()
            got = run()
            seconds[name].append(time.process_time() - start)
            if not torch.equal(got, tokens["reference"]):
                raise SystemExit(f"wrong result, not timed: {name} differs at V={vocabulary}")
    ratios = [r / o for r, o in zip(seconds["reference"], seconds["ours"], strict=True)]
    return {
        "bench": "sampler_exact",
        "vocabulary": vocabulary,
        "prompt": PROMPT,
        "L=B=Z": LENGTH,
        "cpu_s": {
            name: {"best": min(s), "median": statistics.median(s), "max": max(s)}
            for name, s in seconds.items()
        },
        "ratio_of_best": min(seconds["reference"]) / min(seconds["ours"]),
        "ratio_range": [min(ratios), max(ratios)],
        "tokens_identical": True,
        "split_s": split(both["ours"]),
        "gflops": products(vocabulary),
        **circumstances(),
    }


def measure_dual(vocabulary: int, repeats: int) -> dict[str, object]:
    """Full recompute and the dual cache of the same sampler, on weights that are packed."""
    model = build_model(vocabulary)
    model.pack(2**30)
    generator = torch.manual_seed(1)
    prompt = model.embed(torch.randint(0, vocabulary - 1, (LONG_PROMPT,), generator=generator))
    head = pack(model.head)

    def run(denoiser: FullRecompute, steps: int) -> tuple[Tensor, int]:
        spec = SampleSpec(LENGTH, LENGTH, steps, vocabulary - 1)
        with torch.inference_mode():
            *_, final = sample(denoiser, spec, head=head)
        return final.x[0], denoiser.computed

    def full() -> FullRecompute:
        return FullRecompute(model, [prompt])

    def dual(refresh: int) -> FullRecompute:
        more = {"block_length": LENGTH, "refresh_interval": refresh}
        return Cached(model, [prompt], kind="dual", **more)  # type: ignore[arg-type]

    if not torch.equal(run(full(), 4)[0], run(dual(1), 4)[0]):
        raise SystemExit("wrong result, not timed: a refresh at every step is not exact")
    denoisers = {"full": full, "dual": lambda: dual(REFRESH)}
    tokens = {name: run(make(), LENGTH) for name, make in denoisers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in denoisers}
    for _ in range(repeats):
        for name, make in denoisers.items():
            start = time.process_time()
            got = run(make(), LENGTH)[0]
            seconds[name].append(time.process_time() - start)
            if not torch.equal(got, tokens[name][0]):
                raise SystemExit(f"wrong result, not timed: {name} differs from itself")
    ratios = [f / d for f, d in zip(seconds["full"], seconds["dual"], strict=True)]
    return {
        "bench": "sampler_dual",
        "vocabulary": vocabulary,
        "prompt": LONG_PROMPT,
        "L=B=Z": LENGTH,
        "r": REFRESH,
        "cpu_s": {
            name: {"best": min(s), "median": statistics.median(s), "max": max(s)}
            for name, s in seconds.items()
        },
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "positions": {name: computed for name, (_, computed) in tokens.items()},
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dual", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    run = measure_dual if args.dual else measure
    for vocabulary in args.vocabulary or [126_464, 8_192]:
        print(json.dumps(run(vocabulary, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
