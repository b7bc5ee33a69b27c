"""The YAML of cluster/ is right; each name of it, misspelt, is found, and so are wrong values."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from medv_ray.cli import app, checking
from medv_ray.cli.checking import file_faults, read_documents, said, whole_documents
from medv_ray.errors import SettingsError
from medv_ray.on_ray.deploy_files import OURS, faults, look, misnamed, start_flags, unselected
from medv_ray.on_ray.manifests import amount

ROOT = Path(__file__).parents[3]
FOLDERS = ("cluster", "cluster/kuberay")
"""Others have files of other programs, and tests of their own."""
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.yaml"))]
FREE = {
    *("available_node_types", "file_mounts", "env_vars"),
    *("labels", "annotations", "nodeSelector", "matchLabels", "selector"),
}
"""Whose names the user chooses; tests/unit/test_cluster_walk.py looks at those of ours."""


def named(path: Path) -> str:
    return path.relative_to(ROOT / "cluster").as_posix()


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_all_are_looked_at() -> None:
    assert {named(path) for path in FILES} >= {
        *("aws.yaml", "gcp.yaml", "on_prem.yaml", "serve.yaml"),
        *("runtime_env.yaml", "runtime_env_pip.yaml", "runtime_env_uv.yaml"),
        *(f"kuberay/{name}.yaml" for name in ("cluster", "score", "finetune", "endpoint")),
        *(f"kuberay/{name}.yaml" for name in ("storage", "redis", "kustomization")),
    }


@pytest.mark.parametrize("path", FILES, ids=named)
def test_shipped_files_are_right(path: Path) -> None:
    assert file_faults(path) == []


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each name of a document whose spelling matters."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not path or path[-1] not in FREE:
                yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from places(value, (*path, i))


def misspelt(document: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    made = copy.deepcopy(document)
    node: Any = made
    for part in place[:-1]:
        node = node[part]
    node[f"{place[-1]}x"] = node.pop(place[-1])
    return made


@pytest.mark.parametrize("path", FILES, ids=named)
def test_each_misspelt_name_is_found(path: Path) -> None:
    passed = []
    for document in whole_documents(path):
        inner = list(places(document))
        assert inner
        passed += [place for place in inner if not any(look(misspelt(document, place)))]
    assert passed == []


def test_each_misspelt_name_of_a_text_is_found() -> None:
    """Serve's file stands as text in the manifest of the endpoint."""
    [manifest] = read_documents(ROOT / "cluster/kuberay/endpoint.yaml")
    inner = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    passed = []
    for place in places(inner):
        manifest["spec"]["serveConfigV2"] = yaml.safe_dump(misspelt(inner, place))
        passed += [] if any(look(manifest)) else [place]
    assert passed == []


CHANGES = [
    ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "--dashboard-host="),
    ("aws.yaml", "--port=6379 --num", "--prt=6379 --num", "has no --prt"),
    ("aws.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "anybody could run code"),
    ("aws.yaml", '"~/.ray/auth_token": "~/.ray/auth_token"', "/a: /b", "no node could join"),
    ("aws.yaml", "MarketType: spot", "MarketType: spott", "MarketType"),
    ("aws.yaml", "resources: {CPU: 0, GPU: 0}", "resources: {CPU: 4, GPU: 0}", "CPU must be 0"),
    ("aws.yaml", "resources: {CPU: 0, GPU: 0}", "resources: {CPU: 0}", "GPU must be 0"),
    ("aws.yaml", "start --address=", "start --adress=", "worker_start_ray_commands: `ray start` h"),
    ("aws.yaml", "  - ray stop\n", "  - ray start --head\n", "one `ray start` is needed"),
    ("aws.yaml", "    max_workers: 8\n", "", "it bounds what the cluster costs"),
    ("aws.yaml", "workers: 8\n", "workers: x\n", "available_node_types.gpu_spot.max_workers: 'x'"),
    ("aws.yaml", "type: aws", "type: asw", "none of aws, gcp, local"),
    ("aws.yaml", "head_node_type: head", "head_node_type: hed", "head_node_type"),
    ("aws.yaml", "InstanceType: m6i.xlarge", "InstanceType: 4", "InstanceType"),
    ("aws.yaml", "-e RAY_AUTH_MODE=token", "-e RAY_AUTH_MODE=tokens", "anybody could run code"),
    ("aws.yaml", "-e RAY_AUTH_MODE=token", "-e MY_RAY_AUTH_MODE=token", "anybody could run code"),
    ("aws.yaml", "ray start --head", "RAY_AUTH_MODE=disabled ray start --head", "anybody could"),
    ("aws.yaml", "      ImageId: *machine_image\n", "", "cpu_spot.node_config.ImageId"),
    ("aws.yaml", "--dashboard-host=127.0.0.1", "", "--dashboard-host=127.0.0.1 is missing"),
    ("aws.yaml", "spot.spot_first", "spot.spotfirst", "there is no medv_ray.on_ray.spot.spotfirst"),
    ("aws.yaml", "front:middlewares", "front:middleware", "no medv_ray.on_ray.front:middleware"),
    ("gcp.yaml", "ray.front:", "ray.fornt:", "there is no medv_ray.on_ray.fornt:middlewares"),
    ("aws.yaml", "--port=6379", "--port=6380", "listens on 6380, and workers join 6379"),
    ("aws.yaml", "_IP:6379", "_IP:6380", "listens on 6379, and workers join 6380"),
    ("aws.yaml", "0\n    max_workers: 4", "5\n    max_workers: 4", "min_workers=5 > max_workers=4"),
    ("aws.yaml", "ray_bootstrap_config", "ray_bootstrap_confg", "bootstrap_config.yaml is missing"),
    ("aws.yaml", "STATS_ENABLED", "STATS_ENABLE", "ENABLE: RAY_USAGE_STATS_ENABLED is near"),
    (
        "gcp.yaml",
        "zone: us-central1-a",
        "zone: us-west1-a",
        "provider: availability_zone us-west1-a is not of us-central1",
    ),
    ("gcp.yaml", "timeout 600 bash", "medv scoer", "gpu_spot.initialization_commands[0]: there is"),
    ("on_prem.yaml", "  ssh_private_key", "  ssh_proxy_command", "ssh_private_key is missing"),
    ("on_prem.yaml", "--ulimit nofile", "--ulimits nofile", "--ulimits is not understood"),
    ("gcp.yaml", "acceleratorCount: 1", "acceleratorCount: one", "acceleratorCount"),
    ("gcp.yaml", "--num-gpus=0", "--num-gpus=1", "--num-gpus=0 is missing"),
    ("gcp.yaml", "ray start --address", "ray strat --address", "one `ray start` is needed"),
    ("on_prem.yaml", "worker_ips: [WORKER1, WORKER2]", "worker_ips: []", "worker_ips"),
    ("on_prem.yaml", "-e RAY_USAGE", "-env RAY_USAGE", "-env is not understood"),
    ("on_prem.yaml", "ray start --head", "ray start", "--head is missing"),
    ("serve.yaml", "serve:build", "serve:biuld", "import_path"),
    ("serve.yaml", "max_replicas: 2", "max_replica: 2", "max_replicas"),
    ("serve.yaml", "max_replicas: 2", "max_replicas: 0", "max_replicas"),
    ("serve.yaml", "host: 127.0.0.1", "host: 0.0.0.0", "keys_file is missing"),
    ("serve.yaml", "port: 8000", "port: many", "port"),
    ("serve.yaml", "port: 8000", "port: 99999", "http_options.port: 99999 is none of 1 .. 65535"),
    ("serve.yaml", "route_prefix: /", "route_prefix: medv", "'medv' must begin with /"),
    ("serve.yaml", "num_gpus: 0", "num_gpus: 1.5", "above 1 it must be a whole number"),
    ("runtime_env.yaml", "kernels/medv_kernels", "kernels", "kernels is no package"),
    ("runtime_env.yaml", "STATS_ENABLED", "STATS_ENABLEDX", "RAY_USAGE_STATS_ENABLED is near"),
    ("runtime_env_pip.yaml", "}/constraints.txt", "}/constraint.txt", "there is no constraint.txt"),
    ("runtime_env_uv.yaml", "}/constraints.txt", "}/constraint.txt", "there is no constraint.txt"),
    ("runtime_env_pip.yaml", "[train,dicom]", "[train,dicm]", "there is no extra dicm"),
    ("runtime_env_pip.yaml", "working_dir: .", "working_dir: jobs", "has no pyproject.toml"),
    ("runtime_env_uv.yaml", "CREATE_WORKING_DIR", "CREATE_WORKNG_DIR", "WORKING_DIR is near"),
    ("runtime_env.yaml", "kernels/medv_kernels", "kernels/medv_kernel", "no folder kernels/medv_k"),
    ("runtime_env.yaml", 'ENABLED: "0"', "ENABLED: 0", "str"),
    ("runtime_env_uv.yaml", "uv_pip_install_options", "uv_options", "uv"),
    ("runtime_env_pip.yaml", "setup_timeout_seconds", "setup_timeout", "no such field"),
    ("kuberay/cluster.yaml", 'dashboard-host: "127.0.0.1"', 'dashboard-host: "0.0.0.0"', "127.0"),
    ("kuberay/cluster.yaml", "name: medv-cluster", "name: medv.cluster", "metadata.name"),
    ("kuberay/cluster.yaml", "name: medv-cluster", f"name: {'m' * 48}", "at most 47"),
    (
        "kuberay/cluster.yaml",
        "        nodeSelector:\n          medv-pool: head",
        "        restartPolicy: Always",
        "'Never'",
    ),
    ("kuberay/cluster.yaml", "securityContext: &locked", "env2: &locked", "autoscalerOptions"),
    (
        "kuberay/cluster.yaml",
        "persistentVolumeClaim:\n              claimName: medv-shared",
        "emptyDir: null",
        "shared: one of persistentVolumeClaim, emptyDir, secret, hostPath",
    ),
    ("kuberay/cluster.yaml", "type: RuntimeDefault", "type: RuntimeDefaults", "seccompProfile"),
    ("kuberay/cluster.yaml", "tolerations: &", "toleration: &", "there are: tolerations"),
    ("kuberay/cluster.yaml", "maxReplicas: 8", "maxReplica: 8", "field; there are: maxReplicas"),
    (
        "kuberay/cluster.yaml",
        "rayStartParams: {}",
        'rayStartParams: {num-gpu: "1"}',
        "has no --num-gpu",
    ),
    ("kuberay/endpoint.yaml", "env: *env", "env: []", "container gpu-spot: env has no MEDV_API"),
    (
        "kuberay/endpoint.yaml",
        "proxy_location: EveryNode",
        "proxy_location: [",
        "spec.serveConfigV2: there must be names and values",
    ),
    ("kuberay/endpoint.yaml", "path: /shared", "dype: /shared", "serveConfigV2: applications[0].a"),
    (
        "kuberay/score.yaml",
        "    env_vars:\n      RAY",
        "    - RAY",
        "spec.runtimeEnvYAML: there must be names and values",
    ),
    ("kuberay/score.yaml", "--num-gpus 1", "--num-gpus 2", "2 is more than any pod has (nvidia"),
    (
        "kuberay/endpoint.yaml",
        " num_gpus: 1",
        " num_gpus: 2",
        "scaling.num_gpus 2 is more than any",
    ),
    ("kuberay/score.yaml", 'gpu: "1"', 'gpu: "1.5"', "nvidia.com/gpu: a pod has whole ones"),
    ("kuberay/cluster.yaml", "mode: token", "mode: disabled", "'token'"),
    ("kuberay/cluster.yaml", 'num-cpus: "0"', 'num-cpus: "1"', 'must be "0"'),
    ("kuberay/cluster.yaml", 'num-gpus: "0"', 'num-gpu: "0"', "has no --num-gpu"),
    ("kuberay/cluster.yaml", '"2.60.0"', '"2.53.0"', "rayVersion"),
    ("kuberay/cluster.yaml", "maxReplicas: 8", "maxReplicas: eight", "maxReplicas"),
    ("kuberay/cluster.yaml", "memory: 16Gi", "ephemeral-storage: 16Gi", "memory must be set"),
    ("kuberay/cluster.yaml", "memory: 16Gi", "memory: 16 GB", "memory"),
    (
        "kuberay/cluster.yaml",
        "name: shared\n            persis",
        "name: share\n            persis",
        "shared",
    ),
    ("kuberay/cluster.yaml", "groupName: gpu-spot", "groupName: cpu", "given twice"),
    ("kuberay/cluster.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
    ("kuberay/score.yaml", "--max-actors", "--max-actor", "`medv score`: No such option"),
    ("kuberay/score.yaml", "medv score", "medv scoer", "there is no `medv scoer`"),
    ("kuberay/score.yaml", "medv score", "meddv score", "there is no `meddv`; `medv` is near"),
    ("kuberay/score.yaml", "medv score", "A=1 python jobs/score_archiv.py", "there are: score_arc"),
    ("kuberay/score.yaml", "model.dtype=", "model.dtyp=", "model.dtyp: there is no such setting"),
    ("kuberay/score.yaml", "=bfloat16", "=bf17", "model.dtype: Input should be"),
    ("kuberay/score.yaml", "min-actors 1 ", "min-actors 13 ", "min_actors=13 > max_actors=12"),
    ("kuberay/score.yaml", "s3://BUCKET/run1", "run1", "on a cluster, give an absolute path"),
    ("kuberay/score.yaml", "--model /shared/LLaDA-MedV", "", "model.path: is missing"),
    ("kuberay/score.yaml", "medv score", "python jobs/score_archive.py --outt x", "No such option"),
    ("kuberay/finetune.yaml", "pathvqa.py", "pathvq.py", "; there are: finetune_pathvqa.py"),
    ("kuberay/finetune.yaml", "min_workers=4", "min_workers=9", "must be at most num_workers=8"),
    ("kuberay/finetune.yaml", "min_workers=4", "min_worker=4", "workers.min_worker: there is no"),
    ("kuberay/finetune.yaml", "--data ", "--dat ", "No such option: --dat"),
    ("kuberay/finetune.yaml", "--num-workers 8", "--num-workers 0", "workers.num_workers: "),
    ("kuberay/finetune.yaml", "--data /shared/pathvqa", "", "--data is missing"),
    ("kuberay/score.yaml", "    env_vars:\n", "    env_var:\n", "runtimeEnvYAML: env_var"),
    ("kuberay/finetune.yaml", "backoffLimit: 2", "backoffLimit: -2", "backoffLimit"),
    ("kuberay/endpoint.yaml", "port: 8000", "port: 8001", "8001 is none of the head's ports"),
    (
        "kuberay/endpoint.yaml",
        "keys_file: /keys/keys.txt",
        "kyes_file: /keys/keys.txt",
        "keys_file",
    ),
    ("kuberay/endpoint.yaml", "host: 0.0.0.0", "host: 127.0.0.1", "from no other pod"),
    (
        "kuberay/endpoint.yaml",
        "name: MEDV_API_KEYS_FILE",
        "name: MEDV_KEYS",
        "has no MEDV_API_KEYS",
    ),
    ("kuberay/endpoint.yaml", "keys_file: /keys/", "keys_file: /key/", "where /key/keys.txt is"),
    ("kuberay/endpoint.yaml", "mountPath: /keys", "mountPath: /key", "where /keys/keys.txt is"),
    ("kuberay/cluster.yaml", "type: RuntimeDefault", "type: Unconfined", "seccompProfile"),
    ("kuberay/redis.yaml", "selector:\n    app:", "selector:\n    ap:", "no deployment beside it"),
    (
        "kuberay/redis.yaml",
        "labels:\n        app",
        "labels:\n        ap",
        "no deployment beside it",
    ),
    (
        "kuberay/redis.yaml",
        "Labels:\n      app",
        "Labels:\n      ap",
        "matchLabels are not those of",
    ),
    ("kuberay/endpoint.yaml", "type: NewCluster", "type: New", "NewCluster"),
    ("kuberay/redis.yaml", "claimName", "claimname", "claimName"),
    ("kuberay/storage.yaml", "ReadWriteMany", "ReadWriteAll", "ReadWriteMany"),
    ("kuberay/kustomization.yaml", "- redis.yaml", "- rdis.yaml", "there is no rdis.yaml"),
    ("kuberay/endpoint_redis.yaml", "medv-redis:6379", "medv-redis", "redisAddress"),
    ("kuberay/endpoint_redis.yaml", "name: medv\n", "name: mdev\n", "there is no RayService mdev"),
]


@pytest.mark.parametrize(("name", "old", "new", "said"), CHANGES)
def test_a_mistake_is_found(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    source = ROOT / "cluster" / name
    for one in source.parent.glob("*.yaml"):  # a kustomization reads those beside it
        (tmp_path / one.name).write_text(one.read_text())
    text = source.read_text()
    assert old in text, "the file has changed; so must this test"
    changed = tmp_path / source.name
    changed.write_text(text.replace(old, new))
    found = "\n".join(file_faults(changed))
    assert said in found
    assert "\n:" not in f"\n{found}"  # a place is there, or no colon


def test_a_group_that_is_off_for_now() -> None:
    [made] = read_documents(ROOT / "cluster/kuberay/cluster.yaml")
    made["spec"]["workerGroupSpecs"][0] |= {"minReplicas": 0, "maxReplicas": 0}
    assert faults(made) == []


@pytest.mark.parametrize(
    "line",
    [
        "medv score --archive a --out /o --model org/name@abc --config /shared/none.yaml",
        "medv score --archive a --out /o --model org/name@0123456 --canvas /shared/none.txt",
        "python /opt/medv/jobs/finetune_pathvqa.py --demo",
        "python -u jobs/train_tiny.py --steps 3",
        "python jobs/prepare_vqa.py --kind pathvqa --source a --out b",
        "python /shared/mine.py --archiv x",
        "python /srv/app/jobs/nightly_report.py",
        "medv score --archive a --model b/c@d --out $OUT --set pool.num_gpus=${GPUS}",
        "bash -c 'medv scoer'",
        "",
    ],
)
def test_a_command_line_that_is_right_or_not_ours(line: str) -> None:
    """Nothing of the hub's is fetched, and what lies on the cluster is not looked for."""
    assert said("x", line) is None


def test_jobs_are_not_looked_at_where_they_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = "python /opt/medv/jobs/finetune_pathvq.py"
    assert said("x", line)
    monkeypatch.setattr(checking, "JOBS", tmp_path / "jobs")
    assert said("x", line) is None


def test_flags_are_those_of_ray() -> None:
    assert {"--head", "--address", "--dashboard-host", "--autoscaling-config"} <= start_flags()
    assert not start_flags() & {"--prt", "--help-all"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "no readable YAML (ParserError, line 1)"),
        ("a: 1\nb: 2\na: 3\n", "line 1: 'a' is given twice"),
        ("a: " + "x" * 2**20, "over 1048576 bytes"),
        ("# a: 1\n---\n", "it is empty"),
        ("? [a]\n: b\n", "no readable YAML (ConstructorError, line 1)"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(f"mine.yaml: {said}")):
        read_documents(path)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([1], "there must be names and values"),
        ({"name": 1}, "no `ray up` file"),
        ({"kind": "RayCron"}, "none of RayCluster"),
        ({"kind": "RayJob"}, "apiVersion"),
        ({"provider": "aws"}, "provider.type: None is none of"),
        ({"provider": {"type": "aws"}, "available_node_types": 1}, "provider.region"),
        ({"provider": {"type": ["aws"]}}, "provider.type: ['aws'] is none of"),
        ({"py_modules": 3}, "py_modules: must be a list of folders"),
        ({"applications": 3}, "applications"),
        (
            {"applications": [{"import_path": OURS, "args": {"model": 3}}]},
            "applications[0].args: SettingsError E1001",
        ),
        ({"env_vars": 3, "config": 3}, "env_vars: must hold names and values"),
        ({"working_dir": ".", "config": 3}, "config: must hold names and values"),
    ],
)
def test_other_things(document: Any, said: str) -> None:
    assert said in "\n".join(faults(document))


DEPLOYMENTS = ("autoscaling_config", "backpressure_config", "request_router_config")


@pytest.mark.parametrize("name", [*DEPLOYMENTS, "ray_actor_options", "logging_config"])
def test_each_misspelt_name_of_a_deployment_is_found(name: str) -> None:
    """Serve takes them; our own files name no deployments."""
    one = {"import_path": OURS, "deployments": [{"name": "x", name: {"misspelt": 1}}]}
    place = f"applications[0].deployments[0].{name}.misspelt: no such field"
    assert place in "\n".join(faults({"applications": [one]}))


def test_each_misspelt_name_of_grpc_is_found() -> None:
    document = {"applications": [{"import_path": OURS}], "grpc_options": {"prt": 9000}}
    assert "grpc_options.prt: no such field; there are: port" in "\n".join(faults(document))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '                cpu: "4"\n',
            '                nvidia.com/gpu: "1"\n                cpu: "4"\n',
            "head mu",
        ),
        ("minReplicas: 0", "minReplicas: 9", "minReplicas=9 > maxReplicas=8"),
        ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "Escalation"),
        ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "enableInTree"),
        ("containerPort: 8265", "containerPort: 82650", "containerPort"),
        ("mountPath: /shared", "mountPath: shared", "mountPath"),
        ("name: RAY_USAGE", "name: RAY-USAGE", "env.0.name"),
        ("runAsUser: 1000", "runAsUser: 0", "runAsUser"),
        ("maxReplicas: 8", 'maxReplicas: "8"', "maxReplicas"),
        (
            'nvidia.com/gpu: "1"\n                limits',
            "memory: 1Gi\n                limits",
            "twice",
        ),
    ],
)
def test_a_manifest_of_no_use(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (ROOT / "cluster/kuberay/cluster.yaml").read_text()
    assert old in text, "the file has changed; so must this test"
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    try:
        found = file_faults(tmp_path / "mine.yaml")
    except SettingsError as error:
        found = [str(error)]
    assert said in "\n".join(found)


def test_the_token_mode_is_every_containers() -> None:
    """Not only that of the commands that start Ray: what else runs there asks the cluster too."""
    [document] = read_documents(ROOT / "cluster/aws.yaml")
    document["docker"]["run_options"].remove("-e RAY_AUTH_MODE=token")
    starts = document["head_start_ray_commands"]
    starts[1] = f"RAY_AUTH_MODE=token {starts[1]}"
    assert "`-e RAY_AUTH_MODE=token` is missing" in "\n".join(faults(document))


def test_each_application_is_looked_at() -> None:
    ours = {"name": "b", "route_prefix": "/b", "import_path": OURS, "args": {"scalin": 1}}
    other = {"name": "a", "route_prefix": "/a", "import_path": "other:app"}
    found = "\n".join(faults({"applications": [other, ours]}))
    assert "applications[0].import_path" in found
    assert "applications[1].args" in found


def test_folders_are_looked_for_and_addresses_are_not() -> None:
    assert faults({"working_dir": "nowhere"}) == ["there is no folder nowhere, as seen from here"]
    pip = ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/requirements.txt"]
    assert faults({"working_dir": "s3://bucket/code.zip", "pip": pip}) == []
    assert faults({"py_modules": ["s3://bucket/medv.zip"]}) == []
    assert faults({"py_modules": [5]}) == []  # Ray's own to say


def test_an_upload_whose_project_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project")
    found = faults({"working_dir": str(tmp_path), "pip": []})
    assert "the working_dir's pyproject.toml is no TOML" in found


def test_good_files_of_another_hand(tmp_path: Path) -> None:
    """Blanks for `=`, keys as one file, a service of Ray's own pods, files with names like ours."""
    texts = {
        "aws.yaml": [("--port=6379", "--port 6379")],
        "kuberay/endpoint.yaml": [
            (
                "mountPath: /keys\n",
                "mountPath: /keys/keys.txt\n                  subPath: keys.txt\n",
            )
        ],
    }
    for name, changes in texts.items():
        text = (ROOT / "cluster" / name).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mine.yaml").write_text(text)
        assert file_faults(tmp_path / "mine.yaml") == []
    named = "medv_ray.tar.gz medv_ray.v1.2 medv_ray.cli.checking medv_ray.cli:app"
    assert list(misnamed(named)) == []
    assert list(misnamed("medv_ray.onray.spot.spot_first")) != []
    deployed = {"kind": "Deployment", "spec": {"template": {"metadata": {"labels": {"app": "a"}}}}}
    heads = {"kind": "Service", "spec": {"selector": {"ray.io/node-type": "head"}}}
    lost = {"kind": "Service", "spec": {"selector": {"app": "b"}}}
    assert list(unselected([deployed, heads, {"kind": ["Service"]}])) == []
    assert len(list(unselected([deployed, lost]))) == 1


def test_an_endpoint_is_open_unless_it_says_otherwise() -> None:
    [said] = faults({"applications": [{"import_path": OURS}]})
    assert said == "applications[0].args: others reach host 0.0.0.0: keys_file is missing"


def test_a_folder_of_the_image_is_not_looked_for_here(tmp_path: Path) -> None:
    text = (ROOT / "cluster/kuberay/score.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("    env_vars:\n", "    working_dir: /opt/medv\n    env_vars:\n"))
    assert file_faults(mine) == []


def group(memory: str, shared: str | None, params: dict[str, str] | None = None) -> Any:
    """The first group of workers of the cluster, with a shared memory of its own."""
    [manifest] = read_documents(ROOT / "cluster/kuberay/cluster.yaml")
    first = copy.deepcopy(manifest["spec"]["workerGroupSpecs"][0])
    first["rayStartParams"] = params or {}
    pod = first["template"]["spec"]
    pod["containers"][0]["resources"]["limits"]["memory"] = memory
    if shared is not None:
        pod["containers"][0]["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
        pod["volumes"].append(
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}}
        )
    manifest["spec"]["workerGroupSpecs"] = [first]
    return manifest


@pytest.mark.parametrize(
    ("memory", "shared", "params"),
    [("48Gi", "4Gi", {}), ("16Gi", "4Gi", {}), ("16G", "4000M", {}), ("500Gi", "9G", {})],
)
def test_a_shared_memory_under_the_object_store(
    monkeypatch: pytest.MonkeyPatch, memory: str, shared: str, params: dict[str, str]
) -> None:
    [said] = faults(group(memory, shared, params))
    assert said.startswith(f"container cpu: /dev/shm of {shared} is too small for the object store")
    assert lies_in(monkeypatch, memory, shared) == "/the/disk"


@pytest.mark.parametrize(
    ("memory", "shared", "params"),
    [
        ("48Gi", None, {}), ("48Gi", "15Gi", {}), ("500Gi", "10G", {}), ("0.5Gi", "200Mi", {}),
        ("48Gi", "4Gi", {"object-store-memory": "4000000000"}),
    ],
)  # fmt: skip
def test_a_shared_memory_for_the_object_store(
    monkeypatch: pytest.MonkeyPatch, memory: str, shared: str | None, params: dict[str, str]
) -> None:
    assert faults(group(memory, shared, params)) == []
    if not params:  # KubeRay's own is as large as the memory
        assert lies_in(monkeypatch, memory, shared or memory) == "/dev/shm"


def lies_in(monkeypatch: pytest.MonkeyPatch, memory: str, shared: str) -> str:
    """Where Ray itself puts its objects."""
    from ray._private import services, utils

    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: int(amount(shared)))
    monkeypatch.setattr(services.ray._common.utils, "get_system_memory", lambda: 10**15)
    monkeypatch.setattr(services.os.path, "isdir", lambda path: True)
    store = utils.resolve_object_store_memory(int(amount(memory)))
    return services.determine_plasma_store_config(store, "/the/disk")[0]


def test_numbers_are_quantities_too(tmp_path: Path) -> None:
    text = (ROOT / "cluster/kuberay/cluster.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace('cpu: "4"', "cpu: 3.5").replace('"1"', "1"))
    assert file_faults(tmp_path / "mine.yaml") == []
    (tmp_path / "mine.yaml").write_text(text.replace('cpu: "4"', "cpu: true"))
    assert "cpu: Input should be a valid string" in "\n".join(file_faults(tmp_path / "mine.yaml"))


KUSTOMIZATION = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [one.yaml, {0}]
patches: [{{{1}}}]
"""


@pytest.mark.parametrize(
    ("resource", "patch", "said"),
    [
        ("over/two.yaml", "path: change.yaml", ""),
        ("one.yaml", "patch: text", "patches.0.path: Field required"),
        ("https://host/two.yaml", "path: change.yaml", "there is no https://host/two.yaml"),
        ("over", "path: change.yaml", "there is no over beside it"),
        ("one.yaml", "path: list.yaml", ""),
    ],
)
def test_a_kustomization_of_ones_own(tmp_path: Path, resource: str, patch: str, said: str) -> None:
    claim = (ROOT / "cluster/kuberay/storage.yaml").read_text()
    (tmp_path / "over").mkdir()
    (tmp_path / "one.yaml").write_text(claim + "---\n")
    (tmp_path / "over/two.yaml").write_text(claim.replace("medv-shared", "other"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    change = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "other"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    (tmp_path / "change.yaml").write_text(yaml.safe_dump(change))
    (tmp_path / "kustomization.yaml").write_text(KUSTOMIZATION.format(resource, patch))
    found = "\n".join(file_faults(tmp_path / "kustomization.yaml"))
    assert said in found
    assert bool(said) == bool(found)
    if not said and "change" in patch:
        made = whole_documents(tmp_path / "change.yaml")
        assert [one["spec"]["accessModes"] for one in made] == [
            ["ReadWriteMany"],
            ["ReadWriteOnce"],
        ]


def test_command(tmp_path: Path) -> None:
    wrong = tmp_path / "mine.yaml"
    wrong.write_text(
        (ROOT / "cluster/serve.yaml").read_text().replace("route_prefix", "route_prefx")
    )
    none = str(tmp_path / "none.yaml")
    done = CliRunner().invoke(app, ["check", "cluster/serve.yaml", none, str(wrong)])
    assert done.exit_code == 2
    assert done.output.splitlines()[0] == "serve.yaml: ok"
    assert "none.yaml: 1 fault\n    no readable YAML (FileNotFoundError).\n" in done.output
    assert "applications[0].route_prefx: no such field; there are: route_prefix" in done.output
