"""`medv plan score` in figures, each worked out by hand."""

import pytest

from medv_ray.archive.scale import REQUESTS, ScaleSettings, chunks_of, merges_of, scale_plan
from medv_ray.errors import SettingsError
from medv_ray.settings import build

KNOWN = {
    "rows": 1e6, "nodes": 2, "gpus": 8, "rate": 10, "price_per_hour": 30, "cores": 64,
    "decode_rate": 100, "image_bytes": 200_000, "network": 1250, "requests_per_s": 3500,
    "request_ms": 40, "commit_ms": 10, "chunk_rows": 32, "group_rows": 100, "row_bytes": 300,
}  # fmt: skip


def planned(**changed):
    return scale_plan(build(ScaleSettings, KNOWN | changed))


def test_a_job_that_its_gpus_bound():
    found = planned()
    rates = {stage.name: stage.rows_per_s for stage in found.stages}
    assert rates == {
        "GPU": 160,  # 2 x 8 x 10
        "driver and commit": pytest.approx(25 / 0.03325),  # 10 + (1 + 8.3) x 40 / 16 ms
        "object-store requests": pytest.approx(3500 / REQUESTS.all * 25),
        "network": 12_500,  # 2 x 1250e6 / 200,000
        "decode cores": 12_800,  # 2 x 64 x 100
    }
    assert found.stages[0].why == "16 GPUs x 10 rows/s"
    assert found.hours == pytest.approx(1.7361, abs=1e-4)  # 10^6 / 160 / 3600
    assert found.price == pytest.approx(104.17, abs=0.01)  # x 2 x 30
    assert found.price_per_million == pytest.approx(104.17, abs=0.01)
    assert found.read_mb_per_s == 32  # 160 x 0.2
    assert found.requests_per_s == pytest.approx(6.4 * REQUESTS.all)  # 160 / 25 chunks a second
    assert (found.chunks, found.merges, found.files) == (40_000, 20, 7)


@pytest.mark.parametrize(
    ("changed", "name", "rows_per_s"),
    [
        ({"nodes": 1000}, "driver and commit", 25 / 0.03325),
        ({"nodes": 1000, "store": "disk"}, "driver and commit", 2500),  # 25 / 10 ms
        ({"image_bytes": 50e6}, "network", 50),  # 2 x 1250e6 / 50e6
        ({"cores": 1, "pictures": 4}, "decode cores", 50),  # 2 x 100 / 4
        ({"requests_per_s": REQUESTS.all}, "object-store requests", 25),
    ],
)
def test_the_first_bottleneck_is_named(changed, name, rows_per_s):
    found = planned(**changed)
    assert found.stages[0].name == name
    assert found.rows_per_s == pytest.approx(rows_per_s)
    assert found.hours == pytest.approx(1e6 / rows_per_s / 3600)


def test_a_price_is_for_a_million_rows_of_any_number():
    found = planned(rows=4e6)
    assert found.price == pytest.approx(4 * 104.17, abs=0.04)
    assert found.price_per_million == pytest.approx(104.17, abs=0.01)


def test_a_disk_takes_no_requests():
    found = planned(store="disk")
    assert found.requests_per_s == 0
    assert "object-store requests" not in [stage.name for stage in found.stages]


def test_without_a_price_there_is_none():
    found = scale_plan(build(ScaleSettings, {"rows": 10, "rate": 1}))
    assert (found.price, found.price_per_million) == (None, None)


def test_every_figure_says_where_it_is_from():
    found = scale_plan(build(ScaleSettings, {"rows": 10, "rate": 1}), "measured")
    sources = {name: figure.source for name, figure in found.figures.items()}
    assert sources["rows"] == "given"
    assert (sources["rate"], sources["commit_ms"]) == ("measured", "assumed")
    assert (sources["network"], sources["nodes"]) == ("assumed", "assumed")
    assert planned().figures["network"] == (1250, "given")
    assert sources.keys() == ScaleSettings.model_fields.keys()


def test_chunks_are_those_of_the_planner(make):
    make.parquet("a.parquet", rows=250, row_group_size=100)
    chunks = len(make.plan(chunk_rows=32).chunks)
    average, number = chunks_of(build(ScaleSettings, KNOWN | {"rows": 250}))
    assert (average, number) == (25, chunks) == (25, 10)  # 4 + 4 + 2


def test_large_pictures_share_fewer_rows_a_chunk():
    # 128 MiB hold two of 50 MB
    assert chunks_of(build(ScaleSettings, KNOWN | {"image_bytes": 50e6})) == (2, 500_000)
    # and of 200 MB each has a chunk of its own
    assert chunks_of(build(ScaleSettings, KNOWN | {"image_bytes": 200e6})) == (1, 1_000_000)
    # as have 10 rows that are less than a row group
    assert chunks_of(build(ScaleSettings, KNOWN | {"rows": 10})) == (10, 1)


def test_merged_files_are_bounded_by_rows_and_by_bytes():
    # 50,000 rows a time, merged again below 131,072
    assert merges_of(build(ScaleSettings, KNOWN | {"row_bytes": 1}), 25.0) == (20, 7)
    # 64 MiB hold 6,710 rows
    assert merges_of(build(ScaleSettings, KNOWN | {"row_bytes": 10_000}), 25.0) == (150, 150)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"rows": 0}, {"rows": -1}, {"rows": float("nan")}, {"rows": float("inf")}, {"rows": 1.5},
        {"rows": 1e13}, {"nodes": 0}, {"nodes": 1.5}, {"gpus": 0}, {"rate": 0}, {"rate": -3},
        {"rate": float("nan")}, {"price_per_hour": -1}, {"price_per_hour": float("inf")},
        {"cores": 0}, {"image_bytes": 0}, {"network": 0}, {"store": "tape"}, {"chunk_rows": 0},
        {"chunk_rows": 5000}, {"speed": 3},
    ],
)  # fmt: skip
def test_nonsense_is_refused(nonsense):
    with pytest.raises(SettingsError) as caught:
        planned(**nonsense)
    assert next(iter(nonsense)) in str(caught.value)
