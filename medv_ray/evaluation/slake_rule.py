"""lmms-eval's rule for SLAKE: an answer is right where both texts are the same when normalised.

Source: what lmms-eval 0.7.3 `tasks/slake` computes, held by golden values.
"""

from __future__ import annotations

import re
import string

WIDE = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
BLANKS = str.maketrans(dict.fromkeys(string.punctuation + WIDE, " "))
IN_PARENTHESES = re.compile(r"\([^)]*\)|（[^）]*）")
SAME = (
    {"xray", "x ray"},
    {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"},
    {
        "no",
        "nope",
        "false",
        "否",
        "不是",
        "没有",
        "无",
        "不包含",
        "不能",
        "不会",
        "不可以",
        "不正常",
    }
    | {"异常"},
)
"""Whole answers that mean the same; the first of a line stands for all."""
FIRST = {
    word: name for name, line in zip(("xray", "yes", "no"), SAME, strict=True) for word in line
}


def normalize(text: str) -> str:
    """Text for comparison: no parentheses, no punctuation, lower case."""
    bare = IN_PARENTHESES.sub(" ", text.strip().lower()).translate(BLANKS)
    joined = " ".join(bare.split())
    return FIRST.get(joined, joined)


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer is the reference."""
    return normalize(answer) == normalize(reference)
