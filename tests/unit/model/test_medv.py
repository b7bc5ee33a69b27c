"""The published names and the published size, on the meta device."""

import copy
import re
from dataclasses import replace

import pytest
import torch

from medv_ray.model.config import ModelConfig
from medv_ray.model.medv import Medv


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        model = Medv(ModelConfig())
    return dict(model.state_dict())


def split(state):
    parts = ("vision_tower", "mm_projector", "image_newline")
    vision = {name: t for name, t in state.items() if any(part in name for part in parts)}
    return {name: t for name, t in state.items() if name not in vision}, vision


def test_language_tensors_and_parameters(full_size):
    language, _ = split(full_size)
    assert len(language) == 291
    assert sum(t.numel() for t in language.values()) == 8_015_581_184
    assert set(language) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
        f"model.layers.{n}.{part}.weight"
        for n in range(32)
        for part in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
            "input_layernorm",
            "post_attention_layernorm",
        )
    }
    assert language["lm_head.weight"].shape == (126464, 4096)


def test_vision_tensors_and_parameters(full_size):
    _, vision = split(full_size)
    sizes = {
        "vision_tower": 397_747_744,
        "mm_projector": 1152 * 4096 + 4096**2 + 2 * 4096,
        "newline": 4096,
    }
    for part, size in sizes.items():
        assert sum(t.numel() for name, t in vision.items() if part in name) == size
    prefix = "model.vision_tower.vision_tower.vision_model."
    layers = {m[1] for name in vision if (m := re.search(r"encoder\.layers\.(\d+)\.", name))}
    assert layers == {str(n) for n in range(26)}
    expected = {
        "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "embeddings.position_embedding.weight": (729, 1152),
        "encoder.layers.25.self_attn.out_proj.bias": (1152,),
        "encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "post_layernorm.weight": (1152,),
    }
    for name, shape in expected.items():
        assert vision[prefix + name].shape == shape
    assert vision["model.mm_projector.0.weight"].shape == (4096, 1152)
    assert vision["model.mm_projector.2.weight"].shape == (4096, 4096)
    assert vision["model.image_newline"].shape == (4096,)


def test_a_text_only_model_has_language_tensors_only(full_size):
    with torch.device("meta"):
        model = Medv(replace(ModelConfig(), vision=None))
    assert model.state_dict().keys() == split(full_size)[0].keys()


def test_logit_size_cuts_the_head_and_nothing_else(toy):
    ids = torch.arange(8)[None]
    want = toy.logits(ids)
    toy.logit_size = 50
    assert toy.head.shape == (50, 32)
    assert toy.logits(ids).shape == (1, 8, 50)
    torch.testing.assert_close(toy.logits(ids), want[..., :50])
    assert toy.lm_head.weight.shape == (61, 32)


def test_packing_changes_no_answer_and_no_gradient(toy):
    ids = torch.randint(0, toy.config.language.vocab_size, (1, 9))
    plain = toy.logits(ids).detach()
    packed = copy.deepcopy(toy)
    packed.pack(limit_bytes=2**30)
    with torch.no_grad():
        torch.testing.assert_close(packed.logits(ids), plain, atol=1e-5, rtol=1e-5)
        packed.model.layers[0].mlp.gate_proj.weight.fill_(torch.nan)
        assert torch.isfinite(packed.logits(ids)).all(), "the packed copy is what inference reads"
    with torch.enable_grad():
        assert not torch.isfinite(packed.logits(ids)).all(), "training reads the weight itself"


def test_a_large_tower_is_not_held_twice(toy):
    copied = copy.deepcopy(toy)
    copied.pack(limit_bytes=100)
    assert copied.model.layers[0].mlp.gate_proj.packed is None
