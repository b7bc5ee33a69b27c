"""Models are local folders. A name of the hub is a folder that is not there: nothing is asked of a
network, whether there is one or not.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from medv_ray.data.prompts import load_tokenizer
from medv_ray.errors import CheckpointError
from medv_ray.on_ray.options import model_digests
from medv_ray.settings import TOY, ModelSettings

NAMES = ["GSAI-ML/LLaDA-8B-Instruct", "hf://GSAI-ML/LLaDA-V", "https://huggingface.co/a/b"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> Any:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_hub_is_refused(name: str) -> None:
    for call in (lambda: model_digests(ModelSettings(path=name)), lambda: load_tokenizer(name)):
        with pytest.raises(CheckpointError, match="E1401"):
            call()


def test_a_local_folder_needs_none() -> None:
    assert len(model_digests(ModelSettings(path=str(TOY)))[0]) == 64
    assert len(load_tokenizer(TOY)) > 100
