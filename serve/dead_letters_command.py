"""What `gg-ray dead-letters list|replay` does.

Flow:    cli -> [dead_letters_command] -> gg.dead-letters.v1 -> standard output, gg.readings.v1
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from gg_ray.live_options import DeadLettersOptions
from serve.dead_letters import CUT, MAX_LETTER, OURS
from serve.settings import KafkaSettings
from serve.topics import BrokerError

QUIET_S = 10.0
"""How long a partition that says nothing is waited for."""
SHOWN = 60
"""Bytes of a message that a line shows."""


def dead_letters(options: DeadLettersOptions, kafka: KafkaSettings) -> int:
    """List dead letters, or send them again.

    Raises: BrokerError when the broker does not answer or does not take them.
    """
    replay = options.action == "replay"
    producer = Producer({**kafka.client(), "acks": "all", "message.max.bytes": MAX_LETTER}) if replay else None
    count = cut = 0
    refused: list[str] = []
    for message in letters(kafka, options.limit, options.error):
        found = {name: value.decode("utf-8", "replace") for name, value in message.headers() or () if value is not None}
        if producer is None:
            value = message.value() or b""
            line = {
                "topic": found.get("gg.topic"), "partition": found.get("gg.partition"),
                "offset": found.get("gg.offset"), "error": found.get("gg.error"), "reason": found.get("gg.reason"),
                "key": (message.key() or b"").decode("utf-8", "replace"), "bytes": int(found.get(CUT, len(value))),
                "begins": value[:SHOWN].decode("utf-8", "replace"),
            }  # fmt: skip
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        elif CUT in found:
            cut += 1
            continue
        else:
            own = [(name, value) for name, value in message.headers() or () if name not in OURS]
            producer.produce(
                kafka.topics.readings, message.value(), key=message.key(), headers=own,
                on_delivery=lambda error, _: refused.append(error.str()) if error is not None else None,
            )  # fmt: skip
        count += 1
    if producer is not None:
        left = producer.flush(QUIET_S) + len(refused)
        if left:
            raise BrokerError(f"{left} of {count} dead letters were not taken again {'; '.join(sorted(set(refused)))}")
        kept = f"; {cut} were too large to be kept whole and stay" if cut else ""
        sys.stderr.write(f"{count} sent to {kafka.topics.readings} again{kept}\n")
    return 0


def letters(kafka: KafkaSettings, limit: int, error: str | None = None) -> Iterator[Any]:
    """Dead letters, partition after partition, oldest first.  Raises: BrokerError"""
    reader = Consumer({
        **kafka.client(), "group.id": f"{kafka.group}-letters", "enable.auto.commit": False,
        "enable.partition.eof": True, "auto.offset.reset": "earliest",
    })  # fmt: skip
    topic, given = kafka.topics.dead_letters, 0
    try:
        about = reader.list_topics(topic, timeout=QUIET_S).topics[topic]
        for number in sorted(about.partitions):
            reader.assign([TopicPartition(topic, number, 0)])
            heard = time.monotonic()
            while given < limit:
                message = reader.poll(0.5)
                if message is None:
                    if time.monotonic() - heard > QUIET_S:
                        raise BrokerError(f"{topic}/{number}: nothing heard for {QUIET_S:g} s")
                    continue
                heard = time.monotonic()
                trouble = message.error()
                if trouble is not None:
                    if trouble.code() == KafkaError._PARTITION_EOF:
                        break
                    raise BrokerError(f"{topic}/{number}: {trouble}")
                if error is None or (b"gg.error", error.encode()) in _named(message):
                    given += 1
                    yield message
    finally:
        reader.close()


def _named(message: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value) for name, value in message.headers() or ()]
