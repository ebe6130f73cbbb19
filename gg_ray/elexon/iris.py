"""IRIS, Elexon's push service, as a source: one JSON message per publication, settled only when it was handed on.

Flow:    Azure Service Bus queue -> [iris] -> elexon.parse -> the caller's `produce` -> settled
Source:  elexon-data/iris-clients and docs/gb-data.md; needs the extra `iris` and a registered queue
Limits:  written from the documentation and tested on a fake queue; never run against the service

Delivery is at least once: a message that was produced but could not be settled comes again, so rows are keyed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from gg_ray.elexon.errors import BadAnswer, NotCarried, Unavailable
from gg_ray.elexon.failed import FailedFolder
from gg_ray.elexon.parse import merge, parse
from gg_ray.elexon.rows import Row
from gg_ray.elexon.source import STREAMS, Fetched, Health, Stream, stream_of
from gg_ray.elexon.times import DAY, EPOCH, utc_now

log = logging.getLogger(__name__)

NAMESPACE = "elexon-insights-iris.servicebus.windows.net"
TENANT = "4203b7a0-7773-4de5-b830-8b263a20426e"
"""Elexon's tenant since August 2025."""
SILENT_S = 600.0
"""FREQ comes every 2 minutes and FUELINST every 5; silence longer than this is a fault."""
AHEAD = DAY
"""How far in the future a row may lie; further is a wrong clock, counted as outside and left out."""
DATASETS = {
    **{name: name for name in ("FUELHH", "FUELINST", "FREQ", "INDO", "ITSDO", "INDOD")},
    "SYSWARN": "WARNINGS",
}
"""Message subject -> stream."""

Produce = Callable[[Fetched], Awaitable[None]]
"""Returns when the rows are safe (the broker has acknowledged them); raises when they are not."""


class Message(Protocol):
    """The part of azure.servicebus.ServiceBusReceivedMessage that is used."""

    @property
    def subject(self) -> str | None: ...
    @property
    def body(self) -> Any: ...


class Receiver(Protocol):
    """The part of azure.servicebus.aio.ServiceBusReceiver that is used."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    async def complete_message(self, message: Any) -> None: ...
    async def abandon_message(self, message: Any) -> None: ...
    async def dead_letter_message(self, message: Any, *, reason: str, error_description: str) -> None: ...


@asynccontextmanager
async def connected(queue: str, client_id: str, secret: str, *, namespace: str = NAMESPACE) -> AsyncIterator[Receiver]:
    """A receiver of one queue; one connection a queue is allowed.  Raises: NotCarried naming the extra to install."""
    try:
        from azure.identity.aio import ClientSecretCredential
        from azure.servicebus.aio import ServiceBusClient
    except ImportError as error:
        raise NotCarried(
            f"iris needs azure-servicebus and azure-identity: pip install 'gg-ray[iris]' ({error})"
        ) from error
    async with (
        ClientSecretCredential(TENANT, client_id, secret) as credential,
        ServiceBusClient(namespace, credential) as client,
        client.get_queue_receiver(queue) as receiver,
    ):
        yield receiver


class IrisSource:
    """GridSource that is fed by `listen`; without it, it knows nothing.

    Invariant: a message is completed only after `produce` returned for its rows, and messages are taken one by one in
    the order of the queue. `fetch` has no history to give; `latest` gives the overlap span of what has arrived.
    counts     messages, completed, abandoned, dead_lettered, ignored, settle_failed, and the parser's by name
    """

    name = "iris"
    streams = tuple(dict.fromkeys(DATASETS.values()))

    def __init__(
        self,
        receiver: Receiver | None = None,
        *,
        failed: Path | FailedFolder | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """
        Args:    receiver  of `connected`; None makes a source that can only say so
                 failed    folder for messages that cannot be read, besides the queue's dead letters; None keeps none
        """
        self._receiver = receiver
        self._failed = FailedFolder(failed) if isinstance(failed, Path) else failed
        self._now = now
        self._arrived: datetime | None = None
        self._held: dict[str, Fetched] = {}
        self.counts: Counter[str] = Counter()

    async def listen(self, produce: Produce) -> None:
        """Takes messages until the receiver ends.

        Raises:  Unavailable when the connection breaks, and what produce raises: its message goes back to the queue
                 first, so that nothing is lost and order is kept when the caller starts again.
        """
        if self._receiver is None:
            raise Unavailable("iris: no receiver was given; open one with gg_ray.elexon.iris.connected")
        receiver = self._receiver
        messages = aiter(receiver)
        while True:
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            except Exception as error:  # the SDK's errors cannot be named here: it is not imported
                raise Unavailable(f"iris: the queue broke off: {type(error).__name__}: {error}") from error
            await self._take(receiver, message, produce)

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        asked = stream_of(stream)
        raise NotCarried(f"{asked.name}: IRIS pushes and has no history; ask the source `insights` for a window")

    async def latest(self, stream: str) -> Fetched:
        """Rows of the last overlap span that have arrived, as long as messages come.

        Raises:  NotCarried for a stream that IRIS does not push; Unavailable before its first message, and when the
                 queue has been silent for longer than SILENT_S: old rows must not pass for live.
        """
        asked = self._carried(stream)
        held = self._held.get(asked.name)
        if held is None:
            raise Unavailable(f"{asked.name}: no message of it has arrived from iris yet")
        health = await self.health()
        if not health.usable:
            raise Unavailable(f"{asked.name}: iris is silent: {health.detail}")
        return merge(asked, held.start, held.end, [held])

    async def health(self) -> Health:
        if self._arrived is None:
            return Health(source=self.name, usable=False, detail="no message has arrived yet")
        silent_s = (self._now() - self._arrived).total_seconds()
        detail = f"last message {silent_s:.0f} s ago, {self.counts['messages']} in all"
        return Health(source=self.name, usable=silent_s <= SILENT_S, detail=detail)

    async def aclose(self) -> None:
        """Nothing: who opened the receiver closes it."""

    def _carried(self, stream: str) -> Stream:
        asked = stream_of(stream)
        if asked.name not in self.streams:
            raise NotCarried(f"{asked.name}: not pushed by IRIS; ask the source `insights`, path {asked.path}")
        return asked

    async def _take(self, receiver: Receiver, message: Message, produce: Produce) -> None:
        self.counts["messages"] += 1
        self._arrived = self._now()
        subject = (message.subject or "").upper()
        if subject not in DATASETS:
            self.counts["ignored"] += 1
            await self._settle("completed", receiver.complete_message(message))
            return
        stream = STREAMS[DATASETS[subject]]
        body = _bytes(message.body)
        try:
            fetched = parse(stream, _as_list(body), EPOCH, self._now() + AHEAD)
        except BadAnswer as error:
            self._keep(stream, body, str(error))
            letter = receiver.dead_letter_message(message, reason="unreadable", error_description=str(error)[:1000])
            await self._settle("dead_lettered", letter)
            return
        if fetched.rejects:
            self._keep(stream, body, f"{len(fetched.rejects)} rows: {fetched.rejects[0].reason}")
        self.counts.update(fetched.counts)
        try:
            await produce(fetched)
        except Exception:
            await self._settle("abandoned", receiver.abandon_message(message))
            raise
        self._remember(stream, fetched)
        await self._settle("completed", receiver.complete_message(message))

    async def _settle(self, how: str, settling: Awaitable[None]) -> None:
        try:
            await settling
            self.counts[how] += 1
        except Exception as error:  # a lost lock or link: the queue delivers the message again
            self.counts["settle_failed"] += 1
            log.warning("iris: a message could not be %s and will come again: %s", how, error)

    def _keep(self, stream: Stream, body: bytes, reason: str) -> None:
        if self._failed is not None:
            path = self._failed.keep(stream.name, body, reason, self._now())
            log.warning("%s: message kept as %s: %s", stream.name, path, reason)

    def _remember(self, stream: Stream, fetched: Fetched) -> None:
        if not fetched.rows:
            return
        held = self._held.get(stream.name)
        rows: list[Row] = [*(held.rows if held else ()), *fetched.rows]
        end = max(row.at for row in rows)
        start = end - stream.overlap - stream.cadence
        joined = merge(stream, start, end, [Fetched(stream=stream.name, start=start, end=end, rows=rows)])
        joined.counts.clear()  # each message's are counted as it comes
        self._held[stream.name] = joined


def _bytes(body: Any) -> bytes:
    """The SDK gives bytes, text or an iterable of bytes, by the message's encoding."""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    if isinstance(body, str):
        return body.encode()
    return b"".join(bytes(part) for part in body) if isinstance(body, Iterable) else b""


def _as_list(body: bytes) -> bytes:
    """A publication of one row may be one object instead of a list."""
    if not body.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return body
    try:
        return body if "data" in json.loads(body) else b"[" + body.removeprefix(b"\xef\xbb\xbf") + b"]"
    except (ValueError, RecursionError):
        return body
