"""Bytes of an answer -> checked rows, oldest first, one per key; what was wrong is counted or handed back, never lost.

Flow:    insights, iris, portal, cache -> [parse] -> Fetched
Source:  Insights API schema of June 2026; defects that were seen in the files: docs/gb-data.md
Counts:  duplicates, superseded, conflicting, unlabelled, label_repaired, off_grid, missing, unknown_fuel,
         all_zero_batch, partial_batch, null_generation, frozen, out_of_range, outside, rejected

The whole list is validated at once; only an answer with a bad row is read again row by row.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from pydantic import BaseModel, FailFast, TypeAdapter, ValidationError

from gg_ray.elexon.errors import BadAnswer
from gg_ray.elexon.repair import OF_THE_ROWS, repair
from gg_ray.elexon.rows import Row
from gg_ray.elexon.source import Fetched, Origin, Reject, Stream
from gg_ray.elexon.times import EPOCH, z

MAX_REJECTS = 1_000
"""Rejects handed back from one answer; more are only counted."""

EVER = (EPOCH, datetime(9999, 12, 31, tzinfo=UTC))
"""The window that holds every row."""

RowT = TypeVar("RowT", bound=Row)


class _Envelope(BaseModel, Generic[RowT]):
    data: Annotated[list[RowT], FailFast()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The window of one request, closed at both ends: every returned time must lie in it.

    The service ignores parameters it does not know and then sends its newest rows with status 200, so a window that
    is not honoured must be noticed here.
    by_publish   the window is about publication times; else about each row's own time
    slack        how far outside a time may lie: a settlement label may be one period off
    """

    start: datetime
    end: datetime
    by_publish: bool = False
    slack: timedelta = timedelta(0)


@lru_cache(maxsize=64)
def _adapters(row: type[Row]) -> tuple[TypeAdapter[Any], TypeAdapter[list[Row]], TypeAdapter[Row]]:
    """Readers of an envelope, of a bare array and of one row."""
    return TypeAdapter(_Envelope[row]), TypeAdapter(Annotated[list[row], FailFast()]), TypeAdapter(row)  # type: ignore[valid-type, arg-type]


def parse(
    stream: Stream, body: bytes, start: datetime, end: datetime, *, asked: Asked | None = None, origin: Origin = "live"
) -> Fetched:
    """Rows of one answer, those in [start, end] only: `read`, then `merge`.

    Returns: rows oldest first, one per key; a row that cannot be read becomes a Reject and the others live.
    Raises:  BadAnswer as `read` does.
    """
    with _collector_paused():
        return merge(stream, start, end, [read(stream, body, asked)], origin=origin)


def read(stream: Stream, body: bytes, asked: Asked | None = None) -> Fetched:
    """Rows as they came, checked one by one; nothing is repaired yet.

    Args:    body   {"data": [...]} or a bare array, UTF-8, with or without a byte-order mark
             asked  window of the request that the body answers; None when there was none (a pushed message, a cache)
    Raises:  BadAnswer if the body is no such list, no row of it can be read, or a time lies outside `asked`.
    """
    with _collector_paused():
        rows, rejects, counts = _validate(stream, body.removeprefix(b"\xef\xbb\xbf"))
    if asked is not None:
        _assert_window(stream, rows, asked)
    if rejects and not rows:
        raise BadAnswer(f"{stream.name}: none of {counts['rejected']} rows can be read; the first: {rejects[0].reason}")
    start, end = (asked.start, asked.end) if asked is not None else EVER
    return Fetched(stream=stream.name, start=start, end=end, rows=rows, rejects=rejects, counts=counts)


def merge(
    stream: Stream, start: datetime, end: datetime, parts: Sequence[Fetched], *, origin: Origin = "live"
) -> Fetched:
    """One Fetched of several, cut to [start, end] and repaired as a whole: neighbouring windows repeat a row."""
    counts: Counter[str] = Counter()
    rejects: list[Reject] = []
    for part in parts:
        counts.update({name: count for name, count in part.counts.items() if name not in OF_THE_ROWS})
        rejects.extend(part.rejects)
    with _collector_paused():
        rows = [row for part in parts for row in part.rows]
        inside = [row for row in rows if start <= row.at <= end]
        counts["outside"] += len(rows) - len(inside)
        kept, taken_out = repair(stream, inside, counts)
    rejects = (rejects + taken_out)[:MAX_REJECTS]
    return Fetched(stream=stream.name, start=start, end=end, rows=kept, origin=origin, rejects=rejects, counts=+counts)


def to_json(stream: Stream, rows: Iterable[Row]) -> bytes:
    """The rows as the service would send them; parsing gives the same rows back."""
    return b'{"data":' + _adapters(stream.row)[1].dump_json(list(rows), by_alias=True, warnings="error") + b"}"


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection while rows are made and sorted: they hold no cycles, and its passes took half of the time.

    One answer has at most 20 MB, so little is held back.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _validate(stream: Stream, body: bytes) -> tuple[list[Row], list[Reject], Counter[str]]:
    envelope, array, _ = _adapters(stream.row)
    try:
        if body.lstrip()[:1] == b"[":
            return array.validate_json(body), [], Counter()
        return envelope.validate_json(body).data, [], Counter()
    except (ValidationError, RecursionError):
        return _row_by_row(stream, body)


def _row_by_row(stream: Stream, body: bytes) -> tuple[list[Row], list[Reject], Counter[str]]:
    one = _adapters(stream.row)[2]
    rows: list[Row] = []
    rejects: list[Reject] = []
    refused = 0
    for raw in _list_of(stream, body):
        try:
            rows.append(one.validate_json(json.dumps(raw)))  # as JSON: strict types mean another thing for objects
        except (ValidationError, RecursionError) as error:
            refused += 1
            if len(rejects) < MAX_REJECTS:
                rejects.append(Reject(_reason(error), raw))
    return rows, rejects, Counter(rejected=refused)


def _list_of(stream: Stream, body: bytes) -> list[Any]:
    """The list inside the body.  Raises: BadAnswer saying what it is instead."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        head = body[:60].decode("utf-8", "replace")
        what = "HTML" if head.lstrip().startswith("<") else f"no JSON ({error})"
        raise BadAnswer(f"{stream.name}: the answer is {what}, {len(body)} bytes; it begins {head!r}") from error
    rows = value.get("data", value) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        shape = f"an object with {sorted(value)[:8]}" if isinstance(value, dict) else type(value).__name__
        raise BadAnswer(f'{stream.name}: the answer is {shape}, "data" is no list; expected {{"data": [...]}}')
    return rows


def _reason(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'row'}: {first['msg']} ({str(first['input'])[:80]!r})"


def _assert_window(stream: Stream, rows: Iterable[Row], asked: Asked) -> None:
    low, high = asked.start - asked.slack, asked.end + asked.slack
    for row in rows:
        published: datetime | None = getattr(row, "published", None) if asked.by_publish else None
        if published is not None:
            if not low <= published <= high:
                _outside(stream, asked, published, "publishTime")
        elif asked.by_publish:  # a row of another origin carries no publication; it lies at most a period before it
            if not low - stream.cadence <= row.at <= high:
                _outside(stream, asked, row.at, "time")
        elif not low <= row.at <= high:
            _outside(stream, asked, row.at, "time")


def _outside(stream: Stream, asked: Asked, time: datetime, what: str) -> NoReturn:
    window = f"{z(asked.start)} to {z(asked.end)}"
    raise BadAnswer(
        f"{stream.name}: asked for {window}, got a row of {what} {z(time)}; the service ignores parameters that it "
        "does not know and sends its newest rows instead"
    )
