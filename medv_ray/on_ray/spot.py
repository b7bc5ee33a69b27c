"""Which kind of node Ray's autoscaler (v1) starts first: spot, unless the cloud just refused it.

cluster/aws.yaml names `spot_first` in RAY_AUTOSCALER_UTILIZATION_SCORER. Ray's own scorer ranks by
fit alone and so asks for the same kind for ever. Ray's autoscaler v2 ranks a kind lower only after
a machine came and Ray did not start on it.
"""

from __future__ import annotations

from typing import Any

SPOT = "spot"
"""What the name of a kind of node ends in where it can be taken away."""


def spot_first(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Rank of a kind of node for what waits, higher first; None where nothing of it fits there.

    Fit comes first; among kinds that fit alike those that the cloud did not refuse in the last half
    hour (AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S), and of those spot.
    """
    from medv_ray.on_ray.private_ray import fit_of

    fit = fit_of(node_resources, resources, node_type, node_availability_summary)
    if fit is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    there = record is None or record.is_available
    return (*fit, there, node_type.endswith(SPOT))
