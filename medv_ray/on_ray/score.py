"""A scoring job: plan, stream what is not committed, commit in the order of arrival, account."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from medv_ray import hub
from medv_ray.archive.chunks import Chunk
from medv_ray.archive.left_out import LeftOut
from medv_ray.archive.plan import Plan
from medv_ray.archive.plan import plan as make_plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.pseudonyms import Pseudonyms, keep_salt
from medv_ray.archive.pseudonyms import find as find_pseudonyms
from medv_ray.archive.rows import Part
from medv_ray.archive.run import Run
from medv_ray.archive.slides import slide_counts
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import is_hub, is_local
from medv_ray.archive.summary import Summary
from medv_ray.canvases import TileSettings
from medv_ray.data.frames import splitter
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.data.slide_child import reader_of, splitter_of
from medv_ray.engine.layout import Tokens, layout_of
from medv_ray.engine.resolve import resolve
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.hub import here
from medv_ray.model.weights import read_headers
from medv_ray.on_ray.cluster import OBJECT_STORE_BYTES, Lost, cluster_address, running_ray
from medv_ray.on_ray.options import PoolSettings, ScoreSettings, model_digests
from medv_ray.on_ray.preflight import size_pool
from medv_ray.on_ray.progress import Patience, Progress, interrupts
from medv_ray.schema import STATUSES
from medv_ray.settings import identity_digest

if TYPE_CHECKING:
    from medv_ray.on_ray.job_meters import ScoreMeters
    from medv_ray.on_ray.stream import Stream

PASS_CHUNKS = 50_000
"""Ray Data keeps about 6 kB for each block that went through; a new pass forgets them."""
IDLE_PASSES = 3
DEFECTS = 100  # rows of this session that ended for one of these reasons, before it gives up
GIVE_UP = {"internal_error": "E1509", "out_of_memory": "E1508"}


@dataclass(frozen=True)
class Resume:
    """What to do with a run folder that is not empty. Default: go on where it stopped."""

    new_run: bool = False
    allow_mixed: bool = False
    allow_added: bool = False
    take_over: bool = False
    retry_quarantined: bool = False


@dataclass
class Session:
    """What this process did, apart from what the run folder holds."""

    rows: int = 0
    seconds: float = 0.0
    start_s: float = 0.0
    """Of `seconds`: until Ray ran and the first actor had loaded its model."""
    counters: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    stopped: bool = False
    meters: ScoreMeters | None = None
    """Once Ray runs."""
    skipped_files: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Rows a second once the pool was up."""
        busy = self.seconds - self.start_s
        return self.rows / busy if busy > 0 else 0.0


@dataclass(frozen=True)
class Outcome:
    """The end of a job."""

    summary: Summary | None
    """None when the job was stopped."""
    session: Session
    committed: int
    total: int
    unreadable: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    added_rows: int = 0
    """Rows that the archive had grown by when this job began."""
    several_rows: dict[str, Any] | None = None
    """`Plan.several_rows`."""

    @property
    def exit_code(self) -> int:
        """0 when every row of the archive is accounted for, else 1."""
        return 1 if self.summary is None else self.summary.exit_code


def planned(
    settings: ScoreSettings,
    resume: Resume | None = None,
    pseudonyms: Pseudonyms | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """The plan of the archive and the identity of the run, without opening the run folder."""
    resume = resume or Resume()
    identity = settings.identity(*model_digests(settings.model), pseudonyms)
    check_form(settings)
    prior = Prior() if resume.new_run else Prior.read(settings.out)
    archive = open_archive(settings.archive, prior.images, prior.salt)
    reader = reader_of(settings.image, settings.slides)
    is_on_disk = is_local(archive.images_uri)
    split = splitter_of(reader, settings.slides, splitter(settings.image.frames), is_on_disk)
    archive = replace(archive, slides=reader)
    return make_plan(archive, identity_digest(identity), prior, split), identity


def check_form(settings: ScoreSettings) -> None:
    """Raises SettingsError E1001, E1309 where no answer can have the form that is asked for."""
    if settings.template is None:
        return
    tokenizer = load_tokenizer(settings.model.path)
    special = SpecialIds.of(tokenizer)
    spec = resolve(settings.sampler, tokenizer, special)
    most = read_headers(settings.model.path)[0].max_length
    try:
        layout = layout_of(settings.template, spec, Tokens(tokenizer, len(tokenizer)), most)
    except DataError as error:
        raise SettingsError(error.code, f"canvas: {error.detail}") from None
    if layout.spec.gen_length > most:
        rule = f"it takes {layout.spec.gen_length} positions; the model has {most} for all"
        raise SettingsError("E1001", f"canvas: {rule}.")


def score(
    settings: ScoreSettings,
    resume: Resume | None = None,
    *,
    address: str | None = None,
    factory: str | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Outcome:
    """Score the archive into `settings.out`; `kinds` as in `Run.finish`.

    Raises MedvError with the exit code of the failure.
    """
    resume = resume or Resume()
    settings = settings.located(on_cluster=bool(cluster_address(address)))
    pseudonyms = find_pseudonyms(settings.privacy, settings.out, resume.new_run)
    plan, identity = planned(settings, resume, pseudonyms)
    tell(plan)
    session = Session()

    def keep() -> None:
        if pseudonyms is not None:
            keep_salt(settings.privacy, settings.out, pseudonyms)

    with Run.open(
        settings.out,
        plan,
        identity,
        new_run=resume.new_run,
        allow_mixed=resume.allow_mixed,
        allow_added=resume.allow_added,
        take_over=resume.take_over,
        retry_quarantined=resume.retry_quarantined,
        pseudonyms=pseudonyms,
        keep=keep,
        sources=sources(settings, plan),
    ) as run:
        tell_growth(plan)
        if run.open_chunks:
            started = time.monotonic()
            _drive(run, settings, session, address, factory)
            session.seconds = time.monotonic() - started
        unreadable = tuple(file.name for file in plan.unreadable)
        session.skipped_files = sorted({name for name, _ in run.skipped.values()})
        summary = None if session.stopped else run.finish(kinds)
        committed = run.ledger.counts()["rows"]
        return Outcome(
            summary, session, committed, plan.rows, unreadable, plan.left_out, plan.growth.rows,
            plan.several_rows,
        )  # fmt: skip


def sources(settings: ScoreSettings, plan: Plan) -> dict[str, str]:
    """The commits of a hub that model, adapter and archive are of, for those that are of one."""
    model = settings.model
    found = {
        "model": hub.origin(model.path),
        "adapter": hub.origin(model.adapter or ""),
        "archive": plan.archive.uri if is_hub(plan.archive.uri) else None,
        "images": plan.archive.images_uri if is_hub(plan.archive.images_uri) else None,
    }
    return {name: str(one) for name, one in found.items() if one is not None}


def tell(plan: Plan) -> None:
    """Say on stderr, before anything is scored, what is left out, and which files are several
    rows."""
    left_out = plan.left_out
    if left_out.maybe_rows(plan.archive.kind in ("images", "tar", "dicomweb")) > plan.rows:
        sys.stderr.write(f"MOST OF THIS ARCHIVE IS LEFT OUT: {plan.rows} rows are scored.\n")
    if left_out.total:
        sys.stderr.write(f"left out: {left_out}\n")
    slides = slide_counts(plan.inputs)
    if slides is not None:
        sys.stderr.write(f"slides: {slides}\n")
    if (cut := plan.several_rows) is not None:
        files = f"{cut['files']} files, {cut['files_of_several']} of them several rows each"
        sys.stderr.write(f"{cut['by']}: {files}: {plan.rows} rows\n")


def tell_growth(plan: Plan) -> None:
    """Say on stderr what was added, once the run takes it."""
    if plan.growth.rows:
        before = plan.rows - plan.growth.rows
        sys.stderr.write(f"added since the run began: {plan.growth.rows} rows, to {before}\n")


def _drive(
    run: Run, settings: ScoreSettings, session: Session, address: str | None, factory: str | None
) -> None:
    """Passes over the open chunks until none is left."""
    before = run.settled()
    began = time.monotonic()
    store = None if settings.pool.decode_actors else OBJECT_STORE_BYTES
    with (
        running_ray(address, store) as cluster,
        Progress(run.plan.rows, before) as progress,
        interrupts(progress.say) as interrupted,
        ExitStack() as at_end,
    ):
        from medv_ray.on_ray.job_meters import ScoreMeters
        from medv_ray.on_ray.stream import Stream

        session.meters = ScoreMeters(run.plan.rows - before["rows"])
        at_end.callback(session.meters.end)
        patience = Patience()

        def check() -> bool:
            cluster.check()
            if not session.rows and patience.is_over():
                progress.say(f"no row after {patience.waited_s:.0f} s: {waiting(settings.pool)}")
            return interrupted()

        session.start_s = time.monotonic() - began
        idle = 0
        while (left := _left(run)) and not session.stopped:
            size = size_pool(settings.pool, cluster.capacity, left)
            stream = Stream(next_chunks(run, PASS_CHUNKS), size, check)
            lost: RunError | None = None
            try:
                _pass(run, settings, session, progress, stream, factory)
            except Lost as error:  # of a node; what it had not finished is tried again
                cluster.check()
                lost = RunError(error.code, error.detail)
                if interrupted() or not (cluster.has_head() and stream.is_over()):
                    raise lost from None
            idle = idle + 1 if _left(run) == left else 0
            if idle == IDLE_PASSES and not session.stopped:
                none = RunError("E1512", f"no chunk came back with a result in {idle} passes.")
                raise lost or none
            if lost:
                progress.say("a node of Ray's was lost; the others go on.")


def tiles_of(settings: ScoreSettings) -> TileSettings | None:
    """How the model's pictures are cut; None for one that sees none. A machine that only decodes
    need not have the model's folder. Raises CheckpointError E14xx."""
    config = read_headers(here(settings.model.path))[0]
    return None if config.vision is None else config.tiling(settings.image.aspect)


def waiting(pool: PoolSettings) -> str:
    """Why no row may have come yet: a pool that finds no room waits, and Ray says nothing."""
    import ray

    free = ray.available_resources()  # type: ignore[no-untyped-call]
    whole = ray.cluster_resources()  # type: ignore[no-untyped-call]
    decoders = f" {pool.decode_actors} that decode take 1 CPU each;" if pool.decode_actors else ""
    return (
        f"the workers load the model, or wait for room.{decoders} One takes "
        f"{pool.cpus:g} CPUs and {pool.num_gpus:g} GPUs; free in the whole cluster are "
        f"{free.get('CPU', 0):g} of {whole.get('CPU', 0):g} and "
        f"{free.get('GPU', 0):g} of {whole.get('GPU', 0):g}."
    )


def _left(run: Run) -> int:
    """Chunks that are open and have not been skipped."""
    return run.open_chunks - len(run.skipped)


def next_chunks(run: Run, most: int) -> list[Chunk]:
    """The first of these."""
    found = run.todo(most + len(run.skipped))
    return [chunk for chunk in found if chunk.source_key not in run.skipped][:most]


def _pass(
    run: Run,
    settings: ScoreSettings,
    session: Session,
    progress: Progress,
    stream: Stream,
    factory: str | None,
) -> None:
    """Stream some chunks through a pool of actors."""
    from medv_ray.on_ray.actor import Work
    from medv_ray.on_ray.decode import DecodeWork
    from medv_ray.on_ray.predictor import PREDICTOR

    began = time.monotonic()
    model = run.manifest["identity"]["model"]
    digests = (model["sha256"], model.get("adapter_sha256"))
    decoding = None
    if settings.pool.decode_actors:
        tiles = tiles_of(settings)
        decoding = DecodeWork(settings.image, tiles, run.plan.archive, stream.supervisor)
    work = Work(
        settings,
        run.plan.archive,
        stream.supervisor,
        factory or PREDICTOR,
        digests,
        run.pseudonyms,
        decoding,
    )
    try:
        for results in stream.run(work):
            _take(run, session, progress, results)
    except Exception:  # nothing is committed any more
        stream.abandon()
        raise
    session.stopped = stream.stopped and _left(run) > 0
    report = stream.report()
    session.deaths += report["deaths"]
    session.start_s += time.monotonic() - began - (report["ready_ago_s"] or 0.0)


def _take(
    run: Run,
    session: Session,
    progress: Progress,
    results: Sequence[tuple[Chunk, dict[str, Any]]],
) -> None:
    """Commit results together, or note whose input was not there."""
    parts, scored = [], []
    for chunk, result in results:
        session.counters.update(result.get("counters", {}))
        if session.meters is not None:
            session.meters.work(result.get("counters", {}))
        if "skip" in result:
            run.skip(chunk, DataError(*result["skip"]))
            continue
        run.note_processor(result["processor"])
        parts.append(Part(**result["part"]))
        scored.append(result)
    for part, result, new in zip(parts, scored, run.commit_all(parts), strict=True):
        if not new:
            continue
        session.rows += part.rows
        session.reasons.update(result["reasons"])
        rows: dict[str, int] = {status: getattr(part, status) for status in STATUSES}
        progress.add(rows)
        if session.meters is not None:
            session.meters.take(rows, result["reasons"])
    for reason, code in GIVE_UP.items():
        defects = session.reasons[reason]
        if defects >= DEFECTS and 2 * defects > session.rows:
            text = f"{defects} of {session.rows} rows ended as {reason}; nothing more is tried."
            raise RunError(code, text)
