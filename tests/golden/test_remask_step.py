"""One step alone (14): token, odds, and which positions take theirs; the factor rule (06).

Kernels too, in Triton's interpreter: there the large cases of 14 take 20 s a run, so small ones.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_kernels import commit as commit_kernel
from medv_kernels import launch, reference
from medv_kernels import select as select_kernel
from medv_kernels.linear import pack
from medv_kernels.reference import commit, select

KERNELS = launch.kernels_run_on(torch.device("cpu"))
"""Where there is a GPU, kernels take no tensors of the CPU."""


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
    found = select(logits.view(-1, vocabulary), forbidden=forbidden_of(golden, key))
    token, rest = found.token.view(rows, length), found.rest.view(rows, length)

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
            chosen = commit(x, masked, token, rest, threshold=sub["threshold"])[1]
            assert chosen.sum(1).tolist() == sub["accepted"]
        assert torch.equal(chosen, tensors[f"{name}.transfer"] & masked), name


@pytest.mark.skipif(not KERNELS, reason="kernels run on the GPU here")
@pytest.mark.subcases("14", "small")
def test_remask_step_of_the_kernels(golden: Any, key: str) -> None:
    run, tensors = golden.run("14", key), golden.tensors("14")
    logits = logits_of(golden, key)
    rows, length, vocabulary = logits.shape
    found = select_kernel.select(logits.view(-1, vocabulary))
    token, rest = found.token.view(rows, length), found.rest.view(rows, length)
    assert torch.equal(token, tensors[f"{key}.argmax"])
    close(1 / (1 + rest), tensors[f"{key}.conf_float64"], 1e-6)
    masked, x = tensors[f"{key}.mask_index"], tensors[f"{key}.x"]
    counts = {"k": 0, "th": 0}
    for sub in run["sub"]:
        kind = "k" if "k" in sub else "th"
        rule = {"k": sub["k"]} if kind == "k" else {"threshold": sub["threshold"]}
        chosen = commit_kernel.commit(x, masked, token, rest, **rule)[1]
        assert torch.equal(chosen, tensors[f"{key}.{kind}{counts[kind]}.transfer"] & masked)
        counts[kind] += 1


@pytest.mark.subcases("06", "table")
@pytest.mark.parametrize("rule", [commit, commit_kernel.commit][: 1 + KERNELS])
def test_factor_rule(golden: Any, key: str, rule: Any) -> None:
    """LLaDA-V's table of accepted positions; what it calls a threshold is the factor."""
    for entry in golden.case("06")["acceptance_rule"]:
        confidence = torch.tensor([entry["confidences"]], dtype=torch.float64)
        rest, all_of_them = 1 / confidence - 1, torch.ones_like(confidence, dtype=torch.bool)
        x = torch.zeros(confidence.shape, dtype=torch.int64)
        factor = entry["threshold"]
        chosen = rule(x, all_of_them, x + 1, rest, factor=factor)[1]
        # which of equals are taken is open in torch.topk, so confidences are compared
        theirs = confidence[0, entry["accepted_positions"]]
        assert confidence[chosen].sort().values.tolist() == theirs.sort().values.tolist()
        count = reference.accepted_by_factor(rest, all_of_them, factor)
        assert count.tolist() == [entry["accepted"]]


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
