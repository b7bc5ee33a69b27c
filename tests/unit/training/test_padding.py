"""The references' padding: end of text as a target of every row that is not the longest."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import write_dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.errors import RunError, SettingsError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model.medv import Medv
from medv_ray.settings import build
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.objective import Objective, Outcome, Padding, Sample, pad_with_targets
from medv_ray.training.remedies import savings
from medv_ray.training.samples import Samples
from medv_ray.training.stages import ShardSettings, StageSettings
from tests.unit.training import tiny
from tests.unit.training.test_run import job, train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uneven(home: Path) -> Path:
    """Rows with answers of one to five words, and one without a picture."""
    answers = ["yes", "yes, beside the wall", "no vessel, the wall alone"]
    rows = [
        row._replace(conversations=[row.conversations[0], {"from": "gpt", "value": answer}])
        for row, answer in zip(tiny.rows(3), answers, strict=False)
    ]
    write_dataset(home / "uneven", "tiny", {"train": [*rows, *list(tiny.rows(0))]})
    return home / "uneven"


def rows_of(
    home: Path, data: Path, tmp_path: Path, **stage: object
) -> tuple[Objective, list[Sample], int]:
    """Rows of different lengths, one of them without a picture where the template takes it."""
    settings = job(home, tmp_path, batch_size=1, micro_batch_size=1, **stage)
    tokenizer, dataset = load_tokenizer(settings.model), Dataset.open(data)
    special, model = SpecialIds.of(tokenizer), run.build_model(settings, "cpu")
    objective = run.make_objective(model, special, settings.stage)
    plain = settings.stage.template == "plain"
    with closing(Samples(dataset, tokenizer, settings.stage, model, 10**6)) as samples:
        taken = [n for n in range(4) if dataset[samples.row(n)].images or not plain]
        rows = [samples(position) for position in taken]
    assert len({len(row.ids) for row in rows}) >= 3
    assert {len(row.pictures) for row in rows} == ({1} if plain else {0, 1})
    return objective, rows, special.eos


def reference_loss(model: Medv, mask_id: int, eos: int, rows: list[Sample]) -> Tensor:
    """float[B], written from the collator's and the forward pass's description: ids and labels
    padded with end of text, images put in, zeros behind what is shorter then, nothing hidden."""
    longest, embeds, labels = max(len(row.ids) for row in rows), [], []
    for row in rows:
        ids, wide = (
            functional.pad(part, (0, longest - len(part)), value=eos)
            for part in (row.ids, row.labels)
        )
        text = model.embed(ids.clamp(min=0))
        for cut in (ids == IMAGE_SLOT).nonzero().flatten().tolist():
            image = model.merge(model.project(row.pictures[0].features), (32, 32))
            text = torch.cat([text[:cut], image, text[cut + 1 :]])
            wide = torch.cat([wide[:cut], wide.new_full((len(image),), IGNORE), wide[cut + 1 :]])
        embeds.append(text)
        labels.append(wide)
    length, mask, found = max(map(len, labels)), model.embed(torch.tensor(mask_id)), []
    noised = torch.zeros(len(rows), length, embeds[0].shape[1])
    draws = []
    for number, (row, text, wide) in enumerate(zip(rows, embeds, labels, strict=True)):
        rng = torch.Generator().manual_seed(row.seed)
        t, u = torch.rand(1, generator=rng), torch.rand(1, len(wide), generator=rng)
        p = (1 - 1e-3) * t + 1e-3
        masked = (u[0] < p) & (wide != IGNORE)
        noised[number, : len(wide)] = torch.where(masked[:, None], mask, text)
        draws.append((masked, p))
    hidden = model.hidden(noised)
    for state, wide, (masked, p) in zip(hidden, labels, draws, strict=True):
        logits = (state[: len(wide)] @ model.lm_head.weight.T)[:, : model.logit_size]
        loss = functional.cross_entropy(logits[masked], wide[masked], reduction="sum")
        found.append(loss / p[0] / (wide != IGNORE).sum())
    return torch.stack(found)


@pytest.mark.parametrize("template", ["llada", "plain", "pairs"])
def test_losses_and_gradients_are_the_references(
    home: Path, uneven: Path, tmp_path: Path, template: str
) -> None:
    kept = []
    for padding in ("end_of_text", "hidden"):
        objective, rows, eos = rows_of(home, uneven, tmp_path, template=template, padding=padding)
        named = dict(objective.model.named_parameters())
        Outcome(*objective(rows)).loss.backward()
        kept.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        objective.model.zero_grad()
    reference_loss(objective.model, objective.mask_id, eos, rows).mean().backward()
    theirs = {name: p.grad for name, p in named.items() if p.grad is not None}
    assert kept[0].keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(kept[0][name], gradient, rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(kept[1][n], g, rtol=1e-2, atol=1e-3) for n, g in theirs.items())

    objective, rows, eos = rows_of(home, uneven, tmp_path, template=template, padding="end_of_text")
    with torch.no_grad():
        by_row = Outcome(*objective(rows)).by_row
        formula = reference_loss(objective.model, objective.mask_id, eos, rows)
        alone = [Outcome(*objective([row])).by_row[0] for row in rows]
    torch.testing.assert_close(by_row, formula)
    objective.padding = None
    with torch.no_grad():  # a row that is alone has no padding
        torch.testing.assert_close(alone, list(Outcome(*objective(rows)).by_row))


def test_padding_stops_at_the_longest_row_that_may_be() -> None:
    def row(length: int) -> Sample:
        ids = torch.arange(1, length + 1)
        return Sample(ids, torch.full_like(ids, IGNORE), (length,), (), 0)

    image = [torch.zeros(5, 2)]
    limited = pad_with_targets([row(3), row(9)], [image, []], Padding(99, 11))
    assert limited[0].ids.tolist() == [1, 2, 3, 99, 99, 99, 99]  # 11 with the image's five
    assert limited[0].labels.tolist() == [IGNORE] * 3 + [99] * 4
    assert [r.ends for r in limited] == [(7,), (9,)]
    free = pad_with_targets([row(3), row(9)], [image, []], Padding(99, 100))
    assert [len(r.ids) for r in free] == [9, 9]
    assert limited[1].ids.tolist() == list(range(1, 10))


def test_rows_that_stand_together_are_part_of_the_run(home: Path, tmp_path: Path) -> None:
    """What other rows stand in a micro-batch changes the loss; so it may not change in between."""
    losses = {}
    for padding in ("hidden", "end_of_text"):
        made = [
            train(
                job(
                    home,
                    tmp_path / f"{padding}{size}",
                    padding=padding,
                    micro_batch_size=size,
                    max_steps=2,
                )
            )
            for size in (1, 4)
        ]
        losses[padding] = [[report.loss for report in reports] for reports in made]
    assert losses["hidden"][0] == pytest.approx(losses["hidden"][1], rel=1e-4)
    assert losses["hidden"][0] == pytest.approx(losses["end_of_text"][0], rel=1e-4)
    assert losses["end_of_text"][1] != pytest.approx(losses["hidden"][1], rel=1e-2)

    other = job(home, tmp_path / "hidden1", padding="hidden", micro_batch_size=2, max_steps=2)
    run.begin(other, check(other))
    other = job(
        home, tmp_path / "end_of_text4", padding="end_of_text", micro_batch_size=2, max_steps=2
    )
    with pytest.raises(RunError, match=r"E1604: .*stage.micro_batch_size \(4, now 2\)"):
        run.begin(other, check(other))


def test_less_memory_is_not_bought_with_another_loss() -> None:
    values = {"name": "x", "lr": 1e-3, "batch_size": 8, "micro_batch_size": 4}
    hidden = StageSettings.model_validate(values)
    padded = StageSettings.model_validate({**values, "padding": "end_of_text"})
    assert "stage.micro_batch_size=1" in list(savings(hidden, ShardSettings()))
    assert "stage.micro_batch_size=1" not in list(savings(padded, ShardSettings()))
    with pytest.raises(SettingsError, match="padding=end_of_text needs attention=full, not prefix"):
        build(StageSettings, {**values, "padding": "end_of_text", "attention": "prefix"})


def test_the_model_s_own_limit_counts(home: Path, tmp_path: Path) -> None:
    settings = tiny.settings(home, padding="end_of_text", max_length=100)
    model = run.build_model(settings, "cpu")
    special = SpecialIds.of(load_tokenizer(settings.model))
    assert run.make_objective(model, special, settings.stage).padding == Padding(special.eos, 100)
    stage = settings.stage.model_copy(update={"max_length": 8192})
    assert run.make_objective(model, special, stage).padding == Padding(special.eos, 256)
