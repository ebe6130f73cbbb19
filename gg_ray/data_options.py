"""Options of the commands on GB data: `gg-ray data` and `gg-ray feed`.

Flow:    argv -> options.parse -> [data_options] -> cli, data_commands
Source:  docs/gb-data.md, commands
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gg_ray.config import ConfigError, did_you_mean

SINKS = ("stdout", "kafka")
SIMULATED = ("case", "incidents", "disturbances", "seed", "sites", "scans")
"""Options of --source simulate alone."""
When = str | None
"""A UTC day such as 2024-06-01, or a time with Z or an offset."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """GB histories on disk.

    fetch: bring --from to --to of each --stream into the store, resuming from what it holds.
    sync: bring the last days of the usual streams up to date; made to run daily.
    check: gaps, repeats, dead and late publications of history files or of a store, as a table or as JSON.
    """

    action: tyro.conf.Positional[Literal["fetch", "sync", "check"]]
    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """check: history files, folders of them, or stores; the store when none is named."""
    stream: tuple[str, ...] = ()
    """FUELINST, FUELHH, DEMAND, FREQ, INDO, ITSDO, INDOD, ROLSYSDEM or WARNINGS."""
    from_: Annotated[When, tyro.conf.arg(name="from")] = None
    """fetch: first day (UTC) or time."""
    to: When = None
    """fetch: last day (UTC, whole) or time; now when not given."""
    source: str = "insights"
    """insights or elexondataportal."""
    base_url: str | None = None
    """Another address of the Insights API, such as a server for tests."""
    store: Path | None = None
    """Folder of the store; GG_STORE_DIR or data/elexon when not given."""
    days_back: int = 7
    """sync: days before today that are looked at."""
    zone: str | None = None
    """check: clock of files whose times carry no offset, UTC or Europe/London."""
    json: bool = False
    """check: one JSON object per file or stream instead of tables."""


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """Scans as JSON lines or into Kafka: polled from a live source, pushed by iris, replayed from files or the store,
    or simulated on any grid with injected incidents."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """replay: history files; the store when none is named."""
    source: str = "insights"
    """insights, elexondataportal, iris (GG_IRIS_QUEUE, GG_IRIS_CLIENT_ID and GG_IRIS_SECRET set), replay, auto or
    simulate."""
    to: str = "stdout"
    """stdout: one line per scan; kafka: one message per scan on the topic of readings."""
    bootstrap: str | None = None
    """kafka: host:port of a broker; KAFKA_BOOTSTRAP or 127.0.0.1:9092 when not given. Redis is that of REDIS_URL."""
    name: str = ""
    """kafka: what the feed is called in the status; host and process when not given."""
    case: str = "gb29"
    """simulate: the grid."""
    incidents: int = 5
    """simulate: anomalies injected in a session."""
    disturbances: int = 2
    """simulate: real disturbances of a session, at most 2."""
    seed: int = 0
    """simulate: the same seed gives the same scans."""
    sites: int = 1
    """simulate: so many grids of the case, each at another hour of the same days."""
    scans: int | None = None
    """simulate: scans of a session; a day when not given."""
    streams: tuple[str, ...] = ()
    """Streams that make the scans; FUELINST, DEMAND and FREQ, or the nearest that the source has, when not given."""
    step: int | None = None
    """Length of a scan, s: 1800, 300 or 15; when not given 300, or 1800 where FUELHH brings the fuels."""
    speed: float = float("inf")
    """replay, simulate: recorded seconds per second; inf does not wait."""
    from_: Annotated[When, tyro.conf.arg(name="from")] = None
    """replay: first day (UTC) or time; the beginning of the record when not given. simulate: no day before it."""
    until: When = None
    """Last day (UTC, whole) or time; the end of the record, or for ever when polling."""
    once: bool = False
    """Stop after one poll, after the first scan of a replay, or after the first message of iris that makes a line."""
    base_url: str | None = None
    """Another address of the Insights API, such as a server for tests."""
    store: Path | None = None
    """Folder of the store; GG_STORE_DIR or data/elexon when not given."""
    zone: str | None = None
    """replay: clock of files whose times carry no offset, UTC or Europe/London."""


def check_feed(options: FeedOptions) -> None:
    """Refuse what no source can do.  Raises: ConfigError naming the option."""
    if options.to not in SINKS:
        raise ConfigError(f"--to {options.to!r}{did_you_mean(options.to, SINKS) or ';'} choose from {', '.join(SINKS)}")
    if not options.speed > 0:
        raise ConfigError(f"--speed {options.speed}: more than 0, inf for as fast as possible")
    if options.source == "simulate":
        if options.files or options.streams or options.step is not None:
            raise ConfigError("files, --streams and --step belong to other sources; simulate takes --case and --scans")
        return
    if options.source != "replay" and (options.from_ is not None or options.files):
        raise ConfigError(f"--from and files belong to --source replay; {options.source} begins now")
    usual = {field.name: field.default for field in fields(FeedOptions)}
    for name in SIMULATED:
        if getattr(options, name) != usual[name]:
            raise ConfigError(f"--{name} belongs to --source simulate, not to {options.source}")
