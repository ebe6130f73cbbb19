"""What `gg-ray data` and `gg-ray feed` do.

Flow:    cli -> [data_commands] -> elexon.fetch, elexon.check, elexon.feeding -> the store, standard output
Source:  docs/gb-data.md, commands
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from gg_ray.config import ConfigError
from gg_ray.data_options import DataOptions, FeedOptions, check_feed
from gg_ray.elexon import feeding, iris
from gg_ray.elexon.check import Quality, check_path, streams_in
from gg_ray.elexon.energy import stored_energies
from gg_ray.elexon.fetch import Progress, fetch_history, sync
from gg_ray.elexon.history import UnknownForm
from gg_ray.elexon.replay import ReplaySource
from gg_ray.elexon.scans import STEPS
from gg_ray.elexon.source import GridSource, stream_of
from gg_ray.elexon.sources import ALONE, HISTORY_SOURCES, POLLED, SOURCES, Shared, make_source
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.tables import HistoryError
from gg_ray.elexon.times import DAY, INSTANT, aware, iso, midnight, utc_now

SYNCED = ("FUELINST", "FUELHH", "DEMAND", "FREQ", "INDOD")
Sink = Callable[[int, DayStore, datetime], AbstractContextManager[feeding.Emit]]
"""Takes the messages of a feed; opened with the length of a scan (s), the store, and the time of the first scan."""
WEEK = "week"
"""Folder in the store's where --source auto keeps its rolling week, trimmed to seven days; the histories never are."""
HISTORY_SUFFIXES = (".csv", ".parquet")
WIDE = 160
"""Columns of a table that goes to a file or another program, which a terminal's width would break in two."""
SHOWN = 8
"""Findings of a kind that the table shows; --json gives all."""


def data_command(options: DataOptions, default_store: Path, shared: AbstractAsyncContextManager[Shared]) -> int:
    """`gg-ray data …`.

    Args:    shared  opened by fetch and sync, gives what this process shares with others
    Raises:  ConfigError for bad options; ElexonError, OSError.
    """
    store = DayStore(options.store or default_store)
    if options.action == "check":
        return _check(options, store)
    start = end = utc_now()
    if options.action == "fetch":
        if not options.stream or options.from_ is None:
            raise ConfigError("data fetch: name a --stream and a first day --from")
        start = when(options.from_, "--from")
        end = when(options.to, "--to", whole_day=True) if options.to else end
        if end < start:
            raise ConfigError(f"data fetch: --to {options.to} lies before --from {options.from_}")
    if options.days_back < 1:
        raise ConfigError(f"--days-back {options.days_back}: at least 1")
    if options.source in SOURCES and options.source not in HISTORY_SOURCES:
        raise ConfigError(f"--source {options.source} brings no history; choose from {', '.join(HISTORY_SOURCES)}")
    streams = [stream_of(name).name for name in options.stream or SYNCED]
    return asyncio.run(_bring(options, streams, store, shared, start, end))


async def _bring(
    options: DataOptions, streams: Sequence[str], store: DayStore, shared: AbstractAsyncContextManager[Shared],
    start: datetime, end: datetime,
) -> int:  # fmt: skip
    async with AsyncExitStack() as stack:
        held = await stack.enter_async_context(shared)
        source = make_source(options.source, base_url=options.base_url, failed_dir=store.root / "failed", shared=held)
        stack.push_async_callback(source.aclose)
        show = stack.enter_context(_progress())
        if options.action == "sync":
            found = await sync(source, streams, store, end, options.days_back, show)
        else:
            found = [await fetch_history(source, stream, start, end, store, show) for stream in streams]
    for summary in found:
        _say(str(summary))
    if "INDOD" in streams:
        first = end - timedelta(days=options.days_back) if options.action == "sync" else start
        for one in stored_energies(store, first.date(), end.date()):
            if one.differs:
                _say(f"INDOD and INDO disagree: {one}")
    if store.damaged:
        _say(f"damaged files set aside: {', '.join(f'{name} {count}' for name, count in store.damaged.items())}")
    return 1 if any(summary.error for summary in found) else 0


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar per stream on a terminal, a line per window elsewhere; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda p: _note(f"{p.stream} {p.done}/{p.total} to {p.end:%Y-%m-%d %H:%M}Z: {p.news:,} rows")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.fields[to]}"), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(p: Progress) -> None:
            if p.stream not in tasks:
                tasks[p.stream] = bar.add_task(p.stream, total=p.total, to="")
            bar.update(tasks[p.stream], completed=p.done, to=f"{p.end:%Y-%m-%d}")

        yield show


def _check(options: DataOptions, store: DayStore) -> int:
    """Report on each path. A file named by itself must be a history; in a folder, what is none is passed over."""
    failed = False
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    for path in options.paths or (store.root,):
        for found in _reports(path, options.zone):
            if isinstance(found, HistoryError):
                failed |= not (isinstance(found, UnknownForm) and path.is_dir())
                _note(f"not checked: {found}")
                continue
            failed |= "damaged_file" in found.counts
            if options.json:
                _say(json.dumps(found.as_json(), allow_nan=False))
            else:
                console.print(Text(f"{found.name}  ({found.form}, {found.period_s} s)"), soft_wrap=True)
                for table in tables(found):
                    console.print(table)
                console.print()
    return 1 if failed else 0


def _reports(path: Path, zone: str | None) -> Iterator[Quality | HistoryError]:
    files: Sequence[Path] = (path,)
    if not path.exists():
        yield HistoryError(f"{path}: no such file or folder; gg-ray data fetch fills a store")
        return
    if path.is_dir() and not streams_in(DayStore(path)):
        files = sorted(file for file in path.rglob("*") if file.suffix in HISTORY_SUFFIXES)
        if not files:
            yield HistoryError(f"{path}: neither a store nor a folder with histories; gg-ray data fetch fills a store")
    for file in files:
        try:
            yield from check_path(file, zone)
        except UnknownForm as error:
            yield error if file == path else UnknownForm(f"{file}: no history")  # why would be long, and no news
        except HistoryError as error:
            yield error


def tables(found: Quality) -> Iterator[Table]:
    """What was counted, then the longest findings of each kind."""
    span = f"{iso(found.first_ns)} to {iso(found.last_ns)}" if found.first_ns is not None and found.last_ns else "empty"
    head = Table(box=None)
    head.add_column("count", justify="right")
    head.add_column("what")
    head.add_row(f"{found.rows:,}", Text(f"periods, {span}"))
    for name, count in sorted(found.counts.items()):
        head.add_row(f"{count:,}", Text(name.replace("_", " ") if ":" not in name else name))
    yield head
    kinds = Counter(finding.kind for finding in found.findings)
    if not kinds:
        return
    stretches = Table("what", "first (UTC)", "last (UTC)", "periods", "detail", box=None, pad_edge=False)
    width = len("2024-06-04T12:30" if found.period_s >= 60 else "2024-06-04T12:30:15")
    for kind, count in kinds.items():
        longest = sorted(found.of(kind), key=lambda finding: (-finding.count, finding.first_ns))
        for f in longest[:SHOWN]:
            stretches.add_row(
                kind.replace("_", " "), iso(f.first_ns)[:width], iso(f.last_ns)[:width], f"{f.count:,}", Text(f.detail)
            )
        if count > SHOWN:
            stretches.add_row("", "", "", "", f"and {count - SHOWN} more (--json)")
    yield stretches


def feed_command(
    options: FeedOptions, default_store: Path, env: Mapping[str, str], shared: AbstractAsyncContextManager[Shared],
    kafka: Sink,
) -> int:  # fmt: skip
    """`gg-ray feed` of every source but simulate.

    Args:    env  where the account of iris is;  shared  opened by sources that poll, as above;
             kafka  opened for --to kafka, takes the messages
    Raises:  ConfigError for bad options; ElexonError.
    """
    check_feed(options)
    if options.step is not None and options.step not in STEPS:
        raise ConfigError(f"--step {options.step}: choose from {', '.join(map(str, STEPS))}")
    store = DayStore(options.store or default_store)
    start = when(options.from_, "--from") if options.from_ else None
    end = when(options.until, "--until", whole_day=True) if options.until else None
    try:
        feeding.fed(options.streams)
    except ValueError as error:
        raise ConfigError(f"--streams: {error}") from None
    sink = _lines if options.to == "stdout" else kafka
    return asyncio.run(_feed(options, store, env, shared, sink, start, end))


async def _feed(
    options: FeedOptions, store: DayStore, env: Mapping[str, str], shared: AbstractAsyncContextManager[Shared],
    sink: Sink, start: datetime | None, end: datetime | None,
) -> int:  # fmt: skip
    async with AsyncExitStack() as stack:
        receiver, held = None, ALONE
        if options.source == "iris":
            receiver = await stack.enter_async_context(iris.connected(*iris.account(env)))
        if options.source in POLLED:
            held = await stack.enter_async_context(shared)
        source = make_source(
            options.source, base_url=options.base_url, failed_dir=store.root / "failed", store=store,
            files=options.files, speed=options.speed, start=start, zone=options.zone,
            week=DayStore(store.root / WEEK), shared=held, receiver=receiver,
        )  # fmt: skip
        stack.push_async_callback(source.aclose)
        streams = options.streams or feeding.usual(source.streams)
        step = options.step or feeding.usual_step(streams)
        begin = source.span()[0] if isinstance(source, ReplaySource) and start is None else start or utc_now()
        emit = stack.enter_context(sink(step, store, begin))
        return await _say_scans(options, source, streams, step, emit, start, end)


@contextmanager
def _lines(_step: int, _store: DayStore, _begin: datetime) -> Iterator[feeding.Emit]:
    yield lambda message: _say(feeding.as_line(message))


async def _say_scans(
    options: FeedOptions, source: GridSource, streams: Sequence[str], step: int, emit: feeding.Emit,
    start: datetime | None, end: datetime | None,
) -> int:  # fmt: skip
    failures = 0

    def failed(stream: str, error: Exception) -> None:
        nonlocal failures
        failures += 1
        _note(str(error) if str(error).startswith(stream) else f"{stream}: {error}")

    if isinstance(source, ReplaySource):
        said = await feeding.replay(source, streams, step, emit, start, end, options.once)
    elif isinstance(source, iris.IrisSource):
        feed = feeding.Feed(streams, step)
        said = await feeding.push(source, feed, emit, once=options.once, until=end, now=utc_now)
    else:
        said = await feeding.poll(
            source, feeding.Feed(streams, step), emit, once=options.once, until=end, now=utc_now,
            sleep=asyncio.sleep, rng=random.Random(), failed=failed,
        )  # fmt: skip
    return 1 if failures and not said else 0


def when(text: str, option: str, whole_day: bool = False) -> datetime:
    """A day (its beginning, or its end when whole_day) or a time with zone, as UTC.

    Raises: ConfigError naming the option.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is not None:
        return midnight(day) + DAY - INSTANT if whole_day else midnight(day)
    t = aware(text)
    if t is None:
        raise ConfigError(f"{option} {text!r}: a UTC day such as 2024-06-01, or a time such as 2024-06-01T12:00Z")
    return t


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # who reads a feed waits for its lines


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
