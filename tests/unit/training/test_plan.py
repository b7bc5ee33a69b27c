import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import SettingsError
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.llada import LanguageTower
from medv_ray.model.medv import Medv
from medv_ray.model.vision import VisionTower
from medv_ray.settings import build
from medv_ray.training.flops import adapter_parameters, count_parameters, trained_parameters
from medv_ray.training.memory import activation_bytes
from medv_ray.training.plan import Plan, PlanSettings, plan, plan_settings
from medv_ray.training.plan_text import table_plans
from medv_ray.training.remedies import remedies
from medv_ray.training.stages import RECIPES, LoraSettings

runner = CliRunner()
MEDV = ModelConfig()
TINY = ModelConfig(
    language=LanguageConfig(
        vocab_size=160, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ),
    vision=VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=64, patch_size=16,
    ),
)  # fmt: skip


def planned(stage: str = "sd_sft_pathvqa", *sets: str, model: ModelConfig = MEDV) -> Plan:
    return plan(plan_settings(stage, {}, list(sets)), model)


# stage, tiles: steps, TFLOP a row, seconds a step, hours, hours with the head on masked rows;
# arithmetic on 4 x A100 80 GB at 312 TFLOP/s x 45 %, rows and epochs of LLaDA-MedV's Table 1
TABLE = [
    (37_500, 37.7, 2.15, 22.4, 21.4),
    (30_000, 66.7, 0.95, 7.9, 7.6),
    (30_000, 272, 3.88, 32.3, 30.9),
    (449, 47.8, 0.68, 0.09, 0.08),
    (6_148, 47.8, 0.68, 1.16, 1.11),
    (6_148, 250, 3.56, 6.1, 5.8),
    (17_285, 47.8, 0.68, 3.3, 3.1),
    (17_285, 250, 3.56, 17.1, 16.3),
]


def test_table_of_the_papers_recipes() -> None:
    plans = table_plans(MEDV, {}, [])
    for each, (steps, tflop, step_s, hours, masked_hours) in zip(plans, TABLE, strict=True):
        full, masked = each.costs["all"], each.costs["masked"]
        assert each.steps == steps
        assert full.flops.total / 1e12 == pytest.approx(tflop, abs=0.5 if tflop > 99 else 0.1)
        assert full.step_s == pytest.approx(step_s, abs=0.006)
        small = 0.05 if hours > 2 else 0.005
        assert full.hours == pytest.approx(hours, abs=small)
        assert masked.hours == pytest.approx(masked_hours, abs=small + 0.001)
        assert each.fits


# of LLaDA-V's scripts: rows a step, longest row, learning rate, the vision tower's
LLADA_V = {
    "llada_v_pretrain": (64, 8192, 1e-3, None),
    "llada_v_sft": (64, 8192, 1e-5, 2e-6),
    "llada_v_si_10m": (256, 8192, 1e-5, 2e-6),
    "llada_v_ov_2m": (256, 16384, 1e-5, 2e-6),
    "llada_v_vw": (256, 8192, 1e-5, 2e-6),
    "llada_v_mix_ov_vw": (256, 16384, 1e-5, 2e-6),
    "llada_v_finetune": (64, 8192, 1e-5, 2e-6),
}


def test_recipes_of_llada_v() -> None:
    stages = {name: stage for name, stage in RECIPES.items() if name.startswith("llada_v")}
    assert {
        n: (s.batch_size, s.max_length, s.lr, s.vision_lr) for n, s in stages.items()
    } == LLADA_V
    assert all(stage.name == name for name, stage in stages.items())
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    assert not [name for name in RECIPES if f"`{name}`" not in text]


@pytest.mark.parametrize(("gpus", "states_gb"), [(1, 129.4), (4, 32.4), (8, 16.2)])
def test_states_of_zero_3(gpus: int, states_gb: float) -> None:
    each = planned("md_sft", f"hardware.gpus={gpus}")
    assert each.memory.states / 1e9 == pytest.approx(states_gb, abs=0.06)


def test_logits_and_activations_of_the_reference_path() -> None:
    each = planned("alignment", "head=all")
    assert each.memory.logits / 1e9 == pytest.approx(9.9, abs=0.05)  # 8 rows of 819
    kept = planned("sd_sft_pathvqa").memory.activations
    a_layer = 779 * (24 * 4096 + 8 * 12288)
    projector = 729 * (2 * 1152 + 4 * 4096)
    assert (kept - a_layer - projector) / 779 == pytest.approx(0.262e6, rel=0.001)


@pytest.mark.parametrize("model", [MEDV, TINY, replace(TINY, vision=None)])
def test_parameters_are_those_of_the_model(model: ModelConfig) -> None:
    with torch.device("meta"):
        built = Medv(model)
    assert count_parameters(model).total == sum(p.numel() for p in built.parameters())


def test_trained_parameters() -> None:
    count, lora = count_parameters(TINY), LoraSettings(rank=4, targets=("q_proj", "k_proj"))
    assert trained_parameters(TINY, RECIPES["alignment"]) == count.projector
    assert trained_parameters(TINY, RECIPES["llada_v_sft"]) == count.total - 2 * 32
    assert adapter_parameters(TINY.language, lora) == 2 * 4 * (64 + 64 + 64 + 32)
    stage = RECIPES["md_sft"].model_copy(update={"lora": lora})
    adapters = adapter_parameters(TINY.language, lora)
    assert trained_parameters(TINY, stage) == count.projector + adapters


def saved_bytes(tower: LanguageTower | VisionTower, given: Tensor) -> int:
    """What autograd keeps for the backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in tower.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tower(given)
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_are_what_autograd_keeps() -> None:
    language = replace(TINY.language, hidden_size=256, intermediate_size=512)
    stage = RECIPES["md_sft"].model_copy(update={"gradient_checkpointing": False})
    counted, said = [], []
    for depth in (1, 3):
        model = ModelConfig(language=replace(language, num_hidden_layers=depth), vision=None)
        embeds = torch.randn(1, 32, 256, dtype=torch.bfloat16, requires_grad=True)
        counted.append(saved_bytes(LanguageTower(model.language).bfloat16(), embeds))
        said.append(activation_bytes(model, stage, 32, 0))
    assert said[1] - said[0] == pytest.approx(counted[1] - counted[0], rel=0.02)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_activations_of_a_vision_tower_that_learns(checkpointing: bool) -> None:
    vision = replace(TINY.vision, hidden_size=128, intermediate_size=384)
    changes = {"gradient_checkpointing": checkpointing}
    stage = RECIPES["llada_v_sft"].model_copy(update=changes)
    counted, said = [], []
    for depth in (1, 3):
        model = replace(TINY, vision=replace(vision, num_hidden_layers=depth))
        tower = VisionTower(model.vision).bfloat16()
        tower.gradient_checkpointing = checkpointing
        counted.append(saved_bytes(tower, torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)))
        said.append(activation_bytes(model, stage, 32, 2))
    assert counted[1] - counted[0] == pytest.approx(said[1] - said[0], rel=0.02)


def test_a_frozen_vision_tower_computes_nothing_again() -> None:
    tower = VisionTower(TINY.vision).requires_grad_(False)
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    plain = saved_bytes(tower, pixels)
    tower.gradient_checkpointing = True
    assert saved_bytes(tower, pixels) == plain


def test_plain_engine_holds_float32_weights() -> None:
    said = planned("md_sft", "shard.engine=plain", "hardware.gpus=1").memory
    count, trained = count_parameters(MEDV), trained_parameters(MEDV, RECIPES["md_sft"])
    assert said.states == 4 * count.total + 12 * trained


def test_what_does_not_fit_names_settings() -> None:
    settings = plan_settings("sd_sft_pathvqa", {"hardware": {"gpus": 1}}, [])
    assert not plan(settings, MEDV).fits
    found = [remedy.assignments for remedy in remedies(settings, MEDV)]
    assert ("shard.offload_optimizer=true",) in found
    assert ("stage.lora.rank=16",) in found
    assert ("hardware.gpus=2",) in found
    for remedy in remedies(settings, MEDV):
        values = list(remedy.assignments)
        assert plan(plan_settings("sd_sft_pathvqa", {"hardware": {"gpus": 1}}, values), MEDV).fits


def test_mild_changes_come_first() -> None:
    sets = ["head=all", "stage.gradient_checkpointing=false"]
    settings = plan_settings("alignment", {"hardware": {"gpu": "a100-40gb"}}, sets)
    assert [remedy.assignments for remedy in remedies(settings, MEDV)] == [
        ("stage.gradient_checkpointing=true",),
        ("stage.micro_batch_size=1",),
        ("hardware.gpus=8", "stage.micro_batch_size=4"),
    ]


def test_changes_that_only_help_together() -> None:
    sets = ["rows.text_tokens=4000", "stage.gradient_checkpointing=false"]
    settings = plan_settings("md_sft", {"hardware": {"gpu": "l4-24gb"}}, sets)
    assert [remedy.assignments for remedy in remedies(settings, MEDV)] == [
        ("stage.gradient_checkpointing=true", "shard.offload_optimizer=true")
    ]


def test_offload_moves_states_to_the_host() -> None:
    here = planned("md_sft").memory
    there = planned("md_sft", "shard.offload_optimizer=true").memory
    trained = trained_parameters(MEDV, RECIPES["md_sft"])
    assert there.states == here.weights
    assert there.host == 16 * trained
    both = planned("md_sft", "shard.offload_optimizer=true", "shard.offload_params=true").memory
    assert both.states == 0
    assert both.host == there.host + 2 * count_parameters(MEDV).total


@pytest.mark.parametrize(
    ("stage", "sets", "word"),
    [
        ("nothing", [], "--stage"),
        ("llada_v_sft", [], "--rows"),
        ("md_sft", ["hardware.gpus=3"], "no micro-batch is"),
        ("alignment", ["hardware.gpus=8"], "stage.micro_batch_size=4 would be"),
        ("md_sft", ["shard.engine=plain"], "hardware.gpus must be 1"),
        ("md_sft", ["shard.dtype=float32"], "bfloat16"),
        ("md_sft", ["rows.text_tokens=9000"], "stage.max_length"),
        ("md_sft", ["rows.num_rows=1"], "less than one batch"),
        ("md_sft", ["hardware.gpu=abacus"], "hardware.gpu"),
        ("md_sft", ["stage.learning_rate=1"], "learning_rate"),
        ("md_sft", ["stage.lr=fast"], "stage.lr"),
    ],
)
def test_bad_settings_are_named(stage: str, sets: list[str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        plan(plan_settings(stage, {}, sets), MEDV)


def test_settings_are_one_schema() -> None:
    settings = plan_settings("md_sft", {}, [])
    again = build(PlanSettings, settings.model_dump(mode="json"))
    assert again == settings


def test_command_prints_the_table() -> None:
    result = runner.invoke(app, ["plan", "train", "--table"])
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if "alignment" in line)
    for figure in ("37,500", "37.7", "2.15", "22.4", "21.4"):
        assert figure in line


def test_command_that_does_not_fit() -> None:
    result = runner.invoke(app, ["plan", "train", "--gpus", "1", "--json"])
    assert result.exit_code == 1
    assert "does not fit: 136.1 GB on a GPU of 80 GB" in result.output
    assert "--set shard.offload_optimizer=true" in result.output


def test_command_counts_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pq.write_table(pa.table({"id": list(range(40))}), tmp_path / "train" / "0.parquet")
    pq.write_table(pa.table({"id": list(range(9))}), tmp_path / "test.parquet")
    arguments = ["plan", "train", "--stage", "llada_v_sft", "--data", str(tmp_path), "--json"]
    sets = ["--set", "stage.batch_size=8", "--set", "rows.text_tokens=64"]
    result = runner.invoke(app, [*arguments, *sets])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["steps"] == 5
    empty = runner.invoke(app, ["plan", "train", "--data", str(tmp_path / "none")])
    assert empty.exit_code == 2
    assert str(tmp_path) not in empty.output
    both = runner.invoke(app, [*arguments, "--rows", "4"])
    assert both.exit_code == 2


def test_command_reads_a_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    result = runner.invoke(app, ["plan", "train", "--model", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["parameters"] == count_parameters(TINY).total
    assert said["row_tokens"] == 16 + 50
