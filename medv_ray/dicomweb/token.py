"""The token of a PACS, which lies in a file and nowhere else."""

from __future__ import annotations

import base64
import os

from medv_ray.errors import SettingsError

VARIABLE = "MEDV_DICOMWEB_TOKEN_FILE"
"""Environment variable: names the file, where no setting does."""
MOST_BYTES = 2**14


class Token:
    """A token, read again when the server refuses it: it may have been renewed meanwhile."""

    def __init__(self, path: str) -> None:
        """Raises SettingsError E1001 for a file that holds none."""
        self._path = path
        self._header = self._read()

    def header(self) -> str:
        """The value of `Authorization`."""
        return self._header

    def renew(self, refused: str) -> bool:
        """Read the file again; whether it holds another token than the one that was refused."""
        self._header = self._read()
        return self._header != refused

    def _read(self) -> str:
        try:
            with open(self._path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            said = f"--token-file: it cannot be read ({type(error).__name__})."
            raise SettingsError("E1001", f"{said} Each machine of a job needs it.") from None
        text = data.decode("ascii", errors="replace").strip()
        if not text or len(data) > MOST_BYTES or not (text.isascii() and text.isprintable()):
            rule = "one line: a token, or `Basic user:password`."
            raise SettingsError("E1001", f"--token-file: the file holds {rule}")
        word, _, rest = text.partition(" ")
        if word.lower() == "basic" and ":" in rest:
            return f"Basic {base64.b64encode(rest.strip().encode()).decode()}"
        return text if rest else f"Bearer {text}"


def token_of(path: str | None) -> Token | None:
    """The token of a file; without one, of the file that the environment names, if it does."""
    path = path or os.environ.get(VARIABLE) or None
    return None if path is None else Token(path)
