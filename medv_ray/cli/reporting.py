"""`medv report`: one page about a scoring run or an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli import options
from medv_ray.errors import SettingsError

Option = typer.Option
Text = str | None


def report_command(
    run: Annotated[
        str, typer.Argument(help="Folder of `medv score`, finished or not, or of `medv eval`.")
    ],
    out: Annotated[Path | None, Option(help="File; default: report.html in that folder.")] = None,
    blind: Annotated[
        Path | None, Option(help="Of `medv eval`: the folder of the same with --blind.")
    ] = None,
    data: Annotated[
        Path | None, Option(help="Of `medv eval`: its prepared dataset, for pictures.")
    ] = None,
    calibration: Annotated[
        Path | None, Option(help="Folder of the model, or of `medv calibrate`, that has one.")
    ] = None,
    archive: Annotated[Text, Option(help="What was scored, for pictures on the page.")] = None,
    questions: options.AsScore = None,
    question: options.AsScore = None,
    images: options.AsScore = None,
    token_file: options.AsScore = None,
) -> None:
    """One HTML file about a run: counts, accuracy, confidence, pictures; no script, no link."""
    from medv_ray.archive.prior import Prior
    from medv_ray.archive.store import Store
    from medv_ray.cli.archives import archive_again, plan_again
    from medv_ray.disk import disk_errors
    from medv_ray.evaluation.eval_report import eval_report, is_evaluation
    from medv_ray.evaluation.report import report
    from medv_ray.evaluation.stored_calibration import read_calibration
    from medv_ray.files import write_atomic

    stored = read_calibration(calibration) if calibration is not None else None
    if calibration is not None and stored is None:
        raise SettingsError("E1001", "--calibration: the folder has no calibration.json.")
    flags = {
        "--archive": archive, "--questions": questions, "--question": question,
        "--images": images, "--token-file": token_file,
    }  # fmt: skip
    given = ", ".join(name for name, value in flags.items() if value is not None)
    if is_evaluation(Path(run)):
        if given:
            said = f"{given}: for folders of `medv score`; --data is for those of `medv eval`."
            raise SettingsError("E1001", said)
        text = eval_report(Path(run), blind, data, stored)
    elif blind or data:
        raise SettingsError("E1001", "--blind and --data are for folders of `medv eval`.")
    elif archive is not None:
        prior = Prior.read(run)
        settings = archive_again(
            prior, archive, questions=questions, question=question, images=images,
            token_file=token_file,
        )  # fmt: skip
        text = report(run, plan_again(prior, settings), stored)
    elif given:
        raise SettingsError("E1001", f"{given}: only with --archive, which is read for pictures.")
    else:
        text = report(run, stored=stored)
    page = text.encode()
    if out is None:
        Store(run).write("report.html", page)
    else:
        if not out.parent.is_dir() or out.is_dir():
            raise SettingsError(
                "E1001", f"--out {out.name!r} takes a file in a folder that exists."
            )
        with disk_errors(out.name):
            write_atomic(out, page)
    typer.echo(f"{out.name if out else 'report.html in the run folder'}: {len(page):,} bytes")
