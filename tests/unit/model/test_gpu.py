"""The same model on a GPU: loaded there tensor by tensor, rows in one padded batch."""

import pytest
import torch

from medv_ray.model import weights
from medv_ray.model.denoise import FullRecompute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def test_gpu_agrees_with_cpu(toy, tmp_path):
    weights.save(toy, tmp_path)
    model = weights.load(tmp_path, device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    tiles = torch.randint(0, 256, (5, 30, 30, 3), dtype=torch.uint8)
    want = toy.encode_image(tiles, (60, 59))
    torch.testing.assert_close(
        model.encode_image(tiles, (60, 59)).cpu(), want, atol=1e-3, rtol=1e-3
    )
    prompts = [torch.randn(n, 32) for n in (9, 21, 0)]
    x = torch.randint(0, 60, (3, 6))
    need = x % 2 == 0
    denoiser = FullRecompute(model, prompts, (3,))
    assert denoiser.together
    want = FullRecompute(toy, prompts, (3,))(x, need)
    torch.testing.assert_close(denoiser(x, need).cpu(), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(toy, tmp_path, dtype):
    weights.save(toy, tmp_path)
    model = weights.load(tmp_path, dtype, device="cuda")
    ids = torch.arange(40)[None]
    want = toy.logits(ids)
    error = (model.logits(ids.cuda()).float().cpu() - want).abs().mean()
    assert error < 0.05 * want.abs().mean()
