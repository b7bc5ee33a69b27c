"""A few hundred made-up requests; tests/serving_fuzz.py makes as many as one wants."""

from medv_ray.serving.app import make_app
from medv_ray.serving.service import Service
from tests.serving_fuzz import CHAT, fuzz
from tests.unit.serving.conftest import KEYS


def test_made_up_requests_are_answered_or_refused(service: Service) -> None:
    counts = fuzz(make_app(service, KEYS), 300)
    assert counts.total() >= 280
    answered = sum(n for (path, _, status), n in counts.items() if (path, status) == (CHAT, 200))
    assert answered > 10, "some are valid"
    assert service.stepper.ongoing == 0
    assert service.health() is None
