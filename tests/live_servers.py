"""A real broker and a real Redis for a module of tests, and what stands on a topic."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from serve.embedded import Broker, EmbeddedError, RedisServer, broker_binary, redis_binary
from serve.settings import KafkaSettings


@contextmanager
def servers() -> Iterator[tuple[Broker, RedisServer]]:
    """Both, ended at the end; the test skips where a program is missing (extra `embedded`)."""
    try:
        broker_binary(), redis_binary()
    except EmbeddedError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="gg-"))
    try:
        with Broker(folder) as broker, RedisServer(folder, durable=False) as redis:
            yield broker, redis
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def all_messages(kafka: KafkaSettings, topic: str, deadline_s: float = 20.0) -> list[Message]:
    """Every message of a topic, partition by partition in the order of the log."""
    own = {
        "group.id": "test", "log_level": 0, "enable.partition.eof": True, "fetch.wait.max.ms": 10,
        "enable.auto.commit": False,
    }  # fmt: skip
    reader = Consumer({**kafka.client(), **own})
    end = time.monotonic() + deadline_s
    try:
        partitions = set(reader.list_topics(topic, timeout=5.0).topics[topic].partitions)
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[Message] = []
        while partitions:
            assert time.monotonic() < end, f"{topic}: no end of {partitions} within {deadline_s} s"
            message = reader.poll(0.2)
            if message is None:
                continue
            if (error := message.error()) is None:
                found.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                partitions.discard(message.partition())
        return sorted(found, key=lambda message: (message.partition(), message.offset()))
    finally:
        reader.close()


def eventually(holds: Callable[[], bool], deadline_s: float = 20.0) -> None:
    """Wait until it holds; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.01)
