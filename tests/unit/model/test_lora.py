"""Adapters: what is trained, what a merge gives, what is refused."""

import builtins
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.model import lora, weights
from medv_ray.model.llada import Linear
from medv_ray.model.medv import Medv
from medv_ray.settings import LoraSettings
from tests.unit.model.conftest import make_model

SETTINGS = LoraSettings(rank=4, alpha=8.0)
IDS = torch.arange(11)[None]
BASE = "ab" * 32
ALL = 2 * 7  # layers x matrices


def train_a_little(model: Medv, seed: int = 1) -> None:
    """B off zero, as a step of training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".lora_A" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def adapted(settings: LoraSettings = SETTINGS, seed: int = 0) -> Medv:
    model = make_model()
    lora.add_lora(model, settings, seed)
    train_a_little(model)
    return model


def values(model: Medv) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items() if ".lora_" in n}


@pytest.fixture
def folder(tmp_path) -> Path:
    lora.save_adapter(adapted(), tmp_path / "adapter", BASE, SETTINGS)
    return tmp_path / "adapter"


def refuse(folder: Path, code: str, *words: str, base: str = BASE) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        lora.load_adapter(model, folder, base)
    assert raised.value.code == code, raised.value
    for word in words:
        assert word in str(raised.value), raised.value
    assert str(folder.parent) not in str(raised.value)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_fresh_adapter_changes_nothing_and_only_adapters_are_trained():
    model = make_model().requires_grad_(True)
    model.model.mm_projector.requires_grad_(False)
    model.model.vision_tower.requires_grad_(False)
    want = model.logits(IDS).detach()
    lora.add_lora(model, SETTINGS)
    assert torch.equal(model.logits(IDS), want)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * ALL
    assert all(".lora_" in name and name.startswith("model.layers.") for name in trained)
    assert not any("lora" in name for name in model.model.vision_tower.state_dict())


def test_projector_and_vision_tower_stay_as_trainable_as_they_were():
    model = make_model()
    model.model.mm_projector.requires_grad_(True)
    lora.add_lora(model, SETTINGS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    whole = {name for name in trained if ".lora_" not in name}
    assert whole == {
        f"model.mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }


def test_only_the_named_matrices_get_an_adapter():
    model = adapted(LoraSettings(rank=2, targets=("q_proj", "down_proj")))
    places = {name.partition(".lora_")[0] for name in values(model)}
    want = {f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.down_proj")}
    assert places == want


def test_the_first_values_follow_from_the_seed_alone():
    first = values(adapted(seed=5))
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = values(adapted(seed=5))
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's draws go on undisturbed
    assert all(torch.equal(again[name], first[name]) for name in first)
    other = values(adapted(seed=6))
    name = next(name for name in first if ".lora_A" in name)
    assert not torch.equal(other[name], first[name])
    assert first[name].abs().max() <= 1 / 32**0.5
    starts = {float(tensor.flatten()[0]) for key, tensor in first.items() if ".lora_A" in key}
    assert len(starts) == ALL  # no two matrices alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_and_unmerged_agree(folder, dtype):
    plain = make_model().to(dtype)
    beside, merged = make_model().to(dtype), make_model().to(dtype)
    lora.load_adapter(beside, folder, BASE, merge=False)
    lora.load_adapter(merged, folder, BASE, merge=True)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(type(m) is Linear for n, m in merged.named_modules() if n.endswith("q_proj")
               and "layers" in n and "vision" not in n)  # fmt: skip
    assert not any(p.requires_grad for p in [*beside.parameters(), *merged.parameters()])
    got, want = beside.logits(IDS), merged.logits(IDS)
    assert got.dtype == dtype
    off = (got - want).abs().max() / want.abs().max()
    assert off < (1e-5 if dtype == torch.float32 else 0.05)
    assert (plain.logits(IDS) - want).abs().max() > 0.1


def test_merging_what_was_trained_gives_the_published_keys(tmp_path):
    model = adapted()
    want = model.logits(IDS)
    lora.merge_lora(model)
    assert (model.logits(IDS) - want).abs().max() / want.abs().max() < 1e-5
    assert model.state_dict().keys() == make_model().state_dict().keys()
    weights.save(model, tmp_path / "merged")
    again = weights.load(tmp_path / "merged")
    assert torch.equal(again.logits(IDS), model.logits(IDS))


def test_weights_with_an_adapter_are_not_saved_as_if_plain(tmp_path):
    with pytest.raises(AssertionError, match="merge"):
        weights.save(adapted(), tmp_path / "out")


def test_a_saved_adapter_loads_to_the_bit(folder):
    model = make_model()
    lora.load_adapter(model, folder, BASE)
    want = values(adapted())
    got = values(model)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert torch.equal(model.logits(IDS), adapted().logits(IDS))
    again = folder.parent / "again"
    with pytest.raises(AssertionError, match="copy its folder"):
        lora.save_adapter(model, again, BASE, SETTINGS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    lora.save_adapter(model, again, BASE, SETTINGS)
    assert (again / lora.TENSORS).read_bytes() == (folder / lora.TENSORS).read_bytes()
    assert lora.adapter_digest(again) == lora.adapter_digest(folder)


def test_a_projector_that_was_trained_too_comes_along(tmp_path):
    model = make_model()
    model.model.mm_projector.requires_grad_(True)
    lora.add_lora(model, SETTINGS)
    train_a_little(model)
    lora.save_adapter(model, tmp_path / "a", BASE, SETTINGS)
    for merge in (False, True):
        again = make_model()
        lora.load_adapter(again, tmp_path / "a", BASE, merge)
        for name, tensor in model.model.mm_projector.state_dict().items():
            assert torch.equal(again.model.mm_projector.state_dict()[name], tensor)


def test_gathered_tensors_are_saved_in_place_of_the_model_s_own(tmp_path, folder):
    model = adapted()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.zero_()
    lora.save_adapter(model, tmp_path / "gathered", BASE, SETTINGS, state)
    assert (tmp_path / "gathered" / lora.TENSORS).read_bytes() == (
        folder / lora.TENSORS
    ).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_peft_itself_reads_the_folder(tmp_path):
    import peft

    model = make_model()
    model.model.mm_projector.requires_grad_(True)
    lora.add_lora(model, SETTINGS)
    train_a_little(model)
    lora.save_adapter(model, tmp_path / "a", BASE, SETTINGS)
    theirs = peft.PeftModel.from_pretrained(make_model(), str(tmp_path / "a"))
    assert torch.equal(theirs.get_base_model().logits(IDS), model.logits(IDS))
    tiles = torch.randint(0, 255, (1, 30, 30, 3), dtype=torch.uint8)
    assert torch.equal(theirs.get_base_model().image_features(tiles), model.image_features(tiles))


def test_packed_and_unpacked_weights_agree(folder):
    plain, packed = make_model(), make_model()
    lora.load_adapter(plain, folder, BASE)
    lora.load_adapter(packed, folder, BASE)
    packed.pack(10**9)
    towers = [m for m in packed.modules() if isinstance(m, Linear)]
    with torch.no_grad():
        want, got = plain.logits(IDS), packed.logits(IDS)
    assert len(towers) == ALL
    assert (got - want).abs().max() / want.abs().max() < 1e-5
    lora.merge_lora(packed)  # a packed copy of the old weights must not stay
    with torch.no_grad():
        assert (packed.logits(IDS) - want).abs().max() / want.abs().max() < 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_with_recomputed_activations(reentrant):
    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        model = adapted().train()
        if recompute:
            for layer in model.model.layers:
                inner = layer.forward
                layer.forward = lambda *a, f=inner: checkpoint(f, *a, use_reentrant=reentrant)
        embeds = model.embed(IDS).requires_grad_(True)
        (model.hidden(embeds) @ model.head.T).square().mean().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    want, got = gradients(False), gradients(True)
    assert all(float(grad.abs().sum()) > 0 for grad in want.values())
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_dropout_works_in_training_only(tmp_path):
    model = adapted(LoraSettings(rank=4, dropout=0.5))
    want = model.logits(IDS)
    assert torch.equal(model.logits(IDS), want)
    model.train()
    assert not torch.equal(model.logits(IDS), want)


def test_another_base_is_refused(folder):
    refuse(folder, "E1411", "adapter 'adapter'", "abababababab", "cdcdcdcdcdcd", base="cd" * 32)
    with pytest.raises(CheckpointError, match="E1411"):
        lora.check_base(folder, "cd" * 32)
    lora.check_base(folder, BASE)


def reseal(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **note: object) -> None:
    """Edit an adapter and keep its checksums right."""
    if tensors is not None:
        save_file(tensors, folder / lora.TENSORS)
    found = json.loads((folder / lora.NOTE).read_text())
    found["files"] = {n: lora.file_sha256(folder / n) for n in (lora.CONFIG, lora.TENSORS)}
    (folder / lora.NOTE).write_text(json.dumps(found | note))


def test_tensors_that_do_not_fit(folder):
    tensors = load_file(folder / lora.TENSORS)
    first = next(iter(tensors))
    short = first.removeprefix("base_model.model.")
    reseal(folder, {name: t for name, t in tensors.items() if name != first})
    refuse(folder, "E1402", short)
    reseal(folder, tensors | {"base_model.model.lm_head.weight": torch.ones(61, 32)})
    refuse(folder, "E1403", "lm_head.weight")
    reseal(folder, tensors | {first: torch.ones(3, 32)})
    refuse(folder, "E1404", short, "[3, 32]", "rank 4")
    reseal(folder, tensors | {first: torch.full_like(tensors[first], float("inf"))})
    refuse(folder, "E1405", short)


def test_settings_that_do_not_fit(folder):
    settings = SETTINGS.model_dump(mode="json")
    reseal(folder, settings=settings | {"alpha": 16.0})
    refuse(folder, "E1407", "lora_alpha")
    reseal(folder, settings=settings | {"dropout": 0.1})
    refuse(folder, "E1407", "lora_dropout")
    reseal(folder, settings=settings | {"rank": 0})
    refuse(folder, "E1410", "rank")
    reseal(folder, settings=settings | {"more": 0})
    refuse(folder, "E1410", "more")
    reseal(folder, settings=None)
    refuse(folder, "E1410")


@pytest.mark.parametrize("name", [lora.NOTE, lora.CONFIG, lora.TENSORS])
def test_missing_files(folder, name):
    (folder / name).unlink()
    refuse(folder, "E1401", name)


def test_flipped_bits_are_found_or_harmless(folder):
    want, logits = values(adapted()), adapted().logits(IDS)
    draw = random.Random(0)
    for name in (lora.TENSORS, lora.CONFIG, lora.NOTE):
        data = (folder / name).read_bytes()
        for _ in range(30):
            place = draw.randrange(len(data))
            bad = data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
            (folder / name).write_bytes(bad)
            model = make_model()
            try:
                lora.load_adapter(model, folder, BASE)
            except CheckpointError:
                continue
            assert name == lora.NOTE  # of which versions say nothing about answers
            assert all(torch.equal(values(model)[key], want[key]) for key in want)
            assert torch.equal(model.logits(IDS), logits)
        (folder / name).write_bytes(data)


def test_an_adapter_is_not_overwritten_nor_saved_when_not_finite(folder, tmp_path):
    with pytest.raises(SettingsError, match="already holds an adapter"):
        lora.save_adapter(adapted(), folder, BASE, SETTINGS)
    model = adapted()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="E1405"):
        lora.save_adapter(model, tmp_path / "nan", BASE, SETTINGS)
    assert not (tmp_path / "nan").exists()


def test_merging_a_model_without_adapters_changes_nothing():
    model = make_model()
    want = model.state_dict()
    lora.merge_lora(model)
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())


def test_without_peft_the_message_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def absent(name: str, *rest: object, **more: object) -> object:
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    for call in (
        lambda: lora.add_lora(make_model(), SETTINGS),
        lambda: lora.load_adapter(make_model(), folder, BASE),
    ):
        with pytest.raises(SettingsError, match=r"E1003.*pip install 'medv-ray\[train\]'"):
            call()
