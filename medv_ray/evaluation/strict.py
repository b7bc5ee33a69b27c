"""Closed and open accuracy by whole words, as a scoring job counts them, too."""

from medv_ray.archive.whole_words import closed, is_right, kind_of, same, words

__all__ = ["closed", "is_right", "kind_of", "same", "words"]
