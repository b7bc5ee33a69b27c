"""Listings of servers with limits and faults of their own."""

import pytest

from medv_ray.dicomweb.address import parse
from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.dicomweb.search import search
from tests.dicomweb_server import Pacs, Reply, picture

pytestmark = pytest.mark.integration


def uids(pacs: Pacs, client: Client, query: str = "", page: int = 3) -> list[str]:
    address = parse(f"dicomweb+{pacs.url}{query}")
    return [one.uid for one in search(client, address, page).instances]


def fill(pacs: Pacs, count: int) -> list[str]:
    for number in reversed(range(1, count + 1)):
        pacs.add(picture(number))
    return [f"2.25.1.1.{number}" for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("most", [1000, 2], ids=["as asked", "a limit of its own"])
def test_all_pages_in_order_of_numbers(pacs: Pacs, client: Client, count: int, most: int) -> None:
    wanted = fill(pacs, count)
    pacs.most = most
    assert uids(pacs, client) == wanted


def test_filters_of_study_series_modality_and_date(pacs: Pacs, client: Client) -> None:
    for study in (1, 2, 3):
        for series, modality in ((1, "CT"), (2, "MR")):
            pacs.add(picture(1, study, series, modality))
    assert uids(pacs, client, "?Modality=MR") == ["2.25.1.2.1", "2.25.2.2.1", "2.25.3.2.1"]
    assert uids(pacs, client, "?StudyInstanceUID=2.25.2&Modality=CT") == ["2.25.2.1.1"]
    path = "?StudyInstanceUID=2.25.2&SeriesInstanceUID=2.25.2.2"
    assert uids(pacs, client, path) == ["2.25.2.2.1"]
    dates = "?StudyDate=20240102-20240103&Modality=CT"
    assert uids(pacs, client, dates) == ["2.25.2.1.1", "2.25.3.1.1"]
    assert uids(pacs, client, "?StudyDate=-20240101&Modality=CT") == ["2.25.1.1.1"]
    found = search(client, parse(f"dicomweb+{pacs.url}?PatientID=CANARY-MRN-3")).instances[0]
    assert (found.rows, found.columns, found.frames, found.number) == (16, 16, 0, 1)


@pytest.mark.parametrize(
    ("ignored", "query"),
    [
        ("Modality", "?Modality=MR"),
        ("StudyDate", "?StudyDate=20240102-"),
        ("PatientID", "?PatientID=other"),
        ("SOPInstanceUID", "?SOPInstanceUID=2.25.9"),
        ("BodyPartExamined", "?BodyPartExamined=CHEST"),
        ("StationName", "?StationName=CT9"),
    ],
)
def test_a_filter_that_the_server_ignores_is_found_out(
    pacs: Pacs, client: Client, ignored: str, query: str
) -> None:
    for number in (1, 2):
        pacs.add(picture(number, BodyPartExamined="HEAD", StationName="CT1"))
    pacs.ignores = (ignored,)
    with pytest.raises(Trouble, match=f"2 instances of another {ignored}") as caught:
        uids(pacs, client, query)
    assert "CANARY" not in str(caught.value)


def test_a_server_without_paging(pacs: Pacs, client: Client) -> None:
    """It sends all at once, or cannot be used."""
    wanted = fill(pacs, 5)
    pacs.ignores = ("limit", "offset")
    assert uids(pacs, client) == wanted
    pacs.ignores = ("offset",)
    assert uids(pacs, client, page=9) == wanted
    with pytest.raises(Trouble, match="cannot page"):
        uids(pacs, client)


def test_a_list_that_changes_while_it_is_read_is_read_again(pacs: Pacs, client: Client) -> None:
    fill(pacs, 5)
    late = [picture(9)]

    def one_more_in_front(method: str, path: str) -> None:
        if late and len(pacs.seen) == 2:
            held, pacs.datasets = pacs.datasets, {}
            pacs.add(late.pop())
            pacs.datasets.update(held)

    pacs.faults.append(one_more_in_front)
    assert len(uids(pacs, client)) == 6
    pacs.faults[:] = [lambda method, path: flip(pacs)]
    with pytest.raises(Trouble, match="overlap"):
        uids(pacs, client, page=4)


def flip(pacs: Pacs) -> None:
    pacs.datasets = dict(reversed(pacs.datasets.items()))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "no JSON"),
        (b'{"a": 1}', "is none"),
        (b"[1, 2]", "is none"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_listing_that_is_none(pacs: Pacs, client: Client, body: bytes, said: str) -> None:
    pacs.faults.append(lambda method, path: Reply(200, {}, body))
    with pytest.raises(Trouble, match=said):
        uids(pacs, client)


def test_entries_without_a_uid_are_counted(pacs: Pacs, client: Client) -> None:
    fill(pacs, 1)
    bad = pacs.add(picture(2))
    bad["SOPInstanceUID"]._value = "1.2/../../etc"
    found = search(client, parse(f"dicomweb+{pacs.url}"))
    assert ([one.uid for one in found.instances], found.unnamed) == (["2.25.1.1.1"], 1)


@pytest.mark.parametrize("value", [b"[" * 900 + b"]" * 900, b'{"a": 1}', b"null"])
def test_a_uid_that_is_no_text_is_none(pacs: Pacs, client: Client, value: bytes) -> None:
    entry = b'[{"0020000D": {"Value": [' + value + b"]}}]"
    replies = [Reply(200, {}, b"[]"), Reply(200, {}, entry)]
    pacs.faults[:] = [lambda method, path: replies.pop(), lambda method, path: replies.pop()]
    found = search(client, parse(f"dicomweb+{pacs.url}"))
    assert (found.instances, found.unnamed) == ([], 1)
