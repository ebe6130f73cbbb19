"""Where reading begins when a partition is taken over: what the store says, held against what the broker has.

Flow:    serve.loop (on assignment) -> [origins] -> Partition, offset to read from
Source:  live.md, section 1 (start position on assignment, topic incarnation)

| found | meaning | reading begins |
|---|---|---|
| position in the store | the truth; Kafka's commit may be behind or ahead | there |
| no position, no commit | a new group | beginning of the log |
| no position, a commit | the store was emptied | `state_rebuild_window_s` back, at most the commit |
| position beyond the log's end, or another record before it | the broker lost its log | beginning of the new log |
| position before the log's beginning | the broker dropped what was too old | beginning of the log |

Before that, windows are read back: from the oldest scan of any grid's window, at most MAX_BACK records.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from serve.partition import Partition
from serve.settings import LiveSettings
from serve.store import Store

MAX_BACK = 50_000
"""Records that are read back at most to rebuild windows; grids that went silent longer ago start anew."""
LOOK_S = 5.0
"""How long one record is waited for."""


class BrokerDown(RuntimeError):
    """The broker does not answer: wait and try again."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A partition that was taken over, where to read from and why there."""

    partition: Partition
    read_from: int
    cause: str
    """store, new-group, store-emptied, log-lost or trimmed."""


class Origins:
    """Finds where partitions begin, with a client of its own that joins no group."""

    def __init__(self, settings: LiveSettings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._client: Consumer | None = None

    def close(self) -> None:
        """Leave the broker."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def find(self, consumer: Consumer, topic: str, number: int) -> Origin:
        """Take a partition over.

        Args:   consumer  the member of the group, whose commits are asked for
        Raises: StoreDown, BrokerDown
        """
        start = self._store.begin(topic, number)
        try:
            client = self._probe()
            low, high = self._span(client, topic, number)
            cause, incarnation, position = "store", start.incarnation, start.position
            if position < 0:
                committed = consumer.committed([TopicPartition(topic, number)], timeout=LOOK_S)[0].offset
                cause, position, incarnation = "new-group", low, 1
                if committed >= 0:
                    cause, position = "store-emptied", self._back(client, topic, number, low, min(committed, high))
            elif position > high or (position > low and not self._same(topic, number, position - 1, start.ts_ms)):
                cause, position, incarnation = "log-lost", low, incarnation + 1
            elif position < low:
                cause, position = "trimmed", low
        except KafkaException as error:
            raise BrokerDown(str(error)) from error
        windows: Mapping[str, int] = start.windows if cause in ("store", "trimmed") else {}
        earliest = min([position, *windows.values()])
        partition = Partition(topic, number, start, incarnation, position, grids=set(start.windows))
        return Origin(partition, max(earliest, low, position - MAX_BACK), cause)

    def _probe(self) -> Consumer:
        if self._client is None:
            self._client = Consumer({
                **self._settings.kafka.client(), "group.id": f"{self._settings.kafka.group}-origins",
                "enable.auto.commit": False, "auto.offset.reset": "error", "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            })  # fmt: skip
        return self._client

    def _span(self, client: Consumer, topic: str, number: int) -> tuple[int, int]:
        """First offset and the one after the last, as a fetch tells it: an embedded broker lists another."""
        low = client.get_watermark_offsets(TopicPartition(topic, number), timeout=LOOK_S)[0]
        client.assign([TopicPartition(topic, number, low)])
        try:
            if self._one(client) is None:
                return low, low
            return low, int(client.get_watermark_offsets(TopicPartition(topic, number), cached=True)[1])
        finally:
            client.unassign()

    def _back(self, client: Consumer, topic: str, number: int, low: int, committed: int) -> int:
        """Where records of the rebuild window begin."""
        since = int((time.time() - self._settings.consumer.state_rebuild_window_s) * 1e3)
        found = client.offsets_for_times([TopicPartition(topic, number, since)], timeout=LOOK_S)[0].offset
        return max(low, min(committed, found if found not in (-1, OFFSET_END) else committed))

    def _same(self, topic: str, number: int, offset: int, ts_ms: int) -> bool:
        """Whether the record at an offset is the one that was applied there, by the broker's time stamp."""
        client = self._probe()
        client.assign([TopicPartition(topic, number, offset)])
        try:
            message = self._one(client)
            return message is not None and message.offset() == offset and message.timestamp()[1] == ts_ms
        finally:
            client.unassign()

    @staticmethod
    def _one(client: Consumer) -> Any:
        deadline = time.monotonic() + LOOK_S
        while time.monotonic() < deadline:
            message = client.poll(0.2)
            if message is None:
                continue
            error = message.error()
            if error is None:
                return message
            if error.code() in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):
                return None
        raise BrokerDown(f"no record within {LOOK_S:g} s")
