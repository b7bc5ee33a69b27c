"""Likelihood estimate and the text losses of LLaDA (13)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medv_ray.diffusion.likelihood import log_likelihood, spread_masks
from medv_ray.diffusion.loss import masked_loss
from medv_ray.diffusion.noise import forward_noise
from medv_ray.markers import IGNORE
from medv_ray.model.denoise import FullRecompute


class Watched:
    """A denoiser that keeps the x it was given."""

    def __init__(self, denoiser: Any, seen: list[Tensor]) -> None:
        self.denoiser, self.seen = denoiser, seen

    @property
    def head(self) -> Tensor:
        return self.denoiser.head

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        self.seen.append(x)
        return self.denoiser(x, need)

    def unconditional(self, mask_id: int) -> Any:
        return self.denoiser.unconditional(mask_id)

    def prompt_length(self, b: int) -> int:
        return self.denoiser.prompt_length(b)


@pytest.mark.subcases("13", "c")
def test_log_likelihood(golden: Any, tower: Any, key: str) -> None:
    run, tensors, model = golden.run("13", key), golden.tensors("13"), tower("13")
    prompt = model.embed(tensors[f"{key}.prompt"]).detach()
    seen: list[Tensor] = []
    got = log_likelihood(
        lambda rows: Watched(FullRecompute(model, [prompt] * rows), seen),
        tensors[f"{key}.answer"],
        golden.case("13")["mask_id"],
        num_samples=run["mc_num"],
        copies=run["batch_size"],
        cfg_scale=run["cfg_scale"],
        generator=torch.Generator().manual_seed(run["seed"]),
    )
    noisy = tensors[f"{key}.noisy"]
    assert torch.equal(torch.stack(seen), noisy[:, :, run["prompt_len"] :].long())
    assert got == pytest.approx(run["log_likelihood"], abs=1e-3)


@pytest.mark.subcases("13", "c")
def test_mask_ratios(golden: Any, key: str) -> None:
    run = golden.run("13", key)
    generator = torch.Generator().manual_seed(run["seed"])
    for counts, ratios in zip(
        run["masked_per_row"], golden.tensors("13")[f"{key}.p_mask_row"], strict=True
    ):
        noisy = spread_masks(run["answer_len"], run["batch_size"], generator)
        assert noisy.masked.sum(1).tolist() == counts
        assert torch.equal(noisy.ratio, ratios)


@pytest.mark.subcases("13", "pretrain")
@pytest.mark.parametrize("hidden_only", [True, False])
def test_pretraining_loss(golden: Any, tower: Any, key: str, hidden_only: bool) -> None:
    text_loss(golden, tower("13"), key, "positions", hidden_only)


@pytest.mark.subcases("13", "sft")
@pytest.mark.parametrize("hidden_only", [True, False])
def test_finetuning_loss(golden: Any, tower: Any, key: str, hidden_only: bool) -> None:
    text_loss(golden, tower("13"), key, "targets", hidden_only)


def text_loss(golden: Any, model: Any, key: str, divide_by: Any, hidden_only: bool) -> None:
    """A loss of GUIDELINES.md, with the head inside the loss or in front of it."""
    run, tensors, mask_id = (
        golden.run("13", key),
        golden.tensors("13"),
        golden.case("13")["mask_id"],
    )
    ids = tensors[f"{key}.input_ids"]
    labels = ids.clone()
    for row, length in enumerate(run["prompt_lengths"] or []):
        labels[row, :length] = IGNORE
    noise = forward_noise(labels, tensors[f"{key}.t"], tensors[f"{key}.u"])
    noisy = torch.where(noise.masked, mask_id, ids)
    assert torch.equal(noisy, tensors[f"{key}.noisy"])
    assert int(noise.masked.sum()) == run["masked_tokens"]
    with torch.no_grad():
        hidden = model.hidden(model.embed(noisy))
        rows, head = (hidden, model.head) if hidden_only else (hidden @ model.head.T, None)
        loss = masked_loss(rows, head, labels, noise.masked, noise.p_mask, divide_by)
    assert float(loss) == pytest.approx(run["loss"], abs=1e-4)
