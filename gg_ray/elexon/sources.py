"""Sources by name: one place that knows how each is made, and the one that falls back to what is stored.

Flow:    commands, serve.feed -> [sources: make_source] -> a GridSource
Source:  docs/gb-data.md, three sources behind one protocol

The parts that talk to a network are imported when they are asked for: a replay needs none of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from gg_ray.config import ConfigError, did_you_mean
from gg_ray.elexon.errors import BadAnswer, ElexonError, RateLimited, Unavailable
from gg_ray.elexon.replay import ReplaySource
from gg_ray.elexon.source import Fetched, GridSource, Health
from gg_ray.elexon.store import DayStore

log = logging.getLogger(__name__)

SOURCES = ("insights", "elexondataportal", "iris", "replay", "auto")
_FAILURES = (RateLimited, Unavailable, BadAnswer)
"""Failures of the service. A wrong question is wrong for the store too."""


def make_source(
    name: str, *, base_url: str | None = None, store: DayStore | None = None, files: Sequence[Path] = (),
    speed: float = math.inf, start: datetime | None = None, shift: timedelta = timedelta(0), zone: str | None = None,
    failed_dir: Path | None = None,
) -> GridSource:  # fmt: skip
    """The source of that name.

    Args:    base_url, failed_dir  of insights, and of what stands on it; store, files, speed, start, shift, zone  of
             replay, files first; store  also what auto falls back to
    Raises:  ConfigError for an unknown name, with the nearest one, or for a part that is not installed.
    """
    if name not in SOURCES:
        raise ConfigError(
            f"unknown source {name!r}{did_you_mean(name, SOURCES) or ';'} choose from {', '.join(SOURCES)}"
        )
    if name == "replay":
        record = list(files) or store
        if record is None:
            raise ConfigError("source replay: name files or a store to replay")
        return ReplaySource(record, speed=speed, start=start, shift=shift, zone=zone)
    if name == "iris":
        return _made("gg_ray.elexon.iris", "IrisSource", name)
    settings = {} if base_url is None else {"base_url": base_url}
    live = _made("gg_ray.elexon.insights", "InsightsSource", name, **settings, failed=failed_dir)
    if name == "elexondataportal":
        return _made("gg_ray.elexon.portal", "ElexonDataPortalSource", name, live)
    return live if name == "insights" or store is None else FallbackSource(live, store)


def _made(module: str, cls: str, name: str, *args: Any, **settings: Any) -> GridSource:
    try:
        made: GridSource = getattr(import_module(module), cls)(*args, **settings)
    except ImportError as error:
        raise ConfigError(f"source {name}: {error}; replay and the others need no such part") from error
    return made


class FallbackSource:
    """GridSource that asks the live one and, when the service fails, gives what is stored, marked `cache`.

    Invariant: rows of origin "live" were fetched by this very call. One log line when a stream falls through and one
    when it is back.
    """

    name = "auto"

    def __init__(self, live: GridSource, store: DayStore) -> None:
        self.live, self.streams = live, live.streams
        self._stored = ReplaySource(store) if any(store.days(name) for name in live.streams) else None
        self._failing: set[str] = set()

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """Rows in [start, end], live or stored.  Raises: what the live source raised, when nothing is stored."""
        try:
            found = await self.live.fetch(stream, start, end)
        except _FAILURES as error:
            return self._through(error, stream, await self._from_store(stream, start, end, error))
        self._back(stream)
        return found

    async def latest(self, stream: str) -> Fetched:
        """The newest rows: live, else the last stored span of the stream's overlap."""
        try:
            found = await self.live.latest(stream)
        except _FAILURES as error:
            if self._stored is None:
                raise
            await self._stored.wait_until(self._stored.span()[1])
            try:
                held = await self._stored.latest(stream)
            except ElexonError:
                raise error from None
            return self._through(error, stream, held)
        self._back(stream)
        return found

    async def health(self) -> Health:
        return await self.live.health()

    async def aclose(self) -> None:
        await self.live.aclose()

    async def _from_store(self, stream: str, start: datetime, end: datetime, error: ElexonError) -> Fetched:
        if self._stored is None:
            raise error
        try:
            return await self._stored.fetch(stream, start, end)
        except ElexonError:
            raise error from None

    def _through(self, error: ElexonError, stream: str, held: Fetched) -> Fetched:
        if not held.rows:
            raise error
        held.origin = "cache"
        if stream not in self._failing:
            self._failing.add(stream)
            log.warning("%s: served from the store, because %s failed: %s", stream, self.live.name, error)
        return held

    def _back(self, stream: str) -> None:
        if stream in self._failing:
            self._failing.discard(stream)
            log.warning("%s: live again from %s", stream, self.live.name)
