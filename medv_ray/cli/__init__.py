"""The `medv` command. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medv_ray import __version__
from medv_ray.cli import options
from medv_ray.cli.auditing import audit_app
from medv_ray.cli.batches import run_batch_command
from medv_ray.cli.calibrating import calibrate_command, consistency_command
from medv_ray.cli.checking import check_command
from medv_ray.cli.doctor import doctor_command
from medv_ray.cli.evaluating import compare_command, eval_command, judge_command
from medv_ray.cli.exporting import export_answers_command, lmms_tasks_command
from medv_ray.cli.pacs import export_sr_command, store_command
from medv_ray.cli.planning import plan_score_command
from medv_ray.cli.pushing import push_command
from medv_ray.cli.reporting import report_command
from medv_ray.cli.rows import rows_command
from medv_ray.cli.serving import bench_app, chat_command, serve_command
from medv_ray.cli.terminal import exit_code_of, merged, print_json, read_yaml, told_cleanly
from medv_ray.cli.training import data_app, plan_app
from medv_ray.cli.tuning import attention_command, sweep_command, tune_command
from medv_ray.errors import DataError, SettingsError, explain

if TYPE_CHECKING:
    from medv_ray.on_ray.options import ScoreSettings
    from medv_ray.on_ray.score import Outcome

__all__ = [
    "app", "exit_code_of", "main", "merged", "print_json", "read_yaml",
    "score_command", "score_settings", "settings_of", "summary_of", "told_cleanly",
]  # fmt: skip
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    help="Masked-diffusion answers about biomedical images.",
)  # fmt: skip


Option = typer.Option
Text = str | None
MAX_CANVAS_BYTES = 2**20


def score_command(
    archive: Annotated[Text, Option(help="File, folder, pattern, 's3://...' or PACS.")] = None,
    model: options.Model = None,
    out: Annotated[Text, Option(help="Run folder, local or s3://, gs://.")] = None,
    questions: Annotated[
        Text, Option(help="Table of questions: csv, tsv, jsonl, json or parquet.")
    ] = None,
    question: Annotated[Text, Option(help="One question for every image.")] = None,
    images: Annotated[Text, Option(help="Folder that image paths are relative to.")] = None,
    id_column: Annotated[Text, Option(help="Column of row ids; `none`: file and row.")] = None,
    image_column: Annotated[Text, Option(help="Column of images or image paths.")] = None,
    question_column: Annotated[Text, Option(help="Column of questions.")] = None,
    answer_column: Annotated[Text, Option(help="Column of known answers, copied.")] = None,
    choices_column: Annotated[Text, Option(help="Column of allowed answers, scored.")] = None,
    prompt: Annotated[
        Text, Option(help="What is asked: 'Modality: {modality}. {question}', by columns.")
    ] = None,
    system_column: Annotated[Text, Option(help="Column of system sentences.")] = None,
    canvas: Annotated[
        Path | None, Option(help="File of the answers' form: text with blanks, or JSON schema.")
    ] = None,
    encoding: Annotated[Text, Option(help="Of text tables: latin-1, say; default UTF-8.")] = None,
    token_file: Annotated[Text, Option(help="Of a PACS: file of its token.")] = None,
    max_cell_bytes: Annotated[
        int | None, Option(help="Longest question or answer of a table.")
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first rows.")] = None,
    frames: Annotated[
        Text, Option(help="Of a file of several: first, middle, all, every:N or refuse.")
    ] = None,
    window: options.Window = None,
    pseudonymise: Annotated[
        bool, Option("--pseudonymise", help="Salted digests in place of ids and picture names.")
    ] = False,
    salt_file: Annotated[Text, Option(help="Of --pseudonymise; default: the run's own.")] = None,
    mapping: Annotated[
        bool, Option("--mapping", help="Of --pseudonymise: keep the way back in private/.")
    ] = False,
    config: options.Config = None,
    assignments: options.Sets = None,
    min_actors: Annotated[int | None, Option(help="Actors at the start.")] = None,
    max_actors: options.MaxActors = None,
    num_gpus: Annotated[float | None, Option(help="GPUs of an actor.")] = None,
    cpus_per_actor: Annotated[float | None, Option(help="CPU cores of an actor.")] = None,
    decode_actors: Annotated[
        int | None, Option(help="Actors that only read and decode, a CPU core each; 0: none.")
    ] = None,
    address: options.Address = None,
    plan: Annotated[bool, Option("--plan", help="Say what would be done; write nothing.")] = False,
    resume: Annotated[
        bool, Option("--resume/--new-run", help="Go on, or wipe the run folder and start over.")
    ] = True,
    retry_quarantined: Annotated[
        bool, Option("--retry-quarantined", help="Try chunks with quarantined rows again.")
    ] = False,
    allow_mixed: Annotated[
        bool, Option("--allow-mixed", help="Go on though settings, model or input changed.")
    ] = False,
    allow_added: Annotated[
        bool, Option("--allow-added", help="Score what was added; what is scored stays.")
    ] = False,
    take_over: Annotated[
        bool, Option("--take-over", help="Ignore the lock of a job that is surely dead.")
    ] = False,
) -> int:
    """Score an archive: every row ends answered, abstained or quarantined."""
    settings = settings_of(locals())
    from medv_ray.on_ray.abstaining import with_stored
    from medv_ray.on_ray.score import Resume, score

    settings, said = with_stored(settings, new_run=not resume)
    if said is not None:
        typer.echo(said, err=True)
    mode = Resume(not resume, allow_mixed, allow_added, take_over, retry_quarantined)
    if plan:
        from medv_ray.on_ray.preview import preview

        print_json(preview(settings, resume=mode))
        return 0
    outcome = score(settings, mode, address=address)
    print_json(summary_of(outcome, settings))
    return outcome.exit_code


def settings_of(given: dict[str, Any], folder: Callable[[str], str] | None = None) -> ScoreSettings:
    """Of the options of `medv score`, by their names. Raises SettingsError."""

    def some(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    canvas = given["canvas"]
    flags = {
        "out": given["out"],
        "canvas": None if canvas is None else read_canvas(canvas),
        "archive": some(
            "archive", "questions", "question", "images", "id_column", "image_column",
            "question_column", "answer_column", "choices_column", "limit", "prompt",
            "system_column", "encoding", "max_cell_bytes", "token_file",
        ),
        "model": {"path": given["model"]},
        "image": some("frames", "window"),
        "pool": some("min_actors", "max_actors", "num_gpus", "cpus_per_actor", "decode_actors"),
        "privacy": {
            "ids": "digest" if given["pseudonymise"] else None,
            "salt_file": given["salt_file"],
            "mapping": given["mapping"] or None,
        },
    }  # fmt: skip
    return score_settings(given["config"], flags, given["assignments"] or [], folder)


def read_canvas(path: Path) -> str:
    """The text of a file of a form. Raises SettingsError E1001, E1309."""
    from medv_ray.data.json_schema import template_of_text

    try:
        with path.open("rb") as file:
            data = file.read(MAX_CANVAS_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        rule = f"--canvas {path.name}: {error.strerror or type(error).__name__}."
        raise SettingsError("E1001", rule) from None
    except UnicodeDecodeError:
        raise SettingsError("E1001", f"--canvas {path.name}: it is no text (UTF-8).") from None
    if len(data) > MAX_CANVAS_BYTES:
        rule = f"it has over {MAX_CANVAS_BYTES} bytes"
        raise SettingsError("E1001", f"--canvas {path.name}: {rule}.")
    try:
        template_of_text(text)
    except DataError as error:
        raise SettingsError(error.code, f"--canvas {path.name}: {error.detail}") from None
    return text


def score_settings(
    config: Path | None,
    flags: dict[str, Any],
    assignments: list[str],
    folder: Callable[[str], str] | None = None,
) -> ScoreSettings:
    """Checkpoint's recommendations < YAML file < flags < `--set`. Raises SettingsError.

    `folder`: of a model's name; default: the hub's models are fetched.
    """
    from medv_ray.on_ray.options import ScoreSettings, checkpoint_defaults
    from medv_ray.settings import build, model_folder, override

    folder = folder or model_folder
    values = override(merged(read_yaml(config) if config else {}, flags), assignments)
    for field, flag in (("out", "--out"), ("archive", "--archive"), ("model", "--model")):
        if not values.get(field):
            raise SettingsError("E1001", f"{flag} is missing; `--help` lists all options.")
    chosen = values["model"].get("path") if isinstance(values["model"], dict) else None
    if isinstance(chosen, str):
        chosen = values["model"]["path"] = folder(chosen)
        if isinstance(adapter := values["model"].get("adapter"), str):
            values["model"]["adapter"] = folder(adapter)
    whole = merged(checkpoint_defaults(str(chosen)), values)
    if "abstain_below" in values:  # null is a value here: nothing abstains
        whole["abstain_below"] = values["abstain_below"]
    return build(ScoreSettings, whole)


def summary_of(outcome: Outcome, settings: ScoreSettings) -> dict[str, Any]:
    """The job's last line; `accuracy` is null where it would take long."""
    session, summary = outcome.session, outcome.summary
    line: dict[str, Any] = {
        "summary": "stopped" if summary is None else "done",
        "run": settings.out.rstrip("/").rpartition("/")[2],
        "rows": outcome.total,
    }
    if summary is None:
        line |= {"committed": outcome.committed, "next": "the same command goes on"}
    else:
        line |= {
            "answered": summary.answered,
            "abstained": summary.abstained,
            "quarantined": summary.quarantined,
            "not_scored": summary.not_scored,
            "reasons": summary.reasons,
            "accuracy": None
            if summary.accuracy is None
            else {kind: one.share for kind, one in summary.accuracy.items()},
        }
    return line | {
        "new_rows": session.rows,
        "added_rows": outcome.added_rows,
        "left_out": {"files": outcome.left_out.total, "groups": outcome.left_out.printed()},
        "several_rows": outcome.several_rows,
        "seconds": round(session.seconds, 2),
        "start_s": round(session.start_s, 2),
        "rows_per_s": round(session.rate, 2) if session.rows else None,
        "counters": dict(session.counters),
        "worker_deaths": session.deaths,
        "files_not_scored": [*session.skipped_files, *outcome.unreadable],
        "nothing_left": session.rows == 0 and summary is not None and not summary.not_scored,
    }


app.command("score")(told_cleanly(score_command))
app.command("rows")(told_cleanly(rows_command))
app.command("eval")(told_cleanly(eval_command))
app.command("compare")(told_cleanly(compare_command))
app.command("export-answers")(told_cleanly(export_answers_command))
app.command("export-sr")(told_cleanly(export_sr_command))
app.command("store")(told_cleanly(store_command))
app.command("lmms-tasks")(told_cleanly(lmms_tasks_command))
app.command("judge")(told_cleanly(judge_command))
app.command("calibrate")(told_cleanly(calibrate_command))
app.command("consistency")(told_cleanly(consistency_command))
app.command("push")(told_cleanly(push_command))
app.command("report")(told_cleanly(report_command))
app.command("sweep")(told_cleanly(sweep_command))
app.command("tune")(told_cleanly(tune_command))
app.command("attention")(told_cleanly(attention_command))
app.command("serve")(told_cleanly(serve_command))
app.command("run-batch")(told_cleanly(run_batch_command))
app.command("chat")(told_cleanly(chat_command))
app.command("check")(told_cleanly(check_command))
app.add_typer(bench_app, name="bench")
plan_app.command("score")(told_cleanly(plan_score_command))
app.add_typer(plan_app, name="plan")
app.add_typer(data_app, name="data")
app.add_typer(audit_app, name="audit")


@app.command("demo")
@told_cleanly
def demo_command(
    rows: Annotated[int, Option(help="Rows of the synthetic archive.", min=1)] = 600,
    out: Annotated[Path, Option(help="Folder for archive and run.")] = Path("demo-run"),
) -> int:
    """Score a synthetic archive with the embedded toy model, and say what happened."""
    from medv_ray.on_ray.demo import describe, run_demo

    outcome = run_demo(out, rows)
    for line in describe(outcome, out):
        typer.echo(line)
    return outcome.exit_code


@app.command("ask")
@told_cleanly
def ask_command(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG, TIFF, BMP, GIF, WebP or DICOM.")],
    question: Annotated[str, typer.Argument(help="In plain words.")],
    model: Annotated[str, Option(help=options.A_MODEL)] = "toy",
    watch: Annotated[bool, Option("--watch", help="Show the answer coming out.")] = False,
    window: options.Window = None,
    assignments: Annotated[
        list[str] | None, Option("--set", help="A setting: --set sampler.steps=32.")
    ] = None,
) -> None:
    """Ask one question about one image."""
    from medv_ray.on_ray.ask import ask

    if model == "toy":
        typer.echo("the embedded toy answers; --model FOLDER asks a real checkpoint.", err=True)
    shown = [] if window is None else [f"image.window={window}"]
    ask(image, question, model, [*shown, *(assignments or [])], watch)


app.command("doctor")(doctor_command)


@app.command("explain")
@told_cleanly
def explain_command(code: Annotated[str, typer.Argument(help="E1203, say.")]) -> None:
    """What an error code means, and the way out."""
    typer.echo(explain(code))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medv-ray {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Masked-diffusion answers about biomedical images."""


def main() -> None:
    """Entry point of `medv`."""
    app()
