"""IRIS, Elexon's push service, as a source: one JSON message per publication, settled only when it was handed on.

Flow:    Azure Service Bus queue -> [iris] -> elexon.parse -> the caller's `produce` (feeding.push) -> settled
Source:  elexon-data/iris-clients and docs/gb-data.md; needs the extra `iris` and a registered queue
Limits:  written from the documentation and tested on a fake queue; never run against the service

Delivery is at least once: a message that was produced but could not be settled comes again, so rows are keyed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from gg_ray.config import ConfigError
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

HELD_S = 7_200.0
"""How long the lock of an unsettled message is renewed: more than the longest scan and its latest row."""

Produce = Callable[[Fetched], Awaitable[datetime | None]]
"""Returns when the rows are handed on (a line written, a broker's acknowledgement), and raises when they are not.

A time says that only rows before it are: those from it on wait at the caller, and their messages stay unsettled.
"""


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


ACCOUNT = ("GG_IRIS_QUEUE", "GG_IRIS_CLIENT_ID", "GG_IRIS_SECRET")
"""Environment variables that hold what `connected` needs, in its order."""


def account(env: Mapping[str, str]) -> tuple[str, str, str]:
    """Queue, client id and secret of a registered account.  Raises: ConfigError naming the variables not set."""
    missing = [name for name in ACCOUNT if not env.get(name)]
    if missing:
        raise ConfigError(f"source iris: set {', '.join(missing)} (a queue is registered free of charge with Elexon)")
    queue, client_id, secret = (env[name] for name in ACCOUNT)
    return queue, client_id, secret


@asynccontextmanager
async def connected(queue: str, client_id: str, secret: str, *, namespace: str = NAMESPACE) -> AsyncIterator[Receiver]:
    """A receiver of one queue; one connection a queue is allowed.  Raises: NotCarried naming the extra to install."""
    try:
        from azure.identity.aio import ClientSecretCredential
        from azure.servicebus.aio import AutoLockRenewer, ServiceBusClient
    except ImportError as error:
        raise NotCarried(
            f"iris needs azure-servicebus and azure-identity: pip install 'gg-ray[iris]' ({error})"
        ) from error
    async with (
        ClientSecretCredential(TENANT, client_id, secret) as credential,
        ServiceBusClient(namespace, credential) as client,
        AutoLockRenewer(max_lock_renewal_duration=HELD_S) as renewer,
        client.get_queue_receiver(queue, auto_lock_renewer=renewer) as receiver,
    ):
        yield receiver


class IrisSource:
    """GridSource that is fed by `listen`, or by `take` message by message; without them, it knows nothing.

    Invariant: a message is completed only after `produce` said that its rows are handed on, and messages are taken one
    by one in the order of the queue. `fetch` has no history to give; `latest` gives the overlap span of what has
    arrived.
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
        self._unsettled: list[tuple[Message, datetime]] = []
        self.counts: Counter[str] = Counter()

    async def listen(self, produce: Produce) -> None:
        """Takes messages until the receiver ends.  Raises: as `messages` and `take`."""
        messages = self.messages()
        while await self.take(messages, produce):
            pass

    def messages(self) -> AsyncIterator[Message]:
        """The queue from now on; what was left unsettled before comes again.  Raises: Unavailable, no receiver."""
        self._unsettled.clear()
        return aiter(self._queue())

    async def take(self, messages: AsyncIterator[Message], produce: Produce) -> bool:
        """Wait for one message, hand its rows on and settle what is done; False when the queue has ended.

        Raises:  Unavailable when the connection breaks, and what produce raises: unsettled messages go back to the
                 queue first, so that nothing is lost and order is kept when the caller starts again.
        """
        try:
            message = await anext(messages)
        except StopAsyncIteration:
            return False
        except Exception as error:  # the SDK's errors cannot be named here: it is not imported
            raise Unavailable(f"iris: the queue broke off: {type(error).__name__}: {error}") from error
        await self._take(self._queue(), message, produce)
        return True

    def _queue(self) -> Receiver:
        if self._receiver is None:
            raise Unavailable("iris: no receiver was given; open one with gg_ray.elexon.iris.connected")
        return self._receiver

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        asked = stream_of(stream)
        raise NotCarried(f"{asked.name}: IRIS pushes and has no history; ask the source `insights` for a window")

    async def latest(self, stream: str) -> Fetched:
        """Rows of the last overlap span that have arrived, as long as messages come.

        Raises:  NotCarried for a stream that IRIS does not push; Unavailable before its first message, and when the
                 queue has been silent for longer than SILENT_S: old rows must not pass for live.
        """
        asked = self.carried(stream)
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

    def carried(self, stream: str) -> Stream:
        """The stream.  Raises: UnknownStream; NotCarried for one that IRIS does not push."""
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
        last = min(fetched.rows[-1].at, self._arrived) if fetched.rows else EPOCH  # a wrong clock must hold nothing up
        self._unsettled.append((message, last))
        try:
            done_before = await produce(fetched)
        except Exception:
            while self._unsettled:  # the newest first: each goes to the head of the queue
                await self._settle("abandoned", receiver.abandon_message(self._unsettled.pop()[0]))
            raise
        self._remember(stream, fetched)
        held = self._unsettled
        self._unsettled = []
        for old, at in held:
            if done_before is not None and at >= done_before:
                self._unsettled.append((old, at))
            else:
                await self._settle("completed", receiver.complete_message(old))

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
        start, end = stream.recent(max(row.at for row in rows))
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
