"""Jacobian, estimator, misfit and linear flow against finite differences, statistics and dense formulas."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.detectability import MODE_SCALES, Detectability, Innovation, LinearFlow, _row_basis
from gg_ray.grid.estimation import Estimator, Gain, Prior, jacobian, plausible_prior, wide_prior
from gg_ray.grid.meters import MeterPlan, draw_plan, measure
from gg_ray.grid.powerflow import PowerFlow, bridges
from gg_ray.grid.ybus import branch_admittance

F64 = NDArray[np.float64]
CHANNELS = ("v", "p", "q", "va", "pf", "qf", "pt", "qt")


@functools.cache
def set_up(name: str) -> tuple[GridCase, MeterPlan, Estimator]:
    case = load_case(name)
    plan = draw_plan(case, 0, (0.5, 0.7), 0.01)
    return case, plan, Estimator(case, plan)


def clean(name: str, level: float, rows: int, seed: int = 0) -> tuple[F64, NDArray[np.complex128]]:
    """Noisy readings of one true state at a demand level."""
    case, plan, _ = set_up(name)
    inputs = (level * case.load_p, level * case.load_q, level * case.gen_p, case.gen_v)
    solution = PowerFlow(case, max_iter=30).solve(*(array[None] for array in inputs))
    assert solution.converged_R.all()
    h = measure(case, solution.v_RN)[:, plan.channels]
    return h + plan.sigma * np.random.default_rng(seed).standard_normal((rows, plan.size)), solution.v_RN[0]


@pytest.mark.parametrize("name", ["case14", "case57", "case300"])
def test_jacobian_equals_central_differences_in_every_channel(name: str) -> None:
    case, n, step = load_case(name), load_case(name).n_bus, 1e-6
    rng = np.random.default_rng(1)
    theta = np.angle(case.v0) + 0.01 * rng.standard_normal(n)
    vm = np.abs(case.v0) + 0.01 * rng.standard_normal(n)
    tap = case.tap * 1.02
    y = branch_admittance(case, tap)
    ours = jacobian(case, vm * np.exp(1j * theta), y).toarray()
    x = np.concatenate([theta, vm])
    rows = np.concatenate([x + step * np.eye(2 * n), x - step * np.eye(2 * n)])
    h = measure(case, rows[:, n:] * np.exp(1j * rows[:, :n]), y)
    numeric = ((h[: 2 * n] - h[2 * n :]) / (2 * step)).T
    scale = np.abs(ours).max()
    assert ours.shape == (4 * (n + case.n_branch), 2 * n)
    assert np.abs(ours - numeric).max() < 1e-7 * scale


@pytest.mark.parametrize("name", ["case14", "case57", "gb29", "case118", "case300"])
@pytest.mark.parametrize("level", [1.0, 0.7])
def test_residuals_are_unit_normal_on_clean_data_at_any_load(name: str, level: float) -> None:
    case, plan, estimator = set_up(name)
    rows = 40_000 // plan.size + 1
    z, truth = clean(name, level, rows)
    v, r = estimator.estimate(z)
    assert 0.9 < r.std() < 1.1
    assert abs(r.mean()) < 0.1
    of = np.searchsorted(np.cumsum([case.n_bus] * 4 + [case.n_branch] * 4), plan.channels, side="right")
    for index, channel in enumerate(CHANNELS):
        values = r[:, of == index]
        if np.unique(np.flatnonzero(of == index)).size >= 20:  # a handful of meters says little about the model
            assert 0.9 < values.std() < 1.1, channel
    # Residuals of one scan share a state: one value per scan and a few far channels make a nearly independent sample.
    thinned = np.random.default_rng(4).permuted(r, axis=1)[:, :2].ravel()[:2_000]
    assert stats.kstest(thinned / thinned.std(), "norm").pvalue > 1e-3
    # The estimate beats the meters: angle error far below the PMU's, magnitude below the best voltage class.
    theirs = truth * np.exp(-1j * np.angle(truth[case.slack]))
    assert np.sqrt(np.mean((np.abs(v) - np.abs(theirs)) ** 2)) < 0.005


@pytest.mark.parametrize("name", ["case57", "case118"])
@pytest.mark.parametrize("kappa", [(0.95, 1.0), (0.25, 0.35)], ids=["full", "thin"])
def test_each_meters_residual_is_standard_normal_but_for_those_without_redundancy(
    name: str, kappa: tuple[float, float]
) -> None:
    """Kolmogorov-Smirnov per meter over many true states (loads of a few percent spread at several demand levels).

    Full metering: every meter. Thin metering: some meters are checked by the prior alone, which is wider than loads
    move; their residuals are too small, never too large, and 1 - omega / R near one says which they are.
    """
    case = load_case(name)
    plan = draw_plan(case, 0, kappa, 0.0)
    estimator = Estimator(case, plan)
    rng = np.random.default_rng(11)
    rows = 300
    level = rng.uniform(0.65, 1.05, (rows, 1))
    p, q = (level * load * (1 + 0.05 * rng.standard_normal((rows, case.n_bus))) for load in (case.load_p, case.load_q))
    true = PowerFlow(case).solve(p, q, level * case.gen_p, np.tile(case.gen_v, (rows, 1)))
    v = true.v_RN[true.converged_R]
    h = measure(case, v)[:, plan.channels]
    _, r = estimator.estimate(h + plan.sigma * rng.standard_normal(h.shape))
    p_value = np.array([stats.kstest(column, "norm").pvalue for column in r.T])
    redundancy = estimator.gain.omega / plan.sigma**2
    assert (r.std(axis=0) < 1.2).all()
    failing = p_value < 1e-3 / plan.size
    assert (redundancy[failing] < 0.25).all()
    assert (r.std(axis=0)[failing] < 1).all()
    assert failing.mean() < 0.15
    if kappa[0] > 0.9:
        assert not failing.any()
        assert (r.std(axis=0) > 0.75).all()


def test_a_gross_error_stands_out_where_it_is() -> None:
    _, plan, estimator = set_up("case118")
    z, _ = clean("case118", 1.0, 30)
    meter = int(np.argmax(estimator.gain.omega / plan.sigma**2))  # the most redundant meter
    z[:, meter] += 12 * plan.sigma[meter]
    _, r = estimator.estimate(z)
    assert (np.abs(r).argmax(axis=1) == meter).all()
    assert r[:, meter].mean() > 8


@pytest.mark.parametrize(
    "name",
    [
        "case14",
        "case30",
        "case57",
        "gb29",
        "case39",
        "case118",
        "case300",
        "illinois200",
        pytest.param("gb", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("level", [1.0, 0.7])
def test_the_default_number_of_steps_is_enough(name: str, level: float) -> None:
    case, plan, estimator = set_up(name)
    z, _ = clean(name, level, 3)
    v, r = estimator.estimate(z)
    v_limit, r_limit = Estimator(case, plan, steps=30).estimate(z)
    update = np.abs(measure(case, v) - measure(case, v_limit))[:, plan.channels] / plan.sigma
    assert update.max() < 0.1
    assert np.abs(r - r_limit).max() < 0.3


def test_absent_readings_have_no_influence_and_give_no_residual() -> None:
    case, plan, estimator = set_up("case57")
    z, _ = clean("case57", 1.0, 6)
    everything, _ = estimator.estimate(z)
    gone = np.random.default_rng(2).random(z.shape) < 0.2
    z[gone] = np.nan
    v, r = estimator.estimate(z)
    assert np.isfinite(v).all()
    assert (r[gone] == 0).all()
    # The limit of the iteration is the estimate of a plan that never had those meters.
    row = 2
    kept = np.flatnonzero(~gone[row])
    index_of = np.full(plan.index_of.size, -1)
    index_of[plan.channels[kept]] = np.arange(kept.size)
    fewer = replace(plan, channels=plan.channels[kept], index_of=index_of, sigma=plan.sigma[kept],
                    period=plan.period[kept], phase=plan.phase[kept])  # fmt: skip
    want, _ = Estimator(case, fewer, steps=40).estimate(z[[row]][:, kept])
    got, _ = Estimator(case, plan, steps=40).estimate(z[[row]])
    assert np.abs(got - want).max() < 1e-4  # where both stop iterating
    assert np.abs(v - everything)[row].max() > 5e-4  # with those meters the estimate was another
    nothing, flat = estimator.estimate(np.full((1, plan.size), np.nan))
    assert (flat == 0).all()
    assert np.abs(np.abs(nothing[0]) - np.abs(case.v0)).max() < 0.05  # the prior alone leads near the base state


def test_rows_do_not_depend_on_their_neighbours() -> None:
    _, _, estimator = set_up("case57")
    z = np.concatenate([clean("case57", level, 2, seed)[0] for seed, level in enumerate((1.0, 0.7))])
    v, r = estimator.estimate(z)
    for row in range(4):
        v_alone, r_alone = estimator.estimate(z[[row]])
        assert np.abs(v[[row]] - v_alone).max() < 1e-4  # rows of a batch stop together: not bit for bit
        assert np.abs(r[[row]] - r_alone).max() < 0.05


def test_a_declared_outage_leaves_clean_residuals_and_an_undeclared_one_does_not() -> None:
    case, plan, estimator = set_up("case118")
    s_f = np.abs(measure(case, case.v0[None])[0][plan.layout.branch(0)])
    branch = int(np.argmax(np.where(bridges(case), 0, s_f)))
    out = np.zeros((1, case.n_branch), dtype=bool)
    out[0, branch] = True
    inputs = (case.load_p, case.load_q, case.gen_p, case.gen_v)
    v = PowerFlow(case, max_iter=30).solve(*(array[None] for array in inputs), out).v_RN
    h = measure(case, v, None, ~out)[:, plan.channels]
    z = h + plan.sigma * np.random.default_rng(0).standard_normal((20, plan.size))
    _, declared = estimator.estimate(z, np.tile(~out, (20, 1)))
    _, undeclared = estimator.estimate(z)
    assert 0.9 < declared.std() < 1.1
    assert undeclared.std() > 1.5


def dense_misfit(case: GridCase, plan: MeterPlan, prior: Prior, a: F64) -> float:
    """a' (R + J Q J')^-1 a with Q = (Hu' D^-1 Hu + anchor)^-1, all dense."""
    h = jacobian(case, case.v0).toarray()
    n = case.n_bus
    h_m, h_u = h[plan.channels], h[np.r_[n : 2 * n, 2 * n : 3 * n, 0:n]]
    weight = 1 / np.concatenate([prior.p, prior.q, prior.v]) ** 2
    anchor = np.zeros((2 * n, 2 * n))
    anchor[case.slack, case.slack] = 1e8
    q = np.linalg.inv(h_u.T @ (weight[:, None] * h_u) + anchor)
    return float(a @ np.linalg.solve(np.diag(plan.sigma**2) + h_m @ q @ h_m.T, a))


@pytest.mark.parametrize("prior", [wide_prior, lambda case: plausible_prior(case, 0.03)], ids=["wide", "plausible"])
def test_misfit_equals_the_dense_formula(prior: object) -> None:
    case, plan, _ = set_up("case14")
    made = prior(case)  # type: ignore[operator]
    gain = Gain(case, plan, made)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, plan.size)) * plan.sigma
    a[1:] *= rng.random((4, plan.size)) < 0.2
    got = gain.misfit(np.hstack([a, np.zeros((5, 3 * case.n_bus))]))
    np.testing.assert_allclose(got, [dense_misfit(case, plan, made, row) for row in a], rtol=1e-5)


@pytest.mark.parametrize("name", ["case14", "gb29", "gb"])
def test_stealth_with_matching_injections_costs_nothing_and_without_them_at_most_their_size(name: str) -> None:
    """a = Hm dx, u = Hu dx is irrefutable; with u = 0 the state may still move, and the prior is the bound."""
    case, plan, _ = set_up(name)
    gain = Gain(case, plan, plausible_prior(case, 0.03))
    dx = 0.01 * np.random.default_rng(1).standard_normal((3, 2 * case.n_bus))
    dx[:, case.slack] = 0
    a, u = (gain.h_m @ dx.T).T, (gain.h_u @ dx.T).T
    weight, pseudo = np.split(gain.precision, [plan.size])
    size = (u * u) @ pseudo
    alone = gain.misfit(np.hstack([a, np.zeros_like(u)]))
    assert (gain.misfit(np.hstack([a, u])) <= 1e-6 * size).all()
    assert (alone > 0).all()
    assert (alone <= size * (1 + 1e-9)).all()
    assert (alone <= (a * a) @ weight * (1 + 1e-9)).all()


def test_sparse_and_dense_factors_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case, plan, _ = set_up("case57")
    dense = Gain(case, plan, wide_prior(case))
    monkeypatch.setattr("gg_ray.grid.estimation.DENSE_STATES", 0)
    sparse = Gain(case, plan, wide_prior(case))
    np.testing.assert_allclose(sparse.omega, dense.omega, rtol=1e-6)
    a = np.random.default_rng(0).standard_normal((4, plan.size)) * plan.sigma
    au = np.hstack([a, np.zeros((4, 3 * case.n_bus))])
    np.testing.assert_allclose(sparse.misfit(au), dense.misfit(au), rtol=1e-6)
    assert (dense.omega > 0).all()
    assert (dense.omega <= plan.sigma**2).all()


def test_row_basis_keeps_the_gram_matrix_with_fewest_rows() -> None:
    rng = np.random.default_rng(0)
    block = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 7))
    basis = _row_basis(block)
    assert basis.shape == (2, 7)
    np.testing.assert_allclose(basis.T @ basis, block.T @ block, atol=1e-10)
    assert _row_basis(np.zeros((3, 4))).shape == (0, 4)
    assert _row_basis(np.ones((1, 4))).shape == (1, 4)


def test_d_eff_of_sparse_innovations_equals_the_sum_over_modes_of_full_rows() -> None:
    case, plan, _ = set_up("case14")
    scans = 12
    detect = Detectability(case, plan, load_noise=0.03, rho=0.9)
    rng, none = np.random.default_rng(0), np.zeros(0, dtype=np.int64)
    items = [
        Innovation(np.array([3, 8]), rng.standard_normal((scans, 2)) * plan.sigma[[3, 8]],
                   np.array([2]), 0.01 * rng.standard_normal((scans, 1))),
        Innovation(np.array([5]), np.ones((scans, 1)) * plan.sigma[5], none, np.zeros((scans, 0))),
        Innovation(np.array([1]), np.zeros((scans, 1)), none, np.zeros((scans, 0))),
    ]  # fmt: skip
    got = detect.squared(items, scans)
    vectors, level = detect.modes(scans)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(scans), atol=1e-12)
    for item, value in zip(items, got, strict=True):
        a, u = np.zeros((scans, plan.size)), np.zeros((scans, 3 * case.n_bus))
        a[:, item.meters], u[:, item.pseudo] = item.a_Tc, item.u_Tk
        want = sum(detect.gains[level[k]].misfit((vectors[:, k] @ np.hstack([a, u]))[None])[0] for k in range(scans))
        np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-12)
    assert got[2] == 0
    assert 0 < got[1] < scans  # a bias of one sigma in one meter is worth at most one sigma a scan


def test_rounding_modes_up_makes_d_eff_a_lower_bound() -> None:
    """Every eigenvalue of the AR(1) correlation lies at or below its level (but those above the top one)."""
    case, plan, _ = set_up("case14")
    detect = Detectability(case, plan, load_noise=0.03, rho=0.9)
    for scans in (16, 24, 48):
        lag = np.abs(np.subtract.outer(np.arange(scans), np.arange(scans)))
        values = np.linalg.eigvalsh(0.9**lag)
        levels = np.array(MODE_SCALES)[detect.modes(scans)[1]]
        assert (levels >= np.minimum(values, MODE_SCALES[0]) - 1e-12).all()


@pytest.mark.parametrize("name", ["case14", "gb29", "case118", "gb"])
def test_linear_flow_predicts_a_small_change(name: str) -> None:
    case = load_case(name)
    rng = np.random.default_rng(0)
    dp, dq = (0.002 * np.abs(load) * rng.standard_normal(case.n_bus) for load in (case.load_p, case.load_q))
    inputs = (case.load_p - dp, case.load_q - dq, case.gen_p, case.gen_v)
    v = PowerFlow(case, tol_pu=1e-8, max_iter=30).solve(*(array[None] for array in inputs)).v_RN[0]
    exact = np.concatenate([np.angle(v / case.v0 * (case.v0 / v)[case.slack]), np.abs(v) - np.abs(case.v0)])
    moved = LinearFlow(case).moves(dp[None], dq[None])[0]
    assert np.linalg.norm(moved - exact) < 0.02 * np.linalg.norm(exact)
    assert moved[case.slack] == 0
    assert (moved[case.n_bus + case.gen_bus] == 0).all()


def test_priors_are_tight_where_nothing_is_injected_and_absent_where_voltage_is_free() -> None:
    case = load_case("case57")
    wide, narrow = wide_prior(case), plausible_prior(case, 0.03)
    quiet = (case.load_p == 0) & ~np.isin(np.arange(case.n_bus), case.gen_bus)
    assert quiet.any()
    assert (wide.p[quiet] == 1e-3).all()
    assert (narrow.p <= wide.p).all()
    assert (np.isfinite(wide.v) == (case.kind != 1)).all()
