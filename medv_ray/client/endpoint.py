"""What a client of an endpoint needs: address, key, bodies of requests, errors as ours."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2

from medv_ray.data.prompts import Turn
from medv_ray.errors import (
    CATALOGUE,
    SHOW_NAMES,
    MedvError,
    RunError,
    SettingsError,
    shows_names,
)
from medv_ray.formats import HEAD_BYTES, MEDIA_TYPES, format_of
from medv_ray.loopback import no_proxy

KEY = "MEDV_API_KEY"
"""Environment variable: the client's key. It is no flag, as others see a process's flags."""
CHAT = "/v1/chat/completions"
CONNECT_S = 10.0
CODES = {400: "E1701", 401: "E1702", 403: "E1705", 404: "E1706", 413: "E1703", 429: "E1707"}
CODES[422] = CODES[400]
"""Catalogue code by HTTP status, for endpoints that say none; E1708 for those not named."""
KNOWN = {
    "BadRequestError", "NotFoundError", "content_filter", "content_policy_violation",
    "context_length_exceeded", "insufficient_quota", "invalid_api_key", "invalid_prompt",
    "invalid_request_error", "model_not_found", "rate_limit_exceeded", "server_error",
    "string_above_max_length", "unsupported_parameter", "unsupported_value", *CATALOGUE,
}  # fmt: skip
"""Error codes that are shown: OpenAI's, vLLM's, ours. Any other word may be one of a question."""


def address(url: str) -> str:
    """An endpoint's URL without what clients add: path /v1, a last slash. Raises SettingsError."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise SettingsError(
            "E1001", f"--url: expected http://HOST:PORT; a key comes from the environment's {KEY}."
        )
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1")


def headers() -> dict[str, str]:
    """Of every request: the key of the environment. Raises SettingsError E1702."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("E1702", f"{KEY}: a key consists of printable ASCII characters.")
    return {"authorization": f"Bearer {key}"} if key else {}


def messages_of(
    question: str, images: Sequence[bytes], history: Sequence[Turn] = ()
) -> list[dict[str, Any]]:
    """A dialogue in OpenAI's format; the images go into its first message."""
    turns = [*history, Turn("user", question)]
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in turns]
    if images:
        shown = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in images]
        messages[0]["content"] = [*shown, {"type": "text", "text": turns[0].text}]
    return messages


def data_url(image: bytes) -> str:
    """An image file as text."""
    name = format_of(image[:HEAD_BYTES])
    # what is no picture is sent too: the endpoint says what is wrong with it
    kind = "application/octet-stream" if name is None else MEDIA_TYPES[name]
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def refusal(status: int, body: bytes) -> MedvError:
    """What an answer other than 200 says, made fit for a terminal."""
    return error_of(error_object(body), status)


def error_object(body: bytes) -> Any:
    """What stands under `error` in an answer; None where nothing does."""
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def error_code(error: Any) -> str:
    """The code, or else the type, of an error object, if it is a known one."""
    said = error if isinstance(error, dict) else {}
    given = [said.get(name) for name in ("code", "type")]
    return next((one for one in given if isinstance(one, str) and one in KNOWN), "")


def error_of(error: Any, status: int = 503) -> MedvError:
    """An error object of an answer or a stream.

    The endpoint's own words may quote what it was asked: they are shown where names are.
    """
    given, said = error_code(error), error.get("message") if isinstance(error, dict) else None
    code = given if given in CATALOGUE else CODES.get(status, "E1708")
    detail = f"the endpoint answered {status}{given and f' ({given})'}."
    if said and shows_names():
        detail = printable(f"{detail} It says: {said}")[:300]
    elif said:
        detail += f" {SHOW_NAMES}=1 shows its words."
    kind = SettingsError if code == "E1702" else RunError
    return kind(code, detail)


def silence(url: str, error: httpx2.HTTPError) -> MedvError:
    """A request that came to nothing."""
    return RunError("E1708", f"{url} does not answer ({type(error).__name__}). Is it running?")


def printable(text: str) -> str:
    """Text without what would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


class Endpoint:
    """An endpoint for a client that waits. Call `close` at the end."""

    def __init__(self, url: str, timeout_s: float = 120.0) -> None:
        """`timeout_s`: between two pieces of an answer. Raises SettingsError."""
        self.url = address(url)
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S)
        self._client = httpx2.Client(
            base_url=self.url,
            headers=headers(),
            timeout=timeout,
            mounts=no_proxy(httpx2.URL(self.url).host),
        )

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists, with a text `id` each. Raises MedvError."""
        try:
            response = self._client.get("/v1/models")
        except httpx2.RequestError as error:
            raise silence(self.url, error) from None
        if response.status_code != 200:
            raise refusal(response.status_code, response.content)
        try:
            found = [one for one in response.json()["data"] if isinstance(one["id"], str)]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = []
        if not found:
            raise RunError("E1706", f"{self.url} lists no model; is it an endpoint like OpenAI's?")
        return found

    def model(self, name: str | None) -> dict[str, Any]:
        """The entry of a name, or the first. Raises MedvError."""
        found = self.models()
        if name is None:
            return found[0]
        known = ", ".join(printable(one["id"])[:60] for one in found[:20])
        for one in found:
            if one["id"] == name:
                return one
        raise SettingsError("E1706", f"--model: there is no such model there; there are: {known}.")

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of an answer. Closing the iterator leaves. Raises MedvError."""
        try:
            with self._client.stream("POST", CHAT, json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, response.read())
                for event in httpx2.EventSource(response):
                    if event.data == "[DONE]":
                        return
                    yield self._chunk(event)
        except httpx2.RequestError as error:
            raise silence(self.url, error) from None
        raise RunError("E1708", f"{self.url} ended an answer in the middle.")

    def _chunk(self, event: httpx2.ServerSentEvent) -> dict[str, Any]:
        try:
            chunk = event.json()
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            raise RunError("E1708", f"{self.url} sent something that is no JSON object.")
        if "error" in chunk:
            raise error_of(chunk["error"])
        return chunk

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
