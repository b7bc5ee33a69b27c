"""The README's Python is run as it stands."""

import re
from pathlib import Path

from medv_ray.data import synthetic

ROOT = Path(__file__).parents[2]


def test_the_example_answers(tmp_path, monkeypatch, capsys):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "demo-run" / "images").mkdir(parents=True)
    row = next(r for r in synthetic.rows(60) if r.question == "How many large cells are there?")
    (tmp_path / "demo-run" / "images" / "0.png").write_bytes(row.image)
    (tmp_path / "medv_ray").symlink_to(ROOT / "medv_ray")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(row.answer)
