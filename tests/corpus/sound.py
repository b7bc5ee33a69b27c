"""What nothing is wrong with: a picture, a question and an answer that name a patient."""

from __future__ import annotations

from functools import cache

from medv_ray.data.synthetic import rows

CANARY = "Zacharias"
"""Stands in questions, answers and DICOM headers, and so in no message."""
QUESTION = f"Which organ of {CANARY} is shown?"
ANSWER = f"the liver of {CANARY}"
SOUND = "sound"
"""What ids of sound rows begin with, and the answer of those that are prepared."""


@cache
def sound() -> bytes:
    """A picture, PNG."""
    return next(iter(rows(1, seed=5, per_image=1, size_wh=(64, 64)))).image
