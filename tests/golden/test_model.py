"""Golden 01, 02, 09 and the embeddings of 10: towers, projector, merge and splice, stage by stage.

Language weights are read through a checkpoint folder in the case's own key layout.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medv_ray.canvases import TileSettings
from medv_ray.data.images import prepare
from medv_ray.markers import IMAGE_SLOT
from medv_ray.model import weights
from medv_ray.model.config import ModelConfig
from medv_ray.model.denoise import splice
from medv_ray.model.llada import rotary_table, rotate
from medv_ray.model.medv import Medv
from medv_ray.model.vision import scale_pixels
from medv_ray.settings import ImageSettings

IGNORED = -100  # label of positions that are not trained on
# the README's bounds for bfloat16 against float32 logits
BF16_MAX, BF16_MEAN = 0.4, 0.05


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def load(
    folder: Path, config: dict, state: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Medv:
    """The model of a checkpoint folder made of these."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return weights.load(folder, dtype)


@pytest.mark.subcases("01")
def test_olmo_named_tower(golden, key, tmp_path):
    config, state, tensors = golden.case("01")["config"], golden.olmo_state(), golden.tensors("01")
    model = load(tmp_path, config, state)
    check_batch(model, tensors, key)
    if f"{key}.logits_bf16" in tensors:
        check_bfloat16(load(tmp_path, config, state, torch.bfloat16), tensors, key)


@pytest.mark.subcases("02")
def test_llama_named_tower(golden, key, tmp_path):
    config, state, tensors = (
        dict(golden.case("02")["config"]),
        golden.state("02"),
        golden.tensors("02"),
    )
    if key == "gqa":
        state = golden.tensors("02", "state_gqa.safetensors")
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        config["num_key_value_heads"] = (
            len(state["model.layers.0.self_attn.k_proj.weight"]) // head_dim
        )
    model = load(tmp_path, config, state)
    if key == "bf16":
        (batch,) = {name.split(".")[0] for name in tensors if name.endswith(".logits_bf16")}
        check_bfloat16(load(tmp_path, config, state, torch.bfloat16), tensors, batch)
        check_bfloat16(model.to(torch.bfloat16), tensors, batch)
    elif key.startswith("position_offset_"):
        (name,) = (name for name in tensors if name.endswith(f".logits_{key}"))
        ids = tensors[f"{name.split('.')[0]}.input_ids"]
        positions = torch.arange(ids.shape[1]) + int(key.rsplit("_", 1)[1])
        close(model.hidden(model.embed(ids), positions=positions) @ model.head.T, tensors[name])
    else:
        check_batch(model, tensors, key)


def check_batch(model: Medv, tensors: dict[str, Tensor], key: str) -> None:
    """Logits of a batch at positions that are not padding, and what else is stored of it."""
    ids, want = tensors[f"{key}.input_ids"], tensors[f"{key}.logits"]
    mask = tensors.get(f"{key}.attention_mask")
    states, maps = watch(model)
    got = model.logits(ids, tensors.get(f"{key}.mask4", mask))
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    close(got[real], want[real])
    if f"{key}.hidden_states" in tensors:
        close(torch.stack(states), tensors[f"{key}.hidden_states"])
    if f"{key}.attentions" in tensors:
        close(torch.stack(maps), tensors[f"{key}.attentions"])


def watch(model: Medv) -> tuple[list[Tensor], list[Tensor]]:
    """Lists that the next forward fills: layer inputs and final state; unmasked attention maps."""
    states: list[Tensor] = []
    maps: list[Tensor] = []

    def attend(module, inputs):
        x = inputs[0]
        table = rotary_table(
            torch.arange(x.shape[1]),
            model.config.language.head_dim,
            model.config.language.rope_theta,
        )
        q, k = (
            rotate(proj(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2), table)
            for proj in (module.q_proj, module.k_proj)
        )
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        maps.append((q @ k.transpose(-1, -2) / module.head_dim**0.5).softmax(-1))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        layer.self_attn.register_forward_pre_hook(attend)
    model.model.norm.register_forward_hook(lambda _, inputs, out: states.append(out))
    return states, maps


def check_bfloat16(model: Medv, tensors: dict[str, Tensor], batch: str) -> None:
    """Within the README's bounds of the float32 logits, and of each bfloat16 run by twice those."""
    got = model.logits(tensors[f"{batch}.input_ids"]).float()
    error = (got - tensors[f"{batch}.logits"]).abs()
    assert error.max() < BF16_MAX
    assert error.mean() < BF16_MEAN
    for name, want in tensors.items():
        if name.startswith(f"{batch}.logits_bf16"):
            assert (got - want.float()).abs().max() < 2 * BF16_MAX, name
            assert (got - want.float()).abs().mean() < 2 * BF16_MEAN, name


@pytest.fixture(scope="module")
def models():
    """Models of 09 and 10 by config: the language tower of 02, and each case's own vision tower."""
    return {}


def vision_model(golden, models, case: str, overrides: dict) -> Medv:
    found = models.get((case, str(overrides)))
    if found is None:
        raw = golden.case(case)
        config = {
            **golden.case("02")["config"],
            **raw["config"],
            **overrides,
            "vision_config": raw["vision_config"],
        }
        found = Medv(ModelConfig.from_json(config))
        state = golden.state("02") | golden.tensors(case, "state.safetensors")
        found.load_state_dict(state, strict="unpad" in config["mm_patch_merge_type"])
        models[(case, str(overrides))] = found.requires_grad_(False)
    return found


def encode(golden, model: Medv, name: str, aspect: str) -> Tensor:
    """Image tokens of a PNG of case 08."""
    config = model.config
    tiles = TileSettings(
        "anyres_max" if aspect.startswith("anyres") else aspect,
        config.vision.image_size,
        config.image_grid_pinpoints,
    )
    prepared = prepare(
        golden.path("08", f"{name}.png").read_bytes(), ImageSettings(min_side=1), tiles
    )
    return model.encode_image(torch.from_numpy(prepared.tiles), prepared.size_wh)


@pytest.mark.subcases("09", "tower")
def test_vision_tower(golden, models, key):
    model, tensors = vision_model(golden, models, "09", {}), golden.tensors("09")
    tower = model.model.get_submodule("vision_tower.vision_tower.vision_model")
    pixels = scale_pixels(whole(golden, model))
    close(tower.embeddings(pixels), tensors["tower.embeddings"])
    close(tower(pixels), tensors["tower.features"])
    close(tower.post_layernorm(tower(pixels)), tensors["tower.after_post_layernorm_NOT_USED"])


@pytest.mark.subcases("09", "projector")
def test_projector(golden, models, key):
    model = vision_model(golden, models, "09", {})
    close(model.image_features(whole(golden, model)), golden.tensors("09")["projector.out"])


def whole(golden, model: Medv) -> Tensor:
    """The image that tower, projector and batches of 09 were made from, squashed to a tile."""
    tiles = TileSettings("square", model.config.vision.image_size)
    data = golden.path("08", "i777x333.png").read_bytes()
    return torch.from_numpy(prepare(data, ImageSettings(), tiles).tiles)


def test_splice(golden, models):
    if golden.find("09", "tensors.safetensors") is None:
        pytest.skip("golden 09 has no tensors here: they are not committed, see data/README.md")
    for key, run in golden.case("09")["cases"].items():
        if "image_sizes_wh" in run:
            check_splice(golden, models, key, run)
            golden.record("09", key)


def check_splice(golden, models, key: str, run: dict) -> None:
    tensors = golden.tensors("09")
    # the truncation of the case's config belongs to one sub-case; all others ran with 8192
    model = vision_model(
        golden, models, "09", {**run["overrides"], "tokenizer_model_max_length": 8192}
    )
    aspect = run["overrides"].get(
        "image_aspect_ratio", golden.case("09")["config"]["image_aspect_ratio"]
    )
    ids = tensors[f"{key}.input_ids"][0]
    images = [
        encode(golden, model, f"i{width}x{height}", aspect)
        for width, height in run["image_sizes_wh"]
    ]
    embeds = splice(model, ids, images)[: model.config.max_length]
    assert [1, *embeds.shape] == run["embeds_shape"], key
    assert len(embeds) - int((ids != IMAGE_SLOT).sum()) == run["image_tokens"], key
    if f"{key}.inputs_embeds" in tensors:
        close(embeds, tensors[f"{key}.inputs_embeds"][0])
    check_sums(embeds, run)


def check_sums(embeds: Tensor, run: dict) -> None:
    tolerance = 1e-6 * run["abs_sum"]
    assert embeds.double().abs().sum().item() == pytest.approx(run["abs_sum"], abs=tolerance)
    if "sum" in run:
        assert embeds.double().sum().item() == pytest.approx(run["sum"], abs=tolerance)


@pytest.mark.subcases("09", "truncation_")
def test_truncation(golden, models, key):
    """The reference cuts at the config's length; here that length only has to be read right."""
    model, tensors = vision_model(golden, models, "09", {}), golden.tensors("09")
    image = model.encode_image(whole(golden, model), (777, 333))
    embeds = splice(model, tensors["square_spatial_unpad.input_ids"][0], [image])[
        : model.config.max_length
    ]
    assert [1, *embeds.shape] == golden.run("09", key)["embeds_shape"]


@pytest.mark.subcases("09", "batch_")
def test_batch(golden, models, key):
    """Two rows, one without an image: spliced alone, then padded with zeros like the reference."""
    model, tensors = (
        vision_model(golden, models, "09", {"tokenizer_model_max_length": 8192}),
        golden.tensors("09"),
    )
    image = model.encode_image(whole(golden, model), (777, 333))
    rows, labels = [], []
    given = (tensors[f"batch.{name}"] for name in ("input_ids", "attention_mask_in", "labels_in"))
    for ids, mask, label in zip(*given, strict=True):
        ids, label = ids[mask.bool()], label[mask.bool()]
        slots = ids == IMAGE_SLOT
        rows.append(splice(model, ids, [image] * int(slots.sum())))
        repeats = torch.where(slots, len(image), 1)
        labels.append(torch.where(slots, IGNORED, label).repeat_interleave(repeats))
    side = key.removeprefix("batch_")
    pad = torch.nn.utils.rnn.pad_sequence
    embeds = pad(rows, batch_first=True, padding_side=side)
    mask = pad(
        [torch.ones(len(row), dtype=torch.int64) for row in rows],
        batch_first=True,
        padding_side=side,
    )
    assert list(embeds.shape) == golden.run("09", key)["embeds_shape"]
    assert torch.equal(mask, tensors[f"{key}.attention_mask"].long())
    padded = pad(labels, batch_first=True, padding_value=IGNORED, padding_side=side)
    assert torch.equal(padded, tensors[f"{key}.labels"])
    close(embeds[1], tensors[f"{key}.embeds_row1"])
    check_sums(embeds, golden.run("09", key))


@pytest.mark.subcases("10", "inputs_embeds.")
def test_image_to_embeddings(golden, models, key):
    case, tensors = golden.case("10"), golden.tensors("10")
    image = key.removeprefix("inputs_embeds.")
    model = vision_model(golden, models, "10", {})
    pixels = tensors[f"pixels.{image}"]
    tiles = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(scale_pixels(tiles), pixels)
    tokens = model.encode_image(tiles, tuple(case["image_sizes_wh"][image]))
    close(splice(model, tensors[f"input_ids.{image}"][0], [tokens]), tensors[key][0])
