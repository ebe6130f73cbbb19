"""Families in which the readings are true and the declared model is wrong: breaker status, outage, tap, line length.

Flow:    scenario.alteration (Scene) -> [anomalies_model] -> scenario.anomalies
Source:  selfplay.md, section 5 (families T1 to T3); docs/physics.md (recipes)
Shapes:  T scans
Units:   p.u., rad
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gg_ray.grid.cases import GridCase
from gg_ray.grid.ybus import branch_admittance, branch_flows
from gg_ray.records import F64, Event
from gg_ray.scenario.alteration import C128, PROBE, Alteration, Maker, Scene, branch_and_scans
from gg_ray.scenario.worlds import LONGEST_WINDOW, active_scans

TAP_LIMIT = 0.12
PARAMETER_LIMIT = (-0.6, 1.5)
PROBED = ("wrong_tap", "wrong_line_parameter")
"""Primitives whose effect is not proportional to their size: `redeclare` gives the exact one."""


def _wrong_breaker_status(scene: Scene, event: Event) -> Alteration:
    """Declared open, still closed: its flow contradicts the declaration."""
    branch, when = branch_and_scans(scene, event)
    true = _end_powers(scene.case, scene.v_TN, branch)
    return _mismatch(
        scene, branch, when, true, np.zeros_like(true), sized=False, open_branch=branch
    )  # fmt: skip


def undeclared_line_outage(scene: Scene, event: Event) -> Alteration:
    """Really out, declared in: the declared model predicts a flow that is not there."""
    branch, when = branch_and_scans(scene, event)
    predicted = _end_powers(scene.case, scene.v_TN, branch)
    return _mismatch(scene, branch, when, np.zeros_like(predicted), predicted, sized=False)


def _wrong_tap(scene: Scene, event: Event) -> Alteration:
    """The declared ratio differs from the true one for the whole window after the (wrong) declaration."""
    branch = event.target - scene.case.n_bus
    return _declared(scene, event, branch, tap=float(scene.case.tap[branch] * (1 + scene.sign * PROBE)))


def _wrong_line_parameter(scene: Scene, event: Event) -> Alteration:
    """Declared r, x and charging all off by one factor: a wrong length, or another circuit's entry."""
    branch = event.target - scene.case.n_bus
    return _declared(scene, event, branch, x_scale=1.0 + scene.sign * PROBE)


def _declared(scene: Scene, event: Event, branch: int, tap: float | None = None, x_scale: float = 1.0) -> Alteration:
    """Sized by probing: scenario.sizing scales the probe linearly, `redeclare` then gives the exact model."""
    when = _model_scans(scene, event)
    true = _end_powers(scene.case, scene.v_TN, branch)
    predicted = _end_powers(scene.case, scene.v_TN, branch, tap, x_scale)
    return _mismatch(scene, branch, when, true, predicted)


def redeclare(scene: Scene, event: Event, factor: float) -> Alteration:
    """A wrong tap or line length at `factor` times the probe, exact and inside its limits."""
    branch = event.target - scene.case.n_bus
    m = scene.sign * PROBE * factor
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


def _model_scans(scene: Scene, event: Event) -> slice:
    """A wrong model has no onset inside a window; on a timeline it is published for one episode."""
    scans = scene.h_TM.shape[0]
    return slice(0, scans) if scans <= LONGEST_WINDOW else active_scans(event, scans)


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
    one = _single(case, branch, tap)
    s_f, s_t = branch_flows(one, v_TN, branch_admittance(one, x_scale=np.array([x_scale])))
    return np.concatenate([s_f.real, s_f.imag, s_t.real, s_t.imag], axis=1)


def _single(case: GridCase, branch: int, tap: float | None) -> GridCase:
    pick = slice(branch, branch + 1)
    return replace(
        case, f_bus=case.f_bus[pick], t_bus=case.t_bus[pick], r=case.r[pick], x=case.x[pick],
        g=case.g[pick], b=case.b[pick], tap=case.tap[pick] if tap is None else np.array([tap]), shift=case.shift[pick],
    )  # fmt: skip


MAKERS: dict[str, Maker] = {
    "wrong_breaker_status": _wrong_breaker_status, "wrong_tap": _wrong_tap,
    "undeclared_line_outage": undeclared_line_outage, "wrong_line_parameter": _wrong_line_parameter,
}  # fmt: skip
