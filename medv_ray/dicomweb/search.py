"""QIDO-RS (PS3.18 10.6): all instances of a query, page by page."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from medv_ray.dicomweb.address import FILTERS, UID, Address
from medv_ray.dicomweb.client import Client, Trouble

PAGE = 500
LOOKS = 3
TAGS = {
    "study": "0020000D", "series": "0020000E", "uid": "00080018", "sop_class": "00080016",
    "number": "00200013", "rows": "00280010", "columns": "00280011", "frames": "00280008",
}  # fmt: skip


class Instance(NamedTuple):
    """An instance as the server tells of it; numbers are 0 where it does not."""

    study: str
    series: str
    uid: str
    sop_class: str = ""
    number: int = 0
    rows: int = 0
    columns: int = 0
    frames: int = 0

    @property
    def path(self) -> str:
        """Its resource of WADO-RS."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.uid}"


class Found(NamedTuple):
    """The answer to a query."""

    instances: list[Instance]
    """By study, series, number and UID, so in one order whatever the server's."""
    unnamed: int
    """Entries without UIDs that are any."""


class _Shifted(Exception):
    """Pages overlap: the list changed meanwhile, or the server has no fixed order."""


def search(client: Client, address: Address, page: int = PAGE) -> Found:
    """Every instance that matches.

    Raises Trouble, also for a server that ignores a filter or cannot page.
    """
    for _ in range(LOOKS):
        try:
            return _search(client, address, page)
        except _Shifted:
            continue
    raise Trouble("odd", "its pages overlap each time; ask for less, a study say")


def _search(client: Client, address: Address, page: int) -> Found:
    """Until a page is empty: a server may have a limit of its own, below the one asked for."""
    fields = [*TAGS.values(), *(FILTERS[name].tag for name in address.filters)]
    asked: dict[str, Any] = {**address.search_filters, "includefield": list(dict.fromkeys(fields))}
    found: dict[str, Instance] = {}
    unnamed = offset = 0
    first: set[str] = set()
    while True:
        params = {**asked, "limit": page, "offset": offset}
        entries, headers = client.json(address.search_path, params)
        if not entries:
            return Found(sorted(found.values(), key=_order), unnamed)
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise Trouble("odd", "its list of instances is none")
        _check(entries, address)
        known = [one for one in map(_instance, entries) if one is not None]
        uids = {one.uid for one in known}
        if offset and uids <= first and len(uids) == len(first):
            if len(entries) == page or headers.get("warning", "").startswith("299"):
                raise Trouble("odd", "it cannot page; ask for less, a study say")
            return Found(sorted(found.values(), key=_order), unnamed)  # it ignores offset
        if uids & found.keys() or len(uids) < len(known):
            raise _Shifted
        first = first if offset else uids
        found.update((one.uid, one) for one in known)
        unnamed += len(entries) - len(known)
        offset += len(entries)


def _instance(entry: dict[str, Any]) -> Instance | None:
    study, series, uid, kind = (_text(entry, tag) for tag in list(TAGS.values())[:4])
    if not all(UID.fullmatch(text) for text in (study, series, uid)):
        return None
    numbers = [_text(entry, tag) for tag in list(TAGS.values())[4:]]
    # as int() would take 10^9 digits and more
    number, rows, columns, frames = (
        int(n) if n.isdecimal() and len(n) < 10 else 0 for n in numbers
    )
    return Instance(study, series, uid, kind, number, rows, columns, frames)


def _text(entry: dict[str, Any], tag: str) -> str:
    """The first value of an attribute; empty where there is none that is text or a number."""
    values = entry.get(tag)
    values = values.get("Value") if isinstance(values, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first).strip() if isinstance(first, str | int | float) else ""


def _order(one: Instance) -> tuple[str, str, int, str]:
    return one.study, one.series, one.number, one.uid


def _check(entries: list[dict[str, Any]], address: Address) -> None:
    """Servers may ignore a filter (PS3.18 8.3.4): other patients' pictures would be scored.

    What a server does not tell of an instance, as the modalities of its study, is not known here.
    """
    ignored: Counter[str] = Counter()
    for name, wanted in address.filters.items():
        if name == "ModalitiesInStudy" or "*" in wanted or "?" in wanted:
            continue
        for entry in entries:
            value = _text(entry, FILTERS[name].tag)
            ignored[name] += bool(value) and not _matches(name, wanted, value)
    for name, count in ignored.items():
        if count:
            raise Trouble("odd", f"it lists {count} instances of another {name} than asked for")


def _matches(name: str, wanted: str, value: str) -> bool:
    if name == "StudyDate":
        first, dash, last = wanted.partition("-")
        day = value.replace("-", "").replace(".", "")[:8]
        return first <= day <= (last or ("9" * 8 if dash else first))
    if name.endswith("UID"):
        return value in wanted.split(",")
    return value.casefold() in [one.strip().casefold() for one in wanted.split("\\")]
