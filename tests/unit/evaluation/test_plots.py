import importlib
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from medv_ray.errors import SettingsError
from medv_ray.evaluation.plots import Panel, Series, chart

PANELS = [
    Panel("step", "loss", [Series("a $x$ <b>", [1, 2], [3.0, 2.0], [2.5, 1.5], [3.5, 2.5])]),
    Panel("steps", "share", [Series("one", [1, 4], [0.1, 0.2], points=True)] * 2, log_x=True),
]


def test_the_same_values_give_the_same_text() -> None:
    assert chart("title", PANELS) == chart("title", PANELS)
    assert chart("title", PANELS) != chart("title", PANELS[:1])


def test_a_chart_is_xml_that_fetches_nothing() -> None:
    text = chart("<script>$", PANELS)
    root = ET.fromstring(text)
    assert "DOCTYPE" not in text
    assert "<script" not in text
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith("#")


def test_whole_numbers_have_whole_ticks() -> None:
    def ticks(x: list[float]) -> list[str]:
        text = chart("t", [Panel("layer", "y", [Series("one", x, [0.5] * len(x))])])
        return re.findall(r"<!-- ([-\d.]+) -->", text.split('id="matplotlib.axis_2"')[0])

    assert ticks([1, 2]) == ["1", "2"]
    assert "1.2" in ticks([1.0, 1.5])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "medv_ray.evaluation.plots")
    with pytest.raises(SettingsError, match=r"E1003.*medv-ray\[report\]"):
        importlib.import_module("medv_ray.evaluation.plots")
