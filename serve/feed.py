"""The producer of readings: every scan once, in order per grid, numbered, and kept until the broker has it.

Flow:    serve.simulate, serve.balance_scans -> [feed] -> Kafka topic of readings; status -> Redis
Source:  live.md, section 1 (version of a message); docs/live.md, feeding; W3C Trace Context
Units:   speed is recorded seconds per second

Version of a message = (epoch, sequence). The epoch counts starts of feeders on the topic, in Redis; the sequence counts
the scans of a grid since then. A scan that is said again gets a higher sequence and so replaces the earlier one.

A scan leaves this process's memory when the broker has acknowledged it. When the broker goes away, all that is not
acknowledged is sent again, in order, by a new producer: an idempotent one whose broker came back with an empty log (the
embedded broker always does) waits for ever otherwise. A scan may therefore be in the log twice, never in another order.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Producer
from redis.exceptions import RedisError

from serve import keys, topics
from serve.epochs import brisk_redis, next_epoch
from serve.settings import KafkaSettings
from serve.topics import BrokerError
from serve.wire import MAX_BYTES, TRACEPARENT, ScanMessage, encode

log = logging.getLogger(__name__)

QUEUE = 2_000
QUEUE_BYTES = 64 * 2**20
"""Scans in hand at which send() blocks."""
ATTEMPT_MS = 5_000
"""A scan that is not acknowledged by then is sent again by a new producer."""
BACK_OFF_S = (0.05, 2.0)
STATUS_EVERY_S = 5.0
PAUSE_SCANS = 48
"""A gap of the record longer than this is passed over in one step, whatever the speed."""
_NEVER = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD)
"""What the broker says of a message that it will never take."""


class FeedError(RuntimeError):
    """A feed that cannot start, or a scan that can never be sent."""


def traceparent() -> str:
    """A new trace of one scan: 00-<trace id>-<span id>-01."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def paced(source: Iterable[ScanMessage], speed: float, stop: threading.Event) -> Iterator[ScanMessage]:
    """The scans of a source, each when it is due, until `stop` is set.

    Each is due at a time that the record and the speed set at the start: what a slow receiver delays is caught up, not
    pushed back. Scans of several grids may alternate; each grid has its own clock.
    """
    began = latest = 0.0
    clock: dict[str, tuple[int, float]] = {}
    for message in source:
        began = began or time.monotonic()  # not before the source has made its first one
        before_ns, elapsed = clock.get(message.grid, (message.time_ns, latest))
        passed = max(0.0, (message.time_ns - before_ns) / 1e9)
        latest = elapsed + (passed if passed <= PAUSE_SCANS * message.step_s else message.step_s)
        clock[message.grid] = message.time_ns, latest
        if stop.wait(max(0.0, began + latest / speed - time.monotonic())):
            return
        yield message


class Feed:
    """Sends scans to the topic of readings; a context manager that connects, and flushes at the end.

    counts  sent (taken over), acknowledged, resent, refused (by the broker, for good), restarts (new producers)
    Invariant: sent == acknowledged + refused + in hand; per grid, scans are first logged in the order of send().
    """

    def __init__(
        self, kafka: KafkaSettings, redis_url: str, name: str = "", *, source: str = "", queue: int = QUEUE,
        extra: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:  # fmt: skip
        """Args: source, extra  what the status says besides.  Raises: ConfigError, no such address of a Redis."""
        self.kafka, self.queue = kafka, queue
        self._redis = brisk_redis(redis_url)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.source, self._extra = source, extra
        self.epoch = 0
        self.counts: Counter[str] = Counter()
        self._seq: Counter[str] = Counter()
        self._open: dict[int, tuple[str, bytes, str]] = {}
        """Not acknowledged, in order: key, payload, traceparent."""
        self._bytes = self._newest_ns = self._generation = 0
        self._room = threading.Condition()
        self._sending = threading.Lock()
        self._stop, self._closed = threading.Event(), threading.Event()
        self._trouble = ""
        self._back_off_s = BACK_OFF_S[0]
        self._producer: Producer | None = None
        self._thread = threading.Thread(target=self._serve, name=f"feed {self.name}", daemon=True)
        self._told_at = 0.0
        self._since = time.time()

    def __enter__(self) -> Self:
        """Connect: make the topics, take an epoch.  Raises: BrokerError; FeedError for a Redis that does not answer."""
        topics.ensure(self.kafka)
        deadline = time.monotonic() + topics.DEADLINE_S
        while not self.epoch:
            try:
                self.epoch = next_epoch(self._redis, self.kafka)
            except (RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    raise FeedError(f"Redis gives no epoch ({error}); start it, or set REDIS_URL") from None
                time.sleep(0.2)
        self._producer = self._connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: ScanMessage) -> tuple[int, int]:
        """Take a scan over; waits while `queue` scans are not acknowledged yet.

        Returns: epoch and sequence that it got.
        Raises:  FeedError for a scan that is too large, or after close().
        """
        with self._sending:
            seq = self._seq[message.grid] + 1
            payload = encode(replace(message, epoch=self.epoch, seq=seq))
            if len(payload) > MAX_BYTES:
                raise FeedError(f"scan of {message.grid}: {len(payload):,} bytes; at most {MAX_BYTES:,}")
            with self._room:
                while not self._closed.is_set() and (len(self._open) >= self.queue or self._bytes >= QUEUE_BYTES):
                    self._room.wait(0.5)
                    if not self._thread.is_alive():
                        break
                if self._closed.is_set() or not self._thread.is_alive():
                    raise FeedError("the feed is closed" if self._closed.is_set() else "the feed's thread has ended")
                self.counts["sent"] += 1
                self._seq[message.grid], self._newest_ns = seq, message.time_ns
                number = self.counts["sent"]
                self._open[number] = (message.grid, payload, traceparent())
                self._bytes += len(payload)
                if not self._trouble:  # else it goes with the others that are sent again
                    self._produce(number)
        return self.epoch, seq

    def run(self, source: Iterable[ScanMessage], speed: float = math.inf, until_ns: int | None = None) -> int:
        """Send the scans of a source when they are due (`paced`), until it ends, stop() is called or a scan lies after
        until_ns.

        Returns: how many were sent.  Raises: FeedError.
        """
        count = 0
        for message in paced(source, speed, self._stop):
            if until_ns is not None and message.time_ns > until_ns:
                break
            self.send(message)
            count += 1
        return count

    def stop(self) -> None:
        """End run() after the scan in hand; for signal handlers."""
        self._stop.set()

    def flush(self, deadline_s: float = 10.0) -> int:
        """Wait until everything is acknowledged.  Returns: scans that are not."""
        with self._room:
            self._room.wait_for(lambda: not self._open, deadline_s)
            return len(self._open)

    def close(self, deadline_s: float = 10.0) -> int:
        """Flush and disconnect.  Returns: scans that were not delivered; they are lost with this process."""
        left = self.flush(deadline_s)
        if left:
            log.error("%s: %d scans were not delivered (%s)", self.name, left, self._trouble or "no answer in time")
        self._stop.set()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
            self._tell("stopped")
        self._producer = None
        self._redis.close()
        return left

    # --- the thread that hears delivery reports -----------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closed.is_set():
            assert self._producer is not None
            self._producer.poll(0.05)
            if self._trouble:
                self._recover()
            if time.monotonic() - self._told_at >= STATUS_EVERY_S:
                self._tell("running")

    def _connect(self) -> Producer:
        self._generation += 1
        return Producer(
            {
                **self.kafka.client(), "log_level": 0, "enable.idempotence": True, "acks": "all", "linger.ms": 0,
                "compression.type": "lz4", "message.timeout.ms": ATTEMPT_MS, "message.max.bytes": MAX_BYTES + 65_536,
                "queue.buffering.max.messages": 10 * self.queue, "reconnect.backoff.max.ms": 1_000,
                "error_cb": partial(self._heard, self._generation),
            }
        )  # fmt: skip

    def _produce(self, number: int) -> None:
        grid, payload, trace = self._open[number]
        assert self._producer is not None
        try:
            self._producer.produce(
                self.kafka.topics.readings, payload, key=grid, headers=[(TRACEPARENT, trace.encode())],
                on_delivery=partial(self._delivered, self._generation, number),
            )  # fmt: skip
        except (BufferError, KafkaException) as error:  # its queue is full, or it is beyond help: a new one will do it
            self._trouble = str(error)

    def _delivered(self, generation: int, number: int, error: KafkaError | None, _message: object) -> None:
        with self._room:
            if error is not None and error.code() not in _NEVER:
                if generation == self._generation and number in self._open:
                    self._trouble = error.str()
                return
            if (item := self._open.pop(number, None)) is None:  # a late word on one that was sent again
                return
            self._bytes -= len(item[1])
            self._back_off_s = BACK_OFF_S[0]
            self.counts["acknowledged" if error is None else "refused"] += 1
            if error is not None:
                log.error("%s: the broker refuses a scan of %s for good: %s", self.name, item[0], error.str())
            self._room.notify_all()

    def _heard(self, generation: int, error: KafkaError) -> None:
        if generation == self._generation and (error.fatal() or error.code() == KafkaError._ALL_BROKERS_DOWN):
            self._trouble = error.str()

    def _recover(self) -> None:
        """Wait for the broker, then send everything that is in hand again, in order, with a new producer."""
        there = told = False
        while not there and not self._closed.wait(self._back_off_s * random.uniform(0.5, 1.0)):
            self._back_off_s = min(2 * self._back_off_s, BACK_OFF_S[1])
            try:
                topics.ensure(self.kafka, 1.0)
                there = True
            except BrokerError as error:
                self._trouble = str(error)
                if not told:
                    log.warning("%s: %d scans in hand, waiting for the broker: %s", self.name, len(self._open), error)
                told = True
                self._tell("waiting")
        assert self._producer is not None
        old = self._producer
        with self._room:
            if self._closed.is_set():
                return
            self._producer, self._trouble = self._connect(), ""
            self.counts["restarts"] += 1
            self.counts["resent"] += len(self._open)
            for number in list(self._open):
                if not self._trouble:
                    self._produce(number)
        old.purge()
        old.poll(0)
        if told:
            log.warning("%s: the broker is back", self.name)

    # --- status -------------------------------------------------------------------------------------------------------

    def status(self, state: str = "running") -> dict[str, Any]:
        """What GET /v1/status shows of this feed."""
        return {
            "name": self.name, "state": state, "source": self.source, "topic": self.kafka.topics.readings,
            "epoch": self.epoch, "grids": len(self._seq), "sent": self.counts["sent"],
            "acknowledged": self.counts["acknowledged"], "resent": self.counts["resent"],
            "refused": self.counts["refused"], "in_hand": len(self._open), "trouble": self._trouble,
            "scan_ms": self._newest_ns // 10**6, "since_ms": int(self._since * 1e3), "at_ms": int(time.time() * 1e3),
            **self._extra(),
        }  # fmt: skip

    def _tell(self, state: str) -> None:
        """Leave the status in Redis; a Redis that is away costs the status and nothing else."""
        self._told_at = time.monotonic()
        with suppress(RedisError, OSError):
            self._redis.set(keys.status("feed", self.name), json.dumps(self.status(state)), ex=keys.STATUS_TTL_S)
