"""LLaVA-Med's normalisation and metrics with their quirks, as its published tables need them.

Each quirk is named where it stands. Figures without them: `strict`. Tokens are what white space
separates. Source: what LLaVA-Med v1.0.0 `llava/eval` computes, held by golden values.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # a flag is handed over as the count: later periods stay
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(n) for n, word in enumerate(COUNTED)} | {"none": "0"}
ARTICLES = ("a", "an", "the")

SHORT = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
y'all'd've you'd've
"""


def _without_one(word: str) -> list[str]:
    """A short form as it is written with an apostrophe left out."""
    marks = [i for i, mark in enumerate(word) if mark == "'"]
    return [word[:i] + word[i + 1 :] for i in marks]


CONTRACTIONS = {spelling: word for word in SHORT.split() for spelling in _without_one(word)}
CONTRACTIONS |= {"'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "ow's'at": "'ow's'at"}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round there


def normalize(text: str) -> str:
    """Text for comparison.

    A mark of punctuation goes away where the text has it beside a blank, else it becomes one; where
    digits stand around a comma anywhere, every mark goes away.
    """
    found = text
    glued = DIGITS.search(text) is not None
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_blank or glued else " ")
    found = PERIOD.sub("", found, count=MAX_PERIODS)
    words = [NUMBERS.get(word, word) for word in found.lower().split()]
    kept = [CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept).replace(",", "")


def prepared(text: str) -> str:
    """Text as the metrics get it."""
    return normalize(text.lower())


def exact_match(answer: str, reference: str) -> float:
    """Distinct tokens of the reference that the answer has, by the answer's tokens: no 0 or 1, and
    below 1 for an answer that says a word twice."""
    said, wanted = _tokens(answer), _tokens(reference)
    return len(said.keys() & wanted.keys()) / said.total() if said else 0.0


def token_scores(answer: str, reference: str) -> tuple[float, float, float]:
    """F1, precision and recall of tokens. A shared one counts as often as the answer says it, and
    is missed by the reference never."""
    said, wanted = _tokens(answer), _tokens(reference)
    if not said or not wanted:
        return 0.0, 0.0, 0.0
    hits = sum(count for word, count in said.items() if word in wanted)
    precision = hits / said.total()
    missed = sum(count for word, count in wanted.items() if word not in said)
    recall = hits / (hits + missed)
    both = precision + recall
    return (2 * precision * recall / both if both else 0.0), precision, recall


def bleu(answer: str, reference: str, weights: Sequence[float]) -> float:
    """Sentence BLEU without smoothing, by n-grams of 1, 2, ...: where an order has no match, its
    share is the smallest positive float. Source: nltk 3.10 `sentence_bleu`."""
    said, wanted = normalize(answer).split(), normalize(reference).split()
    shares = []
    for n in range(1, len(weights) + 1):
        mine, theirs = _grams(said, n), _grams(wanted, n)
        shares.append(((mine & theirs).total(), max(1, mine.total())))
    if shares[0][0] == 0:
        return 0.0
    brevity = 1.0 if len(said) > len(wanted) else math.exp(1 - len(wanted) / len(said))
    logs = [
        weight * math.log(hits / total if hits else sys.float_info.min)
        for weight, (hits, total) in zip(weights, shares, strict=True)
    ]
    return brevity * math.exp(math.fsum(logs))


def closed_gated(answer: str, reference: str) -> bool:
    """`run_eval`: an answer with neither yes nor no anywhere is wrong, whatever was asked."""
    said = prepared(answer)
    return ("yes" in said or "no" in said) and prepared(reference) in said


def contained(answer: str, reference: str) -> bool:
    """`run_eval_batch`: the reference stands in the answer, inside of words too."""
    return prepared(reference) in prepared(answer)


class Candidates:
    """`run_eval`'s open accuracy: the candidate that shares most with the answer, by its own number
    of distinct tokens, must be the reference; of equal ones the first counts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [prepared(text) for text in texts]
        self._words = [frozenset(text.split()) for text in self._texts]
        self._with: dict[str, list[int]] = {}
        for i, words in enumerate(self._words):
            for word in words:
                self._with.setdefault(word, []).append(i)

    def is_right(self, answer: str, reference: str) -> bool:
        """False for an empty list of candidates."""
        shared: Counter[int] = Counter()
        for word in normalize(prepared(answer)).split():
            shared.update(self._with.get(word, ()))
        best = min(shared, key=lambda i: (-shared[i] / len(self._words[i]), i), default=0)
        return bool(self._texts) and self._texts[best] == prepared(reference)


def _tokens(text: str) -> Counter[str]:
    return Counter(normalize(text).split())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
