"""HTML files to be read offline: no script, no link; all words of rows are escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def rendered(template: str, **values: Any) -> str:
    """A page of this folder's templates. Raises jinja2.UndefinedError for a value that lacks."""
    folder = files("medv_ray.evaluation")
    pages = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
    )
    return pages.get_template(template).render(**values)
