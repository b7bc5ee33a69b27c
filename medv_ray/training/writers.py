"""Where curves go besides `events.jsonl`, each through its own package, imported when asked."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from medv_ray.errors import SettingsError
from medv_ray.files import write_atomic

WriterName = Literal["tensorboard", "wandb", "mlflow"]
RUN_IDS = "watch.json"
FLUSH_S = 10.0
"""Between two times that curves are forced to the disk."""
# module and distribution that each writer needs
PACKAGES: dict[WriterName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
log = logging.getLogger(__name__)


class Writer(Protocol):
    """A place that curves go to."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `OUT/tensorboard`; curves after the resumed step are purged.

    Not through tensorboardX's SummaryWriter: its thread ends with an error of the disk, and whoever
    writes then waits for it for ever.
    """

    def __init__(self, out: Path, resumed_step: int) -> None:
        """Raises OSError."""
        files = importlib.import_module("tensorboardX.event_file_writer")
        self._protocol = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summary = importlib.import_module("tensorboardX.summary")
        folder = out / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = files.EventsWriter(str(folder / "events"))
        start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
        self._add(resumed_step + 1, session_log=start)
        self._flushed_s = -math.inf

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Raises OSError."""
        for name, value in scalars.items():
            self._add(step, summary=self._summary.scalar(name, value))
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            self._file.flush()
            self._flushed_s = time.monotonic()

    def show(self, step: int, text: str) -> None:
        """Answers of a validation, as Markdown; nothing where it is empty. Raises OSError."""
        if text:
            self._add(step, summary=self._summary.text("validation/answers", text))

    def _add(self, step: int, **content: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), step=step, **content)
        self._file.write_event(event)

    def close(self) -> None:
        """Raises OSError."""
        self._file.close()


class WandB:
    """Weights & Biases; project and account come from its own environment variables."""

    def __init__(self, out: Path, run_name: str, settings: dict[str, Any]) -> None:
        module = importlib.import_module("wandb")
        ids = _run_ids(out)
        try:
            self._run = module.init(
                dir=str(out), name=run_name, id=ids.get("wandb"), resume="allow", config=settings
            )
        except module.Error as error:
            raise _not_started("wandb", error, "`wandb login`, or WANDB_MODE=offline") from None
        _keep_run_id(out, "wandb", self._run.id)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; server and experiment come from its own environment variables."""

    def __init__(self, out: Path, run_name: str, settings: dict[str, Any]) -> None:
        self._module = importlib.import_module("mlflow")
        run_id = _run_ids(out).get("mlflow")
        try:
            run = self._module.start_run(run_id=run_id, run_name=run_name)
            if run_id is None:
                self._module.log_dict(settings, "settings.json")
        except self._module.MlflowException as error:
            raise _not_started("mlflow", error, "check MLFLOW_TRACKING_URI") from None
        _keep_run_id(out, "mlflow", run.info.run_id)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        # it takes letters, digits and "_-. /" alone; ours are such
        try:
            self._module.log_metrics(scalars, step=step)
        except self._module.MlflowException as error:
            log.warning("mlflow did not take step %d (%s)", step, type(error).__name__)

    def close(self) -> None:
        self._module.end_run()


def open_writer(
    name: WriterName, out: Path, resumed_step: int, run_name: str, settings: dict[str, Any]
) -> Writer:
    """Raises SettingsError E1001 for a package that is missing or does not start."""
    check_writers((name,))
    if name == "tensorboard":
        return TensorBoard(out, resumed_step)
    kind = WandB if name == "wandb" else MLflow
    return kind(out, run_name, settings)


def check_writers(names: tuple[WriterName, ...]) -> None:
    """Before the first step: raises SettingsError E1001 for a writer whose package is missing."""
    for name in names:
        module, distribution = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise SettingsError(
                "E1001", f"watch: {name} needs a package: pip install {distribution}."
            )


def _run_ids(out: Path) -> dict[str, str]:
    """Ids that servers gave to this run, so that a resumed one goes on there."""
    path = out / RUN_IDS
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _keep_run_id(out: Path, name: str, run_id: str) -> None:
    ids = _run_ids(out) | {name: run_id}
    write_atomic(out / RUN_IDS, json.dumps(ids).encode())


def _not_started(name: str, error: Exception, way_out: str) -> SettingsError:
    kind = type(error).__name__
    return SettingsError("E1001", f"watch: {name} did not start ({kind}); {way_out}.")
