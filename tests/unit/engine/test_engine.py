import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medv_ray.data import prompts
from medv_ray.engine import Answer, Engine, Predictor, Request, row_seed
from medv_ray.engine.predictor import load_model
from medv_ray.engine.running import RunningBatch
from medv_ray.errors import CheckpointError, DataError, SettingsError
from medv_ray.model import lora, weights
from medv_ray.model.config import ModelConfig
from medv_ray.settings import (
    AnswerSettings,
    EngineSettings,
    ImageSettings,
    LoraSettings,
    ModelSettings,
    PromptSettings,
    SamplerSettings,
)
from tests.unit.engine.conftest import png

SAMPLER = SamplerSettings(gen_length=8, block_length=4, steps=4, stop=())
WARM = SamplerSettings(gen_length=8, block_length=8, steps=4, temperature=1.0, stop=())


def load(
    folder: Path,
    engine: EngineSettings | None = None,
    together: bool | None = None,
    **answer: object,
) -> Predictor:
    """`together`: as on a GPU."""
    settings = AnswerSettings(**{"sampler": SAMPLER, **answer})  # type: ignore[arg-type]
    model, tokenizer = load_model(ModelSettings(path=str(folder), device="cpu"))
    return Predictor(Engine(model, tokenizer, settings, engine or EngineSettings(), together))


def essence(answer: object) -> object:
    assert isinstance(answer, Answer)
    return answer.token_ids, answer.token_step, answer.finish


@pytest.fixture
def predictor(folder: Path) -> Iterator[Predictor]:
    with load(folder) as loaded:
        yield loaded


def requests() -> list[Request]:
    """Rows of different lengths, images and samplers, so that company could matter."""
    return [
        Request("is there a lesion?", (png(1),), seed=row_seed(0, "a")),
        Request("what colour is it, and on which side of the image?", (png(2),), seed=2),
        Request("no image here", (), seed=3),
        Request("again", (png(1),), seed=4, sampler=WARM),
        Request("two", (png(1), png(2)), seed=5),
        Request("guided", (png(2),), seed=6, sampler=SAMPLER.model_copy(update={"cfg_scale": 1.5})),
    ]


def same(a: Answer | DataError, b: Answer | DataError) -> bool:
    assert isinstance(a, Answer)
    assert isinstance(b, Answer)
    return (a.token_ids, a.token_confidence, a.token_step) == (
        b.token_ids,
        b.token_confidence,
        b.token_step,
    )


def test_an_answer_says_how_it_came_to_be(predictor: Predictor) -> None:
    (answer,) = predictor.answer([Request("is there a lesion?", (png(1),))])
    assert isinstance(answer, Answer)
    assert len(answer.token_ids) == len(answer.token_confidence) == len(answer.token_step) == 8
    assert sorted(answer.token_step) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(answer.token_step[:4]) == {0, 1}, "the first block comes first"
    assert answer.forward_passes == 4
    assert answer.finish == "length"
    assert all(0 < p <= 1 for p in answer.token_confidence)
    assert math.isclose(answer.confidence, sum(answer.token_confidence) / 8, rel_tol=1e-6)
    assert len(answer.image_sha256[0]) == len(answer.prompt_sha256) == 64


def test_company_and_order_change_nothing(folder: Path) -> None:
    rows = requests()
    with load(folder) as one:
        alone = [one.answer([row])[0] for row in rows]
    for slots in (1, 3, 8):
        with load(folder, EngineSettings(slots=slots)) as together:
            assert all(map(same, together.answer(rows), alone)), slots
            assert all(map(same, together.answer(rows[::-1]), alone[::-1])), slots


def test_the_seed_decides_where_numbers_are_drawn(predictor: Predictor) -> None:
    def ask(seed: int) -> Answer:
        (answer,) = predictor.answer([Request("what?", (png(1),), seed=seed, sampler=WARM)])
        assert isinstance(answer, Answer)
        return answer

    assert same(ask(1), ask(1))
    assert any(not same(ask(1), ask(seed)) for seed in range(2, 6))
    assert row_seed(0, "a") == row_seed(0, "a") != row_seed(1, "a")
    assert row_seed(0, "a") != row_seed(0, "b")


def test_tower_runs_once_per_distinct_image(predictor: Predictor) -> None:
    rows = [Request(f"question {i}", (png(i % 2),)) for i in range(6)]
    predictor.answer(rows)
    counters = predictor.counters
    assert (counters.decodes, counters.tower_runs, counters.image_hits) == (2, 2, 4)
    assert counters.answers == 6


def test_a_broken_image_costs_one_decode_and_no_other_row(predictor: Predictor) -> None:
    broken = png(1)[:60]
    got = predictor.answer(
        [Request("a", (broken,)), Request("b", (png(2),)), Request("c", (broken,))]
    )
    assert [getattr(row, "code", "answer") for row in got] == ["E1203", "answer", "E1203"]
    assert predictor.counters.decodes == 2


def test_the_cache_is_bounded_and_changes_no_answer(folder: Path) -> None:
    rows = [Request(f"question {i}", (png(i % 3),)) for i in range(6)]
    with load(folder) as kept, load(folder, EngineSettings(image_cache_bytes=0)) as none:
        assert all(map(same, kept.answer(rows), none.answer(rows)))
        assert none.counters.tower_runs == 6
        assert none.counters.image_hits == 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request("  "), "E1301"),
        (Request("x" * 20_000), "E1302"),
        (Request("x" * 600), "E1303"),
        (Request("a\0b"), "E1304"),
        (Request("q", (b"",)), "E1201"),
        (Request("q", (b"<html>404</html>",)), "E1202"),
        (Request("q", (png(0, (8, 8)),)), "E1205"),
    ],
)
def test_bad_rows_come_back_as_errors(predictor: Predictor, request_: Request, code: str) -> None:
    (got,) = predictor.answer([request_])
    assert isinstance(got, DataError)
    assert got.code == code


@pytest.mark.parametrize(
    "text", ["<|mdm_mask|>" * 16, "<image>" * 20, "<|eot_id|><|start_header_id|>system"]
)
def test_typed_special_tokens_leave_no_mask(predictor: Predictor, text: str) -> None:
    (got,) = predictor.answer([Request(text, (png(1),))])
    assert isinstance(got, Answer)
    assert len(got.token_ids) == 8
    assert 260 not in got.token_ids


def test_stop_cuts_the_answer_and_forbidden_tokens_never_come(folder: Path) -> None:
    with load(folder) as free:
        (answer,) = free.answer([Request("what?", (png(1),))])
        assert isinstance(answer, Answer)
        first = free.engine.token_text(answer.token_ids[2])
    stopping = SAMPLER.model_copy(update={"stop": (first,)})
    with load(folder, sampler=stopping) as stopped:
        (cut,) = stopped.answer([Request("what?", (png(1),))])
    assert isinstance(cut, Answer)
    assert cut.finish == "stop"
    assert len(cut.token_ids) <= 2
    assert cut.token_ids == answer.token_ids[: len(cut.token_ids)]
    assert cut.forward_passes <= answer.forward_passes


def test_suffix_is_given_and_part_of_the_answer(folder: Path) -> None:
    with load(folder, sampler=SAMPLER.model_copy(update={"suffix": "!?"})) as loaded:
        (answer,) = loaded.answer([Request("what?")])
    assert isinstance(answer, Answer)
    assert answer.text.endswith("!?")
    assert answer.token_step[-2:] == (-1, -1)


def test_watch_shows_every_step_and_ends_with_the_answer(predictor: Predictor) -> None:
    request = Request("is there a lesion?", (png(1),))
    views = list(predictor.watch(request))
    masks = [sum(token is None for token in view.tokens) for view in views]
    assert masks == [6, 4, 2, 0]
    (answer,) = predictor.answer([request])
    assert views[-1].answer is not None
    assert same(views[-1].answer, answer)
    assert all(view.answer is None for view in views[:-1])


def test_closing_a_watch_frees_its_slot(predictor: Predictor) -> None:
    watching = predictor.watch(Request("is there a lesion?", (png(1),)))
    next(watching)
    watching.close()
    before = predictor.counters.forward_passes
    predictor.engine.step()
    assert predictor.engine.idle
    assert predictor.counters.forward_passes == before


def test_what_ended_early_does_not_meet_the_next_call(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request("is there a lesion?", (png(1),))
    want = predictor.answer([asked])
    watching = predictor.watch(Request("something else"))
    next(watching)
    watching.close()
    assert same(predictor.answer([asked])[0], want[0])

    def fail(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(predictor.engine, "_advance", fail)
        with pytest.raises(RuntimeError):
            predictor.answer([Request("one"), Request("two")])
    assert same(predictor.answer([asked])[0], want[0])


def test_cancelling_returns_what_there_is(predictor: Predictor) -> None:
    engine: Engine = predictor.engine
    running = engine.admit(Request("one"))
    waiting = engine.admit(Request("two"))
    assert engine.step() == []
    engine.cancel(running)
    engine.cancel(waiting)
    ((ticket, answer),) = engine.step()
    assert ticket == running
    assert isinstance(answer, Answer)
    assert answer.finish == "cancelled"
    assert len(answer.token_ids) == 2
    assert engine.idle


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_who_makes_a_step_fail_is_given_up_and_nobody_else(
    folder: Path, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(folder, EngineSettings(slots=slots)) as predictor:
        engine, start = predictor.engine, predictor.engine._processor.begin

        def fails(ticket: int, request: Request, admitted_s: float) -> object:
            if request.question == "defect":
                raise RuntimeError
            return start(ticket, request, admitted_s)

        monkeypatch.setattr(engine._processor, "begin", fails)
        asked = ["one", "defect", "two", "", "defect", "three"]
        tickets = [engine.admit(Request(question)) for question in asked]
        ended: dict[int, object] = {}
        given_up = []
        while not engine.idle:
            try:
                ended |= dict(engine.step())
            except RuntimeError:
                given_up.append(engine.give_up())
        assert given_up == [tickets[1], tickets[4]]
        assert set(ended) == set(tickets) - set(given_up)
        assert isinstance(ended[tickets[3]], DataError)
        assert not engine._admitted_s


def test_an_error_before_a_failing_step_is_not_lost(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, start = predictor.engine, predictor.engine._processor.begin

    def fails(ticket: int, request: Request, admitted_s: float) -> object:
        if request.question == "defect":
            raise RuntimeError
        return start(ticket, request, admitted_s)

    monkeypatch.setattr(engine._processor, "begin", fails)
    bad, defect = engine.admit(Request("")), engine.admit(Request("defect"))
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.give_up() == defect
    assert not engine.idle
    ((ticket, error),) = engine.step()
    assert ticket == bad
    assert isinstance(error, DataError)
    assert engine.idle
    assert engine.give_up() is None


@pytest.mark.parametrize("together", [False, True])
def test_of_several_the_one_that_is_to_blame_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """A step of several raises: each runs alone then, and only one of them does so again."""
    asked = [Request(f"question {n}", seed=n) for n in range(4)]
    with load(folder, EngineSettings(slots=3), together) as predictor:
        engine = predictor.engine
        want = predictor.answer(asked)
        step, poisoned = RunningBatch.step, [engine.admit(asked[0])]

        def fails(self: RunningBatch, head: object) -> object:
            if any(s.ticket in poisoned and s.batch is self for s in engine._running):
                raise ValueError("a defect")
            return step(self, head)  # type: ignore[arg-type]

        tickets = [*poisoned, *(engine.admit(request) for request in asked[1:])]
        monkeypatch.setattr(RunningBatch, "step", fails)
        ended: dict[int, object] = {}
        raised = 0
        while not engine.idle:
            try:
                ended |= dict(engine.step())
            except ValueError:
                raised += 1
                assert engine.give_up() == poisoned[0]
        assert raised == 1
        assert [essence(ended[ticket]) for ticket in tickets[1:]] == [*map(essence, want[1:])]
        assert engine._limit == 3, "afterwards requests run together again"
        assert engine.counters.memory_shortages == 0


def test_what_touches_the_state_runs_under_one_rule(folder: Path) -> None:
    """The state's tensors are made in inference mode, and outside of it nobody may write to them.
    What else is public may be called by any thread."""
    free = {"idle", "slots", "close"}
    public = {name for name in vars(Engine) if not name.startswith("_")}
    ruled = {name for name in public if getattr(vars(Engine)[name], "stateful", False)}
    assert public == ruled | free
    assert not ruled & free
    measured = {"inspect", "attend", "choose", "log_likelihood"}
    assert ruled == {"admit", "cancel", "give_up", "step", "view"} | measured
    for name in ruled:
        with load(folder, EngineSettings(slots=2), True) as predictor:
            engine = predictor.engine
            request = Request("why?", seed=3)
            ticket, other = engine.admit(request), engine.admit(request)
            engine.step()
            mask: list[int | None] = [None] * SAMPLER.gen_length
            arguments = {
                "admit": (request,),
                "cancel": (ticket,),
                "view": (ticket,),
                "inspect": (request, mask, 0),
                "attend": (request, mask),
                "choose": (request, ["a", "b"]),
                "log_likelihood": (request, "a b", 2),
            }
            engine._at_work = [ticket]
            bound = {name for name in vars(engine) if not name.startswith("_")}
            known = {"counters", "spec", "text", "tiles", "token_text", "decode", "placed"}
            assert bound == known
            assert not torch.is_inference_mode_enabled()
            getattr(engine, name)(*arguments.get(name, ()))
            ended = {}
            while not engine.idle:
                ended |= dict(engine.step())
            assert isinstance(ended[other], Answer)


def test_several_turns_change_the_answer_and_keep_the_image_first(predictor: Predictor) -> None:
    history = (prompts.Turn("user", "what is shown?"), prompts.Turn("assistant", "a cell"))
    follow = Request("what colour?", (png(1),), history=history)
    got = predictor.answer([follow, Request("what colour?", (png(1),))])
    assert isinstance(got[0], Answer)
    assert isinstance(got[1], Answer)
    assert got[0].prompt_sha256 != got[1].prompt_sha256


def test_conversions_are_told(predictor: Predictor) -> None:
    (got,) = predictor.answer([Request("q", (png(1, mode="RGBA"),))])
    assert isinstance(got, Answer)
    assert got.warnings == ("alpha_composited:255",)


@pytest.mark.parametrize(
    "sampler",
    [{"forbidden": ("<|no_such_token|>",)}, {"stop": ("",)}],
)
def test_unknown_tokens_are_refused_before_any_row(folder: Path, sampler: dict) -> None:
    with pytest.raises(SettingsError, match="E1001"):
        load(folder, sampler=SAMPLER.model_copy(update=sampler))


def test_an_image_for_a_text_only_checkpoint_is_refused(folder: Path) -> None:
    with load(folder) as loaded:
        model = loaded.engine._model
        model.config = ModelConfig(model.config.language, None)
        with pytest.raises(CheckpointError, match="E1410"):
            loaded.answer([Request("q", (png(1),))])


def test_prompt_settings_reach_the_prompt(folder: Path) -> None:
    digests = set()
    for prompt in (
        PromptSettings(),
        PromptSettings(system="medical"),
        PromptSettings(token_after_image="training"),
        PromptSettings(question_suffix=" Answer concisely in English."),
    ):
        with load(folder, prompt=prompt) as loaded:
            (answer,) = loaded.answer([Request("what?", (png(1),))])
            assert isinstance(answer, Answer)
            digests.add(answer.prompt_sha256)
    assert len(digests) == 4


@pytest.mark.parametrize("aspect", ["square", "pad", "anyres_max"])
def test_aspect_is_a_setting(folder: Path, aspect: str) -> None:
    image = ImageSettings(aspect=aspect)  # type: ignore[arg-type]
    with load(folder, image=image) as loaded:
        (answer,) = loaded.answer([Request("what?", (png(1, (90, 40)),))])
    assert isinstance(answer, Answer)


def test_dtype_is_the_callers(folder: Path) -> None:
    model = ModelSettings(path=str(folder), device="cpu", dtype="bfloat16")
    with Predictor.load(model, AnswerSettings(sampler=SAMPLER)) as loaded:
        assert loaded.engine._model.dtype is torch.bfloat16
        (answer,) = loaded.answer([Request("what?", (png(1),))])
        assert isinstance(answer, Answer)


def test_infinite_logits_end_their_row_only(predictor: Predictor) -> None:
    model = predictor.engine._model
    with torch.no_grad():
        model.model.embed_tokens.weight[ord("!") - 33] = torch.inf  # the byte "!" of the vocabulary
    got = predictor.answer([Request("what!"), Request("what?")])
    assert isinstance(got[0], DataError)
    assert got[0].code == "E1305"
    assert isinstance(got[1], Answer)


def test_an_adapter_answers_like_the_merged_weights(folder: Path, tmp_path: Path) -> None:
    settings = LoraSettings(rank=4, alpha=8.0)
    base, path = weights.digest(folder), tmp_path / "adapter"
    model = weights.load(folder)
    lora.add_lora(model, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.3)
    lora.save_adapter(model, path, base, settings)
    lora.merge_lora(model)
    weights.save(model, tmp_path / "merged", tokenizer_files_from=folder)
    held = ModelSettings(path=str(folder), device="cpu", adapter=str(path))
    answer = AnswerSettings(sampler=SAMPLER)
    with Predictor.load(held, answer) as beside, load(tmp_path / "merged") as merged:
        found = [predictor.answer(requests()[:2]) for predictor in (beside, merged)]
    with load(folder) as plain:
        without = plain.answer(requests()[:2])
    for mine, theirs, other in zip(*found, without, strict=True):
        assert isinstance(mine, Answer)
        assert isinstance(theirs, Answer)
        assert isinstance(other, Answer)
        assert mine.token_ids == theirs.token_ids
        assert mine.token_confidence != other.token_confidence
        assert mine.token_confidence == pytest.approx(theirs.token_confidence, abs=1e-5)
    foreign = held.model_copy(update={"path": str(tmp_path / "merged")})
    with pytest.raises(CheckpointError, match="E1411"):
        Predictor.load(foreign, answer)
