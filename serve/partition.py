"""One partition in hand: its scans in order, what of them is settled, where it stands.

Flow:    serve.loop -> [partition] -> serve.store (Write)
Source:  live.md, section 1 (order, commit: only the contiguous finished prefix)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from serve.asks import Scored
from serve.rings import Block
from serve.scribe import Heard
from serve.store import Start


@dataclass(slots=True, kw_only=True)
class Item:
    """One record between being fetched and being applied."""

    offset: int
    ts_ms: int
    size: int
    grid: str = ""
    heard: Heard | None = None
    block: Block | None = None
    end: int = 0
    """Rows of the block up to and with this scan."""
    window_start: int | None = None
    scored: Scored | None = None
    shed: str = ""
    """Why there is no verdict of it: late, duplicate or lag."""
    dead: bool = False
    """It went to the dead letters, and the broker has said so."""
    attempts: int = 0

    @property
    def settled(self) -> bool:
        return self.scored is not None or self.dead or self.shed != ""


@dataclass(slots=True)
class Partition:
    """A partition that this consumer owns.

    Invariant: `base` is where the store's position stands or will stand once what was written in vain is written.
    """

    topic: str
    number: int
    start: Start
    incarnation: int
    base: int
    """Next offset to apply."""
    items: deque[Item] = field(default_factory=deque)
    held: deque[Any] = field(default_factory=deque)
    """Messages that cannot be decoded yet: the registry of schemas is down."""
    grids: set[str] = field(default_factory=set)
    opened: bool = False
    newest: int = -1
    """Offset of the last record that was fetched."""
    committed: int = -1
    applied: int = -1
    """Offset up to which the store has everything; -1 before the first write."""
    bytes: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return self.topic, self.number

    def take(self, item: Item) -> None:
        self.items.append(item)
        self.bytes += item.size

    def release(self) -> list[Item]:
        """Take out the settled records at the front, in order."""
        out = []
        while self.items and self.items[0].settled:
            item = self.items.popleft()
            self.bytes -= item.size
            out.append(item)
        return out
