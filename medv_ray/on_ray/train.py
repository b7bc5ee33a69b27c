"""A stage of training on Ray Train: workers, restarts, progress, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
from medv_ray.disk import DISK, disk_error, disk_errors, is_full
from medv_ray.errors import CheckpointError, DataError, MedvError, RunError, SettingsError
from medv_ray.files import put_in_place, write_durably
from medv_ray.hub import here
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.curves import draw, no_matplotlib
from medv_ray.on_ray.preflight import check_workers
from medv_ray.on_ray.validation import spec_of, with_sampler
from medv_ray.settings import model_folder
from medv_ray.training.check import check
from medv_ray.training.export import export
from medv_ray.training.job import FAILED, MODEL, NOTE, STOP, TrainSettings
from medv_ray.training.run import begin, is_run
from medv_ray.training.stages import StageSettings
from medv_ray.training.watch import EVENTS, Event, event_of

ERRORS = {cls.__name__: cls for cls in (CheckpointError, DataError, RunError, SettingsError)}
GROUP_TIMEOUT_S = 300
TELL_S = 5.0
WAITING_LOOKS = 12  # a minute

FEW_UPDATES = 10
TAIL_BYTES = 2**16
"""Of events.jsonl that are looked at first for the last event: some hundred lines."""

Tell = Callable[[str, Event], None]
"""Gets the stage's name and the last step, every few seconds, and each validation."""


class Trained(NamedTuple):
    """How a stage ended."""

    step: int
    num_steps: int
    loss: float | None
    seconds: float
    ended_early: bool = False
    """No validation was better for `validation.patience` of them."""
    validation: dict[str, Any] | None = None
    """Figures of the last validation."""

    @property
    def whole(self) -> bool:
        """All steps were done, or no more were wanted; else the same command goes on."""
        return self.step == self.num_steps or self.ended_early


def train(
    settings: TrainSettings,
    new_run: bool = False,
    take_over: bool = False,
    address: str | None = None,
    tell: Tell = lambda stage, event: None,
) -> Trained:
    """Train a stage, or go on with one, and export it when it is done; nothing is started where its
    `model/` is there. SIGTERM and Ctrl-C save after the step and end early.

    Args:
        new_run: remove what the run made first; other files stay.
        take_over: ignore the lock of a job on another machine that is surely dead.

    Raises what `check`, `begin`, `train_worker` and `export` raise, RunError E1501 for a folder in
    which another job trains, and E1508 for workers that keep dying.
    """
    began = time.monotonic()
    settings = with_sampler(located(settings))
    identity = check(settings, spec_of(settings))
    with alone(settings.out, take_over), disk_errors("the run folder"):
        out = Path(settings.out)
        before = None if new_run else last_event(out).get("step")
        if new_run or not is_run(out, identity) or not (out / MODEL).is_dir():
            run_on_ray(settings, identity, new_run, address, tell)
        event, looked = last_event(out), last_event(out, "validation")
        num_steps, step = settings.stage.steps(identity["survey"]["rows"]), event.get("step", 0)
        ended = bool(looked.get("ended")) and looked["step"] == step
        if (out / MODEL).is_dir() and not ended:
            step = num_steps
        done = Trained(
            step,
            num_steps,
            event.get("loss"),
            time.monotonic() - began,
            ended,
            {name: looked[name] for name in FIGURES if name in looked} or None,
        )
        if ended and step == before:
            sys.stderr.write(f"{ended_before(settings, step, num_steps)}\n")
        if done.whole and not (out / MODEL).exists():
            export(settings, out / MODEL, best=settings.validation.export == "best")
        if not draw(out, settings.stage.name):
            sys.stderr.write(f"{no_matplotlib()}\n")
    return done


FIGURES = ("step", "rows", "loss", "accuracy", "accuracy_open", "accuracy_closed")


def ended_before(settings: TrainSettings, step: int, num_steps: int) -> str:
    """That nothing was trained, and what there is to do."""
    text = f"{settings.stage.name}: validation.patience ended the stage after step {step} of "
    text += f"{num_steps}; it is done, and other settings of validation do not take it further."
    return f"{text} --new-run, or another run folder, trains it anew."


def few_updates(stage: StageSettings, num_rows: int) -> str:
    """A warning where an epoch has under ten updates; else empty."""
    updates = num_rows / stage.batch_size
    if updates >= FEW_UPDATES:
        return ""
    text = f"{stage.name}: an epoch has {updates:.3g} updates ({num_rows} rows, stage.batch_size="
    text += f"{stage.batch_size}), so that the model changes in few large steps; "
    return f"{text}a smaller --set stage.batch_size, or more rows, teach more."


@contextmanager
def alone(out: str, take_over: bool) -> Iterator[None]:
    """The only driver of a run folder, which is made. Raises RunError E1501 and E1511."""
    store = Store(out)
    store.make()
    lock = Lock(store)
    lock.acquire(take_over)
    try:
        yield
    finally:
        lock.release()


def run_on_ray(
    settings: TrainSettings,
    identity: dict[str, Any],
    new_run: bool,
    address: str | None,
    tell: Tell,
) -> None:
    """From the last checkpoint to the end of the stage, or to where it is stopped. The folder is a
    run's once its workers fit."""
    out = Path(settings.out)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with running_ray(address) as cluster:
        fits = check_workers(settings.workers, cluster.capacity)
        workers = settings.workers
        few = fits < (workers.min_workers or workers.num_workers)
        text = f"room for {fits} of {workers.num_workers} workers; waiting for more" if few else ""
        begin(settings, identity, new_run)
        for name in (STOP, FAILED, NOTE):
            (out / name).unlink(missing_ok=True)
        if warning := few_updates(settings.stage, identity["survey"]["rows"]):
            sys.stderr.write(f"{warning}\n")
        from medv_ray.on_ray.job_meters import TrainMeters

        meters = TrainMeters(settings.stage.name)
        try:
            with stopping(out), reporting(settings, tell, text, meters.take):
                run_workers(settings, identity)
        finally:
            meters.end()
    if (out / FAILED).is_file():
        failed = json.loads((out / FAILED).read_text())
        raise ERRORS[failed["kind"]](failed["code"], failed["detail"])


def located(settings: TrainSettings) -> TrainSettings:
    """With folders as absolute paths, which mean the same in every process.

    Raises SettingsError E1001 for an object store.
    """
    model = model_folder(settings.model)
    given = {"model": model, "data": settings.data, "out": settings.out}
    for name, path in given.items():
        if "://" in path:
            text = f"{name}: training reads and writes folders that all workers see, not addresses"
            raise SettingsError("E1001", f"{text}; mount it, or copy it to such a folder.")
    paths = {name: os.path.abspath(path) for name, path in given.items()}
    return settings.model_copy(update=paths)


def run_workers(settings: TrainSettings, identity: dict[str, Any]) -> None:
    """Ray Train around `work`. Raises RunError E1508 when workers died too often."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    workers, out = settings.workers, Path(settings.out)
    count: Any = workers.num_workers
    if workers.min_workers:
        count = (workers.min_workers, workers.num_workers)
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.num_gpus else {})}
    trainer = TorchTrainer(
        work,
        train_loop_config={"settings": settings.model_dump(mode="json"), "identity": identity},
        torch_config=TorchConfig(
            backend="nccl" if workers.num_gpus else "gloo", timeout_s=GROUP_TIMEOUT_S
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=count, use_gpu=bool(workers.num_gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        apart(trainer.fit)
    except ray.train.TrainingFailedError as error:
        if (out / FAILED).is_file():
            return  # the workers said why
        failures = list(getattr(error, "worker_failures", {}).values())
        if any(map(is_full, failures)):
            raise RunError(
                "E1503", "the run folder could not be written: the disk is full."
            ) from None
        kinds = sorted({type(e).__name__ for e in failures})
        text = f"training workers failed more than {workers.max_failures} times"
        raise RunError("E1508", f"{text} ({', '.join(kinds) or 'lost'}).") from None


def apart(call: Callable[[], Any]) -> None:
    """Call in a thread: in the main one Ray Train takes Ctrl-C for itself, and drops the run."""
    failed: list[BaseException] = []

    def go() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go, name="trainer", daemon=True)
    thread.start()
    thread.join()  # signals are handled meanwhile
    if failed:
        raise failed[0]


def work(config: dict[str, Any]) -> None:
    """One worker, in a process of its own."""
    import torch

    from medv_ray.on_ray.worker import die_with_parent
    from medv_ray.training.run import train_worker

    die_with_parent()  # else it goes on, and saves, for a second after its driver was killed
    settings = TrainSettings.model_validate(config["settings"])
    settings = settings.model_copy(update={"model": here(settings.model)})
    out = Path(settings.out)
    if (out / FAILED).is_file():
        return  # the error of no worker alone; another try would end the same
    gpu = settings.workers.num_gpus
    if settings.shard.threads or not gpu:
        torch.set_num_threads(settings.shard.threads or 1)
    device = "cuda" if gpu else "cpu"
    identity = config["identity"]
    try:
        spec = spec_of(settings)
        for _ in train_worker(settings, identity, device, (out / STOP).is_file, preempted, spec):
            pass
    except OSError as error:
        if error.errno not in DISK:
            raise  # of a connection: another try may help
        fail(out, disk_error("the run folder", error))
        raise
    except MedvError as error:
        fail(out, error)
        raise


def fail(out: Path, error: MedvError) -> None:
    """Leave word that the job is to end, and why."""
    word = {"kind": type(error).__name__, "code": error.code, "detail": error.detail}
    with suppress(OSError):  # on a full disk the driver hears of the exception alone
        # the first one's word, unless the disk is full, which may be why others could not write
        if is_full(error) or not (out / FAILED).exists():
            partial = out / f"{FAILED}.{os.getpid()}"  # workers may fail together
            write_durably(partial, json.dumps(word).encode())
            put_in_place(partial, out / FAILED)


def preempted() -> bool:
    """Whether a node of this run is about to be taken away. All workers ask together."""
    import ray.train

    return ray.train.get_preemption_info() is not None


@contextmanager
def stopping(out: Path) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the workers to save and end; a second one ends this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        for known, handler in before.items():
            signal.signal(known, handler)
        (out / STOP).touch()
        sys.stderr.write("stopping after this step; the state will be saved\n")

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reporting(
    settings: TrainSettings,
    tell: Tell,
    waiting: str = "",
    show: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Iterator[None]:
    """Hand on the last step, each validation and a worker's note, while the workers go on;
    `waiting` each minute until the first step. A validation has the curves drawn anew. `show` gets
    the last step's line of events.jsonl each time, of what stood there before only the step."""
    over, out = threading.Event(), Path(settings.out)
    begun = last_event(out).get("step")
    validates = settings.validation.every is not None
    validated = last_event(out, "validation").get("step") if validates else None

    def watch() -> None:
        shown, seen, note, looks = begun, validated, out / NOTE, 0
        while True:
            ended = over.wait(TELL_S)
            event, looked = last_event(out), last_event(out, "validation") if validates else {}
            # of an earlier process: how far it came, not how fast it was
            new = event.get("step") != begun
            show(event if new else {name: event.get(name) for name in ("step", "total_steps")})
            if event and event["step"] != shown and not ended:
                shown = event["step"]
                tell(settings.stage.name, event_of(event))
            if looked and looked["step"] != seen:
                seen = looked["step"]
                tell(settings.stage.name, event_of(looked))
                with suppress(OSError):  # the end draws them too
                    draw(out, settings.stage.name)
            if waiting and shown == begun and looks % WAITING_LOOKS == 0 and not ended:
                sys.stderr.write(f"{waiting}\n")
            looks += 1
            with suppress(FileNotFoundError):
                sys.stderr.write(f"{note.read_text()}\n")
                note.unlink()
            if ended:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def last_event(out: Path, kind: str | None = None) -> dict[str, Any]:
    """The last whole line of events.jsonl of a kind, by default a step's; empty where there is
    none. It is looked for in ever longer pieces from the end."""
    with suppress(OSError, ValueError), (out / EVENTS).open("rb") as file:  # may be new, or damaged
        stop = end = file.seek(0, os.SEEK_END)
        size = TAIL_BYTES
        while stop:
            start = max(0, end - size)
            file.seek(start)
            lines = file.read(stop - start).split(b"\n")
            # what stands behind the last line's end, or in front of the first one's, is half a line
            whole = lines[1:-1] if start else lines[:-1]
            for line in reversed(whole):
                event = json.loads(line)
                if not isinstance(event, dict) or "step" not in event:  # damaged
                    return {}
                if event.get("kind") == kind:
                    return event
            if whole:
                stop = start + len(lines[0]) + 1
            if not start:
                break
            size *= 2
    return {}
