import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medv_ray.client.questions import LoadSettings
from medv_ray.errors import CATALOGUE, DataError, MedvError, RunError, SettingsError, explain
from medv_ray.on_ray.options import PoolSettings
from medv_ray.serving.options import LimitSettings
from medv_ray.setting_errors import kinds_of
from medv_ray.settings import PRESETS, AnswerSettings, SamplerSettings, Settings, build, override
from medv_ray.training.job import TrainSettings
from medv_ray.training.stages import StageSettings

ROOMS = (
    LoadSettings,
    PoolSettings,
    LimitSettings,
    TrainSettings,
)  # imported, so that all are known


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


def groups(cls: type[Settings] = Settings) -> list[type[Settings]]:
    return [found for sub in cls.__subclasses__() for found in (sub, *groups(sub))]


def numbers() -> list[tuple[type[Settings], str]]:
    """Every numeric setting of the package, those of optional and list type too."""
    found = []
    for cls in {*groups()}:
        if cls.__module__.startswith("medv_ray"):
            for name, field in cls.model_fields.items():
                kinds = kinds_of(field.annotation)
                if kinds & {int, float} and bool not in kinds:
                    found.append((cls, name))
    return sorted(found, key=str)


@pytest.mark.parametrize(("cls", "name"), numbers(), ids=lambda v: getattr(v, "__name__", v))
def test_true_and_false_are_no_numbers(cls: type[Settings], name: str) -> None:
    """Also in a list, and as YAML's `yes`, which arrives as True."""
    for value in (True, False, [True, 0.5]):
        with pytest.raises(ValidationError) as caught:
            cls.model_validate({name: value})
        said = [e for e in caught.value.errors() if e["loc"] == (name,)]
        assert [e["msg"] for e in said] == ["must be a number, not true or false"]


def test_the_settings_of_all_rooms_were_looked_at() -> None:
    found = {cls.__name__ for cls, _ in numbers()}
    assert {"SamplerSettings", "StageSettings", "TrainSettings", "PoolSettings"} <= found
    assert {"EngineSettings", "LimitSettings", "LoraSettings", "ImageSettings"} <= found


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("betas=0.9,0.95", "betas: must be a JSON list of 2 values, such as [0.9, 0.95] (given:"),
        ("betas=(0.9, 0.95)", "must be a JSON list of 2 values, such as [0.9, 0.95] (given:"),
        ('betas="[0.9,0.95]"', "must be a JSON list of 2 values, such as [0.9, 0.95] (given:"),
        ("betas=[0.8]", "betas: must be a JSON list of 2 values, such as [0.9, 0.999] (given:"),
        ("betas=[0.8,0.9,0.99]", "must be a JSON list of 2 values, such as [0.9, 0.999] (given:"),
        ("betas=0.8", "must be a JSON list of 2 values, such as [0.9, 0.999] (given: '0.8')."),
        ("betas=null", "must be a JSON list of 2 values, such as [0.9, 0.999] (given: 'None')."),
        ("betas=[0.9,1]", "betas.1: Input should be less than 1 (given: '1')."),
        ("betas=[true,0.9]", "betas: must be a number, not true or false (given: '[True, 0.9]')."),
        ("lr=true", "lr: must be a number, not true or false (given: 'True')."),
        ("answer_fill=[8,0]", "answer_fill.1: Input should be greater than 0 (given: '0')."),
        ("answer_fill=[]", "answer_fill: must hold at least one value (given: '[]')."),
        (
            "answer_fill=-1",
            "answer_fill: Input should be greater than or equal to 0 (given: '-1').",
        ),
        ("trainable=vision", 'trainable: must be a JSON list, such as ["vision"] (given:'),
        ("lora.rank=0", "lora.rank: Input should be greater than 0 (given: '0')."),
        ("lora.ranks=3", "lora.ranks: there is no such setting; there are: rank"),
    ],
)
def test_a_wrong_value_is_told_with_one_that_works(assignment: str, says: str) -> None:
    values = override({"name": "x", "lr": 1e-3, "batch_size": 4}, [assignment])
    with pytest.raises(SettingsError, match="E1001") as caught:
        build(StageSettings, values)
    assert says in str(caught.value)
    if "such as" in says and "must be a JSON list" in says:
        example = str(caught.value).partition("such as ")[2].partition(" (given")[0]
        name = assignment.partition("=")[0]
        assert build(StageSettings, override(values, [f"{name}={example}"]))
    with pytest.raises(SettingsError) as caught:
        build(StageSettings, values, quote=False)
    assert "given" not in str(caught.value)


def test_betas_as_a_list_are_taken() -> None:
    values = {"name": "x", "lr": 1e-3, "batch_size": 4}
    stage = build(StageSettings, override(values, ["betas=[0.9,0.95]"]))
    assert stage.betas == (0.9, 0.95)
    assert stage == build(StageSettings, stage.model_dump(mode="json"))


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


SPEED = ("rule", "threshold", "factor", "cache", "refresh_interval")


def speed(settings: SamplerSettings) -> tuple[object, ...]:
    return (settings.preset, *(getattr(settings, name) for name in SPEED))


def test_a_preset_fills_what_is_not_given() -> None:
    exact = ("exact", "schedule", 0.9, 1.0, "none", None)
    assert speed(SamplerSettings()) == speed(SamplerSettings(preset="exact")) == exact
    assert speed(AnswerSettings().sampler) == exact
    fast = ("fast", "threshold", 0.9, 1.0, "none", None)
    assert speed(SamplerSettings(preset="fast")) == fast
    turbo = ("turbo", "threshold", 0.7, 1.0, "dual", 32)
    assert speed(SamplerSettings(preset="turbo", gen_length=8, block_length=8, steps=8)) == turbo


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({"preset": "fast", "threshold": 0.8}, ("threshold", 0.8, 1.0, "none", None)),
        ({"preset": "turbo", "cache": "none"}, ("threshold", 0.7, 1.0, "none", 32)),
        ({"preset": "turbo", "refresh_interval": None}, ("threshold", 0.7, 1.0, "dual", None)),
        ({"preset": "fast", "factor": 2.0}, ("threshold", 0.9, 2.0, "none", None)),
        ({"preset": "fast", "rule": "schedule"}, ("schedule", 0.9, 1.0, "none", None)),
        ({"preset": "exact", "cache": "prefix"}, ("schedule", 0.9, 1.0, "prefix", None)),
        ({"rule": "factor", "factor": 2}, ("factor", 0.9, 2.0, "none", None)),
        ({"preset": "custom", "rule": "threshold"}, ("threshold", 0.9, 1.0, "none", None)),
    ],
)
def test_what_is_given_wins_and_is_recorded_as_custom(values: dict, want: tuple) -> None:
    before = dict(values)
    settings = build(SamplerSettings, values)
    assert speed(settings) == ("custom", *want)
    assert values == before


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_values_of_a_preset_that_are_given_keep_its_name(name: str) -> None:
    given = PRESETS[name] | {"factor": 1, "steps": 32}
    assert speed(build(SamplerSettings, {"preset": name, **given})) == speed(
        SamplerSettings(preset=name)
    )
    # without the name, the values do not make the preset
    anonymous = build(SamplerSettings, PRESETS[name])
    assert anonymous.preset == ("exact" if name == "exact" else "custom")


@given(st.data())
def test_settings_survive_being_written_down(data: st.DataObject) -> None:
    kinds = {
        "preset": st.sampled_from([*PRESETS, "custom"]),
        "rule": st.sampled_from(["schedule", "threshold", "factor", "factor_llada_v"]),
        "threshold": st.floats(0, 1, exclude_min=True),
        "factor": st.floats(0, 9),
        "cache": st.sampled_from(["none", "prefix", "dual"]),
        "refresh_interval": st.none() | st.integers(1, 99),
        "stop": st.just([]),
    }
    names = data.draw(st.sets(st.sampled_from(sorted(kinds))))
    settings = build(SamplerSettings, {name: data.draw(kinds[name]) for name in names})
    copies = [
        SamplerSettings(**settings.model_dump()),
        SamplerSettings.model_validate_json(settings.model_dump_json()),
        build(AnswerSettings, {"sampler": settings.model_dump(mode="json")}).sampler,
        AnswerSettings(sampler=settings).sampler,
        pickle.loads(pickle.dumps(settings)),
    ]
    for copy in copies:
        assert copy == settings
        assert hash(copy) == hash(settings)
        assert copy.model_dump() == settings.model_dump()


def test_equality_and_hash_see_the_preset() -> None:
    presets = [SamplerSettings(preset=name) for name in PRESETS]
    assert len({*presets, SamplerSettings(), SamplerSettings(preset="fast")}) == 3
    assert SamplerSettings(threshold=0.8) != SamplerSettings()


def test_set_chooses_a_preset() -> None:
    start = {"sampler": {"gen_length": 8, "block_length": 8, "steps": 8}}
    got = override(start, ["sampler.preset=turbo"])
    settings = build(AnswerSettings, got).sampler
    assert speed(settings) == ("turbo", "threshold", 0.7, 1.0, "dual", 32)
    assert settings.gen_length == 8
    more = override(got, ["sampler.refresh_interval=null", "sampler.threshold=0.5"])
    settings = build(AnswerSettings, more).sampler
    assert speed(settings) == ("custom", "threshold", 0.5, 1.0, "dual", None)


@pytest.mark.parametrize("preset", ["warp", "Fast", "", 3, None, True, ["fast"], {"name": "fast"}])
def test_an_unknown_preset_names_those_that_there_are(preset: object) -> None:
    with pytest.raises(SettingsError, match=r"E1001: sampler\.preset: .*'exact', 'fast', 'turbo'"):
        build(AnswerSettings, {"sampler": {"preset": preset}})


@pytest.mark.parametrize("remasking", ["random", "independent"])
@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_a_preset_that_needs_confidence_says_so(preset: str, remasking: str) -> None:
    values = {"preset": preset, "remasking": remasking}
    with pytest.raises(SettingsError, match=rf"E1001: .*preset={preset}.* not {remasking}"):
        build(SamplerSettings, values)
    assert build(SamplerSettings, values | {"rule": "schedule"}).preset == "custom"
    assert build(SamplerSettings, {"remasking": remasking}).preset == "exact"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0),
        ("threshold", 2),
        ("threshold", float("nan")),
        ("threshold", "high"),
        ("factor", -0.1),
        ("factor", float("inf")),
        ("refresh_interval", 0),
        ("refresh_interval", 1.5),
        ("cache", "block"),
        ("rule", "entropy"),
    ],
)
@pytest.mark.parametrize("preset", ["exact", "turbo", "custom"])
def test_values_out_of_range_name_themselves(preset: str, name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"E1001: {name}: .*given: '{value}'"):
        build(SamplerSettings, {"preset": preset, name: value})


def test_override_reads_json_and_leaves_its_input_alone() -> None:
    start = {"sampler": {"steps": 64}}
    got = override(
        start, ["sampler.steps=32", "sampler.stop=[]", "prompt.system=medical", "seed=7"]
    )
    assert start == {"sampler": {"steps": 64}}
    settings = build(AnswerSettings, got)
    assert (settings.sampler.steps, settings.sampler.stop, settings.seed) == (32, (), 7)
    assert settings.prompt.system == "medical"


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_what_json_does_not_read_stays_text(text: str) -> None:
    values = override({}, [f"sampler.stop={text}"])
    assert values == {"sampler": {"stop": text}}
    with pytest.raises(SettingsError, match="E1001: sampler.stop: must be a JSON list"):
        build(AnswerSettings, values)


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


def test_a_preset_that_is_set_later_is_that_preset() -> None:
    """Over a file's or a checkpoint's rule; what is set after it makes it a custom one."""
    file = {"sampler": {"rule": "threshold", "threshold": 0.5, "gen_length": 8, "block_length": 8}}
    exact = build(AnswerSettings, override(file, ["sampler.preset=exact", "sampler.steps=8"]))
    assert exact.sampler.preset == "exact"
    assert exact.sampler.rule == "schedule"
    assert exact.sampler.gen_length == 8
    assert file["sampler"]["rule"] == "threshold", "the file's values are not changed"
    later = override(file, ["sampler.preset=fast", "sampler.threshold=0.6", "sampler.steps=8"])
    sampler = build(AnswerSettings, later).sampler
    assert (sampler.preset, sampler.rule, sampler.threshold) == ("custom", "threshold", 0.6)
