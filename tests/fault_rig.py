"""A broker, a Redis and consumer processes for tests of faults, and the checker that runs after the fact.

Source:  live.md, section 2 (invariants I1 to I5)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from fault_worker import settings_of, work

from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan, measure
from serve import keys, topics
from serve.settings import LiveSettings
from serve.wire import ScanMessage, encode

CASE = "case14"
T0_NS = 1_700_000_000 * 10**9
PLACES = ("north", "south", "west")
POISON = (b"neither frame nor JSON", b'{"grid": "south"}')
# the fork server of Python 3.11 does not take over sys.path, and would preload nothing
_HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH", "")])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fault_worker"])


def scan(grid: str, number: int, bad: bool = False, epoch: int = 1, seq: int | None = None) -> ScanMessage:
    """Scan number so many of a grid, the same each time it is asked for."""
    case, plan = load_case(CASE), draw_plan(load_case(CASE), 1_000, (0.5, 0.5), 0.0)
    rng = np.random.default_rng([sum(grid.encode()), number])
    z = measure(case, case.v0[None], channels=plan.channels)[0] + 0.5 * plan.sigma * rng.standard_normal(plan.size)
    if bad:
        z[7] += (10.0 + number % 5) * plan.sigma[7]
    return ScanMessage(
        grid=grid, case=CASE, time_ns=T0_NS + number * 60 * 10**9, step_s=60.0, channels=plan.channels,
        sigma=plan.sigma, z_M=z, age_M=np.zeros(plan.size, dtype=np.uint8),
        status_E=np.ones(case.n_branch, dtype=np.uint8), tap_E=case.tap, x_scale_E=np.ones(case.n_branch), epoch=epoch,
        seq=number + 1 if seq is None else seq, origin="simulated",
    )  # fmt: skip


@dataclass
class Rig:
    """What a test has at hand; every test has topics and a group of its own."""

    settings: LiveSettings
    oracle_url: str
    """Another database of the same Redis, for the undisturbed pass."""
    grids: tuple[str, ...]
    mock: bool = False
    """The broker is librdkafka's: it makes topics when they are asked for."""

    def __post_init__(self) -> None:
        if not self.mock:
            topics.ensure(self.settings.kafka)
        self.redis = redis.Redis.from_url(self.settings.redis_url)
        self.producer = Producer({"bootstrap.servers": self.settings.kafka.bootstrap, "linger.ms": 0})
        for topic in topics.names(self.settings.kafka.topics) if self.mock else ():
            self.producer.list_topics(topic, timeout=10)
        self.workers: list[Any] = []
        self.sent: dict[int, int] = {}
        """Newest offset of each partition."""

    def _delivered(self, error: Any, message: Any) -> None:
        assert error is None, error
        self.sent[message.partition()] = message.offset()

    def again(self) -> None:
        """The broker has lost its topics: make them, and send with a producer that knows nothing of it."""
        self.__post_init__()

    def scans(self, numbers: Iterable[int]) -> list[tuple[str, bytes]]:
        """Quiet scans of all grids."""
        return [(grid, encode(scan(grid, number))) for number in numbers for grid in self.grids]

    def story(self, count: int) -> list[tuple[str, bytes]]:
        """Scans of three grids: an incident in one, a duplicate, two exchanged, one missing, two poisoned."""
        north, south, west = self.grids
        out = []
        for number in range(count):
            for grid in self.grids:
                if grid == south and number == 22:
                    continue  # never sent
                at = 49 - number if grid == west and number in (24, 25) else number
                message = encode(scan(grid, at, bad=grid == north and 20 <= at < 30))
                out.append((grid, message))
                if grid == south and number == 25:
                    out += [(grid, message), *((grid, poison) for poison in POISON)]
        return out

    def worker(self, failpoint: str = "", member: str = "m0", name: str = "w", delay_s: float = 0.002) -> Any:
        """Start a consumer."""
        settings = replace(self.settings, consumer=replace(self.settings.consumer, static_member=member))
        process = _CONTEXT.Process(target=work, args=(settings, name, failpoint, delay_s), daemon=True)
        process.start()
        self.workers.append(process)
        return process

    def send(self, messages: list[tuple[str, bytes]], apart_s: float = 0.0) -> None:
        """Put messages on the topic."""
        for grid, payload in messages:
            self.producer.produce(
                self.settings.kafka.topics.readings, payload, key=grid.encode(), on_delivery=self._delivered
            )
            self.producer.flush(10) if apart_s else self.producer.poll(0)
            time.sleep(apart_s)
        assert self.producer.flush(20) == 0

    def ends(self) -> dict[int, int]:
        """Offset after the last message of each partition."""
        return {p: self.sent.get(p, -1) + 1 for p in range(self.settings.kafka.partitions)}

    def position(self, partition: int) -> dict[str, int]:
        """What the store has of a partition: position, incarnation, ts."""
        kafka = self.settings.kafka
        kept = self.redis.hgetall(keys.offset(kafka.group, kafka.topics.readings, partition))
        return {name.decode(): int(value) for name, value in kept.items()}

    def behind(self) -> int:
        """Records that are not applied."""
        return sum(end - max(self.position(p).get("position", 0), 0) for p, end in self.ends().items())

    def told(self, url: str = "") -> dict[str, list[dict[str, Any]]]:
        """All verdicts of each grid in the order in which they were written, without what a clock decides."""
        client = redis.Redis.from_url(url or self.settings.redis_url)
        return {
            grid: [_plain(json.loads(fields[b"json"])) for _, fields in client.xrange(keys.verdicts(grid))]
            for grid in self.grids
        }  # fmt: skip

    def alarms(self, url: str = "") -> list[dict[str, Any]]:
        """Incidents by name."""
        client = redis.Redis.from_url(url or self.settings.redis_url)
        names = sorted(name.decode() for name in client.zrange(keys.ALARMS, 0, -1))
        return [json.loads(client.hget(keys.alarm(name), "json")) for name in names]

    def dead(self) -> list[tuple[str, bytes]]:
        """Kind and bytes of every dead letter."""
        kafka = self.settings.kafka
        reader = Consumer({
            "bootstrap.servers": kafka.bootstrap, "group.id": "rig", "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        })  # fmt: skip
        out = []
        try:
            for p in range(kafka.partitions):
                reader.assign([TopicPartition(kafka.topics.dead_letters, p, 0)])
                while (message := reader.poll(10)) is not None and message.error() is None:
                    out.append((dict(message.headers())["gg.error"].decode(), message.value()))
            return out
        finally:
            reader.close()

    def stop(self) -> None:
        """End all consumers that are left."""
        for process in self.workers:
            process.kill()
            process.join(10)
        self.producer.flush(5)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("latency_ms", "trace")}


def until(fact: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
    """Poll until a fact holds."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if found := fact():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


@contextmanager
def mock_broker() -> Iterator[str]:
    """Address of librdkafka's own broker, which lives in this process: four partitions, classic groups."""
    owner = Producer({"test.mock.num.brokers": 1})
    [broker] = owner.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.flush(1)


@contextmanager
def rig(bootstrap: str, redis_url: str, mock: bool = False) -> Iterator[Rig]:
    """A rig on servers that run."""
    name = f"t{uuid.uuid4().hex[:8]}"
    grids = tuple(f"{place}-{name}" for place in PLACES)
    settings = settings_of(bootstrap, f"{redis_url}/0", name, name)
    if mock:
        settings = replace(settings, kafka=replace(settings.kafka, partitions=4))
    made = Rig(settings, f"{redis_url}/1", grids, mock)
    try:
        yield made
    finally:
        made.stop()


def same_as_undisturbed(tested: Rig) -> None:
    """I1 to I5: every message has a verdict, a dead letter or a counted shed, once, in order, as in a quiet pass."""
    kafka = tested.settings.kafka
    quiet = Rig(
        replace(tested.settings, redis_url=tested.oracle_url, kafka=replace(kafka, group=f"{kafka.group}-quiet")),
        tested.oracle_url, tested.grids, tested.mock,
    )  # fmt: skip
    quiet.sent = tested.sent
    ours, alarms, dead = tested.told(), tested.alarms(), tested.dead()
    quiet.worker(member="")
    try:
        until(lambda: quiet.behind() == 0, "the undisturbed pass")
        theirs = quiet.told()
        for grid in tested.grids:
            versions = [tuple(map(int, record["version"].split("."))) for record in ours[grid]]
            assert versions == sorted(set(versions)), f"I2: versions of {grid} go back or repeat"
            assert ours[grid] == theirs[grid], f"I1, I3: verdicts of {grid} are not those of an undisturbed pass"
        assert alarms == quiet.alarms(), "I5: incidents"
        wanted = [entry for entry in quiet.dead() if entry not in dead]
        assert not wanted, "I1: a poisoned message is not among the dead letters"
    finally:
        quiet.stop()
    for p, end in tested.ends().items():
        assert tested.position(p).get("position", 0) == end, "I4: the position"
    member = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": kafka.group})
    committed = member.committed([TopicPartition(kafka.topics.readings, p) for p in tested.ends()], timeout=10)
    member.close()
    for tp in committed:
        assert tp.offset <= tested.position(tp.partition).get("position", 0), "I4: a commit beyond the store"
