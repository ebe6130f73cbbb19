"""Families in which a meter or its RTU says something else: encoding, bias, scale, swap, freezing, noise, residue.

Flow:    scenario.alteration (Scene) -> [anomalies_data] -> scenario.anomalies
Source:  selfplay.md, section 5 (families S1 to S4, and the fault residue of T2); docs/physics.md (recipes)
Shapes:  T scans, c touched meters
Units:   p.u., rad
"""

from __future__ import annotations

import numpy as np

from gg_ray.grid.meters import STALE_RATE, MeterPlan
from gg_ray.records import I64, Event
from gg_ray.scenario.alteration import (
    Alteration,
    Maker,
    Scene,
    Unreachable,
    active_shape,
    false_readings,
    meters_at,
    meters_of,
    owners,
)
from gg_ray.scenario.worlds import Readings


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
    meters = meters_at(plan, event.target)
    source = _lagged(scene.h_TM.shape[0], when, event.support + 3)
    shift = scene.h_TM[source][:, meters] - scene.h_TM[:, meters]
    return false_readings(scene, event, meters, shift, when, sized=False, readings=Readings(holds=[(meters, source)]))


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
    """The last value repeats. Each repeat beyond the two that are an allowed nuisance adds log(1 / stale rate)."""
    when, _ = active_shape(scene, event)
    meters = meters_of(scene.plan, event)
    source = np.arange(scene.h_TM.shape[0])
    source[when] = when.start - 1
    shift = scene.h_TM[source][:, meters] - scene.h_TM[:, meters]
    repeats = max(0, when.stop - when.start - 2)
    return false_readings(
        scene, event, meters, shift, when, sized=False, extra_d2=2.0 * repeats * np.log(1.0 / STALE_RATE) / 4.0,
        readings=Readings(holds=[(meters, source)]),
    )  # fmt: skip


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


def _hv_fault_residue(scene: Scene, event: Event) -> Alteration:
    """Fault-interval values (low voltage, high flow) persist in one RTU after the fault has cleared."""
    when, shape = active_shape(scene, event)
    plan = scene.plan
    meters = meters_at(plan, event.target)
    voltage = plan.channels[meters] < plan.n_bus
    level = np.where(voltage, -1.0, np.sign(scene.h_TM[when.start, meters] + 1e-12))
    return false_readings(scene, event, meters, shape[:, None] * level * plan.sigma[meters], when)


MAKERS: dict[str, Maker] = {
    "sign_flip": _sign_flip, "unit_error": _unit_error, "time_skew": _time_skew, "bias": _bias, "drift": _drift,
    "scale": _scale, "meter_swap": _meter_swap, "freeze": _freeze, "noise_inflation": _noise_inflation, "spike": _spike,
    "hv_fault_residue": _hv_fault_residue,
}  # fmt: skip
