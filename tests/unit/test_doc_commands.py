"""README and docs name programs, options, settings and files that there are."""

import ast
import re
from pathlib import Path

import pytest

from tests import doc_commands
from tests.doc_commands import ROOT, Command, commands_of, fault, programs, span_fault, spans

PAGES = doc_commands.pages()
RUN_BY = {
    "cluster/build_image.sh": "tests/unit/test_image.py",
    "make corpus": ".ci/run",
    "make dist": "tests/integration/test_wheel.py",
    "make demo": ".ci/run",
    "make chaos": ".ci/run",
    "medv ask": "tests/unit/on_ray/test_cli.py",
    "medv attention": "tests/unit/on_ray/test_look.py",
    "medv audit": "tests/unit/serving/test_audit.py",
    "medv bench serve": "tests/unit/client/test_load.py",
    "medv calibrate": "tests/unit/evaluation/test_calibrating.py",
    "medv chat": "tests/unit/on_ray/test_chat.py",
    "medv check": "tests/unit/on_ray/test_deploy_files.py",
    "medv compare": "tests/tutorials/test_tutorials.py",
    "medv demo": "tests/wheel.py",
    "medv doctor": "tests/unit/on_ray/test_doctor.py",
    "medv eval": "tests/tutorials/test_tutorials.py",
    "medv explain": "tests/unit/on_ray/test_cli.py",
    "medv export-answers": "tests/unit/evaluation/test_answer_files.py",
    "medv judge": "tests/integration/test_judge.py",
    "medv plan score": "tests/unit/on_ray/test_plan_score.py",
    "medv plan train": "tests/unit/training/test_plan.py",
    "medv push": "tests/unit/model/test_publishing.py",
    "medv report": "tests/tutorials/test_tutorials.py",
    "medv rows": "tests/tutorials/test_tutorials.py",
    "medv run-batch": "tests/unit/serving/batch/test_offline.py",
    "medv score": "tests/tutorials/test_tutorials.py",
    "medv serve": "tests/tutorials/test_tutorials.py",
    "medv sweep": "tests/unit/on_ray/test_look.py",
    "medv tune": "tests/integration/test_tune.py",
    "python examples/openai_client.py": "tests/unit/test_examples.py",
    "python jobs/export_checkpoint.py": "tests/unit/test_export_checkpoint.py",
    "python jobs/finetune_pathvqa.py": "tests/tutorials/test_tutorials.py",
    "python jobs/import_checkpoint.py": "tests/unit/model/test_importing.py",
    "python jobs/prepare_vqa.py": "tests/tutorials/test_tutorials.py",
    "python jobs/score_archive.py": "tests/integration/test_processes.py",
    "python jobs/train_tiny.py": "tests/unit/test_train_tiny.py",
    "python tests.chaos.autoscale": "tests/unit/test_autoscale.py",
    "python tests.chaos.bit_flips": "tests/unit/test_bit_flips.py",
    "python tests.chaos.serve_runs": ".ci/run",
    "ray job": "tests/integration/test_processes.py",
    "ray start": "tests/integration/test_processes.py",
}
"""Which test or check runs a command of README and docs, on small data."""
NOT_RUN = {
    "helm": "needs a Kubernetes",
    "kubectl": "needs a Kubernetes; tests/unit/test_cluster_walk.py reads the manifests",
    "lmms-eval": "a package of its own that the tests do without; tests/clients/run_lmms_eval.py",
    "docker run": "there is no Docker in tests",
    "docker push": "there is no Docker in tests",
    "make lock": "registries are not asked in tests",
    "make fuzz": "takes hours; tests/unit/test_fuzz.py has the short form",
    "make lint": "the check itself",
    "python tests.chaos.release": "takes hours; tests/unit/test_release.py has its parts",
    "medv consistency": "tests/unit/evaluation/test_calibrating.py runs its parts alone",
    "make test": "the tests themselves",
    "make test-fast": "the tests themselves",
    "make test-slow": "the tests themselves",
    "make test-tutorials": "the tests themselves",
    "medv export-sr": "tests/chaos/orthanc_round_trip.py; test_sr.py runs its parts",
    "medv store": "tests/chaos/orthanc_round_trip.py; test_sr.py runs its parts",
    "pip install": "registries are not asked in tests",
    "prometheus": "no package of Python's; test_observability.py reads its files",
    "pytest": "the tests themselves",
    "python benchmarks/bench_decode.py": "measures for minutes",
    "python benchmarks/bench_choices.py": "measures for minutes",
    "python benchmarks/bench_engine.py": "measures for minutes",
    "python benchmarks/bench_ledger.py": "measures for minutes",
    "python benchmarks/bench_quant.py": "measures for minutes",
    "python benchmarks/bench_sampler.py": "measures for minutes",
    "python benchmarks/bench_score.py": "measures for minutes",
    "python benchmarks/bench_select.py": "measures for minutes, or needs a GPU",
    "python benchmarks/bench_serve.py": "measures for minutes",
    "python benchmarks/bench_train.py": "measures for minutes",
    "python benchmarks/bench_train_loss.py": "needs a GPU",
    "python benchmarks/count_requests.py": "counts for a minute",
    "python benchmarks/pathvqa_scale.py": "measures for minutes",
    "python benchmarks/run_gpu.py": "needs a GPU",
    "python tests/unit/kernels/compile_kernels.py": "tests/unit/kernels/test_package.py runs it",
    "ray dashboard": "needs a cloud",
    "ray get-auth-token": "Ray's own",
    "ray up": "needs a cloud; tests/unit/on_ray/test_deploy_files.py checks the files",
    "ray stop": "Ray's own; it would end other tests' Ray",
    "serve shutdown": "Serve's own",
    "serve deploy": "needs a cluster with the package on its nodes",
}
"""Why a command is looked at and not run."""
FILES = re.compile(r"(?<![\w/.])(?:docs|jobs|cluster|examples|benchmarks|tests)/[\w./-]+\.\w+")


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_what_is_typed_can_be(page: Path) -> None:
    commands = list(commands_of(page.name, page.read_text()))
    wrong = {command.where: fault(command) for command in commands}
    assert {where: said for where, said in wrong.items() if said} == {}


def test_what_sentences_name_is_there(page: Path) -> None:
    wrong = {(line, span): span_fault(span) for line, span in spans(page.read_text())}
    assert {place: said for place, said in wrong.items() if said} == {}


def test_what_messages_name_is_there() -> None:
    wrong = {}
    for path in [*ROOT.glob("medv_ray/**/*.py"), *ROOT.glob("jobs/*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        texts = {node for node in nodes if isinstance(node, ast.Constant)} - docstrings
        for text in texts:
            for span in re.findall(r"`((?:medv |--set )[^`]*)`", str(text.value)):
                wrong[path.name, text.lineno, span] = span_fault(" ".join(span.split()))
    assert {place: said for place, said in wrong.items() if said} == {}


def test_files_are_there(page: Path) -> None:
    named = {name for name in FILES.findall(page.read_text()) if "results/" not in name}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def name_of(command: Command) -> str:
    """Program and command, without options: `medv bench serve`."""
    program, *rest = command.words
    if program == "python":
        return f"python {rest[1] if rest[0] == '-m' else rest[0]}"
    known = [*RUN_BY, *NOT_RUN]
    fitting = [name for name in known if list(command.words[: len(name.split())]) == name.split()]
    return max(fitting, key=len, default=" ".join(command.words[:2]))


def test_each_is_run_or_says_why_not() -> None:
    names = {
        name_of(command)
        for path in PAGES
        if path.parent.name != "tutorials"  # typed whole by tests/tutorials
        for command in commands_of(path.name, path.read_text())
        if command.words[0] not in doc_commands.SHELL
    }
    assert names == RUN_BY.keys() | NOT_RUN.keys()
    assert not RUN_BY.keys() & NOT_RUN.keys()


def test_what_runs_them_is_there() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs/tutorials").glob("*.md"))
    for name, file in RUN_BY.items():
        text = (ROOT / file).read_text()
        if file == "tests/tutorials/test_tutorials.py":
            assert name in pages, name
        elif name.startswith("medv "):
            word = name.split()[1]
            assert f'"{word}"' in text or f"{word}(" in text, f"{file} does not run {name}"
        else:
            word = re.split(r"[ /.]", name.removesuffix(".py"))[-1]
            assert word in text, f"{file} does not run {name}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("medv scre", "there is no medv scre"),
        ("medv bench srve", "there is no medv bench srve"),
        ("medv score --archve x", "No such option"),
        ("medv score --limit few", "BadParameter"),
        ("medv report", "Missing"),
        ("medv score ... --set sampler.step=3", "there is no setting step"),
        ("medv score ... --set sampler.steps=none", "integer"),
        ("medv serve --set sampler.threshold=2", "less than or equal to 1"),
        ("python jobs/score_archiv.py --plan", "there is no jobs/score_archiv.py"),
        ("python jobs/prepare_vqa.py --kind a --source b --out c --nope", "No such option"),
        ("python jobs/train_tiny.py --nope", "has no --nope"),
        ("python jobs/finetune_pathvqa.py --set stage.lr=fast", "number"),
        ("ray job submit -- python jobs/score_archive.py --nope", "No such option"),
        ("serve deploy cluster/nope.yaml", "there is no cluster/nope.yaml"),
        ("make nope", "there is no make nope"),
        ("pip install 'medv-ray[nope]'", "there is no extra nope"),
        ("frobnicate --all", "frobnicate is no known program"),
    ],
)
def test_mistakes_are_found(line: str, said: str) -> None:
    [words] = programs(line)
    assert said in (fault(Command("page", 1, words)) or "")


@pytest.mark.parametrize("span", ["--archve", "--set pool.actors=3", "medv rows --csw x"])
def test_mistakes_in_sentences_are_found(span: str) -> None:
    assert span_fault(span)


def test_lines_are_found_as_a_shell_reads_them() -> None:
    page = """Text:

    medv score --archive a \\
        --out 'b c'   # why
    X=1 medv doctor > /dev/null && medv explain E1203 | head -n 1
    medv serve --port 8123 > serve.log 2>&1 &

- no block
    of lines

```text
medv nothing
```
```bash
medv demo
```
"""
    assert [(one.line, *one.words) for one in commands_of("page", page)] == [
        (3, "medv", "score", "--archive", "a", "--out", "b c"),
        (5, "medv", "doctor"),
        (5, "medv", "explain", "E1203"),
        (5, "head", "-n", "1"),
        (6, "medv", "serve", "--port", "8123"),
        (15, "medv", "demo"),
    ]
