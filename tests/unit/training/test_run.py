"""A stage in one process: what is computed, and that cuts, damage and NaN cost nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medv_ray.data.dataset import image_path
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.errors import CheckpointError, DataError, MedvError, RunError, SettingsError
from medv_ray.model import weights
from medv_ray.settings import AnswerSettings, ModelSettings, SamplerSettings, build
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.engine import Engine
from medv_ray.training.events import step_flops
from medv_ray.training.export import export
from medv_ray.training.flops import RowShape, row_flops
from medv_ray.training.job import TrainSettings, WorkerSettings
from medv_ray.training.loop import Report, Tally, Total, check_batch, not_finite
from medv_ray.training.meters import DEFAULT_BINS
from medv_ray.training.objective import Objective, Outcome, Sample
from medv_ray.training.order import Order, positions
from medv_ray.training.remedies import memory_errors
from medv_ray.training.samples import Samples
from medv_ray.training.stages import ShardSettings, StageSettings
from medv_ray.training.watch import EVENTS
from tests.unit.training import tiny

pytestmark = pytest.mark.integration


def job(home: Path, tmp_path: Path, **stage: object) -> TrainSettings:
    return tiny.settings(home, **stage).model_copy(update={"out": str(tmp_path / "out")})


def train(settings: TrainSettings, steps: int | None = None) -> list[Report]:
    identity = check(settings)
    run.begin(settings, identity)
    return list(islice(run.train_worker(settings, identity), steps))


def state(settings: TrainSettings) -> dict[str, bytes]:
    """Bytes of the last checkpoint's slices."""
    folder = sorted((Path(settings.out) / "checkpoints").glob("step-*"))[-1]
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def prepared(settings: TrainSettings) -> tuple[Objective, Samples]:
    tokenizer = load_tokenizer(settings.model)
    model = run.build_model(settings, "cpu")
    dataset = run.Dataset.open(settings.data)
    samples = Samples(dataset, tokenizer, settings.stage, model, 10**6)
    return Objective(model, SpecialIds.of(tokenizer).mask), samples


def test_the_loss_is_the_formulas_and_rows_do_not_see_each_other(
    home: Path, tmp_path: Path
) -> None:
    objective, samples = prepared(job(home, tmp_path))
    rows = [samples(position) for position in range(19)]
    samples.close()
    assert {len(row.pictures) for row in rows} == {0, 1}
    with torch.no_grad():
        together = Outcome(*objective(rows)).by_row
        alone = torch.stack([Outcome(*objective([row])).by_row[0] for row in rows])
        formula = torch.stack(
            [tiny.plain_loss(objective.model, objective.mask_id, row) for row in rows]
        )
    torch.testing.assert_close(alone, formula)
    torch.testing.assert_close(together, formula)


def test_a_row_without_a_picture_reaches_the_projector(home: Path, tmp_path: Path) -> None:
    objective, samples = prepared(job(home, tmp_path))
    text = next(s for s in map(samples, range(19)) if not s.pictures)
    samples.close()
    Outcome(*objective([text])).loss.backward()
    grads = {n: p.grad for n, p in objective.model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    assert all(not bool(grad.any()) for name, grad in grads.items() if "mm_projector" in name)


def test_checkpointing_changes_no_gradient_and_keeps_less(home: Path, tmp_path: Path) -> None:
    kept, grads = [], []
    for again in (False, True):
        changes = {"trainable": ("projector", "language", "vision")}
        objective, samples = prepared(job(home, tmp_path, gradient_checkpointing=again, **changes))
        rows = [samples(position) for position in range(4)]
        samples.close()
        tower = objective.model.model.get_submodule("vision_tower.vision_tower.vision_model")
        seen: list[int] = []

        def pack(tensor: torch.Tensor, seen: list[int] = seen) -> torch.Tensor:
            seen.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tower(torch.zeros(2, 3, 32, 32))
        Outcome(*objective(rows)).loss.backward()
        named = objective.model.named_parameters()
        kept.append(sum(seen))
        grads.append({name: p.grad for name, p in named if p.grad is not None})
    assert kept[1] < kept[0]  # how much: test_plan.py
    assert any("vision_model.encoder" in name for name in grads[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["full", "dialogue", "prefix"])
def test_a_prefix_does_not_depend_on_the_answer(home: Path, tmp_path: Path, attention: str) -> None:
    objective, samples = prepared(job(home, tmp_path, attention=attention))
    sample = next(s for s in map(samples, range(19)) if s.pictures)
    samples.close()
    model, length = objective.model, len(sample.ids)
    first = sample.ends[-2] if len(sample.ends) > 1 else length - 3
    states = []
    for last in (7, 9):
        embeds = model.embed(torch.where(torch.arange(length) < first, 5, last))[None]
        with torch.no_grad():
            states.append(model.hidden(embeds, ends=sample.ends)[0, :first])
    assert torch.equal(*states) == (attention == "prefix")


def test_order_is_of_seed_and_position_alone() -> None:
    order, again = Order(5, 3), Order(5, 3)
    seen = [order[position] for position in range(15)]
    assert [again[p] for p in reversed(range(15))] == seen[::-1]
    assert all(Counter(seen[e : e + 5]) == Counter(range(5)) for e in (0, 5, 10))
    assert seen[:5] != seen[5:10] or seen[5:10] != seen[10:]
    assert [p for rank in (0, 1) for p in positions(3, 8, rank, 2)] == list(positions(3, 8, 0, 1))


def test_a_cut_run_equals_one_that_was_not(home: Path, tmp_path: Path) -> None:
    whole, cut = job(home, tmp_path / "a"), job(home, tmp_path / "b")
    reports = train(whole)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    train(cut, steps=3)  # the state after 2 is saved
    again = train(cut)
    assert [report.step for report in again] == [3, 4, 5, 6]
    assert [r.loss for r in again] == [r.loss for r in reports[2:]]
    assert state(cut) == state(whole)
    assert train(cut) == []


def test_a_run_killed_right_after_a_save_has_told_of_its_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(home, tmp_path)

    def killed(self: Checkpoints, engine: Engine, step: int, about: dict[str, object]) -> None:
        save(self, engine, step, about)
        if step == 4:
            raise KeyboardInterrupt

    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.undo()
    assert [report.step for report in train(settings)] == [5, 6]
    lines = (Path(settings.out) / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    reports = train(settings)
    folder = Path(settings.out) / "checkpoints"
    want = state(settings)
    for spoil in (spoil_tensor, spoil_manifest, cut_file):
        spoil(folder / "step-00000006")
        assert [r.loss for r in train(settings)] == [r.loss for r in reports[4:]]
        assert state(settings) == want
    for step in folder.iterdir():
        spoil_tensor(step)
    with pytest.raises(RunError, match="E1603"):
        train(settings)


def test_a_flipped_bit_of_run_json_is_told(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    identity = check(settings)
    file = run.begin(settings, identity) / "run.json"
    whole, known = file.read_bytes(), run.read_run(file.parent)
    start = whole.index(b'"settings"')
    for place in range(start, len(whole), 29):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunError, match="E1506|E1507"):
            run.is_run(file.parent, identity)
    before, _, after = whole.rpartition(b'"sha256"')
    file.write_bytes(before + b'"sha356"' + after)  # no checksum by its name
    with pytest.raises(RunError, match="E1506"):
        run.read_run(file.parent)
    record = json.loads(whole)
    del record["sha256"]
    file.write_text(json.dumps(record))  # as earlier versions wrote it
    assert run.read_run(file.parent) == known


def spoil_tensor(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)


def spoil_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"step": 6', '"step":  6').replace("tiny", "tiny"))
    said = json.loads(file.read_text())
    said["num_steps"] += 1
    file.write_text(json.dumps(said))


def cut_file(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def test_a_number_that_is_not_finite_ends_the_run_and_is_not_saved(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(home, tmp_path)
    real = Objective.forward

    def poisoned(self: Objective, samples: list[Sample]) -> tuple[object, ...]:
        made = real(self, samples)
        poisoned.calls += 1
        return (made[0] * float("nan"), made[1] * float("nan"), *made[2:]) if poisoned.calls == 8 else made  # type: ignore[attr-defined]  # fmt: skip  # noqa: E501

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Objective, "forward", poisoned)
    rows = [Order(19, settings.stage.seed)[position] for position in (14, 15)]
    said = f"E1602: the loss of step 4 is not finite; rows of the dataset: {rows[0]}, {rows[1]}[.]"
    with pytest.raises(RunError, match=said):
        train(settings)
    saved = sorted(path.name for path in (Path(settings.out) / "checkpoints").iterdir())
    assert saved == ["step-00000002"]


def test_a_gradient_that_is_not_finite_names_at_most_eight_rows_of_the_step() -> None:
    stage = StageSettings(name="x", lr=1.0, batch_size=9)
    named = str(not_finite(2, stage, [1.0] * 9, lambda position: 100 + position))
    rows = ", ".join(str(row) for row in range(118, 126))
    assert f"the gradient of step 3 is not finite; rows of the dataset: {rows}, ...." in named
    assert "positions of the run: 19." in str(not_finite(2, stage, [1.0, math.inf], None))


def test_events_hold_speed_and_memory(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, max_steps=3, trainable=("projector", "language", "vision"))
    reports = train(settings)
    lines = [json.loads(line) for line in (tmp_path / "out" / EVENTS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["memory_bytes"] > 10**7 and line["tokens_per_s"] > 0 for line in lines)
    assert {len(line["loss_by_noise"]) for line in lines} == {DEFAULT_BINS}
    assert lines[0]["mfu"] is None  # a CPU's peak is not known
    [dataset, model] = run.Dataset.open(settings.data), weights.load(settings.model)
    order = Order(len(dataset), settings.stage.seed)
    assert reports[0].num_tiles == sum(len(dataset[order[p]].images) for p in range(4))
    flops = step_flops(model.config, settings.stage, reports[0])
    row = RowShape(reports[0].num_tokens / 4, reports[0].num_tiles / 4, reports[0].num_masked / 4)
    assert flops == 4 * row_flops(model.config, settings.stage, row, recompute=False).total


def test_losses_do_not_depend_on_how_workers_share_the_step() -> None:
    """Two workers' tallies, exchanged, against one's."""
    outcomes = [
        Outcome(torch.tensor(0.0), torch.tensor([loss]), torch.tensor([t]), 10 + n, n)
        for n, (loss, t) in enumerate([(1.0, 0.1), (2.0, 0.1), (math.nan, 0.9), (4.0, 0.5)])
    ]

    def over(*shares: range) -> Total:
        vectors: list[torch.Tensor] = []
        for _ in range(2):  # the first round collects what the second adds up
            known, vectors = sum(vectors), []
            for rank, share in enumerate(shares):
                engine = Exchange(rank, len(shares), vectors, known)
                tally = Tally(4, share)
                for place in share:
                    tally.add([], outcomes[place % 4])
                total = tally.over_all(engine, rank == 1)  # type: ignore[arg-type]
        return total

    one, two = over(range(8, 12)), over(range(8, 10), range(10, 12))
    assert str(one.losses) == str(two.losses) == "[1.0, 2.0, nan, 4.0]"
    assert str(one.by_noise) == str(two.by_noise)
    assert (one.by_noise[1], one.by_noise[5]) == (1.5, 4.0)
    assert one.counts == two.counts == (46, 6, 0)
    assert (one.asked, two.asked) == (False, True)
    assert two.memory_bytes == pytest.approx(one.memory_bytes, rel=0.1)


class Exchange:
    """The part of an engine that adds up, over workers that run one after the other."""

    def __init__(self, rank: int, num_workers: int, vectors: list[torch.Tensor], known: Any):
        self.rank, self.num_workers, self._vectors, self._known = rank, num_workers, vectors, known

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self._vectors.append(values)
        return values + 0 * self._known if isinstance(self._known, int) else self._known


def test_out_of_memory_names_settings(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path)
    sharded = settings.model_copy(update={"shard": ShardSettings(offload_params=True)})
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        with pytest.raises(RunError, match="E1605") as caught, memory_errors(sharded):
            raise error
    detail = caught.value.detail
    assert "stage.micro_batch_size=2" in detail
    for assignment in (
        *("stage.gradient_checkpointing=true", "stage.micro_batch_size=1"),
        *("shard.offload_optimizer=true", "stage.lora.rank=16"),
    ):
        assert f"--set {assignment}" in detail
    assert "offload_params" not in detail
    with pytest.raises(RunError) as caught, memory_errors(settings):
        raise MemoryError
    assert "shard.engine=zero3" in caught.value.detail
    assert "offload" not in caught.value.detail
    with pytest.raises(RuntimeError, match="other"), memory_errors(settings):
        raise RuntimeError("other")


def test_another_run_is_refused(home: Path, tmp_path: Path) -> None:
    train(job(home, tmp_path), steps=1)
    other = job(home, tmp_path, lr=1e-3)
    with pytest.raises(RunError, match="E1604: .*another stage"):
        run.begin(other, check(other))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"batch_size": 6, "micro_batch_size": 4}, "batch_size=6 must be a multiple"),
        ({"lr": "fast"}, "lr"),
        ({"learning_rate": 1}, "learning_rate"),
    ],
)
def test_bad_settings_are_told_before_the_first_step(stage: dict[str, object], said: str) -> None:
    values = {"name": "x", "lr": 1e-3, "batch_size": 4} | stage
    with pytest.raises(SettingsError, match=said):
        build(StageSettings, values)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_base_that_is_not_finite_is_found_before_anything_starts(
    home: Path, tmp_path: Path, number: float
) -> None:
    base = tmp_path / "base"
    shutil.copytree(home / "base", base)
    [file] = base.glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"][1, 2] = number
    save_file(tensors, file, metadata={"format": "pt"})
    settings = job(home, tmp_path).model_copy(update={"model": str(base)})
    with pytest.raises(CheckpointError, match=r"E1405: lm_head.weight is not finite") as caught:
        check(settings)
    assert caught.value.exit_code == 2
    assert not Path(settings.out).exists()


def test_a_batch_that_does_not_divide_among_workers() -> None:
    stage = StageSettings(name="x", lr=1.0, batch_size=8, micro_batch_size=2)
    check_batch(stage, 4)
    with pytest.raises(SettingsError, match=r"E1601: .*2 x 3 workers.* 1, 2, 4, 8"):
        check_batch(stage, 3)


def test_an_elastic_run_must_fit_each_number_of_workers(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, batch_size=8, micro_batch_size=1)
    shard = settings.shard.model_copy(update={"engine": "zero3"})
    workers = WorkerSettings(num_workers=4, min_workers=2)
    with pytest.raises(SettingsError, match=r"E1601: .* 3 workers"):
        check(settings.model_copy(update={"shard": shard, "workers": workers}))
    with pytest.raises(SettingsError, match="min_workers=3 must be at most num_workers=2"):
        build(WorkerSettings, {"num_workers": 2, "min_workers": 3})


def test_too_few_rows(home: Path, tmp_path: Path) -> None:
    with pytest.raises(MedvError, match="fewer than stage.batch_size=64"):
        check(job(home, tmp_path, batch_size=64, epochs=1))


@pytest.mark.parametrize("attention", ["full", "prefix"])
def test_the_exported_folder_answers(home: Path, tmp_path: Path, attention: str) -> None:
    settings = job(home, tmp_path, max_steps=2, attention=attention)
    train(settings)
    assert export(settings, tmp_path / "model") == 2
    model = weights.load(tmp_path / "model")
    assert model.config.attention == attention
    base = weights.load(settings.model)
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)
    tower = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert torch.equal(model.state_dict()[tower], base.state_dict()[tower])
    sampler = SamplerSettings(gen_length=4, block_length=4, steps=2)
    row = next(tiny.rows())
    with Predictor.load(
        ModelSettings(path=str(tmp_path / "model")), AnswerSettings(sampler=sampler)
    ) as predictor:
        [answer] = predictor.answer([Request("Is there a vessel?", row.images)])
    assert isinstance(answer, Answer)


def test_an_adapter_is_trained_and_merged(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, max_steps=2, lora={"rank": 2})
    train(settings)
    [file] = (tmp_path / "out" / "checkpoints" / "step-00000002").glob("*.safetensors")
    saved = {n.removesuffix("/weight"): t for n, t in load_file(file).items() if "/weight" in n}
    adapted = {name.split(".lora_")[0] for name in saved if ".lora_" in name}
    assert len(adapted) == 2 * 7  # the matrices of two layers
    assert all(".lora_" in name or "mm_projector" in name for name in saved)
    export(settings, tmp_path / "model")
    model = weights.load(tmp_path / "model").state_dict()
    base = weights.load(settings.model).state_dict()
    assert settings.stage.lora is not None
    for name in (name for name in base if "mm_projector" not in name):
        stem, want = name.removesuffix(".weight"), base[name]
        if stem in adapted:
            down, up = (saved[f"{stem}.lora_{half}.default.weight"] for half in "AB")
            change = (up.view(len(want), 2) @ down.view(2, -1)) * settings.stage.lora.alpha / 2
            assert change.any()
            want = want + change
        torch.testing.assert_close(model[name], want)


def test_a_changed_image_is_named(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    settings = job(tmp_path / "home", tmp_path)
    dataset = run.Dataset.open(settings.data)
    row, sha256 = next((n, e.images[0]) for n, e in enumerate(dataset) if e.images)
    file = image_path(dataset.folder, sha256)
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    _, samples = prepared(settings)
    order = Order(len(dataset), settings.stage.seed)
    position = next(position for position in range(19) if order[position] == row)
    said = f"E1114: row {row} of train: the bytes of image {sha256[:12]} are not those"
    with closing(samples), pytest.raises(DataError, match=said):
        samples(position)
    with pytest.raises(DataError, match=f"E1114: .*refused: .*Row {row}: the bytes of image"):
        check(settings)
