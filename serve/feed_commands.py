"""What `gg-ray feed` does where it needs the live path: scans into Kafka, and simulated scans to either side.

Flow:    gg_ray.cli -> [feed_commands] -> serve.feed, serve.simulate, serve.balance_scans
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np

from gg_ray.data_commands import when
from gg_ray.data_options import FeedOptions, check_feed
from gg_ray.elexon.feeding import Emit
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import ns_of
from serve.balance_scans import BalanceScans, usual_from
from serve.feed import Feed, FeedError, paced
from serve.settings import kafka_from, redis_url_from
from serve.simulate import Injected, Twin
from serve.wire import ScanMessage


@contextmanager
def to_kafka(
    options: FeedOptions, env: Mapping[str, str], step: int, store: DayStore, begin: datetime
) -> Iterator[Emit]:
    """A sink of gg_ray.data_commands: messages of the Elexon feed become scans on the topic of readings.

    What is usual at the beginning comes from the half-hours that the store holds before it.
    Raises: BrokerError, FeedError when it cannot start, or not deliver everything at the end; ConfigError.
    """
    scans = BalanceScans(step, usual_from(store, begin))
    feed = _feed(options, env)

    def emit(message: dict[str, Any]) -> None:
        feed.send(scans.scan(message))

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with feed:
            yield emit
    finally:
        signal.signal(signal.SIGTERM, before)
    _all_delivered(feed)


def simulate(options: FeedOptions, env: Mapping[str, str]) -> int:
    """`gg-ray feed --source simulate`: the twin's scans at a speed; what is injected is said on standard error.

    Raises: ConfigError, SimulateError, CaseError for bad options; BrokerError, FeedError.
    """
    check_feed(options)
    until_ns = ns_of(when(options.until, "--until", whole_day=True)) if options.until else None
    twin = Twin(
        options.case, incidents=options.incidents, disturbances=options.disturbances, seed=options.seed,
        sites=options.sites, scans=options.scans,
        start_ns=ns_of(when(options.from_, "--from")) if options.from_ else None,
    )  # fmt: skip
    source = _until(_announced(twin), until_ns, once=options.once)
    if options.to == "stdout":
        for message in paced(source, options.speed, threading.Event()):
            sys.stdout.write(line_of(message) + "\n")
            sys.stdout.flush()  # who reads a feed waits for its lines
        return 0
    feed = _feed(options, env, twin)
    before = {number: signal.signal(number, lambda *_: feed.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with feed:
            feed.run(source, options.speed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _all_delivered(feed)
    return 0


def line_of(message: ScanMessage) -> str:
    """A scan as JSON of the topic's JSON schema, with null where nothing arrived: other feeds can be made of it."""
    m = message
    row: dict[str, Any] = {
        "grid": m.grid, "case": m.case, "time_ns": m.time_ns, "step_s": m.step_s, "origin": m.origin,
        "channels": m.channels.tolist(), "sigma": m.sigma.tolist(),
        "z": [None if np.isnan(value) else value for value in m.z_M.tolist()], "age": m.age_M.tolist(),
        "status": m.status_E.tolist(), "tap": m.tap_E.tolist(), "x_scale": m.x_scale_E.tolist(),
        "values": dict(m.values), "streams": dict(m.streams),
    }  # fmt: skip
    return json.dumps(row, separators=(",", ":"), allow_nan=False)


def _feed(options: FeedOptions, env: Mapping[str, str], twin: Twin | None = None) -> Feed:
    kafka, redis_url = kafka_from(env, options.bootstrap), redis_url_from(env)
    return Feed(kafka, redis_url, options.name, source=options.source, extra=twin.status if twin else dict)


def _announced(twin: Twin) -> Iterator[ScanMessage]:
    told: set[Injected] = set()
    for message, truth in twin:
        news = set(truth) - told
        for one in sorted(news, key=lambda one: (one.start_ns, one.primitive)):
            sys.stderr.write(f"injected: {json.dumps(one.as_json())}\n")
        told = {one for one in told | news if one.end_ns > message.time_ns or one.grid != message.grid}
        yield message


def _until(source: Iterator[ScanMessage], until_ns: int | None, *, once: bool) -> Iterator[ScanMessage]:
    for message in source:
        if until_ns is not None and message.time_ns > until_ns:
            return
        yield message
        if once:
            return


def _leave(*_: object) -> None:
    raise SystemExit(0)  # unwinds through the sink, which flushes


def _all_delivered(feed: Feed) -> None:
    if left := feed.status()["in_hand"]:
        raise FeedError(f"{left} scans were not delivered: no broker at {feed.kafka.bootstrap} took them in time")
