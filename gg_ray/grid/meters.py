"""The meter model: which channels exist, how good they are, when they refresh and when they go missing.

Flow:    grid.cases -> [meters] -> scenario.executor (readings), grid.estimation (weights), verifier.features
Source:  SCADA accuracy classes (|V| 0.2-0.5 %, P and Q 1 % or 1 MW); docs/physics.md, meters
Shapes:  F = 4N + 4E channels in MeterLayout order: v p q va per bus, then pf qf pt qt per branch;
         M installed channels of a plan (MeterPlan.channels lists them); R rows, T scans
Units:   p.u., rad

A metering plan is a fixed property of a grid, drawn from (case, plan_id) alone: never from a label.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.ybus import BranchAdmittance, branch_admittance
from gg_ray.records import F64, I64, Bool

C128 = NDArray[np.complex128]
POWER_CLASSES = (0.005, 0.01, 0.02)
VOLTAGE_CLASSES = (0.002, 0.003, 0.005)
POWER_FLOOR_PU = 0.01
"""Smallest standard deviation of a P or Q meter: 1 MW on a 100 MVA base."""
ANGLE_SIGMA_RAD = np.deg2rad(0.1)
PMU_SHARE = 0.15
EXTERNAL_PLAN = -1
"""Number of every plan that a sender describes and `draw_plan` did not draw."""


@dataclass(frozen=True, slots=True)
class MeterLayout:
    """Positions of the channels in the last axis of every reading array."""

    n_bus: int
    n_branch: int

    @property
    def size(self) -> int:
        return 4 * (self.n_bus + self.n_branch)

    def bus(self, channel: int) -> slice:
        return slice(channel * self.n_bus, (channel + 1) * self.n_bus)

    def branch(self, channel: int) -> slice:
        start = 4 * self.n_bus + channel * self.n_branch
        return slice(start, start + self.n_branch)

    def bus_channels(self, bus: int) -> I64:
        """The four channels of one bus."""
        return np.arange(4) * self.n_bus + bus

    def branch_channels(self, branch: int) -> I64:
        return 4 * self.n_bus + np.arange(4) * self.n_branch + branch

    def owner(self) -> tuple[I64, I64]:
        """[M] bus of each channel (-1 for branch channels) and branch of each channel (-1 for bus channels)."""
        none_b, none_e = np.full(4 * self.n_branch, -1), np.full(4 * self.n_bus, -1)
        bus = np.concatenate([np.tile(np.arange(self.n_bus), 4), none_b])
        branch = np.concatenate([none_e, np.tile(np.arange(self.n_branch), 4)])
        return bus.astype(np.int64), branch.astype(np.int64)


def layout_of(case: GridCase) -> MeterLayout:
    return MeterLayout(case.n_bus, case.n_branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlan:
    """A grid's metering.

    channels   [M] installed channels, ascending positions in the full layout
    index_of   [F] position of a channel among the installed ones, -1 where there is no meter
    sigma, period, phase  [M] standard deviation, refresh period in scans and its phase
    """

    case: str
    plan_id: int
    kappa: float
    channels: I64
    index_of: I64
    sigma: F64
    period: I64
    phase: I64
    missing_rate: float
    n_bus: int
    n_branch: int

    @property
    def layout(self) -> MeterLayout:
        return MeterLayout(self.n_bus, self.n_branch)

    @property
    def size(self) -> int:
        return int(self.channels.size)

    def at(self, channels: I64) -> I64:
        """Installed positions of full-layout channels; those without a meter are left out."""
        index = self.index_of[channels]
        return np.asarray(index[index >= 0])

    def expand(self, values_TM: F64, fill: float = np.nan) -> F64:
        """[..., M] installed channels -> [..., F] full layout."""
        full = np.full((*values_TM.shape[:-1], self.layout.size), fill)
        full[..., self.channels] = values_TM
        return full


def draw_plan(case: GridCase, plan_id: int, kappa: tuple[float, float], missing_rate: float) -> MeterPlan:
    """Metering plan number plan_id of a case.

    kappa is the metered share of buses and of branch ends; V comes with P and Q (one RTU), PMU angles are rare.
    Deterministic in (case name, plan_id, kappa range).   Source: selfplay.md, section 4 (observability)
    """
    rng = np.random.default_rng([zlib.crc32(case.name.encode()), plan_id])
    share = float(rng.uniform(*kappa))
    layout = layout_of(case)
    n, e = case.n_bus, case.n_branch
    installed = np.zeros(layout.size, dtype=bool)
    rtu = rng.random(n) < share
    rtu[case.gen_bus] |= rng.random(case.n_gen) < 0.5  # power stations are metered more often
    for channel in (0, 1, 2):
        installed[layout.bus(channel)] = rtu
    installed[layout.bus(3)] = rng.random(n) < PMU_SHARE * share
    for pair in ((0, 1), (2, 3)):
        end = rng.random(e) < share
        for channel in pair:
            installed[layout.branch(channel)] = end
    nominal = np.abs(measure(case, case.v0[None])[0])
    channels = np.flatnonzero(installed)
    index_of = np.full(layout.size, -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    sigma = np.maximum(rng.choice(POWER_CLASSES, layout.size) * nominal, POWER_FLOOR_PU)
    sigma[layout.bus(0)] = rng.choice(VOLTAGE_CLASSES, n)
    sigma[layout.bus(3)] = ANGLE_SIGMA_RAD
    period = np.where(rng.random(layout.size) < 0.1, 2, 1).astype(np.int64)
    phase = rng.integers(0, 2, layout.size)
    return MeterPlan(
        case=case.name, plan_id=plan_id, kappa=share, channels=channels, index_of=index_of, sigma=sigma[channels],
        period=period[channels], phase=phase[channels], missing_rate=missing_rate, n_bus=n, n_branch=e,
    )  # fmt: skip


def external_plan(case: GridCase, channels: I64, sigma: F64) -> MeterPlan:
    """Metering that a sender describes: [M] ascending layout positions and their standard deviations."""
    layout = layout_of(case)
    index_of = np.full(layout.size, -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    ones = np.ones(channels.size, dtype=np.int64)
    return MeterPlan(
        case=case.name, plan_id=EXTERNAL_PLAN, kappa=channels.size / layout.size, channels=channels, index_of=index_of,
        sigma=sigma, period=ones, phase=0 * ones, missing_rate=0.0, n_bus=case.n_bus, n_branch=case.n_branch,
    )  # fmt: skip


def measure(
    case: GridCase, v_RN: C128, y: BranchAdmittance | None = None, status_RE: Bool | None = None,
    channels: I64 | None = None,
) -> F64:  # fmt: skip
    """Noise-free values of every channel, or of some: h(x), [R, F] or [R, len(channels)].

    Args: v_RN complex voltage, p.u.; y branch admittances (the case's own by default); status_RE branches in service;
          channels  positions in the full layout
    Angles are relative to the slack bus. Injection is generation minus load: bus shunts are not part of it.
    """
    y = branch_admittance(case) if y is None else y
    layout = layout_of(case)
    channels = np.arange(layout.size) if channels is None else channels
    out = np.empty((v_RN.shape[0], channels.size))
    relative = v_RN * np.exp(-1j * np.angle(v_RN[:, [case.slack]]))
    _measure_kernel(
        np.ascontiguousarray(relative.real), np.ascontiguousarray(relative.imag), case.f_bus, case.t_bus,
        np.stack([y.yff, y.yft, y.ytf, y.ytt], axis=1), case.gs, case.bs,
        np.ones((1, case.n_branch), dtype=bool) if status_RE is None else np.ascontiguousarray(status_RE),
        channels, np.empty(layout.size), out,
    )  # fmt: skip
    return out


@numba.njit(cache=True, fastmath=False)
def _measure_kernel(  # type: ignore[no-untyped-def]
    re, im, f_bus, t_bus, y_E4, gs, bs, status, channels, row, out
):  # pragma: no cover - compiled
    """One row at a time in `row`, which stays in cache; only the channels asked for are written out."""
    rows, n = re.shape
    e_count = f_bus.shape[0]
    base = 4 * n
    per_row = status.shape[0] > 1
    for r in range(rows):
        for i in range(n):
            square = re[r, i] * re[r, i] + im[r, i] * im[r, i]
            row[i] = np.sqrt(square)
            row[n + i] = square * gs[i]
            row[2 * n + i] = -square * bs[i]
            row[3 * n + i] = np.arctan2(im[r, i], re[r, i])
        for e in range(e_count):
            if not status[r if per_row else 0, e]:
                for k in range(4):
                    row[base + k * e_count + e] = 0.0
                continue
            f, t = f_bus[e], t_bus[e]
            vf, vt = complex(re[r, f], im[r, f]), complex(re[r, t], im[r, t])
            s_f = vf * np.conj(y_E4[e, 0] * vf + y_E4[e, 1] * vt)
            s_t = vt * np.conj(y_E4[e, 2] * vf + y_E4[e, 3] * vt)
            row[base + e] = s_f.real
            row[base + e_count + e] = s_f.imag
            row[base + 2 * e_count + e] = s_t.real
            row[base + 3 * e_count + e] = s_t.imag
            row[n + f] += s_f.real
            row[2 * n + f] += s_f.imag
            row[n + t] += s_t.real
            row[2 * n + t] += s_t.imag
        for m in range(channels.shape[0]):
            out[r, m] = row[channels[m]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Which scan's reading is delivered in each scan, and what never arrives; shared by a window and its twin.

    source_TM  index of the scan whose reading stands in scan t (t itself when fresh)
    absent_TM  nothing arrived
    """

    source_TM: I64
    absent_TM: Bool


STALE_RATE = 0.01
"""Chance that a scan repeats the previous value: the allowed nuisance that `freeze` must exceed."""
RTU_OUTAGE_RATE = 0.1
"""Chance that one RTU goes quiet for 2 to 6 scans of a window."""


def draw_delivery(plan: MeterPlan, scans: int, rng: np.random.Generator) -> Delivery:
    """Refresh periods, stale values, drop-outs and an occasional RTU outage.

    Drawn without any knowledge of the program, so presence and age carry no label.
    """
    # One draw decides both: the lowest STALE_RATE repeats, the highest missing_rate is lost.
    fate = rng.random((scans, plan.size), dtype=np.float32)
    source, absent = np.empty(fate.shape, dtype=np.int64), np.empty(fate.shape, dtype=bool)
    _draw_kernel(fate, plan.period, plan.phase, STALE_RATE, 1.0 - plan.missing_rate, source, absent)
    if rng.random() < RTU_OUTAGE_RATE:
        start = int(rng.integers(0, scans))
        stop = min(scans, start + int(rng.integers(2, 7)))
        absent[start:stop, plan.at(plan.layout.bus_channels(int(rng.integers(0, plan.n_bus))))] = True
    return Delivery(source_TM=source, absent_TM=absent)


def deliver(reading_TM: F64, delivery: Delivery) -> tuple[F64, NDArray[np.uint8]]:
    """What the control room receives: held values, NaN for absent ones, and the age of each value in scans.

    Returns: z [T, M] with NaN, age [T, M] (255 where nothing has arrived in the window so far)
    """
    z, age = np.empty_like(reading_TM), np.empty(reading_TM.shape, dtype=np.uint8)
    _deliver_kernel(reading_TM, delivery.source_TM, delivery.absent_TM, z, age)
    return z, age


@numba.njit(cache=True)
def _draw_kernel(  # type: ignore[no-untyped-def]
    fate, period, phase, stale, lost, source, absent
):  # pragma: no cover - compiled
    scans, meters = fate.shape
    for t in range(scans):
        for m in range(meters):
            at = max(t - (t + phase[m]) % period[m], 0)
            source[t, m] = max(at - 1, 0) if fate[t, m] < stale else at
            absent[t, m] = fate[t, m] > lost


@numba.njit(cache=True)
def _deliver_kernel(reading, source, absent, z, age):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    scans, meters = reading.shape
    newest = np.full(meters, -1, dtype=np.int64)
    for t in range(scans):
        for m in range(meters):
            if absent[t, m]:
                z[t, m] = np.nan
            else:
                z[t, m] = reading[source[t, m], m]
                newest[m] = max(newest[m], source[t, m])
            age[t, m] = 255 if newest[m] < 0 else min(t - newest[m], 254)
