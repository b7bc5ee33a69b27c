"""The lines to type that stand in README and docs: found, and checked without running them."""

from __future__ import annotations

import functools
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import TypeAdapter, ValidationError

from medv_ray.setting_errors import kinds_of
from medv_ray.settings import Settings, override

ROOT = Path(__file__).parents[1]
TYPED = {"bash", "sh", "console"}
SHELL = {
    *(".", "cd", "cp", "curl", "export", "head", "kill", "sed", "true", "truncate", "wait"),
}
RAY = {
    *("start", "stop", "job", "get-auth-token", "metrics", "up", "down", "dashboard", "status"),
}
FOREIGN = {"lmms-eval", "docker", "cluster/build_image.sh", "kubectl", "helm"}
OTHERS = {
    "--model_args",
    "--pred",
    "--candidate",
    "--entrypoint-num-cpus",
    "--dashboard-host",
    "--temp-dir",
}
"""Of programs that are not ours, in running text."""


class Command(NamedTuple):
    """One program with its arguments, as a reader types it."""

    page: str
    line: int
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


class Block(NamedTuple):
    """An indented or fenced block; `kind` is the fence's word, `indented` without a fence."""

    line: int
    kind: str
    lines: tuple[str, ...]


def pages() -> list[Path]:
    """What people read; reference pages are made from the code."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    found += sorted(
        path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"
    )
    return [*found, ROOT / "cluster/README.md", ROOT / "kernels/README.md"]


def blocks(text: str) -> Iterator[Block]:
    kind, start, kept = "", 0, list[str]()
    before = ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if kind == "indented" and line.strip() and not line.startswith("    "):
            yield Block(start, kind, tuple(kept))
            kind, kept = "", []
        if not kind and line.startswith("```"):
            kind, start = line[3:].strip() or "plain", number + 1
        elif not kind and line.startswith("    ") and not before.strip():
            kind, start, kept = "indented", number, [line[4:]]
        elif kind not in ("", "indented") and line.startswith("```"):
            yield Block(start, kind, tuple(kept))
            kind, kept = "", []
        elif kind:
            kept.append(line.removeprefix("    ") if kind == "indented" else line)
        before = line
    if kind:
        yield Block(start, kind, tuple(kept))


def commands_of(page: str, text: str) -> Iterator[Command]:
    for block in blocks(text):
        if block.kind == "indented" or block.kind in TYPED:
            yield from typed(page, block)


def typed(page: str, block: Block) -> Iterator[Command]:
    """The commands of a block; a line that ends in a backslash goes on in the next one."""
    whole, start = "", block.line
    for number, line in enumerate(block.lines, block.line):
        start = start if whole else number
        whole += line.removesuffix("\\") if line.endswith("\\") else line
        if line.endswith("\\") or not whole.strip():
            continue
        for words in programs(whole):
            yield Command(page, start, words)
        whole = ""


def programs(line: str) -> Iterator[tuple[str, ...]]:
    """What a line runs: parts between pipes and the like, without redirections and variables."""
    line = re.sub(r"(?<=\s)\d?>&\d|(?<=\s)\d(?=>)", "", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    part: list[str] = []
    words = iter(lexer)
    for word in words:
        if set(word) <= set("|&;"):
            yield tuple(part)
            part = []
        elif set(word) <= set("<>"):
            next(words, None)
        elif part or not re.fullmatch(r"\w+=.*", word):
            part.append(word)
    if part:
        yield tuple(part)


# what is wrong with a command, in words, or None


def fault(command: Command) -> str | None:
    program, *rest = command.words
    check = CHECKS.get(program)
    if check is None:
        return None if program in SHELL | FOREIGN else f"{program} is no known program"
    return missing_file(rest) or check(rest)


def missing_file(words: list[str]) -> str | None:
    folders = r"(?:jobs|cluster|examples|benchmarks|tests|docs|medv_ray)/[\w./-]+"
    named = [word for word in words if re.fullmatch(folders, word) and "/results/" not in word]
    return next((f"there is no {word}" for word in named if not (ROOT / word).exists()), None)


def medv(words: list[str]) -> str | None:
    node: Any = reference()["medv"]
    name = "medv"
    while hasattr(node, "commands") and words and not words[0].startswith("-"):
        name, node = f"{name} {words[0]}", node.commands.get(words[0])
        if node is None:
            return f"there is no {name}"
        words = words[1:]
    return parsed(node, name, words)


def parsed(node: Any, name: str, words: list[str]) -> str | None:
    """Options and types by the command's own parser; settings by their models."""
    cut = words[:1] == ["..."]
    try:
        node.make_context(name, words[1:] if cut else list(words))
    except typer.Exit:  # --version, --help
        return None
    except Exception as error:  # typer's, of a class that is not public
        if not cut or type(error).__name__ != "MissingParameter":
            return f"{type(error).__name__}: {getattr(error, 'message', '') or error}"
    sets = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--set"]
    return next(filter(None, (setting_fault(name, one) for one in sets)), None)


def python(words: list[str]) -> str | None:
    if words[0] == "-c" or words[:2] in (["-m", "venv"], ["-m", "pip"]):
        return None
    name = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    file = ROOT / name
    if words[0] == "-m" and file.with_suffix("").is_dir():
        file = file.with_suffix("") / "__main__.py"
    if not file.is_file():
        return f"there is no {name}"
    if name in reference():
        return parsed(reference()[name], name, words[1:])
    source = file.read_text()
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
    return f"{name} has no {unknown[0]}" if unknown else None


def ray(words: list[str]) -> str | None:
    if words[0] not in RAY:
        return f"there is no ray {words[0]}"
    inner = words[words.index("--") + 1 :] if "--" in words else []
    return fault(Command("", 0, tuple(inner))) if inner else None


def make(words: list[str]) -> str | None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    return next(
        (f"there is no make {one}" for one in words if one not in targets and "=" not in one), None
    )


def pip(words: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"medv-ray\[([\w,-]+)\]", " ".join(words))
    extras = [one for group in asked for one in group.split(",")]
    known = project["optional-dependencies"]
    return next((f"there is no extra {one}" for one in extras if one not in known), None)


CHECKS: dict[str, Callable[[list[str]], str | None]] = {
    "medv": medv,
    "python": python,
    "ray": ray,
    "make": make,
    "pip": pip,
    "pytest": lambda words: None,
    "timeout": lambda words: fault(Command("", 0, tuple(words[words.index("medv") :]))),
    "serve": lambda words: (
        None if words[0] in ("deploy", "status", "shutdown") else f"there is no serve {words[0]}"
    ),
    "prometheus": lambda words: None,
}


@functools.cache
def reference() -> dict[str, Any]:
    """Names of docs/write_reference.py; under `medv` and each job's file its parser."""
    made = runpy.run_path(str(ROOT / "docs/write_reference.py"))
    found = {**made, "medv": typer.main.get_command(made["cli"].app)}
    for command in made["jobs"]():
        app = typer.Typer()
        app.command()(command.call)
        found[command.name.removeprefix("python ")] = typer.main.get_command(app)
    return found


SAME = ("medv tune", "medv sweep", "medv attention", "jobs/score_archive.py")
"""Commands whose settings are those of `medv score`."""


def setting_fault(command: str, assignment: str) -> str | None:
    """What is wrong with an `a.b=c` of `--set`; values of dots are not looked at."""
    roots = reference()["ROOTS"]
    name = "medv score" if command in SAME else command
    chosen = [roots[name]] if name in roots else list(roots.values())
    path, _, value = assignment.partition("=")
    faults = [field_fault(root, path.split("."), value) for root in chosen]
    return None if None in faults else f"--set {assignment}: {faults[0]}"


def field_fault(model: type[Settings], path: list[str], value: str) -> str | None:
    first, *rest = path
    if first.isupper():  # NAME stands for one
        return None
    if first not in model.model_fields:
        return f"there is no setting {first}"
    field = model.model_fields[first]
    kinds = kinds_of(field.annotation)
    groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]
    if rest:
        return field_fault(groups[0], rest, value) if groups else f"{first} is no group"
    if groups or "..." in value or not value or value.isupper():
        return None
    try:
        kind = (
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        )
        TypeAdapter(kind).validate_python(override({}, [f"x={value}"])["x"])
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return None


def spans(text: str) -> Iterator[tuple[int, str]]:
    """Code within sentences, with its line."""
    inside = {
        number
        for block in blocks(text)
        for number in range(block.line, block.line + len(block.lines) + 1)
    }
    for number, line in enumerate(text.splitlines(), 1):
        if number not in inside:
            yield from ((number, one) for one in re.findall(r"`([^`]+)`", line))


def span_fault(span: str) -> str | None:
    """What is wrong with a command, a flag or a `--set` that a sentence names."""
    first = span.split()[0] if span.strip() else ""
    if first in ("medv", "python", "make", "pip", "ray", "serve", "pytest") and " " in span.strip():
        wrong = fault(Command("", 0, next(programs(span)))) or ""
        # a sentence names options without their values, and without others that must be there
        return None if re.match("Missing|BadOptionUsage", wrong) else wrong or None
    if first == "--set" and " " in span:
        return setting_fault("", shlex.split(span)[1])
    if first.startswith("--"):
        flags = set(re.findall(r"--[a-z][\w-]*", span))
        unknown = sorted(flags - known_flags() - OTHERS)
        return f"there is no {unknown[0]}" if unknown else None
    return None


@functools.cache
def known_flags() -> set[str]:
    made = reference()
    found = {"--help", "--version"}
    for command in (*made["commands"](), *made["jobs"]()):
        for one in made["parameters"](command.call):
            found |= set(re.findall(r"--[\w-]+", one.shown))
    for file in [
        *ROOT.glob("jobs/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("tests/*/*.py"),
    ]:
        found |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', file.read_text()))
    return found
