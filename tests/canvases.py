"""Canvases and JSON schemas at random, each filled by a model that says anything.

    python -m tests.canvases [--count 100000] [--seed 0] [--minutes 600]

Half are templates, half schemas. The model is random logits of the toy's vocabulary that depend on
the response as it stands, so every step of every rule is taken: any sizes of blocks and steps,
presets, temperature, guidance, random remasking. Of each: no pinned token changed, every blank
holds what it may, the text is the template's own around the values; JSON parses and is valid by
jsonschema. Every 200th goes through batches of 2 and 8 rows together as well, and has to come out
the same to the last bit.
Prints one JSON line of counts; exit code 1 where one of them is not 0 that has to be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from medv_ray.data.canvas import Choice, Number, Template, Words, whole_number
from medv_ray.data.decimals import Decimals
from medv_ray.data.prompts import load_tokenizer
from medv_ray.diffusion.sampler import Denoising
from medv_ray.engine.layout import Layout, Reading, Tokens, layout_of
from medv_ray.engine.resolve import resolve
from medv_ray.settings import TOY, SamplerSettings
from tests.unit.data.test_json_schema import SCHEMAS, parts_of

VOCABULARY = 643
LITERALS = st.sampled_from(
    ["Modality: ", ". ", "\n", "<|eot_id|>", ' "a" ', "\u00e9\U0001f600 ", "x", ", no "]
)
TEXTS = st.lists(
    st.sampled_from(["yes", "no", "CT", "MR", "X-ray picture", "no finding", "Yes", "5", "\u00fc"]),
    min_size=2,
    max_size=6,
    unique=True,
)
SAMPLERS = st.sampled_from(
    [
        {},
        {"preset": "fast"},
        {"preset": "fast", "threshold": 0.3, "gen_length": 16, "block_length": 4, "steps": 16},
        {"gen_length": 8, "block_length": 4, "steps": 2},
        {"gen_length": 32, "block_length": 8, "steps": 32, "temperature": 0.8},
        {"remasking": "random", "steps": 8},
        {"remasking": "independent", "steps": 8},
        {"cfg_scale": 1.5, "steps": 16},
        {"rule": "factor", "factor": 1.0},
        {"noise": "keyed", "temperature": 0.5, "steps": 16},
    ]
)


@st.composite
def templates(draw: st.DrawFn) -> Template:
    """One to five blanks, with and without text between them."""
    parts: list[Any] = []
    for number in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            parts.append(draw(LITERALS))
        name, kind = f"b{number}", draw(st.integers(0, 3))
        low = draw(st.integers(-200, 200))
        if kind == 0:
            least = draw(st.integers(0, 3))
            parts.append(Words(name, least, max(1, least + draw(st.integers(0, 4)))))
        elif kind == 1:
            parts.append(Choice(name, tuple(draw(TEXTS))))
        elif kind == 2:
            parts.append(whole_number(name, low, low + draw(st.integers(1, 30))))
        else:
            high = low + draw(st.integers(1, 10**6))
            parts.append(Number(name, Decimals(low, high, draw(st.integers(0, 2)))))
    return Template((*parts, "."))


class Model:
    """Logits of any response, by a seed."""

    def __init__(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self._table = torch.randn(VOCABULARY, 16, generator=generator)
        self._out = torch.randn(16, VOCABULARY, generator=generator)
        self._places = torch.randn(1024, 16, generator=generator)

    def __call__(self, x: torch.Tensor, need: list[int]) -> torch.Tensor:
        """float32[n, V] of some positions of int64[L]."""
        places = self._places[torch.tensor(need) % len(self._places)]  # JSON has no longest form
        mixed = self._table[x].mean(0) + places + self._table[x[need]]
        return torch.tanh(mixed) @ self._out


class Filler:
    """Fills canvases and looks at what they have come to."""

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer(TOY)
        self.tokens = Tokens(self._tokenizer, VOCABULARY)
        self.counts: Counter[str] = Counter()

    def layout(self, template: Template, sampler: dict[str, Any]) -> Layout:
        """The template's positions under these settings."""
        spec = resolve(SamplerSettings(**sampler), self._tokenizer, self.tokens.special)
        return layout_of(template, spec, self.tokens)

    def fill(self, layout: Layout, number: int, rows: int = 1) -> Denoising:
        """Row 0 of a batch; of the others, models of their own."""
        batch = Denoising(layout.spec.kind, rows)
        models = [Model(number + b) for b in range(rows)]
        guides = [Model(number + 10**9 + b) for b in range(rows)]
        for b in range(rows):
            generator = torch.Generator().manual_seed(number + b)
            batch.enter(b, layout.spec, generator, 5, layout.canvas)
        while not batch.done:
            needs = batch.needs()
            hidden, free = (
                torch.cat([made[b](batch.x[b], need) for b, need in needs.items() if need]
                          or [torch.empty(0, VOCABULARY)])
                for made in (models, guides)
            )  # fmt: skip
            batch.advance(hidden, None, free if layout.spec.cfg_scale else None)
        return batch

    def read(self, layout: Layout, batch: Denoising) -> Reading:
        """What stands in row 0; a pinned token that is another one now is counted."""
        ids: list[int | None] = batch.x[0].tolist()
        steps = batch.token_step[0].tolist()
        for i, token in layout.canvas.pinned.items():
            self.counts["pinned"] += 1
            self.counts["pinned_changed"] += ids[i] != token or steps[i] != -1
        end = layout.canvas.length or 0
        self.counts["left_masked"] += layout.spec.mask_id in ids[:end]
        odds = [() if one.found is None else one.found.tolist() for one in batch.row(0).spans]
        mask = layout.spec.mask_id
        shown = [None if token == mask else token for token in ids]
        return layout.read(shown, batch.token_confidence[0].tolist(), odds)

    def check(self, layout: Layout, reading: Reading, template: Template) -> None:
        """Every blank holds what it may, and the text is the template's around it."""
        found = {one.name: one for one in reading.blanks}
        text = ""
        for part in template.parts:
            if isinstance(part, str):
                text += part
                continue
            value = found[part.name].value
            if isinstance(part, Choice):
                among = part.values or part.texts
                self.counts["no_choice"] += value not in among
                total = sum(found[part.name].probabilities.values())
                self.counts["odd_probabilities"] += abs(total - 1) > 1e-9
                text += str(value)
            elif isinstance(part, Number):
                units = round(value * 10**part.bounds.places)
                self.counts["out_of_bounds"] += not part.bounds.low <= units <= part.bounds.high
                text += part.bounds.text(units)
            else:
                text += value
            self.counts["blanks"] += 1
        self.counts["other_text"] += reading.text != text

    def compare(self, layout: Layout, number: int, want: Denoising) -> None:
        """The same in batches of 2 and 8."""
        for rows in (2, 8):
            got = self.fill(layout, number, rows)
            same = torch.equal(got.x[0], want.x[0])
            same = same and torch.equal(got.token_confidence[0], want.token_confidence[0])
            self.counts["batches"] += 1
            self.counts["batch_differs"] += not same


MUST_BE_NONE = (
    "pinned_changed", "left_masked", "no_choice", "odd_probabilities", "out_of_bounds",
    "other_text", "batch_differs", "invalid_json",
)  # fmt: skip


def main() -> int:
    """Exit code."""
    given_ = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given_.add_argument("--count", type=int, default=100_000)
    given_.add_argument("--seed", type=int, default=0)
    given_.add_argument("--minutes", type=float, default=600)
    asked = given_.parse_args()
    filler, started = Filler(), time.perf_counter()
    torch.set_num_threads(1)

    @seed(asked.seed)
    @settings(
        max_examples=asked.count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(templates(), SCHEMAS), SAMPLERS, st.integers(0, 10**6))
    def each(form: Template | dict[str, Any], sampler: dict[str, Any], number: int) -> None:
        if time.perf_counter() - started > 60 * asked.minutes:
            filler.counts["not_run"] += 1
            return
        template = form if isinstance(form, Template) else parts_of(form)
        if template is None:
            filler.counts["one_value_alone"] += 1
            return
        filler.counts["canvases"] += 1
        layout = filler.layout(template, sampler)
        batch = filler.fill(layout, number)
        reading = filler.read(layout, batch)
        if isinstance(form, Template):
            filler.check(layout, reading, template)
        else:
            filler.counts["json"] += 1
            try:
                Draft202012Validator(form).validate(json.loads(reading.text))
            except Exception:
                filler.counts["invalid_json"] += 1
        if filler.counts["canvases"] % 200 == 0:
            filler.compare(layout, number, batch)

    each()
    counts = {name: filler.counts[name] for name in {*filler.counts, *MUST_BE_NONE}}
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({**dict(sorted(counts.items())), "seconds": seconds}))
    return int(any(counts[name] for name in MUST_BE_NONE))


if __name__ == "__main__":
    sys.exit(main())
