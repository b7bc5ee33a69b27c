"""Denoisers with kept keys and values against full attention in float64, written by hand.

Shapes: S sequence, W window, D width, C width of a head, P prompt, L response positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medv_ray.markers import IMAGE_SLOT
from medv_ray.model.cache import Cached, PromptStore
from medv_ray.model.denoise import FullRecompute, Prompt, splice
from medv_ray.model.keys import KeyValues
from medv_ray.model.medv import Medv
from tests.unit.model.conftest import TOY, make_model

MASK, L, BLOCK = 60, 12, 4
KINDS: tuple[Any, ...] = ("prefix", "dual")
SUFFIX = (11, 12)
Call = tuple[Tensor, Tensor]
"""x int64[B, L] and need bool[B, L]."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 59, shape, generator=torch.Generator().manual_seed(seed))


def prompts(cut: bool = False) -> list[Prompt]:
    """Text alone, an image amid text, two images; of different lengths. `cut` cuts two of them."""
    images = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (7, 3)]
    slot = torch.tensor([IMAGE_SLOT])
    return [
        Prompt(draw(1, 9)),
        Prompt(torch.cat((draw(2, 3), slot, draw(3, 4))), (images[0],), (4, 6) if cut else ()),
        Prompt(torch.cat((slot, slot, draw(4, 2))), tuple(images), (2,) if cut else ()),
    ]


def needed(*places: Sequence[int]) -> Tensor:
    """bool[B, L], True at the places of each row."""
    need = torch.zeros(len(places), L, dtype=torch.bool)
    for b, row in enumerate(places):
        need[b, list(row)] = True
    return need


def run(denoiser: FullRecompute, calls: Sequence[Call]) -> list[Tensor]:
    return [denoiser(x, need) for x, need in calls]


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], atol: float = 1e-5) -> None:
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=atol, rtol=1e-5)


class Plain:
    """One row. Full attention in float64 from the weights; what is outside the window at a call
    has the keys and values of an earlier one."""

    def __init__(self, model: Medv, prompt: Prompt, suffix: Sequence[int] = ()) -> None:
        self.w = {name: value.double() for name, value in model.state_dict().items()}
        self.config = model.config.language
        self.prompt = splice(model, prompt.ids, prompt.images).double()
        self.suffix = suffix
        slots = [i for i, token in enumerate(prompt.ids.tolist()) if token == IMAGE_SLOT]
        images = {slot: len(image) for slot, image in zip(slots, prompt.images, strict=True)}
        self.ends = [sum(images.get(i, 1) for i in range(end)) for end in prompt.ends]
        self.kept: list[tuple[Tensor, Tensor]] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = (x * x).mean(-1, keepdim=True)
        return x / (mean + self.config.rms_norm_eps).sqrt() * self.w[f"model.{name}.weight"]

    def turned(self, x: Tensor, places: range) -> Tensor:
        """float64[W, C] rotated: pairs of the two halves as complex numbers."""
        half = x.shape[1] // 2
        rate = self.config.rope_theta ** (-torch.arange(half).double() / half)
        angle = torch.tensor(list(places)).double()[:, None] * rate
        spun = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones(1).double(), angle)
        return torch.cat((spun.real, spun.imag), 1)

    def layer(self, x: Tensor, number: int, window: range) -> Tensor:
        """float64[W, D] -> float64[W, D]; keys and values of the window replace the kept ones."""
        name, heads = f"layers.{number}", self.config.num_attention_heads
        width, sharing = self.config.head_dim, heads // self.config.num_key_value_heads
        y = self.norm(x, f"{name}.input_layernorm")
        q, k, v = (y @ self.w[f"model.{name}.self_attn.{p}_proj.weight"].T for p in "qkv")
        k = torch.cat([self.turned(part, window) for part in k.split(width, 1)], 1)
        if window.start or window.stop < len(self.kept[number][0]):
            k, v = (
                torch.cat((old[: window.start], new, old[window.stop :]))
                for old, new in zip(self.kept[number], (k, v), strict=True)
            )
        self.kept[number] = (k, v)
        mixed = torch.empty(len(x), heads * width).double()
        seen = torch.tensor([next((e for e in self.ends if i < e), len(k)) for i in window])
        hidden = torch.arange(len(k)) >= seen[:, None]  # [W, S]
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            shared = slice(head // sharing * width, (head // sharing + 1) * width)
            score = self.turned(q[:, own], window) @ k[:, shared].T / math.sqrt(width)
            p = score.exp().masked_fill(hidden, 0)
            mixed[:, own] = p @ v[:, shared] / p.sum(1, keepdim=True)
        x = x + mixed @ self.w[f"model.{name}.self_attn.o_proj.weight"].T
        y = self.norm(x, f"{name}.post_attention_layernorm")
        gate, up = (y @ self.w[f"model.{name}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        return x + gate / (1 + (-gate).exp()) * up @ self.w[f"model.{name}.mlp.down_proj.weight"].T

    def call(self, x: Tensor, window: range | None) -> Tensor:
        """float64[L, D] of int64[L]; places outside the window, which counts from the response's
        start and None of which is everything, are NaN."""
        ids = torch.cat((x, torch.tensor(self.suffix, dtype=torch.int64)))
        row = torch.cat((self.prompt, self.w["model.embed_tokens.weight"][ids]))
        start = len(self.prompt)
        places = range(len(row))
        if window is not None:
            places = range(start + window.start, start + window.stop)
        else:
            self.kept = [(row[:0], row[:0])] * self.config.num_hidden_layers
        states = row[places.start : places.stop]
        for number in range(self.config.num_hidden_layers):
            states = self.layer(states, number, places)
        out = torch.full_like(row, math.nan)
        out[places.start : places.stop] = self.norm(states, "norm")
        return out[start : start + len(x)]

    def run(
        self, calls: Sequence[tuple[Tensor, Tensor]], kind: str, interval: int | None
    ) -> list[Tensor]:
        """What a denoiser returns for int64[L], bool[L] calls."""
        block, count, found = -1, 0, []
        for x, need in calls:
            places = need.nonzero().flatten().tolist()
            if not places:
                found.append(self.w["lm_head.weight"][:0])
                continue
            count += 1
            if places[0] // BLOCK != block:
                block, count = places[0] // BLOCK, 0
            window = None
            if count if interval is None else count % interval:
                end = max((block + 1) * BLOCK, places[-1] + 1)
                end = len(x) + len(self.suffix) if kind == "prefix" else end
                window = range(block * BLOCK, end)
            found.append(self.call(x, window)[need])
        return found


def wild_calls(seed: int, rows: int = 3) -> list[Call]:
    """Blocks in turn, a block again with an earlier one's place, rows at different places, a row
    that needs nothing; x is new everywhere at every call, so what is kept is always stale."""
    script: list[list[Sequence[int]]] = [
        [(0, 1, 2, 3), (0,), (4, 5)],
        [(1, 3), (0, 3), (5, 6)],
        [(3,), (), (5,)],
        [(2,), (1, 2), (7,)],
        [(2, 5, 6), (4, 7), ()],  # row 0 has a place left in block 0: that is still its block
        [(5, 6), (5,), (8, 10)],
        [(4,), (1, 5), (9,)],  # row 1 goes back to block 0
        [(8, 9, 11), (1, 5, 9), (10,)],
        [(10,), (11,), (11,)],
    ]
    return [(draw(seed + i, rows, L), needed(*places[:rows])) for i, places in enumerate(script)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [False, True])
def test_refreshing_at_every_pass_is_full_recompute(toy: Medv, kind: Any, cut: bool) -> None:
    full = FullRecompute(toy, prompts(cut), SUFFIX)
    denoiser = Cached(
        toy, prompts(cut), SUFFIX, kind=kind, block_length=BLOCK, refresh_interval=1,
        store=PromptStore(2**20),
    )  # fmt: skip
    calls = wild_calls(1)
    assert_close(run(denoiser, calls), run(full, calls))
    assert [denoiser.prompt_length(b) for b in range(3)] == [
        full.prompt_length(b) for b in range(3)
    ]
    if not cut:
        assert denoiser.computed == full.computed
    else:
        assert denoiser.computed < full.computed


@pytest.mark.parametrize("interval", [1, 2, 3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_attention_at_every_call(toy: Medv, kind: Any, interval: int | None) -> None:
    """Cut prompts too: what a refresh does not compute again is what it would compute."""
    calls = wild_calls(2)
    for cut in (False, True):
        denoiser = Cached(
            toy, prompts(cut), SUFFIX, kind=kind, block_length=BLOCK, refresh_interval=interval,
            store=PromptStore(2**20),
        )  # fmt: skip
        got = run(denoiser, calls)
        rows = [
            Plain(toy, prompt, SUFFIX).run([(x[b], need[b]) for x, need in calls], kind, interval)
            for b, prompt in enumerate(prompts(cut))
        ]
        assert_close(got, [torch.cat(parts) for parts in zip(*rows, strict=True)], 1e-4)


def test_plain_attention_is_the_models_own(toy: Medv) -> None:
    """The yardstick itself, so that an error in it is not taken for one of the denoiser."""
    prompt, x = prompts()[1], draw(3, L)
    ids = torch.cat((x, torch.tensor(SUFFIX)))
    row = torch.cat((splice(toy, prompt.ids, prompt.images), toy.embed(ids)))
    want = toy.hidden(row[None])[0, -len(ids) : -len(SUFFIX)]
    assert_close([want], [Plain(toy, prompt, SUFFIX).call(x, None)], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interval", [None, 3])
def test_how_many_positions_run(toy: Medv, kind: Any, interval: int | None) -> None:
    denoiser = Cached(
        toy, prompts()[:1], SUFFIX, kind=kind, block_length=BLOCK, refresh_interval=interval
    )
    whole = 9 + L + 2
    assert denoiser.sequence_length(0, L) == whole
    counts = []
    for places in [(0, 1), (1, 2), (2,), (3,), (4,), (5,), (3, 6), (6,), (11,)]:
        before = denoiser.computed
        denoiser(draw(len(counts), 1, L), needed(places))
        counts.append(denoiser.computed - before)
    again = whole if interval else None  # the fourth pass of a block
    if kind == "prefix":
        first, second = whole - 9, whole - 9 - BLOCK
        assert counts == [whole, first, first, again or first, whole, second, whole, whole, whole]
    else:
        assert counts == [whole, 4, 4, again or 4, whole, 4, whole, whole, whole]


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_reaches_over_its_block(toy: Medv, kind: Any) -> None:
    """A mask left in an earlier block is where the window begins; it ends with the last need."""
    denoiser = Cached(toy, prompts()[:1], kind=kind, block_length=BLOCK)
    denoiser(draw(1, 1, L), needed((2, 6)))
    before, calls = (
        denoiser.computed,
        [(draw(1, 1, L), needed((2, 6))), (draw(2, 1, L), needed((2,)))],
    )
    found = run(denoiser, calls)
    assert denoiser.computed - before == (7 + 4 if kind == "dual" else 2 * L)
    plain = Plain(toy, prompts()[0])
    want = plain.run([(x[0], need[0]) for x, need in [calls[0], *calls]], kind, None)[1:]
    assert_close(found, want, 1e-4)


@pytest.mark.parametrize(("kind", "fresh"), [("prefix", range(4, L)), ("dual", range(4, 8))])
def test_what_is_outside_the_window_is_stale_until_a_refresh(
    toy: Medv, kind: Any, fresh: range
) -> None:
    """Block 1 is denoised. What changes outside the window shows at the next refresh."""
    need, x = needed((5, 7)), draw(5, 1, L)

    def second_and_third(place: int | None) -> tuple[Tensor, Tensor]:
        denoiser = Cached(
            toy, prompts()[1:2], SUFFIX, kind=kind, block_length=BLOCK, refresh_interval=2
        )
        denoiser(x, need)
        changed = x.clone()
        if place is not None:
            changed[0, place] = (changed[0, place] + 1) % 59
        return denoiser(changed, need), denoiser(changed, need)

    second, third = second_and_third(None)
    for place in range(L):
        later, refreshed = second_and_third(place)
        assert torch.equal(later, second) == (place not in fresh)
        assert not torch.allclose(refreshed, third)


def cut_denoiser(model: Medv, prompt: Prompt, store: PromptStore | None, **more: Any) -> Cached:
    given = {"kind": "prefix", "block_length": BLOCK, "refresh_interval": 1} | more
    return Cached(model, [prompt], SUFFIX, store=store, **given)


def test_of_a_cut_prompt_nothing_is_computed_twice(toy: Medv) -> None:
    _, prompt, _ = prompts(cut=True)  # 3 tokens, 7 image tokens | 2 tokens | 2 tokens, response
    calls = [(x[:1], need[:1]) for x, need in wild_calls(4)]
    want = run(FullRecompute(toy, [prompt], SUFFIX), calls)
    store = PromptStore(2**20)
    for number, asked in enumerate((store, store, None)):
        denoiser = cut_denoiser(toy, prompt, asked)
        assert_close([denoiser(*calls[0])], want[:1])
        first = 10 if number != 1 else 0  # the second asker finds the first segment
        assert denoiser.computed == first + 2 + 2 + L + 2
        before = denoiser.computed
        assert_close(run(denoiser, calls[1:]), want[1:])
        assert denoiser.computed - before == (2 + L + 2) * len(calls[1:])
    assert (store.hits, store.misses, store.evictions) == (1, 1, 0)


def test_questions_about_one_image_share_its_keys(toy: Medv) -> None:
    """They are never written to, and whoever comes second gets the first one's bits."""
    image = prompts()[1].images
    start = torch.cat((draw(2, 3), torch.tensor([IMAGE_SLOT])))
    asked = [Prompt(torch.cat((start, draw(seed, 4 + seed))), image, (4,)) for seed in range(3)]
    calls = [(x[:1], need[:1]) for x, need in wild_calls(5)]
    more: dict[str, Any] = {"kind": "dual", "refresh_interval": 2}
    alone = [run(cut_denoiser(toy, prompt, PromptStore(2**20), **more), calls) for prompt in asked]
    store = PromptStore(2**20)
    shared = store.get(toy, splice(toy, start, image))
    before = [[part.clone() for part in shared.of(layer)] for layer in range(2)]
    denoisers = [cut_denoiser(toy, prompt, store, **more) for prompt in asked]
    found = [[denoiser(x, need) for denoiser in denoisers] for x, need in calls]  # by turns
    for b in range(3):
        assert all(torch.equal(step[b], want) for step, want in zip(found, alone[b], strict=True))
    assert (store.hits, store.misses) == (3, 1)
    for layer in range(2):
        assert len(shared) == 10
        assert all(map(torch.equal, shared.of(layer), before[layer]))
    other = Prompt(asked[0].ids, (image[0] + 1e-3,), (4,))
    cut_denoiser(toy, other, store)(*calls[0])
    assert store.misses == 2


def test_the_store_keeps_what_was_used_last(toy: Medv) -> None:
    embeds = [toy.embed(draw(seed, 5)) for seed in range(4)]
    one = PromptStore(2**20).get(toy, embeds[0]).nbytes
    assert one == 2 * 2 * 5 * 2 * 8 * 4  # keys and values, layers, places, heads, width, float32
    store = PromptStore(2 * one)
    for number in (0, 1, 0, 2):  # 1 goes
        store.get(toy, embeds[number])
    assert (store.hits, store.misses, store.evictions, store.nbytes) == (1, 3, 1, 2 * one)
    store.get(toy, embeds[0])
    store.get(toy, embeds[2])
    assert (store.hits, store.misses) == (3, 3)
    store.shrink(2 * one - 1)
    assert (store.evictions, store.nbytes) == (2, one)
    store.get(toy, embeds[2])
    assert store.hits == 4
    store.get(toy, embeds[1])  # for good: there is room for one now
    assert (store.misses, store.nbytes, store.evictions) == (4, one, 3)
    store.shrink(2 * one)
    store.get(toy, embeds[0])
    assert store.nbytes == 2 * one
    store.shrink(0)
    assert store.nbytes == 0


def test_a_store_without_room_changes_nothing(toy: Medv) -> None:
    prompt = prompts(cut=True)[1]
    calls = [(x[:1], need[:1]) for x, need in wild_calls(6)]
    stores = PromptStore(2**20), PromptStore(0)
    kept, none = (run(cut_denoiser(toy, prompt, store), calls) for store in stores)
    assert all(map(torch.equal, kept, none))
    assert stores[1].nbytes == stores[1].hits == 0


def test_the_unconditional_denoiser_keeps_its_own(toy: Medv) -> None:
    given: dict[str, Any] = {"kind": "dual", "block_length": BLOCK, "refresh_interval": 3}
    calls = wild_calls(7)
    for cut in (False, True):
        store = PromptStore(2**20)

        def make(store: PromptStore = store, cut: bool = cut) -> Cached:
            return Cached(toy, prompts(cut), SUFFIX, store=store, **given)

        seen = run(make(), calls)
        said = store.hits, store.misses
        blind = run(make().unconditional(MASK), calls)
        assert said == (store.hits, store.misses), "masks are nobody's image"
        denoiser = make()
        late = denoiser.unconditional(MASK)
        mixed = [(denoiser(x, need), late(x, need)) for x, need in calls]
        assert all(map(torch.equal, [a for a, _ in mixed], seen))
        assert all(map(torch.equal, [b for _, b in mixed], blind))
        after = denoiser.unconditional(MASK)  # also of a denoiser that has been used
        assert all(map(torch.equal, run(after, calls), blind))
        exact = FullRecompute(toy, prompts(cut), SUFFIX).unconditional(MASK)
        assert_close(blind[:1], run(exact, calls[:1]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_bytes_is_what_is_held(kind: Any, kv_heads: int) -> None:
    language = dataclasses.replace(TOY.language, num_key_value_heads=kv_heads)
    model = make_model(dataclasses.replace(TOY, language=language))
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for cut in (False, True):
            denoiser = Cached(
                model, prompts(cut), SUFFIX, kind=kind, block_length=BLOCK,
                refresh_interval=2, store=PromptStore(2**20),
            )  # fmt: skip
            promised = denoiser.kept_bytes(L)
            run(denoiser, wild_calls(8))
            assert promised == sum(kept.keys.nbytes for kept in denoiser._kept.values())
            assert promised == denoiser.kept_bytes(L)
    assert FullRecompute(model, prompts()).kept_bytes(L) == 0


def test_shared_heads_agree_with_plain_attention() -> None:
    language = dataclasses.replace(TOY.language, num_key_value_heads=1)
    model = make_model(dataclasses.replace(TOY, language=language), seed=1)
    calls = [(x[:1], need[:1]) for x, need in wild_calls(9)]
    denoiser = Cached(model, prompts()[:1], SUFFIX, kind="dual", block_length=BLOCK)
    want = Plain(model, prompts()[0], SUFFIX).run([(x[0], n[0]) for x, n in calls], "dual", None)
    assert_close(run(denoiser, calls), want, 1e-4)


def test_a_row_that_needs_nothing_keeps_what_it_has(toy: Medv) -> None:
    """It counts as no pass: its refresh does not move."""
    x = draw(1, 1, L)
    calls = [(x, needed((0,))), (x, needed(())), (x, needed((1,))), (x, needed((2,)))]
    denoiser = Cached(toy, prompts()[:1], kind="dual", block_length=BLOCK, refresh_interval=2)
    counts = []
    for call in calls:
        before = denoiser.computed
        denoiser(*call)
        counts.append(denoiser.computed - before)
    assert counts == [9 + L, 0, BLOCK, 9 + L]


def test_keys_grow_without_touching_what_they_grew_from(toy: Medv) -> None:
    short, more = toy.embed(draw(1, 1, 5)), toy.embed(draw(2, 1, 4))
    keys = KeyValues(2)
    assert len(keys) == keys.nbytes == 0
    toy.hidden(short, keys=keys)
    bits = [part.clone() for layer in range(2) for part in keys.of(layer)]
    grown = [keys.grown(), keys.grown()]
    for one in grown:
        assert (one.start, len(one)) == (5, 5)
        toy.hidden(more, keys=one)
        one.start = 2
        toy.hidden(more[:, :3], keys=one)
    assert [len(keys), len(grown[0])] == [5, 9]
    assert grown[0].nbytes * 5 == keys.nbytes * 9
    assert all(map(torch.equal, bits, [part for layer in range(2) for part in keys.of(layer)]))
    assert all(map(torch.equal, grown[0].of(1), grown[1].of(1)))


@pytest.mark.parametrize("seed", range(4))
def test_keys_of_the_window_go_over_the_old_ones_or_behind(seed: int) -> None:
    """Against a plain list of places, also where a window does both."""
    generator = torch.Generator().manual_seed(seed)
    keys, want = KeyValues(1), torch.empty(2, 0)
    for _ in range(12):
        keys.start = int(torch.randint(0, len(keys) + 1, (), generator=generator))
        new = torch.rand(2, int(torch.randint(1, 6, (), generator=generator)), generator=generator)
        end = keys.start + new.shape[1]
        want = torch.cat((want[:, : keys.start], new, want[:, end:]), 1)
        k, v = keys.put(0, new[None, :1, :, None], new[None, 1:, :, None])
        assert torch.equal(torch.cat((k, v), 1)[0, :, :, 0], want)
        assert len(keys) == want.shape[1]
        assert keys.nbytes == want.nbytes
