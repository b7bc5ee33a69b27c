"""Write docs/reference/*.md from the code: settings, commands, errors, columns.

    python docs/write_reference.py

`tests/unit/test_reference.py` compares the committed pages with what this makes.
"""

from __future__ import annotations

import inspect
import io
import re
import runpy
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from medv_ray import cli, schema  # noqa: E402
from medv_ray.archive.scale import ScaleSettings  # noqa: E402
from medv_ray.client.questions import LoadSettings  # noqa: E402
from medv_ray.data.vqa.settings import PrepareSettings  # noqa: E402
from medv_ray.errors import CATALOGUE, RunError  # noqa: E402
from medv_ray.on_ray.options import ScoreSettings  # noqa: E402
from medv_ray.serving.options import ServeSettings  # noqa: E402
from medv_ray.setting_errors import kinds_of  # noqa: E402
from medv_ray.settings import Settings  # noqa: E402
from medv_ray.training.job import TrainSettings  # noqa: E402
from medv_ray.training.plan import PlanSettings  # noqa: E402

MADE = "<!-- made by docs/write_reference.py: change the code, then run it -->\n\n"
ROOTS: dict[str, type[Settings]] = {
    "medv score": ScoreSettings,
    "medv serve": ServeSettings,
    "jobs/finetune_pathvqa.py": TrainSettings,
    "jobs/prepare_vqa.py": PrepareSettings,
    "medv plan score": ScaleSettings,
    "medv plan train": PlanSettings,
    "medv bench serve": LoadSettings,
}
"""Whose `--set` takes which settings. `medv tune`, `sweep` and `attention` take those of `medv
score`; `medv eval`, `calibrate` and `consistency` the `sampler.*` of these."""
ALIASES = {
    "medv score": {"model": "model.path", "archive": "archive.archive"},
    "medv serve": {"model": "model.path", "adapter": "adapters"},
    "jobs/finetune_pathvqa.py": {"validate_every": "validation.every"},
    "medv plan score": {"gpus_per_node": "gpus"},
    "medv plan train": {"rows": "rows.num_rows"},
    "medv bench serve": {"archive": "archive.archive"},
}
"""Parameters of commands that are named otherwise than the setting that they fill."""
JOBS = (
    "score_archive",
    "prepare_vqa",
    "finetune_pathvqa",
    "export_checkpoint",
    "import_checkpoint",
)
CHAPTERS = {
    "E10": "Settings and installation",
    "E11": "Rows, archives and datasets",
    "E12": "Images",
    "E13": "Questions and prompts",
    "E14": "Checkpoints",
    "E15": "Runs",
    "E16": "Training",
    "E17": "The endpoint",
}


class Command(NamedTuple):
    """A command and what stands before its options."""

    name: str
    call: Callable[..., Any]


def commands(app: typer.Typer = cli.app, name: str = "medv") -> Iterator[Command]:
    """All commands of the command line, in the order of its help."""
    for one in app.registered_commands:
        assert one.callback is not None
        yield Command(f"{name} {one.name}", one.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{name} {group.name}")


def jobs() -> Iterator[Command]:
    for name in JOBS:
        file = f"jobs/{name}.py"
        names = runpy.run_path(str(ROOT / file))
        call = names.get("main") or names.get(f"{name.partition('_')[0]}_command")
        assert call is not None, f"{file} has no command"
        yield Command(f"python {file}", call)


class Parameter(NamedTuple):
    """One option or argument of a command."""

    name: str
    shown: str
    required: bool
    default: Any
    meaning: str
    is_argument: bool


def parameters(call: Callable[..., Any]) -> Iterator[Parameter]:
    hints = get_type_hints(inspect.unwrap(call), include_extras=True)
    for name, parameter in inspect.signature(call).parameters.items():
        kind, *notes = get_args(hints[name])
        info = next(note for note in notes if isinstance(note, ParameterInfo))
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if isinstance(info, ArgumentInfo):
            yield Parameter(name, name.upper(), required, default, info.help or "", True)
            continue
        assert isinstance(info, OptionInfo)
        flag = "--" + name.replace("_", "-")
        given = [info.default] if isinstance(info.default, str) else []  # typer's own trick, too
        shown = ", ".join([*given, *(info.param_decls or ())])
        if not shown:
            shown = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        yield Parameter(name, shown, required, default, info.help or "", False)


def groups_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and every group below it, with what stands before its settings: `sampler.`."""
    yield prefix, model
    for name in model.model_fields:
        if group := group_of(model, name):
            yield from groups_of(group, f"{prefix}{name}.")


def group_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The settings that a field holds, where it is no value."""
    kinds = kinds_of(model.model_fields[name].annotation)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def flags_of(command: str) -> dict[str, str]:
    """Of a command with settings: path of a setting -> the flag that fills it."""
    calls = {one.name.removeprefix("python "): one.call for one in (*commands(), *jobs())}
    paths = [
        f"{prefix}{name}"
        for prefix, model in groups_of(ROOTS[command])
        for name in model.model_fields
    ]
    found = {}
    for one in parameters(calls[command]):
        path = ALIASES.get(command, {}).get(one.name)
        fitting = [p for p in paths if p == path] or [p for p in paths if p == one.name]
        fitting = fitting or [p for p in paths if p.rpartition(".")[2] == one.name]
        if len(fitting) == 1:
            found[fitting[0]] = one.shown.partition("/")[0]
    return found


def cell(text: str) -> str:
    """In a table: one line, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def amount(value: int, name: str) -> str:
    """A number, of bytes in the largest unit that it is a multiple of."""
    if "bytes" in name:
        for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value and value % 2**power == 0:
                return f"{value >> power} {unit} ({value})"
    return str(value)


def value_of(value: Any, name: str = "") -> str:
    """A default in the form in which `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return amount(value, name)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple | dict):
        return code(repr(list(value) if isinstance(value, tuple) else value).replace("'", '"'))
    return code(str(value)) or "empty"


def kind_of(spec: dict[str, Any]) -> str:
    """A JSON schema in words: `integer, at least 1`."""
    if "enum" in spec or "const" in spec:
        return ", ".join(code(str(one)) for one in spec.get("enum", [spec.get("const")]))
    if "anyOf" in spec:
        inner = [kind_of(one) for one in spec["anyOf"] if one.get("type") != "null"]
        return " or ".join(inner)
    if spec.get("type") == "array":
        if "prefixItems" in spec:
            kinds = [kind_of(one) for one in spec["prefixItems"]]
            return f"list of {len(kinds)}: {'; '.join(dict.fromkeys(kinds))}"
        most = "one or more" if spec.get("minItems") else "any number"
        return f"list, {most}: {kind_of(spec.get('items', {}))}"
    words = {"string": "text", "boolean": "true or false", "object": "names and values"}
    bounds = [
        f"{word} {spec[name]:g}"
        for name, word in (
            ("exclusiveMinimum", "above"), ("minimum", "at least"),
            ("exclusiveMaximum", "below"), ("maximum", "at most"),
        )
        if name in spec
    ]  # fmt: skip
    if spec.get("type") == "integer" and spec.get("exclusiveMinimum") == 0:
        bounds[0] = "at least 1"
    kind = spec.get("type", "anything")
    return ", ".join([words.get(kind, kind), *bounds])


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def title(model: type[BaseModel]) -> str:
    """Of a command's settings the command, of a group its name: `sampler`."""
    for command, root in ROOTS.items():
        for prefix, group in groups_of(root):
            if group is model:
                return prefix.rstrip(".").rpartition(".")[2] or command
    raise KeyError(model.__name__)


def link(model: type[BaseModel]) -> str:
    return f"[{title(model)}](#{slug(title(model))})"


def settings_table(model: type[BaseModel], flags: dict[str, str]) -> Iterator[str]:
    """A row for each setting of one model; `flags` by its own names."""
    specs = model.model_json_schema()["properties"]
    with_flags = any(name in flags for name in model.model_fields)
    yield "| setting | values | default |" + (" flag |" if with_flags else "") + " meaning |"
    yield "|---|---|---|" + ("---|" if with_flags else "") + "---|"
    for name, field in model.model_fields.items():
        group = group_of(model, name)
        kind = f"see {link(group)}" if group else kind_of(specs[name])
        if field.is_required():
            default = "required"
        else:
            default = changed(field.default, group) if group else value_of(field.default, name)
        shown = f"`{name}.*`" if group else f"`{name}`"
        flag = f" {flags.get(name, '')} |" if with_flags else ""
        meaning = field.description or (group.__doc__ if group else None) or ""
        yield f"| {shown} | {cell(kind)} | {cell(default)} |{flag} {cell(meaning)} |"


def changed(default: Any, model: type[BaseModel]) -> str:
    """What of a group's default differs from the group's own."""
    if default is None:
        return "none"
    own = {name: field.default for name, field in model.model_fields.items()}
    other = {name: getattr(default, name) for name in own}
    names = [f"`{name}` {value_of(other[name], name)}" for name in own if other[name] != own[name]]
    return "; ".join(names) or "as there"


def settings_page() -> str:
    """Every setting of every command, by groups."""
    lines = [
        MADE + "# Settings\n",
        "`--set a.b=c` sets any of these, several times; `--config FILE` takes a YAML file of the "
        "same names; flags are short names of a few. A checkpoint's own recommendations come "
        "first, then the file, flags and `--set`, the later over the earlier. A name that does "
        "not exist is an error (E1001), and so is a value out of its range. Values are JSON where "
        "they parse as JSON: `null` is none, `[...]` a list.\n",
        "| command | its settings |",
        "|---|---|",
    ]
    places: dict[type[BaseModel], list[tuple[str, str]]] = {}
    for command, root in ROOTS.items():
        lines.append(f"| `{command}` | {link(root)} |")
        for prefix, model in groups_of(root):
            places.setdefault(model, []).append((command, prefix))
    lines += [
        "| `medv tune`, `medv sweep`, `medv attention` | those of `medv score` |",
        "| `medv eval`, `medv calibrate`, `medv consistency` | `sampler.*` of these |",
        "| `medv ask`, `medv chat` | `sampler.*`, `prompt.*`, `image.*`, `seed` of these |\n",
    ]
    flags = {command: flags_of(command) for command in ROOTS}
    for model, where in places.items():
        lines.append(f"## {title(model)}\n")
        lines.append(" ".join((model.__doc__ or "").split()) + "\n")
        if where[0][1]:
            names = "; ".join(f"`{prefix}*` of `{command}`" for command, prefix in where)
            lines.append(f"{names}.\n")
        lines += [*settings_table(model, own_flags(model, where, flags)), ""]
    return "\n".join(lines).rstrip() + "\n"


def own_flags(
    model: type[BaseModel], where: list[tuple[str, str]], flags: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Setting of a group -> its flag, with the commands that have it where others have not."""
    found = {}
    for name in model.model_fields:
        having = {
            c: flags[c][f"{prefix}{name}"] for c, prefix in where if f"{prefix}{name}" in flags[c]
        }
        for flag in sorted(set(having.values())):
            those = [command for command, one in having.items() if one == flag]
            of = "" if len(those) == len(where) else f" of {', '.join(map(code, those))}"
            found[name] = f"{found[name]}; {code(flag)}{of}" if name in found else code(flag) + of
    return found


def commands_page() -> str:
    """Every command of `medv` and of jobs/, with its options."""
    lines = [
        MADE + "# Commands\n",
        "`medv COMMAND --help` says the same. Exit codes: 0 done, 1 something is left or was not "
        "found, 2 a setting, 3 the run folder is of another run, 4 another job writes there, 5 "
        "disk full, 6 a broken environment, 130 and 143 ended by a signal "
        "([errors](errors.md#exit-codes)). The files in `jobs/` are for `ray job submit`.\n",
    ]
    for name, call in (*commands(), *jobs()):
        found = list(parameters(call))
        usage = [one.shown for one in found if one.is_argument]
        usage += [f"{one.shown} ..." for one in found if one.required and not one.is_argument]
        rest = " [OPTIONS]" if any(not one.required for one in found) else ""
        lines.append(f"## {name}\n")
        lines.append(f"`{' '.join([name, *usage])}{rest}`\n")
        lines.append(" ".join((inspect.getdoc(call) or "").split()) + "\n")
        if not found:
            continue
        lines += ["| option | default | meaning |", "|---|---|---|"]
        for one in found:
            default = "required" if one.required else value_of(one.default, one.name)
            default = "" if one.default is None and not one.required else default
            lines.append(f"| `{one.shown}` | {cell(default)} | {cell(one.meaning)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def errors_page() -> str:
    """The error catalogue, and what exit codes mean."""
    lines = [
        MADE + "# Errors\n",
        "Each message has a code, the value, the rule and a way out, and nothing of a row's "
        "content. `medv explain CODE` prints the entry. The reason stands in the column `reason` "
        "of a row that was left out, and in the counts of a run.\n",
    ]
    assert {code[:3] for code in CATALOGUE} <= CHAPTERS.keys(), "a chapter is missing"
    for start, name in CHAPTERS.items():
        lines += [f"## {name}\n", "| code | reason | cause | way out |", "|---|---|---|---|"]
        for number, entry in CATALOGUE.items():
            if number.startswith(start):
                anchor = f'<span id="{number.lower()}">{number}</span>'
                lines.append(
                    f"| {anchor} | `{entry.reason}` | {cell(entry.cause)} | {cell(entry.fix)} |"
                )
        lines.append("")
    lines += ["## Exit codes\n", "| exit code | when |", "|---|---|"]
    meant = {
        0: "done; of a scoring job: every row is accounted for",
        1: "an error without a number of its own; of a job: something is left, the line goes on",
        2: "a setting or a checkpoint: nothing was started",
        130: "a second Ctrl-C", 143: "SIGTERM",
    }  # fmt: skip
    for number in CATALOGUE:
        other = RunError(number, "").exit_code
        if other not in (0, 1, 2):
            text = f"{number}: {CATALOGUE[number].cause}"
            meant[other] = f"{meant[other]} {text}" if other in meant else text
    lines += [f"| {number} | {cell(meant[number])} |" for number in sorted(meant)]
    return "\n".join(lines).rstrip() + "\n"


def column_meanings() -> dict[str, str]:
    """The comments beside the fields of `medv_ray.schema`, by column."""
    found: dict[str, str] = {}
    column, before = None, ""
    source = inspect.getsource(schema)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and before == "(":
            column = token.string.strip('"')
        elif token.type == tokenize.COMMENT and column in schema.ANSWER_SCHEMA.names:
            said = found.get(column, "")
            found[column] = f"{said} {token.string.lstrip('# ')}".strip()
        if token.type not in (tokenize.NL, tokenize.NEWLINE):
            before = token.string
    return found


def columns_page() -> str:
    """Columns of an answer file."""
    meanings = column_meanings()
    lines = [
        MADE + "# Columns of an answer file\n",
        "`rows/*.parquet` of a scoring run. `medv rows RUN` shows, chooses and exports them; "
        "[archives](../archive.md#3-output) tells the other files of a run folder.\n",
        "| column | type | null | meaning |",
        "|---|---|---|---|",
    ]
    for field in schema.ANSWER_SCHEMA:
        kind = str(field.type).replace("item: ", "").replace("element: ", "")
        null = "yes" if field.nullable else "no"
        lines.append(f"| `{field.name}` | {kind} | {null} | {cell(meanings.get(field.name, ''))} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "errors.md": errors_page,
    "columns.md": columns_page,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, page in PAGES.items():
        (FOLDER / file).write_text(page())
        print(f"docs/reference/{file}")
