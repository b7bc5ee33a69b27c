"""Golden numbers: where they are, which sub-cases they hold, and which of them a session ran.

The root is MEDV_GOLDEN, or the committed selection in tests/golden/data; files that the selection
leaves out are looked up in <repo>/../shared/golden, and a test that needs one skips itself when
there is none. With MEDV_GOLDEN no other folder is looked at.

A test names the sub-cases that it checks by a marker and gets one `key` at a time:

    @pytest.mark.subcases("03", "c")    # those of 03_* whose name starts with this expression
    def test_generate(golden: Golden, key: str) -> None:
        case, tensors = golden.case("03"), golden.tensors("03")

It counts as run when every such test of the sub-case passed. A test that loops itself calls
`golden.record("08", "i31x7")` at the end of each turn. Names of sub-cases (see `sub_cases`): the
keys of case.json's `cases` or `images`; the first part of a tensor's name where it holds outputs
(`leftpad`, `gqa`, `probe`, `tower`, `collate`); `table` for a table in case.json; `prompt.NAME`;
`inputs_embeds.IMAGE`; `conv.NAME`.

At the end the session prints `golden: N run, N not supported, N failed`. When all golden tests were
collected and a sub-case was found but neither run nor one of `reference_errors`, the session fails.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv
from tests.golden.tally import SESSION

HERE = Path(__file__).parent
INPUTS = {
    *(
        "prompt",
        "prompt_ids",
        "prompt_embeds",
        "attention_mask",
        "input_ids",
        "pixels",
        "emb",
        "head",
    ),
    *("head_row", "big", "A", "B", "C", "D", "batch", "llada", "med", "plain"),
}
"""First parts of tensor names that hold inputs, or that case.json lists by a fuller name."""


class Golden:
    """A folder shaped like shared/golden."""

    def __init__(self, root: Path, fallback: Path | None) -> None:
        self.roots = [root] if fallback is None else [root, fallback]
        self.passed: set[tuple[str, str]] = set()
        self.failed: set[tuple[str, str]] = set()

    def record(self, case: str, key: str) -> None:
        """Count a sub-case as run. For tests that loop; the marker `subcases` does it by itself."""
        self.passed.add((case, key))

    def find(self, case: str, name: str) -> Path | None:
        """The file of a case (by number, "03"), or None where neither root has it."""
        for root in self.roots:
            for path in sorted(root.glob(f"{case}_*/{name}")):
                return path
        return None

    def path(self, case: str, name: str) -> Path:
        """As `find`; skips the test where the file is missing."""
        found = self.find(case, name)
        if found is None:
            pytest.skip(
                f"golden {case} has no {name} here: it is not committed, see data/README.md"
            )
        return found

    @lru_cache(maxsize=32)  # noqa: B019  lives as long as the session
    def case(self, case: str) -> dict[str, Any]:
        """case.json. Do not change it."""
        return json.loads(self.path(case, "case.json").read_text())

    @lru_cache(maxsize=32)  # noqa: B019
    def tensors(self, case: str, name: str = "tensors.safetensors") -> dict[str, Tensor]:
        """All tensors of a file. Do not change them."""
        return load_file(self.path(case, name))

    def run(self, case: str, key: str) -> dict[str, Any]:
        """The entry of case.json's `cases` for a sub-case."""
        cases = self.case(case)["cases"]
        if isinstance(cases, dict):
            return cases[key]
        return next(entry for entry in cases if entry["key"] == key)

    @cached_property
    def numbers(self) -> list[str]:
        """Cases found, as "01", "02", ..."""
        found = {
            path.parent.name[:2]
            for root in self.roots
            for path in root.glob("[0-9][0-9]_*/case.json")
        }
        return sorted(found)

    def state(self, case: str) -> dict[str, Tensor]:
        """Language weights under the LLaMA-style names.

        "02" as stored; "01", "03", "05", "13" the same through their own file's key map or, without
        the file, from 02; "07", "11" layers 0.. and final norm of 02 with embedding and head
        rebuilt from the tables of 07.
        """
        if case in ("07", "11"):
            return dict(self._real_vocabulary)
        return dict(self.tensors("02", "state.safetensors"))

    def olmo_state(self) -> dict[str, Tensor]:
        """Weights of case 01 under OLMo-style names; made from 02 where the file is missing."""
        if self.find("01", "state.safetensors"):
            return dict(self.tensors("01", "state.safetensors"))
        renames = self.case("02")["rename_map_first_keys"]
        return {_olmo_name(name, renames): value for name, value in self.state("02").items()}

    @cached_property
    def _real_vocabulary(self) -> dict[str, Tensor]:
        """Source: `vocab_recipe` of case 07."""
        base = self.tensors("02", "state.safetensors")
        tables, config = self.tensors("07"), self.case("07")["config"]
        ids = torch.arange(config["vocab_size"])
        state = {
            name: value
            for name, value in base.items()
            if name.startswith(("model.layers.", "model.norm"))
        }
        state = {n: v for n, v in state.items() if _layer(n) < config["num_hidden_layers"]}
        for ours, theirs in (("model.embed_tokens.weight", "emb"), ("lm_head.weight", "head")):
            a, b, c = (tables[f"{theirs}.{part}"] for part in "ABC")
            # 997 and 503 as in the recipe; they are the heights of the tables
            rows = a[ids % len(a)] + b[torch.div(ids, len(a), rounding_mode="floor")]
            state[ours] = rows + c[(31 * ids) % len(c)]
        for name, row in tables.items():
            if name.startswith("head_row."):
                state["lm_head.weight"][int(name.split(".")[1])] = row
        return state


def _layer(name: str) -> int:
    """Layer number of a parameter name, -1 outside the layers."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _olmo_name(name: str, renames: dict[str, str]) -> str:
    """One LLaMA-style name in OLMo's spelling, by the map of case 02 read backwards."""
    layer = _layer(name)
    for theirs, ours in renames.items():
        if layer < 0 and name == f"{ours}.weight":
            return f"model.{theirs}.weight"
        short = ours.removeprefix("model.layers.N.")
        if layer >= 0 and name == f"model.layers.{layer}.{short}.weight":
            part = theirs.rsplit("blocks.N.", 1)[-1]
            return f"model.transformer.blocks.{layer}.{part}.weight"
    raise KeyError(name)


def holding(config: ModelConfig, state: dict[str, Tensor]) -> Medv:
    """A model of these tensors themselves: cases of the same weights share them."""
    model = weights.without_weights(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def sub_cases(golden: Golden, case: str) -> list[str]:
    """Every sub-case of a case whose numbers are here."""
    raw = golden.case(case)
    keys = list(raw.get("images", {}))
    entries = raw.get("cases", {})
    listed = list(entries) if isinstance(entries, dict) else [entry["key"] for entry in entries]
    stored = _stored(golden, case)
    if stored is None and case != "08":  # 08 can be checked by the sums in case.json alone
        return []
    keys += listed
    names = stored or []
    firsts = {name.split(".")[0] for name in names} - INPUTS
    keys += sorted(first for first in firsts if case != "08" and first not in keys)
    keys += sorted(
        {".".join(n.split(".")[:2]) for n in names if n.startswith(("inputs_embeds.", "conv."))}
    )
    if case == "12":
        keys += [f"prompt.{name}" for name in raw["prompts"]]
    if any(
        isinstance(v, list) and k.startswith(("transfer_", "acceptance_", "best_res"))
        for k, v in raw.items()
    ):
        keys.append("table")
    if golden.find(case, "state_gqa.safetensors") is None:
        keys = [key for key in keys if key != "gqa"]
    if raw.get("reference_errors"):
        keys.append("reference_errors")
    return [key for key in dict.fromkeys(keys) if key not in ("inputs_embeds", "conv")]


def _stored(golden: Golden, case: str) -> list[str] | None:
    """Names of the tensors of a case, None where the file is missing."""
    path = golden.find(case, "tensors.safetensors")
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def supported(golden: Golden, case: str, key: str) -> bool:
    """Whether the project claims to run a sub-case: settings at which the references raise are
    no contract."""
    return key != "reference_errors"


def _open() -> Golden:
    chosen = os.environ.get("MEDV_GOLDEN")
    if chosen:
        root = Path(chosen)
        shapes = ("[0-9][0-9]_*/case.json", "metrics/*.json", "corner_cases.json")
        if not any(list(root.glob(shape)) for shape in shapes):
            raise pytest.UsageError(f"MEDV_GOLDEN={chosen}: no case folder (NN_*/case.json) in it")
        return Golden(root, None)
    shared = HERE.parents[1].parent / "shared" / "golden"
    return Golden(HERE / "data", shared if shared.is_dir() else None)


GOLDEN = _open()


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden numbers of this session."""
    return GOLDEN


@pytest.fixture(scope="session")
def tower(golden: Golden) -> Callable[[str], Medv]:
    """The language tower that a case runs on, by the case's number; made once."""

    @cache
    def build(case: str) -> Medv:
        real = case in ("07", "11")
        config = LanguageConfig.from_json(golden.case("07" if real else "02")["config"])
        model = holding(ModelConfig(language=config, vision=None), golden.state(case))
        return model.requires_grad_(case == "11")  # the others are sampled from

    return build


@pytest.fixture(scope="session")
def seeing(golden: Golden) -> Callable[[str], Medv]:
    """Language, vision tower and projector of cases 10 and 11, by number; made once."""

    @cache
    def build(case: str) -> Medv:
        source = "10" if case == "10" else "09"
        raw = golden.case(source)
        language = golden.case("07" if case == "11" else "02")["config"]
        config = ModelConfig(
            LanguageConfig.from_json(language),
            VisionConfig.from_json(raw["vision_config"]),
            image_aspect_ratio=raw["config"]["image_aspect_ratio"],
            image_grid_pinpoints=tuple(map(tuple, raw["config"]["image_grid_pinpoints"])),
        )
        return holding(config, golden.state(case) | golden.tensors(source, "state.safetensors"))

    return build


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "subcases(case, prefix=''): one test per golden sub-case")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("subcases")
    if marker is None:
        return
    case, prefix = marker.args[0], marker.args[1] if len(marker.args) > 1 else ""
    keys = sub_cases(GOLDEN, case) if case in GOLDEN.numbers else []
    keys = [key for key in keys if re.match(prefix, key) and supported(GOLDEN, case, key)]
    metafunc.parametrize("key", keys)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    marker = item.get_closest_marker("subcases")
    if marker is not None and (call.when == "call" or report.failed):
        name = (marker.args[0], item.callspec.params["key"])  # type: ignore[attr-defined]
        if report.failed:
            GOLDEN.failed.add(name)
        elif report.passed:
            GOLDEN.passed.add(name)
    return report


_deselected: list[str] = []


def pytest_deselected(items: list[pytest.Item]) -> None:
    _deselected.extend(item.nodeid for item in items if HERE in item.path.parents)


def _whole(session: pytest.Session) -> bool:
    """Whether every golden test was there to run: else the rest cannot be missed."""
    collected = {item.path for item in session.items}
    modules = set(HERE.glob("test_*.py"))
    named = any("::" in argument for argument in session.config.args)
    early = session.shouldstop or session.shouldfail or session.config.option.collectonly
    return bool(modules) and modules <= collected and not (_deselected or named or early)


def pytest_sessionfinish(session: pytest.Session) -> None:
    tally = SESSION.tally
    tally.whole = tally.whole or _whole(session)
    for case in GOLDEN.numbers:
        for key in sub_cases(GOLDEN, case):
            tally.found.add(f"{case} {key}")
            if not supported(GOLDEN, case, key):
                tally.unsupported.add(f"{case} {key}")
    tally.passed.update(f"{case} {key}" for case, key in GOLDEN.passed)
    tally.failed.update(f"{case} {key}" for case, key in GOLDEN.failed)
