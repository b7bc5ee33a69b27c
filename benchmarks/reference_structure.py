"""A sampler built like the references: the yardstick of the benchmarks, not part of the package.

What makes it slow is kept on purpose: the language head runs on every position of the sequence, the
softmax is float64 over every position and the whole vocabulary, rows are ranked in a Python loop.
Written from facts about LLaDA's generate and LLaDA-V's generate_with_embeds; it reproduces the
deterministic runs of golden case 07 (tests/golden/test_yardstick.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def share_out(count: int, steps: int) -> list[int]:
    """`count` tokens over `steps` steps, earlier steps get the remainder."""
    base, rest = divmod(count, steps)
    return [base + (step < rest) for step in range(steps)]


def find(sequence: list[int], ids: list[int]) -> int | None:
    """Where `sequence` first occurs in `ids`."""
    width = len(sequence)
    return next((i for i in range(len(ids) - width + 1) if ids[i : i + width] == sequence), None)


@torch.no_grad()
def sample(
    logits_of: Callable[[Tensor], Tensor],
    prompt: Tensor,
    *,
    gen_length: int,
    block_length: int,
    steps: int,
    mask_id: int,
    forbidden: Sequence[int] = (),
    stop: Sequence[list[int]] = (),
    cfg_scale: float = 0.0,
    eos_never: int | None = None,
    last_ids: Sequence[int] = (),
    softmax_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Answer ids int64[<= gen_length] for one prompt int64[P], at temperature 0.

    Args:
        logits_of: int64[1, S] -> float32[1, S, V].
        forbidden: ids at -inf at masked positions, before argmax and softmax (LLaDA-V).
        eos_never: id at -inf everywhere (LLaDA's logits_eos_inf).
        last_ids: ids at -inf after the argmax (LLaDA's confidence_eos_eot_inf).
    """
    start = prompt.numel()
    x = torch.cat([prompt, prompt.new_full((gen_length,), mask_id)])[None]
    given = x != mask_id
    blocks = gen_length // block_length
    limit: int | None = None  # first stop position found so far, in the sequence
    for block in range(blocks):
        first, end = start + block * block_length, start + (block + 1) * block_length
        if limit is not None and limit <= first:
            break
        budget = share_out(int((x[0, first:end] == mask_id).sum()), steps // blocks)
        for k in budget:
            masked = x == mask_id
            window_end = end if limit is None else limit
            if stop and not masked[0, start if limit else first : window_end].any():
                break
            logits = logits_of(x)
            if cfg_scale:
                blind = logits_of(torch.where(given, mask_id, x))
                logits = blind + (cfg_scale + 1) * (logits - blind)
            if eos_never is not None:
                logits[:, :, eos_never] = -torch.inf
            for token in forbidden:
                logits[:, :, token] = torch.where(masked, -torch.inf, logits[:, :, token])
            x0 = logits.argmax(-1)
            for token in last_ids:
                logits[:, :, token] = -torch.inf
            p = torch.softmax(logits.to(softmax_dtype), -1).gather(-1, x0[:, :, None])[:, :, 0]
            p[:, window_end:] = -torch.inf
            confidence = torch.where(masked, p, -torch.inf)
            for row in range(x.shape[0]):
                _, chosen = torch.topk(confidence[row], k)
                chosen = chosen[masked[row, chosen]]
                x[row, chosen] = x0[row, chosen]
            answer = x[0, start:].tolist()
            for sequence in stop:
                position = find(sequence, answer)
                if position is not None:
                    found = start + position
                    limit = found if limit is None else min(limit, found)
                    break
    return x[0, start:limit]
