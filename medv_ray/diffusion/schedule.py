"""How many tokens each step of a block commits."""

from __future__ import annotations


def transfer_schedule(masked: int, steps: int) -> list[int]:
    """Tokens to commit at each of `steps` steps of a block that begins with `masked` masks.

    n masks over s steps: n // s each, the first n % s steps one more. With s > n the last steps
    commit nothing.
    Source: LLaDA generate.py, get_num_transfer_tokens.
    """
    base, extra = divmod(masked, steps)
    return [base + (step < extra) for step in range(steps)]


def remain_probability(step: int, steps: int) -> float:
    """s/t: the chance of a masked token to stay masked at step 0 .. steps - 1; 0 at the last.

    t = 1 - step/steps and s = t - 1/steps. Source: LLaDA-MedV supplement, Algorithm 1.
    """
    return (steps - step - 1) / (steps - step)
