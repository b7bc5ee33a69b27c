"""Which `abstain_below` a scoring job takes where its user gives none."""

from __future__ import annotations

from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.store import Store
from medv_ray.evaluation.stored_calibration import StoredCalibration, read_calibration
from medv_ray.on_ray.calibrate import store_folder
from medv_ray.on_ray.options import ScoreSettings, model_digests

GIVEN = "--set abstain_below=null"


def with_stored(settings: ScoreSettings, new_run: bool = False) -> tuple[ScoreSettings, str | None]:
    """Settings with the model's own `abstain_below`, and what to say about it.

    A value that was given stands, null too. A run that goes on keeps what it began with: a
    calibration that was stored since then does not stop it. One that was made for other weights or
    settings is not used. Raises SettingsError E1001 for a damaged one, CheckpointError E1401.
    """
    if "abstain_below" in settings.model_fields_set:
        return settings, None
    begun = None if new_run else read_manifest(Store(settings.out))
    if begun is not None:
        limit = begun["identity"]["settings"].get("abstain_below")
        said = None if limit is None else f"abstain_below={limit:.6g}, as the run began with"
        return settings.model_copy(update={"abstain_below": limit}), said
    found = read_calibration(store_folder(settings.model))
    if found is None:
        return settings, None
    why = found.differs(settings.identity(*model_digests(settings.model)))
    if why is not None:
        return settings, f"the calibration beside the model is not used: {why}"
    if found.abstain_below is None:
        return settings, "the calibration beside the model has no threshold: nothing abstains by it"
    limit = found.abstain_below
    return settings.model_copy(update={"abstain_below": limit}), in_words(found)


def in_words(found: StoredCalibration) -> str:
    """The threshold in words."""
    return (
        f"abstain_below={found.abstain_below:.6g}, from the calibration beside the model: on "
        f"{found.n} validation answers it keeps {found.coverage:.1%}, of which "
        f"{found.risk:.1%} are wrong (of new pictures: at most {found.risk_bound:.1%}, at 95 %). "
        f"{GIVEN} takes none."
    )
