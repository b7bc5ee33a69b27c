"""A folder with a base model and a dataset, made once a module."""

from pathlib import Path

import pytest

from tests.unit.training import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    tiny.settings(folder)
    return folder
