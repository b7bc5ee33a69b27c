"""The sampler against LLaDA's generate (03, 07 g) and LLaDA-V's (04, 07 v, 10 from the image)."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_ray.canvases import TileSettings
from medv_ray.data.images import prepare
from medv_ray.diffusion.sample import answer, begin, blank, sample
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.schedule import transfer_schedule
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.model.cache import Cached
from medv_ray.model.denoise import FullRecompute, Prompt
from medv_ray.model.medv import Medv
from medv_ray.settings import ImageSettings


class WholeSequence:
    """Denoiser whose x is the whole sequence, prompt included, as in LLaDA; keys may be masked."""

    def __init__(self, model: Medv, maskable: Tensor, keys: Tensor | None, mask_id: int) -> None:
        self.model, self.maskable, self.keys, self.mask_id = model, maskable, keys, mask_id
        self.blind = False

    @property
    def head(self) -> Tensor:
        return self.model.head

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        if self.blind:
            x = torch.where(self.maskable, x, self.mask_id)
        with torch.inference_mode():
            return self.model.hidden(self.model.embed(x), self.keys)[need]

    def unconditional(self, mask_id: int) -> WholeSequence:
        denoiser = copy.copy(self)
        denoiser.blind = True
        return denoiser

    def prompt_length(self, b: int) -> int:
        return 0


def spec_of(run: dict[str, Any], mask_id: int, **more: Any) -> SampleSpec:
    """Settings of a run of case.json.

    Seeded runs draw as the reference does. With confidence_eos_eot_inf every end token ties at
    probability 0, and only the reference's own order of ties gives its tokens. All others run with
    the default.
    """
    names = ("gen_length", "block_length", "steps", "temperature", "cfg_scale", "remasking")
    names += ("logits_eos_inf", "confidence_eos_eot_inf")
    values = {name: run[name] for name in names if name in run}
    if run.get("threshold") is not None:  # LLaDA-V's name for what is a factor
        values |= {"rule": "factor_llada_v", "factor": run["threshold"]}
    values["stop_ids"] = tuple(tuple(sequence) for sequence in run.get("stop") or ())
    values["suffix_ids"] = tuple(run.get("suffix") or ())
    as_reference = run.get("seed") is not None or run.get("confidence_eos_eot_inf", False)
    noise = "reference" if as_reference else "needed"
    return SampleSpec(mask_id=mask_id, noise=noise, **(values | more))


def generators_of(run: dict[str, Any]) -> list[torch.Generator]:
    seed = run.get("seed")
    return [] if seed is None else [torch.Generator().manual_seed(seed)]


def assert_states(got: list[Tensor], want: Tensor) -> None:
    """Equal before every step; names the first step that differs."""
    for step, (mine, theirs) in enumerate(zip(got, want, strict=False)):
        same = torch.equal(mine, theirs.long())
        assert same, f"before step {step}: ours {mine.tolist()}, golden {theirs.tolist()}"
    assert len(got) == len(want), f"{len(got)} states, golden has {len(want)}"


def llada(
    golden: Any,
    model: Medv,
    run: dict[str, Any],
    prompt: Tensor,
    keys: Tensor | None,
    spec: SampleSpec,
) -> Denoising:
    """A run of LLaDA's generate, checked at every state."""
    case = "03" if run["key"].startswith("c") else "07"
    tensors, rows, length = golden.tensors(case), len(prompt), spec.gen_length
    x = torch.cat([prompt, torch.full((rows, length), spec.mask_id)], dim=1)
    maskable = x == spec.mask_id  # this is how LLaDA finds them: masks in the prompt too
    if keys is not None:
        keys = torch.cat([keys.bool(), torch.ones(rows, length, dtype=torch.bool)], dim=1)
    denoiser = WholeSequence(model, maskable, keys, spec.mask_id)
    denoising = begin(spec, x, maskable, prompt.shape[1], generators_of(run), [0] * rows)
    states = [state.x for state in sample(denoiser, spec, denoising)]
    assert_states(states, tensors[f"{run['key']}.states"])
    assert torch.equal(denoising.x, tensors[f"{run['key']}.out"])
    return denoising


@pytest.mark.subcases("03", "c")
def test_llada_generate(golden: Any, tower: Any, key: str) -> None:
    run, tensors = golden.run("03", key), golden.tensors("03")
    spec = spec_of(run, golden.case("03")["mask_id"], run_all_steps=True)
    keys = tensors.get(f"attention_mask.{run['prompt']}") if run["mask"] else None
    denoising = llada(golden, tower("03"), run, tensors[f"prompt.{run['prompt']}"], keys, spec)
    assert denoising.step == run["forward_calls"]
    assert int(denoising.masked.sum()) == run["masks_left"]


@pytest.mark.subcases("03", "table")
def test_transfer_schedule(golden: Any, key: str) -> None:
    for entry in golden.case("03")["transfer_schedule"]:
        got = [transfer_schedule(count, entry["steps"]) for count in entry["mask_counts"]]
        assert got == entry["num_transfer_tokens"]


@pytest.mark.subcases("07", "g")
def test_llada_generate_real_ids(golden: Any, tower: Any, key: str) -> None:
    run, ids = golden.run("07", key), special_ids(golden)
    spec = spec_of(
        run,
        golden.case("07")["mask_id"],
        run_all_steps=True,
        eos_id=ids["<|endoftext|>"],
        eot_id=ids["<|eot_id|>"],
    )
    llada(golden, tower("07"), run, golden.tensors("07")["prompt_ids"], None, spec)


def special_ids(golden: Any) -> dict[str, int]:
    return golden.case("12")["special_ids_real"]


def llada_v(
    denoiser: FullRecompute, run: dict[str, Any], spec: SampleSpec, tensors: dict[str, Tensor]
) -> None:
    """A run of LLaDA-V for one row, checked at every state and pass where the case stores them."""
    denoising = blank(spec, 1, generators_of(run), [denoiser.prompt_length(0)])
    states, computed = [], [0]
    for state in sample(denoiser, spec, denoising):
        states.append(state.x[0])
        computed.append(denoiser.computed)
    if "forward_lengths" in run:
        assert [b - a for a, b in pairwise(computed[1:])] == run["forward_lengths"]
    if f"{run['key']}.states" in tensors:
        assert_states(states[:-1], tensors[f"{run['key']}.states"])
    assert torch.equal(answer(denoising, 0)[None], tensors[f"{run['key']}.out"])
    assert denoising.step == run["forward_calls"]


def hook_denoiser(model: Medv, prompt: Prompt | Tensor, run: dict[str, Any]) -> Cached:
    """The denoiser of a run with LLaDA-V's hook."""
    interval = run["prefix_refresh_interval"]
    return Cached(
        model,
        [prompt],
        tuple(run.get("suffix") or ()),
        kind="prefix",
        block_length=run["block_length"],
        refresh_interval=interval,
    )


@pytest.mark.subcases("04")
def test_llada_v_generate_with_embeds(golden: Any, tower: Any, key: str) -> None:
    run, tensors, case = golden.run("04", key), golden.tensors("04"), golden.case("04")
    model = tower("04")
    embeds = tensors.get(f"prompt_embeds.{run['prompt']}")
    if embeds is None:
        embeds = model.embed(tensors[f"prompt_ids.{run['prompt']}"])
    spec = spec_of(run, case["mask_id"], forbidden_ids=tuple(case["forbidden_ids"]))
    llada_v(FullRecompute(model, [embeds[0].detach()], spec.suffix_ids), run, spec, tensors)


@pytest.mark.subcases("07", "v")
def test_llada_v_real_ids(golden: Any, tower: Any, key: str) -> None:
    run, ids, model = golden.run("07", key), special_ids(golden), tower("07")
    names = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
    spec = spec_of(
        run, golden.case("07")["mask_id"], forbidden_ids=tuple(ids[name] for name in names)
    )
    prompt = model.embed(golden.tensors("07")["prompt_ids"])[0].detach()
    llada_v(FullRecompute(model, [prompt], spec.suffix_ids), run, spec, golden.tensors("07"))


@pytest.mark.subcases("10", "c")
def test_image_to_tokens(golden: Any, seeing: Any, key: str) -> None:
    run, case, tensors = golden.run("10", key), golden.case("10"), golden.tensors("10")
    model = seeing("10")
    picture = golden.path("08", f"{run['image']}.png").read_bytes()
    grid = tuple(map(tuple, case["grid_pinpoints"]))
    tiles = TileSettings("anyres_max", case["vision_config"]["image_size"], grid)
    done = prepare(picture, ImageSettings(min_side=1), tiles)
    with torch.inference_mode():
        image = model.encode_image(torch.from_numpy(done.tiles), done.size_wh)
    prompt = Prompt(tensors[f"input_ids.{run['image']}"][0], (image,))
    eot = case_ids(golden)["<|eot_id|>"]
    spec = spec_of(
        run,
        case["mask_id"],
        forbidden_ids=tuple(case["forbidden_ids"]),
        stop_ids=((eot,),),
    )
    cached = run["path"] == "fast_dllm_hook"
    denoiser = hook_denoiser(model, prompt, run) if cached else FullRecompute(model, [prompt])
    llada_v(denoiser, run, spec, tensors)


def case_ids(golden: Any) -> dict[str, int]:
    """Special ids of the small vocabulary: the real ones through the table of case 04."""
    table = golden.case("04")["constants_substituted"]
    real = special_ids(golden)
    return {name: table[str(value)] for name, value in real.items() if str(value) in table}
