"""The scan loop: poll, decode, ask the Verifier in batches, apply in order, commit what is durable.

Flow:    gg.readings.v1 -> [loop] -> serve.asks -> Verifier -> [loop] -> serve.scribe -> serve.store; dead letters
Source:  live.md, section 1 (the scorer's contract); docs/live.md has it for people

One thread. Answers come back in any order and are applied in the order of offsets. Whatever is not a message's own
fault (Redis, Serve, broker, schema registry away) pauses and is tried again without end; what is goes to the dead
letters. Positions live in Redis beside the verdicts; Kafka's commit is a hint for tools.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from gg_ray.records import CANNOT_TELL, Verdict
from serve.asks import Ask, Scored
from serve.dead_letters import MAX_LETTER, DeadLetters
from serve.failpoints import reach
from serve.origins import BrokerDown, Origins
from serve.partition import Item, Partition
from serve.records import dump
from serve.rings import Ring, plan_of_message
from serve.schemas import RegistryDown
from serve.scribe import Heard, Scribe
from serve.settings import LiveSettings
from serve.store import Store, StoreDown, Write
from serve.wire import TRACEPARENT, Poison, ScanMessage, decode

LOG = logging.getLogger(__name__)
CHUNK = 64
"""Scans of one pipeline to Redis."""
FETCH = 256
STATUS_S, MAP_S = 2.0, 0.5
"""How often the loop tells of itself, and how often at most a map of a grid is asked for."""
BACKOFF_S = (0.05, 2.0)
FUTURE_S = 3_600.0
"""A live scan from further ahead has a wrong clock."""


class Scorer(Protocol):
    """Whoever judges: the Verifier deployment through its handle, or models in this process."""

    def submit(self, asks: Sequence[Ask]) -> Future[list[list[Scored]]]:
        """Ask; the future fails where nobody could be asked, which is nobody's fault and is tried again."""
        ...


class ScanLoop:
    """One member of the consumer group.

    Invariant: a record is applied after all before it in its partition; the store's position never passes one that is
    neither judged, nor a dead letter, nor counted as shed; at most `high_mark` scans per partition are in hand.
    """

    def __init__(
        self, settings: LiveSettings, scorer: Scorer, name: str = "consumer-0", store: Store | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.settings, self.scorer, self.name, self._clock = settings, scorer, name, clock
        self.config, self.topics = settings.consumer, settings.kafka.topics
        self.store = store or Store.connect(settings.redis_url, settings.kafka.group)
        self.counts: Counter[str] = Counter()
        self.partitions: dict[tuple[str, int], Partition] = {}
        self._rings: dict[str, Ring] = {}
        self._shown: dict[str, float] = {}
        self._scribe = Scribe()
        self._origins = Origins(settings, self.store)
        self._waiting: deque[tuple[Partition, Item]] = deque()
        self._calls: list[tuple[Future[list[list[Scored]]], list[list[Item]], list[Ask]]] = []
        self._again: deque[tuple[float, list[list[Item]], list[Ask]]] = deque()
        self._writes: deque[tuple[Partition, Write]] = deque()
        self._answered = threading.Event()
        self._paused: set[tuple[str, int]] = set()
        self._store_wait, self._store_ready = BACKOFF_S[0], 0.0
        self._fresh: list[TopicPartition] = []
        self._told_at = self._committed_at = 0.0
        self.turned_at = time.monotonic()
        # not idempotent: after a broker lost its memory such a producer waits for ever, and a copy twice does no harm
        self.producer = Producer({
            **settings.kafka.client(), "acks": "all", "linger.ms": 2, "compression.type": "lz4",
            "message.timeout.ms": 30_000, "message.max.bytes": MAX_LETTER,
        })  # fmt: skip
        self._dead = DeadLetters(self.producer, self.topics.dead_letters)
        member = {"group.instance.id": self.config.static_member} if self.config.static_member else {}
        self.consumer = Consumer({
            **settings.kafka.client(), "group.id": settings.kafka.group, "enable.auto.commit": False,
            "auto.offset.reset": "error", "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.kafka.session_timeout_ms, "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
            "max.poll.interval.ms": settings.kafka.max_poll_interval_ms, "enable.partition.eof": False,
            "topic.metadata.refresh.interval.ms": 5_000, "allow.auto.create.topics": False, **member,
        })  # fmt: skip

    # --- life ---------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop, then drain, commit and leave."""
        self.consumer.subscribe(
            [self.topics.readings], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        try:
            while not stop.is_set():
                self.turn()
            self._drain()
        finally:
            self.consumer.close()
            self._origins.close()
            self.producer.flush(5.0)

    def turn(self) -> None:
        """One round: what came in, what was answered, what can be applied."""
        self.turned_at = time.monotonic()
        self._take_over()
        messages = self._fetch()
        if messages:
            reach("after-poll")
        for message in messages:
            self._receive(message)
        self._decode_held()
        if messages:
            reach("after-decode")
        self._ask()
        self._collect()
        self._apply()
        self._commit()
        self._throttle()
        self._tell()
        self.producer.poll(0)

    def _fetch(self) -> list[Any]:
        busy = bool(self._calls or self._waiting or self._writes or self._again)
        if busy:
            self._answered.wait(self.config.linger_ms / 1e3)
            self._answered.clear()
            return list(self.consumer.consume(FETCH, 0.0))
        first = self.consumer.poll(0.05)
        return [] if first is None else [first, *self.consumer.consume(FETCH, 0.0)]

    # --- what comes in ------------------------------------------------------------------------------------------------

    def _receive(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            self._trouble(message, error)
            return
        partition = self.partitions.get((message.topic(), message.partition()))
        if partition is None:
            return  # fetched before it was taken away
        partition.newest = message.offset()
        if partition.held:
            partition.held.append(message)
        else:
            self._decode(partition, message)

    def _trouble(self, message: Any, error: KafkaError) -> None:
        """Errors that come as messages: all of them pass by themselves but a log that is gone."""
        self.counts[f"broker.{error.name()}"] += 1
        key = (message.topic(), message.partition())
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and key in self.partitions:
            self._anew(self.partitions[key], "the broker does not have the offset that was asked for")
        elif error.fatal():
            raise KafkaException(error)

    def _decode_held(self) -> None:
        for partition in list(self.partitions.values()):
            while partition.held:
                if not self._decode(partition, partition.held[0], hold=False):
                    break
                partition.held.popleft()

    def _decode(self, partition: Partition, message: Any, hold: bool = True) -> bool:
        """Take a record in; False where it cannot be read yet."""
        payload, offset = message.value() or b"", message.offset()
        rebuilding = offset < partition.base and not partition.items
        item = Item(offset=offset, ts_ms=message.timestamp()[1], size=len(payload))
        try:
            scan = decode(payload)
            self._place(partition, item, scan, _trace(message))
        except RegistryDown as error:
            if hold:  # told once: what is held is tried again in every turn
                self.counts["registry-down"] += 1
                LOG.warning("%s/%d waits: %s", *partition.key, error)
                partition.held.append(message)
            return False
        except Poison as error:
            if not rebuilding:
                self.counts[f"dead.{error.kind}"] += 1
                self._dead.bury(message, error.kind, str(error), lambda: setattr(item, "dead", True))
        if rebuilding:
            self.counts["read-back"] += 1
            return True
        self.counts["scans"] += 1
        partition.take(item)
        if not item.settled and item.heard is not None:
            self._waiting.append((partition, item))
        return True

    def _place(self, partition: Partition, item: Item, scan: ScanMessage, trace: str) -> None:
        if scan.origin == "live" and scan.time_ns > (self._clock() + FUTURE_S) * 1e9:
            raise Poison("time", f"time_ns {scan.time_ns} lies more than an hour ahead of this clock")
        ring = self._rings.setdefault(scan.grid, Ring(self.config.scans_of(scan.case)))
        item.grid = scan.grid
        partition.grids.add(scan.grid)
        feed = scan.epoch is not None and scan.seq is not None
        version = (scan.epoch or 0, scan.seq or 0) if feed else (partition.incarnation, item.offset)
        restarts, begun = ring.restarts, ring.rows > 0
        place = ring.push(scan, item.offset, version)
        item.window_start = ring.start
        if place != "newest":
            item.shed = place
            return
        item.heard = Heard(
            message=scan, plan=plan_of_message(scan), version=version, kind="feed" if feed else "log", gap=ring.gap,
            filled=ring.filled, scans=ring.scans, restarted=begun and ring.restarts > restarts, ts_ms=item.ts_ms,
            trace=trace,
        )  # fmt: skip
        item.block, item.end = ring.block, ring.rows
        if ring.filled < ring.scans:
            item.scored = Scored(verdict=_too_few(item.heard))

    # --- what is asked and answered -----------------------------------------------------------------------------------

    def _ask(self) -> None:
        now = self._clock()
        while self._again and self._again[0][0] <= now and len(self._calls) < self.config.in_flight:
            _, items, asks = self._again.popleft()
            self._submit(items, asks)
        self._shed(now)
        while self._waiting and len(self._calls) + len(self._again) < self.config.in_flight:
            batch = [self._waiting.popleft() for _ in range(min(self.config.max_batch, len(self._waiting)))]
            mine = [item for partition, item in batch if self.partitions.get(partition.key) is partition]
            if mine:
                self._submit(*self._asks(mine))

    def _shed(self, now: float) -> None:
        """Beyond the lag that is allowed only the newest scan of each grid is judged."""
        if not self._waiting or now - self._waiting[0][1].ts_ms / 1e3 <= self.config.max_lag_s:
            return
        newest = {item.grid: item for _, item in self._waiting}
        for _, item in self._waiting:
            if newest[item.grid] is not item:
                item.shed = "lag"
        self._waiting = deque(pair for pair in self._waiting if not pair[1].settled)

    def _asks(self, items: list[Item]) -> tuple[list[list[Item]], list[Ask]]:
        """Windows that overlap in one ask each."""
        groups: list[list[Item]] = []
        last: dict[str, list[Item]] = {}
        for item in items:
            own = last.get(item.grid)
            if own is not None and own[-1].block is item.block and own[-1].end + 1 == item.end:
                own.append(item)
            else:
                last[item.grid] = [item]
                groups.append(last[item.grid])
        return groups, [self._ask_of(own) for own in groups]

    def _ask_of(self, items: list[Item]) -> Ask:
        first, newest = items[0], items[-1]
        block, heard = first.block, first.heard
        assert block is not None
        assert heard is not None
        rows = slice(first.end - heard.scans, newest.end)
        now, grid = time.monotonic(), first.grid
        show = now - self._shown.get(grid, -MAP_S) >= MAP_S
        if show:
            self._shown[grid] = now
        return Ask(
            grid=grid, case=heard.message.case, plan=heard.plan, scans=heard.scans, step_s=heard.message.step_s,
            end_ns=tuple(item.heard.message.time_ns for item in items if item.heard is not None), z=block.z[rows],
            age=block.age[rows], status=block.status[rows], tap=block.tap[rows], x_scale=block.x_scale[rows],
            shown=tuple(show and item is newest for item in items), peak=self._scribe.peak(grid),
        )  # fmt: skip

    def _submit(self, items: list[list[Item]], asks: list[Ask]) -> None:
        future = self.scorer.submit(asks)
        future.add_done_callback(lambda _: self._answered.set())
        self._calls.append((future, items, asks))
        reach("in-scoring")

    def _collect(self) -> None:
        for call in [call for call in self._calls if call[0].done()]:
            self._calls.remove(call)
            future, items, asks = call
            error = future.exception()
            if error is not None:
                self._retry(items, asks, error)
                continue
            reach("after-scoring")
            for own, answers in zip(items, future.result(), strict=True):
                for item, scored in zip(own, answers, strict=True):
                    self._settle(item, scored)

    def _retry(self, items: list[list[Item]], asks: list[Ask], error: BaseException) -> None:
        """The Verifier could not be asked: again later, after some attempts one ask at a time."""
        self.counts["verifier-away"] += 1
        attempts = max(item.attempts for own in items for item in own) + 1
        for own in items:
            for item in own:
                item.attempts = attempts
        wait = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(attempts, 10)) * random.uniform(0.5, 1.0)
        LOG.warning("the Verifier did not answer (%s); attempt %d in %.2f s", _short(error), attempts + 1, wait)
        due = self._clock() + wait
        parts = [(items, asks)] if attempts < 3 else [([own], [ask]) for own, ask in zip(items, asks, strict=True)]
        self._again.extend((due, *part) for part in parts)

    def _settle(self, item: Item, scored: Scored) -> None:
        if scored.verdict is not None:
            item.scored = scored
            return
        self.counts["dead.verifier"] += 1
        assert item.heard is not None
        self._dead.bury_scan(
            item.heard, self.topics.readings, item.offset, scored.error, lambda: setattr(item, "dead", True)
        )

    # --- what is applied ----------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        for partition in self.partitions.values():
            self._writes.extend((partition, self._write(partition, item)) for item in partition.release())
        while self._writes and self._clock() >= self._store_ready:
            chunk = [self._writes[i] for i in range(min(CHUNK, len(self._writes)))]
            try:
                answers = self.store.apply([write for _, write in chunk])
            except StoreDown as error:
                self._store_away(error)
                return
            self._store_wait = BACKOFF_S[0]
            reach("after-redis")
            for (partition, write), answer in zip(chunk, answers, strict=False):
                if not self._writes or self._writes[0][1] is not write:
                    break  # what followed belonged to a partition that was dropped
                self._writes.popleft()
                self._applied(partition, write, answer)

    def _write(self, partition: Partition, item: Item) -> Write:
        common: dict[str, Any] = {
            "topic": partition.topic, "partition": partition.number, "fence": partition.start.fence,
            "incarnation": partition.incarnation, "base": partition.base, "after": item.offset + 1, "ts_ms": item.ts_ms,
            "opens": not partition.opened, "grid": item.grid, "window_start": item.window_start,
        }  # fmt: skip
        partition.base, partition.opened = item.offset + 1, True
        if item.shed or item.dead or item.heard is None or item.scored is None:
            if item.shed:
                self.counts[f"shed.{item.shed}"] += 1
            return Write(**common)
        page = self._scribe.page(item.heard, item.scored)
        return Write(
            **common, kind="feed" if item.heard.kind == "feed" else "log", version=item.heard.version,
            verdict=page.verdict, map=page.map, state=page.state, about=page.about, alarms=page.alarms,
        )  # fmt: skip

    def _applied(self, partition: Partition, write: Write, answer: str) -> None:
        self.counts[f"applied.{answer}"] += 1
        if answer == "fenced":
            LOG.warning("%s/%d belongs to another consumer now", *partition.key)
            self._drop(partition)
        elif answer == "gap":
            self._anew(partition, "the store does not have what was applied before")
        else:
            partition.applied = write.after
            if answer == "written" and write.verdict is not None:
                self._publish(self.topics.verdicts, write.grid, dump(write.verdict))
                for alarm in write.alarms:
                    self._publish(self.topics.alarms, write.grid, dump(alarm))

    def _publish(self, topic: str, key: str, text: str) -> None:
        try:
            self.producer.produce(topic, text.encode(), key=key.encode())
        except BufferError:
            self.counts["unpublished"] += 1  # Redis has it; the topics of verdicts are copies

    def _store_away(self, error: StoreDown) -> None:
        self.counts["store-away"] += 1
        self._store_ready = self._clock() + self._store_wait * random.uniform(0.5, 1.0)
        LOG.warning("the store does not take scans (%s); again in %.2f s", _short(error), self._store_wait)
        self._store_wait = min(BACKOFF_S[1], 2 * self._store_wait)

    def _commit(self, wait: bool = False) -> None:
        if not wait and time.monotonic() - self._committed_at < self.config.commit_every_s:
            return
        self._committed_at = time.monotonic()
        due = [p for p in self.partitions.values() if p.applied > p.committed]
        if not due:
            return
        try:
            there = [TopicPartition(p.topic, p.number, p.applied) for p in due]
            if wait:
                self.consumer.commit(offsets=there, asynchronous=False)
            else:
                self.consumer.commit(offsets=there, asynchronous=True)
            reach("in-commit")
            for partition in due:
                partition.committed = partition.applied
        except KafkaException as error:
            self.counts["commit-failed"] += 1
            LOG.warning("commit: %s", _short(error))

    # --- partitions come and go ---------------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        """Take partitions over. Those for which nobody answers now are held, paused, until somebody does."""
        begun: list[TopicPartition] = []
        held: list[TopicPartition] = []
        for tp in parts:
            at = self._begin(tp.topic, tp.partition)
            (held if at is None else begun).append(TopicPartition(tp.topic, tp.partition, at or 0))
        consumer.incremental_assign([*begun, *held])
        if held:
            consumer.pause(held)
            self._fresh += held

    def _take_over(self) -> None:
        """Try the held partitions again."""
        if not self._fresh or self._clock() < self._store_ready:
            return
        rest: list[TopicPartition] = []
        for tp in self._fresh:
            at = self._begin(tp.topic, tp.partition)
            if at is None:
                rest.append(tp)
                continue
            there = TopicPartition(tp.topic, tp.partition, at)
            try:
                self.consumer.seek(there)
            except KafkaException:  # it is not being fetched, such as after an offset that the broker did not have
                self.consumer.incremental_unassign([tp])
                self.consumer.incremental_assign([there])
            self.consumer.resume([there])
        self._fresh = rest

    def _begin(self, topic: str, number: int) -> int | None:
        """Where to read a partition from; None while the store or the broker does not say."""
        try:
            origin = self._origins.find(self.consumer, topic, number)
            states = self.store.states(sorted(origin.partition.grids))
        except StoreDown as error:
            self._store_away(error)
            return None
        except BrokerDown as error:
            self.counts["broker-away"] += 1
            LOG.info("%s/%d: %s", topic, number, _short(error))
            return None
        self.counts[f"start.{origin.cause}"] += 1
        level = logging.INFO if origin.cause in ("store", "new-group") else logging.WARNING
        base = origin.partition.base
        LOG.log(level, "%s/%d begins at %d (%s), read from %d", topic, number, base, origin.cause, origin.read_from)
        self._scribe.resume(states)
        self.partitions[(topic, number)] = origin.partition
        return origin.read_from

    def _anew(self, partition: Partition, why: str) -> None:
        """Take a partition over once more, as if it had just been assigned."""
        LOG.warning("%s/%d is begun anew: %s", *partition.key, why)
        self._drop(partition)
        tp = TopicPartition(*partition.key)
        self.consumer.pause([tp])
        self._fresh.append(tp)

    def _drop(self, partition: Partition) -> None:
        """Forget a partition and everything of it that is in hand."""
        self.partitions.pop(partition.key, None)
        self._paused.discard(partition.key)
        self._writes = deque(pair for pair in self._writes if pair[0] is not partition)
        self._waiting = deque(pair for pair in self._waiting if pair[0] is not partition)
        for grid in partition.grids:
            self._rings.pop(grid, None)
        self._scribe.forget(sorted(partition.grids))

    def _revoked(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        reach("in-revoke")
        self._drain()
        self._leave(parts)

    def _lost(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self.counts["lost"] += len(parts)
        self._leave(parts)

    def _leave(self, parts: list[TopicPartition]) -> None:
        keys = {(tp.topic, tp.partition) for tp in parts}
        self._fresh = [tp for tp in self._fresh if (tp.topic, tp.partition) not in keys]
        for key in keys & set(self.partitions):
            self._drop(self.partitions[key])

    def _drain(self) -> None:
        """Finish what is in hand, for a fifth of the poll interval at most, and commit it."""
        deadline = time.monotonic() + self.settings.kafka.max_poll_interval_ms / 5e3
        while time.monotonic() < deadline and (self._calls or self._again or self._waiting or self._writes):
            self._ask()
            self._answered.wait(0.005)
            self._answered.clear()
            self._collect()
            self.producer.poll(0)
            self._apply()
        self._commit(wait=True)

    # --- bounds and news ----------------------------------------------------------------------------------------------

    def _throttle(self) -> None:
        """Pause partitions with too much in hand, resume those with little; paused state is made anew each time."""
        full = sum(p.bytes for p in self.partitions.values()) > self.config.max_bytes
        away = self._clock() < self._store_ready
        for key, partition in self.partitions.items():
            count, paused = len(partition.items) + len(partition.held), key in self._paused
            if not paused and (full or away or count > self.config.high_mark):
                self.consumer.pause([TopicPartition(*key)])
                self._paused.add(key)
                self.counts["pauses"] += 1
            elif paused and not full and not away and count < self.config.low_mark:
                self.consumer.resume([TopicPartition(*key)])
                self._paused.discard(key)

    def _tell(self) -> None:
        if time.monotonic() - self._told_at < STATUS_S:
            return
        self._told_at = time.monotonic()
        try:
            self.store.say("consumer", self.name, self.status())
        except StoreDown as error:
            LOG.info("status: %s", _short(error))

    def status(self) -> dict[str, Any]:
        """What the loop says of itself: lag in offsets and in seconds, what is in hand, what was counted."""
        parts = []
        for partition in self.partitions.values():
            try:
                high = self.consumer.get_watermark_offsets(TopicPartition(*partition.key), cached=True)[1]
            except KafkaException:
                high = partition.newest + 1
            parts.append({
                "partition": partition.number, "position": partition.base, "lag": max(high - partition.base, 0),
                "in_hand": len(partition.items), "paused": partition.key in self._paused,
            })  # fmt: skip
        oldest = [p.items[0].ts_ms for p in self.partitions.values() if p.items]
        oldest += [p.held[0].timestamp()[1] for p in self.partitions.values() if p.held]
        return {
            "name": self.name, "partitions": parts, "lag": sum(p["lag"] for p in parts),
            "lag_s": round(max(self._clock() - min(oldest) / 1e3, 0.0), 3) if oldest else 0.0,
            "in_flight": sum(len(own) for _, items, _ in self._calls for own in items),
            "paused": len(self._paused), "commit_age_s": round(time.monotonic() - self._committed_at, 3),
            "grids": len(self._rings), "counts": dict(self.counts), "time_ms": int(self._clock() * 1e3),
        }  # fmt: skip


def _too_few(heard: Heard) -> Verdict:
    return Verdict(
        case=heard.message.case, time_ns=heard.message.time_ns, verdict=CANNOT_TELL, p_implausible=None,
        p_disturbance=None, p_value=None, type="none", buses=(), branches=(), onset_scan=-1, corrected={}, model="",
        note=f"{heard.filled} of {heard.scans} scans of a window so far",
    )  # fmt: skip


def _trace(message: Any) -> str:
    for name, value in message.headers() or ():
        if name == TRACEPARENT and isinstance(value, bytes) and len(value) <= 64:
            return value.decode("ascii", "replace")
    return ""


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
