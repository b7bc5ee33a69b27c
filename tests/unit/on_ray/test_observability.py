"""cluster/prometheus.yml, alerts.yml and the dashboards: every number that they ask for is one that
this code or Ray exports, under the name that Ray gives it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import promql_parser
import pytest
import ray
import yaml
from pydantic import BaseModel, ConfigDict, Field

from medv_ray.archive.rows import Part
from medv_ray.on_ray import job_meters
from medv_ray.on_ray import meters as on_ray_meters
from medv_ray.on_ray.job_meters import JOB_METERS, ScoreMeters, TrainMeters
from medv_ray.on_ray.score import Session, _take
from medv_ray.serving.meters import METERS, Meter

ROOT = Path(__file__).parents[3]
CLUSTER, PAGE = ROOT / "cluster", ROOT / "docs" / "observability.md"
RAY = Path(ray.__file__).parent
BOARDS = sorted((CLUSTER / "grafana").glob("*.json"))
ALERTS = yaml.safe_load((CLUSTER / "alerts.yml").read_text())
RULES_TEST = Path(__file__).with_name("alerts_test.yml")
PROMETHEUS = {"up"}
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EVERYWHERE = {"SessionName", "WorkerId", "job", "instance"}
"""Labels that Ray, or Prometheus, puts to each series that is asked for."""
RAYS_LABELS = {
    "ray_node_manager_unexpected_worker_failure_total": {"Type"},
    "ray_actors": {"State", "Source"},
    "ray_node_gpus_utilization": {"GpuIndex"},
    "ray_serve_deployment_queued_queries": {"deployment"},
    "ray_serve_deployment_replica_healthy": {"deployment"},
    "ray_serve_deployment_replica_starts_total": {"deployment"},
    "ray_serve_autoscaling_target_replicas": {"deployment"},
}
"""What Ray's own series have beside."""
WORDS = {
    *("sum", "by", "rate", "increase", "histogram_quantile", "vector", "clamp_min", "changes"),
    *("and", "or", "unless", "on", "offset"),
}
"""Of PromQL, as far as it is used here."""


def under_ray(table: dict[str, Meter]) -> dict[str, Meter]:
    """Series that Ray makes of a table's lines."""
    return {f"ray_{n}{end}": m for n, m in table.items() for end in ENDINGS[m.kind]}


OURS = under_ray(METERS) | under_ray(JOB_METERS)


@cache
def rays() -> frozenset[str]:
    """Series of Ray's own: what its code makes, and what its own dashboards show."""
    found: set[str] = set()
    for file in (RAY / "serve" / "_private").rglob("*.py"):
        made = re.findall(r"\b(Counter|Gauge|Histogram)\(\s*\"(\w+)\"", file.read_text())
        for kind, name in made:
            found |= {f"ray_{name}{end}" for end in ENDINGS[kind.lower()]}
    for file in (RAY / "dashboard" / "modules" / "metrics" / "dashboards").glob("*.py"):
        found |= set(re.findall(r"\bray_\w+", file.read_text()))
    return frozenset(found)


def labels_of(series: str) -> set[str]:
    """Labels by which a series can be chosen, or summed."""
    ours = set(OURS[series].labels) if series in OURS else set()
    bucket = {"le"} if series.endswith("_bucket") else set()
    return EVERYWHERE | ours | bucket | RAYS_LABELS.get(series, set())


def carried(expression: str) -> set[str]:
    """Labels that the result has."""
    plain = expression.strip("( \n")
    if summed := re.match(r"sum\s*(?:by\s*\(([^)]*)\))?", plain):
        return set(re.findall(r"\w+", summed[1] or ""))
    first = re.match(r"\w+", plain)
    assert first is not None
    return set() if first[0] == "histogram_quantile" else labels_of(first[0])


def bare(expression: str) -> str:
    """Without texts, selectors and ranges."""
    plain = re.sub(r"\"[^\"]*\"", '""', expression)
    return re.sub(r"\[\w+\]|\{[^}]*\}", " ", plain)


def wrong(expression: str) -> list[str]:
    """Names in PromQL that nothing exports, and brackets that do not close."""
    plain = bare(expression)
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", plain)
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\b(?:by|on)\s*\([^)]*\)|\b\d+\w*", " ", plain))
    known = OURS.keys() | rays() | PROMETHEUS | WORDS
    if found := [name for name in names if name not in known]:
        return found
    for name, chosen in re.findall(r"(\w+)\{([^}]*)\}", expression):
        labels = re.findall(r"(?:^|,)\s*(\w+)\s*(?:=~|!~|!=|=)", chosen)
        found += [label for label in labels if label not in labels_of(name)]
    anywhere = set().union(*map(labels_of, names))
    labels = [label for group in groups for label in re.findall(r"\w+", group)]
    found += [label for label in labels if label not in anywhere]
    found += [
        pair
        for pair in ("()", "{}", "[]")
        if expression.count(pair[0]) != expression.count(pair[1])
    ]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Everything that is asked of Prometheus, with where it stands."""
    for file in BOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.name}: {panel['title']} {target['refId']}", target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


ASKED = dict(expressions())
assert len(ASKED) == len([*expressions()])


@pytest.mark.parametrize("where", ASKED)
def test_what_is_asked_for_is_exported(where: str) -> None:
    assert wrong(ASKED[where]) == []


def test_names_that_are_not_exported_are_found() -> None:
    sound = 'sum by (status) (rate(ray_medv_requests_total{status="200"}[5m]))'
    assert wrong(sound) == []
    for bad, names in {
        sound.replace("_total", ""): ["ray_medv_requests"],
        sound.replace("requests", "request"): ["ray_medv_request_total"],
        sound.replace("ray_", ""): ["medv_requests_total"],
        sound.replace("{status", "{state"): ["state"],
        sound.replace("by (status)", "by (code_)"): ["code_"],
        sound.replace("by (status)", "by (reason)"): ["reason"],  # of another one's
        sound.replace("{status", "{outcome"): ["outcome"],
        'ray_node_mem_used{deployment="medv"}': ["deployment"],
        sound[:-1]: ["()"],
        "ray_serve_deployment_replica_wealthy": ["ray_serve_deployment_replica_wealthy"],
        "histogram_quantil(0.5, ray_medv_ongoing)": ["histogram_quantil"],
    }.items():
        assert wrong(bad) == names, bad


def test_every_number_is_shown_and_explained() -> None:
    shown = " ".join(ASKED.values())
    page = PAGE.read_text()
    for name, meter in (METERS | JOB_METERS).items():
        series = [f"ray_{name}{end}" for end in ENDINGS[meter.kind]]
        assert any(one in shown for one in series), f"{name} is on no dashboard"
        assert f"`{name}`" in page, f"{name} is not in {PAGE.name}"
    for file in BOARDS:
        assert f"grafana/{file.name}" in page


def test_labels_that_are_shown_are_there() -> None:
    shown = {
        f"{file.name}: {panel['title']} {target['refId']}": target["legendFormat"]
        for file in BOARDS
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", [])
    }
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    shown |= {rule["alert"]: rule["annotations"]["summary"] for rule in rules}
    assert shown.keys() == ASKED.keys()
    for where, text in shown.items():
        asked = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", text)
        assert set(asked) <= carried(ASKED[where]), where
    assert carried("sum by (a, b) (c)") == {"a", "b"}
    assert carried("(\n sum(c) / sum(d)") == set()


def test_labels_of_rays_own_series_are_those_of_its_code() -> None:
    files = [*(RAY / "serve" / "_private").glob("*.py")]
    files += (RAY / "dashboard" / "modules" / "metrics" / "dashboards").glob("*.py")
    texts = [file.read_text() for file in files]
    # Serve puts it to what a replica counts
    assert 'DEPLOYMENT_TAG = "deployment"' in (RAY / "serve" / "metrics.py").read_text()
    for series, labels in RAYS_LABELS.items():
        if series == "ray_serve_deployment_replica_starts_total":
            continue
        name = series.removeprefix("ray_").removesuffix("_total")
        near = [
            text[at.start() : at.start() + 600] for text in texts for at in re.finditer(name, text)
        ]
        for label in labels:
            assert any(re.search(rf"\b{label}\b", text) for text in near), (series, label)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Source(Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Target(Strict):
    refId: str = Field(pattern="^[A-Z]$")
    expr: str
    legendFormat: str


class Place(Strict):
    h: int = Field(ge=1)
    w: int = Field(ge=1, le=24)
    x: int = Field(ge=0, le=23)
    y: int = Field(ge=0)


class Defaults(Strict):
    unit: Literal[
        "reqps", "ops", "s", "short", "bytes", "percent", "percentunit"
    ]  # ids of Grafana's units
    min: int


class FieldConfig(Strict):
    defaults: Defaults
    overrides: list[Any] = Field(max_length=0)


class Legend(Strict):
    displayMode: Literal["list", "table"]
    placement: Literal["bottom", "right"]


class Tooltip(Strict):
    mode: Literal["single", "multi", "none"]


class Options(Strict):
    legend: Legend
    tooltip: Tooltip


class Row(Strict):
    id: int
    type: Literal["row"]
    title: str
    collapsed: Literal[False]
    gridPos: Place
    panels: list[Any] = Field(max_length=0)


class Panel(Strict):
    id: int
    type: Literal["timeseries"]
    title: str
    description: str
    gridPos: Place
    datasource: Source
    fieldConfig: FieldConfig
    options: Options
    targets: list[Target] = Field(min_length=1)


class Variable(Strict):
    name: Literal["datasource"]
    type: Literal["datasource"]
    query: Literal["prometheus"]
    label: str


class Templating(Strict):
    list: list[Variable]


class Board(Strict):
    """The fields of Grafana's dashboard JSON that are used here (schema 39)."""

    title: str
    uid: str = Field(pattern=r"^[\w-]{1,40}$")
    schemaVersion: Literal[39]
    version: int
    editable: bool
    time: dict[Literal["from", "to"], str]
    refresh: str
    tags: list[str]
    templating: Templating
    panels: list[Row | Panel]


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_what_grafana_reads(file: Path) -> None:
    board = Board.model_validate_json(file.read_text())
    ids = [panel.id for panel in board.panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board.panels:
        place = panel.gridPos
        assert place.x + place.w <= 24
        cells = {
            (x, y)
            for x in range(place.x, place.x + place.w)
            for y in range(place.y, place.y + place.h)
        }
        assert not cells & taken, f"{panel.title} lies on another panel"
        taken |= cells
        if isinstance(panel, Panel):
            refs = [target.refId for target in panel.targets]
            assert len(set(refs)) == len(refs)


def test_dashboards_have_addresses_of_their_own() -> None:
    uids = [json.loads(file.read_text())["uid"] for file in BOARDS]
    assert len(BOARDS) == 2
    assert len(set(uids)) == 2


class Rule(Strict):
    alert: str = Field(pattern="^Medv[A-Z][A-Za-z]+$")
    expr: str
    for_: str = Field("0m", alias="for", pattern=r"^\d+m$")
    labels: dict[Literal["severity"], Literal["critical", "warning"]]
    annotations: dict[Literal["summary"], str]


class Group(Strict):
    name: str
    rules: list[Rule]


class Rules(Strict):
    groups: list[Group]


def test_alerts_are_rules_that_are_tested_and_explained() -> None:
    rules = [rule for group in Rules.model_validate(ALERTS).groups for rule in group.rules]
    names = [rule.alert for rule in rules]
    assert len(set(names)) == len(names)
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    page = PAGE.read_text()
    for name in names:
        mine = [case for case in cases if case["alertname"] == name]
        assert any(case["exp_alerts"] for case in mine), f"{name} fires in no test"
        assert f"| `{name}` |" in page
    assert {case["alertname"] for case in cases} <= set(names)
    misspelt = json.loads(json.dumps(ALERTS).replace('"expr"', '"exp"', 1))
    with pytest.raises(ValueError, match="exp"):
        Rules.model_validate(misspelt)


@pytest.mark.parametrize("name", ["MedvScoringStalled", "MedvTrainingStalled"])
def test_a_stalled_job_has_stood_still_for_as_long_as_is_said(name: str) -> None:
    """One that never commits fires after `for` alone, whatever the range of its rate is."""
    rules = [rule for group in Rules.model_validate(ALERTS).groups for rule in group.rules]
    [rule] = [rule for rule in rules if rule.alert == name]
    said = f"for {rule.for_.removesuffix('m')} minutes"
    assert said in rule.annotations["summary"]
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}`")]
    assert said in line


def test_prometheus_reads_the_alerts_and_rays_own_list_of_nodes() -> None:
    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    assert [(CLUSTER / name).is_file() for name in config["rule_files"]] == [True]
    [scrape] = config["scrape_configs"]
    assert set(scrape) == {"job_name", "file_sd_configs"}
    [files] = scrape["file_sd_configs"]
    constants = (RAY / "_private" / "ray_constants.py").read_text()
    [file] = files["files"]
    assert f'"{Path(file).name}"' in constants
    # the alert on silent nodes asks for this job
    assert f'job="{scrape["job_name"]}"' in ASKED["MedvNodeSilent"]


def test_promql_is_read_by_a_parser() -> None:
    for where, expression in ASKED.items():
        assert promql_parser.parse(expression), where


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (apt: prometheus)")
def test_alerts_fire_and_rest() -> None:
    for words in (["check", "config", CLUSTER / "prometheus.yml"], ["test", "rules", RULES_TEST]):
        done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Kept:
    """Stands in for Ray's metrics."""

    def __init__(self, names: list[str], table: dict[str, Meter]) -> None:
        assert set(names) <= set(table)
        self.names, self.added = set(names), dict[tuple[str, tuple[str, ...]], float]()

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        assert name in self.names
        assert set(labels) == set(JOB_METERS[name].labels)
        counts = JOB_METERS[name].kind == "counter"
        assert value or not counts, "Ray's counters take no zero"
        key = (name, tuple(labels.values()))
        self.added[key] = value + (self.added.get(key, 0) if counts else 0)


def test_what_a_scoring_job_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_meters, "RayMeters", Kept)
    session = Session(meters=ScoreMeters(100))
    committed = iter((True, True, False))
    run: Any = SimpleNamespace(
        commit_all=lambda parts: [next(committed) for _ in parts], note_processor=lambda name: None
    )
    progress: Any = SimpleNamespace(add=lambda counts: None)
    for bad in (0, 3, 9):
        part = Part("k", "p", "h", "n", "s", 1, 20, 20 - bad, 0, bad)
        result = {
            "part": part.to_json(), "processor": "", "reasons": {"bad_image": bad} if bad else {},
            "counters": {"forward_passes": 8, "image_hits": 0, "unknown": 5},
        }  # fmt: skip
        chunk: Any = None
        _take(run, session, progress, [(chunk, result)])
    kept: Any = session.meters
    assert kept._meters.added == {
        ("medv_job_open_rows", ()): 60,
        ("medv_job_rows", ("answered",)): 37,
        ("medv_job_rows", ("quarantined",)): 3,
        ("medv_job_quarantined", ("bad_image",)): 3,
        ("medv_job_forward_passes", ()): 24,
    }


def test_how_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, float, dict[str, str]]] = []

    def kind(verb: str) -> Any:
        def make(name: str, *_: Any) -> Any:
            def tell(value: float, tags: dict[str, str]) -> None:
                told.append((name, verb, value, tags))

            return SimpleNamespace(**{verb: tell})

        return make

    kinds = {"Counter": kind("inc"), "Gauge": kind("set"), "Histogram": kind("observe")}
    monkeypatch.setattr(on_ray_meters, "metrics", SimpleNamespace(**kinds))
    meters = on_ray_meters.RayMeters()
    for name, labels in {
        "medv_ongoing": {}, "medv_steps": {}, "medv_request_seconds": {"route": "/"}
    }.items():  # fmt: skip
        meters.add(name, 2.0, labels)
    assert told == [
        ("medv_ongoing", "set", 2.0, {}),
        ("medv_steps", "inc", 2.0, {}),
        ("medv_request_seconds", "observe", 2.0, {"route": "/"}),
    ]


def test_what_training_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_meters, "RayMeters", Kept)
    meters: Any = TrainMeters("sd_sft")
    meters.take({})  # no step yet
    assert meters._meters.added == {}
    meters.take({"step": 3, "total_steps": 10, "loss": 0.5, "tokens_per_s": None})
    assert meters._meters.added == {
        ("medv_train_step", ("sd_sft",)): 3,
        ("medv_train_open_steps", ("sd_sft",)): 7,
        ("medv_train_loss", ("sd_sft",)): 0.5,
    }
    meters.end()
    assert meters._meters.added[("medv_train_step", ("sd_sft",))] == 3
    assert meters._meters.added[("medv_train_open_steps", ("sd_sft",))] == 0
    assert meters._meters.added[("medv_train_tokens_per_second", ("sd_sft",))] == 0
