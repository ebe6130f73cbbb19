"""What the control room is told and what is true about it: sides of a pair, labels, materiality, noisy windows.

Flow:    scenario.executor (solved, sized jobs) -> [telemetry: finish] -> scenario.gates
         -> [telemetry: realise] -> verifier.features -> replay
Source:  selfplay.md, sections 6, 8 and 9; label rule in README
Shapes:  T scans, N buses, E branches, F full layout, M installed meters, c touched meters
Units:   p.u., rad
"""

from __future__ import annotations

import numpy as np

from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import Delivery, deliver, draw_delivery
from gg_ray.records import F64, TYPES, Labels, Window
from gg_ray.scenario.alteration import Alteration
from gg_ray.scenario.alteration import materiality_scale as materiality_scale  # asked for here by selfplay.players
from gg_ray.scenario.attempt import Attempt, Job, Side, Trajectory
from gg_ray.scenario.grammar import HIDDEN_FAULT, PRIMITIVES
from gg_ray.scenario.worlds import Readings

_DECLARED_TWIN = ("wrong_breaker_status", "undeclared_line_outage", "wrong_tap", "wrong_line_parameter",
                  "undeclared_gen_trip", *HIDDEN_FAULT)  # fmt: skip
_PHYSICAL_CAUSES = (*HIDDEN_FAULT, *HIDDEN_FAULT.values())
"""Hidden events that are real: the disturbance flag stays visible beside the implausible one."""


# --- sides and labels ------------------------------------------------------------------------------------------------


def finish(case: GridCase, job: Job) -> Attempt:
    """The attempt of a solved and sized job; it has no sides where the power flow did not converge."""
    true, quiet = job.solved[-1], job.solved[0]
    converged = true.converged and quiet.converged
    attempt = Attempt(
        program=job.program, context=job.context, plan=job.plan, main=None, twin=None, d_eff=0.0,
        d_target=job.target, converged=converged, split=true.split or quiet.split, in_bounds=True, reachable=True,
        material=np.inf, solves=sum(t.v_TN.shape[0] for t in job.solved), notes=job.notes, trajectory=true,
        unhidden=quiet if quiet is not true else None,
    )  # fmt: skip
    if not converged:
        return attempt
    severity = _severity(case, true)
    ones = np.ones(case.n_branch)
    if job.anomaly is None:
        attempt.main = Side(
            true.h_TM, true.status_TE, case.tap, ones, true.moves, job.readings, true.v_TN,
            _plain(case, job, severity),
        )  # fmt: skip
        return attempt
    alteration = job.alteration
    if alteration is None:
        attempt.reachable = False
        return attempt
    attempt.d_eff, attempt.in_bounds, attempt.alteration = job.d_eff, alteration.in_bounds, alteration
    attempt.main = _altered(case, job, alteration, true, severity)
    attempt.twin = _twin(case, job, true, quiet, severity)
    attempt.material = _material(case, job, alteration)
    return attempt


def _altered(case: GridCase, job: Job, change: Alteration, true: Trajectory, severity: float) -> Side:
    mean = true.h_TM.copy()
    shift = _fresh(change)
    for column, meter in enumerate(change.meters.tolist()):  # a meter may be listed twice (masked faults)
        mean[:, meter] += shift[:, column]
    status, tap, x_scale = true.status_TE.copy(), case.tap.copy(), np.ones(case.n_branch)
    assert job.anomaly is not None
    if job.anomaly.primitive in ("undeclared_line_outage", "coordinated"):
        status[:, job.anomaly.target - case.n_bus] = True
    if change.open_branch is not None:
        status[change.start : change.stop, change.open_branch] = False
    if change.tap is not None:
        tap[change.tap[0]] = change.tap[1]
    if change.x_scale is not None:
        x_scale[change.x_scale[0]] = change.x_scale[1]
    readings = Readings(
        holds=job.readings.holds + change.readings.holds, noise=job.readings.noise + change.readings.noise,
        absent=job.readings.absent,
    )  # fmt: skip
    labels = _plain(case, job, severity)
    labels.implausible = True
    labels.type = TYPES.index(PRIMITIVES[job.anomaly.primitive].family)
    labels.node_N[list(change.buses)] = True
    labels.edge_E[list(change.branches)] = True
    labels.onset, labels.end = change.start, change.stop
    labels.disturbance |= job.anomaly.primitive in _PHYSICAL_CAUSES
    return Side(mean, status, tap, x_scale, true.moves, readings, true.v_TN, labels)


def _fresh(change: Alteration) -> F64:
    """[T, c] shift of readings of their own scan: what comes from held ones must not be added a second time."""
    shift = change.shift_Tc.copy()
    for meters, source in change.readings.holds:
        held = source != np.arange(source.size)
        shift[np.ix_(held, np.isin(change.meters, meters))] = 0.0
    return shift


def _twin(case: GridCase, job: Job, true: Trajectory, quiet: Trajectory, severity: float) -> Side:
    """The same window without the cause (data, attack, theft) or with a true declaration (topology, trip)."""
    assert job.anomaly is not None
    truthful = job.anomaly.primitive in _DECLARED_TWIN
    base = true if truthful or job.anomaly.primitive == "replay" else quiet
    labels = _plain(case, job, severity)
    labels.disturbance |= truthful and job.anomaly.primitive in _PHYSICAL_CAUSES
    return Side(
        base.h_TM, base.status_TE, case.tap, np.ones(case.n_branch), base.moves, job.readings, base.v_TN,
        labels,
    )  # fmt: skip


def _plain(case: GridCase, job: Job, severity: float) -> Labels:
    return Labels(
        implausible=False, disturbance=job.disturbed or severity > 0, severity=severity, type=0,
        node_N=np.zeros(case.n_bus, dtype=bool), edge_E=np.zeros(case.n_branch, dtype=bool),
        onset=-1, end=-1,
    )  # fmt: skip


def _severity(case: GridCase, true: Trajectory) -> float:
    """How far the true voltages leave their limits: 0 inside, 1 from 0.1 p.u. beyond them."""
    vm = np.abs(true.v_TN)
    volts = np.maximum(case.v_min - vm, vm - case.v_max).max()
    return float(np.clip(volts / 0.1, 0.0, 1.0)) if volts > 1e-3 else 0.0


def _material(case: GridCase, job: Job, change: Alteration) -> float:
    """Largest effect in units of the limits: flow 2 % of rating, |V| 0.5 %, P injection 2 % of the bus's peak."""
    plan = job.plan
    scale = materiality_scale(case.name)
    effect = np.abs(change.shift_Tc + change.model_Tc).max(axis=0, initial=0.0)
    spread = 0.0
    for meters, factor in change.readings.noise:
        spread = max(spread, float((plan.sigma[meters] * factor.max() / scale[plan.channels[meters]]).max()))
    seen = float((effect / scale[plan.channels[change.meters]]).max()) if change.meters.size else 0.0
    n = case.n_bus
    hidden = np.abs(change.u_Tk).max(axis=0, initial=0.0)
    pseudo_channel = np.where(change.pseudo < n, n + change.pseudo, 2 * n + change.pseudo - n)
    unseen = float((hidden / scale[pseudo_channel]).max()) if change.pseudo.size else 0.0
    return max(seen, unseen, spread)


# --- windows ---------------------------------------------------------------------------------------------------------


def realise(attempt: Attempt, noise_seed: int) -> tuple[Window, Window | None]:
    """One noise realisation of an attempt and of its twin: same noise, same delivery, only the cause differs."""
    if attempt.main is None:
        raise ValueError("an attempt that did not converge has no telemetry")
    plan, scans = attempt.plan, attempt.context.scans
    rng = np.random.default_rng([attempt.program.seed, 2, noise_seed])
    noise = rng.standard_normal((scans, plan.size), dtype=np.float32) * plan.sigma
    delivery = draw_delivery(plan, scans, rng)
    windows = [
        _telemetry(attempt, side, noise, delivery) if side is not None else None
        for side in (attempt.main, attempt.twin)
    ]  # fmt: skip
    assert windows[0] is not None
    return windows[0], windows[1]


def _telemetry(attempt: Attempt, side: Side, noise: F64, delivery: Delivery) -> Window:
    scaled = noise
    if side.readings.noise:
        scaled = noise.copy()
        for meters, factor in side.readings.noise:
            scaled[:, meters] *= factor[:, None]
    reading = side.mean_TM + scaled
    for meters, source in side.readings.holds:
        reading[:, meters] = reading[source][:, meters]
    absent = delivery.absent_TM
    if side.readings.absent:
        absent = absent.copy()
        for meters, gone in side.readings.absent:
            absent[:, meters] |= gone[:, None]
    z, age = deliver(reading, Delivery(source_TM=delivery.source_TM, absent_TM=absent))
    return Window(
        case=attempt.program.case, plan_id=attempt.plan.plan_id, t0_ns=attempt.context.t0_ns,
        step_s=attempt.context.step_s, z_TM=z, age_TM=age, status_TE=side.status_TE.astype(np.uint8),
        tap_E=side.tap_E, x_scale_E=side.x_scale_E, moves=side.moves,
    )  # fmt: skip
