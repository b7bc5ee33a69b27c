"""Which kind of node starts first: asked of Ray's own schedulers, with the files of cluster/."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler.node_launch_exception import NodeLaunchException

from medv_ray.on_ray.private_ray import filled_out
from medv_ray.on_ray.spot import spot_first

CLUSTER = Path(__file__).parents[3] / "cluster"
NOW = 2_000_000_000
REFUSED = NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
ACTOR, DECODER = {"GPU": 1.0}, {"CPU": 1.0}


def started(waiting: list[dict[str, float]], refused: tuple[str, ...] = ()) -> dict[str, int]:
    """Kinds of nodes that the autoscaler of cluster/aws.yaml would start for what waits."""
    config = filled_out(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    tracker = NodeProviderAvailabilityTracker(timer=lambda: NOW, ttl=1800)
    for kind in refused:
        tracker.update_node_availability(kind, NOW, REFUSED)
    summary = tracker.summary()

    def score(resources: Any, demands: Any, kind: str) -> Any:
        return spot_first(resources, demands, kind, node_availability_summary=summary)

    found, _ = get_nodes_for(
        config["available_node_types"], {}, "head", config["max_workers"], waiting, score
    )
    return dict(found)


@pytest.mark.parametrize(
    ("waiting", "refused", "kinds"),
    [
        ([ACTOR] * 3, (), {"gpu_spot": 3}),
        ([ACTOR] * 3, ("gpu_spot",), {"gpu_on_demand": 3}),
        ([ACTOR] * 10, (), {"gpu_spot": 8, "gpu_on_demand": 2}),
        ([ACTOR] * 6, ("gpu_spot",), {"gpu_on_demand": 4, "gpu_spot": 2}),
        ([ACTOR] * 3, ("gpu_spot", "gpu_on_demand"), {"gpu_spot": 3}),
        ([DECODER] * 20, (), {"cpu_spot": 2}),
        ([DECODER] * 20, ("cpu_spot",), {"cpu_on_demand": 2}),
        ([{"GPU": 2.0}], (), {}),
    ],
)
def test_on_demand_after_a_refusal(
    waiting: list[dict[str, float]], refused: tuple[str, ...], kinds: dict[str, int]
) -> None:
    assert started(waiting, refused) == kinds


@pytest.mark.parametrize(
    ("given_up", "kind"), [((), "gpu-spot"), (("gpu-spot",), "gpu-on-demand")], ids=["spot", "late"]
)
def test_groups_of_pods(given_up: tuple[str, ...], kind: str) -> None:
    """KubeRay's priorities, in Ray's autoscaler v2."""
    from ray.autoscaler._private.kuberay import autoscaling_config
    from ray.autoscaler._private.util import validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    manifest = yaml.safe_load((CLUSTER / "kuberay/cluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "default"
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(manifest)
    validate_config(config)
    assert config["idle_timeout_minutes"] == 10
    head = config["available_node_types"]["headgroup"]
    assert (head["resources"]["CPU"], head["resources"]["GPU"], head["max_workers"]) == (0, 0, 0)
    kinds = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs={name: one for name, one in kinds.items() if name != "headgroup"},
            max_num_nodes=20,
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make(ACTOR) for _ in range(2)]
            ),
            recoverable_resource_availabilities=dict.fromkeys(given_up, 0.0),
        )
    )
    assert {one.instance_type: one.count for one in reply.to_launch} == {kind: 2}
