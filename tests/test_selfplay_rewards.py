"""Rewards: the table of section 9, what each arm is drawn to, and the invariants that make ours safe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from gg_ray.config import RewardName
from gg_ray.selfplay.rewards import (
    RewardError,
    learnability,
    p_bar_anomalous,
    p_bar_benign,
    p_star,
    proposer_reward,
    raw_skill,
    skill,
    solver_learnability,
)

UNIT = st.floats(0.0, 1.0)
VISIBLE = st.floats(3.0, 32.0)


def test_oracle_is_the_optimal_two_gaussian_test() -> None:
    assert float(p_star(3.0)) == pytest.approx(0.9332, abs=1e-4)
    np.testing.assert_allclose(p_star([0.0, 1.0, 8.0]), norm.cdf([0.0, 0.5, 4.0]))
    # the error of the midpoint threshold between two unit Gaussians d apart, by simulation
    rng = np.random.default_rng(0)
    d = 1.7
    right = np.mean([(rng.normal(0, 1, 200_000) < d / 2).mean(), (rng.normal(d, 1, 200_000) > d / 2).mean()])
    assert float(p_star(d)) == pytest.approx(right, abs=3e-3)


@pytest.mark.parametrize(
    ("arm", "p_bar", "d_eff", "want"),
    [
        ("ours", 0.5, 3.0, 1.0),
        ("ours", 0.2, 3.0, 1.0),
        ("ours", 0.5 + 0.5 * (0.93319279873 - 0.5), 3.0, 0.5),
        ("ours", 0.92, 3.0, 0.0),
        ("ours", 1.0, 3.0, 0.0),
        ("azr", 0.04, 3.0, 0.0),
        ("azr", 0.5, 3.0, 0.5),
        ("azr", 0.96, 3.0, 0.0),
        ("sfl", 0.5, 3.0, 1.0),
        ("sfl", 0.9, 3.0, 0.36),
        ("rzero", 0.5, 3.0, 1.0),
        ("rzero", 0.9, 3.0, 0.2),
        ("regret", 0.5, 3.0, 0.43319279873),
        ("regret", 0.99, 3.0, 0.0),
    ],
)
def test_learnability_table(arm: str, p_bar: float, d_eff: float, want: float) -> None:
    assert float(learnability(arm, p_bar, p_star(d_eff), 0.05)) == pytest.approx(want, abs=1e-9)


def test_solve_rates_by_hand() -> None:
    np.testing.assert_allclose(p_bar_anomalous([[0.9, 0.7], [0.2, 0.4]], [[0.1, 0.3], [0.6, 0.8]]), [0.8, 0.3])
    np.testing.assert_allclose(p_bar_benign([[0.1, 0.3], [1.0, 1.0]]), [0.8, 0.0])
    with pytest.raises(RewardError, match="twin"):
        p_bar_anomalous([[0.9, 0.7]], [[0.1]])
    with pytest.raises(RewardError, match="magic"):
        learnability("magic", 0.5, 0.9, 0.05)  # type: ignore[arg-type]


@given(st.lists(UNIT, min_size=1, max_size=8), VISIBLE)
def test_a_verifier_that_cannot_tell_twins_apart_has_no_skill(answers: list[float], d_eff: float) -> None:
    p_bar = p_bar_anomalous([answers], [answers])
    assert float(p_bar[0]) == pytest.approx(0.5, abs=1e-12)
    assert float(skill(p_bar, p_star(d_eff))[0]) == pytest.approx(0.0, abs=1e-10)


@given(UNIT, UNIT, VISIBLE)
def test_ours_falls_with_the_solve_rate(first: float, second: float, d_eff: float) -> None:
    low, high = sorted((first, second))
    oracle = p_star(d_eff)
    assert float(learnability("ours", low, oracle, 0.05)) >= float(learnability("ours", high, oracle, 0.05))


@given(UNIT, VISIBLE, st.sampled_from(["ours", "azr", "sfl", "rzero", "regret"]))
def test_every_arm_stays_within_zero_and_one(p_bar: float, d_eff: float, arm: str) -> None:
    assert 0.0 <= float(learnability(arm, p_bar, p_star(d_eff), 0.05)) <= 1.0  # type: ignore[arg-type]


def test_noise_trap_and_the_cure() -> None:
    """A Verifier at the oracle has p = Phi(d / 2): un-gated arms are drawn to d = 0, ours sees no gain in noise."""
    d = np.geomspace(0.01, 16.0, 200)
    best = p_star(d)
    for arm in ("azr", "sfl", "rzero"):
        assert int(learnability(arm, best, best, 0.05).argmax()) == 0  # type: ignore[arg-type]
    assert learnability("ours", best, best, 0.05).max() == 0.0
    # with a gate, a Verifier of half the oracle's sensitivity is worth most near the gate and nothing far beyond it
    gated = d[d >= 3.0]
    value = learnability("ours", p_star(0.5 * gated), p_star(gated), 0.05)
    assert value.argmax() == 0
    assert value[0] == pytest.approx(1 - (p_star(1.5) - 0.5) / (p_star(3.0) - 0.5), rel=0.05)
    assert value[-1] == 0.0


def test_sfl_and_rzero_peak_at_one_half() -> None:
    p = np.linspace(0.0, 1.0, 101)
    assert p[learnability("sfl", p, 0.99, 0.05).argmax()] == pytest.approx(0.5)
    assert p[learnability("rzero", p, 0.99, 0.05).argmax()] == pytest.approx(0.5)
    assert p[learnability("azr", p, 0.99, 0.05).argmax()] == pytest.approx(0.05)


def test_skill_without_any_effect_is_finite() -> None:
    assert float(skill(0.5, p_star(0.0))) == 0.0
    assert np.isfinite(raw_skill(0.7, p_star(0.0)))
    assert float(raw_skill(0.99, p_star(3.0))) > 1.0


def test_solver_rule() -> None:
    np.testing.assert_allclose(solver_learnability([0.0, 0.25, 1.0, np.nan]), [0.0, 0.75, 0.0, np.nan])


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ({"learnability_v": 0.8}, 0.8),
        ({"learnability_v": 0.8, "gate_failed": True, "progress": 0.5}, -0.5),
        ({"learnability_v": 0.8, "learnability_s": 0.4}, 0.7 * 0.8 + 0.3 * 0.4),
        ({"learnability_v": 0.8, "novelty": 0.5}, 0.6),
        ({"learnability_v": 0.8, "progress": -0.5}, 0.7),
    ],
)
def test_proposer_reward_table(arguments: dict[str, float], want: float) -> None:
    assert float(proposer_reward("ours", **arguments)) == pytest.approx(want)


@pytest.mark.parametrize("arm", ["azr", "sfl", "rzero", "regret"])
def test_rewards_of_others_are_paid_as_their_authors_wrote_them(arm: RewardName) -> None:
    """Novelty, progress and the Solver's term are ours: an arm for comparison that had them would not be theirs."""
    ours_alone = {"learnability_s": 0.1, "novelty": 0.2, "progress": -0.5}
    assert float(proposer_reward(arm, 0.8, **ours_alone)) == 0.8
    assert float(proposer_reward(arm, 0.0, **ours_alone)) == 0.0, "well-formed and worth nothing is no failure"
    assert float(proposer_reward(arm, 0.8, gate_failed=True)) == -0.5


def test_proposer_reward_of_a_batch() -> None:
    got = proposer_reward(
        "ours", [0.5, np.nan, 1.0], gate_failed=[False, True, False],
        learnability_s=[np.nan, np.nan, 0.0], novelty=[1.0, 1.0, 0.2],
    )  # fmt: skip
    np.testing.assert_allclose(got, [0.5, -0.5, 0.7 * 0.6])
