"""gg_ray.evaluate.verdicts: thresholds that 1 % of benign windows exceed, and the 3x3 matrix by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gg_ray.evaluate.metrics import MetricError
from gg_ray.evaluate.verdicts import DISTURBANCE, FPR, IMPLAUSIBLE, NORMAL, Calibration, calibrate, confusion, truths


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
