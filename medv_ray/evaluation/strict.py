"""Closed and open accuracy by whole words, as a scoring job counts them, too."""

from medv_ray.archive.whole_words import *  # noqa: F403
