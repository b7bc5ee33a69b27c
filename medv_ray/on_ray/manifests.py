"""What may stand in a Kubernetes manifest of ours: KubeRay's kinds and those beside them.

The fields that cluster/kuberay uses, and some that users add; a Kubernetes server drops what it
does not know. Source: KubeRay's ray.io/v1 of August 2026 and Kubernetes' core v1, by their names.

Longer than a module should be: it is one list of fields.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
RayName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[
    str,
    BeforeValidator(lambda given: str(given) if type(given) in (int, float) else given),
    Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"),
]
"""Kubernetes takes numbers too."""
UNITS: dict[str, float] = {"": 1, "m": 1e-3} | {
    name: base**power
    for base, names in ((1000, ("k", "M", "G", "T")), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, name in enumerate(names, 1)
}


def amount(quantity: str) -> float:
    """The number that a quantity stands for."""
    number = quantity.rstrip("mkMGTi")
    return float(number) * UNITS[quantity.removeprefix(number)]


Port = Annotated[int, Field(ge=1, le=65535)]
Path = Annotated[str, Field(pattern="^/")]
GPU: Literal["nvidia.com/gpu"] = "nvidia.com/gpu"
Amounts = dict[Literal["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"], Quantity]


class Strict(BaseModel):
    """No unknown field, and no number where text is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resources(Strict):
    requests: Amounts
    limits: Amounts

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        missing = {"cpu", "memory"} - self.limits.keys()
        if missing:
            raise ValueError(f"limits: {' and '.join(sorted(missing))} must be set")
        if self.requests.get(GPU) != self.limits.get(GPU):
            raise ValueError(f"{GPU} must be the same in requests and limits")
        if amount(self.limits.get(GPU, "0")) % 1:
            raise ValueError(f"{GPU}: a pod has whole ones")
        return self


class KeyRef(Strict):
    name: Name
    key: str
    optional: bool = False


class EnvSource(Strict):
    secretKeyRef: KeyRef | None = None
    configMapKeyRef: KeyRef | None = None


class Env(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    valueFrom: EnvSource | None = None


class NameRef(Strict):
    name: Name
    optional: bool = False


class EnvFrom(Strict):
    secretRef: NameRef | None = None
    configMapRef: NameRef | None = None


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities | None = None
    readOnlyRootFilesystem: bool | None = None
    runAsNonRoot: bool | None = None


class Seccomp(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    seccompProfile: Seccomp | None = None
    runAsUser: PositiveInt | None = None
    runAsGroup: PositiveInt | None = None
    fsGroup: PositiveInt | None = None


class ContainerPort(Strict):
    name: Name | None = None
    containerPort: Port
    protocol: Literal["TCP", "UDP"] = "TCP"


class Mount(Strict):
    name: Name
    mountPath: Path
    subPath: str | None = None
    readOnly: bool = False


class Container(Strict):
    name: Name
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[Env] = []
    envFrom: list[EnvFrom] = []
    resources: Resources
    ports: list[ContainerPort] = []
    volumeMounts: list[Mount] = []
    securityContext: ContainerSecurity


class Claim(Strict):
    claimName: Name
    readOnly: bool = False


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None
    sizeLimit: Quantity | None = None


class SecretVolume(Strict):
    secretName: Name
    defaultMode: int | None = None


class HostPath(Strict):
    path: Path
    type: str | None = None


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    secret: SecretVolume | None = None
    hostPath: HostPath | None = None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if len([one for name, one in self if name != "name" and one is not None]) != 1:
            raise ValueError(f"{self.name}: one of {', '.join(list(Volume.model_fields)[1:])}")
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class PodSpec(Strict):
    securityContext: PodSecurity
    serviceAccountName: Name | None = None
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    imagePullSecrets: list[NameRef] = []
    restartPolicy: Literal["Never"] | None = None
    """KubeRay refuses others, as its autoscaler starts new pods in the place of old ones."""
    terminationGracePeriodSeconds: NonNegativeInt | None = None
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _volumes_are_there(self) -> Self:
        there = {one.name for one in self.volumes}
        lost = [m.name for c in self.containers for m in c.volumeMounts if m.name not in there]
        if lost:
            raise ValueError(f"volumeMounts: there is no volume {', '.join(lost)}")
        return self


class PodMetadata(Strict):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class PodTemplate(Strict):
    metadata: PodMetadata = PodMetadata()
    spec: PodSpec


class Auth(Strict):
    mode: Literal["token"]
    secretName: Name | None = None


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: PositiveInt
    env: list[Env] = []
    securityContext: ContainerSecurity
    resources: Resources | None = None
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    template: PodTemplate

    @model_validator(mode="after")
    def _no_work_on_it(self) -> Self:
        if self.rayStartParams.get("num-cpus") != "0":
            raise ValueError('rayStartParams: num-cpus must be "0", so that no actor lies there')
        if any(GPU in one.resources.limits for one in self.template.spec.containers):
            raise ValueError(f"the head must not have {GPU}")
        return self


class WorkerGroup(Strict):
    groupName: Name
    replicas: NonNegativeInt | None = None
    minReplicas: NonNegativeInt
    maxReplicas: NonNegativeInt
    priority: int | None = None
    idleTimeoutSeconds: PositiveInt | None = None
    labels: dict[str, str] = {}
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.minReplicas > self.maxReplicas:
            raise ValueError(f"minReplicas={self.minReplicas} > maxReplicas={self.maxReplicas}")
        return self


class RedisCredential(Strict):
    value: str | None = None
    valueFrom: EnvSource | None = None


class GcsFaultTolerance(Strict):
    redisAddress: Annotated[str, Field(pattern=r"^[^:]+:[0-9]+$")]
    redisUsername: RedisCredential | None = None
    redisPassword: RedisCredential
    externalStorageNamespace: str | None = None


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^2\.(6[0-9]|[7-9][0-9]|[1-9][0-9]{2})\.")]
    authOptions: Auth
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [group.groupName for group in self.workerGroupSpecs]
        if len(set(names)) < len(names):
            raise ValueError("workerGroupSpecs: a groupName is given twice")
        return self


class RayMetadata(Metadata):
    """KubeRay makes longer names of it, and refuses one that leaves no room for that."""

    name: Annotated[RayName, Field(max_length=47)]


class RayManifest(Strict):
    apiVersion: Literal["ray.io/v1"]
    metadata: RayMetadata


class RayCluster(RayManifest):
    kind: Literal["RayCluster"]
    spec: ClusterSpec

    @model_validator(mode="after")
    def _dashboard_is_closed(self) -> Self:
        if self.spec.headGroupSpec.rayStartParams.get("dashboard-host") != "127.0.0.1":
            raise ValueError('spec.headGroupSpec: dashboard-host must be "127.0.0.1"')
        return self


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode"] = "K8sJobMode"
    entrypointNumCpus: float | None = None
    backoffLimit: NonNegativeInt = 0
    activeDeadlineSeconds: PositiveInt | None = None
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: NonNegativeInt = 0
    suspend: bool = False
    rayClusterSpec: ClusterSpec


class RayJob(RayManifest):
    kind: Literal["RayJob"]
    spec: JobSpec


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy
    serveConfigV2: str
    excludeHeadPodFromServeSvc: bool = False
    rayClusterConfig: ClusterSpec


class RayService(RayManifest):
    kind: Literal["RayService"]
    spec: ServiceSpec


class ClaimResources(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]]
    storageClassName: str | None = None
    resources: ClaimResources


class PersistentVolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class ServicePort(Strict):
    name: Name | None = None
    port: Port
    targetPort: Port | None = None


class ServiceFields(Strict):
    type: Literal["ClusterIP"] = "ClusterIP"
    selector: dict[str, str]
    ports: list[ServicePort]


class Service(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceFields


class Selector(Strict):
    matchLabels: dict[str, str]


class Strategy(Strict):
    type: Literal["Recreate", "RollingUpdate"]


class DeploymentSpec(Strict):
    replicas: NonNegativeInt = 1
    strategy: Strategy | None = None
    selector: Selector
    template: PodTemplate

    @model_validator(mode="after")
    def _selects_its_pods(self) -> Self:
        if not self.selector.matchLabels.items() <= self.template.metadata.labels.items():
            raise ValueError("selector: matchLabels are not those of the template")
        return self


class Deployment(Strict):
    apiVersion: Literal["apps/v1"]
    kind: Literal["Deployment"]
    metadata: Metadata
    spec: DeploymentSpec


class Patch(Strict):
    path: str


class Image(Strict):
    name: str
    newName: str | None = None
    newTag: str | None = None


class Kustomization(Strict):
    apiVersion: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: Name | None = None
    resources: list[str]
    patches: list[Patch] = []
    images: list[Image] = []


KINDS: dict[str, type[Strict]] = {
    one.__name__: one
    for one in (
        RayCluster, RayJob, RayService, PersistentVolumeClaim, Service, Deployment, Kustomization,
    )
}  # fmt: skip
