"""What the YAML of cluster/ names is there: commands, flags, settings, paths, classes, variables of
the environment; and the files agree about images, ports, secrets, volumes and labels of nodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medv_ray.cli.checking import read_documents
from medv_ray.on_ray.deploy_files import VARIABLES as NAMES
from medv_ray.on_ray.deploy_files import commands, misnamed
from tests import doc_commands
from tests.doc_commands import ROOT, Command
from tests.unit.on_ray.test_deploy_files import FILES, named

IMAGES = {"medv-ray:cpu", "medv-ray:gpu", "redis:7.2"}
IMAGE_FOLDER = "/opt/medv/"
"""Where the images have the folders jobs/ and cluster/ of this repository."""
PATHS = re.compile(r"(?<![\w/.-])(?:docs|jobs|cluster|tests|kernels|medv_ray)/[\w./-]+\w")
VARIABLES = re.compile(r"(?:-e |^)([A-Za-z_][A-Za-z_0-9]*)=", re.M)
UPLOADED = re.compile(r"\$\{(RAY_\w+)\}(?:/([\w./-]+))?(?:\[([\w,]+)\])?")
"""The folder that Ray put the upload into, a file of it, and extras of the package in it."""
README = (ROOT / "cluster/README.md").read_text()


def strings(node: Any) -> Iterator[str]:
    """Every text of a document, names of mappings too."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def values_of(node: Any, name: str) -> Iterator[Any]:
    """What stands under a name, at any depth."""
    if isinstance(node, dict):
        if name in node:
            yield node[name]
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from values_of(value, name)


def variables(document: dict[str, Any]) -> set[str]:
    """Names of the environment that a file sets."""
    found = {one["name"] for env in values_of(document, "env") for one in env}
    found |= {name for env in values_of(document, "env_vars") for name in env}
    for one in strings(document):
        if one.startswith("-e ") or "ray start" in one:
            found |= set(VARIABLES.findall(one.split("ray start")[0].strip()))
    return found


def known_variable(name: str) -> bool:
    if name.startswith("MEDV_"):
        sources = (ROOT / "medv_ray").rglob("*.py")
        return any(f'"{name}"' in path.read_text() for path in sources)
    if not name.startswith("RAY_"):
        return name == "REDIS_PASSWORD"  # named in the same container's command
    import ray

    home = Path(ray.__path__[0])
    places = (
        *("scripts/scripts.py", "_private/ray_constants.py", "serve/_private/constants.py"),
        *("autoscaler/_private/constants.py", "autoscaler/v2/instance_manager/config.py"),
        *("_private/authentication/authentication_token_setup.py",),
        *("_common/usage/usage_constants.py",),
    )
    return any(f'"{name}"' in (home / place).read_text() for place in places)


def lost(text: str, document: dict[str, Any]) -> list[str]:
    """What a file names that is not there."""
    found = [f"{name} is no variable" for name in variables(document) if not known_variable(name)]
    found += misnamed(text)
    named_paths = {path.split("*")[0] for path in PATHS.findall(text.replace(IMAGE_FOLDER, " "))}
    found += [f"there is no {path}" for path in named_paths if not (ROOT / path).exists()]
    lines = [(place, tuple(shlex.split(one))) for place, one in commands(document)]
    for place, words in lines:
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        words = tuple(word.removeprefix(IMAGE_FOLDER) for word in words if word != "||")
        words = words[2:] if words[0] == "timeout" else words
        if words[:2] in (("python", "-c"), ("bash", "-c"), ("ray", "start"), ("ray", "stop")):
            continue
        if wrong := doc_commands.fault(Command(place, 1, words)):
            found.append(f"{place}: {wrong}")
    for line in text.splitlines():
        for span in re.findall(r"`([^`]+)`", line.partition("#")[2]):
            if wrong := doc_commands.span_fault(span):
                found.append(f"`{span}`: {wrong}")
    for name, path, extras in UPLOADED.findall("\n".join(strings(document))):
        found += [] if known_variable(name) else [f"{name} is no variable"]
        found += [] if (ROOT / path).exists() else [f"there is no {path}"]
        wrong = doc_commands.pip([f"medv-ray[{extras}]"]) if extras else None
        found += [wrong] if wrong else []
    found += [f"{one} is no image of ours" for one in images(document) if one not in IMAGES]
    return found


def images(document: dict[str, Any]) -> set[str]:
    names = ("image", "worker_image", "head_image")
    return {one for name in names for one in values_of(document, name) if isinstance(one, str)}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_what_is_named_is_there(path: Path) -> None:
    for document in read_documents(path):
        assert lost(path.read_text(), document) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("aws.yaml", "spot.spot_first", "spot.spot_frist", "there is no medv_ray.on_ray.spot.spot"),
        (
            "aws.yaml",
            "RAY_USAGE_STATS_ENABLED",
            "RAY_USAGE_STATS",
            "RAY_USAGE_STATS is no",
        ),
        ("aws.yaml", "medv-ray:gpu", "medv-ray:gpus", "medv-ray:gpus is no image"),
        ("aws.yaml", "RAY_enable_autoscaler_v2=0", "RAY_enable_autoscaler=0", "is no variable"),
        ("gcp.yaml", "front:middlewares", "fornt:middlewares", "there is no medv_ray.on_ray.fornt"),
        ("gcp.yaml", "`ray down cluster/gcp.yaml`", "`ray dwon cluster/gcp.yaml`", "no ray dwon"),
        ("on_prem.yaml", "`medv check", "`medv chekc", "there is no medv chekc"),
        ("runtime_env.yaml", "jobs/score_archive.py", "jobs/score.py", "there is no jobs/score.py"),
        ("runtime_env.yaml", "kernels/medv_kernels", "kernels/medv_kernel", "no kernels/medv_k"),
        ("runtime_env_pip.yaml", "}/constraints.txt", "}/constraint.txt", "no constraint.txt"),
        ("runtime_env_uv.yaml", "}/constraints.txt", "}/constraint.txt", "no constraint.txt"),
        ("runtime_env_pip.yaml", "[train,dicom]", "[train,dicoms]", "no extra dicoms"),
        ("runtime_env_uv.yaml", "CREATE_WORKING_DIR", "CREATE_DIR", "is no variable"),
        ("serve.yaml", "serve:build", "serve:biuld", "no medv_ray.on_ray.serve:biuld"),
        ("serve.yaml", "docs/serving.md", "docs/server.md", "there is no docs/server.md"),
        ("kuberay/finetune.yaml", "jobs/finetune_pathvqa", "jobs/finetune", "no jobs/finetune.py"),
        ("kuberay/finetune.yaml", "--num-workers", "--num-worker", "No such option"),
        ("kuberay/finetune.yaml", "workers.min_workers", "workers.min", "there is no setting min"),
        ("kuberay/score.yaml", "model.dtype=bfloat16", "model.dtype=bf16", "--set model.dtype"),
        ("kuberay/endpoint.yaml", "MEDV_API_KEYS_FILE", "MEDV_API_KEY_FILE", "is no variable"),
        ("kuberay/cluster.yaml", "STATUS_TIMEOUT_S", "TIMEOUT_S", "is no variable"),
    ],
)
def test_what_is_not_there_is_found(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    text = (ROOT / "cluster" / name).read_text()
    assert old in text, "the file has changed; so must this test"
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace(old, new))
    [document] = read_documents(changed)
    assert said in "\n".join(lost(changed.read_text(), document))


def test_variables_that_are_known_are_there() -> None:
    """To `medv check`, which looks for names that are nearly one of them."""
    others = {"RAY_HEAD_IP", "RAY_AUTH_TOKEN"}  # by Ray alone, read by its core
    assert [name for name in NAMES if name not in others and not known_variable(name)] == []


def kuberay() -> list[dict[str, Any]]:
    paths = [path for path in FILES if path.parent.name == "kuberay"]
    return [document for path in paths for document in read_documents(path)]


def test_no_two_heads_share_a_service() -> None:
    """KubeRay names it after the manifest, of whatever kind that is."""
    patches = [one for names in values_of(kuberay(), "patches") for one in names]
    paths = [path for path in FILES if path.name not in [one["path"] for one in patches]]
    documents = [one for path in paths for one in read_documents(path)]
    names = [
        one["metadata"]["name"] for one in documents if one.get("apiVersion", "").startswith("ray")
    ]
    assert len(names) == 4
    assert len(set(names)) == 4


def test_the_driver_knows_the_cuda_of_the_image() -> None:
    locked = (ROOT / "cluster/requirements/gpu.txt").read_text()
    [cuda] = re.findall(r"^cuda-toolkit==(\d+)", locked, re.M)
    least = {"12": 525, "13": 580}[cuda]
    named = re.findall(r"nvidia-(\d+)", (ROOT / "cluster/gcp.yaml").read_text())
    assert [int(one) for one in named if int(one) < least] == []
    assert named
    assert f"driver, {least} or newer" in (ROOT / "cluster/aws.yaml").read_text()
    assert f"driver, {least} or newer" in README


def test_secrets_and_volumes_are_made() -> None:
    """By a manifest, or by a command of the README."""
    made = {(one["kind"], one["metadata"]["name"]) for one in kuberay() if "metadata" in one}
    by_hand = set(re.findall(r"kubectl create secret generic ([\w-]+)", README))
    documents = kuberay()
    secrets = set(values_of(documents, "secretName"))
    for name in ("secretKeyRef", "secretRef"):
        secrets |= {one["name"] for one in values_of(documents, name)}
    assert secrets == by_hand
    claims = set(values_of(documents, "claimName"))
    assert claims == {name for kind, name in made if kind == "PersistentVolumeClaim"}


def test_ports_and_labels_agree() -> None:
    documents = kuberay()
    [address] = set(values_of(documents, "redisAddress"))
    [service] = [one for one in documents if one["kind"] == "Service"]
    [deployment] = [one for one in documents if one["kind"] == "Deployment"]
    [port] = service["spec"]["ports"]
    assert address == f"{service['metadata']['name']}:{port['port']}"
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert [one["containerPort"] for one in container["ports"]] == [port["port"]]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    wanted = {label for one in values_of(documents, "nodeSelector") for label in one.items()}
    given = set(re.findall(r"kubectl label node \S+ ([\w-]+)=([\w-]+)", README))
    assert wanted == given
    heads = list(values_of(documents, "headGroupSpec"))
    for head in heads:
        [ports] = values_of(head, "ports")
        numbers = {one["name"]: one["containerPort"] for one in ports}
        assert numbers.items() >= {"gcs": 6379, "dashboard": 8265}.items()
    starts = "".join(
        one for path in FILES for one in strings(read_documents(path)) if "--port" in one
    )
    assert set(re.findall(r"--port=(\d+)", starts)) == {"6379"}
    joins = "".join(one for path in FILES for one in strings(read_documents(path)) if "_IP:" in one)
    assert set(re.findall(r"_IP:(\d+)", joins)) == {"6379"}


def test_every_pod_of_a_kind_has_the_same_image() -> None:
    for one in kuberay():
        for group in (
            *values_of(one, "headGroupSpec"),
            *sum(values_of(one, "workerGroupSpecs"), []),
        ):
            [container] = group["template"]["spec"]["containers"]
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"] == ("medv-ray:gpu" if has_gpu else "medv-ray:cpu")
