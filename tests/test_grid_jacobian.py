"""Jacobian block: dense least squares, relabelling, company, gaps, noise alone; its benchmark."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from gg_ray.bench.jacobian import jacobian_cpu_ms
from gg_ray.grid.cases import SLACK, GridCase, load_case
from gg_ray.grid.estimation import Estimator, jacobian
from gg_ray.grid.jacobian import COLUMNS, F_JAC, jacobian_features
from gg_ray.grid.meters import MeterPlan, draw_plan, measure
from gg_ray.grid.ybus import branch_admittance

F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]
COLUMN = {name: index for index, name in enumerate(COLUMNS)}
MOVES = ("move_angle", "move_v", "move_p", "move_q", "explained", "unexplained", "ratio", "weak")


@functools.cache
def set_up(name: str, low: float = 0.5, high: float = 0.7) -> tuple[GridCase, MeterPlan, Estimator]:
    case = load_case(name)
    plan = draw_plan(case, 0, (low, high), 0.0)
    return case, plan, Estimator(case, plan)


def earlier_state(case: GridCase) -> C128:
    """A state near the base state, slack angle zero."""
    rng = np.random.default_rng(7)
    turn = 0.01 * rng.standard_normal(case.n_bus)
    v = case.v0 * (1 + 0.005 * rng.standard_normal(case.n_bus)) * np.exp(1j * turn)
    return np.asarray(v * np.exp(-1j * np.angle(v[case.slack])))


def shifted_readings(case: GridCase, plan: MeterPlan, v: C128, rows: int, size: float = 3.0) -> F64:
    """Readings a few standard deviations off what the state predicts, every seventh absent."""
    rng = np.random.default_rng(3)
    z = measure(case, v[None])[:, plan.channels] + size * plan.sigma * rng.standard_normal((rows, plan.size))
    z[rng.random(z.shape) < 1 / 7] = np.nan
    return np.asarray(z)


def everything_on(case: GridCase, rows: int) -> NDArray[np.bool_]:
    return np.ones((rows, case.n_branch), dtype=bool)


def dense_block(estimator: Estimator, z_M: F64, v: C128) -> F64:
    """Every column of one window from dense least squares and loops over meters; base topology, base level."""
    case, plan, gain = estimator.case, estimator.plan, estimator.gain
    n, e, base = case.n_bus, case.n_branch, estimator.points[-1].v
    h = jacobian(case, base).toarray()
    h_m, h_u = h[plan.channels], h[np.r_[n : 2 * n, 2 * n : 3 * n, 0:n]]
    prior = np.concatenate([gain.prior.p, gain.prior.q, gain.prior.v])
    anchor = np.where(np.arange(2 * n) == case.slack, 1e4, 1e-3**0.5)
    there = np.isfinite(z_M)
    dz = np.where(there, z_M - measure(case, v[None])[0][plan.channels], 0.0)
    design = np.vstack([h_m / plan.sigma[:, None], h_u / prior[:, None], np.diag(anchor)])

    def fit(meters: F64, pseudo: F64) -> F64:
        return np.linalg.lstsq(design, np.concatenate([meters / plan.sigma, pseudo / prior, np.zeros(2 * n)]))[0]

    cov = np.linalg.inv(design.T @ design)
    dx = fit(dz, np.zeros(3 * n))
    dx[case.slack] = 0
    believed = np.concatenate([gain.prior.p > 1e-3, gain.prior.q > 1e-3, np.isfinite(gain.prior.v)])
    weak = fit(np.zeros(plan.size), (h_u @ dx) * believed)
    scans = 2
    sd_x = np.sqrt(scans * np.diag(cov))
    injection = h_u[: 2 * n]
    sd_u = np.sqrt(scans * np.einsum("ij,jk,ik->i", injection, cov, injection))
    out = np.zeros((n, F_JAC))
    out[:, 0], out[:, 1] = np.arcsinh(dx[:n] / sd_x[:n]), np.arcsinh(dx[n:] / sd_x[n:])
    implied = injection @ dx / sd_u
    out[:, 2], out[:, 3] = np.arcsinh(implied[:n]), np.arcsinh(implied[n:])
    for bus in range(n):
        own, other, lever, count = 0.0, 0.0, 0.0, 0
        for meter, channel in enumerate(plan.channels.tolist()):
            kind, place = (channel // n, channel % n) if channel < 4 * n else divmod(channel - 4 * n, e)
            at = place if channel < 4 * n else (case.f_bus if kind < 2 else case.t_bus)[place]
            if at != bus or not there[meter]:
                continue
            row, r = h_m[meter], plan.sigma[meter] ** 2
            spread = row @ cov @ row
            own += (row @ dx) ** 2 / (scans * max(spread, 0.01 * r))
            other += (dz[meter] - row @ dx) ** 2 / max(r - spread, 0.1 * r)
            lever += min(spread / r, 1)
            count += 1
        own, other, lever = (value / max(count, 1) for value in (own, other, lever))
        out[bus, 4], out[bus, 5] = np.log1p(own**0.5), np.log1p(other**0.5)
        out[bus, 6] = (other - own) / (other + own + 1)
        size = ((weak[bus] / sd_x[bus]) ** 2 + (weak[n + bus] / sd_x[n + bus]) ** 2) / 2
        out[bus, 7] = np.log1p(size**0.5)
        for column, state in ((8, bus), (9, n + bus)):
            out[bus, column] = np.log10(1 + np.linalg.norm(h_m[there, state] / plan.sigma[there])) / 5
        out[bus, 10], out[bus, 11] = lever, np.log1p(count)
    return out


def test_every_column_equals_dense_least_squares() -> None:
    case, plan, estimator = set_up("case14")
    v = earlier_state(case)
    z = shifted_readings(case, plan, v, 3)
    got = jacobian_features(estimator, z, np.tile(v, (3, 1)), everything_on(case, 3))
    assert got.shape == (3, case.n_bus, F_JAC)
    for row in range(3):
        np.testing.assert_allclose(got[row], dense_block(estimator, z[row], v), rtol=1e-5, atol=1e-6)


def test_sparse_factors_give_the_same_block(monkeypatch: pytest.MonkeyPatch) -> None:
    case, plan, dense = set_up("case57")
    monkeypatch.setattr("gg_ray.grid.estimation.DENSE_STATES", 0)
    sparse = Estimator(case, plan)
    v = earlier_state(case)
    z, tiled = shifted_readings(case, plan, v, 2), np.tile(v, (2, 1))
    want = jacobian_features(dense, z, tiled, everything_on(case, 2))
    np.testing.assert_allclose(jacobian_features(sparse, z, tiled, everything_on(case, 2)), want, rtol=1e-6, atol=1e-7)


def test_readings_as_predicted_move_nothing() -> None:
    case, plan, estimator = set_up("case14")
    v = earlier_state(case)
    z = measure(case, v[None])[:, plan.channels]
    block = jacobian_features(estimator, z, v[None], everything_on(case, 1))[0]
    for name in MOVES:
        assert np.abs(block[:, COLUMN[name]]).max() < 1e-9, name
    assert (block[:, COLUMN["sensitivity_v"]] > 0).any()
    assert (block[:, COLUMN["leverage"]] > 0).any()


def test_a_state_that_moved_is_explained_and_a_gross_error_is_not() -> None:
    case, plan, estimator = set_up("case118")
    base = estimator.points[-1].v
    bus = int(np.flatnonzero((case.kind == 1) & (plan.index_of[: case.n_bus] >= 0))[3])
    moved = base.copy()
    moved[bus] *= 1.02 * np.exp(0.02j)
    z_moved = measure(case, moved[None])[:, plan.channels]
    z_wrong = measure(case, base[None])[:, plan.channels]
    own = plan.index_of[case.n_bus + bus]
    z_wrong[0, own] += 60 * plan.sigma[own]
    both = np.concatenate([z_moved, z_wrong])
    block = jacobian_features(estimator, both, np.tile(base, (2, 1)), everything_on(case, 2))
    ratio = block[:, bus, COLUMN["ratio"]]
    assert ratio[0] < -0.5
    assert ratio[1] > ratio[0] + 0.5
    assert int(np.abs(block[0, :, COLUMN["move_v"]]).argmax()) == bus
    assert int(block[1, :, COLUMN["unexplained"]].argmax()) == bus


def relabelled(
    case: GridCase, plan: MeterPlan, new: NDArray[np.int64]
) -> tuple[GridCase, MeterPlan, NDArray[np.int64]]:
    """Bus i becomes bus new[i]; also the order that old installed meters have in the new plan."""
    old = np.argsort(new)
    names = ("vn_kv", "kind", "load_p", "load_q", "gs", "bs", "v_min", "v_max", "v0", "layout")
    moved: dict[str, NDArray[np.float64]] = {name: getattr(case, name)[old] for name in names}
    renamed = replace(case, **moved, f_bus=new[case.f_bus], t_bus=new[case.t_bus], gen_bus=new[case.gen_bus])
    channel = np.concatenate(
        [(np.arange(4)[:, None] * case.n_bus + new).ravel(), np.arange(4 * case.n_bus, plan.layout.size)]
    )
    order = np.argsort(channel[plan.channels])
    channels = channel[plan.channels][order]
    index_of = np.full(plan.layout.size, -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    return renamed, replace(plan, channels=channels, index_of=index_of, sigma=plan.sigma[order]), order


def test_a_relabelled_grid_has_the_relabelled_block() -> None:
    case, plan, estimator = set_up("case30")
    new = np.random.default_rng(5).permutation(case.n_bus)
    renamed, new_plan, order = relabelled(case, plan, new)
    v = earlier_state(case)
    z = shifted_readings(case, plan, v, 2)
    want = jacobian_features(estimator, z, np.tile(v, (2, 1)), everything_on(case, 2))
    other = Estimator(renamed, new_plan)
    got = jacobian_features(other, z[:, order], np.tile(v[np.argsort(new)], (2, 1)), everything_on(case, 2))
    np.testing.assert_allclose(got[:, new], want, rtol=1e-5, atol=1e-6)


def test_a_window_does_not_depend_on_its_company() -> None:
    case, plan, estimator = set_up("case57")
    v = earlier_state(case)
    z = shifted_readings(case, plan, v, 4)
    z[2:] *= 0.6  # another demand level
    status = everything_on(case, 4)
    status[1, 5] = False
    earlier = np.tile(v, (4, 1))
    together = jacobian_features(estimator, z, earlier, status)
    for row in range(4):
        alone = jacobian_features(estimator, z[[row]], earlier[[row]], status[[row]])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-9, atol=1e-9)


def test_silent_meters_and_dead_branches_have_no_say() -> None:
    case, plan, estimator = set_up("case57")
    v = earlier_state(case)
    nothing = jacobian_features(estimator, np.full((1, plan.size), np.nan), v[None], everything_on(case, 1))
    assert not nothing.any()
    z = shifted_readings(case, plan, v, 1)
    branch = int((plan.channels[plan.channels >= 4 * case.n_bus][0] - 4 * case.n_bus) % case.n_branch)
    status = everything_on(case, 1)
    status[0, branch] = False
    wild = z.copy()
    wild[:, plan.at(plan.layout.branch_channels(branch))] += 1e3
    calm, upset = (jacobian_features(estimator, values, v[None], status) for values in (z, wild))
    np.testing.assert_array_equal(calm, upset)
    assert np.isfinite(calm).all()
    silent_bus = int(np.flatnonzero(calm[0, :, COLUMN["seen"]] == 0)[0])
    for name in ("explained", "unexplained", "ratio", "leverage"):
        assert calm[0, silent_bus, COLUMN[name]] == 0


def test_declared_admittances_predict_the_readings() -> None:
    case, plan, estimator = set_up("case57")
    v = earlier_state(case)
    branch = int(np.flatnonzero(case.transformer)[2])
    tap = case.tap.copy()
    tap[branch] *= 1.05
    declared = branch_admittance(case, tap)
    z = measure(case, v[None], declared)[:, plan.channels]
    told = jacobian_features(estimator, z, v[None], everything_on(case, 1), declared)
    untold = jacobian_features(estimator, z, v[None], everything_on(case, 1))
    assert np.abs(told[..., : COLUMN["sensitivity_angle"]]).max() < 1e-9
    assert np.abs(untold[..., COLUMN["unexplained"]]).max() > 0.5


@pytest.mark.parametrize(
    ("name", "kappa"), [("case57", (0.95, 1.0)), ("case118", (0.95, 1.0)), ("case57", (0.25, 0.35))]
)
def test_on_noise_alone_no_column_exceeds_its_normalisation(name: str, kappa: tuple[float, float]) -> None:
    """Unit variance with full metering, less where the prior decides, never more."""
    case, plan, estimator = set_up(name, *kappa)
    rows = 400
    v = estimator.points[-1].v
    noise = np.random.default_rng(0).standard_normal((2, rows, plan.size)) * plan.sigma
    earlier, newest = measure(case, v[None])[:, plan.channels] + noise
    before, _ = estimator.estimate(earlier)
    block = jacobian_features(estimator, newest, before, everything_on(case, rows))
    free = case.kind != SLACK
    moves = np.sinh(block[:, free, :4])
    spread = moves.std(axis=0)
    assert (spread < 1.15).all()
    assert (np.abs(moves.mean(axis=0)) < 0.5).all()
    parts = np.square(np.expm1(block[..., [COLUMN["explained"], COLUMN["unexplained"], COLUMN["weak"]]])).mean(axis=0)
    assert (parts < 1.3).all()
    if kappa[0] > 0.9:
        assert np.median(spread[:, :2]) > 0.9
        assert np.median(parts[:, 0]) > 0.75
        assert np.median(parts[:, 1]) > 0.75


def test_the_bench_measures_a_small_grid() -> None:
    assert 0 < jacobian_cpu_ms("case14") < 1_000
