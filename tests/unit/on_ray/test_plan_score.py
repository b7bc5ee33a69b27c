"""The command `medv plan score`."""

import json

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app

RATE = ("--rate", "10")


def said(*flags: str, code: int = 0) -> str:
    base = ["plan", "score", "--rows", "1e6", "--gpu", "h200"]
    result = CliRunner().invoke(app, [*base, *flags])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def probe(tmp_path, processor="NVIDIA H200", seconds=0.1) -> str:
    path = tmp_path / "probe.json"
    content = {"rows": 9, "probe": {"seconds_per_row": seconds, "processor": processor}}
    path.write_text(json.dumps(content))
    return str(path)


def test_figures_and_their_sources():
    shown = said(*RATE, "--nodes", "2", "--price-per-hour", "30", "--set", "request_ms=60")
    assert "1,000,000 rows on 2 x 8 h200: 1.74 h at 160.0 rows/s" in shown
    assert "first bottleneck: GPU (16 GPUs x 10 rows/s)" in shown
    assert "price: 104.17, 104.17 a million rows (2 nodes x 30 an hour)" in shown
    assert "rate 10 given" in shown
    assert "request_ms 60 given" in shown
    assert "network 1,250 assumed" in shown
    assert "from the store: 32.0 MB/s, 16.0 a node; 93 requests/s" in shown
    assert "40,000 parts and commits" in shown
    assert "16.0 a node ledger: " in said(*RATE, "--nodes", "2", "--store", "disk")


def test_the_same_as_json():
    found = json.loads(said(*RATE, "--json", "--nodes", "2", "--gpus-per-node", "4"))
    assert found["first_bottleneck"] == found["stages"][0]["name"] == "GPU"
    assert found["rows_per_s"] == 80
    assert found["figures"]["rate"] == {"value": 10.0, "source": "given"}
    assert found["price"] is None
    assert (found["read_mb_per_s"], found["read_mb_per_s_of_node"]) == (16, 8)


def test_a_gpu_may_be_named_with_its_memory(tmp_path):
    path = probe(tmp_path)
    found = json.loads(said("--probe", path, "--json", "--gpu", "H200-141GB"))
    assert found["gpu"] == "h200"


def test_a_probe_gives_the_rate(tmp_path):
    found = json.loads(said("--probe", probe(tmp_path), "--json"))
    assert found["figures"]["rate"] == {"value": 10.0, "source": "measured"}


@pytest.mark.parametrize("flags", [(), (*RATE, "--probe", "x.json")])
def test_no_rate_is_guessed(flags):
    shown = said(*flags, code=2)
    assert "--plan > probe.json" in shown
    assert "--rate ROWS_PER_S" in shown


@pytest.mark.parametrize(
    ("processor", "seconds", "why"),
    [
        ("CPU onednn-avx512-amd", 0.1, "measured on 'CPU onednn-avx512-amd', not on a h200"),
        ("NVIDIA H100 80GB HBM3", 0.1, "not on a h200"),
        ("NVIDIA H200 MIG 1g.18gb", 0.1, "on a part of a GPU"),
        ("NVIDIA H200", 0, "no time"),
        ("NVIDIA H200", "fast", "no time"),
        ("NVIDIA H200", True, "no time"),
        ("NVIDIA H200", float("nan"), "no time"),
    ],
)
def test_a_probe_of_something_else_is_refused(tmp_path, processor, seconds, why):
    assert why in said("--probe", probe(tmp_path, processor, seconds), code=2)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"probe": {"skipped": "no GPU here"}}'])
def test_a_file_without_a_probe_is_refused(tmp_path, content):
    path = tmp_path / "probe.json"
    path.write_text(content)
    shown = said("--probe", str(path), code=2)
    assert "probe.json: no probe is in it" in shown
    assert str(tmp_path) not in shown


def test_a_missing_file_is_named(tmp_path):
    assert "none.json: No such file" in said("--probe", str(tmp_path / "none.json"), code=2)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--rows", "nan"), "rows"),
        (("--rows", "0"), "rows"),
        (("--nodes", "0"), "nodes"),
        (("--gpu", "abacus"), "abacus"),
        (("--price-per-hour", "-1"), "price_per_hour"),
        (("--store", "tape"), "store"),
        (("--set", "speed=3"), "speed"),
    ],
)
def test_nonsense_is_refused(flags, word):
    assert word in said(*RATE, *flags, code=2)


@pytest.mark.parametrize("flag", ["--rate", "--price-per-hour", "--network", "--image-bytes"])
def test_figures_beyond_any_machine_are_refused(flag):
    name = {"--price-per-hour": "price_per_hour", "--image-bytes": "image_bytes"}.get(
        flag, flag[2:]
    )
    for value in ("1e300", "-1", "nan"):
        assert f"{name}: " in said(*RATE, flag, value, code=2)
    if flag != "--price-per-hour":
        assert f"{name}: " in said(*RATE, flag, "1e-300", code=2)
    said(*RATE, flag, "1000")


def test_a_price_of_minus_nothing_is_none():
    assert "price: 0.00, 0.00 a million rows (1 nodes x 0 an hour)" in said(
        *RATE, "--price-per-hour", "-0.0"
    )
