"""Physical worlds: what really happens in a window, before any meter looks at it.

Flow:    scenario.context, scenario.grammar -> [worlds] -> grid.powerflow -> scenario.executor
Source:  selfplay.md, section 5 (ordinary and plausible-hard events); docs/physics.md
Shapes:  T scans, N buses, E branches, G generator buses
Units:   p.u.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numba
import numpy as np
import scipy.sparse as sp
from scipy.signal import lfilter

from gg_ray.config import WINDOW_SCANS
from gg_ray.grid.cases import GridCase
from gg_ray.records import F64, I64, Bool, Context, Event
from gg_ray.scenario.grammar import DURATION_SCANS, MAGNITUDE_BINS, PRIMITIVES

TYPICAL_DEMAND = 0.75
"""Share of its base demand at which a grid runs when the national demand is average."""
LOAD_NOISE = 0.02
"""Standard deviation of a bus's own demand around its share of the national shape."""
LOAD_RHO = 0.9
"""Scan-to-scan correlation of that noise: about ten minutes of memory at one-minute scans."""
EPISODE_SCANS = 12
"""Length of a lasting anomaly on a timeline: below 1 % of a day of one-minute scans."""
LONGEST_WINDOW = max(WINDOW_SCANS)
NOISE_FACTORS = (0.75, 1.25)
"""A meter re-calibrated to a better or a worse class. A Window carries no sigma, so the change stays within what is
plausible without being told: over 48 scans n (k^2 - 1 - 2 ln k) gives d = 2.6 and 2.4, below d_min."""
_PARTNERS = 3
Taps = tuple[tuple[int, float], ...]
"""Branches whose ratio differs from the published one, ascending, with the ratio in force."""


@dataclass(slots=True)
class World:
    """One trajectory's inputs to the power flow, scan by scan."""

    load_p: F64
    load_q: F64
    gen_p: F64
    gen_v: F64
    out: Bool
    gen_out: Bool
    taps: list[tuple[int, float, int]] = field(default_factory=list)
    """Declared tap moves in order of their first scan: branch, new ratio, first scan."""

    def copy(self) -> World:
        return World(
            self.load_p.copy(), self.load_q.copy(), self.gen_p.copy(), self.gen_v.copy(), self.out.copy(),
            self.gen_out.copy(), list(self.taps),
        )  # fmt: skip


@dataclass(slots=True)
class Readings:
    """What happens to readings after noise: held values, noise factors, declared outages (installed positions)."""

    holds: list[tuple[I64, I64]] = field(default_factory=list)
    """(meters, source scan per scan [T])"""
    noise: list[tuple[I64, F64]] = field(default_factory=list)
    """(meters, factor per scan [T])"""
    absent: list[tuple[I64, Bool]] = field(default_factory=list)
    """(meters, scans without a reading [T])"""


class Neighbourhood:
    """Hop distances on one grid; adjacency is built once, because programs ask for a new centre every time."""

    def __init__(self, case: GridCase) -> None:
        ends = np.concatenate([case.f_bus, case.t_bus]), np.concatenate([case.t_bus, case.f_bus])
        graph = sp.coo_matrix((np.ones(ends[0].size), ends), shape=(case.n_bus, case.n_bus)).tocsr()
        self.indptr, self.indices = graph.indptr.astype(np.int64), graph.indices.astype(np.int64)

    def hops(self, bus: int) -> I64:
        """[N] hops from a bus; unreachable buses get N."""
        return np.asarray(_breadth_first(self.indptr, self.indices, bus))


@numba.njit(cache=True)
def _breadth_first(indptr, indices, bus):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n = indptr.shape[0] - 1
    hops = np.full(n, n, dtype=np.int64)
    queue = np.empty(n, dtype=np.int64)
    hops[bus], queue[0] = 0, bus
    head, tail = 0, 1
    while head < tail:
        here = queue[head]
        head += 1
        for k in range(indptr[here], indptr[here + 1]):
            there = indices[k]
            if hops[there] == n and there != bus:
                hops[there] = hops[here] + 1
                queue[tail] = there
                tail += 1
    return hops


class Fleet:
    """How a national context falls on the buses of one grid: shares, wind farms, dispatch; seeded by the case name."""

    def __init__(self, case: GridCase) -> None:
        self.case = case
        self.near = Neighbourhood(case)
        rng = np.random.default_rng([zlib.crc32(case.name.encode()), 0xF1EE7])
        self.sway = rng.uniform(0.85, 1.15, case.n_bus)
        producing = case.gen_p > 0.02
        producing[np.flatnonzero(case.gen_bus == case.slack)] = False
        self.wind = producing & (rng.random(case.n_gen) < 0.3)
        rest = np.where(self.wind, 0.0, np.maximum(case.gen_p, 0.0))
        self.rest_share = rest / max(rest.sum(), 1e-9)
        self.lift = float(case.load_p.sum() and case.gen_p.sum() / case.load_p.sum())
        self.wind_nominal = case.gen_p * self.wind

    def world(self, context: Context, rng: np.random.Generator) -> World:
        """Ordinary inputs of a window: national shape, bus noise (AR(1)), wind, dispatch in proportion."""
        case, scans = self.case, context.scans
        shape = np.clip(TYPICAL_DEMAND * context.load_T, 0.4, 1.12)[:, None]
        noise = _ar1(rng.standard_normal((scans, case.n_bus)), LOAD_RHO) * LOAD_NOISE
        demand = np.where(case.load_p > 0, 1 + (shape - 1) * self.sway, 1.0) * (1 + noise)
        load_p, load_q = case.load_p * demand, case.load_q * demand
        load_q = load_q * (1 + 0.3 * LOAD_NOISE * rng.standard_normal((1, case.n_bus)))
        wind = self.wind_nominal * np.clip(0.3 + 1.2 * context.wind_T, 0, 1.2)[:, None]
        needed = load_p.sum(axis=1) * self.lift - wind.sum(axis=1) - np.minimum(case.gen_p, 0.0).sum()
        gen_p = wind + self.rest_share * needed[:, None] + np.minimum(case.gen_p, 0.0)
        gen_v = np.tile(case.gen_v + 0.002 * rng.standard_normal(case.n_gen), (scans, 1))
        return World(
            load_p, load_q, gen_p, gen_v,
            np.zeros((scans, case.n_branch), dtype=bool), np.zeros((scans, case.n_gen), dtype=bool),
        )  # fmt: skip

    def area(self, bus: int, hops: int) -> I64:
        """Buses within a number of hops."""
        return np.flatnonzero(self.near.hops(bus) <= hops)

    def partner(self, bus: int, rank: int) -> int:
        """The rank-th nearest other load bus."""
        hops = self.near.hops(bus).astype(np.float64)
        hops[(self.case.load_p <= 0.01) | (np.arange(self.case.n_bus) == bus)] = np.inf
        order = np.argsort(hops, kind="stable")
        return int(order[min(rank, order.size - 1)])


def _ar1(white_TN: F64, rho: float) -> F64:
    """Stationary unit-variance AR(1) along the first axis."""
    scaled = white_TN * np.sqrt(1 - rho**2)
    scaled[0] = white_TN[0]
    return np.asarray(lfilter([1.0], [1.0, -rho], scaled, axis=0))


def tap_stretches(moves: Sequence[tuple[int, float, int]], scans: int) -> list[tuple[slice, Taps]]:
    """Stretches of scans with one set of ratios each; every move stays in force until its branch moves again."""
    edges = sorted({0, scans, *(min(max(first, 0), scans) for _, _, first in moves)})
    return [
        (slice(start, stop), tuple(sorted({b: ratio for b, ratio, first in moves if first <= start}.items())))
        for start, stop in pairwise(edges)
    ]


def with_taps(case: GridCase, taps: Taps) -> GridCase:
    """A copy of the case with other off-nominal ratios; the case itself where none has moved."""
    if not taps:
        return case
    ratio = case.tap.copy()
    for branch, value in taps:
        ratio[branch] = value
    return replace(case, tap=ratio)


def active_scans(event: Event, scans: int) -> slice:
    """Scans during which an event acts."""
    return slice(event.onset, min(last_scan(event, scans), event.onset + DURATION_SCANS[event.duration]))


def last_scan(event: Event, scans: int) -> int:
    """Where "until the end" ends: with the window; on a timeline an anomaly is cleared after EPISODE_SCANS."""
    if scans <= LONGEST_WINDOW or PRIMITIVES[event.primitive].side != "anomalous":
        return scans
    return min(scans, event.onset + EPISODE_SCANS)


def grade(event: Event, low: float, high: float) -> float:
    """Physical size of a benign event: its magnitude bin on a linear scale."""
    return low + (high - low) * event.magnitude / (MAGNITUDE_BINS - 1)


def lose_unit(fleet: Fleet, world: World, bus: int, when: slice, rng: np.random.Generator) -> float:
    """Trip the largest unit of a generator bus; the rest of the fleet picks it up over three scans.

    Returns: the lost output at the first scan, p.u.
    """
    case = fleet.case
    k = int(np.flatnonzero(case.gen_bus == bus)[0])
    units = np.flatnonzero(case.unit_gen == k)
    total = case.unit_p[units].sum()
    share = float(np.clip(case.unit_p[units].max() / total, 0.05, 1.0)) if total > 0 else 1.0
    lost = world.gen_p[when, k] * share
    world.gen_p[when, k] -= lost
    if units.size == 1 or share > 0.999:
        world.gen_out[when, k] = True
    pickers = fleet.rest_share.copy()
    pickers[k] = 0.0
    if pickers.sum() > 0:
        pickers /= pickers.sum()
        ramp = np.minimum(1.0, (np.arange(lost.size) + 1) / 3.0) * rng.uniform(0.6, 1.0)
        world.gen_p[when] += (lost * ramp)[:, None] * pickers
    return float(lost[0])


def apply_benign(
    fleet: Fleet, world: World, event: Event, meters: I64, readings: Readings, rng: np.random.Generator
) -> None:
    """Change a world (or only the readings) by one benign event.

    Args: meters  installed positions of the event's meter, for the events that touch readings only
    """
    case, name = fleet.case, event.primitive
    when = active_scans(event, world.load_p.shape[0])
    bus = event.target
    if name in ("load_step", "load_step_large"):
        if name == "load_step":
            factor = 1 + grade(event, -0.15, 0.15)
        else:
            factor = float(np.geomspace(0.1, 0.6, 8)[event.magnitude] if event.magnitude < 8
                           else np.linspace(1.4, 2.2, 8)[event.magnitude - 8])  # fmt: skip
        world.load_p[when, bus] *= factor
        world.load_q[when, bus] *= factor
    elif name == "load_ramp":
        area = fleet.area(bus, event.support)
        length = when.stop - when.start
        ramp = 1 + grade(event, -0.12, 0.12) * (np.arange(1, length + 1) / length)
        world.load_p[when, area] *= ramp[:, None]
        world.load_q[when, area] *= ramp[:, None]
        world.load_p[when.stop :, area] *= ramp[-1]
        world.load_q[when.stop :, area] *= ramp[-1]
    elif name in ("demand_transfer", "demand_transfer_large"):
        other = fleet.partner(bus, min(event.support, _PARTNERS))
        share = grade(event, 0.03, 0.15) if name == "demand_transfer" else grade(event, 0.3, 0.8)
        moved_p, moved_q = share * world.load_p[when, bus], share * world.load_q[when, bus]
        world.load_p[when, bus] -= moved_p
        world.load_q[when, bus] -= moved_q
        world.load_p[when, other] += moved_p
        world.load_q[when, other] += moved_q
    elif name == "v_setpoint":
        k = int(np.flatnonzero(case.gen_bus == bus)[0])
        world.gen_v[when, k] += grade(event, -0.015, 0.015)
    elif name == "tap_move":
        branch = bus - case.n_bus
        step = 0.0125 if event.onset % 2 else -0.0125
        world.taps.append((branch, float(case.tap[branch] * (1 + step)), event.onset))
        world.taps.sort(key=lambda move: move[2])
    elif name == "line_switch":
        world.out[when, bus - case.n_bus] = True
    elif name == "gen_trip":
        lose_unit(fleet, world, bus, when, rng)
    elif name == "wind_ramp":
        hops = fleet.near.hops(bus)[case.gen_bus]
        near = fleet.wind & (hops <= 2 + 2 * event.support)
        near[np.flatnonzero(case.gen_bus == bus)] = True
        length = world.gen_p.shape[0] - event.onset
        size = grade(event, -0.8, 0.4) if event.magnitude != 11 else -0.5
        ramp = 1 + size * np.minimum(1.0, (np.arange(length) + 1) / 6.0)
        change = world.gen_p[event.onset :] * near * (ramp[:, None] - 1)
        world.gen_p[event.onset :] += change
        world.gen_p[event.onset :] -= change.sum(axis=1, keepdims=True) * fleet.rest_share * 0.8
    elif name == "noise_class_change":
        loudness = np.ones(world.load_p.shape[0])
        loudness[when] = NOISE_FACTORS[event.onset % 2]
        readings.noise.append((meters, loudness))
    elif name == "meter_outage":
        gone = np.zeros(world.load_p.shape[0], dtype=bool)
        gone[when] = True
        readings.absent.append((meters, gone))
    elif name == "stale_meter":
        source = np.arange(world.load_p.shape[0])
        source[event.onset : event.onset + 2] = event.onset - 1
        readings.holds.append((meters, source))
    else:
        raise ValueError(f"{name!r} is not a benign primitive")
