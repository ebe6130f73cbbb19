"""Dead letters: whole where they can be kept whole, cut and marked where not, listed and sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from live_servers import all_messages, servers

from gg_ray.live_options import DeadLettersOptions
from serve import topics
from serve.dead_letters import CUT, KEPT, MAX_LETTER, DeadLetters
from serve.dead_letters_command import dead_letters
from serve.settings import KafkaSettings
from serve.wire import MAX_BYTES


class Message:
    """As a consumer gives it."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def value(self) -> bytes:
        return self._value

    def key(self) -> bytes:
        return b"north"

    def headers(self) -> list[tuple[str, bytes]]:
        return [("traceparent", b"00-1"), ("gg.error", b"from a replay")]

    def topic(self) -> str:
        return "gg.readings.v1"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7


class Picky:
    """A producer whose broker takes at most so many bytes; `early` as its own limit, else in the delivery report."""

    def __init__(self, most: int, early: bool) -> None:
        self.most, self.early = most, early
        self.taken: list[dict[str, Any]] = []

    def produce(self, topic: str, value: bytes, *, key: Any, headers: Any, on_delivery: Any) -> None:
        error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        if len(value) <= self.most:
            self.taken.append({"value": value, "headers": dict(headers)})
            on_delivery(None, None)
        elif self.early:
            raise KafkaException(error)
        else:
            on_delivery(error, None)


@pytest.mark.parametrize("early", [True, False])
def test_a_message_that_no_broker_takes_again_is_kept_by_its_beginning(early: bool) -> None:
    """A message above the client's megabyte once ended the scan loop, at every start again."""
    producer, done = Picky(100_000, early), []
    DeadLetters(producer, "dead").bury(Message(b"x" * 200_000), "size", "too large", lambda: done.append(1))  # type: ignore[arg-type]
    [letter] = producer.taken
    assert done == [1]
    assert len(letter["value"]) == KEPT
    assert letter["headers"] | {CUT: b"200000", "gg.error": b"size"} == letter["headers"]
    assert "traceparent" not in letter["headers"], "headers can be what is too large"


def test_any_other_refusal_is_not_swallowed() -> None:
    class Broken:
        def produce(self, *_: Any, **__: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL))

    with pytest.raises(KafkaException):
        DeadLetters(Broken(), "dead").bury(Message(b"x"), "size", "", lambda: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    with servers() as (broker, _):
        settings = KafkaSettings(bootstrap=broker.bootstrap, partitions=1)
        topics.ensure(settings)
        yield settings


def test_letters_are_listed_and_sent_again_but_for_those_that_were_cut(
    kafka: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MAX_LETTER > MAX_BYTES
    large = b"y" * 1_500_000
    producer = Producer({**kafka.client(), "message.max.bytes": MAX_LETTER})
    letters, done = DeadLetters(producer, kafka.topics.dead_letters), []
    for value, kind in ((b"short", "unit"), (large, "size")):
        letters.bury(Message(value), kind, "why", lambda: done.append(1))
    producer.produce(kafka.topics.dead_letters, b"cut", headers=[("gg.error", b"size"), (CUT, b"9000000")])
    assert producer.flush(20) == 0
    assert len(done) == 2

    assert dead_letters(DeadLettersOptions(action="list"), kafka) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["error"], line["bytes"]) for line in lines] == [("unit", 5), ("size", 1_500_000), ("size", 9_000_000)]
    assert (lines[0]["topic"], lines[0]["partition"], lines[0]["offset"]) == ("gg.readings.v1", "2", "7")

    assert dead_letters(DeadLettersOptions(action="replay"), kafka) == 0
    assert "2 sent to gg.readings.v1 again; 1 were too large to be kept whole and stay" in capsys.readouterr().err
    again = all_messages(kafka, kafka.topics.readings)
    assert [message.value() for message in again] == [b"short", large]
    assert [name for name, _ in again[0].headers() or ()] == ["traceparent"]
