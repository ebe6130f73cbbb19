"""Features: clean residuals are unit normal, windows stand alone, ages and declared taps count, errors are named."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.grid.jacobian import COLUMNS, F_JAC, jacobian_features
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Event, Program, Window
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC
from gg_ray.verifier.features import FeatureError, Featurizer, case_static

CASE = load_case("case57")
EXECUTOR = Executor(CASE, ScenarioConfig(), ClimatologySource())
PLAN: MeterPlan = EXECUTOR.grammar.plan(1)
FEATURIZER = Featurizer(jacobian=True)


@functools.lru_cache(maxsize=32)
def _windows(count: int, events: tuple[Event, ...] = (), seed: int = 0) -> tuple[Window, ...]:
    programs = [
        Program(case=CASE.name, context_id=i, plan_id=1, events=events, scans=16, seed=seed + i) for i in range(count)
    ]
    return tuple(EXECUTOR.realise(attempt, 0)[0] for attempt in EXECUTOR.run(programs))


def test_residuals_of_benign_windows_are_unit_normal() -> None:
    ages, pooled = [], []
    for seed in range(0, 300, 100):
        prepared = FEATURIZER.prepare(_windows(8, seed=seed), PLAN)
        fresh = np.stack([w.age_TM for w in prepared.windows]) == 0
        pooled.append(prepared.r_BTM[fresh & np.isfinite(prepared.z_BTM)])
        ages.append(fresh.mean())
    r = np.concatenate(pooled)
    assert r.size > 10_000
    assert 0.9 < r.std() < 1.1
    assert abs(r.mean()) < 0.05
    assert np.quantile(np.abs(r), 0.999) < 5.0
    assert 0.8 < np.mean(ages) < 1.0


def test_a_windows_features_do_not_depend_on_its_batch() -> None:
    quiet = _windows(3)
    busy = _windows(2, (Event("line_switch", int(np.flatnonzero(EXECUTOR.grammar.target_mask("line_switch", PLAN))[4]),
                              5, 0, 2, 0),))  # fmt: skip
    together = FEATURIZER.prepare([*quiet, *busy], PLAN)
    features = FEATURIZER.features(together)
    for index, window in enumerate([*quiet, *busy]):
        alone = FEATURIZER.prepare([window], PLAN)
        np.testing.assert_allclose(alone.r_BTM[0], together.r_BTM[index], atol=1e-9, rtol=0)
        np.testing.assert_allclose(alone.v_BTN[0], together.v_BTN[index], atol=1e-9, rtol=0)
        one = FEATURIZER.features(alone)
        # A last-bit difference may cross a float16 rounding edge; nothing larger may happen.
        halves = ((one.node_BTNF[0], features.node_BTNF[index]), (one.edge_BTEF[0], features.edge_BTEF[index]))
        for mine, theirs in halves:
            assert np.mean(mine != theirs) < 1e-4
            np.testing.assert_allclose(mine.astype(np.float32), theirs.astype(np.float32), atol=2e-3, rtol=2e-3)
        block = features.jac_BNJ[index].astype(np.float32)
        np.testing.assert_allclose(one.jac_BNJ[0].astype(np.float32), block, atol=2e-3, rtol=2e-3)


def test_shapes_dtypes_and_finite_values() -> None:
    features = FEATURIZER.features(FEATURIZER.prepare(_windows(3), PLAN))
    n, e = CASE.n_bus, CASE.n_branch
    assert features.node_BTNF.shape == (3, 16, n, F_NODE)
    assert features.edge_BTEF.shape == (3, 16, e, F_EDGE)
    assert features.node_BTNF.dtype == features.edge_BTEF.dtype == np.float16
    assert features.xhat_BN2.shape == features.meas_BN2.shape == features.sigma_BN2.shape == (3, n, 2)
    assert features.param_BE3.shape == (3, e, 3)
    assert features.jac_BNJ.shape == (3, n, F_JAC)
    assert features.jac_BNJ.dtype == np.float16
    assert Featurizer().features(FEATURIZER.prepare(_windows(3), PLAN)).jac_BNJ.shape == (3, n, 0)
    for array in (
        features.node_BTNF,
        features.edge_BTEF,
        features.xhat_BN2,
        features.meas_BN2,
        features.param_BE3,
        features.jac_BNJ,
    ):
        assert np.isfinite(array).all()
    assert (features.edge_BTEF[..., -1] == 1).all()
    metered = PLAN.index_of[n : 2 * n] >= 0
    assert np.isinf(features.sigma_BN2[:, ~metered, 0]).all()
    assert np.isfinite(features.sigma_BN2[:, metered, 0]).mean() > 0.9


def test_a_channel_without_a_meter_is_zero_and_a_mask_says_so() -> None:
    features = FEATURIZER.features(FEATURIZER.prepare(_windows(2), PLAN))
    n = CASE.n_bus
    for channel in range(4):
        absent = PLAN.index_of[channel * n : (channel + 1) * n] < 0
        columns = features.node_BTNF[:, :, :, channel * 5 : channel * 5 + 5]
        assert not columns[:, :, absent].any()
        assert (columns[..., 4][:, :, ~absent] > 0).mean() > 0.9


def test_the_estimate_is_near_the_true_state() -> None:
    programs = [Program(case=CASE.name, context_id=i, plan_id=1, events=(), scans=16, seed=i) for i in range(4)]
    attempts = EXECUTOR.run(programs)
    prepared = FEATURIZER.prepare([EXECUTOR.realise(a, 0)[0] for a in attempts], PLAN)
    for attempt, v in zip(attempts, prepared.v_BTN, strict=True):
        assert attempt.main is not None
        gap = np.abs(v) - np.abs(attempt.main.state_TN)
        assert np.sqrt(np.mean(gap**2)) < 0.01


def test_an_aged_value_does_not_enter_estimation() -> None:
    window = _windows(1)[0]
    aged = np.argwhere((window.age_TM > 0) & (window.age_TM < 255) & np.isfinite(window.z_TM))
    t, meter = aged[len(aged) // 2]
    wild = replace(window, z_TM=window.z_TM.copy())
    wild.z_TM[t, meter] += 1_000 * PLAN.sigma[meter]
    calm, upset = FEATURIZER.prepare([window], PLAN), FEATURIZER.prepare([wild], PLAN)
    np.testing.assert_array_equal(calm.r_BTM, upset.r_BTM)
    np.testing.assert_array_equal(calm.v_BTN, upset.v_BTN)
    assert calm.r_BTM[0, t, meter] == 0.0
    fresh_t = int(np.flatnonzero(window.age_TM[:, meter] == 0)[1])
    wild = replace(window, z_TM=window.z_TM.copy())
    wild.z_TM[fresh_t, meter] += 1_000 * PLAN.sigma[meter]
    assert np.abs(FEATURIZER.prepare([wild], PLAN).r_BTM[0, fresh_t, meter]) > 5


def test_the_jacobian_block_reads_the_last_scan_against_the_one_before() -> None:
    """Not aged values, not later truth, and no reading of the last scan but those that arrived."""
    window = _windows(1)[0]
    prepared = FEATURIZER.prepare([window], PLAN)
    block = FEATURIZER.features(prepared).jac_BNJ
    estimator = FEATURIZER.estimator(CASE, PLAN)
    z = np.where(window.age_TM[-1:] == 0, window.z_TM[-1:], np.nan)
    want = jacobian_features(estimator, z, prepared.v_BTN[:, -2], window.status_TE[-1:].astype(bool))
    np.testing.assert_allclose(block, want.astype(np.float16), atol=1e-3, rtol=1e-3)
    assert np.isnan(z).any()
    early = replace(window, z_TM=window.z_TM.copy())
    early.z_TM[:8] += 30 * PLAN.sigma
    np.testing.assert_array_equal(FEATURIZER.features(FEATURIZER.prepare([early], PLAN)).jac_BNJ, block)
    loud = replace(window, z_TM=window.z_TM.copy())
    meter = int(np.flatnonzero(np.isfinite(z[0]) & (PLAN.channels < CASE.n_bus))[0])
    loud.z_TM[-1, meter] += 50 * PLAN.sigma[meter]
    change = np.abs(FEATURIZER.features(FEATURIZER.prepare([loud], PLAN)).jac_BNJ.astype(np.float32) - block)[0]
    assert int(change[:, COLUMNS.index("unexplained")].argmax()) == PLAN.channels[meter]


def test_declared_tap_moves_are_modelled_scan_by_scan() -> None:
    seen = {int(owner) for owner in np.flatnonzero(PLAN.index_of[4 * CASE.n_bus : 4 * CASE.n_bus + CASE.n_branch] >= 0)}
    taps = [int(b) for b in np.flatnonzero(CASE.transformer) if int(b) in seen]
    moved = _windows(6, tuple(Event("tap_move", CASE.n_bus + taps[i], 6 + 3 * i, 0, 2, 0) for i in range(2)))
    silent = [replace(w, moves=()) for w in moved]
    declared, undeclared = FEATURIZER.prepare(moved, PLAN), FEATURIZER.prepare(silent, PLAN)
    np.testing.assert_allclose(declared.r_BTM[:, :6], undeclared.r_BTM[:, :6], atol=1e-9)
    assert 0.85 < declared.r_BTM[:, 9:].std() < 1.15
    assert np.square(undeclared.r_BTM[:, 9:]).mean() > np.square(declared.r_BTM[:, 9:]).mean() + 0.05
    param = FEATURIZER.features(declared).param_BE3
    unexplained = [
        FEATURIZER.features(prepared).jac_BNJ[..., COLUMNS.index("unexplained")].max(axis=1).mean()
        for prepared in (declared, undeclared)
    ]
    assert unexplained[0] < unexplained[1]
    for branch, ratio, _ in moved[0].moves:
        assert param[:, branch, 1] == pytest.approx(np.full(6, ratio))


def test_a_wrong_declaration_shows_in_the_residuals() -> None:
    window = _windows(1)[0]
    line = int(np.argmax(np.abs(EXECUTOR.linear.h[4 * CASE.n_bus : 4 * CASE.n_bus + CASE.n_branch]).sum(axis=1)))
    status = window.status_TE.copy()
    status[8:, line] = 0
    r = FEATURIZER.prepare([replace(window, status_TE=status)], PLAN).r_BTM[0]
    assert np.abs(r[8:]).max() > 2 * np.abs(r[:8]).max()


def test_unusable_windows_are_named() -> None:
    window, other = _windows(2)
    short = replace(other, z_TM=other.z_TM[:8])
    narrow = replace(other, z_TM=other.z_TM[:, :-1])
    status = replace(other, status_TE=other.status_TE[:, :-1])
    hot = replace(other, z_TM=np.where(np.arange(PLAN.size) == 3, np.inf, other.z_TM))
    for windows, message in (
        ([], "no windows"),
        ([window, replace(other, plan_id=2)], "window 1: case57 plan 2, expected case57 plan 1"),
        ([replace(window, case="case14")], "window 0: case14 plan 1, expected case57 plan 1"),
        ([window, short], r"window 1: readings \(8,"),
        ([window, narrow], rf"window 1: readings \(16, {PLAN.size - 1}\), expected \(16, {PLAN.size}\)"),
        ([window, status], r"window 1: status"),
        ([window, hot], "window 1: an infinite reading; use NaN"),
    ):
        with pytest.raises(FeatureError, match=message):
            FEATURIZER.prepare(windows, PLAN)


def test_static_features_are_per_unit_and_complete() -> None:
    static = case_static("case57")
    assert np.asarray(static.node_static).shape == (CASE.n_bus, F_NODE_STATIC)
    assert np.asarray(static.edge_static).shape == (CASE.n_branch, F_EDGE_STATIC)
    assert np.isfinite(static.node_static).all()
    assert np.isfinite(static.edge_static).all()
    np.testing.assert_array_equal(np.asarray(static.edge_index), np.stack([CASE.f_bus, CASE.t_bus]))
    assert static.n_regions == int(CASE.region.max()) + 1
