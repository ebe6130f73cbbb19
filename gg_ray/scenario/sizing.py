"""How large an anomaly must be: the magnitude at which its d_eff is what its bin asks for.

Flow:    scenario.executor (solved jobs) -> [sizing] -> scenario.telemetry
Source:  selfplay.md, section 5 (magnitude in d_eff units); docs/adr/0012-detectability-and-labels.md
Shapes:  T scans, c touched meters
Units:   d_eff in standard deviations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gg_ray.grid.detectability import Detectability
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Event
from gg_ray.scenario import anomalies
from gg_ray.scenario.alteration import Alteration, Scene, Unreachable
from gg_ray.scenario.attempt import Job
from gg_ray.scenario.grammar import PRIMITIVES
from gg_ray.scenario.worlds import Readings

_PHYSICAL_UNIT = 0.4
"""Magnitude mode "physical": bin b means this many meter sigmas times 1.3^b; most of it lies below the noise."""
_MAX_SECANT = 4
"""The linear guess and at most three corrections towards the target d_eff."""


def size(
    jobs: Sequence[Job],
    scene_of: Callable[[Job], Scene],
    detectability: Callable[[MeterPlan], Detectability],
    *,
    physical: bool,
) -> None:
    """Give every sized anomaly the magnitude whose d_eff is its target, and every anomaly its exact d_eff.

    Args: jobs  solved programs, changed in place; physical  sizes come from the bin alone (`physical_size`)
    """
    live = [job for job in jobs if job.anomaly is not None and job.solved[-1].converged and job.solved[0].converged]
    for job in live:
        assert job.anomaly is not None
        try:
            _check_clear(job)
            job.scene = scene_of(job)
            job.alteration = anomalies.build(job.scene, job.anomaly)
        except Unreachable as reason:
            job.notes.append(str(reason))
    by_plan: dict[int, list[Job]] = {}
    for job in live:
        if job.alteration is not None:
            by_plan.setdefault(job.plan.plan_id, []).append(job)
    for members in by_plan.values():
        detect = detectability(members[0].plan)
        scans = members[0].context.scans
        _measure_d(detect, members, scans)
        for _ in range(_MAX_SECANT):
            again = [job for job in members if _rescale(job, physical)]
            if not again:
                break
            exact = [job for job in again if not job.linear_size]
            if exact:
                _measure_d(detect, exact, scans)


def physical_size(event: Event) -> float:
    """Size of an anomaly whose bin means meter sigmas and not detectability."""
    return float(_PHYSICAL_UNIT * 1.3**event.magnitude * 0.25)


def _check_clear(job: Job) -> None:
    """Unreachable where a declared event moves the very branch whose declaration the anomaly falsifies.

    A declared opening or tap move of that branch would overwrite the false declaration, or be overwritten by it.
    """
    assert job.anomaly is not None
    if PRIMITIVES[job.anomaly.primitive].place not in ("line", "tap"):
        return
    for event in job.program.events:
        if event.primitive in ("line_switch", "tap_move") and event.target == job.anomaly.target:
            raise Unreachable(f"{job.anomaly.primitive}: {event.primitive} declares the same branch")


def _measure_d(detect: Detectability, jobs: list[Job], scans: int) -> None:
    seen = [delivered(job.alteration, job.readings) for job in jobs if job.alteration is not None]
    squared = detect.squared([change.innovation() for change in seen], scans)
    for job, change, value in zip(jobs, seen, squared, strict=True):
        job.mean_d2 = float(value)
        job.d_eff = float(np.sqrt(max(value, change.extra_d2)))


def delivered(change: Alteration, readings: Readings) -> Alteration:
    """What is left of an alteration where a declared meter outage hides some of its readings."""
    gone = np.zeros_like(change.shift_Tc, dtype=bool)
    for meters, absent in readings.absent:
        gone |= np.isin(change.meters, meters) & absent[:, None]
    if not gone.any():
        return change
    share = 1.0 - float(gone[change.start : change.stop].mean())
    return replace(
        change, shift_Tc=np.where(gone, 0.0, change.shift_Tc), model_Tc=np.where(gone, 0.0, change.model_Tc),
        extra_d2=change.extra_d2 * share,
    )  # fmt: skip


def _rescale(job: Job, physical: bool) -> bool:
    """Move a sized alteration towards its target; True if it changed. Linear families are exact at once.

    What the mean shift shows is sized; what copied readings show beside it is not a matter of size.
    """
    unit, event = job.alteration, job.anomaly
    if unit is None or event is None or job.scene is None or not unit.sized or job.done:
        return False
    reached = float(np.sqrt(job.mean_d2))
    if not unit.in_bounds and reached <= job.target:
        return False  # only a smaller size can come back inside its bounds
    if physical:
        job.factor, job.done = physical_size(event), True
    else:
        if job.mean_d2 <= 1e-12:
            job.done = True
            job.notes.append("no meter sees it")
            job.d_eff = 0.0
            return False
        if job.factor != 0.0 and abs(reached / job.target - 1) < 0.1:
            return False
        base = job.factor if job.factor != 0.0 else 1.0
        job.factor = base * job.target / reached
    job.alteration = anomalies.resize(job.scene, event, unit, job.factor)
    if event.primitive not in anomalies.NONLINEAR:
        job.d_eff = float(np.sqrt(job.mean_d2) * abs(job.factor))
        job.mean_d2 = job.d_eff**2
        job.done = job.linear_size = True
    return True
