"""The archive of a run, once more: for pictures and headers that the run folder does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medv_ray.archive.plan import Plan
    from medv_ray.archive.prior import Prior
    from medv_ray.archive.settings import ArchiveSettings


def archive_again(prior: Prior, archive: str, **given: str | None) -> ArchiveSettings:
    """Settings of the archive that a run has scored; rows have the run's own questions.

    Raises SettingsError E1001.
    """
    from medv_ray.archive.settings import ArchiveSettings
    from medv_ray.settings import build

    if prior.kind in ("images", "dicomweb"):
        given["question"] = given.get("question") or "?"
    return build(ArchiveSettings, {"archive": archive, **given})


def plan_again(prior: Prior, settings: ArchiveSettings) -> Plan:
    """Its rows, numbered and cut from their files as the run has them. Raises what planning
    raises."""
    from dataclasses import replace

    from medv_ray.archive.plan import plan
    from medv_ray.archive.sources import open_archive
    from medv_ray.data.slide_child import reader_of
    from medv_ray.settings import ImageSettings, SlideSettings

    found = open_archive(settings, prior.images, prior.salt)
    found = replace(found, slides=reader_of(ImageSettings(), SlideSettings()))
    return plan(found, "again", prior, prior.splitter)
