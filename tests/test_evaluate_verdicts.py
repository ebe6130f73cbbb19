"""gg_ray.evaluate.verdicts: thresholds that 1 % of benign windows exceed, and the 3x3 matrix by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gg_ray.evaluate.metrics import MetricError
from gg_ray.evaluate.verdicts import (
    DISTURBANCE,
    FPR,
    IMPLAUSIBLE,
    NORMAL,
    Benign,
    Calibration,
    calibrate,
    confusion,
    truths,
)
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan
from gg_ray.records import Window
from gg_ray.verifier.features import Prepared


@pytest.mark.parametrize("count", [100, 250, 1000])
def test_one_percent_of_the_validation_windows_exceed_each_threshold(count: int) -> None:
    rng = np.random.default_rng(count)
    benign_V, ordinary_O = rng.normal(size=count), rng.normal(3.0, size=count // 2 * 2)
    rule = calibrate(benign_V, ordinary_O)
    assert (benign_V > rule.implausible).sum() == int(FPR * count)
    assert (ordinary_O > rule.disturbance).sum() == int(FPR * ordinary_O.size)
    np.testing.assert_array_equal(rule.scores, np.sort(benign_V))


def test_few_windows_let_none_through_and_none_at_all_are_refused() -> None:
    rule = calibrate(np.array([1.0, -2.0]), np.array([0.5]))
    assert (rule.implausible, rule.disturbance) == (1.0, 0.5)
    with pytest.raises(MetricError, match="empty"):
        calibrate(np.array([1.0]), np.array([]))


def test_implausible_comes_first_and_a_score_on_the_threshold_does_not_exceed_it() -> None:
    rule = Calibration(np.zeros(1), 1.0, 0.0)
    implausible_B, disturbance_B = np.array([2.0, 2.0, 1.0, 1.0, 0.0]), np.array([5.0, -5.0, 5.0, 0.0, -5.0])
    assert rule.verdicts(implausible_B, disturbance_B).tolist() == [
        IMPLAUSIBLE, IMPLAUSIBLE, DISTURBANCE, NORMAL, NORMAL,
    ]  # fmt: skip


def test_a_calibration_survives_its_registration() -> None:
    rule = calibrate(np.linspace(-1, 1, 300), np.linspace(-1, 0, 200))
    plain = rule.as_json()
    assert (plain["implausible"], plain["disturbance"], plain["fpr"]) == (rule.implausible, rule.disturbance, FPR)
    np.testing.assert_allclose(plain["scores"], rule.scores, atol=1e-5)


def test_the_matrix_by_hand() -> None:
    """A masked fault is implausible; natural events called implausible are counted among real disturbances alone."""
    implausible_B = np.array([False, False, False, False, True, True])
    disturbed_B = np.array([False, False, True, True, True, False])
    truth = truths(implausible_B, disturbed_B)
    assert truth.tolist() == [NORMAL, NORMAL, DISTURBANCE, DISTURBANCE, IMPLAUSIBLE, IMPLAUSIBLE]
    found = confusion("case14", truth, np.array([0, 2, 1, 2, 2, 0]))
    assert found.counts == ((1, 0, 1), (0, 1, 1), (1, 0, 1))
    assert found.natural_called_implausible == 0.5
    assert found.as_json()["natural_events"] == 2
    assert confusion("case14", np.array([0]), np.array([0])).natural_called_implausible is None


def benign(case_name: str, count: int, seed: int) -> Benign:
    """Scores of windows on different days; those of buses are ten times as large."""
    case, rng = load_case(case_name), np.random.default_rng(seed)
    plan = draw_plan(case, 0, (0.4, 0.6), 0.0)
    window = Window(
        case=case_name, plan_id=0, t0_ns=0, step_s=60.0, z_TM=np.zeros((16, plan.size)),
        age_TM=np.zeros((16, plan.size), dtype=np.uint8), status_TE=np.ones((16, case.n_branch), dtype=np.uint8),
        tap_E=case.tap, x_scale_E=np.ones(case.n_branch),
    )  # fmt: skip
    windows = [replace(window, t0_ns=int(day) * 86_400 * 10**9) for day in rng.permutation(count)]
    prepared = Prepared(
        case, plan, windows, np.zeros((count, 16, plan.size)), np.zeros((count, 16, plan.size)),
        np.ones((count, 16, case.n_bus), dtype=np.complex128),
    )  # fmt: skip
    return Benign.of(prepared, rng.normal(size=count), 10 * rng.normal(size=(count, case.n_bus)))


def test_p_values_rank_within_the_grid_and_fall_back_to_all_grids() -> None:
    parts = [benign("case14", 300, 0), replace(benign("case30", 300, 1), score_B=100.0 + np.arange(300.0))]
    rule = calibrate(np.concatenate([part.score_B for part in parts]), np.zeros(1), parts)
    night = 6 * 86_400 * 10**9  # a Wednesday
    assert rule.p_class("case14", night) == "case14, working day night"
    assert rule.p_value(50.0, "case14", night) < 0.02
    assert rule.p_value(50.0, "case30", night) == 1.0
    assert rule.p_class("case39", night) == "all grids"
    assert rule.p_value(50.0, "case39", night) == pytest.approx(0.5, abs=0.01)
    assert rule.topology == {name: load_case(name).topology() for name in ("case14", "case30")}
    back = Calibration.from_json(json.loads(json.dumps(rule.as_json())))
    for score in (-1.0, 0.5, 120.0, 1e6):
        assert back.p_value(score, "case14", night) == pytest.approx(rule.p_value(score, "case14", night), abs=2e-3)
    assert back.topology == rule.topology


def test_buses_rank_among_buses_of_their_class() -> None:
    part = benign("case57", 200, 2)
    assert part.node_BN is not None
    metered = part.metering_N == "injection"
    part.node_BN[:, metered] += 1_000.0
    rule = calibrate(part.score_B, np.zeros(1), [part])
    case = load_case("case57")
    plan = draw_plan(case, 0, (0.4, 0.6), 0.0)
    yes, no = int(np.flatnonzero(metered)[0]), int(np.flatnonzero(part.metering_N == "none")[0])
    found = rule.bus_p_values(case, plan, np.full(case.n_bus, 500.0), [yes, no], 0)
    assert found[0] > 0.9
    assert found[1] < 0.01
    assert rule.bus_p_values(case, plan, np.zeros(case.n_bus), [], 0) == ()
    assert calibrate(part.score_B, np.zeros(1)).bus_p_values(case, plan, np.zeros(case.n_bus), [yes], 0) == ()


def test_a_registration_from_before_the_classes_still_loads() -> None:
    old = Calibration.from_json({"scores": [-1.0, 0.0, 1.0], "implausible": 0.5, "disturbance": 0.25, "fpr": 0.01})
    assert old.p_value(0.5, "case14", 0) == 2 / 4
    assert (old.p_class("case14", 0), dict(old.topology), dict(old.levels)) == ("all grids", {}, {})
    with pytest.raises(KeyError, match="disturbance"):
        Calibration.from_json({"scores": [0.0], "implausible": 0.5})
