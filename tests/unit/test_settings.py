import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medv_ray.errors import CATALOGUE, DataError, MedvError, RunError, SettingsError, explain
from medv_ray.settings import AnswerSettings, SamplerSettings, build, override


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({"steps": 7, "block_length": 32}, "E1002", "steps=7"),
        ({"gen_length": 65, "block_length": 64}, "E1002", "gen_length=65"),
        ({"stepz": 1}, "E1001", "stepz"),
        ({"steps": 0}, "E1001", "steps"),
        ({"temperature": float("nan")}, "E1001", "temperature"),
        ({"cfg_scale": -1}, "E1001", "cfg_scale"),
        ({"remasking": "entropy"}, "E1001", "low_confidence"),
    ],
)
def test_a_wrong_setting_names_itself(values: dict, code: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(SamplerSettings, values)
    assert caught.value.code == code
    assert says in str(caught.value)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_only_schedules_that_divide_are_accepted(
    gen_length: int, block_length: int, steps: int
) -> None:
    fits = gen_length % block_length == 0 and steps % (gen_length // block_length) == 0
    values = {"gen_length": gen_length, "block_length": block_length, "steps": steps}
    if fits:
        build(SamplerSettings, values)
    else:
        with pytest.raises(SettingsError, match="E1002"):
            build(SamplerSettings, values)


def test_override_reads_json_and_leaves_its_input_alone() -> None:
    start = {"sampler": {"steps": 64}}
    got = override(
        start, ["sampler.steps=32", "sampler.stop=[]", "prompt.system=medical", "seed=7"]
    )
    assert start == {"sampler": {"steps": 64}}
    settings = build(AnswerSettings, got)
    assert (settings.sampler.steps, settings.sampler.stop, settings.seed) == (32, (), 7)
    assert settings.prompt.system == "medical"


def test_override_opens_a_group_that_is_left_out() -> None:
    assert override({"lora": None}, ["lora.rank=4"]) == {"lora": {"rank": 4}}


@pytest.mark.parametrize("text", ["steps", "=3", "seed.x=1"])
def test_override_refuses_what_it_cannot_place(text: str) -> None:
    with pytest.raises(SettingsError, match="E1001"):
        override({"seed": 1}, [text])


def test_errors_survive_pickling_with_their_exit_codes() -> None:
    for code, exit_code in [("E1502", 3), ("E1501", 4), ("E1503", 5), ("E1510", 1)]:
        copy = pickle.loads(pickle.dumps(RunError(code, "why")))
        assert (copy.code, copy.detail, copy.exit_code) == (code, "why", exit_code)
    assert SettingsError("E1001", "").exit_code == 2
    assert isinstance(DataError("E1203", ""), ValueError)


def test_catalogue_is_complete_and_its_words_are_distinct() -> None:
    reasons = [entry.reason for entry in CATALOGUE.values()]
    assert len(set(reasons)) == len(reasons)
    for code, entry in CATALOGUE.items():
        assert explain(code.lower()).startswith(code)
        assert entry.cause.endswith(".")
        assert entry.fix.endswith(".")
        assert MedvError(code, "x").reason == entry.reason
    with pytest.raises(SettingsError):
        explain("E9999")
