"""`medv check`: files for a cluster, looked at before a cloud or Kubernetes sees them."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from medv_ray.cli.terminal import merged
from medv_ray.errors import MedvError, SettingsError

KUSTOMIZATION = "kustomization.yaml"
MAX_BYTES = 2**20
JOBS = Path(__file__).parents[2] / "jobs"
"""Of a clone or an image; an installed wheel has none."""


def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(help="`ray up`, KubeRay, Serve and runtime environment files (YAML)."),
    ],
) -> int:
    """Find what is wrong with files for a cluster: names, flags, settings, an open dashboard."""
    count = 0
    for path in files:
        try:
            found = file_faults(path)
        except SettingsError as error:  # the others are looked at all the same
            found = [error.detail.removeprefix(f"{path.name}: ")]
        count += len(found)
        faults = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        typer.echo(f"{path.name}: {faults if found else 'ok'}")
        for one in found:
            typer.echo(f"    {one}")
    return 2 if count else 0


def file_faults(path: Path) -> list[str]:
    """Of all documents of a file. Raises SettingsError E1001 for one that is no YAML."""
    from medv_ray.on_ray.deploy_files import commands, faults, unselected

    try:
        documents = whole_documents(path)
    except KeyError as error:
        return [f"there is no {error.args[0]} beside it"]
    found = list(unselected(documents))
    for i, document in enumerate(documents, 1):
        mine = faults(document)
        if isinstance(document, dict):
            mine += [one for place, line in commands(document) if (one := said(place, line))]
        found += [f"document {i}: {one}" if len(documents) > 1 else one for one in mine]
    return found


def whole_documents(path: Path) -> list[Any]:
    """As Kubernetes gets them: what a kustomization changes is put in, and a file of changes stands
    for what it changes. Raises KeyError with the name of what a kustomization lacks."""
    from medv_ray.on_ray.deploy_files import faults

    documents = read_documents(path)
    beside = path.with_name(KUSTOMIZATION)
    if not beside.exists():
        return documents
    made = read_documents(beside)[0]
    if faults(made):  # told of where it is looked at itself, if it is one of ours at all
        return documents
    changes = [one["path"] for one in made.get("patches") or []]
    if path.name not in (KUSTOMIZATION, *changes):
        return documents
    for name in (*made["resources"], *changes):
        if not (path.parent / name).is_file():
            raise KeyError(name)
    under = [one for name in made["resources"] for one in read_documents(path.parent / name)]
    for one in [one for name in changes for one in read_documents(path.parent / name)]:
        if not isinstance(one, dict):
            return documents
        if name_of(one) not in map(name_of, under):
            raise KeyError(" ".join(name_of(one)))
        under = [merged(old, one) if name_of(old) == name_of(one) else old for old in under]
    return [made, *under] if path.name == KUSTOMIZATION else under


def name_of(document: Any) -> tuple[str, str]:
    """Kind and name of a manifest."""
    if not isinstance(document, dict):
        return "", ""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return str(document.get("kind")), str(name)


def said(place: str, line: str) -> str | None:
    """What is wrong with a command line of ours; None for any other."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return f"{place}: {error}"
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    wrong = program_fault(*words) if words else None
    return wrong and f"{place}: {wrong}"


def program_fault(program: str, *words: str) -> str | None:
    """Of `medv ...` and `python jobs/FILE ...`."""
    if program == "medv":
        return flag_fault(list(words))
    if get_close_matches(program, ["medv"], cutoff=0.75):
        return f"there is no `{program}`; `medv` is near"
    files = [i for i, word in enumerate(words) if not word.startswith("-")]
    if re.match("python", Path(program).name) and files:
        file, rest = words[files[0]], words[files[0] + 1 :]
        if Path(file).parent.name == JOBS.name and JOBS.is_dir():
            return job_fault(file, list(rest))
    return None


def flag_fault(words: list[str]) -> str | None:
    """What the command line's own parser says of `medv WORDS`, and the settings of `medv score`."""
    from medv_ray.cli import app

    node: Any = typer.main.get_command(app)
    name = "medv"
    try:
        while hasattr(node, "commands"):
            name, inner, words = f"{name} {words[0]}", node.commands.get(words[0]), words[1:]
            if inner is None:
                return f"there is no `{name}`"
            node = inner
    except IndexError:
        return f"`{name}` takes a command"
    return parsed(node, name, words, asked if name == "medv score" else None)


def job_fault(file: str, words: list[str]) -> str | None:
    """The same of `python FILE WORDS`, by the file of jobs/ with its name."""
    mine = JOBS / Path(file).name
    if not mine.is_file():  # perhaps the user's own
        near = get_close_matches(mine.name, [one.name for one in JOBS.glob("*.py")])
        return f"there is no {file}; there are: {', '.join(near)}" if near else None
    names = runpy.run_path(str(mine))
    if "typer" not in names:
        return None
    app = typer.Typer()
    app.command()(names.get("main") or names[f"{mine.stem.partition('_')[0]}_command"])
    read = names.get("settings_of", asked if "score_command" in names else None)
    return parsed(typer.main.get_command(app), file, words, read)


def asked(given: dict[str, Any]) -> None:
    """Settings of a scoring job on a cluster, read; models of the hub are not fetched."""
    from medv_ray.cli import settings_of

    settings_of(given, str).check_out(on_cluster=True)


def parsed(
    node: Any, name: str, words: list[str], read: Callable[[dict[str, Any]], Any] | None
) -> str | None:
    """What a command's parser says, then what reads its settings. Files that lie on the cluster are
    not looked for, and settings beside a shell's variable are not read."""
    try:
        given = dict(node.make_context(name, list(words)).params)
    except Exception as error:  # the parser's, of classes that are not public
        return f"`{name}`: {getattr(error, 'message', '') or type(error).__name__}"
    files = {one: Path(given[one]) for one in ("config", "canvas") if given.get(one)}
    given |= {one: path if path.is_file() else None for one, path in files.items()}
    other = given.get("demo") or given.get("recipe")  # finetuning with settings of its own
    other = other or any("$" in word for word in words)
    if read is None or other or ("config" in files and given["config"] is None):
        return None
    try:
        read(given)
    except MedvError as error:
        return f"`{name}`: {error.detail}"
    return None


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file, one at least. Raises SettingsError E1001."""
    import yaml  # type: ignore[import-untyped]

    def wrong(what: str) -> SettingsError:
        return SettingsError("E1001", f"{path.name}: {what}.")

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A name that is given twice is a mistake."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value) for key, _ in node.value]
            if len(set(names)) < len(names):
                again = next(name for name in names if names.count(name) > 1)
                raise wrong(f"line {node.start_mark.line + 1}: {again!r} is given twice")
            return super().construct_mapping(node, deep)

    try:
        if path.stat().st_size > MAX_BYTES:
            raise wrong(f"over {MAX_BYTES} bytes")
        found = list(yaml.load_all(path.read_text(), Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, SettingsError):
            raise
        kind = type(error).__name__
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise wrong(f"no readable YAML ({kind}{line})") from None
    kept = [one for one in found if one is not None]  # nothing stands behind a last `---`
    if not kept:
        raise wrong("it is empty")
    return kept
