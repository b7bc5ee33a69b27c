"""Ids, labels and segments of a conversation as each setting of a stage wants them."""

from typing import Any

import pytest

from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.data.segments import assistant_header
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.training.rows import Row, RowEncoder
from medv_ray.training.stages import StageSettings
from tests.unit.training.tiny import TOY

TALK = [
    {"from": "human", "value": "<image>\nIs it red?"},
    {"from": "gpt", "value": "yes"},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "no"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TOY)


def row(
    tokenizer: Any,
    talk: list[dict[str, str]] = TALK,
    number: int = 0,
    num_images: int = 1,
    **stage: Any,
) -> Row:
    values = {"name": "x", "lr": 1.0, "batch_size": 1} | stage
    return RowEncoder(tokenizer, StageSettings.model_validate(values))(talk, num_images, number)


def answers(tokenizer: Any, ids: list[int]) -> list[int]:
    """Where what the assistant says begins."""
    header = list(assistant_header(tokenizer))
    starts = [i for i in range(len(ids)) if ids[i : i + len(header)] == header]
    return [start + len(header) for start in starts]


def test_answers_alone_are_targets_when_asked(tokenizer: Any) -> None:
    both = {kind: row(tokenizer, targets=kind) for kind in ("all", "answers")}
    ids = both["all"].ids
    assert both["answers"].ids == ids
    said = [token for token in both["answers"].labels if token != IGNORE]
    eot = SpecialIds.of(tokenizer).eot
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no"))
    assert said == [*yes, eot, *no, eot]
    for one in both.values():
        assert all(label in (IGNORE, token) for label, token in zip(one.labels, ids, strict=True))
    assert sum(label != IGNORE for label in both["all"].labels) > len(said)


@pytest.mark.parametrize("kind", ["end_of_text", "end_of_turn"])
def test_the_last_answer_is_filled_up(tokenizer: Any, kind: str) -> None:
    plain, filled = row(tokenizer), row(tokenizer, answer_fill=8, fill_token=kind)
    special = SpecialIds.of(tokenizer)
    assert filled.ids[: len(plain.ids)] == plain.ids
    assert len(filled.ids) - answers(tokenizer, filled.ids)[-1] == 8
    filling = filled.ids[len(plain.ids) :]
    assert set(filling) == {special.eos if kind == "end_of_text" else special.eot}
    assert filled.labels[len(plain.ids) :] == filling
    assert row(tokenizer, answer_fill=1) == plain


def test_rows_take_in_turn_a_length_that_holds_their_answer(tokenizer: Any) -> None:
    plain = row(tokenizer)
    length = len(plain.ids) - answers(tokenizer, plain.ids)[-1]
    one = {fill: row(tokenizer, answer_fill=fill) for fill in (0, length, length + 1, length + 4)}
    for fills, taken in {
        (length, length + 4): (length, length + 4) * 3,
        (length + 4, 1, length + 1): (length + 4, length + 1) * 3,
        (1, length + 1): (length + 1,) * 6,
        (length + 4,): (length + 4,) * 6,
        (1, length - 1): (0,) * 6,
    }.items():
        found = [row(tokenizer, number=number, answer_fill=fills) for number in range(6)]
        assert found == [one[fill] for fill in taken], fills


def test_wrong_lengths_are_refused(tokenizer: Any) -> None:
    for fill in (-1, (), (8, 0), (8, -1), "long"):
        with pytest.raises(ValueError, match="answer_fill"):
            row(tokenizer, answer_fill=fill)
    shown = StageSettings(name="x", lr=1.0, batch_size=1, answer_fill=(8, 24)).model_dump_json()
    assert StageSettings.model_validate_json(shown).answer_fill == (8, 24)


def test_the_token_after_an_image_is_lost_as_at_inference(tokenizer: Any) -> None:
    kept, lost = row(tokenizer), row(tokenizer, token_after_image="reference")
    place = kept.ids.index(IMAGE_SLOT) + 1
    assert lost.ids == kept.ids[:place] + kept.ids[place + 1 :]
    assert lost.labels == kept.labels[:place] + kept.labels[place + 1 :]


def test_an_aspect_that_no_picture_gets_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="image.aspect=pad cuts no picture .* use aspect=pad"):
        row(tokenizer, image={"aspect": "pad"})


@pytest.mark.parametrize("text", ["<image>", "<image><image>\nWhich?", "Which? <image><image>"])
def test_only_a_token_of_text_is_lost_after_an_image(tokenizer: Any, text: str) -> None:
    """No image, and no end of turn."""
    talk = [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]
    count = text.count("<image>")
    kept, lost = (
        row(tokenizer, talk, num_images=count, token_after_image=how)
        for how in ("training", "reference")
    )
    structure = {IMAGE_SLOT, *SpecialIds.of(tokenizer)}
    of_kept, of_lost = ([t for t in one.ids if t in structure] for one in (kept, lost))
    assert of_lost == of_kept
    assert len(kept.ids) - len(lost.ids) == text.startswith("<image><image>\n")


def test_segments_end_where_the_answers_do(tokenizer: Any) -> None:
    filled = {"answer_fill": 8, "token_after_image": "reference"}
    for attention in ("full", "dialogue", "prefix"):
        found = row(tokenizer, attention=attention, **filled)
        first, second = answers(tokenizer, found.ids)
        image = found.ids.index(IMAGE_SLOT) + 1
        turn = found.ids.index(SpecialIds.of(tokenizer).eot, first) + 1
        want = {"full": (), "dialogue": (turn,), "prefix": (image, first, turn, second)}
        assert found.ends == (*want[attention], len(found.ids)), attention


@pytest.mark.parametrize("attention", ["full", "prefix"])
def test_a_plain_row_is_image_caption_and_newline(tokenizer: Any, attention: str) -> None:
    found = row(tokenizer, TALK[:2], template="plain", attention=attention)
    assert found.ids[0] == IMAGE_SLOT
    assert tokenizer.decode(found.ids[1:]) == "yes\n"
    assert found.labels == [IGNORE, *found.ids[1:]]
    assert found.ends == ((1, len(found.ids)) if attention == "prefix" else (len(found.ids),))


@pytest.mark.parametrize(
    ("template", "other"),
    [
        ("pairs", {"attention": "prefix"}),
        ("pairs", {"attention": "dialogue"}),
        ("plain", {"attention": "dialogue"}),
        ("plain", {"targets": "answers"}),
        ("pairs", {"answer_fill": 8}),
        ("pairs", {"answer_fill": (8, 24)}),
        ("pairs", {"token_after_image": "reference"}),
    ],
)
def test_what_a_form_without_roles_cannot_have_is_refused(
    tokenizer: Any, template: str, other: dict[str, Any]
) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=f"template={template} takes no {name}="):
        row(tokenizer, template=template, **other)
