"""A plan for a person (tables) and for a program (JSON)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from medv_ray.model.config import ModelConfig
from medv_ray.training.gpus import GPUS
from medv_ray.training.plan import ASSUMED_ROWS, Head, Plan, plan, plan_settings
from medv_ray.training.remedies import Remedy

# LLaDA-MedV's stages; where its code's comments call anyres the default, with 5 tiles too
TABLE = (
    ("alignment", 1),
    ("md_sft", 1),
    ("md_sft", 5),
    ("sd_sft_vqa_rad", 1),
    ("sd_sft_slake", 1),
    ("sd_sft_slake", 5),
    ("sd_sft_pathvqa", 1),
    ("sd_sft_pathvqa", 5),
)
STATES_GPUS = (1, 4, 8)


def table_plans(model: ModelConfig, hardware: dict[str, Any], sets: list[str]) -> list[Plan]:
    """The plans of all of LLaDA-MedV's recipes. Raises SettingsError as `plan` does."""
    return [
        plan(plan_settings(stage, {"rows": {"tiles": tiles}, "hardware": hardware}, sets), model)
        for stage, tiles in TABLE
    ]


def table_view(plans: list[Plan]) -> RenderableType:
    """One line a recipe; hours with the head on all rows, as LLaDA-V has it, and on masked ones."""
    first = plans[0]
    hardware = first.settings.hardware
    title = (
        f"{hardware.gpus} x {first.gpu.label}, {first.gpu.peak_tflops:g} TFLOP/s x "
        f"{hardware.utilisation:.0%} counting recomputation"
    )
    largest = max(plans, key=lambda each: each.trained)
    caption = (
        f"ZeRO-3 states of a GPU: alignment {states_line(first)}; finetuning {states_line(largest)}"
    )
    table = Table(title=title, caption=caption)
    table.add_column("stage")
    for name in (
        "rows x epochs", "batch", "steps", "tokens a row", "TFLOP a row", "s a step", "hours",
        "hours, masked head", "GB a GPU",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for each in plans:
        table.add_row(*table_cells(each))
    return table


def table_cells(each: Plan) -> list[str]:
    """The cells of one line of the table."""
    stage, rows = each.settings.stage, each.settings.rows
    full, masked = each.costs["all"], each.costs["masked"]
    tiles = f", {rows.tiles} tiles" if rows.tiles > 1 else ""
    image = each.row_tokens - rows.text_tokens
    return [
        f"{stage.name}{tiles}",
        f"{rows.num_rows:,} x {stage.epochs:g}",
        str(stage.batch_size),
        f"{each.steps:,}",
        f"{image:,} + {rows.text_tokens}",
        _digits(full.flops.total / 1e12),
        f"{full.step_s:.2f}",
        _hours(full.hours),
        _hours(masked.hours),
        f"{each.memory.peak / 1e9:.1f}" + ("" if each.fits else ", does not fit"),
    ]


def states_line(each: Plan) -> str:
    """What ZeRO-3 splits, on 1, 4 and 8 GPUs."""
    whole = each.memory.states * each.settings.hardware.gpus
    return ", ".join(f"{whole / n / 1e9:.1f} GB on {n}" for n in STATES_GPUS)


def plan_view(each: Plan) -> RenderableType:
    """One stage: its size, its time by kind of GPU, the memory of a GPU."""
    return Group(_size_table(each), _time_table(each), _memory_table(each))


def _size_table(each: Plan) -> Table:
    stage, rows = each.settings.stage, each.settings.rows
    hardware = each.settings.hardware
    micro = stage.batch_size // (stage.micro_batch_size * hardware.gpus)
    table = Table(title=f"{stage.name} on {hardware.gpus} x {each.gpu.label}", show_header=False)
    table.add_row(
        "parameters", f"{each.parameters / 1e9:.3f} B, trained {each.trained / 1e9:.3f} B"
    )
    table.add_row("steps", f"{each.steps:,} of {stage.batch_size} rows ({micro} micro-steps)")
    table.add_row("rows", f"{rows.num_rows:,} x {stage.epochs:g} epochs")
    assumed = ", assumed" if rows == ASSUMED_ROWS.get(stage.name) else ""
    image = each.row_tokens - rows.text_tokens
    tiles = f"{rows.tiles} tile" + "s" * (rows.tiles > 1)
    tokens = f"{image:,} image ({tiles}) + {rows.text_tokens:,} text{assumed}"
    table.add_row("tokens a row", tokens)
    table.add_row("tokens", f"{each.tokens:,}")
    heads: tuple[Head, ...] = ("all", "masked")
    for head in heads:
        cost = each.costs[head]
        table.add_row(
            f"head on {head} rows",
            f"{_digits(cost.flops.total / 1e12)} TFLOP a row, {cost.step_s:.2f} s a step, "
            f"{_hours(cost.hours)} h",
        )
    table.add_row("traffic", f"{each.traffic_bytes / 1e9:.0f} GB a GPU and micro-step")
    return table


def _time_table(each: Plan) -> Table:
    hardware = each.settings.hardware
    title = f"{hardware.gpus} GPUs at {hardware.utilisation:.0%}, head on {each.settings.head} rows"
    table = Table("GPU", "bf16 TFLOP/s", "GB", "hours", "fits", title=title)
    for name, gpu in GPUS.items():
        fits = "yes" if each.fits_by_gpu[name] else "no"
        table.add_row(
            gpu.label, f"{gpu.peak_tflops:g}", f"{gpu.memory_gb:g}",
            _hours(each.hours_by_gpu[name]), fits,
        )  # fmt: skip
    return table


def _memory_table(each: Plan) -> Table:
    memory = each.memory
    table = Table("memory of a GPU", "GB", title=f"engine: {each.settings.shard.engine}")
    for name, value in asdict(memory).items():
        if name != "host":
            table.add_row(name, f"{value / 1e9:.2f}")
    table.add_row("peak", f"{memory.peak / 1e9:.2f} of {each.gpu.memory_gb:g}")
    if memory.host:
        table.add_row("host, all machines", f"{memory.host / 1e9:.1f}")
    return table


def does_not_fit(each: Plan, found: list[Remedy]) -> str:
    """The line that says so, and what to change."""
    memory, stage = each.memory, each.settings.stage
    ways = "; or ".join(str(remedy) for remedy in found) or "a larger GPU or a smaller model"
    return (
        f"{stage.name} does not fit: {memory.peak / 1e9:.1f} GB on a GPU of "
        f"{each.gpu.memory_gb:g} GB (states {memory.states / 1e9:.1f}, activations "
        f"{memory.activations / 1e9:.1f}, logits {memory.logits / 1e9:.1f}). Change: {ways}."
    )


def plan_json(each: Plan, found: list[Remedy]) -> dict[str, Any]:
    """All figures, in bytes, seconds and hours."""
    hardware = each.settings.hardware
    return {
        "stage": each.settings.stage.name,
        "gpus": hardware.gpus,
        "gpu": hardware.gpu,
        "rows": each.settings.rows.model_dump(mode="json"),
        "steps": each.steps,
        "row_tokens": each.row_tokens,
        "tokens": each.tokens,
        "parameters": each.parameters,
        "trained": each.trained,
        "head": each.settings.head,
        "costs": {
            head: {
                "row_tflop": cost.flops.total / 1e12,
                "step_s": cost.step_s,
                "hours": cost.hours,
            }
            for head, cost in each.costs.items()
        },
        "hours_by_gpu": each.hours_by_gpu,
        "fits_by_gpu": each.fits_by_gpu,
        "memory_bytes": {
            **asdict(each.memory), "states": each.memory.states, "peak": each.memory.peak,
        },
        "traffic_bytes": each.traffic_bytes,
        "fits": each.fits,
        "change": [list(remedy.assignments) for remedy in found],
    }  # fmt: skip


def _digits(value: float) -> str:
    """Three digits, as in a paper's table."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _hours(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"
