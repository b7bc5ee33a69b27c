"""Case 12: prompt ids, training ids and labels, collation. Exact."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

from medv_ray.data.conversations import encode_conversation
from medv_ray.data.prompts import SYSTEM_SENTENCES, SpecialIds, Turn, build, load_tokenizer
from medv_ray.markers import IMAGE_SLOT
from medv_ray.settings import PromptSettings
from medv_ray.training.objective import Padding, Sample, pad_with_targets

if TYPE_CHECKING:
    from conftest import Golden

MESSAGE = re.compile(
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)", re.S
)
HUMAN = {"user": "human", "assistant": "gpt"}


@pytest.fixture(scope="session")
def tokenizer(golden: Golden):
    return load_tokenizer(golden.path("12", "tokenizer.json").parent)


def as_text(tokenizer, ids: list[int]) -> str:
    """Ids with their special tokens written out and `<image>` in the slots."""
    pieces, run = [], []
    for token in [*ids, None]:
        if token is None or token == IMAGE_SLOT:
            pieces.append(tokenizer.decode(run, clean_up_tokenization_spaces=False))
            pieces += ["<image>"] if token == IMAGE_SLOT else []
            run = []
        else:
            run.append(token)
    return "".join(pieces)


def conversation(golden: Golden, tokenizer, key: str) -> list[dict[str, str]]:
    """As listed in case.json; where it is not, read back from the golden ids."""
    style, _, name = key.partition(".")
    listed = golden.case("12")["conversations"]
    if name in listed:
        return listed[name]
    text = as_text(tokenizer, golden.tensors("12")[f"{key}.input_ids"].tolist())
    return [
        {"from": HUMAN[role], "value": value}
        for role, value in MESSAGE.findall(text)
        if role in HUMAN
    ]


def encoded(golden: Golden, tokenizer, key: str) -> tuple[list[int], list[int]]:
    style = key.partition(".")[0]
    settings = PromptSettings(system="medical" if style == "med" else "general")
    talk = conversation(golden, tokenizer, key)
    images = (golden.tensors("12")[f"{key}.input_ids"] == IMAGE_SLOT).sum().item()
    return encode_conversation(
        tokenizer, talk, settings, images, "plain" if style == "plain" else "llada"
    )


@pytest.mark.subcases("12", "llada.")
def test_chat_conversations(golden: Golden, tokenizer, key: str) -> None:
    check_conversation(golden, tokenizer, key)


@pytest.mark.subcases("12", "med.")
def test_medical_conversations(golden: Golden, tokenizer, key: str) -> None:
    check_conversation(golden, tokenizer, key)


@pytest.mark.subcases("12", "plain.")
def test_alignment_conversations(golden: Golden, tokenizer, key: str) -> None:
    check_conversation(golden, tokenizer, key)


def check_conversation(golden: Golden, tokenizer, key: str) -> None:
    tensors = golden.tensors("12")
    ids, labels = encoded(golden, tokenizer, key)
    assert ids == tensors[f"{key}.input_ids"].tolist()
    assert labels == tensors[f"{key}.labels"].tolist()
    assert sum(label != -100 for label in labels) == golden.run("12", key)["targets"]


@pytest.mark.subcases("12", "collate")
def test_collation(golden: Golden, tokenizer, key: str) -> None:
    case, tensors = golden.case("12"), golden.tensors("12")
    want_ids, want_labels = tensors["collate.input_ids"], tensors["collate.labels"]
    rows = []
    for row in want_ids.tolist():  # which conversations: the ones whose ids the rows begin with
        names = [
            name
            for name in case["cases"]
            if row[: case["cases"][name]["len"]] == encoded(golden, tokenizer, name)[0]
        ]
        rows.append(encoded(golden, tokenizer, names[0]))
    padding = Padding(SpecialIds.of(tokenizer).eos, 8192)
    samples = [
        Sample(torch.tensor(ids), torch.tensor(labels), (len(ids),), (), 0) for ids, labels in rows
    ]
    padded = pad_with_targets(samples, [[] for _ in samples], padding)
    assert [row.ids.tolist() for row in padded] == want_ids.tolist()
    assert [row.labels.tolist() for row in padded] == want_labels.tolist()
    assert len({len(row.ids) for row in samples}) == len(samples)


@pytest.mark.subcases("12", "prompt.")
def test_prompts(golden: Golden, tokenizer, key: str) -> None:
    text = golden.case("12")["prompts"][key.removeprefix("prompt.")]
    messages = MESSAGE.findall(text)
    assert messages[-1] == ("assistant", "")  # the header that asks for an answer
    system = messages[0][1] if messages[0][0] == "system" else None
    name = next(name for name, sentence in SYSTEM_SENTENCES.items() if sentence == system)
    images = text.count("<image>")
    turns = [
        Turn(role, content.replace("<image>", "").lstrip())
        for role, content in messages[:-1]
        if role in HUMAN
    ]
    assert as_text(tokenizer, build(tokenizer, turns, images, settings(name, "training"))) == text
    ids = golden.tensors("12").get(f"{key}.input_ids")
    if ids is not None:
        assert build(tokenizer, turns, images, settings(name, "reference")) == ids.tolist()


def settings(system: str, token_after_image: str) -> PromptSettings:
    return PromptSettings(system=system, token_after_image=token_after_image)


def test_first_token_after_the_image(golden: Golden, tokenizer) -> None:
    case = golden.case("12")
    if "first_token_after_image" not in case:
        pytest.skip("this set of numbers does not state it")
    question = MESSAGE.findall(case["prompts"]["llava_llada"])[1][1].removeprefix("<image>\n")
    for mode, want in (
        ("reference", "inference_tokenizer_image_token"),
        ("training", "training_preprocess_llada"),
    ):
        ids = build(tokenizer, question, 1, settings("general", mode))
        after = tokenizer.decode([ids[ids.index(IMAGE_SLOT) + 1]])
        assert after == case["first_token_after_image"][want]


def test_special_tokens_are_found_by_name(golden: Golden, tokenizer) -> None:
    ids = SpecialIds.of(tokenizer)
    names = golden.case("12")["special_ids_toy"]
    assert ids.mask == names["<|mdm_mask|>"]
    assert ids.eot == names["<|eot_id|>"]
    assert (ids.bos, ids.eos) == (names["<|startoftext|>"], names["<|endoftext|>"])
    assert (ids.start_header, ids.end_header) == (
        names["<|start_header_id|>"],
        names["<|end_header_id|>"],
    )
