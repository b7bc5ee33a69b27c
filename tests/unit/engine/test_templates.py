"""Answers with a form: what is given stands, what is blank is filled as it may be, whatever the
company."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_ray.data.canvas import Choice, Template, Words
from medv_ray.data.json_schema import template_of
from medv_ray.data.prompts import load_tokenizer
from medv_ray.diffusion.sampler import Denoising
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.engine.layout import Layout, Tokens, layout_of
from medv_ray.engine.resolve import resolve
from medv_ray.errors import DataError
from medv_ray.model import weights
from medv_ray.model.medv import Medv
from medv_ray.settings import TOY, AnswerSettings, EngineSettings, ModelSettings, SamplerSettings
from tests.unit.engine.conftest import png

FORM = Template.parse(
    "Kind: {{kind:choice=CT|MR|X-ray picture}}; {{mm:int=-5..20000}} mm, {{n:int=0..9}}.\n"
    "Finding: {{finding:tokens=0..4}} <|eot_id|> {{more:tokens=2}}."
)
SAMPLERS = {
    "exact": {},
    "few steps": {"gen_length": 8, "block_length": 4, "steps": 2},
    "threshold": {"rule": "threshold", "threshold": 0.3},
    "turbo": {"preset": "turbo", "gen_length": 16, "block_length": 8, "steps": 16},
    "prefix": {"cache": "prefix", "gen_length": 16, "block_length": 4, "steps": 16},
    "temperature": {"temperature": 1.0},
    "guided": {"cfg_scale": 1.5, "cache": "dual", "refresh_interval": 3},
    "independent": {"remasking": "independent", "steps": 4},
    "no end token": {"stop": ("i",), "forbidden": ("<|endoftext|>",)},
}


@pytest.fixture(scope="module")
def model(folder: Path) -> Medv:
    made = weights.load(folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("model.layers") or name == "model.norm.weight":
                parameter.fill_(2.0) if parameter.ndim == 1 else parameter.mul_(2)
    return made


def predictor(folder: Path, model: Medv, slots: int, together: bool) -> Predictor:
    limits = EngineSettings(slots=slots)
    tokenizer = load_tokenizer(folder)
    return Predictor(Engine(model, tokenizer, AnswerSettings(), limits, together=together))


def check(answer: Answer | DataError) -> Answer:
    assert isinstance(answer, Answer)
    found = {blank.name: blank.value for blank in answer.blanks}
    assert answer.text == (
        f"Kind: {found['kind']}; {found['mm']} mm, {found['n']}.\n"
        f"Finding: {found['finding']} <|eot_id|> {found['more']}."
    )
    assert found["kind"] in ("CT", "MR", "X-ray picture")
    assert -5 <= found["mm"] <= 20000
    assert 0 <= found["n"] <= 9
    assert answer.finish == "stop"
    [kind] = [blank for blank in answer.blanks if blank.name == "kind"]
    assert sum(kind.probabilities.values()) == pytest.approx(1)
    assert max(kind.probabilities, key=lambda text: kind.probabilities[text]) == found["kind"]
    assert kind.confidence == pytest.approx(kind.probabilities[found["kind"]], rel=1e-5)
    return answer


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_answer_has_the_form_and_needs_no_company(folder: Path, model: Medv, name: str) -> None:
    """Alone, among 8 slots, side by side as on a GPU, with free answers beside it."""
    sampler = SamplerSettings(**SAMPLERS[name])  # type: ignore[arg-type]
    words = ["why?", "is there a lesion?"]
    asked = [
        Request(word, (png(n),) if n else (), seed=n, sampler=sampler, template=form)
        for n, word in enumerate(words)
        for form in (FORM, None)
    ]
    said = []
    for slots, together in ((1, False), (8, False), (8, True)):
        with predictor(folder, model, slots, together) as one:
            said.append(one.answer(asked))
    for answers in said:
        for request, answer, alone in zip(asked, answers, said[0], strict=True):
            assert isinstance(answer, Answer)
            assert isinstance(alone, Answer)
            if request.template is not None:
                check(answer)
            assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)
            assert answer.forward_passes == alone.forward_passes
            if answers is not said[2]:
                assert answer.blanks == alone.blanks, "to the last bit"


@pytest.fixture(scope="module")
def toy() -> Iterator[Predictor]:
    with Predictor.load(ModelSettings(path=str(TOY))) as made:
        yield made


def test_its_text_only_grows_while_it_is_watched(toy: Predictor) -> None:
    texts = []
    for view in toy.watch(Request("Is there a vessel?", (png(1),), template=FORM)):
        if view.answer is not None:
            texts.append(check(view.answer).text)
            break
        assert view.text is not None
        given = [token for token, step in zip(view.tokens, view.token_step, strict=True)
                 if token is not None and step == -1]  # fmt: skip
        assert "".join(given).startswith("Kind:"), "pinned tokens stand from the beginning"
        texts.append(view.text)
    assert texts[0] == "Kind: "
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before)


def test_one_choice_takes_one_pass(toy: Predictor) -> None:
    request = Request("Is there a vessel?", (png(1),), template=Template.choosing(["yes", "no"]))
    [answer] = toy.answer([request])
    assert isinstance(answer, Answer)
    assert answer.text in ("yes", "no")
    assert answer.forward_passes == 1
    assert [*answer.blanks[0].probabilities] == ["yes", "no"]
    assert answer.confidence == answer.blanks[0].confidence


def test_a_cancelled_one_has_what_is_known(toy: Predictor) -> None:
    ticket = toy.engine.admit(Request("Is there a vessel?", (png(1),), template=FORM))
    toy.engine.step()
    toy.engine.cancel(ticket)
    [(_, answer)] = toy.engine.step()
    assert isinstance(answer, Answer)
    assert answer.finish == "cancelled"
    assert answer.text == "Kind: "
    assert answer.blanks == ()


def test_what_cannot_be_filled_ends_as_the_rows_error(toy: Predictor) -> None:
    many = Template((Words("a", 4000, 4000),))
    free = SamplerSettings(forbidden=("<|eot_id|>", "<|endoftext|>"))
    asked = [
        Request("Is it?", template=many),
        Request("Is it?", template=FORM, sampler=free),
        Request("Is it?", template=Template.choosing(["yes", "no"])),
    ]
    long, endless, fine = toy.answer(asked)
    assert isinstance(long, DataError)
    assert "it takes 4001 tokens with the answer's end; the limit is" in long.detail
    assert isinstance(endless, DataError)
    assert "leaves no token to end it" in endless.detail
    assert isinstance(fine, Answer)


# --- without a model: any logits whatever


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(load_tokenizer(TOY), 700)


def denoised(layout: Layout, seed: int) -> Denoising:
    """A response to random logits."""
    batch, noise = Denoising(layout.spec.kind, 1), torch.Generator().manual_seed(seed)
    batch.enter(0, layout.spec, torch.Generator().manual_seed(seed), 5, layout.canvas)
    while not batch.done:
        count = len(batch.needs()[0])
        batch.advance(torch.randn(count, 700, generator=noise) * 3, None)
    return batch


def reading(layout: Layout, batch: Denoising) -> str:
    """The answer's text, pinned tokens checked."""
    ids: list[int | None] = batch.x[0].tolist()
    mask = layout.spec.mask_id
    for i, token in layout.canvas.pinned.items():
        assert (ids[i], int(batch.token_step[0, i])) == (token, -1)
    ids = [None if token == mask else token for token in ids]
    found = [span.found for span in batch.row(0).spans]
    odds = [() if one is None else one.tolist() for one in found]
    return layout.read(ids, batch.token_confidence[0].tolist(), odds).text


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["CT", "MR", None, 5]},
        "note": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 5}, {"type": "null"}]},
        "list": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/one"}},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "count": {"type": ["integer", "null"], "minimum": -3},
    },
    "required": ["kind", "note", "list", "share", "count"],
    "additionalProperties": False,
    "$defs": {
        "one": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "sure": {"type": "boolean"}},
            "required": ["name", "sure"],
        }
    },
}


@settings(max_examples=12)
@given(
    st.integers(0, 10**6),
    st.sampled_from([{}, {"gen_length": 32, "block_length": 8, "steps": 8}, {"preset": "fast"}]),
    st.sampled_from([0.0, 0.8]),
)
def test_json_is_valid_whatever_the_model_says(
    tokens: Tokens, seed: int, sizes: dict[str, object], temperature: float
) -> None:
    from jsonschema import Draft202012Validator

    sampler = SamplerSettings(**sizes, temperature=temperature)  # type: ignore[arg-type]
    tokenizer = tokens._tokenizer
    spec = resolve(sampler, tokenizer, tokens.special)
    layout = layout_of(template_of(SCHEMA), spec, tokens)
    text = reading(layout, denoised(layout, seed))
    Draft202012Validator(SCHEMA).validate(json.loads(text))


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_literals_read_as_they_were_written(tokens: Tokens, text: str) -> None:
    """Names of special tokens in them, too; the space in front of a blank is the blank's."""
    spec = resolve(SamplerSettings(), tokens._tokenizer, tokens.special)
    form = Template((text + "<|eot_id|> ", Choice("a", ("yes", text + "no")), text or "."))
    layout = layout_of(form, spec, tokens)
    literal = [layout.canvas.pinned[i] for i in layout.parts[0].positions]
    assert tokens.text(literal) == text + "<|eot_id|>"
    assert not {*literal} & {*tokens.special}
    for option, said in zip(layout.parts[1].options, ("yes", text + "no"), strict=True):
        ids = [token for token in option if token != layout.canvas.end]
        assert tokens.text(ids) == " " + said


def test_a_response_grows_to_hold_its_form(tokens: Tokens) -> None:
    tokenizer = tokens._tokenizer
    form = Template((Words("a", 1, 21),))
    sizes = []
    for lengths in ((8, 8, 4), (8, 4, 4), (64, 64, 64)):
        length, block, steps = lengths
        settings = SamplerSettings(gen_length=length, block_length=block, steps=steps)
        spec = layout_of(form, resolve(settings, tokenizer, tokens.special), tokens).spec
        sizes.append((spec.gen_length, spec.block_length, spec.steps))
    assert sizes == [(22, 22, 11), (24, 4, 12), (64, 64, 64)]


@pytest.mark.parametrize(
    "form",
    [
        Template.parse("".join(f"{{{{a{i}:tokens=4096}}}}" for i in range(200))),
        Template.choosing(["x" * 20_000, *map(str, range(500))]),
        template_of(
            {"type": "array", "items": {"type": "string", "x-tokens": 4096}, "maxItems": 9}
        ),
    ],
    ids=["blanks", "a long choice", "a list"],
)
def test_a_form_that_is_too_long_is_refused_before_its_positions_are_made(
    tokens: Tokens, form: Template
) -> None:
    """A request of a few words could take all memory."""
    spec = resolve(SamplerSettings(), tokens._tokenizer, tokens.special)
    layout_of(Template.choosing(["yes", "no"]), spec, tokens)  # what is made once
    tracemalloc.start()
    with pytest.raises(DataError, match=r"it takes \d{5,6} tokens with the answer's end; .* 512\."):
        layout_of(form, spec, tokens, 512)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_kept_layout_is_held_to_the_limit_too(toy: Predictor) -> None:
    form = Template((Words("a", 30, 30),))
    sampler = SamplerSettings()
    assert toy.engine.placed(form, sampler, 31).canvas.length == 31
    with pytest.raises(DataError, match="takes 31 tokens"):
        toy.engine.placed(form, sampler, 30)


def test_what_a_form_says_often_is_made_once(tokens: Tokens) -> None:
    """Tokens of a text, and bool[V] of what a blank may be."""
    seen = Counter[str]()

    class Counting(Tokens):
        def encode(self, text: str) -> tuple[int, ...]:
            seen[text] += 1
            return super().encode(text)

    counting = Counting(tokens._tokenizer, 700)
    one = {"type": "object", "properties": {"a": {"enum": [*range(50)]}, "b": {"type": "string"}}}
    schema = {"type": "array", "items": one, "minItems": 8, "maxItems": 8}
    spec = resolve(SamplerSettings(), tokens._tokenizer, tokens.special)
    canvas = layout_of(template_of(schema), spec, counting).canvas
    assert max(seen.values()) == 1
    assert len({id(mask) for mask in canvas.allowed.values()}) == 1


def test_an_answer_in_a_form_is_the_form_without_the_suffix(toy: Predictor) -> None:
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8, suffix=" end")
    [free] = toy.answer([Request("Is it?", sampler=sampler)])
    [answer] = toy.answer([Request("Is it?", sampler=sampler, template=FORM)])
    assert isinstance(free, Answer)
    assert isinstance(answer, Answer)
    assert free.text.endswith("end")
    assert not answer.text.endswith("end")
    assert len(answer.positions) == len(answer.token_ids) == len(answer.token_confidence)


def test_answers_do_not_change_for_requests_without_a_form(toy: Predictor) -> None:
    request = Request("Is there a vessel in the tile?", (png(1),))
    [alone] = toy.answer([request])
    beside = toy.answer([request, replace(request, template=FORM), request])
    assert isinstance(alone, Answer)
    for one in (beside[0], beside[2]):
        assert isinstance(one, Answer)
        assert one.token_ids == alone.token_ids
        assert one.token_confidence == alone.token_confidence
