"""Scans of the national balance graph for the topic of readings, from what the feed of Elexon streams says.

Flow:    gg_ray.elexon.feeding (one dict a scan) -> [balance_scans] -> ScanMessage -> serve.feed
Source:  docs/adr/0014-balance-graph.md; docs/adr/0022-feed-and-twin.md
Shapes:  S scans held, C streams in balance.CHANNELS order, M meters, U columns of what is usual
Units:   MW and Hz in streams and values, p.u. in readings

A scan's readings are those of gg_ray.scenario.balance_windows on the whole record up to it: laws over half an hour at
five minutes, links that are silent for a day out of service, what is usual from the fortnight before.

A scan that the feed says again, because more of it was published, becomes a message of the same time. The caller sends
it as it sends any other: its sequence is higher, and it replaces the earlier one. Scans after it that were said already
are not said again: at five minutes the laws of the half-hour's end may then still miss what came late.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from gg_ray.elexon.scans import scans_from
from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import ns_of
from gg_ray.grid import balance as b
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, I64
from gg_ray.scenario.balance_record import FORTNIGHT, usual_of
from gg_ray.scenario.balance_windows import readings, streams_of
from serve.wire import ScanMessage

PLAN_OF_STEP = {1_800: 1_000, 300: 1_001, 15: 1_003}
"""Metering plan of each cadence, s: those of gg_ray.evaluate.suites, which training never draws."""
NOTHING_KNOWN = b.usual(600.0, 0.0, 40.0, 100.0)
"""[U] what is usual where no half-hour was ever heard."""
HELD_HALF_HOURS = 2 * FORTNIGHT + 48 + 1
"""What the last half-hour's statistics reach back to: a fortnight of distances from medians of a fortnight, in which a
link is in service for a day after it was heard."""
_DAY_S = 86_400
_MEAN_SCANS = 6
_AGES = 255
_WORD = {"live": "live", "cache": "cached", "replay": "replayed", "simulated": "simulated"}


class Clocked:
    """Rows on a regular clock, the last `size` of them; what was not put is NaN.

    Invariant: row i of upto(n) is that of clock tick n - size + 1 + i, whatever the order in which rows were put.
    """

    def __init__(self, size: int, width: int) -> None:
        self.size, self.newest = size, -1
        self._rows = np.full((size, width), np.nan)

    def put(self, tick: int, row: F64) -> None:
        """Replace a row; a tick before all that are held begins anew, as a replay does that starts over."""
        if self.newest < 0 or not -self.size < tick - self.newest < self.size:
            self._rows[:] = np.nan
            self.newest = tick
        elif tick > self.newest:
            step = tick - self.newest
            self._rows[:-step] = self._rows[step:].copy()
            self._rows[-step:] = np.nan
            self.newest = tick
        self._rows[self.size - 1 - (self.newest - tick)] = row

    def upto(self, tick: int, count: int) -> F64:
        """[count, width] rows that end at a tick; those that are not held are NaN."""
        out = np.full((count, self._rows.shape[1]), np.nan)
        at = np.arange(tick - count + 1, tick + 1) - (self.newest - self.size + 1)
        there = (at >= 0) & (at < self.size)
        if self.newest >= 0:
            out[there] = self._rows[at[there]]
        return out


class Usual:
    """What is usual at a half-hour, from the half-hours before it (gg_ray.scenario.balance_record.usual_of)."""

    def __init__(self, t0_ns: I64 | None = None, stream_HC: F64 | None = None) -> None:
        """Args: t0_ns [H], stream_HC [H, C] half-hours that are known already, ascending."""
        self._held = Clocked(HELD_HALF_HOURS, len(b.CHANNELS))
        self._found: dict[int, F64] = {}
        if t0_ns is not None and stream_HC is not None:
            for at, row in zip(t0_ns[-HELD_HALF_HOURS:].tolist(), stream_HC[-HELD_HALF_HOURS:], strict=True):
                self.put(at, row)

    def put(self, t0_ns: int, stream_C: F64) -> None:
        """A half-hour as published; again when more of it was."""
        tick = t0_ns // HALF_HOUR_NS
        self._held.put(tick, stream_C)
        self._found = {at: row for at, row in self._found.items() if at <= tick}

    def at(self, t_ns: int) -> F64:
        """[U] what is usual in the half-hour of a time."""
        tick = t_ns // HALF_HOUR_NS
        if tick not in self._found:
            before = self._held.upto(tick - 1, HELD_HALF_HOURS - 1)
            row = NOTHING_KNOWN
            if np.isfinite(before[:, : b.FREQ]).any():
                clock = HALF_HOUR_NS * np.arange(tick - HELD_HALF_HOURS + 1, tick + 1)
                row = usual_of(clock, np.vstack([before, np.full((1, before.shape[1]), np.nan)]))[-1]
            self._found = {tick: row}
        return self._found[tick]


def usual_from(store: DayStore, end: datetime) -> Usual:
    """What is usual from the half-hours (FUELHH, DEMAND) of the weeks before a time that a store holds."""
    start = end - timedelta(minutes=30 * HELD_HALF_HOURS)
    rows = {name: store.read(name, start, end) for name in ("FUELHH", "DEMAND") if store.days(name)}
    if not any(rows.values()):
        return Usual()
    scans = scans_from(rows, 1_800, start, end, known_at_ns=ns_of(end))
    return Usual(scans.t0_ns, streams_of(scans))


class BalanceScans:
    """Turns the messages of one feed into scans; remembers what the next one needs of those before."""

    def __init__(self, step_s: int, usual: Usual | None = None) -> None:
        """Raises: ValueError for a step that is no cadence of the grid."""
        if step_s not in PLAN_OF_STEP:
            raise ValueError(f"step {step_s} s; the grid has plans for {', '.join(map(str, PLAN_OF_STEP))} s")
        self.step_s, self.usual = step_s, usual or Usual()
        self.plan, self.case = b.balance_plan(PLAN_OF_STEP[step_s]), load_case(b.NAME)
        self._day = _DAY_S // step_s + _MEAN_SCANS
        self._streams = Clocked(2 * self._day, len(b.CHANNELS))
        self._heard = Clocked(_AGES, self.plan.size)

    def scan(self, said: Mapping[str, Any]) -> ScanMessage:
        """The scan of one message of the feed, in any order of time.

        Raises: ValueError for a message of another step.
        """
        if said["step_s"] != self.step_s:
            raise ValueError(f"a scan of {said['step_s']} s in a feed of {self.step_s} s")
        time_ns = ns_of(datetime.fromisoformat(said["t0"]))
        tick = time_ns // (self.step_s * 10**9)
        values: Mapping[str, float] = said["values"]
        row = np.array([values.get(name, np.nan) for name in b.CHANNELS], dtype=np.float64)
        self._streams.put(tick, row)
        stream = self._streams.upto(tick, self._day)
        self._half_hour(time_ns, tick)
        z = readings(stream, np.broadcast_to(self.usual.at(time_ns), (self._day, b.N_USUAL)), self.step_s)[-1]
        self._heard.put(tick, z)
        return ScanMessage(
            grid=said["grid"], case=b.NAME, time_ns=time_ns, step_s=float(self.step_s), channels=self.plan.channels,
            sigma=self.plan.sigma, z_M=z, age_M=self._ages(tick), tap_E=self.case.tap,
            status_E=np.ones(self.case.n_branch, dtype=np.uint8), x_scale_E=np.ones(self.case.n_branch),
            origin=said["origin"], values={name: float(value) for name, value in values.items()},
            streams=_streams(said),
        )  # fmt: skip

    def _ages(self, tick: int) -> np.ndarray:
        """[M] scans since each meter was heard, 255 for more than can be told."""
        heard = np.isfinite(self._heard.upto(tick, _AGES))[::-1]
        return np.where(heard.any(axis=0), heard.argmax(axis=0), _AGES).astype(np.uint8)

    def _half_hour(self, time_ns: int, tick: int) -> None:
        """Give the half-hour of a scan to what is usual, once its last scan is there."""
        if self.step_s == 1_800:
            self.usual.put(time_ns, self._streams.upto(tick, 1)[0])
        elif self.step_s == 300:
            start_ns = time_ns - time_ns % HALF_HOUR_NS
            last = (start_ns + HALF_HOUR_NS) // (300 * 10**9) - 1
            if last <= self._streams.newest:
                scans = self._streams.upto(last, _MEAN_SCANS)
                row = scans[-1].copy()
                row[: b.N_SUPPLY] = scans[:, : b.N_SUPPLY].mean(axis=0)
                self.usual.put(start_ns, row)


def _streams(said: Mapping[str, Any]) -> dict[str, str]:
    """Channel -> live, late, missing, cached, replayed or simulated."""
    word = _WORD[said["origin"]]
    out = {name: "late" if name in said["late"] else word for name in said["values"]}
    return out | dict.fromkeys(said["missing"], "missing")
