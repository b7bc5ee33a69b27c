"""What is wrong with a file of cluster/, or a user's copy of one, before a cloud sees it.

Ray, Serve and Kubernetes take misspelt names silently in many places; each of those is looked at
here. What is found is given as `place: what`, in the file's own words.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from medv_ray.errors import MedvError
from medv_ray.loopback import LOOPBACK
from medv_ray.on_ray.file_checks import NO_NAMES, model_faults, schema_faults, under
from medv_ray.on_ray.machines import PROVIDERS
from medv_ray.on_ray.manifests import (
    GPU,
    KINDS,
    ClusterSpec,
    HeadGroup,
    PodSpec,
    WorkerGroup,
    amount,
)
from medv_ray.on_ray.options import serve_settings
from medv_ray.on_ray.runtime_envs import runtime_env_faults

OURS = "medv_ray.on_ray.serve:build"
TOKEN_MODE = "RAY_AUTH_MODE=token"
TOKEN_FILE = ".ray/auth_token"
RESOURCES = {"CPU", "GPU", "memory", "object_store_memory"}
"""What our actors ask for; Ray takes any name."""
START = re.compile(r"\bray start\b(.*)", re.S)
OPTION = re.compile(r"(?:-e|--env|-v|--volume|--ulimit|--shm-size|--gpus|--ipc)[= ]\S+")
"""Of `docker run`, those that are understood here."""
ROOMS = sorted({one.name.partition(".")[0] for one in Path(__file__).parents[1].iterdir()})
NAMED = re.compile(r"\bmedv_ray(?:\.\w+)+[:.]\w+")
VARIABLE = re.compile(r"\b(?:RAY|MEDV)_\w+")
VARIABLES = (
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_HEAD_IP"),
    *("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"),
    *("RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S", "RAY_AUTOSCALER_UTILIZATION_SCORER"),
    *("RAY_enable_autoscaler_v2", "RAY_RUNTIME_ENV_CREATE_WORKING_DIR", "MEDV_API_KEYS_FILE"),
)
"""Of the files in cluster/; others are let through, unless they are nearly one of these."""
SCALING = "~/ray_bootstrap_config.yaml"
"""Where `ray up` puts it on the head."""
NUM_GPUS = re.compile(r"--num-gpus[= ]+(\d+(?:\.\d+)?)")
PORTS = range(1, 2**16)
SHARED = "/dev/shm"
STORE_SHARE, STORE_MOST = 0.27, 10**10
"""Ray's object store is 30 % of the memory that is free when it starts, a little under the limit;
in a smaller shared memory at most so many bytes."""
MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?([\w-]*)")


def faults(document: Any) -> list[str]:
    """Empty for a file that is right, as far as it can be seen without a cluster."""
    return list(look(document))


def look(document: Any) -> Iterator[str]:
    """The same, one after the other."""
    if not isinstance(document, dict):
        yield NO_NAMES
        return
    yield from misnamed(str(document))
    if "kind" in document:
        yield from _manifest(document)
    elif "provider" in document:
        yield from _ray_up(document)
    elif "applications" in document:
        yield from _serve(document)
    elif document.keys() & {"working_dir", "py_modules", "env_vars", "pip", "uv"}:
        yield from runtime_env_faults(document)
    else:
        yield "no `ray up` file, Kubernetes manifest, Serve file or runtime environment"


def misnamed(text: str) -> Iterator[str]:
    """Functions of ours that are not there, and variables that are nearly one of Ray's."""
    for name in sorted(set(NAMED.findall(text))):
        module, _, attribute = name.replace(":", ".").rpartition(".")
        if not get_close_matches(module.split(".")[1], ROOMS, 1):
            continue  # a file, say: medv_ray.tar.gz
        if attribute not in names_in(module) and not names_in(name):
            yield f"there is no {name}"
    for name in sorted(set(VARIABLE.findall(text)) - {*VARIABLES}):
        yield from (
            f"{name}: {near} is near" for near in get_close_matches(name, VARIABLES, 1, 0.9)
        )


@functools.cache
def names_in(module: str) -> frozenset[str]:
    """What a module of ours defines or gives a name, at its top; to import it takes seconds."""
    place = Path(__file__).parents[2].joinpath(*module.split("."))
    found = [one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()]
    nodes = [node for file in found for node in ast.parse(file.read_text()).body]
    assigned = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    named = [getattr(one, "name", getattr(one, "id", "")) for one in (*nodes, *assigned)]
    return frozenset(one for one in named if one)


def unselected(documents: list[Any]) -> Iterator[str]:
    """Services beside deployments none of which has pods that they select. Ray's own pods are no
    deployment's."""
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for one in documents:
        if isinstance(one, dict):
            of_kind.setdefault(str(one.get("kind")), []).append(under(one, "spec"))
    pods = [under(under(s, "template"), "metadata") for s in of_kind.get("Deployment", [])]
    for spec in of_kind.get("Service", []) if pods else ():
        wanted = under(spec, "selector").items()
        of_ray = any(str(label).startswith("ray.io/") for label, _ in wanted)
        if not of_ray and not any(wanted <= under(one, "labels").items() for one in pods):
            yield "Service: spec.selector: no deployment beside it has pods with these labels"


def commands(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Place and text of each command line that a file has a shell run."""
    found = []
    kinds = under(document, "available_node_types")
    owners = {"": document} | {f"{name}.": under(kinds, name) for name in kinds}
    for owner, values in owners.items():
        for key, lines in values.items():
            if str(key).endswith("_commands") and isinstance(lines, list):
                found += [(f"{owner}{key}[{i}]", one) for i, one in enumerate(lines)]
    found.append(("spec.entrypoint", under(document, "spec").get("entrypoint")))
    return [(place, one) for place, one in found if isinstance(one, str)]


def _manifest(document: dict[str, Any]) -> Iterator[str]:
    model = KINDS.get(str(document["kind"]))
    if model is None:
        yield f"kind: {document['kind']!r} is none of {', '.join(KINDS)}"
        return
    try:
        made: Any = model.model_validate(document)
    except ValidationError as error:
        yield from schema_faults(error, model)
        return
    if document["kind"] == "RayCluster":
        yield from _groups(made.spec)
    elif document["kind"] == "RayJob":
        yield from _groups(made.spec.rayClusterSpec)
        inner = _inner(made.spec.runtimeEnvYAML or "{}")
        found = [NO_NAMES] if inner is None else runtime_env_faults(inner, local=False)
        yield from (f"spec.runtimeEnvYAML: {one}" for one in found)
        for wanted in NUM_GPUS.findall(made.spec.entrypoint):
            yield from _gpus(float(wanted), made.spec.rayClusterSpec, "spec.entrypoint: --num-gpus")
    elif document["kind"] == "RayService":
        yield from _groups(made.spec.rayClusterConfig)
        inner = _inner(made.spec.serveConfigV2)
        found = [NO_NAMES] if inner is None else _serve(inner)
        yield from (f"spec.serveConfigV2: {one}" for one in found)
        yield from _reached(inner or {}, made.spec.rayClusterConfig)


def _inner(text: str) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else None


def _every_group(spec: ClusterSpec) -> list[HeadGroup | WorkerGroup]:
    return [spec.headGroupSpec, *spec.workerGroupSpecs]


def _groups(spec: ClusterSpec) -> Iterator[str]:
    """Parameters of `ray start`; a head that is not open to others is the manifest's own rule."""
    for group in _every_group(spec):
        unknown = {f"--{name}" for name in group.rayStartParams} - start_flags()
        for flag in sorted(unknown):
            yield f"rayStartParams: `ray start` has no {flag}"
        if not group.rayStartParams.keys() & {"object-store-memory", "plasma-directory"}:
            yield from _on_disk(group.template.spec)


def _on_disk(pod: PodSpec) -> Iterator[str]:
    """A shared memory that is too small for Ray's object store, which then lies on the disk."""
    one = pod.containers[0]
    mounted = {mount.name for mount in one.volumeMounts if mount.mountPath.rstrip("/") == SHARED}
    memory = one.resources.limits["memory"]
    for volume in pod.volumes:
        size = volume.emptyDir.sizeLimit if volume.emptyDir else None
        if volume.name not in mounted or size is None:
            continue
        if amount(size) < min(STORE_SHARE * amount(memory), STORE_MOST):
            yield (
                f"container {one.name}: {SHARED} of {size} is too small for the object store that "
                f"Ray makes in {memory}, and it would lie on the disk. Without this volume KubeRay "
                "makes one as large as the container's memory."
            )


def _gpus(wanted: float, spec: ClusterSpec, what: str) -> Iterator[str]:
    """An actor lies in one pod: one must have as many GPUs."""
    containers = [one for group in _every_group(spec) for one in group.template.spec.containers]
    most = max(amount(one.resources.limits.get(GPU, "0")) for one in containers)
    if wanted > most:
        yield f"{what} {wanted:g} is more than any pod has ({GPU}: {most:g} at most)"


def _reached(serve: dict[str, Any], spec: ClusterSpec) -> Iterator[str]:
    """The endpoint of pods: its port, and the keys in every pod that may answer."""
    http = under(serve, "http_options")
    head = spec.headGroupSpec.template.spec.containers[0]
    if http.get("port", 8000) not in [one.containerPort for one in head.ports]:
        yield f"serveConfigV2: port {http.get('port', 8000)} is none of the head's ports"
    if http.get("host") in LOOPBACK:
        yield f"serveConfigV2: host {http['host']} is reached from no other pod: 0.0.0.0"
    apps = serve.get("applications")
    args = [under(one, "args") for one in apps or () if isinstance(one, dict)]
    given = [one.get("keys_file") for one in args]
    for gpus in [under(one, "scaling").get("num_gpus") for one in args]:
        if isinstance(gpus, int | float):
            yield from _gpus(gpus, spec, "serveConfigV2: scaling.num_gpus")
    for group in _every_group(spec):
        one = group.template.spec.containers[0]
        mounts = [mount.mountPath.rstrip("/") + "/" for mount in one.volumeMounts]
        named = [env.value for env in one.env if env.name == "MEDV_API_KEYS_FILE"]
        for path in sorted({path for path in (*given, *named) if isinstance(path, str)}):
            if not f"{path}/".startswith(tuple(mounts)):
                yield f"container {one.name}: nothing is mounted where {path} is looked for"
        for name in ("MEDV_API_KEYS_FILE", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"):
            if name not in [env.name for env in one.env]:
                yield f"container {one.name}: env has no {name}"


def _ray_up(document: dict[str, Any]) -> Iterator[str]:
    from medv_ray.on_ray.private_ray import filled_out

    provider = under(document, "provider")
    kind_of_cloud = str(provider.get("type"))
    if kind_of_cloud not in PROVIDERS:
        yield f"provider.type: {kind_of_cloud} is none of {', '.join(PROVIDERS)}"
        return
    fields, node = PROVIDERS[kind_of_cloud]
    yield from model_faults(fields, provider, "provider")
    kinds = under(document, "available_node_types")
    if node is not None:
        for name in kinds:
            yield from model_faults(
                node, under(kinds, name).get("node_config"), f"{name}.node_config"
            )
    try:
        filled_out(document)
    except Exception as error:  # jsonschema's, Ray's
        where = ".".join(map(str, getattr(error, "absolute_path", ())))
        what = str(getattr(error, "message", error)).splitlines()[0]
        yield ": ".join(filter(None, (where, what)))
        return
    for name, kind in kinds.items():
        for what in sorted(kind["resources"].keys() - RESOURCES):
            yield f"{name}.resources: {what!r} is none of {', '.join(sorted(RESOURCES))}"
        if name == document.get("head_node_type"):
            for what in ("CPU", "GPU"):
                if kind["resources"].get(what) != 0:
                    yield f"{name}.resources: {what} must be 0, so that no actor lies on the head"
        elif "max_workers" not in kind:
            yield f"{name}: max_workers is missing; it bounds what the cluster costs"
        elif kind.get("min_workers", 0) > kind["max_workers"]:
            yield f"{name}: min_workers={kind['min_workers']} > max_workers={kind['max_workers']}"
    if provider["type"] == "local" and "ssh_private_key" not in under(document, "auth"):
        yield "auth: ssh_private_key is missing; the head reaches the workers with it"
    yield from _started(document)


def _started(document: dict[str, Any]) -> Iterator[str]:
    """How nodes start Ray: with flags that there are, closed to others, and with the token."""
    options = [str(one) for one in under(document, "docker").get("run_options") or []]
    for i, one in enumerate(options):
        if not OPTION.match(one):
            yield f"docker.run_options[{i}]: {one.split()[0]} is not understood here"
    given_by_all = "token" in MODE.findall(" ".join(options))
    if not given_by_all or set(MODE.findall(str(document))) != {"token"}:
        yield f"docker.run_options: `-e {TOKEN_MODE}` is missing; anybody could run code there"
    if not any(str(one).endswith(TOKEN_FILE) for one in document.get("file_mounts") or {}):
        yield f"file_mounts: ~/{TOKEN_FILE} is missing; no node could join"
    ports = {}
    for who in ("head", "worker"):
        key = f"{who}_start_ray_commands"
        lines = [line for place, line in commands(document) if place.startswith(key)]
        starts = [one for line in lines for one in START.findall(line)]
        if len(starts) != 1:
            yield f"{key}: one `ray start` is needed"
            continue
        words = re.sub(r"(--[\w-]+) +(?=[^\s-])", r"\1=", starts[0]).split()
        given = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        for flag in sorted(given.keys() - start_flags()):
            yield f"{key}: `ray start` has no {flag}"
        if who == "head" and given.get("--dashboard-host") not in LOOPBACK:
            yield f"{key}: --dashboard-host=127.0.0.1 is missing; `ray dashboard` reaches it"
        if who == "head" and "--head" not in given:
            yield f"{key}: --head is missing"
        if who == "head" and given.get("--autoscaling-config") != SCALING:
            yield f"{key}: --autoscaling-config={SCALING} is missing; no node would start"
        flag = "--port" if who == "head" else "--address"
        ports[who] = given.get(flag, "6379").rpartition(":")[2]
        for flag in ("--num-cpus", "--num-gpus") if who == "head" else ():
            if given.get(flag) != "0":
                yield f"{key}: {flag}=0 is missing, so that no actor lies on the head"
    if len(set(ports.values())) > 1:
        yield f"ports: the head listens on {ports['head']}, and workers join {ports['worker']}"


@functools.cache
def start_flags() -> frozenset[str]:
    """Options of `ray start`, out of its source: to import it takes seconds."""
    from ray import scripts

    tree = ast.parse(Path(scripts.__path__[0], "scripts.py").read_text())
    [start] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "start"]
    words = [
        n.value for d in start.decorator_list for n in ast.walk(d) if isinstance(n, ast.Constant)
    ]
    return frozenset(w for w in words if isinstance(w, str) and re.fullmatch(r"--[\w-]+", w))


def _serve(document: dict[str, Any]) -> Iterator[str]:
    """Serve's schema, the names that it lets through, and our own settings."""
    from ray.serve.schema import ServeDeploySchema

    yield from unknown_names(document, ServeDeploySchema)
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        yield from schema_faults(error, ServeDeploySchema)
        return
    http = under(document, "http_options")
    host = http.get("host", "0.0.0.0")
    if http.get("port", 8000) not in PORTS:
        yield f"http_options.port: {http['port']} is none of {PORTS[0]} .. {PORTS[-1]}"
    for i, one in enumerate(document["applications"]):
        prefix = one.get("route_prefix")
        if prefix is not None and not prefix.startswith("/"):
            yield f"applications[{i}].route_prefix: {prefix!r} must begin with /"
        if one["import_path"] != OURS:
            yield f"applications[{i}].import_path: {one['import_path']!r} is not {OURS}"
            continue
        try:
            settings = serve_settings(one.get("args") or {})
        except MedvError as error:
            yield f"applications[{i}].args: {error}"
            continue
        if host not in LOOPBACK and not settings.keys_file:
            yield f"applications[{i}].args: others reach host {host}: keys_file is missing"


def unknown_names(node: Any, model: type[BaseModel], where: str = "") -> list[str]:
    """Names in a Serve file that its schema does not have, at all levels; Serve takes them."""
    from ray.serve import config, schema

    inner: dict[str, type[BaseModel]] = {
        "applications": schema.ServeApplicationSchema,
        "deployments": schema.DeploymentSchema,
        "http_options": schema.HTTPOptionsSchema,
        "grpc_options": schema.gRPCOptionsSchema,
        "logging_config": schema.LoggingConfig,
        "autoscaling_config": config.AutoscalingConfig,
        "backpressure_config": config.BackpressureConfig,
        "request_router_config": config.RequestRouterConfig,
        "ray_actor_options": schema.RayActorOptionsSchema,
    }
    bad = []
    for key, value in node.items():
        if key not in model.model_fields:
            near = get_close_matches(str(key), model.model_fields) or sorted(model.model_fields)
            bad.append(f"{where}{key}: no such field; there are: {', '.join(near)}")
        elif key in inner:
            for i, one in enumerate(value if isinstance(value, list) else [value]):
                at = f"[{i}]" if isinstance(value, list) else ""
                if isinstance(one, dict):
                    bad += unknown_names(one, inner[key], f"{where}{key}{at}.")
    return bad
