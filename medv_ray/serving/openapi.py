"""The application that routes are put into, and the OpenAPI file that describes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from medv_ray import __version__
from medv_ray.serving.protocol import Wire

ANSWERS = {
    400: "The request is wrong; the error names the field, the rule and the way out.",
    401: "No valid API key.",
    403: "Without API keys, only clients on the same machine are answered.",
    404: "No such model.",
    408: "The body took too long to arrive.",
    413: "The body or a picture is too large.",
    415: "The body is no application/json, or compressed.",
    429: "Too many requests; Retry-After says when to come back.",
    431: "The headers are too large.",
    503: "No replica can answer now; Retry-After says when to come back.",
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "pattern": "^E[0-9]{4}$"},
            },
        }
    },
}
"""JSON schema of every error answer."""
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "medv"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["index", "message", "logprobs", "finish_reason"],
                "properties": {
                    "index": {"type": "integer"},
                    "message": {
                        "type": "object",
                        "required": ["role", "content"],
                        "properties": {
                            "role": {"const": "assistant"},
                            "content": {"type": "string"},
                        },
                    },
                    "logprobs": {"type": ["object", "null"]},
                    "finish_reason": {"enum": ["stop", "length"]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
            "additionalProperties": {"type": "integer"},
        },
        "medv": {
            "type": "array",
            "description": "One for each choice.",
            "items": {
                "type": "object",
                "required": ["confidence", "forward_passes", "seed", "warnings"],
                "properties": {
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                    "forward_passes": {"type": "integer"},
                    "seed": {"type": "integer"},
                    "warnings": {"type": "array", "items": {"type": "string"}},
                    "blanks": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name", "value", "confidence"],
                            "properties": {
                                "name": {"type": "string"},
                                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                                "probabilities": {
                                    "type": "object",
                                    "additionalProperties": {"type": "number"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""JSON schema of an answer that is not streamed."""
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
"""JSON schema of one event of a stream (`itemSchema` came with OpenAPI 3.2)."""


class Api(FastAPI):
    """Routes that read their bodies themselves: FastAPI's own errors would repeat what was sent."""

    def __init__(self) -> None:
        super().__init__(
            title="medv_ray",
            version=__version__,
            description="Answers about biomedical images by masked diffusion. Research use only.",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self.openapi_version = "3.2.0"  # the first that can describe a stream's events
        self._schemas: dict[str, Any] = {"Error": ERROR}

    def serve(
        self,
        method: str,
        path: str,
        route: Callable[..., Awaitable[Response]],
        body: type[Wire] | None = None,
        answers: dict[str, dict[str, Any]] | None = None,
        form: dict[str, Any] | None = None,
    ) -> None:
        """A route. `body` or `form`: what it takes; `answers`: its media types; all as OpenAPI has
        them."""
        extra: dict[str, Any] = {}
        if body is not None:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            self._schemas |= schema.pop("$defs", {}) | {body.__name__: schema}
            named = {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
            extra["requestBody"] = {"required": True, "content": {"application/json": named}}
        if form is not None:
            content = {"multipart/form-data": {"schema": form}}
            extra["requestBody"] = {"required": True, "content": content}
        few = (400, 401, 403, 404, 429, 503)
        refusals = ANSWERS if body is not None or form is not None else {k: ANSWERS[k] for k in few}
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        responses: dict[int | str, dict[str, Any]] = {
            k: {"description": v, "content": error} for k, v in refusals.items()
        }
        if answers is not None:
            responses[200] = {"content": answers}
        self.add_api_route(
            path,
            route,
            methods=[method],
            response_model=None,
            openapi_extra=extra,
            responses=responses,
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI file."""
        if self.openapi_schema is None:
            made = get_openapi(
                title=self.title,
                openapi_version=self.openapi_version,
                version=self.version,
                description=self.description,
                routes=self.routes,
            )
            made.setdefault("components", {}).setdefault("schemas", {}).update(self._schemas)
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            self.openapi_schema = made
        return self.openapi_schema
