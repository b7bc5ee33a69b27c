"""cluster/serve.yaml: names that Ray itself lets through are checked here."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medv_ray.on_ray.options import serve_settings

CLUSTER = Path(__file__).parents[3] / "cluster"
SERVE = yaml.safe_load((CLUSTER / "serve.yaml").read_text())


def unknown_keys(node: Any, model: type[BaseModel], where: str = "") -> list[str]:
    """Names in a Serve YAML that its schema does not have; Serve itself takes them silently."""
    from ray.serve.config import AutoscalingConfig, BackpressureConfig
    from ray.serve.schema import (
        DeploymentSchema,
        HTTPOptionsSchema,
        LoggingConfig,
        RayActorOptionsSchema,
        ServeApplicationSchema,
    )

    inner: dict[str, type[BaseModel]] = {
        "applications": ServeApplicationSchema,
        "deployments": DeploymentSchema,
        "http_options": HTTPOptionsSchema,
        "logging_config": LoggingConfig,
        "autoscaling_config": AutoscalingConfig,
        "backpressure_config": BackpressureConfig,
        "ray_actor_options": RayActorOptionsSchema,
    }
    bad = []
    for key, value in node.items():
        if key not in model.model_fields:
            bad.append(where + key)
        elif key in inner:
            many = value if isinstance(value, list) else [value]
            for i, one in enumerate(many):
                bad += unknown_keys(one, inner[key], f"{where}{key}[{i}].")
    return bad


def test_serve_yaml_has_known_names_only() -> None:
    from ray.serve.schema import ServeDeploySchema

    assert unknown_keys(SERVE, ServeDeploySchema) == []
    ServeDeploySchema.model_validate(SERVE)
    wrong = json.loads(json.dumps(SERVE))
    wrong["applications"][0]["route_prefx"] = "/"
    wrong["http_options"]["prt"] = 1
    assert unknown_keys(wrong, ServeDeploySchema) == [
        "http_options[0].prt",
        "applications[0].route_prefx",
    ]


def test_serve_yaml_has_settings_of_ours() -> None:
    [application] = SERVE["applications"]
    settings = serve_settings(application["args"])
    assert settings.served_name == "medv-tiny"
    module, _, name = application["import_path"].partition(":")
    source = CLUSTER.parent / Path(*module.split(".")).with_suffix(".py")
    assert f"\ndef {name}(args: " in source.read_text()
