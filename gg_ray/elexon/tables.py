"""Text tables as they are published: byte-order marks, comment lines, blanks around numbers, two styles of date.

Flow:    CSV files -> [tables] -> elexon.halfhours, elexon.history, elexon.events
Shapes:  H rows below the header
Units:   times become UTC nanoseconds; ids stay text, so that leading zeros survive
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from gg_ray.elexon.errors import ElexonError
from gg_ray.elexon.times import SECOND_NS, aware, ns_of
from gg_ray.records import F64, I64

_MONTHS = (*("JAN", "FEB", "MAR", "APR", "MAY", "JUN"), *("JUL", "AUG", "SEP", "OCT", "NOV", "DEC"))


class HistoryError(ElexonError, ValueError):
    """A history file is missing or unreadable; the message names the file, the row, the column and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A CSV as text, every value stripped.

    first  line number of the first row below the header, from 1, so that errors can be found in an editor
    """

    path: Path
    columns: dict[str, list[str]]
    first: int

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, i: int) -> str:
        """`file: row 7`, as an editor counts."""
        return f"{self.path}: row {i + self.first}"

    def need(self, *names: str) -> None:
        """Raises: HistoryError naming the first column that is not there."""
        for name in names:
            if name not in self.columns:
                raise HistoryError(
                    f"{self.path}: row {self.first - 1}: no column {name!r}; needed are {', '.join(names)}"
                )


def csv_header(path: Path) -> tuple[str, ...]:
    """Column names of a CSV, without comment lines and byte-order mark; empty for an empty file.

    Raises: HistoryError when the file is missing or is no text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line in file:
                if line.strip() and not line.startswith("#"):
                    return tuple(name.strip() for name in next(csv.reader([line])))
    except FileNotFoundError:
        raise HistoryError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path}: byte {error.start} is not UTF-8; is it a text file?") from None
    return ()


def read_table(path: Path, needed: Sequence[str] = ()) -> Table:
    """All rows of a CSV.  Raises: HistoryError for a missing column, a torn row, no rows or bytes that are no text."""
    header = csv_header(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        skipped = 1
        for line in file:
            if line.strip() and not line.startswith("#"):
                break
            skipped += 1
        try:
            # a line of nothing (NESO ends files with one) is no row; torn rows are found below
            rows = [(i, row) for i, row in enumerate(csv.reader(file)) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise HistoryError(f"{path}: {error}; is it a text file?") from None
    empty = Table(path=path, columns={name: [] for name in header}, first=skipped + 1)
    empty.need(*needed)
    for i, row in rows:
        if len(row) != len(header):
            raise HistoryError(f"{empty.where(i)}: {len(row)} values for {len(header)} columns; is it cut off?")
    if not rows:
        raise HistoryError(f"{path}: no rows below the header")
    columns = zip(*(row for _, row in rows), strict=True)
    return Table(
        path=path,
        columns={name: [text.strip() for text in texts] for name, texts in zip(header, columns, strict=True)},
        first=skipped + 1,
    )


def numbers(table: Table, name: str, unit: str) -> F64:
    """A column of numbers [H]; blank is NaN.  Raises: HistoryError for anything that is no finite number."""
    texts = table.columns[name]
    with suppress(pa.ArrowInvalid):  # one call for a good column; a bad one is gone through to find its row
        fast: F64 = pa.array([text or None for text in texts], pa.string()).cast(pa.float64()).to_numpy(False)
        blank = np.array([not text for text in texts])
        if np.array_equal(np.isfinite(fast), ~blank):
            return fast.copy()
    out: F64 = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        if not text:
            continue
        try:
            out[i] = float(text)
        except ValueError:
            raise HistoryError(f"{table.where(i)}, column {name}: {text!r} is no number ({unit})") from None
        if not math.isfinite(out[i]):
            raise HistoryError(f"{table.where(i)}, column {name}: {text!r} is not finite; leave it blank instead")
    return out


def instants(table: Table, name: str, grid_s: int = 1, grid_name: str = "second") -> I64:
    """A column of times with `Z` or an offset, as UTC nanoseconds [H].

    Raises: HistoryError for a time without offset or off the grid of grid_s seconds.
    """
    out: I64 = np.empty(table.rows, dtype=np.int64)
    for i, text in enumerate(table.columns[name]):
        start = aware(text)
        if start is None:
            raise HistoryError(f"{table.where(i)}, column {name}: {text!r} is no time with an offset or Z")
        out[i] = ns_of(start)
        if out[i] % (grid_s * SECOND_NS):
            raise HistoryError(f"{table.where(i)}, column {name}: {text!r} is not on the {grid_name}")
    return out


def parse_date(text: str) -> date:
    """`2019-03-31` or `31-MAR-2019` (any case).  Raises: ValueError."""
    parts = text.strip().split("-")
    if len(parts) == 3 and parts[1].upper() in _MONTHS and len(parts[2]) == 4:
        return date(int(parts[2]), _MONTHS.index(parts[1].upper()) + 1, int(parts[0]))
    return date.fromisoformat(text.strip())


def labels(table: Table, date_name: str = "settlement_date", period_name: str = "settlement_period") -> list[
    tuple[date, int]
]:  # fmt: skip
    """Settlement labels as filed, not believed.  Raises: HistoryError naming the row."""
    out = []
    for i, (day, period) in enumerate(zip(table.columns[date_name], table.columns[period_name], strict=True)):
        try:
            out.append((parse_date(day), int(period)))
        except ValueError as error:
            raise HistoryError(f"{table.where(i)}, {date_name} or {period_name}: {error}") from error
    return out
