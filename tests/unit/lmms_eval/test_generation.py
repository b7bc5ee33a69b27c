"""lmms-eval's words for how an answer is made."""

from __future__ import annotations

from typing import Any

import pytest

from medv_ray.errors import SettingsError
from medv_ray.lmms_eval.generation import Asked, asked, grouped
from medv_ray.settings import SamplerSettings


@pytest.mark.parametrize(
    ("given", "recommended", "chosen", "want"),
    [
        ({"max_new_tokens": 32}, {}, {}, (32, 32, 32)),  # L = B = Z
        ({"max_new_tokens": 100}, {}, {"block_length": 32}, (128, 32, 128)),  # whole blocks
        ({"max_new_tokens": 70}, {}, {"block_length": 32, "steps": 64}, (96, 32, 66)),
        ({"max_new_tokens": 16}, {}, {"block_length": 32}, (32, 32, 32)),
        ({"max_new_tokens": 64}, {"gen_length": 8, "steps": 4}, {}, (8, 8, 4)),  # the checkpoint's
        ({"max_new_tokens": 16}, {}, {"gen_length": 256, "block_length": 64}, (256, 64, 256)),
        ({"max_new_tokens": 16, "gen_length": 4}, {}, {"gen_length": 8}, (4, 4, 4)),
        ({"max_new_tokens": 16, "gen_steps": 4}, {}, {}, (16, 16, 4)),  # LLaDA-V's names
        ({}, {}, {}, (64, 64, 64)),
    ],
)
def test_lengths(given: Any, recommended: Any, chosen: Any, want: tuple[int, int, int]) -> None:
    found = asked(given, recommended, chosen)
    sampler = found.sampler
    assert (sampler.gen_length, sampler.block_length, sampler.steps) == want
    assert found.max_new_tokens == given.get("max_new_tokens")


@pytest.mark.parametrize(
    ("given", "chosen", "want"),
    [
        ({"temperature": 0.7}, {}, 0.7),
        ({"temperature": 0.7, "do_sample": True, "top_p": 1.0}, {}, 0.7),
        ({"temperature": 0.2, "do_sample": False}, {}, 0.0),
        ({"do_sample": True}, {}, 1.0),
        ({"temperature": 0, "top_p": 0.9, "top_k": 1, "num_beams": 1}, {}, 0.0),
        ({"temperature": 0}, {"temperature": 0.5}, 0.5),
        ({}, {}, 0.0),
    ],
)
def test_temperature(given: Any, chosen: Any, want: float) -> None:
    assert asked(given, {}, chosen).sampler.temperature == want


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 3}, r"num_beams=3: .*--model_args ignore=num_beams leaves it out"),
        ({"temperature": 0.7, "top_p": 0.9}, "top_p=0.9"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"image_aspect_ratio": "original"}, "image_aspect_ratio=original"),
        ({"max_new_tokens": 0}, "max_new_tokens: a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"until": [3]}, "until: a text or a list of texts"),
        ({"gen_length": 30, "block_length": 8}, "E1002"),
        ({"steps": "x"}, "sampler.steps|steps"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(given: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        asked(given, {}, {})


def test_what_is_left_out_on_request() -> None:
    given = {"num_beams": 3, "image_aspect_ratio": "pad"}
    found = asked(given, {}, {}, ("num_beams", "image_aspect_ratio"))
    assert found.sampler == SamplerSettings()


def test_cuts() -> None:
    def read(ids: tuple[int, ...]) -> str:
        return " " + " ".join(map(str, ids))

    plan = Asked(SamplerSettings(), 3, ("\n\n", "###"))
    assert plan.cut("1 2 3", (1, 2, 3), read) == "1 2 3"
    assert plan.cut("1 2 3 4", (1, 2, 3, 4), read) == "1 2 3"
    assert plan.cut("a ### b\n\nc", (1,), read) == "a "
    assert plan.cut("a\n\nb ###", (1,), read) == "a"
    assert asked({"until": "x"}, {}, {}).until == ("x",)
    assert asked({"until": ["", "\n"]}, {}, {}).until == ("\n",)
    assert asked({"until": None}, {}, {}).until == ()


def test_model_args_by_group() -> None:
    given = {"dtype": "bfloat16", "cfg": 1.5, "system": "medical", "aspect": "square"}
    assert grouped(given) == {
        "model": {"dtype": "bfloat16"},
        "sampler": {"cfg_scale": 1.5},
        "prompt": {"system": "medical"},
        "image": {"aspect": "square"},
    }
    with pytest.raises(SettingsError, match="conv_template: no setting of llada_medv"):
        grouped({"conv_template": "vicuna"})
