"""What an anomaly is: the alteration of one window, the scene it is made for, and where it points.

Flow:    solved worlds -> Scene -> scenario.anomalies -> [Alteration] -> scenario.sizing, scenario.telemetry
Source:  selfplay.md, section 3 (anomaly vector); docs/physics.md (recipes)
Shapes:  T scans, M installed meters, c touched meters, k touched pseudo-measurements
Units:   p.u., rad

An Alteration is written for unit magnitude where the family is sized; `scaled` multiplies it. `model` holds what the
declared model predicts wrongly although the readings are true (topology and parameter families).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.detectability import Innovation, LinearFlow
from gg_ray.grid.faults import FaultModel
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.records import F64, I64, Event
from gg_ray.scenario.attacks import Attacker
from gg_ray.scenario.worlds import Fleet, Readings, active_scans

C128 = NDArray[np.complex128]
PROBE = 1e-2
"""Relative size at which nonlinear families are probed before they are scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """One anomaly of one window.

    meters [c], shift_Tc   change of the telemetered mean
    model_Tc               what the declared model mispredicts on the same meters (true reading minus prediction)
    pseudo [k], u_Tk       the same on the injection pseudo-measurements
    extra_d2               detectability by noise or by copied values; d_eff takes the larger of it and the mean's
    sized                  shift, model and u scale with one magnitude
    """

    meters: I64
    shift_Tc: F64
    model_Tc: F64
    pseudo: I64
    u_Tk: F64
    buses: tuple[int, ...] = ()
    branches: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    sized: bool = True
    extra_d2: float = 0.0
    readings: Readings = field(default_factory=Readings)
    """Held readings and noise; shift_Tc is added only where a reading is its own scan's."""
    open_branch: int | None = None
    """Branch declared open although closed, from start to stop."""
    tap: tuple[int, float] | None = None
    x_scale: tuple[int, float] | None = None
    in_bounds: bool = True

    def innovation(self) -> Innovation:
        """What a detector with the declared model could see of it."""
        return Innovation(self.meters, self.shift_Tc + self.model_Tc, self.pseudo, self.u_Tk)

    def scaled(self, factor: float) -> Alteration:
        return replace(self, shift_Tc=self.shift_Tc * factor, model_Tc=self.model_Tc * factor, u_Tk=self.u_Tk * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything an anomaly may look at: the true trajectory of its window and the grid's fixed tools."""

    case: GridCase
    plan: MeterPlan
    fleet: Fleet
    attacker: Attacker
    linear: LinearFlow
    faults: FaultModel
    v_TN: C128
    h_TM: F64
    """Noise-free readings of the true world at the installed meters."""
    quiet_h_TM: F64
    """The same in the world without the hidden event (equal to h_TM where there is none)."""
    load_p_TN: F64
    """Demand of the true world, p.u."""
    sign: float
    """+1 or -1, seeded by the program."""
    target_d: float
    lost_p: float = 0.0
    """Output lost by an undeclared generator trip, p.u."""


@functools.lru_cache(maxsize=16)
def materiality_scale(case_name: str) -> F64:
    """[F] materiality limit of each channel, p.u."""
    case = load_case(case_name)
    n = case.n_bus
    base = measure(case, case.v0[None])[0]
    typical = float(np.median(case.load_p[case.load_p > 0.01])) if (case.load_p > 0.01).any() else 0.1
    peak = np.maximum(np.maximum(np.abs(case.load_p), np.abs(base[n : 2 * n])), 0.5 * typical)
    flow = 0.02 * np.maximum(case.rate, 0.05)
    angle = np.full(n, np.deg2rad(0.25))
    return np.concatenate([np.full(n, 0.005), 0.02 * peak, 0.02 * peak, angle, flow, flow, flow, flow])


Maker = Callable[[Scene, Event], Alteration]
"""Builds the alteration of an event at unit (or natural) size.  Raises: Unreachable."""


class Unreachable(Exception):
    """The event has no effect here (no meter, no area, no flow): gate G4 counts it."""


def meters_of(plan: MeterPlan, event: Event) -> I64:
    """Installed position of the meter an event points at: support picks P, Q or |V| (bus) or the branch channel."""
    layout = plan.layout
    if event.target < plan.n_bus:
        order = np.array([1, 2, 0]) * plan.n_bus + event.target
    else:
        order = layout.branch_channels(event.target - plan.n_bus)[[0, 1, 2, 3]]
    at = plan.at(order)
    if not at.size:
        raise Unreachable(f"{event.primitive}: no meter at place {event.target}")
    return np.asarray(at[[min(event.support, at.size - 1)]])


def meters_at(plan: MeterPlan, target: int) -> I64:
    """Installed positions of every meter of a bus or branch.  Raises: Unreachable if there is none."""
    layout = plan.layout
    channels = layout.bus_channels(target) if target < plan.n_bus else layout.branch_channels(target - plan.n_bus)
    meters = plan.at(channels)
    if not meters.size:
        raise Unreachable(f"no meter at place {target}")
    return meters


def owners(plan: MeterPlan, meters: I64) -> dict[str, tuple[int, ...]]:
    """Buses and branches that installed meters belong to, as fields of an Alteration."""
    bus, branch = plan.layout.owner()
    channels = plan.channels[meters]
    buses, branches = bus[channels], branch[channels]
    return {
        "buses": tuple(int(b) for b in np.unique(buses[buses >= 0])),
        "branches": tuple(int(e) for e in np.unique(branches[branches >= 0])),
    }


def branch_and_scans(scene: Scene, event: Event) -> tuple[int, slice]:
    """Branch that an event points at and the scans in which it acts."""
    return event.target - scene.case.n_bus, active_scans(event, scene.h_TM.shape[0])


def active_shape(scene: Scene, event: Event) -> tuple[slice, F64]:
    """Scans in which an event acts, and [T] one there and zero elsewhere."""
    scans = scene.h_TM.shape[0]
    when = active_scans(event, scans)
    shape = np.zeros(scans)
    shape[when] = 1.0
    return when, shape


def false_readings(scene: Scene, event: Event, meters: I64, shift: F64, when: slice, **more: object) -> Alteration:
    """An alteration of readings only: the declared model stays right.

    Args: meters [c], shift [T, c] p.u. or rad; more  further fields of the Alteration, `where` (see `owners`)
    """
    where = more.pop("where", None) or _place(scene.plan, event.target)
    none = np.zeros((shift.shape[0], 0))
    return Alteration(
        meters=meters, shift_Tc=shift, model_Tc=np.zeros_like(shift), pseudo=np.zeros(0, dtype=np.int64), u_Tk=none,
        start=when.start, stop=when.stop, **where, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _place(plan: MeterPlan, target: int) -> dict[str, tuple[int, ...]]:
    return {"buses": (target,)} if target < plan.n_bus else {"branches": (target - plan.n_bus,)}
