"""The image's recipe: what it copies is there, what it installs is pinned, and nobody is root.

No Docker runs here: these rules are what can be held without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
SCRIPT = ROOT / "cluster/build_image.sh"
TARGETS = ("cpu", "gpu")
SECRET = re.compile(
    r"\b\w*(SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|_TOKEN|CREDENTIAL)\w*\b", re.I
)


class Step(NamedTuple):
    word: str
    """FROM, RUN, COPY ..."""
    text: str


def steps(text: str) -> list[Step]:
    """Instructions without comments, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def stages(text: str) -> dict[str, list[Step]]:
    """Name of each stage to its instructions, FROM first."""
    found: dict[str, list[Step]] = {"": []}
    for step in steps(text):
        if step.word == "FROM":
            found[step.text.split()[-1]] = []
        found[list(found)[-1]].append(step)
    return found


def lineage(text: str, target: str) -> list[Step]:
    """Instructions of a stage and of those that it begins from, in order."""
    all_stages, found = stages(text), list[Step]()
    while target in all_stages:
        found = [*all_stages[target], *found]
        target = all_stages[target][0].text.split()[0]
    return found


def ignored(path: str) -> bool:
    """By .dockerignore: the last line that fits the path or a folder above it decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = Path(path).parts
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        plain = rule.removeprefix("**/")
        names = parts if plain != rule else above
        if any(fnmatch(name, plain) for name in names):
            out = not line.startswith("!")
    return out


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, in words."""
    found, named = list[str](), stages(text)
    for step in steps(text):
        words = step.text.split()
        if step.word == "FROM" and words[0] not in ("${BASE_IMAGE}", "scratch", *named):
            found.append(f"base {words[0]} is not the one that is pinned")
        if step.word == "ADD":
            found.append("ADD")
        if step.word in ("ENV", "ARG") and SECRET.search(step.text):
            found.append(f"a secret in {step.word}")
        if re.search(r"https?://", step.text):
            found.append("a host is named")
        if step.word == "COPY" and not step.text.startswith("--from"):
            found += [f"nothing to copy: {one}" for one in words[:-1] if not (ROOT / one).exists()]
            found += [f".dockerignore leaves out {one}" for one in words[:-1] if ignored(one)]
        if step.word == "COPY" and step.text.startswith("--from"):
            stage = words[0].removeprefix("--from=")
            found += [] if stage in named else [f"no stage {stage}"]
        if step.word == "RUN":
            found += run_faults(step.text)
    for target in TARGETS:
        found += user_faults(lineage(text, target)) if target in named else [f"no target {target}"]
    return found


def run_faults(text: str) -> list[str]:
    found = list[str]()
    for part in re.split(r"&&|;|\|", text):
        words = part.split()
        if "apt-get" in words and "install" in words:
            asked = [word for word in words[words.index("install") + 1 :] if word[0] != "-"]
            found += [f"{one} of any version" for one in asked if "=" not in one]
            if "--no-install-recommends" not in words:
                found.append("apt-get installs what is only recommended")
            if "rm -rf /var/lib/apt/lists/*" not in text:
                found.append("apt's lists stay")
        if "upgrade" in words:
            found.append("apt-get upgrade")
        if "pip" in words and "install" in words:
            own = {"--no-deps", "--no-index"} <= set(words)
            if not own and "--require-hashes" not in words:
                found.append("pip installs what has no digest")
            files = re.findall(r"-r /build/(\S+)", part)
            found += [f"no {one}" for one in files if not (ROOT / "cluster" / one).is_file()]
        if {"curl", "sudo", "chmod"} & set(words) or (words[:1] == ["wget"]):
            found.append(f"{words[0]} in a RUN")
    return found


def user_faults(steps_of: list[Step]) -> list[str]:
    words = [step.word for step in steps_of]
    users = [step.text for step in steps_of if step.word == "USER"]
    if not users or users[-1] in ("0", "root") or not users[-1].isdigit():
        return ["ends as root, or as a name that Kubernetes cannot check"]
    last = len(words) - 1 - words[::-1].index("USER")
    if "CMD" not in words[last:]:
        return ["USER does not stand before CMD"]
    return [f"{word} after USER" for word in ("RUN", "COPY") if word in words[last:]]


def test_the_image_has_no_fault() -> None:
    assert faults(DOCKERFILE) == []
    assert {"cpu", "gpu"} <= stages(DOCKERFILE).keys()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("FROM ${BASE_IMAGE} AS base", "FROM python:3.11 AS base", "base python:3.11"),
        ("COPY kernels/ kernels/", "COPY kernel/ kernels/", "nothing to copy: kernel/"),
        ("COPY kernels/ kernels/", "COPY tests/ tests/", ".dockerignore leaves out tests/"),
        ("COPY kernels/ kernels/", "ADD kernels/ kernels/", "ADD"),
        ("--from=packages-cpu", "--from=package-cpu", "no stage package-cpu"),
        ('"wget=1.21.3-*"', "wget", "wget of any version"),
        ("--no-install-recommends ", "", "apt-get installs what is only recommended"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "apt's lists stay"),
        (" --require-hashes", "", "pip installs what has no digest"),
        ("requirements/gpu.txt", "requirements/tpu.txt", "no requirements/tpu.txt"),
        ("USER 1000\n", "", "ends as root"),
        ("USER 1000\n", "USER ray\n", "ends as root"),
        ("USER 1000\n", "USER 0\n", "ends as root"),
        ('CMD ["medv", "--help"]', "RUN medv --help", "USER does not stand before CMD"),
        ("PYTHONUNBUFFERED=1", "MEDV_API_KEY=1", "a secret in ENV"),
        ("apt-get update ", "apt-get update && apt-get upgrade ", "apt-get upgrade"),
        ("ARG TORCH_CPU_INDEX=", "ARG TORCH_CPU_INDEX=https://host/whl", "a host is named"),
        (" AS gpu\n", " AS cuda\n", "no target gpu"),
    ],
)
def test_a_fault_is_found(before: str, after: str, said: str) -> None:
    assert before in DOCKERFILE
    found = faults(DOCKERFILE.replace(before, after))
    assert any(one.startswith(said) for one in found), found


def test_the_base_is_a_tag_that_is_said_to_be_unpinned() -> None:
    [base] = [step.text for step in steps(DOCKERFILE) if step.text.startswith("BASE_IMAGE=")]
    tag = base.partition("=")[2]
    pinned = re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", tag)
    assert pinned or "TO BE PINNED" in DOCKERFILE
    assert re.fullmatch(r"python:3\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", tag)


@pytest.mark.parametrize("target", TARGETS)
def test_what_every_node_is_set_to(target: str) -> None:
    env = " ".join(step.text for step in lineage(DOCKERFILE, target) if step.word == "ENV")
    assert "RAY_USAGE_STATS_ENABLED=0" in env
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=medv_ray.on_ray.front:middlewares" in env
    assert "HOME=/home/ray" in env  # `ray up` mounts files of ~ there, and under /root without it
    copied = [step.text for step in lineage(DOCKERFILE, target) if step.word == "COPY"]
    assert any("/opt/medv /opt/medv" in one for one in copied)
    assert any(one == "jobs/ /opt/medv/jobs/" for one in copied)


@pytest.mark.parametrize("target", TARGETS)
def test_a_login_shell_finds_the_programs(target: str) -> None:
    """`ray up` uses one for all commands; /etc/profile sets PATH anew, then reads profile.d."""
    runs = "\n".join(step.text for step in lineage(DOCKERFILE, target) if step.word == "RUN")
    [line] = re.findall(r"echo '(.*?)' > /etc/profile.d/\w+\.sh", runs)
    shell = ["sh", "-c", f"PATH=/usr/bin; {line}; echo $PATH"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    assert done.stdout == "/opt/medv/bin:/usr/bin\n"


@pytest.mark.parametrize("target", TARGETS)
def test_what_ray_up_and_kuberay_call_is_installed(target: str) -> None:
    runs = " ".join(step.text for step in lineage(DOCKERFILE, target) if step.word == "RUN")
    asked = set(re.findall(r'"([\w-]+)=', runs))
    assert {"openssh-client", "rsync", "wget"} <= asked


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", "demo-run/run/run.json", "dist/a.whl",
     "keys.txt", ".env", "runs/a/rows/0.parquet", "cluster/aws.yaml", "docs/index.md",
     "medv_ray/__pycache__/a.pyc", "web/node_modules/a.js"],
)  # fmt: skip
def test_what_is_left_out(path: str) -> None:
    assert ignored(path)


def test_what_the_package_is_made_of_is_not_left_out() -> None:
    for folder in ("medv_ray", "kernels/medv_kernels", "jobs", "cluster/requirements"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        names = [path.relative_to(ROOT).as_posix() for path in files]
        assert [one for one in names if ignored(one) and "__pycache__" not in one] == []


@pytest.mark.parametrize("name", ["build", "cpu", "gpu", "sbom"])
def test_each_locked_package_has_a_digest(name: str) -> None:
    text = (ROOT / f"cluster/requirements/{name}.txt").read_text()
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    one = r"[a-z0-9-]+==[\w.+!]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({one})+", body)


# build_image.sh


def build(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    # a PATH of its own: the tools that the script needs, and `docker` only where a test puts it
    return subprocess.run(
        ["bash", str(SCRIPT), *words], capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname", "sed", "git", "mkdir", "cat"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say which image"),
        (("tpu",), "there is no image tpu"),
        (("cpu",), "wants --torch-cpu"),
        (("cpu", "--torch-cpu"), "--torch-cpu wants a value"),
        (("cpu", "--torch-cpu", "no/such/folder"), "is no folder"),
        (("gpu", "--torch-cpu", "."), "is for the CPU image"),
        (("gpu", "--size", "1"), "there is no option --size"),
    ],
)
def test_a_wrong_option(words: tuple[str, ...], said: str, path: Path) -> None:
    done = build(*words, PATH=str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_docker_it_says_so(path: Path) -> None:
    done = build("gpu", PATH=str(path))
    assert done.returncode == 6
    assert "there is no docker here, so no image was built" in done.stderr


def fake_docker(path: Path, body: str) -> None:
    (path / "docker").write_text(f'#!/bin/bash\necho "$@" >> "{path}/asked"\n{body}')
    (path / "docker").chmod(0o755)


def test_without_a_daemon_it_says_so(path: Path) -> None:
    fake_docker(path, "exit 1")
    done = build("gpu", PATH=str(path))
    assert done.returncode == 6
    assert "no daemon answers, so no image was built" in done.stderr


def test_without_a_digest_nothing_is_built(path: Path) -> None:
    fake_docker(path, '[ "$2" != imagetools ]')
    done = build("gpu", PATH=str(path))
    assert done.returncode == 6
    assert "could not be had, so no image was built" in done.stderr
    assert "buildx build" not in (path / "asked").read_text()
    assert build("gpu", "--base", "python:3.11", PATH=str(path)).returncode == 2


def test_the_base_is_passed_by_digest(path: Path, tmp_path: Path) -> None:
    """A copy of the script's folder, as it writes the SBOM to dist/."""
    digest = "sha256:" + "ab" * 32
    fake_docker(
        path, f'case "$1 $2" in "buildx imagetools") echo {digest};; "run --rm") echo {{}};; esac'
    )
    (tmp_path / "cluster").mkdir()
    (tmp_path / "medv_ray").mkdir()
    shutil.copy(ROOT / "cluster/Dockerfile", tmp_path / "cluster")
    shutil.copy(SCRIPT, tmp_path / "cluster")
    shutil.copy(ROOT / "medv_ray/__init__.py", tmp_path / "medv_ray")
    (tmp_path / "wheels").mkdir()  # as it is called from where the user is
    done = subprocess.run(
        ["bash", "cluster/build_image.sh", "cpu", "--torch-cpu", "wheels"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": str(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (path / "asked").read_text()
    assert f"--build-arg BASE_IMAGE=python:3.11-slim-bookworm@{digest}" in asked
    assert "--target cpu --tag medv-ray:cpu" in asked
    assert f"--build-context wheels={tmp_path / 'wheels'}" in asked
    assert (tmp_path / "dist/image-cpu.cdx.json").read_text() == "{}\n"
