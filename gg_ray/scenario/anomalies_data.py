"""Families in which a meter or its RTU says something else: encoding, bias, scale, swap, freezing, noise, residue.

Flow:    scenario.alteration (Scene) -> [anomalies_data] -> scenario.anomalies
Source:  selfplay.md, section 5 (families S1 to S4, and the fault residue of T2); docs/physics.md (recipes)
Shapes:  T scans, c touched meters
Units:   p.u., rad
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri_exp

from gg_ray.grid.meters import STALE_RATE, MeterPlan, measure
from gg_ray.records import I64, Event
from gg_ray.scenario.alteration import (
    PROBE,
    Alteration,
    Maker,
    Scene,
    Unreachable,
    active_shape,
    false_readings,
    materiality_scale,
    meters_at,
    meters_of,
    owners,
)
from gg_ray.scenario.worlds import Readings

ALLOWED_REPEATS = 2
"""Repeats of one value that `stale_meter` may make: no evidence of a fault."""


PROBED = ("hv_fault_residue",)
"""Primitives whose effect is not proportional to their size: `fault_residue` gives the exact one."""
CANDIDATES = 16
"""Meters among which a held one is chosen (selfplay.md, section 5: among <= 16 candidate targets)."""


def _sign_flip(scene: Scene, event: Event) -> Alteration:
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    return false_readings(scene, event, meters, -2.0 * scene.h_TM[:, meters] * shape[:, None], when, sized=False)


def _unit_error(scene: Scene, event: Event) -> Alteration:
    """kW for MW (x 1000), or kV for p.u. on a voltage meter."""
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    voltage = scene.plan.channels[meters] < scene.plan.n_bus
    factor = scene.case.vn_kv[event.target] if voltage.all() and event.target < scene.plan.n_bus else 1000.0
    return false_readings(
        scene, event, meters, (factor - 1.0) * scene.h_TM[:, meters] * shape[:, None], when, sized=False
    )


def _time_skew(scene: Scene, event: Event) -> Alteration:
    """A PMU clock error (angle offset) where there is a PMU, otherwise an RTU that reports the past."""
    when, shape = active_shape(scene, event)
    plan = scene.plan
    if event.target < plan.n_bus and plan.index_of[3 * plan.n_bus + event.target] >= 0:
        meters = plan.at(np.array([3 * plan.n_bus + event.target]))
        return false_readings(scene, event, meters, scene.sign * plan.sigma[meters] * shape[:, None], when)
    source = _lagged(scene.h_TM.shape[0], when, event.support + 3)
    bus, branch = plan.layout.owner()
    channel = plan.channels[_liveliest(scene, event, source)[0]]
    place = int(bus[channel]) if bus[channel] >= 0 else plan.n_bus + int(branch[channel])
    return _held(scene, event, meters_at(plan, place), source, when)


def _lagged(scans: int, when: slice, lag: int) -> I64:
    source = np.arange(scans)
    source[when] = np.maximum(source[when] - lag, 0)
    return source


def _bias(scene: Scene, event: Event) -> Alteration:
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    return false_readings(scene, event, meters, scene.sign * scene.plan.sigma[meters] * shape[:, None], when)


def _drift(scene: Scene, event: Event) -> Alteration:
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    ramp = np.cumsum(shape) / max(shape.sum(), 1.0)
    return false_readings(scene, event, meters, scene.sign * scene.plan.sigma[meters] * ramp[:, None], when)


def _scale(scene: Scene, event: Event) -> Alteration:
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    shift = scene.sign * scene.h_TM[:, meters] * shape[:, None]
    return false_readings(scene, event, meters, shift, when)


def _meter_swap(scene: Scene, event: Event) -> Alteration:
    """Two channels of one kind exchanged: the other one is the nearest-numbered installed meter of that kind."""
    when, shape = active_shape(scene, event)
    plan = scene.plan
    own = int(meters_of(plan, event)[0])
    kind = _kind(plan, plan.channels)
    same = np.flatnonzero((kind == kind[own]) & (np.arange(plan.size) != own))
    if not same.size:
        raise Unreachable("meter_swap: no second meter of that kind")
    other = int(same[np.argsort(np.abs(same - own), kind="stable")[min(event.support, same.size - 1)]])
    meters = np.array([own, other])
    shift = (scene.h_TM[:, meters[::-1]] - scene.h_TM[:, meters]) * shape[:, None]
    where = owners(plan, meters)
    return false_readings(scene, event, meters, shift, when, sized=False, where=where)


def _kind(plan: MeterPlan, channels: I64) -> I64:
    bus = channels < 4 * plan.n_bus
    return np.where(bus, channels // plan.n_bus, 4 + (channels - 4 * plan.n_bus) // plan.n_branch)


def _freeze(scene: Scene, event: Event) -> Alteration:
    """The last value repeats, of the meter nearby that moves most meanwhile."""
    when, _ = active_shape(scene, event)
    source = np.arange(scene.h_TM.shape[0])
    source[when] = when.start - 1
    return _held(scene, event, _liveliest(scene, event, source)[:1], source, when)


def _liveliest(scene: Scene, event: Event, source: I64) -> I64:
    """The CANDIDATES meters nearest to the target, those first whose held readings come to lie furthest off.

    Where nothing moves, a held value harms nobody (gate G3), and in a quarter of an hour most meters hardly move.
    """
    case, plan = scene.case, scene.plan
    bus, branch = plan.layout.owner()
    at = np.where(bus >= 0, bus, case.f_bus[branch])[plan.channels]
    centre = event.target if event.target < case.n_bus else int(case.f_bus[event.target - case.n_bus])
    near = np.argsort(scene.fleet.near.hops(centre)[at], kind="stable")[:CANDIDATES]
    moved = np.abs(scene.h_TM[source][:, near] - scene.h_TM[:, near]).max(axis=0)
    return np.asarray(near[np.argsort(-moved / materiality_scale(case.name)[plan.channels[near]], kind="stable")])


def _held(scene: Scene, event: Event, meters: I64, source: I64, when: slice) -> Alteration:
    """Readings of other scans with their noise (source [T]): told by how far they lie off and by being copies."""
    shift = scene.h_TM[source][:, meters] - scene.h_TM[:, meters]
    return false_readings(
        scene, event, meters, shift, when, sized=False, where=owners(scene.plan, meters),
        extra_d2=repeat_d2(_repeats(scene.plan, meters, source)), readings=Readings(holds=[(meters, source)]),
    )  # fmt: skip


def _repeats(plan: MeterPlan, meters: I64, source: I64) -> int:
    """Delivered readings that a meter has delivered before, beyond ALLOWED_REPEATS each."""
    scans = np.arange(source.size)
    count = 0
    for meter in meters.tolist():
        polled = source[(scans + plan.phase[meter]) % plan.period[meter] == 0]
        count += max(0, polled.size - np.unique(polled).size - ALLOWED_REPEATS)
    return count


def repeat_d2(repeats: int, rate: float = STALE_RATE) -> float:
    """d^2 of `repeats` readings that are bit for bit older ones, where each may be one with probability `rate` anyway.

    The best test calls a copying meter wherever all of them are copies: it never misses one, and a healthy meter looks
    so with probability rate^n. Its balanced accuracy 1 - rate^n / 2 is that of two unit normals d apart, p* = Phi(d/2)
    (selfplay.md, section 9), hence d = -2 Phi^-1(rate^n / 2); for many repeats d^2 tends to 8 n ln(1 / rate).
    """
    return float(4.0 * ndtri_exp(repeats * np.log(rate) - np.log(2.0)) ** 2)


def _noise_inflation(scene: Scene, event: Event) -> Alteration:
    """Noise of factor k: n (k^2 - 1 - 2 ln k) = d^2, the variance part of twice the divergence."""
    when, shape = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    n, want = float(shape.sum()), scene.target_d**2
    low, high = 1.0, 50.0
    for _ in range(40):
        k = 0.5 * (low + high)
        low, high = (k, high) if n * (k * k - 1 - 2 * np.log(k)) < want else (low, k)
    factor = 1.0 + (high - 1.0) * shape
    return false_readings(
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
    return false_readings(scene, event, meters, shift, slice(at, at + 1))


def fault_residue(scene: Scene, event: Event, size: float = PROBE) -> Alteration:
    """The values of a fault interval stay in one RTU after the fault has cleared: low voltage, high flows, held.

    Support 0, 1, 2: the fault was at the RTU's own bus or that many hops away. The size is its depth (1 is bolted),
    that is its resistance; the state meanwhile is the linear one of grid.faults on the state of the onset scan.
    """
    case, plan = scene.case, scene.plan
    when, _ = active_shape(scene, event)
    meters = meters_at(plan, event.target)
    here = event.target if event.target < case.n_bus else int(case.f_bus[event.target - case.n_bus])
    hops = scene.fleet.near.hops(here)
    faulted = int(np.flatnonzero(hops == min(event.support, int(hops.max())))[0])
    before = scene.v_TN[when.start]
    pair = np.stack([scene.faults.during(before, faulted, min(size, 1.0)), before])
    dip = np.subtract(*measure(case, pair)[:, plan.channels[meters]])
    shift = np.zeros((scene.h_TM.shape[0], meters.size))
    shift[when] = scene.h_TM[when.start, meters] + dip - scene.h_TM[when][:, meters]
    source = np.arange(shift.shape[0])
    source[when] = when.start
    return false_readings(
        scene, event, meters, shift, when, extra_d2=repeat_d2(_repeats(plan, meters, source)), in_bounds=size <= 1.0,
        readings=Readings(holds=[(meters, source)]),
    )  # fmt: skip


MAKERS: dict[str, Maker] = {
    "sign_flip": _sign_flip, "unit_error": _unit_error, "time_skew": _time_skew, "bias": _bias, "drift": _drift,
    "scale": _scale, "meter_swap": _meter_swap, "freeze": _freeze, "noise_inflation": _noise_inflation, "spike": _spike,
    "hv_fault_residue": fault_residue,
}  # fmt: skip
