"""What a client sends of a picture, and what it tells of an error answer."""

import base64
import json

import httpx2
import pytest

from medv_ray.client.endpoint import Endpoint, data_url, error_of, refusal
from medv_ray.errors import RunError


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"MM\0+", "image/tiff"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (bytes(128) + b"DICM", "application/dicom"),
        (b"RIFF\0\0\0\0WAVE", "application/octet-stream"),
        (b"BM of 2021", "application/octet-stream"),
    ],
)
def test_the_type_of_a_picture_is_its_format(start: bytes, kind: str) -> None:
    data = start + bytes(300)
    assert data_url(data) == f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("error", "status", "code", "said"),
    [
        ({"code": "E1703"}, 413, "E1703", "413 (E1703)"),
        ({"code": "content_filter"}, 400, "E1701", "400 (content_filter)"),
        (
            {"code": None, "type": "invalid_request_error"},
            422,
            "E1701",
            "422 (invalid_request_error)",
        ),
        ({"code": "Maria /home/maria", "type": 5}, 500, "E1708", "500"),
        ({"code": "content filter: lung"}, 429, "E1707", "429"),
        ({"code": "lung_cancer"}, 400, "E1701", "400"),
        ({"code": ["content_filter"]}, 418, "E1708", "418"),
        ("lung", 404, "E1706", "404"),
    ],
)
def test_an_error_answer_is_told_without_its_words(
    error: object, status: int, code: str, said: str
) -> None:
    found = refusal(status, json.dumps({"error": error}).encode())
    assert (found.code, found.detail) == (code, f"the endpoint answered {said}.")
    assert "lung" not in str(error_of({"message": "the lung", "code": "E1708"}))


@pytest.mark.parametrize("body", [b"", b"<p>lung", b"[]", b"[" * 20_000, b'{"detail": "lung"}'])
def test_an_error_answer_of_another_form(body: bytes) -> None:
    assert refusal(502, body).detail == "the endpoint answered 502."


def test_a_body_that_cannot_be_decoded_is_the_endpoints_error() -> None:
    def bad(_: httpx2.Request) -> httpx2.Response:
        broken = {"content-encoding": "gzip", "content-type": "text/event-stream"}
        return httpx2.Response(200, headers=broken, stream=httpx2.ByteStream(b"no gzip"))

    endpoint = Endpoint("http://127.0.0.1:9")
    endpoint._client = httpx2.Client(transport=httpx2.MockTransport(bad), base_url=endpoint.url)
    with pytest.raises(RunError, match="E1708"):
        endpoint.models()
    with pytest.raises(RunError, match="E1708"):
        list(endpoint.stream({}))
