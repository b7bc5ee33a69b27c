"""A random checkpoint folder of the real format, small enough to make for every session."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv

SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "[CLS]",
    "[gMASK]",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens and LLaDA's special names."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Weights as they are: laid out for oneDNN, towers of this size take longer. That is tested
    elsewhere (model, test_asset)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medv_ray.engine.predictor.PACK_BYTES", 0)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(3)
    language = LanguageConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    vision = VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = ModelConfig(language, vision, image_aspect_ratio="square", max_length=512)
    model = Medv(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    weights.save(model, path)
    byte_tokenizer().save_pretrained(path)
    return path


def png(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    """A random picture, encoded."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
