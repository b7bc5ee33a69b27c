"""The language tower against a plain float64 version; masks, positions and RoPE."""

import pytest
import torch
from torch import Tensor

from medv_ray.model.medv import Medv


def plain_hidden(model: Medv, embeds: Tensor) -> Tensor:
    """float64[S, D] -> float64[S, D]: one row, head by head, rotary angles as complex numbers."""
    config = model.config.language
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    C, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    speed = config.rope_theta ** (-torch.arange(C // 2, dtype=torch.float64) / (C // 2))
    turn = torch.exp(1j * torch.arange(len(embeds))[:, None] * speed)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def heads(x: Tensor, weight: Tensor, rotated: bool) -> list[Tensor]:
        found = []
        for part in (x @ weight.T).split(C, dim=-1):
            pairs = torch.complex(part[:, : C // 2], part[:, C // 2 :])
            pairs = pairs * turn if rotated else pairs
            found.append(torch.cat((pairs.real, pairs.imag), dim=-1))
        return found

    x = embeds.double()
    for i in range(config.num_hidden_layers):
        layer = {
            n.removeprefix(f"model.layers.{i}."): t for n, t in state.items() if f"layers.{i}." in n
        }
        y = rms(x, layer["input_layernorm.weight"])
        q = heads(y, layer["self_attn.q_proj.weight"], True)
        k = heads(y, layer["self_attn.k_proj.weight"], True)
        v = heads(y, layer["self_attn.v_proj.weight"], False)
        mixed = [
            (q[h] @ k[h // shared].T / C**0.5).softmax(-1) @ v[h // shared] for h in range(len(q))
        ]
        x = x + torch.cat(mixed, dim=-1) @ layer["self_attn.o_proj.weight"].T
        y = rms(x, layer["post_attention_layernorm.weight"])
        gate, up = y @ layer["mlp.gate_proj.weight"].T, y @ layer["mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj.weight"].T
    return rms(x, state["model.norm.weight"])


def test_hidden_states_match_the_plain_version(toy):
    embeds = torch.randn(2, 19, 32, generator=torch.Generator().manual_seed(1))
    want = torch.stack([plain_hidden(toy, row) for row in embeds])
    torch.testing.assert_close(toy.hidden(embeds).double(), want, atol=1e-4, rtol=1e-4)


def test_every_position_sees_every_other(toy):
    ids = torch.arange(12)[None]
    for position in (0, 11):
        changed = ids.clone()
        changed[0, position] = 60
        moved = (toy.logits(ids) - toy.logits(changed)).abs().amax(-1)[0]
        assert (moved > 1e-4).all()


def test_a_mask_without_zeros_is_no_mask(toy):
    ids = torch.arange(10)[None].expand(2, -1)
    for mask in (torch.ones_like(ids), torch.ones(2, 1, 10, 10, dtype=torch.bool)):
        assert torch.equal(toy.logits(ids, mask), toy.logits(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen_whatever_it_holds(toy, side):
    row = torch.arange(5, 12)
    poison = torch.full((4,), 60)
    ids = torch.cat((poison, row) if side == "left" else (row, poison))[None]
    mask = ids != 60
    got = toy.logits(ids, mask)[mask]
    torch.testing.assert_close(got, toy.logits(row[None])[0], atol=1e-4, rtol=1e-4)


def test_additive_and_boolean_masks_of_four_dimensions_agree(toy):
    ids = torch.arange(9)[None]
    turns = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    allowed = (turns[None, :] <= turns[:, None])[None, None]
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    torch.testing.assert_close(toy.logits(ids, additive), toy.logits(ids, allowed))
    changed = ids.clone()
    changed[0, -1] = 60
    assert torch.equal(toy.logits(ids, allowed)[:, :6], toy.logits(changed, allowed)[:, :6])


def test_only_differences_of_positions_matter(toy):
    embeds = toy.embed(torch.arange(10)[None])
    moved = toy.hidden(embeds, positions=torch.arange(10) + 1000)
    torch.testing.assert_close(moved, toy.hidden(embeds), atol=1e-3, rtol=1e-3)
    per_row = toy.hidden(embeds, positions=torch.arange(10)[None])
    assert torch.equal(per_row, toy.hidden(embeds))
    assert not torch.allclose(
        toy.hidden(embeds, positions=torch.arange(10) * 2), toy.hidden(embeds), atol=1e-2
    )


def test_casting_the_model_leaves_rotary_angles_exact(toy):
    assert not list(toy.buffers())
    far = torch.arange(6) + 4000  # bfloat16 frequencies would be off by whole turns here
    embeds = toy.embed(torch.arange(6)[None])
    exact = toy.hidden(embeds)
    cast = toy.to(torch.bfloat16).hidden(embeds.bfloat16(), positions=far)
    assert (cast.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
