"""What a client sends of a picture."""

import base64

import pytest

from medv_ray.client.endpoint import data_url


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
