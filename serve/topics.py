"""Topics of the live path: made where they are missing, and what stands last in each partition.

Flow:    settings.Topics -> [topics] -> the broker; feed (epoch of the newest message), live, tests
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from serve.settings import KafkaSettings, Topics

DEADLINE_S = 30.0
_CALL_S = 5.0
_READER = "gg-last"
"""Group name that a reader must have; it commits nothing and so leaves no trace of it."""


class BrokerError(RuntimeError):
    """The broker does not answer, or refuses; the message names its address and the way out."""


def names(topics: Topics) -> tuple[str, ...]:
    return topics.readings, topics.verdicts, topics.alarms, topics.dead_letters


def ensure(kafka: KafkaSettings, deadline_s: float = DEADLINE_S) -> tuple[str, ...]:
    """Make the topics of the settings that are missing; those that are there stay as they are.

    Replication is the broker's default. Another process may make the same ones at the same time.
    Returns: those that this call made.
    Raises:  BrokerError when it could not be done within the deadline, or the broker refuses.
    """
    end = time.monotonic() + deadline_s
    admin = AdminClient({**kafka.client(), "log_level": 0})  # what fails is raised, not logged
    made: list[str] = []
    while True:
        try:
            there = admin.list_topics(timeout=_left(end)).topics
            missing = [name for name in names(kafka.topics) if name not in there]
            if not missing:
                return tuple(made)
            wanted = [NewTopic(name, num_partitions=kafka.partitions) for name in missing]
            for name, future in admin.create_topics(wanted, request_timeout=_left(end)).items():
                try:
                    future.result(_left(end))
                    made.append(name)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
        except (KafkaException, TimeoutError) as error:
            kind = error.args[0] if isinstance(error, KafkaException) else None
            if kind is not None and not _may_pass(kind):
                raise BrokerError(f"{kafka.bootstrap}: topics {', '.join(names(kafka.topics))}: {kind.str()}") from None
            if time.monotonic() >= end:
                raise BrokerError(
                    f"no broker answers at {kafka.bootstrap} ({kind.str() if kind else error}); start one, or set"
                    " KAFKA_BOOTSTRAP"
                ) from None
        time.sleep(0.05)


def last_messages(kafka: KafkaSettings, topic: str, deadline_s: float = DEADLINE_S) -> dict[int, Message | None]:
    """The newest message of each partition, None for an empty one or where nothing but markers ends it.

    Raises: BrokerError for a broker that does not answer in time, or a topic that is not there.
    """
    end = time.monotonic() + deadline_s
    reader = Consumer(
        {
            **kafka.client(), "group.id": _READER, "log_level": 0, "enable.auto.commit": False,
            "enable.partition.eof": True, "fetch.wait.max.ms": 10, "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
        }
    )  # fmt: skip
    try:
        found = reader.list_topics(topic, timeout=_left(end)).topics[topic]
        if found.error is not None:
            raise BrokerError(f"{kafka.bootstrap}: topic {topic}: {found.error.str()}")
        out: dict[int, Message | None] = dict.fromkeys(sorted(found.partitions))
        marks = {p: reader.get_watermark_offsets(TopicPartition(topic, p), timeout=_left(end)) for p in out}
        waiting = {p for p, (low, high) in marks.items() if high > low}
        # to the end and not just one: Tansu's high watermark is the beginning of the last batch and one
        reader.assign([TopicPartition(topic, p, marks[p][1] - 1) for p in waiting])
        while waiting and time.monotonic() < end:
            message = reader.poll(0.2)
            if message is None:
                continue
            partition = message.partition()
            assert partition is not None
            if (error := message.error()) is None:
                out[partition] = message
            elif error.code() == KafkaError._PARTITION_EOF:
                waiting.discard(partition)
            else:
                raise KafkaException(error)
        if waiting:
            raise BrokerError(f"{kafka.bootstrap}: topic {topic}: no answer within {deadline_s:g} s")
        return out
    except KafkaException as error:
        raise BrokerError(f"{kafka.bootstrap}: topic {topic}: {error.args[0].str()}") from None
    finally:
        reader.close()


def _left(end: float) -> float:
    return max(0.1, min(_CALL_S, end - time.monotonic()))


def _may_pass(error: KafkaError) -> bool:
    """Trouble that time may heal: no connection, no leader yet, a time-out."""
    return error.retriable() or error.code() in (
        KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_CONTROLLER,
    )  # fmt: skip
