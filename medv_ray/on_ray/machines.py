"""What may stand in the parts of a `ray up` file that Ray's own schema leaves open: the cloud's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from medv_ray.on_ray.manifests import Strict


class AwsProvider(Strict):
    type: Literal["aws"]
    region: str
    availability_zone: str | None = None
    cache_stopped_nodes: bool = True
    use_internal_ips: bool = False
    security_group: dict[str, object] | None = None


class SpotPrice(Strict):
    MaxPrice: str


class Market(Strict):
    MarketType: Literal["spot"]
    SpotOptions: SpotPrice | None = None


class EbsDisk(Strict):
    VolumeSize: PositiveInt
    VolumeType: str | None = None
    Iops: PositiveInt | None = None
    Throughput: PositiveInt | None = None
    Encrypted: bool | None = None


class Device(Strict):
    DeviceName: str
    Ebs: EbsDisk


class Profile(Strict):
    Arn: str | None = None
    Name: str | None = None


class AwsNode(Strict):
    """Parameters of EC2's RunInstances."""

    InstanceType: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")]
    InstanceMarketOptions: Market | None = None
    BlockDeviceMappings: list[Device] = []
    ImageId: str
    """Ray's own choice has NVIDIA's driver of 2021, which knows no CUDA 13."""
    KeyName: str | None = None
    SubnetIds: list[str] | None = None
    SecurityGroupIds: list[str] | None = None
    IamInstanceProfile: Profile | None = None


class GcpProvider(Strict):
    type: Literal["gcp"]
    region: str
    availability_zone: str
    project_id: str
    use_internal_ips: bool = False

    @model_validator(mode="after")
    def _zone_is_of_the_region(self) -> Self:
        if not self.availability_zone.startswith(f"{self.region}-"):
            raise ValueError(f"availability_zone {self.availability_zone} is not of {self.region}")
        return self


class DiskParams(Strict):
    diskSizeGb: PositiveInt
    sourceImage: str
    diskType: str | None = None


class Disk(Strict):
    boot: bool
    autoDelete: bool
    type: Literal["PERSISTENT"]
    initializeParams: DiskParams


class Accelerator(Strict):
    acceleratorType: str
    acceleratorCount: PositiveInt


class Item(Strict):
    key: str
    value: str


class Items(Strict):
    items: list[Item]


class Scheduling(Strict):
    preemptible: bool | None = None
    onHostMaintenance: Literal["TERMINATE", "MIGRATE"] | None = None
    automaticRestart: bool | None = None


class ServiceAccount(Strict):
    email: str
    scopes: list[str]


class GcpNode(Strict):
    """Fields of Compute Engine's instances.insert."""

    machineType: str
    disks: list[Disk]
    guestAccelerators: list[Accelerator] = []
    metadata: Items | None = None
    scheduling: list[Scheduling] = []
    serviceAccounts: list[ServiceAccount] = []
    networkInterfaces: list[dict[str, object]] = []


class LocalProvider(Strict):
    type: Literal["local"]
    head_ip: str
    worker_ips: Annotated[list[str], Field(min_length=1)]


PROVIDERS: dict[str, tuple[type[Strict], type[Strict] | None]] = {
    "aws": (AwsProvider, AwsNode),
    "gcp": (GcpProvider, GcpNode),
    "local": (LocalProvider, None),
}
"""Of each `provider.type`: its own fields, and those of a `node_config`."""
