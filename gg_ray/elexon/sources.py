"""Sources by name: the one place that knows how each is made.

Flow:    data_commands -> [sources: make_source] -> a GridSource
Source:  docs/gb-data.md, the named package and the closed API
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gg_ray.config import ConfigError, did_you_mean
from gg_ray.elexon.cache import Cache, CachedSource
from gg_ray.elexon.iris import IrisSource, Receiver
from gg_ray.elexon.limits import HOSTS, Buckets
from gg_ray.elexon.replay import ReplaySource
from gg_ray.elexon.source import GridSource
from gg_ray.elexon.store import DayStore

SOURCES = ("insights", "elexondataportal", "iris", "replay", "auto")
HISTORY_SOURCES = ("insights", "elexondataportal")
"""Those that ask the service for a window: what may fill the store. A remembered answer must not count as asked."""
POLLED = (*HISTORY_SOURCES, "auto")
"""Those that ask the service, and so wait for their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the processes of a deployment hold in common: the short cache of auto, and the turns at a host.

    By default nothing is: each process has a cache in its own memory, and buckets of its own.
    """

    cache: Cache | None = None
    buckets: Buckets = HOSTS


ALONE = Shared()


def make_source(
    name: str, *, base_url: str | None = None, failed_dir: Path | None = None, store: DayStore | None = None,
    files: Sequence[Path] = (), speed: float = math.inf, start: datetime | None = None,
    shift: timedelta = timedelta(0), zone: str | None = None, week: DayStore | None = None, shared: Shared = ALONE,
    receiver: Receiver | None = None,
) -> GridSource:  # fmt: skip
    """The source of that name.

    Args:    base_url, failed_dir  of insights, and of what stands on it
             store, files, speed, start, shift, zone  of replay; files go before the store
             week  of auto: its rolling week, trimmed to seven days
             shared  of insights and what stands on it: the turns at its host; of auto: its short cache
             receiver  of iris, from iris.connected
    Raises:  ConfigError for an unknown name, with the nearest one.
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
        return IrisSource(receiver, failed=failed_dir)
    from gg_ray.elexon.insights import BASE_URL, InsightsSource  # httpx: a replay needs none

    live = InsightsSource(base_url or BASE_URL, failed=failed_dir, buckets=shared.buckets)
    if name == "elexondataportal":
        from gg_ray.elexon.portal import ElexonDataPortalSource

        return ElexonDataPortalSource(live)
    return CachedSource(live, cache=shared.cache, store=week) if name == "auto" else live
