"""Training loss, masks and gradients of LLaDA-V (11), with and without its dialogue mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medv_ray.canvases import TileSettings
from medv_ray.data.images import Prepared, prepare
from medv_ray.data.segments import segment_ends
from medv_ray.diffusion.loss import masked_loss, token_losses
from medv_ray.diffusion.noise import draw, forward_noise
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model.denoise import splice
from medv_ray.model.medv import Medv
from medv_ray.settings import ImageSettings
from medv_ray.training.objective import Objective, Padding, Picture, Sample

HEADER = (126346, 598, 126347, 271)
"""LLaDA's ids of the assistant's header: start, "assistant", end, blank line."""
EOT, END_OF_TEXT = 126348, 126081


def batch(golden: Any, tower: Any, seeing: Any, key: str) -> tuple[Medv, Tensor, Tensor]:
    """The model, the clean embeddings float[B, S, D] and the labels int64[B, S] of a sub-case."""
    tensors = golden.tensors("11")
    name = key if f"{key}.input_ids" in tensors else key.split("_")[0]
    ids, labels = tensors[f"{name}.input_ids"], tensors[f"{name}.labels"]
    if not bool((ids == IMAGE_SLOT).any()):
        model = tower("11")
        return model, model.embed(ids), labels
    model = seeing("11")
    done = case_picture(golden)
    model.model.vision_tower.requires_grad_(False)  # the case holds no gradients of it
    image = model.encode_image(torch.from_numpy(done.tiles), done.size_wh)
    slot = int((ids[0] == IMAGE_SLOT).nonzero())
    hidden_labels = labels.new_full((1, len(image)), IGNORE)
    spliced = torch.cat([labels[:, :slot], hidden_labels, labels[:, slot + 1 :]], dim=1)
    return model, splice(model, ids[0], [image])[None], spliced


def case_picture(golden: Any) -> Prepared:
    picture = golden.run("11", "C_image")["image"].split(",")[0]
    data = golden.path("08", f"{picture}.png").read_bytes()
    side = golden.case("09")["vision_config"]["image_size"]
    return prepare(data, ImageSettings(), TileSettings("square", side))


@pytest.mark.subcases("11", "conv.")
def test_turns(golden: Any, key: str) -> None:
    tensors = golden.tensors("11")
    for labels, ids in zip(tensors[f"{key}.labels"], tensors[f"{key}.ids"], strict=True):
        ends = segment_ends(labels.tolist(), "dialogue", HEADER, EOT)
        assert [sum(end <= place for end in ends) for place in range(len(ids))] == ids.tolist()


@pytest.mark.subcases("11", "[A-D]")
def test_loss_and_gradients(golden: Any, tower: Any, seeing: Any, key: str) -> None:
    run, case, tensors = golden.run("11", key), golden.case("11"), golden.tensors("11")
    model, embeds, labels = batch(golden, tower, seeing, key)
    model.zero_grad()
    assert torch.equal(labels, tensors[f"{key}.labels_final"])
    assert (labels != IGNORE).sum(1).tolist() == run["answer_tokens_per_row"]

    noise = forward_noise(labels, tensors[f"{key}.t"], tensors[f"{key}.u"], case["eps"])
    assert torch.equal(noise.p_mask, tensors[f"{key}.p_mask"])
    assert torch.equal(noise.masked, tensors[f"{key}.masked"])
    assert int(noise.masked.sum()) == run["masked_tokens"]

    mask = model.embed(torch.tensor(case["mask_id"]))
    kind = "dialogue" if key.endswith("_dialogue") else "full"
    ends = segment_ends(labels[0].tolist(), kind, HEADER, EOT)
    hidden = model.hidden(torch.where(noise.masked[..., None], mask, embeds), ends=ends)
    loss = masked_loss(hidden, model.head, labels, noise.masked, noise.p_mask)
    tolerance = 1e-3 if "image" in run or len(embeds[0]) > 700 else 1e-4
    assert float(loss.detach()) == pytest.approx(run["loss"], abs=tolerance)
    check_logits(tensors, key, hidden[noise.masked] @ model.head.T, labels[noise.masked])

    loss.backward()
    parameters = dict(model.named_parameters())
    for name, norm in run["grad_l2_norms"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    for name in (n for n in tensors if n.startswith(f"{key}.grad.")):
        got = parameters[name.removeprefix(f"{key}.grad.")].grad
        torch.testing.assert_close(got, tensors[name], rtol=1e-3, atol=1e-5)


@pytest.mark.subcases("11", "[A-D]")
def test_the_objective_of_training(golden: Any, tower: Any, seeing: Any, key: str) -> None:
    """What the engines call, with the case's noise: its rows are cut out and put together anew."""
    run, case, tensors = golden.run("11", key), golden.case("11"), golden.tensors("11")
    name = key if f"{key}.input_ids" in tensors else key.split("_")[0]
    all_ids, all_labels = tensors[f"{name}.input_ids"], tensors[f"{name}.labels"]
    shows = bool((all_ids == IMAGE_SLOT).any())
    model = (seeing if shows else tower)("11")
    pictures: tuple[Picture, ...] = ()
    if shows:
        model.model.vision_tower.requires_grad_(False)
        done = case_picture(golden)
        pictures = (Picture(done.size_wh, torch.from_numpy(done.tiles)),)
    model.zero_grad()
    kind = "dialogue" if key.endswith("_dialogue") else "full"
    rows = [
        Sample(ids, labels, segment_ends(labels.tolist(), kind, HEADER, EOT), pictures, row)
        for row, (ids, labels) in enumerate(zip(all_ids, all_labels, strict=True))
    ]

    def noise(sample: Sample, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row = sample.seed
        assert torch.equal(labels, tensors[f"{key}.labels_final"][row])
        masked = tensors[f"{key}.masked"][row]
        return masked, tensors[f"{key}.p_mask"][row, None], tensors[f"{key}.t"][row, None]

    objective = Objective(model, case["mask_id"])
    objective._noise = noise  # type: ignore[method-assign]
    loss, *_, num_masked = objective(rows)
    tolerance = 1e-3 if shows or all_ids.shape[1] > 700 else 1e-4
    assert float(loss.detach()) == pytest.approx(run["loss"], abs=tolerance)
    assert num_masked == run["masked_tokens"]
    loss.backward()
    parameters = dict(model.named_parameters())
    for part, norm in run["grad_l2_norms"].items():
        assert float(parameters[part].grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), part


@pytest.mark.subcases("11", "A$")
def test_the_references_padding(golden: Any, tower: Any, key: str) -> None:
    """The case's rows without their padding, which `padding` puts back as targets."""
    run, case, tensors = golden.run("11", key), golden.case("11"), golden.tensors("11")
    rows = []
    for row, (ids, labels) in enumerate(
        zip(tensors[f"{key}.input_ids"], tensors[f"{key}.labels"], strict=True)
    ):
        end = int((ids != END_OF_TEXT).nonzero()[-1]) + 1
        rows.append(Sample(ids[:end], labels[:end], (end,), (), row))
    assert len({len(row.ids) for row in rows}) == run["batch"]

    def noise(sample: Sample, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row, length = sample.seed, len(labels)
        p_mask, t = (tensors[f"{key}.{name}"][row, None] for name in ("p_mask", "t"))
        return tensors[f"{key}.masked"][row, :length], p_mask, t

    model = tower("11")
    parameters = dict(model.named_parameters())
    padded = Objective(model, case["mask_id"], Padding(END_OF_TEXT, 8192))
    hidden = Objective(model, case["mask_id"])
    for objective in (padded, hidden):
        objective._noise = noise  # type: ignore[method-assign]
    model.zero_grad()
    loss, *_, num_masked = padded(rows)
    assert float(loss.detach()) == pytest.approx(run["loss"], abs=1e-4)
    assert num_masked == run["masked_tokens"]
    loss.backward()
    for part, norm in run["grad_l2_norms"].items():
        assert float(parameters[part].grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), part
    for name in (n for n in tensors if n.startswith(f"{key}.grad.")):
        got = parameters[name.removeprefix(f"{key}.grad.")].grad
        torch.testing.assert_close(got, tensors[name], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        ours, *_, fewer = hidden(rows)
    assert abs(float(ours) - run["loss"]) > 0.1
    assert fewer < num_masked


def check_logits(tensors: dict[str, Tensor], key: str, logits: Tensor, targets: Tensor) -> None:
    """Normaliser and target logit of each masked position; their difference is its loss."""
    logits = logits.detach()
    total = logits.double().logsumexp(1)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(total, tensors[f"{key}.masked_logsumexp"], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(chosen, tensors[f"{key}.masked_target_logit"], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(
        token_losses(logits, None, targets), (total - chosen).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.subcases("11", "[A-D]")
def test_draws_follow_the_reference(golden: Any, key: str) -> None:
    run, tensors = golden.run("11", key), golden.tensors("11")
    t, u = draw(run["batch"], run["length"], torch.Generator().manual_seed(run["seed"]))
    assert torch.equal(t, tensors[f"{key}.t"])
    assert torch.equal(u, tensors[f"{key}.u"])
