"""Families in which somebody or something hides: theft, an undeclared trip, false data injection, replay, cover-ups.

Flow:    scenario.alteration (Scene), scenario.attacks -> [anomalies_hidden] -> scenario.anomalies
Source:  selfplay.md, section 5 (families T4 and A1 to A4); docs/physics.md (recipes)
Shapes:  T scans, c touched meters, k touched pseudo-measurements
Units:   p.u., rad
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.detectability import Innovation
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.grid.ybus import BranchAdmittance, branch_admittance
from gg_ray.records import F64, I64, Event
from gg_ray.scenario.alteration import (
    PROBE,
    Alteration,
    Maker,
    Scene,
    Unreachable,
    active_shape,
    branch_and_scans,
    false_readings,
    owners,
)
from gg_ray.scenario.anomalies_model import undeclared_line_outage
from gg_ray.scenario.attacks import Area, direction
from gg_ray.scenario.worlds import active_scans

PROBED = ("stealth_fdia", "ramp_fdia", "partial_fdia", "wrong_model_fdia")
"""Primitives whose effect is not proportional to their size: `injection` gives the exact one."""

_REDISTRIBUTION_HOPS = 2
"""Radius at support 0. One hop holds too few loads: on case30 3 % of its programs reached their d_eff in bounds."""


# --- undeclared injections -------------------------------------------------------------------------------------------


def hidden_load_unit(plan: MeterPlan, case: GridCase, bus: int, shape: F64) -> Innovation:
    """Innovation of one p.u. of unmetered demand change: its own meter and the forecast disagree with the state."""
    meter = plan.at(np.array([case.n_bus + bus]))
    column = shape[:, None]
    return Innovation(meter, np.repeat(column, meter.size, axis=1), np.array([bus]), column)


def _hidden_load(scene: Scene, event: Event) -> Alteration:
    """theft / unmetered_injection: the true demand moved (scene.lost_p, already solved), its meter did not follow.

    scene.lost_p is the hidden change of net injection: negative for theft (more is drawn than read).
    """
    when, shape = active_shape(scene, event)
    unit = hidden_load_unit(scene.plan, scene.case, event.target, shape)
    size = -scene.lost_p
    none = np.zeros_like(unit.a_Tc)
    return Alteration(
        meters=unit.meters, shift_Tc=unit.a_Tc * size, model_Tc=none, pseudo=unit.pseudo, u_Tk=unit.u_Tk * size,
        buses=(event.target,), start=when.start, stop=when.stop, sized=False,
    )  # fmt: skip


def _undeclared_gen_trip(scene: Scene, event: Event) -> Alteration:
    """A unit is lost; its status and its own channel still say that it runs."""
    when, shape = active_shape(scene, event)
    unit = hidden_load_unit(scene.plan, scene.case, event.target, shape)
    return Alteration(
        meters=unit.meters, shift_Tc=unit.a_Tc * scene.lost_p, model_Tc=np.zeros_like(unit.a_Tc), pseudo=unit.pseudo,
        u_Tk=unit.u_Tk * scene.lost_p, buses=(event.target,), start=when.start, stop=when.stop, sized=False,
    )  # fmt: skip


# --- attacks ---------------------------------------------------------------------------------------------------------


def _load_redistribution(scene: Scene, event: Event) -> Alteration:
    """Sum of changes zero, generation untouched, flows from the attacker's linear model (so slightly inconsistent).

    The loads around the target seem to grow and those further out to shrink (or the other way round), each side by one
    share of its demand: the pattern that moves most while no load changes by more than MAX_LOAD_SHARE. The unit is the
    larger share, 100 %.   Source: physics.md, DC recipe (Yuan, Li and Ren 2011: |change| <= share of the load, sum 0)
    """
    when, shape = active_shape(scene, event)
    case, plan = scene.case, scene.plan
    hops = scene.fleet.near.hops(event.target)
    loads = np.flatnonzero((hops <= event.support + _REDISTRIBUTION_HOPS) & (case.load_p > 0.01))
    loads = loads[np.argsort(hops[loads], kind="stable")]  # the target leads: it is a load itself
    demand = scene.load_p_TN[when][:, loads].min(axis=0)
    near = np.cumsum(demand) - demand < 0.5 * demand.sum()
    near[0] = True
    moved = min(demand[near].sum(), demand[~near].sum())
    if near.all() or moved <= 0:
        raise Unreachable("load_redistribution: no second load in the area")
    change = np.zeros((1, case.n_bus))
    change[0, loads] = scene.sign * moved * np.where(near, demand / demand[near].sum(), -demand / demand[~near].sum())
    moves = scene.linear.moves(-change, np.zeros_like(change))
    effect = np.asarray(scene.linear.h @ moves[0])[plan.channels]
    own = plan.index_of[case.n_bus + loads]
    meters = np.flatnonzero(np.abs(effect) > 0.05 * plan.sigma)
    if not (own >= 0).any() or not meters.size:
        raise Unreachable("load_redistribution: no meter of the area sees it")
    shift = shape[:, None] * effect[meters]
    return false_readings(scene, event, meters, shift, when, where=owners(plan, meters[_strong(effect[meters])]))


def _strong(effect: F64) -> NDArray[np.bool_]:
    return np.asarray(np.abs(effect) >= 0.2 * np.abs(effect).max())


def _replay(scene: Scene, event: Event) -> Alteration:
    """Every meter of an area plays back a recording of another, self-consistent hour (solved by the executor)."""
    when, shape = active_shape(scene, event)
    plan = scene.plan
    meters = _area_meters(scene, scene.fleet.area(event.target, event.support))
    shift = (scene.quiet_h_TM - scene.h_TM)[:, meters] * shape[:, None]
    return false_readings(scene, event, meters, shift, when, sized=False, where=owners(plan, meters))


def _area_meters(scene: Scene, buses: I64) -> I64:
    """Installed meters of an area's buses and of the branches with both ends inside."""
    case, plan = scene.case, scene.plan
    inside = np.zeros(case.n_bus, dtype=bool)
    inside[buses] = True
    branches = np.flatnonzero(inside[case.f_bus] & inside[case.t_bus])
    channels = np.concatenate(
        [plan.layout.bus_channels(int(b)) for b in buses]
        + [plan.layout.branch_channels(int(e)) for e in branches]
    )  # fmt: skip
    meters = plan.at(channels)
    if not meters.size:
        raise Unreachable("no meter in the area")
    return np.asarray(np.sort(meters))


def injection(scene: Scene, event: Event, size: float = PROBE) -> Alteration:
    """FDIA family: a = h(x') - h(x) with x' solved inside the area, boundary voltages held.

    partial_fdia rewrites three meters in four; wrong_model_fdia computes its injection with wrong line lengths.
    """
    case, plan = scene.case, scene.plan
    when = active_scans(event, scene.h_TM.shape[0])
    # support 0 and 1 mean one hop, 2 means two: with none, only the target's own state could move
    area = scene.attacker.area(event.target, max(1, event.support))
    if area is None:
        raise Unreachable(f"{event.primitive}: no attack area around bus {case.bus_names[event.target]}")
    shape = np.ones(when.stop - when.start)
    if event.primitive == "ramp_fdia":
        shape = np.arange(1, shape.size + 1) / shape.size
    pattern = direction(case, area, event.target) * abs(case.load_p[event.target])
    ds = (-scene.sign * size) * shape[:, None] * pattern * (1 + 0.2j)
    v = scene.v_TN[when]
    fake = scene.attacker.fake_state(v, area, ds)
    if fake is None:
        return _out_of_bounds(scene, event, when)
    model = _attacker_model(case, scene.sign) if event.primitive == "wrong_model_fdia" else None
    change = (measure(case, fake, model) - measure(case, v, model))[:, plan.channels]
    meters = np.flatnonzero(np.abs(change).max(axis=0) > 1e-3 * plan.sigma * min(1.0, abs(size) / PROBE))
    if event.primitive == "partial_fdia":
        meters = meters[(np.arange(meters.size) + int(scene.sign > 0)) % 4 != 0]
    if not meters.size:
        raise Unreachable(f"{event.primitive}: no meter sees the area")
    shift = np.zeros((scene.h_TM.shape[0], meters.size))
    shift[when] = change[:, meters]
    largest = np.abs(shift).max(axis=0) / plan.sigma[meters]
    return false_readings(
        scene, event, meters, shift, when, where=_fdia_place(plan, area, meters[_strong(largest)]),
        in_bounds=scene.attacker.credible(v, fake, area),
    )  # fmt: skip


def _fdia_place(plan: MeterPlan, area: Area, meters: I64) -> dict[str, tuple[int, ...]]:
    where = owners(plan, meters)
    return {"buses": tuple(sorted({*where["buses"], *(int(b) for b in area.interior)})), "branches": where["branches"]}


def _attacker_model(case: GridCase, sign: float) -> BranchAdmittance:
    """Branch admittances with every line length off by +-8 % in a fixed pattern: a poorly informed attacker's."""
    wobble = 1.0 + 0.08 * np.where((np.arange(case.n_branch) * 2654435761 >> 7) % 2 == 0, sign, -sign)
    return branch_admittance(case, x_scale=wobble)


def _out_of_bounds(scene: Scene, event: Event, when: slice) -> Alteration:
    none = np.zeros(0, dtype=np.int64)
    return false_readings(
        scene, event, none, np.zeros((scene.h_TM.shape[0], 0)), when, in_bounds=False, where={"buses": (event.target,)}
    )  # fmt: skip


def _coordinated(scene: Scene, event: Event) -> Alteration:
    """An undeclared outage whose surroundings keep showing the world in which it did not happen."""
    case = scene.case
    branch, _ = branch_and_scans(scene, event)
    ends = np.array([case.f_bus[branch], case.t_bus[branch]])
    area = np.unique(np.concatenate([scene.fleet.area(int(bus), event.support) for bus in ends]))
    return _masked(scene, area, undeclared_line_outage(scene, event))


def _coordinated_trip(scene: Scene, event: Event) -> Alteration:
    """A lost unit whose surroundings keep showing the world in which it runs; the area holds its own meter."""
    area = scene.fleet.area(event.target, event.support)
    trip = _undeclared_gen_trip(scene, event)
    none = np.zeros_like(trip.shift_Tc)
    return _masked(scene, area, replace(trip, shift_Tc=none, model_Tc=none))


def _masked(scene: Scene, area: I64, fault: Alteration) -> Alteration:
    """A hidden fault whose area's meters show the world without it: what the declared model gets wrong stays wrong."""
    meters = _area_meters(scene, area)
    when = slice(fault.start, fault.stop)
    shift = np.zeros((scene.h_TM.shape[0], meters.size))
    shift[when] = (scene.quiet_h_TM - scene.h_TM)[when][:, meters]
    return replace(
        fault, meters=np.concatenate([fault.meters, meters]),
        shift_Tc=np.concatenate([np.zeros_like(fault.model_Tc), shift], axis=1),
        model_Tc=np.concatenate([fault.model_Tc, np.zeros_like(shift)], axis=1),
        buses=tuple(int(b) for b in area),
    )  # fmt: skip


MAKERS: dict[str, Maker] = {
    "theft": _hidden_load, "unmetered_injection": _hidden_load, "undeclared_gen_trip": _undeclared_gen_trip,
    "load_redistribution": _load_redistribution, "replay": _replay, "coordinated": _coordinated,
    "coordinated_trip": _coordinated_trip,
    "stealth_fdia": injection, "ramp_fdia": injection, "partial_fdia": injection, "wrong_model_fdia": injection,
}  # fmt: skip
