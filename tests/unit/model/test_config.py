"""config.json in each published spelling, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from medv_ray.errors import CheckpointError
from medv_ray.model.config import VISION, LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv

OLMO = {
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "block_type": "llama",
    "d_model": 64,
    "embedding_size": 512,
    "include_bias": False,
    "include_qkv_bias": None,
    "layer_norm_type": "rms",
    "max_sequence_length": 4096,
    "mlp_hidden_size": 128,
    "n_heads": 4,
    "n_kv_heads": None,
    "n_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500000.0,
    "vocab_size": 510,
    "weight_tying": False,
}
LLAMA = {
    "model_type": "llada",
    "attention_bias": False,
    "bos_token_id": 128000,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 16384,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 512,
}
LLADA_V = LLAMA | {
    "model_type": "llava_llada",
    "auto_map": {"AutoModel": "llava_llada.LlavaLLaDAModelLM"},
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": [[384, 384], [384, 768]],
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "/somebody/else/siglip2",
    "tokenizer_model_max_length": 16384,
}


def test_both_language_spellings_mean_the_same():
    want = LanguageConfig(512, 64, 128, 3, 4, 4)
    olmo, llama = ModelConfig.from_json(OLMO), ModelConfig.from_json(LLAMA)
    assert olmo.language == llama.language == want
    assert olmo.vision is None
    assert llama.vision is None
    assert (olmo.max_length, llama.max_length) == (4096, 8192)


def test_llada_v_without_a_word_about_its_tower_has_siglip2_so400m():
    config = ModelConfig.from_json(LLADA_V)
    assert config.vision == VisionConfig(1152, 4304, 26, 16, 384, 14)
    assert config.vision.side == 27
    assert config.image_grid_pinpoints == ((384, 384), (384, 768))
    assert (config.max_length, config.max_tiles) == (16384, 4)


def test_a_config_survives_the_round_trip(toy_config):
    text_only = replace(
        toy_config, vision=None, image_aspect_ratio="square", mm_patch_merge_type="flat"
    )
    for config in (ModelConfig(), toy_config):
        assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_json(text_only.to_json()).language == text_only.language
    assert text_only.to_json()["model_type"] == "llada"


def test_the_tower_is_read_from_its_tensors():
    raw = {key: value for key, value in LLADA_V.items() if key != "mm_vision_tower"}
    with torch.device("meta"):
        published = Medv(ModelConfig.from_json(raw))
    shapes = {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}
    assert ModelConfig.from_json(raw, shapes).vision == VisionConfig()
    # a fine-tuned tower found in a folder whose config speaks of a language model only
    assert ModelConfig.from_json(LLAMA, shapes).vision == VisionConfig()
    name = f"{VISION}embeddings.patch_embedding.weight"
    with pytest.raises(CheckpointError, match=f"E1402.*{name}"):
        ModelConfig.from_json(raw, {k: v for k, v in shapes.items() if k != name})
    with pytest.raises(CheckpointError, match="E1410.*vision_config"):
        ModelConfig.from_json(raw, shapes | {name: (96, 3, 14, 14)})
    with pytest.raises(CheckpointError, match="E1404"):
        ModelConfig.from_json(raw, shapes | {name: (1152, 588)})


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llava_qwen"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"tie_word_embeddings": True},
        {"mm_projector_type": "linear"},
        {"mm_patch_merge_type": "spatial_one_token"},
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"hidden_size": 66},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": True},
        {"rms_norm_eps": math.nan},
        {"rope_theta": -1},
        {"image_grid_pinpoints": "(1x1),...,(6x6)"},
        {"image_grid_pinpoints": [[384, 0]]},
        {"image_grid_pinpoints": [[100, 384]]},
        {"vision_config": {"hidden_size": 24}},
    ],
    ids=str,
)
def test_what_the_model_does_not_compute_is_refused(change):
    with pytest.raises(CheckpointError) as raised:
        ModelConfig.from_json(LLADA_V | change)
    assert raised.value.code == "E1410"


def test_a_refusal_names_field_rule_and_value():
    with pytest.raises(CheckpointError) as raised:
        ModelConfig.from_json(LLADA_V | {"hidden_size": "64"})
    assert raised.value.detail == (
        "config.json: hidden_size must be a whole number from 1 to 2147483648, not '64'."
    )
    with pytest.raises(CheckpointError, match=r"num_hidden_layers must be .* not absent"):
        ModelConfig.from_json({k: v for k, v in LLAMA.items() if k != "num_hidden_layers"})


@pytest.mark.parametrize(
    "change", [{"alibi": True}, {"layer_norm_type": "default"}, {"rope": False}]
)
def test_other_olmo_blocks_are_refused(change):
    with pytest.raises(CheckpointError, match="E1410"):
        ModelConfig.from_json(OLMO | change)


@pytest.mark.parametrize(
    ("aspect", "tiles"),
    [("anyres_max_4", 4), ("anyres_max_9", 9), ("anyres", None), ("pad", 4), ("square", 4)],
)
def test_max_tiles(aspect, tiles):
    assert replace(ModelConfig(), image_aspect_ratio=aspect).max_tiles == tiles
