r"""All checks and timings on one GPU, in one process and one JSON file.

    python benchmarks/run_gpu.py --out benchmarks/results/gpu.json [--minutes 8]
    python benchmarks/run_gpu.py --out toy.json --toy --device cpu      # the same lines, toy sizes

Needs torch, triton, numpy, pillow, pydantic, safetensors and this repository; neither ray nor
deepspeed. Model: LLaDA-8B's shape in bfloat16 with random weights, prompts of 779 random embeddings
(729 of an image, 50 of text). So tokens per forward pass are forced by the number of steps, and
speak of speed alone.
First every kernel is compared with its plain reference, running batches of the engine with the
sampler, and padded rows in half precision with float32; a part that needs what is wrong is not
timed. Then each part is timed until the minutes are over: parts left out stand under `left_out`,
those that ended with an error under `failed`. Arms of a comparison alternate.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

import bench_select
import bench_train_loss
from circumstances import circumstances
from medv_kernels import ops, reference
from medv_ray.diffusion.sample import blank, sample
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.denoisers import SideBySide
from medv_ray.engine.running import RunningBatch
from medv_ray.model.batched import Batched
from medv_ray.model.config import LanguageConfig, ModelConfig
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.medv import Medv
from reference_structure import sample as reference_sample

FORBIDDEN = 4
CUT = 126_464 - 126_349
"""Rows of the head that len(tokenizer), the default of `model.logit_size`, leaves out."""
HALF_ERROR = 0.05
"""Of hidden states in bfloat16, relative: about 0.01 is rounding."""


NEEDS: dict[str, tuple[str, ...]] = {
    "peaks": (),
    "loss": (),  # checks itself
    "select": ("select", "commit"),
    "scratch_64": ("select",),
    "head_cut": ("select",),
    "fused_head": ("select",),
}
"""Checks without which a part is not timed; of other parts all."""


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    language: LanguageConfig
    prompt: int
    length: int
    long: int
    batch: int
    rows: tuple[int, ...]
    """Batches of the selection, of `length` rows each."""
    matrix: int
    copy_bytes: int
    loss_batch: int
    trials: int
    """Of the check of the selection."""


BIG = Size(
    LanguageConfig(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=126_464,
        rope_theta=500_000.0,
    ),
    prompt=779,
    length=64,
    long=256,
    batch=32,
    rows=(1, 8, 64),
    matrix=8192,
    copy_bytes=2**31,
    loss_batch=8,
    trials=20,
)
TOY = Size(
    LanguageConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=512,
    ),
    prompt=21,
    length=8,
    long=16,
    batch=3,
    rows=(1, 2),
    matrix=128,
    copy_bytes=2**16,
    loss_batch=1,
    trials=3,
)


class Clock:
    """Times on a device, and says when the minutes are over."""

    def __init__(self, device: torch.device, minutes: float) -> None:
        self.device = device
        self._until = time.monotonic() + 60 * minutes

    @property
    def left_s(self) -> float:
        return self._until - time.monotonic()

    def seconds(self, run: Callable[[], object]) -> float:
        """Wall time of one call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def arms(
        self, arms: dict[str, Callable[[], object]], repeats: int = 5, calls: int = 1
    ) -> dict[str, dict[str, float]]:
        """Seconds a call of each arm, which take turns; a first turn warms up."""
        found: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(repeats + 1):
            for name, run in arms.items():
                took = self.seconds(partial(again, run, calls)) / calls
                if turn:
                    found[name].append(took)
        return {name: spread(values) for name, values in found.items()}


def again(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


# --- what the machine can do -------------------------------------------------------------------


def peaks(clock: Clock, size: Size, dtype: torch.dtype) -> dict[str, float]:
    """GEMM in TFLOP/s and copy in TB/s (read and written), the yardsticks of this run."""
    at, n = clock.device, size.matrix
    a, b = (torch.randn(n, n, device=at, dtype=dtype) for _ in range(2))
    source = torch.empty(size.copy_bytes, dtype=torch.uint8, device=at)
    target = torch.empty_like(source)
    took = clock.arms({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, calls=5)
    return {
        "gemm_tflops": 2 * n**3 / took["gemm"]["min"] / 1e12,
        "copy_tb_s": 2 * size.copy_bytes / took["copy"]["min"] / 1e12,
    }


# --- is it right -------------------------------------------------------------------------------


def check_select(size: Size, device: torch.device) -> dict[str, Any]:
    """Tokens and odds of the device's kernel against the plain reference on the CPU."""
    worst, wrong, rows = 0.0, 0, 0
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(33, size.language.vocab_size, generator=generator) * 4
        logits[torch.arange(33), torch.randint(logits.shape[1], (33,), generator=generator)] += 12
        logits = logits.to(dtype)
        logits[3, 7:20] = logits[3].max()  # a tie
        logits[4, : logits.shape[1] // 2] = -torch.inf
        want = reference.select(logits.float(), forbidden=(0, 5))
        got = ops.select(logits.to(device), forbidden=(0, 5))
        wrong += int((got.token.cpu() != want.token).sum())
        worst = max(worst, float(((got.rest.cpu() - want.rest).abs() / want.rest).max()))
        rows += len(logits)
    poisoned = torch.randn(4, 300, device=device)
    poisoned[2, 100] = torch.nan
    try:
        ops.select(poisoned)
        said = False
    except FloatingPointError:
        said = True
    right = wrong == 0 and worst < 1e-5 and said
    return {"right": right, "rows": rows, "wrong_tokens": wrong, "worst_odds": worst, "nan": said}


def check_commit(size: Size, device: torch.device) -> dict[str, Any]:
    """Every rule against the plain reference, ties included."""
    generator = torch.Generator().manual_seed(1)
    wrong = runs = 0
    for length in (1, 7, size.length, size.long):
        shape = (5, length)
        rest = torch.rand(shape, generator=generator, dtype=torch.float64)
        rest = torch.where(rest < 0.3, 0.25, rest)
        eligible = torch.rand(shape, generator=generator) < 0.7
        token = torch.randint(size.language.vocab_size, shape, generator=generator)
        k = torch.randint(length + 2, (5,), generator=generator)
        for rule in ({"k": k}, {"threshold": 0.8}, {"factor": 1.0}):
            x = torch.zeros(shape, dtype=torch.int64)
            want = reference.commit(x, eligible, token, rest, **rule)  # type: ignore[arg-type]
            there = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in rule.items()}
            got = ops.commit(*(t.to(device) for t in (x, eligible, token, rest)), **there)
            wrong += not all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
            runs += 1
    return {"right": wrong == 0, "runs": runs, "wrong": wrong}


def check_batch(size: Size, device: torch.device) -> dict[str, Any]:
    """Answers of batches, in float32 on a small tower, against the sampler on the CPU: exact, early
    ends, dual cache with a refresh, thresholds; as CUDA graphs where there is a GPU."""
    small = replace(TOY.language, vocab_size=min(size.language.vocab_size, 2048))
    model = random_model(small, torch.float32, torch.device("cpu"))
    there = random_model(small, torch.float32, device)
    there.load_state_dict(model.state_dict())
    prompts = [random_prompt(small, n, n, torch.float32) for n in (5, 21, 13, 30, 8)]
    mask, runs, wrong = small.vocab_size - 1, 0, []
    for name, block, more, refresh in (
        ("exact", 32, {}, None),
        ("blocks", 8, {"stop_ids": ((3,),)}, None),
        ("threshold", 16, {"rule": "threshold", "threshold": 0.05}, None),
        ("factor", 16, {"rule": "factor", "factor": 1.0}, None),
        ("refresh 1", 8, {}, 1),
    ):
        spec = SampleSpec(32, block, 32, mask, forbidden_ids=(mask, 1, 2), **more)
        want = [run_alone(model, spec, prompt) for prompt in prompts]
        batch = make_batch(there, spec, len(prompts), 64, refresh)
        got = run_batch(there.head, batch, spec, [prompt.to(device) for prompt in prompts])
        runs += len(prompts)
        wrong += [name] * sum(a != b for a, b in zip(want, got, strict=True))
    # with kept keys: the same numbers whether replayed as a graph or not
    spec = SampleSpec(32, 16, 32, mask, forbidden_ids=(mask,))
    on_host, on_device = (
        run_batch(m.head, make_batch(m, spec, 5, 64, 4), spec, [p.to(m.device) for p in prompts])
        for m in (model, there)
    )
    wrong += ["dual"] * sum(a != b for a, b in zip(on_host, on_device, strict=True))
    return {"right": not wrong, "runs": runs + len(prompts), "wrong": wrong}


@torch.inference_mode()
def check_half(_: Size, device: torch.device) -> dict[str, Any]:
    """Hidden states of rows side by side in half precision, whose attention is another library's
    than float32's, against each row alone in float32 on the CPU. A short prompt beside a long one
    has whole tiles of padding."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}  # as wide as LLaDA's
    language = replace(TOY.language, hidden_size=256, **heads)
    model = random_model(language, torch.float32, torch.device("cpu"))
    length, lengths = 32, (300, 5, 40)
    prompts = [random_prompt(language, n, n, torch.float32) for n in lengths]
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(language.vocab_size, (len(prompts), length), generator=generator)
    all_of = torch.ones(x.shape, dtype=torch.bool)
    want = FullRecompute(model, prompts, together=False)(x, all_of).unflatten(0, x.shape)
    errors = {}
    for dtype in (torch.bfloat16, torch.float16):
        half = random_model(language, dtype, device)
        half.load_state_dict(model.state_dict())
        batch = Batched(half, len(prompts), 320, length, keep=True)
        for row, prompt in enumerate(prompts):
            batch.enter(row, prompt.to(device, dtype))
        there = x.to(device)
        whole = batch.full(range(len(prompts)), there)
        at = torch.arange(8, 24, device=device).expand(len(prompts), 16)
        window = batch.window(there.gather(1, at), at)
        for name, got, part in (("whole", whole, want), ("window", window, want[:, 8:24])):
            off = (got.float().cpu() - part).norm(dim=(1, 2)) / part.norm(dim=(1, 2))
            errors[f"{name} {str(dtype).removeprefix('torch.')}"] = off.tolist()
    right = all(off < HALF_ERROR for found in errors.values() for off in found)
    return {"right": right, "errors": errors}


def run_alone(model: Medv, spec: SampleSpec, prompt: Tensor) -> list[int]:
    denoising = blank(spec)
    with torch.inference_mode():
        for _ in sample(FullRecompute(model, [prompt]), spec, denoising):
            pass
    return denoising.x[0].tolist()


@torch.inference_mode()
def make_batch(
    model: Medv, spec: SampleSpec, num_rows: int, room: int, refresh: int | None
) -> RunningBatch:
    """With the dual cache where there is a `refresh`."""
    dual = refresh is not None
    return RunningBatch(
        spec, num_rows, model.device, SideBySide(model, spec, num_rows, room, dual, refresh)
    )


@torch.inference_mode()
def run_batch(
    head: Tensor, batch: RunningBatch, spec: SampleSpec, prompts: list[Tensor]
) -> list[list[int]]:
    """Responses of all prompts, which enter at once; the batch is empty again behind.

    Raises FloatingPointError where a row has failed: it stops early, and its time is no answer's.
    """
    for row, prompt in enumerate(prompts):
        batch.denoiser.enter(row, prompt)
        batch.denoising.enter(row, spec)
    while batch.denoising.running:
        batch.step(head)
    x: list[list[int]] = batch.denoising.x.tolist()
    failed = [row for row in range(len(prompts)) if batch.denoising.row(row).failed]
    for row in range(len(prompts)):
        batch.leave(row)
    if failed:
        raise FloatingPointError(f"NaN or infinity in {len(failed)} of {len(prompts)} rows")
    return x[: len(prompts)]


# --- the model ---------------------------------------------------------------------------------


def random_model(language: LanguageConfig, dtype: torch.dtype, device: torch.device) -> Medv:
    """Weights of 1/sqrt(fan in), so that numbers keep their size; made on the device."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = Medv(ModelConfig(language=language, vision=None)).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
        model.model.embed_tokens.weight.normal_(0, 1)
        model.lm_head.weight.normal_(0, 4 * language.hidden_size**-0.5)
    return model


def random_prompt(language: LanguageConfig, places: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(places, language.hidden_size, generator=generator).to(dtype)


def step_flops(language: LanguageConfig, places: int, rows: int) -> float:
    """Of a full forward pass of one row, the head on `rows` of its positions."""
    d, f = language.hidden_size, language.intermediate_size
    narrow = language.num_key_value_heads * language.head_dim
    layer = 2 * places * (2 * d * d + 2 * d * narrow + 3 * d * f) + 4 * places * places * d
    return language.num_hidden_layers * layer + 2 * rows * d * language.vocab_size


# --- how fast ----------------------------------------------------------------------------------


def time_select(size: Size, dtype: torch.dtype, device: str) -> list[Any]:
    """Selection and commit on logits, against the references' float64 and a copy (G5)."""
    asked = argparse.Namespace(
        device=device, vocabulary=size.language.vocab_size, repeats=9, trials=size.trials
    )
    return [bench_select.measure(asked, batch, dtype) for batch in size.rows]


def time_fused(size: Size, device: str) -> list[Any]:
    """Head and selection: one kernel against product and selection (G6)."""
    if device == "cpu":  # interpreted, it says nothing
        return []
    asked = argparse.Namespace(device=device, vocabulary=size.language.vocab_size, repeats=9)
    width = size.language.hidden_size
    return [bench_select.measure_fused(asked, rows, width) for rows in (1, 8, 32, 64, 128, 256)]


def time_loss(size: Size, device: str) -> dict[str, Any]:
    """A step of the loss on masked rows as kernels, in plain torch, and on all rows (G8)."""
    asked = argparse.Namespace(device=device, batch=size.loss_batch, targets=40, repeats=5)
    found: dict[str, Any] = bench_train_loss.measure(asked)
    return found


def time_exact(clock: Clock, size: Size, model: Medv, gemm_tflops: float) -> dict[str, Any]:
    """Batch 1, full recompute, against the references' structure with and without their autocast to
    float16 (G1)."""
    language, places = size.language, size.prompt + size.length
    prompt = random_prompt(language, size.prompt, 0, model.dtype).to(clock.device)
    spec = plain_spec(size, size.length)
    batch = make_batch(model, spec, 1, size.prompt, None)
    tokens: dict[str, list[int]] = {}

    def ours() -> None:
        tokens["ours"] = run_batch(model.head, batch, spec, [prompt])[0]

    def theirs(name: str, autocast: bool) -> None:
        on = torch.autocast("cuda", torch.float16, enabled=autocast and clock.device.type == "cuda")
        with torch.inference_mode(), on:
            tokens[name] = reference_run(model, prompt, spec)

    arms = {"ours": ours, "reference": partial(theirs, "reference", False)}
    arms["reference_autocast"] = partial(theirs, "reference_autocast", True)
    took = clock.arms(arms, repeats=5)
    forward_s = took["ours"]["median"] / size.length
    flops = step_flops(language, places, size.length)
    agree = {
        n: sum(a == b for a, b in zip(t, tokens["ours"], strict=True)) for n, t in tokens.items()
    }
    return {
        "seconds": took,
        "over_reference": took["reference"]["median"] / took["ours"]["median"],
        "over_reference_autocast": took["reference_autocast"]["median"] / took["ours"]["median"],
        "seconds_a_forward": forward_s,
        "of_gemm": flops / forward_s / (gemm_tflops * 1e12),
        "tokens_as_ours": {name: f"{same} of {size.length}" for name, same in agree.items()},
    }


def reference_run(model: Medv, prompt: Tensor, spec: SampleSpec) -> list[int]:
    """The references' structure behind an embedded prompt."""
    ids = torch.zeros(len(prompt), dtype=torch.int64, device=prompt.device)

    def logits_of(x: Tensor) -> Tensor:
        embeds = torch.cat((prompt[None], model.embed(x[:, len(prompt) :])), dim=1)
        return (model.hidden(embeds) @ model.head.T).float()

    x = reference_sample(
        logits_of,
        ids,
        gen_length=spec.gen_length,
        block_length=spec.block_length,
        steps=spec.steps,
        mask_id=spec.mask_id,
        forbidden=spec.forbidden_ids,
    )
    return x.tolist()


def plain_spec(size: Size, length: int, steps: int | None = None) -> SampleSpec:
    """Every step commits the same number; nothing ends early; the mask token never comes."""
    mask = size.language.vocab_size - 1
    return SampleSpec(
        length, size.length, steps or length, mask, forbidden_ids=(mask, *range(FORBIDDEN))
    )


def time_batch(
    clock: Clock,
    size: Size,
    model: Medv,
    *,
    batch: int,
    length: int,
    steps: int,
    refresh: int | None,
) -> dict[str, Any]:
    """Answers a second of a full batch, and seconds an answer."""
    prompts = [
        random_prompt(size.language, size.prompt, n, model.dtype).to(clock.device)
        for n in range(batch)
    ]
    spec = plain_spec(size, length, steps)
    if clock.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    made = make_batch(model, spec, batch, size.prompt, refresh)
    took = clock.arms({"batch": partial(run_batch, model.head, made, spec, prompts)}, repeats=5)[
        "batch"
    ]
    peak = torch.cuda.max_memory_allocated() if clock.device.type == "cuda" else None
    return {
        "batch": batch,
        "L": length,
        "B": size.length,
        "NFE": steps,
        "TPF": length / steps,
        "r": refresh,
        "S": size.prompt + length,
        "graph": made.denoiser.captured,
        "seconds": took,
        "answers_s": batch / took["median"],
        "TPS_to_L": batch * length / took["median"],
        "peak_bytes": peak,
    }


def scratch(clock: Clock, size: Size, model: Medv, batch: int) -> dict[str, Any]:
    """Bytes that choosing tokens needs beyond hidden rows and head, at a batch (G7)."""
    if clock.device.type != "cuda":
        return {}
    rows = batch * size.length
    hidden = torch.randn(rows, size.language.hidden_size, device=clock.device, dtype=model.dtype)
    ops.select(hidden[:64], model.head, check=False)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.select(hidden, model.head, check=False)
    torch.cuda.synchronize()
    return {"rows": rows, "bytes": torch.cuda.max_memory_allocated() - before}


def time_cut(clock: Clock, size: Size, model: Medv) -> dict[str, Any]:
    """Choosing tokens of a batch's rows with all of the head, and with an odd number of its rows,
    as is the default: loads and products of an odd width are slower, unless room is left."""
    rows = size.batch * size.length
    hidden = torch.randn(rows, size.language.hidden_size, device=clock.device, dtype=model.dtype)
    heads = {"whole": model.head, "cut": model.head[:-CUT]}
    took = clock.arms(
        {n: partial(ops.select, hidden, head, check=False) for n, head in heads.items()}, calls=3
    )
    over = took["cut"]["median"] / took["whole"]["median"]
    return {"rows": rows, "seconds": took, "cut_over_whole": over}


def timings(
    clock: Clock, size: Size, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Parts by name, in the order of their worth."""
    peak = peaks(clock, size, dtype)
    yield "peaks", lambda: peak
    yield "select", partial(time_select, size, dtype, clock.device.type)
    model = random_model(size.language, dtype, clock.device)
    yield "exact_batch_1", partial(time_exact, clock, size, model, peak["gemm_tflops"])
    batch = partial(time_batch, clock, size, model)
    one, many = {"batch": 1}, {"batch": size.batch}
    short, long = {"length": size.length}, {"length": size.long}
    every, r = size.length, size.length // 2
    yield "dual_batch", partial(batch, **many, **short, steps=every, refresh=r)
    yield "dual_batch_4_tokens", partial(batch, **many, **short, steps=every // 4, refresh=r)
    yield "dual_1", partial(batch, **one, **short, steps=every, refresh=every)
    yield "dual_1_long", partial(batch, **one, **long, steps=size.long, refresh=every)
    yield "scratch_64", partial(scratch, clock, size, model, 64)
    yield "head_cut", partial(time_cut, clock, size, model)
    yield "fused_head", partial(time_fused, size, clock.device.type)
    yield "loss", partial(time_loss, size, clock.device.type)
    yield (
        "full_batch_4_tokens",
        partial(batch, batch=min(8, size.batch), **short, steps=every // 4, refresh=None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes, float32")
    parser.add_argument("--minutes", type=float, default=8, help="after which no part begins")
    args = parser.parse_args()
    device, size = torch.device(args.device), TOY if args.toy else BIG
    dtype = torch.float32 if args.toy else torch.bfloat16
    clock = Clock(device, args.minutes)
    result: dict[str, Any] = {
        "bench": "run_gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "triton": version("triton"),
        "date": datetime.date.today().isoformat(),
        **circumstances(),
        "toy": args.toy,
        "checks": {},
        "left_out": [],
        "failed": {},
    }
    checks = {
        "select": check_select,
        "commit": check_commit,
        "batch": check_batch,
        "half": check_half,
    }
    for name, check in checks.items():
        found = tried(partial(check, size, device), name, result["failed"])
        result["checks"][name] = found or {"right": False}
    wrong = [name for name, check in result["checks"].items() if not check["right"]]
    for name, part in timings(clock, size, dtype):
        if clock.left_s < 0 or set(wrong) & set(NEEDS.get(name, checks)):
            result["left_out"].append(name)
        else:
            result[name] = tried(part, name, result["failed"])
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result.get(name, "left out")), flush=True)
    if wrong:
        raise SystemExit(f"wrong, and what needs it was not timed: {', '.join(wrong)}")
    if result["failed"]:
        raise SystemExit(f"failed: {', '.join(result['failed'])}")


def tried(run: Callable[[], Any], name: str, failed: dict[str, str]) -> Any:
    """What it returns; None, and told in `failed`, where it ends with an error: that must not cost
    the other parts their minutes on a GPU."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        failed[name] = f"{type(error).__name__}: {error}"
    return None


def version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    main()
