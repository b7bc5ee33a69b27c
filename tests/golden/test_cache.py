"""Denoisers with kept keys and values, and the rules that commit as many tokens as are confident:
Fast-dLLM (05), LLaDA-V's hook (06); its runs from an image (10) stand in test_sampler.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medv_ray.diffusion.sampler import Denoising, SampleSpec, sample
from medv_ray.model.cache import Cached
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.keys import KeyValues
from tests.golden.test_sampler import hook_denoiser, llada_v, spec_of


def lengths_of(denoiser: FullRecompute, spec: SampleSpec) -> tuple[Denoising, list[list[int]]]:
    """A run to its end, and the positions that each of its passes computed, by block."""
    denoising = Denoising.blank(spec)
    lengths: list[list[int]] = []
    before, block = 0, -1
    for state in sample(denoiser, spec, denoising):
        if denoiser.computed > before:
            found = int((denoising.token_step[0] == state.step - 1).nonzero()[0])
            if found // spec.block_length != block:
                block = found // spec.block_length
                lengths.append([])
            lengths[-1].append(denoiser.computed - before)
            before = denoiser.computed
    return denoising, lengths


@pytest.mark.subcases("05", "c")
def test_fast_dllm(golden: Any, tower: Any, key: str) -> None:
    run, tensors, model = golden.run("05", key), golden.tensors("05"), tower("05")
    prompt, length = tensors[f"prompt.{run['prompt']}"][0], run["block_length"]
    rule = {} if run["threshold"] is None else {"rule": "threshold", "threshold": run["threshold"]}
    spec = SampleSpec(run["gen_length"], length, run["steps"], golden.case("05")["mask_id"], **rule)
    embeds = model.embed(prompt).detach()
    denoiser = FullRecompute(model, [embeds])
    if run["fn"] != "plain":
        denoiser = Cached(model, [embeds], kind=run["fn"], block_length=length)
    denoising, lengths = lengths_of(denoiser, spec)

    assert torch.equal(torch.cat([prompt, denoising.x[0]])[None], tensors[f"{key}.out"])
    if run["fn"] != "plain":
        # the reference runs a second pass even where the first one has filled the block
        for number, block in enumerate(lengths):
            rest = length if run["fn"] == "dual" else spec.gen_length - number * length
            block += [rest] * (len(block) == 1)
    assert [one for block in lengths for one in block] == run["forward_lengths"]
    assert len(run["forward_lengths"]) == run["nfe"]


@pytest.mark.subcases("05", "kv")
def test_a_cached_step_in_detail(golden: Any, tower: Any, key: str) -> None:
    tensors, model = golden.tensors("05"), tower("05")
    ids, later = tensors["kv.input_ids"], tensors["kv.input_ids_step2"]
    start, end = tensors["kv.dual_block_start_end"].tolist()
    for name, stop in (("prefix", ids.shape[1]), ("dual", end)):
        keys = KeyValues(len(model.model.layers))
        with torch.inference_mode():
            full = model.hidden(model.embed(ids), keys=keys) @ model.head.T
            close(full, tensors["kv.full_logits"])
            for layer in (0, 3):
                close(keys.of(layer)[1], tensors[f"kv.layer{layer}.value"])
                pre_rope = tensors[f"kv.layer{layer}.key_pre_rope"]
                close(keys.of(layer)[0], turned(model, pre_rope))
            keys.start = start
            window = model.hidden(model.embed(later[:, start:stop]), keys=keys)
            close(window @ model.head.T, tensors[f"kv.{name}_logits"])


def turned(model: Any, k: torch.Tensor) -> torch.Tensor:
    """Keys float[1, K, S, C] rotated to their places 0 .. S - 1, in complex numbers."""
    width = k.shape[-1] // 2
    rate = model.model.rope_theta ** (-torch.arange(width).double() / width)
    angle = torch.arange(k.shape[2]).double()[:, None] * rate
    spun = torch.complex(*k.double().split(width, -1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((spun.real, spun.imag), -1).float()


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.subcases("06", "c")
def test_hook_of_llada_v(golden: Any, tower: Any, key: str) -> None:
    run, tensors, model = golden.run("06", key), golden.tensors("06"), tower("06")
    case, ids = golden.case("06"), tensors.get(f"prompt_ids.{run['prompt']}")
    embeds = tensors[f"prompt_embeds.{run['prompt']}"] if ids is None else model.embed(ids)
    spec = spec_of(run, case["mask_id"], forbidden_ids=tuple(case["forbidden_ids"]))
    denoiser = hook_denoiser(model, embeds[0].detach(), run)
    llada_v(denoiser, run, spec, tensors)
