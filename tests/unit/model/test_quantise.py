"""Weight-only int8 and int4: near the weights they were made of, refused where they cannot be."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from medv_kernels.linear import Int8Weight
from medv_ray.errors import SettingsError
from medv_ray.model.llada import Linear
from medv_ray.model.quantise import check_groups, quantise, quantise_matrix
from medv_ray.settings import TOY, ModelSettings, build
from tests.unit.model.conftest import make_model


def needs_torchao(test: Any) -> Any:
    """torchao takes some seconds to import."""
    without = not find_spec("torchao")
    return pytest.mark.slow(pytest.mark.skipif(without, reason="medv-ray[quant]")(test))


def matrix(dtype: torch.dtype = torch.bfloat16) -> Linear:
    made = Linear(128, 64).requires_grad_(False)
    made.weight.copy_(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.1)
    return made.to(dtype)


@needs_torchao
@pytest.mark.parametrize(
    ("how", "dtype", "bound"),
    [
        ("int8", torch.bfloat16, 0.02),
        ("int8", torch.float32, 0.01),
        ("int8", torch.float16, 0.01),
        ("int4", torch.bfloat16, 0.15),
    ],
)
def test_a_product_is_near_the_whole_weights(how: str, dtype: torch.dtype, bound: float) -> None:
    made = matrix(dtype)
    rows = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = functional.linear(rows, made.weight).float()
    quantise_matrix(made, how, 32, "cpu")
    with torch.inference_mode():
        got = made(rows)
    assert (got.dtype, got.shape) == (dtype, (2, 3, 64))
    off = float((got.float() - want).norm() / want.norm())
    assert 0 < off < bound


@needs_torchao
def test_int8_in_bfloat16_takes_torchs_own_kernel() -> None:
    made = matrix()
    quantise_matrix(made, "int8", 128, "cpu")
    assert isinstance(made.packed, Int8Weight)
    rows = torch.randn(5, 128).to(torch.bfloat16)
    with torch.inference_mode():
        own = functional.linear(rows, made.weight)  # torchao's way
        assert torch.allclose(made(rows).float(), own.float(), atol=0.05)


def test_an_int8_weight_does_what_the_mlp_asks_of_one() -> None:
    """silu and the product of both gates, which an MLP leaves to what is packed."""
    values = torch.randint(-127, 128, (6, 32), dtype=torch.int8)
    weight = Int8Weight(values, torch.full((6,), 0.01, dtype=torch.bfloat16))
    rows = torch.randn(4, 32).to(torch.bfloat16)
    want = functional.linear(rows.float(), values.float() * 0.01)
    gate = weight.product(rows, silu=True)
    assert torch.allclose(gate.float(), functional.silu(want), atol=0.1, rtol=0.02)
    assert torch.allclose(
        weight.product(rows, times=gate).float(), want * gate.float(), atol=0.2, rtol=0.03
    )


@needs_torchao
def test_the_whole_model_answers_in_less_memory() -> None:
    from medv_ray.engine.predictor import load_model

    whole = load_model(ModelSettings(path=str(TOY), dtype="bfloat16", device="cpu"))[0]
    for how in ("int8", "int4"):
        asked = {"path": str(TOY), "dtype": "bfloat16", "device": "cpu", "quantisation": how}
        made = load_model(build(ModelSettings, {**asked, "group_size": 32}))[0]
        assert torch.equal(made.head, whole.head)
        ids = torch.arange(1, 20)[None]
        with torch.inference_mode():
            got, want = made.logits(ids).float(), whole.logits(ids).float()
        off = float((got - want).norm() / want.norm())
        assert 0 < off < (0.1 if how == "int8" else 0.6)
        held = [one for one in made.modules() if isinstance(one, Linear)]
        assert all(type(one.weight.data) is not torch.Tensor for one in held)


def test_group_sizes_that_do_not_divide() -> None:
    with pytest.raises(
        SettingsError, match=r"E1001: model.group_size=128 .* 96 inputs of x; .*=32"
    ):
        check_groups({"x": 96, "y": 64}, 128)
    with pytest.raises(SettingsError, match="no other does; use int8"):
        check_groups({"x": 40}, 32)
    check_groups({"x": 4096, "y": 12288}, 128)
    with pytest.raises(SettingsError, match="E1001: model.group_size=64"):
        quantise(make_model(), "int4", 64, "cpu")  # before torchao is looked for


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantisation": "int5"}, "'none', 'int8' or 'int4'"),
        ({"quantisation": "INT8"}, "'none', 'int8' or 'int4'"),
        ({"quantisation": 8}, "'none', 'int8' or 'int4'"),
        ({"quantisation": "int4"}, "model.dtype=bfloat16"),
        ({"quantisation": "int4", "dtype": "float16"}, "model.dtype=bfloat16"),
        ({"quantisation": "int4", "dtype": "bfloat16", "group_size": 48}, "32, 64 or 128"),
        ({"quantization": "int8"}, "quantization"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match="E1001") as raised:
        build(ModelSettings, {"path": "m", **given})
    assert words in str(raised.value)


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    from medv_ray.on_ray.options import quantised_as

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setattr("medv_ray.on_ray.options.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"E1003: .*medv-ray\[quant\]"):
        quantise_matrix(matrix(), "int8", 128, "cpu")
    with pytest.raises(SettingsError, match=r"E1003: .*medv-ray\[quant\]"):
        quantised_as(ModelSettings(path="m", quantisation="int8"))


@needs_torchao
def test_a_missing_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise NotImplementedError("no such kernel at /a/path")

    monkeypatch.setattr("medv_kernels.private_torch.int8_product", gone)
    with pytest.raises(
        SettingsError, match="E1414: model.quantisation=int8 does not run"
    ) as raised:
        quantise_matrix(matrix(), "int8", 128, "cpu")
    assert "/a/path" not in str(raised.value)


@needs_torchao
def test_the_manifest_says_it_and_a_resume_compares_it() -> None:
    from medv_ray.on_ray.options import ScoreSettings

    def identity(**model: object) -> dict[str, object]:
        asked = {"archive": {"archive": "a"}, "out": "o", "model": {"path": "m", **model}}
        found: dict[str, object] = build(ScoreSettings, asked).identity("0" * 64)
        return found

    plain = identity(dtype="bfloat16")
    int8, int4 = (identity(dtype="bfloat16", quantisation=how) for how in ("int8", "int4"))
    assert "quantisation" not in plain["model"]  # runs from before are still the same
    assert int8["model"]["quantisation"] == "int8"
    assert int4["model"]["group_size"] == 128
    assert int8["code"]["torchao"]
    assert plain["model"]["sha256"] == int8["model"]["sha256"]


def test_training_takes_no_quantised_model() -> None:
    from medv_ray.training.job import TrainSettings
    from medv_ray.training.stages import RECIPES

    stage = next(iter(RECIPES.values())).model_dump(mode="json")
    asked = {"data": "d", "out": "o", "stage": stage}
    with pytest.raises(SettingsError, match="E1001"):
        build(TrainSettings, {**asked, "model": {"path": "m", "quantisation": "int8"}})


@needs_torchao
@pytest.mark.parametrize("adapter_first", [True, False], ids=["of a job", "of an endpoint"])
def test_an_adapter_stays_beside_quantised_weights(adapter_first: bool, tmp_path: Path) -> None:
    from medv_ray.model import lora
    from medv_ray.settings import LoraSettings

    whole = make_model()
    lora.add_lora(whole, LoraSettings(rank=2))
    for name, parameter in whole.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.3)
    lora.save_adapter(whole, tmp_path, "0" * 64, LoraSettings(rank=2))
    made = make_model()
    if adapter_first:
        lora.load_adapter(made, tmp_path, "0" * 64)
        quantise(made, "int8", 32, "cpu")
    else:
        quantise(made, "int8", 32, "cpu")
        made = lora.sharing_copy(made)
        lora.load_adapter(made, tmp_path, "0" * 64)
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        got, want, plain = (m.logits(ids) for m in (made, whole.eval(), make_model()))
    assert (got - want).norm() < 0.1 * (want - plain).norm()
