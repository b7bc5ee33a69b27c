"""What the package asks for, or its tests are run with, is no GPL package."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# names as PEP 503 has them; each is GPL by its own metadata
GPL = {"pylibjpeg-libjpeg", "pyqt5", "pyqt6", "mysqlclient", "unidecode", "pyinstaller"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def test_no_gpl_package_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    asked += [line for line in lines if line.strip() and not line.startswith("#")]
    names = {name_of(one) for one in asked}
    assert {"pydicom", "python-gdcm", "imagecodecs"} <= names
    assert not names & GPL
    assert name_of("PyLibJPEG_libjpeg>=2 ; extra") in GPL
    # pylibjpeg's own extra `all` brings it
    assert not any(re.match(r"pylibjpeg\s*\[", one) for one in asked)
