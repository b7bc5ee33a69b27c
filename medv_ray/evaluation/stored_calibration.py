"""The calibration of a model as a file in its folder, which its digest leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medv_ray.errors import SettingsError
from medv_ray.evaluation.calibrators import Calibrator
from medv_ray.files import write_atomic
from medv_ray.settings import CALIBRATION, AnswerSettings, Settings, build


class StoredCalibration(Settings):
    """What was fitted, on what, and what it is good for."""

    format: Literal[1] = 1
    model_sha256: str
    """Of the folder's weights, config and tokenizer; another model's calibration is not used."""
    adapter_sha256: str | None = None
    held: dict[str, Any] | None = None
    """dtype, device, logit_size, which change confidence; None: of before they were noted."""
    answer: dict[str, Any]
    """Sampler, prompt and image settings; answers by others are other answers."""
    rows: str
    """Which rows, in words."""
    n: int
    """Answers."""
    right: float
    """Share of right ones."""
    calibrator: Calibrator
    ece_before: float
    ece_after: float
    """Over rows that the map was not fitted on: five folds, rows of one picture in one of them."""
    target_risk: float
    abstain_below: float | None
    """None: no threshold keeps the target."""
    coverage: float | None = None
    risk: float | None = None
    risk_bound: float | None = None
    """What the risk does not exceed for rows of new pictures, at 95 %."""

    def differs(self, identity: Mapping[str, Any]) -> str | None:
        """Why it does not hold for the answers of a run of this identity, in words; None where it
        does."""
        model, answer = identity.get("model") or {}, settings_of(identity)
        if answer is None:
            return "the run does not say under which settings it was made"
        if (self.model_sha256, self.adapter_sha256) != digests_of(model):
            return "the model has changed"
        if self.held is None:
            return (
                "it is of before dtype, device and logit_size were noted; "
                "`medv calibrate --store` makes it anew"
            )
        names = [
            f"{group}.{name}"
            for group, values in {"model": held(model), **decisive(answer)}.items()
            for name in values
            if values[name] != {"model": self.held, **self.answer}.get(group, {}).get(name)
        ]
        return f"{', '.join(names)} differ" if names else None


def digests_of(model: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Of model and adapter, as a run's identity has them."""
    return model.get("sha256"), model.get("adapter_sha256")


def held(model: Mapping[str, Any]) -> dict[str, Any]:
    """How a run held its model: all of that part of its identity but the digests."""
    return {
        name: value for name, value in model.items() if name not in ("sha256", "adapter_sha256")
    }


def settings_of(identity: Mapping[str, Any]) -> AnswerSettings | None:
    """Of a run's identity; None where it has none that this version knows."""
    try:
        return build(AnswerSettings, dict(identity["settings"]))
    except (KeyError, SettingsError):
        return None


def decisive(answer: AnswerSettings) -> dict[str, Any]:
    """The settings that change what is answered, and how surely."""
    return answer.model_dump(mode="json", include={"sampler", "prompt", "image"})


def write_calibration(folder: Path, calibration: StoredCalibration) -> None:
    """Put it beside the model's weights, or into another folder."""
    text = json.dumps(calibration.model_dump(mode="json"), indent=1)
    write_atomic(folder / CALIBRATION, f"{text}\n".encode())


def read_calibration(folder: Path) -> StoredCalibration | None:
    """Of a folder; None where it has none. Raises SettingsError E1001 for a damaged file."""
    try:
        values = json.loads((folder / CALIBRATION).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        said = f"{CALIBRATION} cannot be read ({kind}); `medv calibrate --store` writes it again."
        raise SettingsError("E1001", said) from None
    found = build(StoredCalibration, values if isinstance(values, dict) else {})
    if not 0 <= (found.abstain_below or 0.0) <= 1:
        raise SettingsError("E1001", f"{CALIBRATION}: abstain_below lies outside 0 to 1.")
    return found
