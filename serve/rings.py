"""Windows out of scans: the last scans of each grid, in order of time, whatever order they came in.

Flow:    serve.wire (ScanMessage) -> [rings] -> Window -> serve.models
Source:  live.md, section 2, row 10 (duplicates, disorder, late, gaps); docs/live.md has the rules for people
Shapes:  T scans of a window, M installed meters, E branches

A scan is newer (the next window ends with it), late (it is put where it belongs and counts from the next window on), or
a duplicate (its version is not above the last one). Scans that never came are rows of NaN; after a gap of half a window
the grid starts anew. Rows are written once and windows are views of them: what is being judged is never altered.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan, external_plan
from gg_ray.records import F64, I64, U8, Bool
from serve.wire import Poison, ScanMessage


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of scans, one each; a row is written once, so a view of it can be judged while more come in."""

    z: F64
    age: U8
    status: U8
    tap: F64
    x_scale: F64
    offset: I64
    heard: Bool
    """False for a scan that never came."""

    @classmethod
    def room(cls, rows: int, meters: int, branches: int) -> Block:
        """Empty rows."""
        return cls(
            np.empty((rows, meters)), np.empty((rows, meters), np.uint8), np.empty((rows, branches), np.uint8),
            np.empty((rows, branches)), np.empty((rows, branches)), np.empty(rows, np.int64),
            np.zeros(rows, np.bool_),
        )  # fmt: skip


SPARE = 64
"""Rows beyond a window that a block holds before the next block is begun."""
_NEVER = 255
Place = Literal["newest", "late", "duplicate"]
Version = tuple[int, int]


@functools.lru_cache(maxsize=1_024)
def _plan(case: str, channels: bytes, sigma: bytes, step_s: float) -> MeterPlan:
    if case == balance.NAME:
        steps = {balance.cadence_of(p): balance.balance_plan(p) for p in balance.CADENCE_PLANS}
        if step_s not in steps:
            raise Poison("time", f"step_s {step_s:g}: {case} has scans of {', '.join(f'{s:g}' for s in steps)} s")
        found = steps[step_s]
        if found.channels.tobytes() != channels:
            raise Poison("shape", f"channels: {case} has the same {found.size} meters in every scan")
        return found
    return external_plan(load_case(case), np.frombuffer(channels, dtype=np.int64), np.frombuffer(sigma))


def plan_of_message(message: ScanMessage) -> MeterPlan:
    """The meters of a scan; the same object for the same meters.  Raises: Poison for ones that the grid cannot have."""
    return _plan(message.case, message.channels.tobytes(), message.sigma.tobytes(), message.step_s)


def _same_meters(one: MeterPlan, other: MeterPlan) -> bool:
    """Meters are compared by what they are: more grids than the cache holds would begin anew with every scan."""
    return one is other or (
        one.plan_id == other.plan_id
        and np.array_equal(one.channels, other.channels)
        and np.array_equal(one.sigma, other.sigma)
    )


class Ring:
    """The last scans of one grid."""

    def __init__(self, scans: int) -> None:
        self.scans = scans
        self.plan: MeterPlan | None = None
        self.step_s, self.case = 0.0, ""
        self.version: Version | None = None
        self.restarts = 0
        self.rows = 0
        self.block = Block.room(0, 0, 0)
        """The window is its last `scans` rows of the first `rows`."""
        self._time_ns = 0

    @property
    def filled(self) -> int:
        """Scans that the next window has, T at most."""
        return min(self.rows, self.scans)

    @property
    def gap(self) -> int:
        """Scans just before the newest one that never came."""
        before = self.block.heard[self.rows - self.filled : self.rows - 1][::-1]
        return int(before.size if not before.any() else before.argmax())

    @property
    def time_ns(self) -> int:
        """Of the newest scan."""
        return self._time_ns

    @property
    def start(self) -> int:
        """Offset of the oldest scan of the window: reading back from there gives the same window."""
        return int(self.block.offset[self.rows - self.filled])

    def push(self, message: ScanMessage, offset: int, version: Version) -> Place:
        """Take a scan in.

        Args:   offset  in its partition;  version  (epoch, sequence), or (incarnation, offset)
        Raises: Poison for meters that the grid cannot have
        """
        plan = plan_of_message(message)
        if self.plan is not None and _same_meters(plan, self.plan):
            plan = self.plan
        if self.version is not None and version <= self.version:
            return "duplicate"
        afresh = self.version is None or version[0] != self.version[0]
        self.version = version
        same = self.plan is plan and message.step_s == self.step_s and message.case == self.case and self.rows > 0
        if not same:
            return self._restart(message, plan, offset)
        apart = round((message.time_ns - self._time_ns) / (self.step_s * 1e9))
        if apart < 0 and afresh:  # a new feeder begins earlier: another record of the same grid
            return self._restart(message, plan, offset)
        if apart <= 0:
            return self._late(message, -apart)
        if apart > max(self.scans // 2, 1):
            return self._restart(message, plan, offset)
        for _ in range(apart - 1):  # known from the scan before on, so that reading back finds the same gap
            self._append(None, int(self.block.offset[self.rows - 1]))
        self._append(message, offset)
        self._time_ns = message.time_ns
        return "newest"

    def _restart(self, message: ScanMessage, plan: MeterPlan, offset: int) -> Place:
        self.restarts += self.rows > 0
        self.plan, self.step_s, self.case = plan, message.step_s, message.case
        self.rows = 0
        self._fresh(message.z_M.size, message.status_E.size)
        self._append(message, offset)
        self._time_ns = message.time_ns
        return "newest"

    def _fresh(self, meters: int, branches: int) -> None:
        """Room for more rows; the last ones come along, the old room stays with whoever looks at it."""
        keep = min(self.rows, self.scans)
        block = Block.room(self.scans + SPARE, meters, branches)
        for item in fields(Block) if keep else ():
            getattr(block, item.name)[:keep] = getattr(self.block, item.name)[self.rows - keep : self.rows]
        self.block, self.rows = block, keep

    def _append(self, message: ScanMessage | None, offset: int) -> None:
        """A row; None for a scan that never came: nothing was read, what was declared still holds."""
        if self.rows == self.block.z.shape[0]:
            self._fresh(self.block.z.shape[1], self.block.status.shape[1])
        if message is None:
            self._miss(self.rows)
        else:
            self._put(self.rows, message)
        self.block.offset[self.rows] = offset
        self.rows += 1

    def _put(self, at: int, message: ScanMessage) -> None:
        b = self.block
        b.z[at], b.age[at], b.status[at] = message.z_M, message.age_M, message.status_E
        b.tap[at], b.x_scale[at], b.heard[at] = message.tap_E, message.x_scale_E, True

    def _miss(self, at: int) -> None:
        b, last = self.block, at - 1
        b.z[at], b.heard[at] = np.nan, False
        b.age[at] = np.where(b.age[last] >= _NEVER - 1, b.age[last], b.age[last] + 1)
        b.status[at], b.tap[at], b.x_scale[at] = b.status[last], b.tap[last], b.x_scale[last]

    def _late(self, message: ScanMessage, back: int) -> Place:
        """Put a scan of the past where it belongs, in a block of its own; one of before the window is left out."""
        if back >= self.filled:
            return "late"
        self._fresh(message.z_M.size, message.status_E.size)
        at = self.rows - 1 - back
        self._put(at, message)
        for after in range(at + 1, self.rows):  # what it declared holds for the scans after it that never came
            if self.block.heard[after]:
                break
            self._miss(after)
        return "newest" if back == 0 else "late"
