"""The model as lmms-eval asks it, without lmms-eval: tests/clients/run_lmms_eval.py runs the real
one."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from medv_ray.data import synthetic
from medv_ray.engine import Predictor, Request
from medv_ray.errors import DataError, SettingsError
from medv_ray.on_ray.options import checkpoint_defaults
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings, build

ROWS = list(synthetic.rows(4, seed=3))


class Base:
    """What of lmms-eval's own class is used."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    def clean(self) -> None:
        pass


@pytest.fixture(scope="module")
def kind() -> Iterator[Any]:
    parts = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.instance": {"Instance": object},
        "lmms_eval.api.model": {"lmms": Base},
    }  # fmt: skip
    name = "medv_ray.lmms_eval.model"
    with pytest.MonkeyPatch.context() as patch:
        for part, values in parts.items():
            module = ModuleType(part)
            vars(module).update(values)
            patch.setitem(sys.modules, part, module)
        yield importlib.import_module(name).LladaMedv
    sys.modules.pop(name)


@pytest.fixture(scope="module")
def model(kind: Any) -> Iterator[Any]:
    made = kind(pretrained="toy", batch_size="2", max_batch_size=None, device="cpu")
    made.task_dict = {"t": {"test": [{"image": row.image} for row in ROWS]}}
    yield made
    made.clean()


def shown(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(doc["image"]))]


def asking(rows: list[int], **given: Any) -> list[Any]:
    made = [(ROWS[i].question, dict(given), shown, i, "t", "test") for i in rows]
    return [SimpleNamespace(args=one) for one in made]


def test_answers_in_order_are_the_predictors(model: Any) -> None:
    sampler = build(SamplerSettings, checkpoint_defaults(str(TOY))["sampler"])
    with Predictor.load(ModelSettings(path=str(TOY)), AnswerSettings(sampler=sampler)) as ours:
        said = ours.answer([Request(row.question, (row.image,)) for row in ROWS])
    wanted = [one.text for one in said if not isinstance(one, DataError)]
    assert len(set(wanted)) > 1
    order = [2, 0, 3, 1, 2]
    given = {"max_new_tokens": 64, "temperature": 0, "until": ["\n\n"], "do_sample": False}
    assert model.generate_until(asking(order, **given)) == [wanted[i] for i in order]
    assert (model._rank, model._world_size) == (0, 1)
    letter = wanted[0][1]
    cut = model.generate_until(asking([0], until=letter))
    assert cut == [wanted[0].partition(letter)[0]]
    with pytest.raises(SettingsError, match="num_beams"):
        model.generate_until(asking([0], num_beams=5))


def test_each_of_one_documents_samples_draws_for_itself(model: Any) -> None:
    plan = asking([0], temperature=1.0)[0].args
    first, second, again = (
        model._request(plan[0], shown, (0, "t", "test"), number, SimpleNamespace(sampler=None))
        for number in (0, 1, 0)
    )
    assert first.seed == again.seed != second.seed


def test_a_bad_picture_is_counted(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    small = SimpleNamespace(
        args=("What?", {}, lambda doc: [Image.new("RGB", (2, 2))], 0, "t", "test")
    )
    found = model.generate_until([small, *asking([1])])
    assert found[0] == "" != found[1]
    assert "1 of 2 requests were not answered" in caplog.text


def test_likelihood(model: Any) -> None:
    """The sign is lmms-eval's: of choices the smallest is taken."""
    closed = next(i for i, row in enumerate(ROWS) if row.answer in ("yes", "no"))
    right = ROWS[closed].answer
    wrong = {"yes": "no", "no": "yes"}[right]

    def one(target: Any) -> tuple[float, bool]:
        args = (ROWS[closed].question, target, shown, closed, "t", "test")
        [found] = model.loglikelihood([SimpleNamespace(args=args)])
        return found

    best, other = one(f" {right}"), one(f" {wrong}")
    assert 0 <= best[0] < 0.1 < 3 < other[0]
    assert (best[1], other[1]) == (True, False)
    assert one(lambda doc: right) == (-best[0], True)
    with pytest.raises(SettingsError, match="acc_mutual_info"):
        model.loglikelihood([SimpleNamespace(args=("", "yes"))])


def test_what_it_does_not_do(kind: Any, model: Any) -> None:
    with pytest.raises(NotImplementedError, match="generate_until_multi_round"):
        model.generate_until_multi_round([])
    with pytest.raises(SettingsError, match="conv_template"):
        kind(pretrained="toy", device="cpu", conv_template="x")
