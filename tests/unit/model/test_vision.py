"""SigLIP's tower and the way from tiles to image tokens."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medv_ray.errors import CheckpointError
from medv_ray.model.medv import Medv
from medv_ray.model.projector import best_canvas, merge_tiles
from medv_ray.model.vision import scale_pixels


def make_tiles(count: int, side: int = 30) -> Tensor:
    return torch.randint(
        0,
        256,
        (count, side, side, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(2),
    )


def test_pixels_are_scaled_as_the_reference_does_in_float64_then_float32():
    levels = torch.arange(256, dtype=torch.uint8)
    want = ((levels.double() * (1 / 255)).float() - 0.5) / 0.5
    got = scale_pixels(levels.reshape(1, 16, 16, 1).expand(-1, -1, -1, 3))
    assert got.dtype == torch.float32
    assert torch.equal(got, want.reshape(1, 1, 16, 16).expand(-1, 3, -1, -1))


def test_tower_matches_hugging_face_without_its_last_norm(toy):
    siglip = pytest.importorskip("transformers").SiglipVisionModel
    vision = toy.config.vision
    fields = {
        n: getattr(vision, n) for n in vision.__dataclass_fields__ if n != "num_hidden_layers"
    }
    # Hugging Face's tower has the layer that LLaDA-V drops; hidden_states[-2] is what it reads
    config = siglip.config_class(
        **fields, num_hidden_layers=vision.num_hidden_layers + 1, vision_use_head=False
    )
    theirs = siglip(config).eval()
    ours = toy.model.get_submodule("vision_tower.vision_tower.vision_model")
    prefix = (
        "vision_model." if any(n.startswith("vision_model.") for n in theirs.state_dict()) else ""
    )
    report = theirs.load_state_dict(
        {f"{prefix}{n}": t for n, t in ours.state_dict().items()}, strict=False
    )
    assert not report.unexpected_keys
    pixels = scale_pixels(make_tiles(2))
    with torch.no_grad():
        want = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours(pixels), want, atol=1e-4, rtol=1e-4)


def test_the_last_norm_and_the_uncovered_edge_are_never_used(toy):
    tiles = make_tiles(3)
    want = toy.encode_image(tiles[:1], (30, 30))
    tower = toy.model.get_submodule("vision_tower.vision_tower.vision_model")
    tower.post_layernorm.weight.fill_(math.nan)
    covered = toy.config.vision.side * toy.config.vision.patch_size
    tiles[:, covered:], tiles[:, :, covered:] = 255, 0
    assert torch.equal(toy.encode_image(tiles[:1], (30, 30)), want)


def test_many_tiles_give_the_features_of_each_alone(toy):
    tiles = make_tiles(19)
    alone = torch.cat([toy.image_features(tile[None]) for tile in tiles])
    torch.testing.assert_close(toy.image_features(tiles), alone, atol=1e-5, rtol=1e-5)


def test_token_counts_of_one_image(toy):
    tiles, (width, height) = make_tiles(5), (60, 59)
    assert toy.encode_image(tiles[:1], (width, height)).shape == (
        16 + 1,
        32,
    )  # one line, one newline
    assert toy.encode_image(tiles, (width, height)).shape[0] == 16 + 8 * (8 + 1)
    toy.model.image_newline.fill_(math.nan)
    assert toy.encode_image(tiles, (width, height)).isnan().any(1).sum() == 8


def test_flat_puts_tiles_in_a_line(toy_config):
    flat = Medv(replace(toy_config, mm_patch_merge_type="flat")).requires_grad_(False)
    assert not hasattr(flat.model, "image_newline")
    assert flat.encode_image(make_tiles(3), (30, 60)).shape == (48, 32)
    assert torch.equal(
        flat.encode_image(make_tiles(3), (30, 60)), flat.image_features(make_tiles(3)).flatten(0, 1)
    )


def test_a_text_only_model_says_that_it_cannot_see(toy_config):
    blind = Medv(replace(toy_config, vision=None))
    for call in (
        lambda: blind.encode_image(make_tiles(1), (30, 30)),
        lambda: blind.image_features(make_tiles(1)),
    ):
        with pytest.raises(CheckpointError, match="E1410.*no vision tower"):
            call()


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [
        ((60, 59), 2, 2),
        ((90, 30), 3, 1),
        ((30, 89), 1, 3),
        ((500, 400), 3, 3),
        ((200, 90), 3, 2),
        ((20, 900), 1, 3),
    ],
)
@pytest.mark.parametrize("max_tiles", [None, 4, 1])
def test_merge_matches_a_walk_over_positions(size, columns, rows, max_tiles):
    """The merged sequence, written down position by position from the rule."""
    side, tile = 4, 30
    canvases = [(w * tile, h * tile) for w in range(1, 4) for h in range(1, 4)]
    assert best_canvas(size, canvases) == (columns * tile, rows * tile)
    features = torch.randn(
        1 + columns * rows, side**2, 5, generator=torch.Generator().manual_seed(3)
    )
    newline = torch.full((5,), 9.0)

    grid = torch.empty(rows * side, columns * side, 5)
    for t in range(columns * rows):
        for n in range(side**2):
            y, x = t // columns * side + n // side, t % columns * side + n % side
            grid[y, x] = features[1 + t, n]
    width, height = size
    if width / height > columns / rows:
        cut = (rows * side - int(height * (columns * side / width))) // 2
        grid = grid[cut : rows * side - cut]
    else:
        cut = (columns * side - int(width * (rows * side / height))) // 2
        grid = grid[:, cut : columns * side - cut]
    h, w = grid.shape[:2]
    times = math.sqrt(h * w / ((max_tiles or math.inf) * side**2))
    if times > 1.1:
        shape = (int(h // times), int(w // times))
        planes = [
            F.interpolate(plane[None, None], shape, mode="bilinear")[0, 0]
            for plane in grid.unbind(-1)
        ]
        grid = torch.stack(planes, dim=-1)
    want = list(features[0])
    for line in grid:
        want += [*line, newline]
    got = merge_tiles(features, newline, size, canvases, max_tiles)
    torch.testing.assert_close(got, torch.stack(want))


def test_tiles_that_do_not_fit_the_canvas_are_refused(toy):
    with pytest.raises(ValueError, match="3 tiles do not cover"):
        toy.encode_image(make_tiles(4), (60, 59))
