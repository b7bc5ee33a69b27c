"""One step alone (14): token, odds, and which positions take theirs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_kernels.linear import pack
from medv_kernels.reference import commit, select


def logits_of(golden: Any, key: str) -> Tensor:
    """float32 or bf16[B, L, V], rebuilt from the tables by the recipe in case.json."""
    tensors, run = golden.tensors("14"), golden.run("14", key)
    if key.startswith("big"):
        recipe = golden.case("14")["big_recipe"]
        vocabulary = int(re.search(r"i < (\d+)", recipe)[1])
        less, column = map(int, re.search(r"(\d+) subtracted from column (\d+)", recipe).groups())
        a, b, c = (tensors[f"big.{name}"] for name in "ABC")  # [., L] each
        ids = torch.arange(vocabulary)
        rows = a[ids % len(a)] + b[ids.div(len(a), rounding_mode="floor")]
        rows += c[(31 * ids) % len(c)]
        rows[column] -= less
        logits = rows.T[None].contiguous()
    else:
        logits = tensors["small_f32.logits"]
    logits = logits.to(torch.bfloat16) if run["dtype"] == "torch.bfloat16" else logits
    assert list(logits.shape) == run["shape"]
    return logits


def forbidden_of(golden: Any, key: str) -> tuple[int, ...]:
    ids = golden.case("12")["special_ids_real"]
    names = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
    return tuple(ids[name] for name in names) if key.endswith("_forbidden") else ()


@pytest.mark.subcases("14")
def test_remask_step(golden: Any, key: str) -> None:
    run, tensors = golden.run("14", key), golden.tensors("14")
    logits = logits_of(golden, key)
    rows, length, vocabulary = logits.shape
    token, rest, _ = select(logits.view(-1, vocabulary), forbidden=forbidden_of(golden, key))
    token, rest = token.view(rows, length), rest.view(rows, length)

    assert torch.equal(token, tensors[f"{key}.argmax"])
    confidence = 1 / (1 + rest)
    close(confidence, tensors[f"{key}.conf_float64"], 1e-5)
    native = tensors[f"{key}.conf_native"]
    close(confidence, native.double(), 5e-3 if native.dtype == torch.bfloat16 else 1e-5)
    best = logits.gather(2, token[..., None])[..., 0].double()
    close(best + rest.log1p(), tensors[f"{key}.logsumexp_float64"], 1e-5)

    masked, x = tensors[f"{key}.mask_index"], tensors[f"{key}.x"]
    counts = {"k": 0, "th": 0}
    for sub in run["sub"]:
        kind = "k" if "k" in sub else "th"
        name = f"{key}.{kind}{counts[kind]}"
        counts[kind] += 1
        if kind == "k":
            chosen = commit_k(tensors, name, x, masked, token, rest, sub["k"])
        else:
            chosen = masked & (confidence >= sub["threshold"])
            best_one = commit(x, masked, token, rest, [1] * rows)[1]
            chosen |= best_one  # at least one
            assert chosen.sum(1).tolist() == sub["accepted"]
        assert torch.equal(chosen, tensors[f"{name}.transfer"] & masked), name


def commit_k(
    tensors: dict[str, Tensor],
    name: str,
    x: Tensor,
    masked: Tensor,
    token: Tensor,
    rest: Tensor,
    k: list[int],
) -> Tensor:
    """The positions chosen; checks the tokens that they take."""
    new, chosen = commit(x, masked, token, rest, k)
    theirs = tensors[f"{name}.x0"]
    assert torch.equal(new[chosen], theirs[chosen])
    assert torch.equal(new[~chosen], x[~chosen])
    return chosen


def close(got: Tensor, want: Tensor, atol: float) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


@pytest.mark.subcases("07", "probe")
def test_rebuilt_vocabulary(golden: Any, tower: Any, key: str) -> None:
    """Hidden rows and head of the real vocabulary through `select`, against the probe."""
    tensors, model = golden.tensors("07"), tower("07")
    with torch.inference_mode():
        hidden = model.hidden(model.embed(tensors["probe.input_ids"]))[0]
        logits = hidden @ model.head.T
    for head in (model.head, pack(model.head)):
        token, rest, _ = select(hidden, head)
        assert torch.equal(token, tensors["probe.argmax"][0])
        best = logits.gather(1, token[:, None])[:, 0]
        close(best, tensors["probe.max_logit"][0], 1e-4)
        close(best.double() + rest.log1p(), tensors["probe.logsumexp"][0], 1e-4)
    (name,) = (name for name in tensors if name.startswith("probe.logits_rows_0_to_"))
    last, position = map(int, re.search(r"to_(\d+)_of_position_(\d+)", name).groups())
    close(logits[position, : last + 1], tensors[name], 1e-4)
