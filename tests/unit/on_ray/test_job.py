"""What the driver does with results, and what it compares before it goes on. No Ray here."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medv_ray.archive import manifest
from medv_ray.archive.plan import plan
from medv_ray.archive.rows import Part
from medv_ray.archive.run import Run
from medv_ray.archive.sources import open_archive
from medv_ray.errors import CheckpointError, RunError
from medv_ray.model import lora
from medv_ray.on_ray import job_meters, options, progress
from medv_ray.on_ray import score as scoring
from medv_ray.on_ray.cluster import Lost
from medv_ray.on_ray.job_meters import ScoreMeters
from medv_ray.on_ray.preflight import Capacity, Node
from medv_ray.on_ray.progress import Progress
from medv_ray.on_ray.score import Session, _take, planned
from medv_ray.schema import STATUSES
from medv_ray.settings import SamplerSettings
from medv_ray.training.check import check
from tests.integration import stub
from tests.unit.training import tiny


def result(rows: int, **reasons: int) -> dict[str, Any]:
    bad = sum(reasons.values())
    part = Part("k", "p", "h", "n", "s", 1, rows, rows - bad, 0, bad)
    return {"part": part.to_json(), "reasons": reasons, "processor": "CPU AVX2"}


@pytest.mark.parametrize(
    ("reason", "code"), [("internal_error", "E1509"), ("out_of_memory", "E1508")]
)
def test_a_job_whose_rows_mostly_fail_the_same_way_gives_up(reason: str, code: str) -> None:
    run: Any = SimpleNamespace(note_processor=lambda name: None)
    run.commit_all = lambda parts: [True] * len(parts)
    progress: Any = SimpleNamespace(add=lambda counts: None)
    chunk: Any = None
    session = Session()
    _take(run, session, progress, [(chunk, result(900, **{reason: 400}))])
    _take(run, session, progress, [(chunk, result(100, **{reason: 100}))])
    with pytest.raises(RunError, match=f"{code}: 600 of 1100 rows ended as {reason}"):
        _take(run, session, progress, [(chunk, result(100, **{reason: 100}))])


def test_a_resume_with_another_torch_or_device_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    with Run.open(settings.out, planned, settings.identity("model")):
        pass
    monkeypatch.setattr(options, "version", lambda name: "99.0")
    with pytest.raises(RunError, match=r'code\.torch: "[^"]+" -> "99\.0"') as caught:
        Run.open(settings.out, planned, settings.identity("model"))
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    on_gpu = stub.settings(tmp_path, pool={"num_gpus": 0.5})
    with pytest.raises(RunError, match=r'model\.device: "cpu" -> "cuda"'):
        Run.open(settings.out, planned, on_gpu.identity("model"))
    named = settings.model.model_copy(update={"device": "cpu"})
    same = settings.model_copy(update={"model": named})
    Run.open(settings.out, planned, same.identity("model")).close()


def test_ray_may_change_between_two_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer and no weight depends on its version, so that no run names it."""
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    Run.open(settings.out, planned, settings.identity("model")).close()
    real = options.version
    monkeypatch.setattr(options, "version", lambda name: "99.0" if name == "ray" else real(name))
    Run.open(settings.out, planned, settings.identity("model")).close()
    assert set(settings.identity("model")["code"]) == {"medv_ray", "torch"}
    trained = check(tiny.settings(tmp_path / "training"))
    assert set(trained["code"]) == {"medv_ray", "torch"}


def test_a_run_folder_of_another_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "VERSION", manifest.VERSION + 1)
        Run.open(settings.out, planned, settings.identity("model")).close()
    with pytest.raises(RunError, match="E1502: .*version 3, this one writes 2") as caught:
        Run.open(settings.out, planned, settings.identity("model"))
    assert caught.value.exit_code == 3


def test_the_manifest_names_the_preset_and_its_values(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    turbo = stub.settings(tmp_path, sampler={"preset": "turbo"})
    plan, identity = planned(turbo)
    Run.open(turbo.out, plan, identity).close()
    said = json.loads(json.dumps(identity))["settings"]["sampler"]
    found = [said[name] for name in ("preset", "rule", "threshold", "cache", "refresh_interval")]
    assert found == ["turbo", "threshold", 0.7, "dual", 32]
    assert SamplerSettings(**said) == turbo.sampler
    with Run.open(turbo.out, plan, identity) as again:
        assert again.manifest["identity"]["settings"]["sampler"] == said
    slower = stub.settings(tmp_path, sampler={"preset": "turbo", "refresh_interval": 16})
    assert {c.key for c in planned(slower)[0].chunks}.isdisjoint(c.key for c in plan.chunks)
    with pytest.raises(RunError, match=r'E1502.*preset: "turbo" -> "custom"'):
        Run.open(slower.out, *planned(slower))
    # what does not decide an answer is in none of it
    small = stub.settings(tmp_path, sampler={"preset": "turbo"}, engine={"kv_cache_bytes": 0})
    assert planned(small)[1] == identity


def write_adapter(folder: Path, base: str, tensors: bytes = b"") -> Path:
    """Enough of an adapter to be digested."""
    folder.mkdir()
    (folder / lora.NOTE).write_text(json.dumps({"base_sha256": base}))
    (folder / lora.CONFIG).write_text("{}")
    (folder / lora.TENSORS).write_bytes(tensors)
    return folder


def test_runs_of_other_adapters_never_mix(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    plain = stub.settings(tmp_path)
    base, none = options.model_digests(plain.model)
    assert none is None
    adapters = [write_adapter(tmp_path / name, base, name.encode()) for name in ("one", "two")]

    def opened(adapter: Path | None) -> Run:
        place = adapter and str(adapter)
        model = plain.model.model_copy(update={"adapter": place})
        plan, identity = planned(plain.model_copy(update={"model": model}))
        return Run.open(plain.out, plan, identity)

    opened(adapters[0]).close()
    opened(adapters[0]).close()
    for other in (adapters[1], None):
        with pytest.raises(RunError, match=r"E1502.*model\.adapter_sha256: "):
            opened(other)
    for adapter in adapters:  # also in the keys of the chunks, without the manifest
        model = plain.model.model_copy(update={"adapter": str(adapter)})
        keys = [
            {chunk.key for chunk in planned(plain.model_copy(update={"model": m}))[0].chunks}
            for m in (plain.model, model)
        ]
        assert not keys[0] & keys[1]
    with pytest.raises(CheckpointError, match="E1411"):
        opened(write_adapter(tmp_path / "foreign", "f" * 64))


def test_the_processors_that_answered_stand_in_the_manifest(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    for name in ("CPU AVX2", "CPU AVX2", "NVIDIA H100"):
        with Run.open(settings.out, planned, settings.identity("model")) as run:
            run.note_processor(name)
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["processors"] == ["CPU AVX2", "NVIDIA H100"]


class Passes:
    """Stands in for streams over chunks: each pass commits some, or loses a node."""

    def __init__(self, *ends: int | RunError) -> None:
        """Of each pass: how many chunks it commits, after which it may lose its node."""
        self.ends = list(ends)
        self.open = 10
        self.over = True
        self.pressed = False
        """Whether Ctrl-C was."""
        self.session = Session()
        self.skipped: dict[str, Any] = {}
        self.check: Any = None
        """What the stream calls while it waits."""

    def todo(self, most: int) -> list[Any]:
        found = [SimpleNamespace(source_key=str(number)) for number in range(self.open)]
        return found[:most]

    def take(self, *_: object) -> None:
        end = self.ends.pop(0)
        if isinstance(end, int):
            self.open -= end
            end = self.ends.pop(0) if self.ends and not isinstance(self.ends[0], int) else None
        if end is not None:
            raise end


class RunOf:
    """Stands in for a run of those chunks."""

    def __init__(self, passes: Passes) -> None:
        self._passes, self.skipped, self.plan = passes, passes.skipped, SimpleNamespace(rows=80)
        self.todo = passes.todo

    @property
    def open_chunks(self) -> int:
        return self._passes.open

    def settled(self) -> dict[str, int]:
        return dict.fromkeys(("rows", *STATUSES), 0)


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Drives a job whose passes end as given; returns what it said."""

    def go(passes: Passes, has_head: bool = True) -> list[str]:
        said: list[str] = []
        cluster = SimpleNamespace(capacity=Capacity((Node(2, 0),), True), check=lambda: None)
        cluster.has_head = lambda: has_head
        stream = SimpleNamespace(is_over=lambda: passes.over)

        def stream_of(chunks: Any, size: Any, check: Any) -> Any:
            passes.check = check
            return stream

        made = SimpleNamespace(Stream=stream_of)
        monkeypatch.setattr(scoring, "interrupts", lambda say: nullcontext(lambda: passes.pressed))
        monkeypatch.setitem(sys.modules, "medv_ray.on_ray.stream", made)
        monkeypatch.setattr(scoring, "running_ray", lambda *_: nullcontext(cluster))
        monkeypatch.setattr(scoring, "_pass", passes.take)
        monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
        run: Any = RunOf(passes)
        scoring._drive(run, stub.settings(tmp_path), passes.session, None, None)
        return said

    return go


def lost() -> RunError:
    return Lost("E1512", "the job's supervisor is gone (ActorDiedError).")


def test_a_lost_node_costs_a_pass(drive: Any) -> None:
    passes = Passes(4, lost(), 3, lost(), lost(), 3)
    assert drive(passes) == ["a node of Ray's was lost; the others go on."] * 3
    assert passes.open == 0


def test_nodes_that_are_lost_again_and_again_end_the_job(drive: Any) -> None:
    with pytest.raises(RunError, match="E1512: the job's supervisor is gone"):
        drive(Passes(4, lost(), lost(), lost(), lost(), 6))


def test_a_job_without_a_head_ends_at_once(drive: Any) -> None:
    passes = Passes(4, lost(), 6)
    with pytest.raises(RunError, match="E1512: the job's supervisor is gone") as caught:
        drive(passes, has_head=False)
    assert type(caught.value) is RunError  # whose name is said
    assert passes.open == 6


def test_no_pass_begins_beside_one_that_goes_on(drive: Any) -> None:
    passes = Passes(4, lost(), 6)
    passes.over = False
    with pytest.raises(RunError, match="E1512"):
        drive(passes)
    assert passes.open == 6


def test_a_job_that_is_to_stop_does_not_go_on_without_a_node(drive: Any) -> None:
    passes = Passes(4, lost(), 6)
    passes.pressed = True
    with pytest.raises(RunError, match="E1512"):
        drive(passes)
    assert passes.open == 6


def test_chunks_that_were_skipped_are_not_tried_again(drive: Any) -> None:
    passes = Passes()
    passes.skipped = {str(number): None for number in range(10)}
    assert drive(passes) == []


@pytest.mark.parametrize("ends", ["skipped", "an error"])
def test_a_job_that_has_ended_has_no_row_to_go(
    drive: Any, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A driver may live on, and an alert looks at the rows that its jobs have to go."""
    shown: list[int] = []

    class Kept(ScoreMeters):
        def __init__(self, open_rows: int) -> None:
            keep = SimpleNamespace(add=lambda name, value, labels: shown.append(value))
            monkeypatch.setattr(job_meters, "RayMeters", lambda *_: keep)
            super().__init__(open_rows)

    monkeypatch.setattr(job_meters, "ScoreMeters", Kept)
    if ends == "skipped":
        passes = Passes()
        passes.skipped = {str(number): None for number in range(10)}
        drive(passes)
    else:
        with pytest.raises(RunError):
            drive(Passes(4, lost()), has_head=False)
    assert shown == [80, 0]


def test_who_waits_is_told_until_the_first_row(drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    monkeypatch.setattr(scoring, "waiting", lambda pool: "for room.")
    passes = Passes(10)

    def take(*_: object) -> None:
        assert not passes.check()
        passes.session.rows = 8
        assert not passes.check()
        passes.open = 0

    monkeypatch.setattr(passes, "take", take)
    assert drive(passes) == ["no row after 0 s: for room."]
    meters = passes.session.meters
    assert meters is not None
    assert meters._open_rows == 80


def test_patience_is_over_every_minute_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s)
    patience = progress.Patience()
    over = []
    for now_s in (159.0, 161.0, 162.0, 219.0, 221.0):  # noqa: B007  which the clock says
        over.append(patience.is_over())
    assert over == [False, True, False, False, True]
    assert patience.waited_s == 121.0


def test_actors_are_let_go_where_a_pass_fails(tmp_path: Path) -> None:
    let_go: list[bool] = []

    def run(work: Any) -> Any:
        raise RunError("E1509", "a defect.")

    stream: Any = SimpleNamespace(
        run=run, supervisor=None, abandon=lambda: let_go.append(True), stopped=False
    )
    manifest = {"identity": {"model": {"sha256": "m"}}}
    of: Any = SimpleNamespace(
        manifest=manifest, plan=SimpleNamespace(archive=None), pseudonyms=None
    )
    progress: Any = None
    with pytest.raises(RunError, match="E1509"):
        scoring._pass(of, stub.settings(tmp_path), Session(), progress, stream, None)
    assert let_go == [True]
