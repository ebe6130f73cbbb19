"""Messages that no retry will make readable, kept with their bytes and the reason; and how they are brought back.

Flow:    serve.loop -> [dead_letters] -> gg.dead-letters.v1 -> gg-ray dead-letters list|replay
Source:  live.md, section 1 (poison)

A dead letter has the message's own key and value. Headers: gg.topic, gg.partition, gg.offset, gg.error (kind),
gg.reason, and those of the message. One that the topic of dead letters does not take whole is kept by its first bytes,
with gg.bytes, the length that it had: it can be read and not be sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from serve.scribe import Heard
from serve.wire import MAX_BYTES, TRACEPARENT, encode

WHY = ("gg.topic", "gg.partition", "gg.offset", "gg.error", "gg.reason")
CUT = "gg.bytes"
OURS = (*WHY, CUT)
MAX_REASON = 500
MAX_LETTER = MAX_BYTES + 2**17
"""Largest letter that is sent: a message that the feed could send, and headers."""
KEPT = 2**16
"""Bytes that are kept of a message that is too large to be kept whole."""


class DeadLetters:
    """The writing side."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self.producer, self.topic = producer, topic

    def bury(self, message: Any, kind: str, reason: str, done: Callable[[], None]) -> None:
        """Keep a message as it came; done is called when the broker has it, from the producer's poll."""
        own = [(name, value) for name, value in message.headers() or () if name not in OURS]
        self._send(message.value() or b"", message.key(), done, [
            *own, *_why(message.topic(), message.partition(), message.offset(), kind, reason)
        ])  # fmt: skip

    def bury_scan(self, heard: Heard, topic: str, offset: int, reason: str, done: Callable[[], None]) -> None:
        """Keep a scan that the Verifier cannot judge."""
        headers = [(TRACEPARENT, heard.trace.encode())] if heard.trace else []
        self._send(
            encode(replace(heard.message)), heard.message.grid.encode(), done,
            [*headers, *_why(topic, -1, offset, "verifier", reason)],
        )  # fmt: skip

    def _send(
        self, value: bytes, key: bytes | None, done: Callable[[], None], headers: list[tuple[str, Any]],
        cut: bool = False,
    ) -> None:  # fmt: skip
        def shorter() -> None:
            own = [(name, text) for name, text in headers if name in WHY]
            self._send(value[:KEPT], key and key[:KEPT], done, [*own, (CUT, str(len(value)).encode())], cut=True)

        def delivered(error: KafkaError | None, _: Any) -> None:
            if error is None:
                done()
            elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE and not cut:
                shorter()
            else:  # the broker is away: the partition waits, nothing is lost
                self._send(value, key, done, headers, cut)

        while True:
            try:
                self.producer.produce(self.topic, value, key=key, headers=headers, on_delivery=delivered)
                return
            except BufferError:
                self.producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE or cut:
                    raise
                shorter()
                return


def _why(topic: str, partition: int, offset: int, kind: str, reason: str) -> list[tuple[str, Any]]:
    values = (topic, str(partition), str(offset), kind, reason[:MAX_REASON])
    return [(name, value.encode()) for name, value in zip(WHY, values, strict=True)]
