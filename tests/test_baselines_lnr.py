"""power-grid-model as an independent oracle for our estimator, and as the operator's bad-data test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gg_ray.baselines.lnr import Lnr, PgmEstimator, residual_variance, scada_plan
from gg_ray.grid import estimation
from gg_ray.grid.cases import load_case, with_tap
from gg_ray.grid.estimation import Estimator
from gg_ray.grid.meters import MeterPlan, draw_plan, measure
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import branch_admittance
from gg_ray.records import Window
from gg_ray.verifier.features import Featurizer, Prepared


def readings(name: str, kappa: tuple[float, float], rows: int, seed: int = 0) -> tuple[MeterPlan, np.ndarray]:
    case = load_case(name)
    plan = scada_plan(draw_plan(case, 0, kappa, 0.0))
    noise = np.random.default_rng(seed).standard_normal((rows, plan.size)) * plan.sigma
    return plan, measure(case, case.v0[None])[:, plan.channels] + noise


@pytest.mark.parametrize("kappa", [(0.9, 1.0), (0.35, 0.4)])
@pytest.mark.parametrize("name", ["case14", "case30", "gb29"])
def test_agrees_with_our_estimator(name: str, kappa: tuple[float, float]) -> None:
    """Two codes, one objective: states differ by a small part of the noise-driven error. gb29 has shifts and shunts.

    The rest is our chord Gauss-Newton, whose gradient uses the Jacobian of the base state.
    """
    case = load_case(name)
    plan, z = readings(name, kappa, 12)
    pgm = PgmEstimator(case, plan)
    ours, _ = Estimator(case, plan, steps=60).estimate(z)
    theirs = pgm.estimate(z)
    truth = case.v0 * np.exp(-1j * np.angle(case.v0[case.slack]))
    assert pgm.failed == 0
    assert np.abs(theirs - ours).max() < 0.1 * np.abs(theirs - truth).max()


def test_exact_readings_give_the_exact_state() -> None:
    """Sign, unit, tap and shunt conventions: without noise the base state comes back."""
    case = load_case("gb29")
    plan, _ = readings("gb29", (0.9, 1.0), 1)
    v = PgmEstimator(case, plan).estimate(measure(case, case.v0[None])[:, plan.channels])
    assert np.abs(v - case.v0 * np.exp(-1j * np.angle(case.v0[case.slack]))).max() < 1e-6


def test_half_absent_sensors_keep_their_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """P without Q, Q without P, a bus without either and a silent row: as our estimator treats them.

    Compared at convergence: our estimator otherwise stops each row at a step of 2e-5, which may leave as much error.
    """
    monkeypatch.setattr(estimation, "_SETTLED", 1e-9)
    case = load_case("case14")
    plan, z = readings("case14", (0.9, 1.0), 1)
    z = np.repeat(z, 5, axis=0)
    p, q = plan.at(np.arange(14, 28)), plan.at(np.arange(28, 42))
    flow = plan.at(4 * 14 + np.arange(20))
    z[1, q[3]] = z[2, p[3]] = z[3, flow[2]] = np.nan
    z[4] = np.nan
    ours, _ = Estimator(case, plan, steps=100).estimate(z)
    assert np.abs(PgmEstimator(case, plan).estimate(z) - ours).max() < 1e-5


def test_declared_tap_and_outage_are_used() -> None:
    """Readings of another tap and of an open branch fit only the model that declares them."""
    case = load_case("case14")
    plan, _ = readings("case14", (0.95, 1.0), 1)
    pgm = PgmEstimator(case, plan)
    tap, status = case.tap.copy(), np.ones((1, case.n_branch), dtype=bool)
    tap[np.flatnonzero(case.transformer)[0]] *= 1.04
    status[0, 0] = False
    inputs = (case.load_p[None], case.load_q[None], case.gen_p[None], case.gen_v[None])

    def misfit(z: np.ndarray, v: np.ndarray, y: object = None, on: np.ndarray | None = None) -> float:
        gap = z - measure(case, v, y, on)[:, plan.channels]  # type: ignore[arg-type]
        return float(np.abs(gap / plan.sigma).max())

    moved, branch = branch_admittance(case, tap), int(np.flatnonzero(case.transformer)[0])
    solved = PowerFlow(with_tap(case, branch, float(tap[branch]))).solve(*inputs)
    z = measure(case, solved.v_RN, moved)[:, plan.channels]
    assert misfit(z, pgm.estimate(z, tap_E=tap), moved) < 1.0 < 2.0 < misfit(z, pgm.estimate(z))
    z = measure(case, PowerFlow(case).solve(*inputs, ~status).v_RN, None, status)[:, plan.channels]
    assert misfit(z, pgm.estimate(z, status), None, status) < 0.25 * misfit(z, pgm.estimate(z))
    assert pgm.failed == 0


def test_residuals_are_unit_normal_on_clean_readings() -> None:
    case = load_case("case30")
    rng = np.random.default_rng(2)
    plan = draw_plan(case, 3, (0.9, 1.0), 0.0)
    assert plan.size > scada_plan(plan).size  # this plan has PMU angles
    rows = 300
    z = measure(case, case.v0[None])[:, plan.channels] + rng.standard_normal((rows, plan.size)) * plan.sigma
    estimator = PgmEstimator(case, plan)
    h = measure(case, estimator.estimate(z))[:, plan.channels]
    r = (z - h) / np.sqrt(residual_variance(case, plan))
    assert np.abs(r.mean(axis=0)).max() < 0.3
    assert np.all(r.std(axis=0) < 1.25)
    assert np.median(r.std(axis=0)) == pytest.approx(1.0, abs=0.06)


def test_an_unsolvable_row_is_counted_and_still_scored() -> None:
    """A bus cut off by its declared statuses has no voltage in power-grid-model: our residuals stand in."""
    case = load_case("case14")
    plan, z = readings("case14", (0.9, 1.0), 16)
    window = Window(
        case="case14", plan_id=0, t0_ns=0, step_s=60.0, z_TM=z, age_TM=np.zeros(z.shape, dtype=np.uint8),
        status_TE=np.ones((16, case.n_branch), dtype=np.uint8), tap_E=case.tap.copy(), x_scale_E=np.ones(case.n_branch),
    )  # fmt: skip
    cut = window.status_TE.copy()
    cut[:, (case.f_bus == 13) | (case.t_bus == 13)] = 0
    whole = Featurizer().prepare([window], plan)
    twice = [np.concatenate([part, part]) for part in (whole.z_BTM, whole.r_BTM, whole.v_BTN)]
    island = Prepared(case, plan, [window, replace(window, status_TE=cut)], *twice)
    detector = Lnr(scans_used=4)
    detector.fit([whole], np.random.default_rng(0))
    alone = detector.score(whole)
    assert detector.failed == 0
    both = detector.score(island)
    assert detector.failed == 4
    assert np.isfinite(both).all()
    assert both[0] == pytest.approx(alone[0], rel=1e-6)
