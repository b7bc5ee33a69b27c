"""The toy's stages, a few steps each with the plain engine: the loss falls, the same seed gives the
same bits, and the folder says how it is asked."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs import train_tiny
from medv_ray.data import synthetic, toy_questions
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.data.segments import assistant_header, spoken
from medv_ray.model import weights
from medv_ray.on_ray.train import Trained
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.export import export
from medv_ray.training.job import MODEL, TrainSettings
from medv_ray.training.rows import RowEncoder
from medv_ray.training.stages import ShardSettings

pytestmark = pytest.mark.integration

STEPS = (30, 4, 2)
BRIEF = (2, 1, 1)
"""What is the same or another by the seed shows after few steps."""
NUM_TILES = 24


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """One thread, and the plain engine in place of Ray's workers."""

    def train(settings: TrainSettings, tell: object) -> Trained:
        alone = {"shard": ShardSettings(engine="plain", dtype="float32"), "watch": ()}
        settings = settings.model_copy(update=alone)
        identity = check(settings)
        run.begin(settings, identity)
        *_, last = run.train_worker(settings, identity)
        export(settings, Path(settings.out) / MODEL)
        return Trained(last.step, last.step, last.loss, 1.0)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tiny, "train", train)
        patch.setattr(train_tiny, "running_ray", lambda address: contextlib.nullcontext())
        yield
    torch.set_num_threads(before)


def made(folder: Path, seed: int = 0, steps: tuple[int, ...] = STEPS) -> Path:
    stages = [
        stage.model_copy(update={"max_steps": n, "batch_size": 8, "micro_batch_size": 8})
        for stage, n in zip(train_tiny.STAGES, steps, strict=True)
    ]
    seconds = train_tiny.train_folder(folder, folder / "out", stages, seed, 1, NUM_TILES)
    assert seconds == len(stages)
    return folder / "out"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return made(tmp_path_factory.mktemp("tiny") / "first")


@pytest.fixture(scope="module")
def brief(first, tmp_path_factory):
    """On the data and from the fresh weights of `first`."""
    folder = tmp_path_factory.mktemp("tiny") / "brief"
    for name in ("data", "fresh"):
        shutil.copytree(first.parent / name, folder / name)
    return made(folder, steps=BRIEF)


@pytest.mark.integration
def test_same_seed_gives_the_same_folder(brief, tmp_path):
    """Data and fresh weights are made once more."""
    assert weights.digest(made(tmp_path / "again", steps=BRIEF)) == weights.digest(brief)


@pytest.mark.integration
def test_another_seed_gives_other_weights(brief, tmp_path):
    other = made(tmp_path, seed=1, steps=(1, 1, 1))
    one, two = (load_file(path / "model.safetensors") for path in (brief, other))
    assert one.keys() == two.keys()
    assert not torch.equal(one["lm_head.weight"], two["lm_head.weight"])


@pytest.mark.integration
def test_loss_falls_over_the_captions(first):
    lines = (first.parent / "stage1-captions" / "events.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == STEPS[0]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.integration
def test_each_stage_begins_with_the_one_before(first):
    bases = [
        run.read_run(folder)[0]["base_sha256"] for folder in sorted(first.parent.glob("stage*"))
    ]
    folders = [first.parent / "fresh", *sorted(first.parent.glob("stage*/model"))]
    assert bases == [weights.digest(folder) for folder in folders[:-1]]
    assert weights.digest(first) == weights.digest(folders[-1])


@pytest.mark.integration
def test_folder_holds_the_sampler_it_is_made_for(first):
    config = json.loads((first / "config.json").read_text())
    assert config["medv_defaults"] == {"gen_length": 8, "block_length": 8, "steps": 8}
    assert weights.load(first).config.vision is not None


@pytest.mark.integration
def test_questions_are_true_of_their_tile_and_grey_ones_are_asked_too(first):
    """What is asked about a grey tile is true of the tile that is not seen."""
    tiles = {row.id: row for row in train_tiny.tiles(0, NUM_TILES)}
    grey = synthetic.grey_image()
    assert [row.image == grey for row in tiles.values()].count(True) == round(0.04 * NUM_TILES)
    kinds: Counter[str] = Counter()
    for name in ("pairs", "chat"):
        data = Dataset.open(first.parent / "data" / name)
        for example in data:
            tile = tiles[example.id.rpartition("-")[0]]
            assert data.image(example.images[0]) == tile.image
            if "-caption" in example.id:
                continue
            true = toy_questions.true_of(tile.attributes)
            for asked, said in zip(*[iter(example.conversations)] * 2, strict=True):
                question = asked["value"].removeprefix("<image>\n")
                (kind,) = [
                    k for k, answers in true.items() if question in sum(answers.values(), [])
                ]
                assert question in true[kind][said["value"]]
                kinds[kind] += 1
    assert set(kinds) == set(toy_questions.QUESTION_TYPES)


def test_every_type_of_question_stands_in_a_dialogue():
    tile = next(synthetic.rows(1, seed=3))
    rows = list(train_tiny.chat([tile], np.random.default_rng(0)))
    assert [len(row.conversations) // 2 for row in rows] == [5, 1, 1, 5, 1, 1, 1, 1, 1]
    assert len({row.id for row in rows}) == len(rows)


@pytest.mark.integration
def test_captions_are_those_of_the_tiles(first):
    want = {
        row.id.rpartition("-")[0]: row.answer
        for row in synthetic.rows(NUM_TILES, 0, split="train", per_image=1, captions=True)
        if row.question_type == "caption"
    }
    said = Counter()
    for example in Dataset.open(first.parent / "data" / "chat"):
        if "-caption" in example.id:
            asked, answer = example.conversations
            assert asked["value"] == f"<image>\n{synthetic.CAPTION_QUESTION}"
            said[example.id.rpartition("-")[0].rpartition("-")[0], answer["value"]] += 1
    assert said == dict.fromkeys(want.items(), train_tiny.NUM_CAPTIONS)


@pytest.mark.integration
def test_questions_are_filled_to_both_lengths_and_captions_to_the_longer(first):
    """Both lengths of both kinds of pictures, JPEG and PNG, which take turns too."""
    tokenizer, stage = load_tokenizer(first), train_tiny.STAGES[-1]
    encoder, header = RowEncoder(tokenizer, stage), assistant_header(tokenizer)
    data = Dataset.open(first.parent / "data" / "chat")
    lengths = defaultdict(set)
    for number, example in enumerate(data):
        ids = encoder(example.conversations, 1, number).ids
        start, _ = spoken(ids, header, SpecialIds.of(tokenizer).eot)[-1]
        turns = example.id.rpartition("-")[2].rstrip("0123456789")
        png = data.image(example.images[0]).startswith(b"\x89PNG")
        lengths[turns, png].add(len(ids) - start)
    assert lengths == {
        (turns, png): {24} if turns == "caption" else {8, 24}
        for turns in ("all", "one", "caption")
        for png in (True, False)
    }


@pytest.mark.integration
def test_the_card_has_every_score(first, monkeypatch):
    monkeypatch.setattr(train_tiny, "HELD_OUT_ROWS", 15)
    scores = train_tiny.evaluate(first, 1)
    kinds = {"questions", *toy_questions.QUESTION_TYPES}
    assert {name: set(found) for name, found in scores.items()} == {
        "8 tokens": kinds,
        **dict.fromkeys(("24 tokens", "24 in one step", "24, grey"), kinds | {"caption"}),
    }
    marked = {name: dict.fromkeys(found, 0.125) for name, found in scores.items()}
    card = train_tiny.model_card(train_tiny.STAGES, marked, 3.0, 0, 2)
    assert card.count("0.125") == 4 * 6 + 3
    assert all(f"\n| {kind} | " in card for kind in kinds | {"caption"})
