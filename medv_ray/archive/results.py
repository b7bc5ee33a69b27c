"""The rows of a run as tables: chosen, sorted, and joined to a table of the user's.

Everything is Arrow, a table at a time: a run of 10^8 rows is looked through in the memory of a few
files. Only sorting without a limit, and the user's own table, are held whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from medv_ray.archive.exports import keys_of, normal_keys
from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.pseudonyms import Pseudonyms
from medv_ray.archive.rows import read_run
from medv_ray.archive.store import Store
from medv_ray.errors import CATALOGUE, RunError, SettingsError
from medv_ray.schema import ANSWER_SCHEMA, STATUSES

BATCH_ROWS = 65_536
"""Small parts of an unfinished run are put together to so many rows."""
ABSTAINED = ("empty_answer", "low_confidence")
TABLE = "table."
"""In front of a joined column whose name is taken."""
ROW = "row"


@dataclass(frozen=True)
class Choice:
    """Which rows, and in which order."""

    status: str | None = None
    reason: str | None = None
    """A reason word, or a code of the catalogue."""
    below: float | None = None
    """Confidence under this; rows without one are left out."""
    limit: int | None = None
    sort: str | None = None
    """A column; `-column` for the largest first. `row` is the order of the input."""

    def check(self) -> None:
        """Raises SettingsError E1001 for what no run can have."""
        if self.status is not None and self.status not in STATUSES:
            raise SettingsError("E1001", f"--status is one of {', '.join(STATUSES)}.")
        words = {entry.reason for entry in CATALOGUE.values()} | {*ABSTAINED, *CATALOGUE}
        if self.reason is not None and self.reason not in words:
            raise SettingsError("E1001", "--reason is a code (E1203) or a reason (corrupt_image).")
        if self.sort is not None:
            name = self.sort.removeprefix("-")
            if name not in ANSWER_SCHEMA.names or pa.types.is_list(ANSWER_SCHEMA.field(name).type):
                raise SettingsError("E1001", "--sort is a column of single values, as confidence.")

    def mask(self, table: pa.Table) -> pa.Table:
        """The table's rows that are chosen."""
        if self.status is not None:
            table = table.filter(pc.equal(table.column("status"), self.status))
        if self.reason is not None:
            column = "code" if self.reason in CATALOGUE else "reason"
            table = table.filter(pc.equal(table.column(column), self.reason))
        if self.below is not None:
            table = table.filter(pc.less(table.column("confidence"), self.below))
        return table

    def order(self) -> list[tuple[str, str]]:
        """Sort keys of Arrow; the place in the input settles what is equal."""
        name = (self.sort or ROW).removeprefix("-")
        way = "descending" if (self.sort or "").startswith("-") else "ascending"
        if name == ROW:
            return [("file", way), (ROW, way)]
        return [(name, way), ("file", "ascending"), (ROW, "ascending")]


def rows_of(out: str, choice: Choice) -> Iterator[pa.Table]:
    """The chosen rows of a run, with all columns; also while a job writes to it.

    Without `sort` they come in the order in which they lie. Raises RunError E1507 where no run is,
    E1506 for damage, SettingsError E1001.
    """
    choice.check()
    input_files(out)
    found = batches(choice.mask(table) for table in read_run(out))
    return _limited(found, choice.limit) if choice.sort is None else _sorted(found, choice)


def input_files(out: str) -> list[str]:
    """Names of a run's input files, by their number. Raises RunError E1507 where no run is."""
    manifest = read_manifest(Store(out))
    if manifest is None:
        raise RunError("E1507", "there is no run in this folder.")
    return [str(file[0]) for file in manifest.get("files", [])]


def batches(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of BATCH_ROWS or more, but for the last; one at least."""
    held = [ANSWER_SCHEMA.empty_table()]
    count, yielded = 0, False
    for table in tables:
        if table.num_rows:
            held.append(table)
            count += table.num_rows
        if count >= BATCH_ROWS:
            yield together(held)
            held, count, yielded = [], 0, True
    if count or not yielded:
        yield together(held)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table, with the columns of all: only a run's own rows have its blanks."""
    return pa.concat_tables(tables, promote_options="default")


def _limited(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for table in tables:
        yield table if left is None else table.slice(0, left)
        left = None if left is None else left - table.num_rows
        if left is not None and left <= 0:
            return


def _sorted(tables: Iterator[pa.Table], choice: Choice) -> Iterator[pa.Table]:
    """With a limit, only the first so many are held."""
    kept = ANSWER_SCHEMA.empty_table()
    whole: list[pa.Table] = []
    for table in tables:
        if choice.limit is None:
            whole.append(table)
        else:
            kept = together([kept, table]).sort_by(choice.order()).slice(0, choice.limit)
            kept = kept.combine_chunks()  # a slice would hold on to what it was cut from
    yield together([kept, *whole]).sort_by(choice.order()) if whole else kept


class Join:
    """Columns of the user's table beside the rows that were made of it."""

    def __init__(
        self,
        table: pa.Table,
        on: str,
        file: int | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        """`on`: the column that holds the ids, or `row`: by row number, and then `file` is the
        number of the input file that the table is. `pseudonyms`: those that the rows have.

        Raises SettingsError E1001 for a column that is not there or has a value twice.
        """
        self.partners = 0
        """Rows so far that the table has a row for."""
        self._file = file if on == ROW and ROW not in table.column_names else None
        if self._file is None:
            if on not in table.column_names:
                there = ", ".join(name[:30] for name in table.column_names[:20])
                raise SettingsError("E1001", f"--on {on[:30]!r}: the table has {there}.")
            self._keys = keys_of(table.column(on))
            known = self._keys.drop_null()
            twice = len(known) - len(pc.unique(known))
            if twice:
                detail = f"{twice} rows have a value of another row; `--on row` joins by order."
                raise SettingsError("E1001", f"--on {on[:30]!r}: {detail}")
            if pseudonyms is not None:
                texts = [None if k is None else pseudonyms.of_id(k) for k in self._keys.to_pylist()]
                self._keys = pa.array(texts, pa.string())
            table = table.drop_columns([on])
        self._table = table

    def add(self, rows: pa.Table) -> pa.Table:
        """The rows with the table's columns behind; null where the table has no such row."""
        if self._file is None:
            index = pc.index_in(normal_keys(rows.column("id")), self._keys, skip_nulls=True)
        else:
            number = rows.column(ROW)
            mine = pc.equal(rows.column("file"), self._file)
            inside = pc.less(number, self._table.num_rows)
            index = pc.if_else(pc.and_(mine, inside), number, None)
        self.partners += len(index) - index.null_count
        found = self._table.take(index)
        for name in found.column_names:
            field = found.schema.field(name)
            taken = name in rows.column_names
            rows = rows.append_column(
                field.with_name(TABLE + name) if taken else field, found.column(name)
            )
        return rows


def joined(
    out: str, path: str, table: pa.Table, on: str, pseudonyms: Pseudonyms | None = None
) -> Join:
    """The join of a run with the table that lies at `path`; `pseudonyms` as in `Join`.

    Raises SettingsError E1001 for `--on row` with a table that is no input file of the run.
    """
    if on != ROW or ROW in table.column_names:
        return Join(table, on, None, pseudonyms)
    whole = "/" + path.replace("\\", "/")
    fits = [number for number, name in enumerate(input_files(out)) if whole.endswith("/" + name)]
    if len(fits) != 1:
        raise SettingsError("E1001", "--on row: --join is no input file of this run; join by id.")
    return Join(table, on, fits[0])
