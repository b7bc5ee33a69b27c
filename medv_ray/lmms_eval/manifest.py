"""What lmms-eval finds under its entry-point group `lmms_eval.models`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(
    model_id="llada_medv", simple_class_path="medv_ray.lmms_eval.model.LladaMedv"
)
