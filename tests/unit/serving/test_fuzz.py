"""Some made-up requests; tests/serving_fuzz.py makes as many as one wants."""

import json

import pytest
import schemathesis

from medv_ray.serving.app import make_app
from medv_ray.serving.service import Service
from tests.serving_fuzz import CHAT, HEADERS, SHORT, fuzz
from tests.unit.serving.client import body_of, tiles
from tests.unit.serving.conftest import KEYS


@pytest.mark.slow
@pytest.mark.integration
def test_made_up_requests_are_answered_or_refused(service: Service) -> None:
    counts = fuzz(make_app(service, KEYS), 150)
    assert counts.total() >= 140
    answered = sum(n for (path, _, status), n in counts.items() if (path, status) == (CHAT, 200))
    assert answered > 5, "some are valid"
    assert service.scheduler.ongoing == 0
    assert service.health() is None


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_as_the_openapi_file_says(service: Service, stream: bool) -> None:
    app = make_app(service, KEYS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
    body = body_of(tiles()[0], stream=stream, diffusion=SHORT)
    case = schema[CHAT]["POST"].Case(body=json.loads(json.dumps(body)))
    response = case.call(headers=HEADERS)
    assert response.status_code == 200
    case.validate_response(response, headers=HEADERS)
