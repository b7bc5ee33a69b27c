"""The engine: requests in, answers and denoising states out."""

from medv_ray.engine.choices import Choice
from medv_ray.engine.engine import Engine
from medv_ray.engine.predictor import Predictor
from medv_ray.engine.request import Answer, Counters, Request, View, row_seed

__all__ = ["Answer", "Choice", "Counters", "Engine", "Predictor", "Request", "View", "row_seed"]
