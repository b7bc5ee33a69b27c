"""The benchmark's yardstick gives LLaDA's and LLaDA-V's own tokens in the runs of 07 that draw
nothing: a wrong yardstick would prove nothing about speed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.reference_structure import sample

FORBIDDEN = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")


@pytest.mark.parametrize(
    "key", [*(f"v{n:02}" for n in range(7)), *(f"g{n:02}" for n in range(7, 15))]
)
def test_reference_structure(golden: Any, tower: Any, key: str) -> None:
    run, tensors, model = golden.run("07", key), golden.tensors("07"), tower("07")
    ids = golden.case("12")["special_ids_real"]
    of_v = key.startswith("v")
    got = sample(
        model.logits,
        tensors["prompt_ids"][0],
        gen_length=run["gen_length"],
        block_length=run["block_length"],
        steps=run["steps"],
        mask_id=golden.case("07")["mask_id"],
        forbidden=[ids[name] for name in FORBIDDEN] if of_v else (),
        stop=run.get("stop") or (),
        cfg_scale=run.get("cfg_scale", 0.0),
        eos_never=ids["<|endoftext|>"] if run.get("logits_eos_inf") else None,
        last_ids=[ids["<|endoftext|>"], ids["<|eot_id|>"]]
        if run.get("confidence_eos_eot_inf")
        else (),
        softmax_dtype=torch.float64 if of_v else torch.float32,
    )
    want = tensors[f"{key}.out"][0]
    assert torch.equal(got, want if of_v else want[-run["gen_length"] :])
