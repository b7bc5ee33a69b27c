"""A PACS scored through Ray, which goes away in the middle."""

from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run
from medv_ray.errors import RunError
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.score import score
from tests.dicomweb_server import Pacs, Reply, picture, serving
from tests.integration import stub

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


def test_a_pacs_that_goes_away_ends_the_job_and_the_next_one_goes_on(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("CANARY-TOKEN")
    pacs = Pacs(authorization="Bearer CANARY-TOKEN")
    for number in range(12):
        pacs.add(picture(number))
    with serving(pacs):
        settings = ScoreSettings.model_validate(
            {
                "out": str(tmp_path / "run"),
                "archive": {
                    "archive": f"dicomweb+{pacs.url}", "question": "what is this?",
                    "chunk_rows": 2, "token_file": str(token),
                },
                "model": {"path": str(stub.write_model(tmp_path / "model"))},
                "pool": {"max_actors": 1},
            }
        )  # fmt: skip
        fetched: list[str] = []

        def away_after_five(method: str, path: str) -> Reply | None:
            fetched.extend([path] if "/series/" in path else [])
            return Reply(503, {"retry-after": "0"}) if len(fetched) > 5 else None

        pacs.faults.append(away_after_five)
        with pytest.raises(RunError, match="E1107: the PACS: it answered 503") as caught:
            score(settings, factory=stub.STUB)
        assert "2.25" not in str(caught.value)
        pacs.faults.clear()
        outcome = score(settings, factory=stub.STUB)
    assert outcome.summary is not None
    assert (outcome.exit_code, outcome.summary.rows, outcome.summary.answered) == (0, 12, 12)
    ids = [i for t in read_run(str(tmp_path / "run")) for i in t.column("id").to_pylist()]
    assert len(set(ids)) == len(ids) == 12
