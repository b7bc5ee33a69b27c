"""`medv export-sr` and `medv store`: answers as DICOM structured reports, and back to a PACS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medv_ray.cli import options
from medv_ray.cli.terminal import print_json
from medv_ray.errors import SettingsError

if TYPE_CHECKING:
    from medv_ray.evaluation.sr_export import Model

Option = typer.Option
Text = str | None
LICENCE_CHARACTERS = 300


def export_sr_command(
    run: Annotated[str, typer.Argument(help="Run folder of `medv score`, finished or not.")],
    out: Annotated[Path, Option(help="Folder of the reports.")],
    model: Annotated[Text, Option(help="Its checkpoint folder: name and licence.")] = None,
    model_name: Annotated[Text, Option(help="As reports call it; default: the folder's.")] = None,
    licence: Annotated[Text, Option(help="Of the model; default: what its folder says.")] = None,
    identifiers: Annotated[
        bool, Option("--identifiers", help="Name patient, study and picture.")
    ] = False,
    archive: Annotated[Text, Option(help="What was scored; --identifiers needs it.")] = None,
    questions: options.AsScore = None,
    question: options.AsScore = None,
    images: options.AsScore = None,
    token_file: options.AsScore = None,
    calibration: Annotated[
        Path | None, Option(help="Folder with a calibration.json: confidences by it.")
    ] = None,
) -> None:
    """DICOM SR (TID 1500) of each answered row; research use only, not for diagnosis."""
    from medv_ray.archive.prior import Prior
    from medv_ray.cli.archives import archive_again, plan_again
    from medv_ray.evaluation.stored_calibration import read_calibration

    with reports_needed():
        from medv_ray.evaluation import sr_export
    stored = read_calibration(calibration) if calibration is not None else None
    if calibration is not None and stored is None:
        raise SettingsError("E1001", "--calibration: the folder has no calibration.json.")
    if identifiers != (archive is not None):
        raise SettingsError("E1001", "--identifiers and --archive go together.")
    about = sr_export.about_run(run, described(run, model, model_name, licence), stored)
    headers = None
    if archive is not None:
        prior = Prior.read(run)
        settings = archive_again(
            prior, archive, questions=questions, question=question, images=images,
            token_file=token_file,
        )  # fmt: skip
        if prior.kind == "dicomweb":
            headers = sr_export.headers_in_pacs(run, settings)
        else:
            headers = sr_export.headers_in_files(plan_again(prior, settings))
    made = sr_export.export(run, out, about, headers, stored)
    print_json({"summary": "reports", **made.as_json()})


@contextmanager
def reports_needed() -> Iterator[None]:
    """Raises SettingsError E1003 where an import inside lacks what makes reports."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("highdicom", "pydicom"):
            raise
        raise SettingsError("E1003", "reports need pip install 'medv-ray[sr]'.") from None


def described(run: str, model: str | None, name: str | None, licence: str | None) -> Model:
    """Name and licence for the reports. Raises RunError E1502 for another model than the run's."""
    from medv_ray.archive.manifest import read_manifest
    from medv_ray.archive.store import Store
    from medv_ray.errors import RunError
    from medv_ray.evaluation.sr_export import Model
    from medv_ray.settings import model_folder

    if model is None:
        return Model(name or "LLaDA-MedV checkpoint", licence or "not stated")
    from medv_ray.model import weights  # which loads torch
    from medv_ray.model.importing import licence_of

    folder = Path(model_folder(model))
    manifest = read_manifest(Store(run)) or {}
    scored = manifest.get("identity", {}).get("model", {}).get("sha256")
    if scored is not None and weights.digest(str(folder)) != scored:
        raise RunError("E1502", "--model is not the model of this run.")
    text = " ".join((licence_of(folder, licence)["text"] or "not stated").split())
    return Model(name or folder.resolve().name, text[:LICENCE_CHARACTERS])


def store_command(
    reports: Annotated[Path, typer.Argument(help="Folder of `medv export-sr`.")],
    to: Annotated[str, Option(help="dicomweb+https://host/dicom-web")],
    token_file: Annotated[Text, Option(help="File of the PACS' token.")] = None,
) -> None:
    """Store reports in a PACS by STOW-RS; the same command goes on, and nothing is stored twice."""
    with reports_needed():
        from medv_ray.evaluation.sr_store import store
    print_json({"summary": "stored", **store(reports, to, token_file)})
