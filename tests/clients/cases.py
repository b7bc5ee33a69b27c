"""What every client is asked to do, and a JSON line for each thing that it did. No third-party
imports: it runs in each client's own environment, beside the file that uses it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Given:
    """From `run_clients.py`, by the environment."""

    url: str
    """With /v1."""
    key: str
    model: str
    image: str
    """Path of a JPEG."""
    first: str
    second: str
    """Questions of the first and the second turn."""
    answers: tuple[str, str]
    """What plain HTTP was answered, the first answer being the second question's history."""

    @property
    def data(self) -> bytes:
        with open(self.image, "rb") as file:
            return file.read()

    @property
    def data_url(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.data).decode()}"

    @property
    def content(self) -> list[dict[str, Any]]:
        """Of the first message, as OpenAI writes it."""
        picture = {"type": "image_url", "image_url": {"url": self.data_url}}
        return [{"type": "text", "text": self.first}, picture]


GIVEN = json.loads(os.environ.get("MEDV_CLIENT", "null"))
given = Given(**{**GIVEN, "answers": tuple(GIVEN["answers"])}) if GIVEN else None


def case(name: str, refused: str = "") -> Callable[[Callable[[Given], Any]], None]:
    """Run a function now. It returns the texts of both turns, or of the first alone; with
    `refused` it must fail with an error that names this field."""

    def run(work: Callable[[Given], Any]) -> None:
        assert given is not None
        try:
            texts = work(given)
        except Exception as error:
            said = str(error)
            worked = bool(refused) and f"{refused}:" in said
            note = f"{refused} refused" if worked else f"{type(error).__name__}: {said}"[:300]
        else:
            want = given.answers[: len(texts)]
            worked = not refused and tuple(texts) == want
            note = "" if worked else f"got {texts!r}, plain HTTP got {want!r}"[:300]
        print(json.dumps({"case": name, "worked": worked, "note": note}), flush=True)

    return run
