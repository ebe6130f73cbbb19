"""The twelve anomaly families: what telemetry or declarations say instead of the truth.

Flow:    solved worlds -> [anomalies] -> scenario.executor (sizes them in d_eff units, adds noise, gates)
Source:  selfplay.md, section 5 (families), section 3 (anomaly vector); docs/physics.md (recipes)
Shapes:  T scans, M installed meters, c touched meters, k touched pseudo-measurements
Units:   p.u., rad

An Alteration is written for unit magnitude where the family is sized; `scaled` multiplies it. `model` holds what the
declared model predicts wrongly although the readings are true (topology and parameter families).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.estimation import Innovation, LinearFlow
from gg_ray.grid.meters import STALE_RATE, MeterPlan, measure
from gg_ray.grid.ybus import BranchAdmittance, branch_admittance, branch_flows
from gg_ray.records import F64, I64, Event
from gg_ray.scenario.attacks import Area, Attacker, direction
from gg_ray.scenario.worlds import LONGEST_WINDOW, Fleet, Readings, active_scans

C128 = NDArray[np.complex128]
TAP_LIMIT = 0.12
PARAMETER_LIMIT = (-0.6, 1.5)
SCALE_LIMIT = (-0.9, 3.0)
_PROBE = 1e-2
"""Relative size at which nonlinear families are probed before they are scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """One anomaly of one window.

    meters [c], shift_Tc   change of the telemetered mean
    model_Tc               what the declared model mispredicts on the same meters (true reading minus prediction)
    pseudo [k], u_Tk       the same on the injection pseudo-measurements
    extra_d2               detectability beyond the mean (noise, frozen values), 2 x Kullback-Leibler
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
    v_TN: C128
    h_TM: F64
    """Noise-free readings of the true world at the installed meters."""
    quiet_h_TM: F64
    """The same in the world without the hidden event (equal to h_TM where there is none)."""
    sign: float
    """+1 or -1, seeded by the program."""
    target_d: float
    lost_p: float = 0.0
    """Output lost by an undeclared generator trip, p.u."""


class Unreachable(Exception):
    """The event has no effect here (no meter, no area, no flow): gate G4 counts it."""


def build(scene: Scene, event: Event) -> Alteration:
    """Alteration of an anomaly event at unit (or natural) size.  Raises: Unreachable."""
    maker = _MAKERS.get(event.primitive)
    if maker is None:
        raise ValueError(f"{event.primitive!r} is not an anomaly primitive")
    return maker(scene, event)


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


def _gate(scene: Scene, event: Event) -> tuple[slice, F64]:
    scans = scene.h_TM.shape[0]
    when = active_scans(event, scans)
    shape = np.zeros(scans)
    shape[when] = 1.0
    return when, shape


def _place(plan: MeterPlan, target: int) -> dict[str, tuple[int, ...]]:
    return {"buses": (target,)} if target < plan.n_bus else {"branches": (target - plan.n_bus,)}


def _data(scene: Scene, event: Event, meters: I64, shift: F64, when: slice, **more: object) -> Alteration:
    """An alteration of readings only: the declared model stays right."""
    where = more.pop("where", None) or _place(scene.plan, event.target)
    none = np.zeros((shift.shape[0], 0))
    return Alteration(
        meters=meters, shift_Tc=shift, model_Tc=np.zeros_like(shift), pseudo=np.zeros(0, dtype=np.int64), u_Tk=none,
        start=when.start, stop=when.stop, **where, **more,  # type: ignore[arg-type]
    )  # fmt: skip


# --- sensor families -------------------------------------------------------------------------------------------------


def _sign_flip(scene: Scene, event: Event) -> Alteration:
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    return _data(scene, event, meters, -2.0 * scene.h_TM[:, meters] * shape[:, None], when, sized=False)


def _unit_error(scene: Scene, event: Event) -> Alteration:
    """kW for MW (x 1000), or kV for p.u. on a voltage meter."""
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    voltage = scene.plan.channels[meters] < scene.plan.n_bus
    factor = scene.case.vn_kv[event.target] if voltage.all() and event.target < scene.plan.n_bus else 1000.0
    return _data(scene, event, meters, (factor - 1.0) * scene.h_TM[:, meters] * shape[:, None], when, sized=False)


def _time_skew(scene: Scene, event: Event) -> Alteration:
    """A PMU clock error (angle offset) where there is a PMU, otherwise an RTU that reports the past."""
    when, shape = _gate(scene, event)
    plan = scene.plan
    if event.target < plan.n_bus and plan.index_of[3 * plan.n_bus + event.target] >= 0:
        meters = plan.at(np.array([3 * plan.n_bus + event.target]))
        return _data(scene, event, meters, scene.sign * plan.sigma[meters] * shape[:, None], when)
    meters = _all_meters(plan, event.target)
    source = _lagged(scene.h_TM.shape[0], when, event.support + 3)
    shift = scene.h_TM[source][:, meters] - scene.h_TM[:, meters]
    return _data(scene, event, meters, shift, when, sized=False, readings=Readings(holds=[(meters, source)]))


def _lagged(scans: int, when: slice, lag: int) -> I64:
    source = np.arange(scans)
    source[when] = np.maximum(source[when] - lag, 0)
    return source


def _all_meters(plan: MeterPlan, target: int) -> I64:
    layout = plan.layout
    channels = layout.bus_channels(target) if target < plan.n_bus else layout.branch_channels(target - plan.n_bus)
    meters = plan.at(channels)
    if not meters.size:
        raise Unreachable(f"no meter at place {target}")
    return meters


def _bias(scene: Scene, event: Event) -> Alteration:
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    return _data(scene, event, meters, scene.sign * scene.plan.sigma[meters] * shape[:, None], when)


def _drift(scene: Scene, event: Event) -> Alteration:
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    ramp = np.cumsum(shape) / max(shape.sum(), 1.0)
    return _data(scene, event, meters, scene.sign * scene.plan.sigma[meters] * ramp[:, None], when)


def _scale(scene: Scene, event: Event) -> Alteration:
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    shift = scene.sign * scene.h_TM[:, meters] * shape[:, None]
    return _data(scene, event, meters, shift, when)


def _meter_swap(scene: Scene, event: Event) -> Alteration:
    """Two channels of one kind exchanged: the other one is the nearest-numbered installed meter of that kind."""
    when, shape = _gate(scene, event)
    plan = scene.plan
    own = int(meters_of(plan, event)[0])
    kind = _kind(plan, plan.channels)
    same = np.flatnonzero((kind == kind[own]) & (np.arange(plan.size) != own))
    if not same.size:
        raise Unreachable("meter_swap: no second meter of that kind")
    other = int(same[np.argsort(np.abs(same - own), kind="stable")[min(event.support, same.size - 1)]])
    meters = np.array([own, other])
    shift = (scene.h_TM[:, meters[::-1]] - scene.h_TM[:, meters]) * shape[:, None]
    where = _owners(plan, meters)
    return _data(scene, event, meters, shift, when, sized=False, where=where)


def _kind(plan: MeterPlan, channels: I64) -> I64:
    bus = channels < 4 * plan.n_bus
    return np.where(bus, channels // plan.n_bus, 4 + (channels - 4 * plan.n_bus) // plan.n_branch)


def _owners(plan: MeterPlan, meters: I64) -> dict[str, tuple[int, ...]]:
    bus, branch = plan.layout.owner()
    channels = plan.channels[meters]
    buses, branches = bus[channels], branch[channels]
    return {
        "buses": tuple(int(b) for b in np.unique(buses[buses >= 0])),
        "branches": tuple(int(e) for e in np.unique(branches[branches >= 0])),
    }


def _freeze(scene: Scene, event: Event) -> Alteration:
    """The last value repeats. Each repeat beyond the two that are an allowed nuisance adds log(1 / stale rate)."""
    when, _ = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    source = np.arange(scene.h_TM.shape[0])
    source[when] = when.start - 1
    shift = scene.h_TM[source][:, meters] - scene.h_TM[:, meters]
    repeats = max(0, when.stop - when.start - 2)
    return _data(
        scene, event, meters, shift, when, sized=False, extra_d2=2.0 * repeats * np.log(1.0 / STALE_RATE) / 4.0,
        readings=Readings(holds=[(meters, source)]),
    )  # fmt: skip


def _noise_inflation(scene: Scene, event: Event) -> Alteration:
    """Noise of factor k: n (k^2 - 1 - 2 ln k) = d^2, the variance part of twice the divergence."""
    when, shape = _gate(scene, event)
    meters = meters_of(scene.plan, event)
    n, want = float(shape.sum()), scene.target_d**2
    low, high = 1.0, 50.0
    for _ in range(40):
        k = 0.5 * (low + high)
        low, high = (k, high) if n * (k * k - 1 - 2 * np.log(k)) < want else (low, k)
    factor = 1.0 + (high - 1.0) * shape
    return _data(
        scene, event, meters, np.zeros((shape.size, 1)), when, sized=False, extra_d2=want,
        readings=Readings(noise=[(meters, factor)]),
    )  # fmt: skip


def _spike(scene: Scene, event: Event) -> Alteration:
    """One scan; on a slowly polled meter the next scan that is read, or it would never arrive."""
    meters = meters_of(scene.plan, event)
    meter = int(meters[0])
    at = event.onset + int(-(event.onset + scene.plan.phase[meter]) % scene.plan.period[meter])
    shift = np.zeros((scene.h_TM.shape[0], 1))
    shift[at] = scene.sign * scene.plan.sigma[meters]
    return _data(scene, event, meters, shift, slice(at, at + 1))


# --- topology families -----------------------------------------------------------------------------------------------


def _mismatch(scene: Scene, branch: int, when: slice, true: F64, predicted: F64, **more: object) -> Alteration:
    """A branch whose declared model predicts other end powers than the true ones; readings stay true.

    Args: true, predicted [T, 4] (pf, qf, pt, qt) at the true state
    """
    case, plan = scene.case, scene.plan
    n = case.n_bus
    gap = np.zeros_like(true)
    gap[when] = true[when] - predicted[when]
    f, t = int(case.f_bus[branch]), int(case.t_bus[branch])
    channels = np.concatenate([plan.layout.branch_channels(branch), [n + f, 2 * n + f, n + t, 2 * n + t]])
    columns = np.concatenate([gap, gap], axis=1)
    index = plan.index_of[channels]
    on = index >= 0
    pseudo = np.array([f, n + f, t, n + t])
    zero = np.zeros((gap.shape[0], int(on.sum())))
    return Alteration(
        meters=index[on], shift_Tc=zero, model_Tc=columns[:, on], pseudo=pseudo, u_Tk=gap, buses=(f, t),
        branches=(branch,), start=when.start, stop=when.stop, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _end_powers(case: GridCase, v_TN: C128, branch: int, tap: float | None = None, x_scale: float = 1.0) -> F64:
    """[T, 4] powers entering one branch for its own or a declared model."""
    one = _single(case, branch, tap, x_scale)
    s_f, s_t = branch_flows(one, v_TN, branch_admittance(one))
    return np.concatenate([s_f.real, s_f.imag, s_t.real, s_t.imag], axis=1)


def _single(case: GridCase, branch: int, tap: float | None, x_scale: float) -> GridCase:
    pick = slice(branch, branch + 1)
    return replace(
        case, f_bus=case.f_bus[pick], t_bus=case.t_bus[pick], r=case.r[pick], x=case.x[pick] * x_scale,
        g=case.g[pick], b=case.b[pick], tap=case.tap[pick] if tap is None else np.array([tap]), shift=case.shift[pick],
    )  # fmt: skip


def _to_end(scene: Scene, event: Event) -> tuple[int, slice]:
    return event.target - scene.case.n_bus, active_scans(event, scene.h_TM.shape[0])


def _wrong_breaker_status(scene: Scene, event: Event) -> Alteration:
    """Declared open, still closed: its flow contradicts the declaration."""
    branch, when = _to_end(scene, event)
    true = _end_powers(scene.case, scene.v_TN, branch)
    return _mismatch(
        scene, branch, when, true, np.zeros_like(true), sized=False, open_branch=branch
    )  # fmt: skip


def _undeclared_line_outage(scene: Scene, event: Event) -> Alteration:
    """Really out, declared in: the declared model predicts a flow that is not there."""
    branch, when = _to_end(scene, event)
    predicted = _end_powers(scene.case, scene.v_TN, branch)
    return _mismatch(scene, branch, when, np.zeros_like(predicted), predicted, sized=False)


def _wrong_tap(scene: Scene, event: Event) -> Alteration:
    """The declared ratio differs from the true one for the whole window after the (wrong) declaration."""
    branch = event.target - scene.case.n_bus
    return _declared(scene, event, branch, tap=float(scene.case.tap[branch] * (1 + scene.sign * _PROBE)))


def _wrong_line_parameter(scene: Scene, event: Event) -> Alteration:
    branch = event.target - scene.case.n_bus
    return _declared(scene, event, branch, x_scale=1.0 + scene.sign * _PROBE)


def _declared(scene: Scene, event: Event, branch: int, tap: float | None = None, x_scale: float = 1.0) -> Alteration:
    """Sized by probing: the executor scales the probe linearly, then asks `resize` for the exact model."""
    when = _model_scans(scene, event)
    true = _end_powers(scene.case, scene.v_TN, branch)
    predicted = _end_powers(scene.case, scene.v_TN, branch, tap, x_scale)
    return _mismatch(scene, branch, when, true, predicted)


def _model_scans(scene: Scene, event: Event) -> slice:
    """A wrong model has no onset inside a window; on a timeline it is published for one episode."""
    scans = scene.h_TM.shape[0]
    return slice(0, scans) if scans <= LONGEST_WINDOW else active_scans(event, scans)


def resize(scene: Scene, event: Event, unit: Alteration, factor: float) -> Alteration:
    """The alteration at `factor` times its unit size, exact where the family is nonlinear in its size."""
    if event.primitive in ("wrong_tap", "wrong_line_parameter"):
        branch = event.target - scene.case.n_bus
        m = scene.sign * _PROBE * factor
        tap_kind = event.primitive == "wrong_tap"
        low, high = (-TAP_LIMIT, TAP_LIMIT) if tap_kind else PARAMETER_LIMIT
        clipped = float(np.clip(m, low, high))
        tap = float(scene.case.tap[branch] * (1 + clipped)) if tap_kind else None
        x_scale = 1.0 if tap_kind else 1 + clipped
        true = _end_powers(scene.case, scene.v_TN, branch)
        predicted = _end_powers(scene.case, scene.v_TN, branch, tap, x_scale)
        return _mismatch(
            scene, branch, _model_scans(scene, event), true, predicted, in_bounds=low <= m <= high,
            tap=(branch, float(tap)) if tap is not None else None, x_scale=None if tap_kind else (branch, x_scale),
        )  # fmt: skip
    if event.primitive in _ATTACKS:
        return _injection(scene, event, _PROBE * factor)
    bounded = unit.scaled(factor)
    if event.primitive == "scale":
        m = scene.sign * factor
        return replace(bounded, in_bounds=SCALE_LIMIT[0] <= m <= SCALE_LIMIT[1])
    return bounded


def _hv_fault_residue(scene: Scene, event: Event) -> Alteration:
    """Fault-interval values (low voltage, high flow) persist in one RTU after the fault has cleared."""
    when, shape = _gate(scene, event)
    plan = scene.plan
    meters = _all_meters(plan, event.target)
    voltage = plan.channels[meters] < plan.n_bus
    level = np.where(voltage, -1.0, np.sign(scene.h_TM[when.start, meters] + 1e-12))
    return _data(scene, event, meters, shape[:, None] * level * plan.sigma[meters], when)


# --- physical family (undeclared injections) -------------------------------------------------------------------------


def hidden_load_unit(plan: MeterPlan, case: GridCase, bus: int, shape: F64, sign: float) -> Innovation:
    """Innovation of one p.u. of unmetered demand change: its own meter and the forecast disagree with the state."""
    meter = plan.at(np.array([case.n_bus + bus]))
    column = sign * shape[:, None]
    return Innovation(meter, np.repeat(column, meter.size, axis=1), np.array([bus]), column)


def _hidden_load(scene: Scene, event: Event) -> Alteration:
    """theft / unmetered_injection: the true demand moved (scene.lost_p, already solved), its meter did not follow.

    scene.lost_p is the hidden change of net injection: negative for theft (more is drawn than read).
    """
    when, shape = _gate(scene, event)
    unit = hidden_load_unit(scene.plan, scene.case, event.target, shape, 1.0)
    size = -scene.lost_p
    none = np.zeros_like(unit.a_Tc)
    return Alteration(
        meters=unit.meters, shift_Tc=unit.a_Tc * size, model_Tc=none, pseudo=unit.pseudo, u_Tk=unit.u_Tk * size,
        buses=(event.target,), start=when.start, stop=when.stop, sized=False,
    )  # fmt: skip


def _undeclared_gen_trip(scene: Scene, event: Event) -> Alteration:
    """A unit is lost; its status and its own channel still say that it runs."""
    when, shape = _gate(scene, event)
    unit = hidden_load_unit(scene.plan, scene.case, event.target, shape, 1.0)
    return Alteration(
        meters=unit.meters, shift_Tc=unit.a_Tc * scene.lost_p, model_Tc=np.zeros_like(unit.a_Tc), pseudo=unit.pseudo,
        u_Tk=unit.u_Tk * scene.lost_p, buses=(event.target,), start=when.start, stop=when.stop, sized=False,
    )  # fmt: skip


# --- attack families -------------------------------------------------------------------------------------------------


def _load_redistribution(scene: Scene, event: Event) -> Alteration:
    """Sum of changes zero, generation untouched, flows from the attacker's linear model (so slightly inconsistent)."""
    when, shape = _gate(scene, event)
    case, plan = scene.case, scene.plan
    area = scene.fleet.area(event.target, event.support + 1)
    loads = area[case.load_p[area] > 0.01]
    others = loads[loads != event.target]
    if not others.size:
        raise Unreachable("load_redistribution: no second load in the area")
    change = np.zeros((1, case.n_bus))
    change[0, event.target] = case.load_p[event.target]
    change[0, others] = -case.load_p[event.target] * case.load_p[others] / case.load_p[others].sum()
    change *= scene.sign
    moves = scene.linear.moves(-change, np.zeros_like(change))
    effect = np.asarray(scene.linear.h @ moves[0])[plan.channels]
    own = plan.index_of[case.n_bus + loads]
    meters = np.flatnonzero(np.abs(effect) > 0.05 * plan.sigma)
    if not (own >= 0).any() or not meters.size:
        raise Unreachable("load_redistribution: no meter of the area sees it")
    shift = shape[:, None] * effect[meters]
    return _data(scene, event, meters, shift, when, where=_owners(plan, meters[_strong(effect[meters])]))


def _strong(effect: F64) -> NDArray[np.bool_]:
    return np.asarray(np.abs(effect) >= 0.2 * np.abs(effect).max())


def _replay(scene: Scene, event: Event) -> Alteration:
    """Every meter of an area plays back a recording of another, self-consistent hour (solved by the executor)."""
    when, shape = _gate(scene, event)
    plan = scene.plan
    meters = _area_meters(scene, scene.fleet.area(event.target, event.support))
    shift = (scene.quiet_h_TM - scene.h_TM)[:, meters] * shape[:, None]
    return _data(scene, event, meters, shift, when, sized=False, where=_owners(plan, meters))


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


_ATTACKS = ("stealth_fdia", "ramp_fdia", "partial_fdia", "wrong_model_fdia")


def _injection(scene: Scene, event: Event, size: float = _PROBE) -> Alteration:
    """FDIA family: a = h(x') - h(x) with x' solved inside the area, boundary voltages held.

    partial_fdia rewrites three meters in four; wrong_model_fdia computes its injection with wrong reactances.
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
    meters = np.flatnonzero(np.abs(change).max(axis=0) > 1e-3 * plan.sigma * min(1.0, abs(size) / _PROBE))
    if event.primitive == "partial_fdia":
        meters = meters[(np.arange(meters.size) + int(scene.sign > 0)) % 4 != 0]
    if not meters.size:
        raise Unreachable(f"{event.primitive}: no meter sees the area")
    shift = np.zeros((scene.h_TM.shape[0], meters.size))
    shift[when] = change[:, meters]
    largest = np.abs(shift).max(axis=0) / plan.sigma[meters]
    return _data(
        scene, event, meters, shift, when, where=_fdia_place(plan, area, meters[_strong(largest)]),
        in_bounds=scene.attacker.credible(v, fake, area),
    )  # fmt: skip


def _fdia_place(plan: MeterPlan, area: Area, meters: I64) -> dict[str, tuple[int, ...]]:
    where = _owners(plan, meters)
    return {"buses": tuple(sorted({*where["buses"], *(int(b) for b in area.interior)})), "branches": where["branches"]}


def _attacker_model(case: GridCase, sign: float) -> BranchAdmittance:
    """Branch admittances with every reactance off by +-8 % in a fixed pattern: what a poorly informed attacker has."""
    wobble = 1.0 + 0.08 * np.where((np.arange(case.n_branch) * 2654435761 >> 7) % 2 == 0, sign, -sign)
    return branch_admittance(case, x_scale=wobble)


def _out_of_bounds(scene: Scene, event: Event, when: slice) -> Alteration:
    none = np.zeros(0, dtype=np.int64)
    return _data(
        scene, event, none, np.zeros((scene.h_TM.shape[0], 0)), when, in_bounds=False, where={"buses": (event.target,)}
    )  # fmt: skip


def _coordinated(scene: Scene, event: Event) -> Alteration:
    """An undeclared outage whose surroundings keep showing the world in which it did not happen."""
    case = scene.case
    branch, when = _to_end(scene, event)
    ends = np.array([case.f_bus[branch], case.t_bus[branch]])
    area = np.unique(np.concatenate([scene.fleet.area(int(bus), event.support) for bus in ends]))
    meters = _area_meters(scene, area)
    base = _undeclared_line_outage(scene, event)
    shift = np.zeros((scene.h_TM.shape[0], meters.size))
    shift[when] = (scene.quiet_h_TM - scene.h_TM)[when][:, meters]
    touched = np.concatenate([base.meters, meters])
    return Alteration(
        meters=touched,
        shift_Tc=np.concatenate([np.zeros_like(base.model_Tc), shift], axis=1),
        model_Tc=np.concatenate([base.model_Tc, np.zeros_like(shift)], axis=1),
        pseudo=base.pseudo, u_Tk=base.u_Tk, buses=tuple(int(b) for b in area), branches=(branch,),
        start=when.start, stop=when.stop, sized=False,
    )  # fmt: skip


_MAKERS = {
    "sign_flip": _sign_flip, "unit_error": _unit_error, "time_skew": _time_skew, "bias": _bias, "drift": _drift,
    "scale": _scale, "meter_swap": _meter_swap, "freeze": _freeze, "noise_inflation": _noise_inflation, "spike": _spike,
    "wrong_breaker_status": _wrong_breaker_status, "wrong_tap": _wrong_tap,
    "undeclared_line_outage": _undeclared_line_outage, "hv_fault_residue": _hv_fault_residue,
    "wrong_line_parameter": _wrong_line_parameter, "theft": _hidden_load, "unmetered_injection": _hidden_load,
    "undeclared_gen_trip": _undeclared_gen_trip, "load_redistribution": _load_redistribution, "replay": _replay,
    "stealth_fdia": _injection, "ramp_fdia": _injection, "partial_fdia": _injection, "wrong_model_fdia": _injection,
    "coordinated": _coordinated,
}  # fmt: skip
