"""What a program and a completion are worth: skill against the oracle, learnability, the reward arms.

Flow:    verifier scores of windows and twins -> [rewards] -> policy_update (reward), archive and replay (learnability),
         scheduler (skill)
Source:  selfplay.md, section 9; docs/adr/0004-rewards-and-quotas.md. Arms: Absolute Zero 2505.03335 (azr),
         SFL 2408.15099 (sfl), R-Zero 2508.05004 (rzero), regret against the oracle without its normalisation (regret)
Shapes:  P programs, K realisations; every function is vectorised and keeps the shape of its arguments
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from gg_ray.config import RewardName
from gg_ray.records import F64

GATE_FAILED = -0.5
PROGRESS_WEIGHT = 0.2
_CHANCE = 0.5
_SMALLEST_MARGIN = 1e-6
"""Least p* - 1/2 that skill divides by: an un-gated program without any effect has p* = 1/2 exactly."""


class RewardError(ValueError):
    """A reward arm is unknown or probabilities do not fit each other; the message names the value and the choice."""


def p_bar_anomalous(p_windows: ArrayLike, p_twins: ArrayLike) -> F64:
    """Solve rate of anomalous programs: mean of P(implausible) on windows and of its complement on their twins.

    Args:    p_windows, p_twins [P, K] P(implausible)
    Returns: [P]; a Verifier that answers the same everywhere gets exactly 1/2.
    Raises:  RewardError if the two shapes differ.
    """
    windows, twins = np.asarray(p_windows, dtype=np.float64), np.asarray(p_twins, dtype=np.float64)
    if windows.shape != twins.shape:
        raise RewardError(f"windows {windows.shape} and twins {twins.shape} differ; each window needs its own twin")
    return np.asarray(0.5 * (windows + 1.0 - twins).mean(axis=-1))


def p_bar_benign(p_windows: ArrayLike) -> F64:
    """Solve rate of plausible programs. Args: p_windows [P, K] P(implausible). Returns: [P]."""
    return np.asarray((1.0 - np.asarray(p_windows, dtype=np.float64)).mean(axis=-1))


def p_star(d_eff: ArrayLike) -> F64:
    """Solve rate of the optimal test at detectability d_eff: Phi(d_eff / 2), two equally likely Gaussians d_eff apart.

    Benign programs have no anomaly to measure; theirs is p_star(d_min), .933 at d_min = 3.
    """
    return np.asarray(ndtr(0.5 * np.asarray(d_eff, dtype=np.float64)))


def raw_skill(p_bar: ArrayLike, oracle: ArrayLike) -> F64:
    """(p_bar - 1/2) / (p* - 1/2), not clipped: above 1 the detectability behind p* was an underestimate."""
    margin = np.maximum(np.asarray(oracle, dtype=np.float64) - _CHANCE, _SMALLEST_MARGIN)
    return np.asarray((np.asarray(p_bar, dtype=np.float64) - _CHANCE) / margin)


def skill(p_bar: ArrayLike, oracle: ArrayLike) -> F64:
    """Share of the oracle's margin over chance that the Verifier reaches, 0 to 1. Args: p_bar and p* of one shape."""
    return np.clip(raw_skill(p_bar, oracle), 0.0, 1.0)


def learnability(arm: RewardName, p_bar: ArrayLike, oracle: ArrayLike, epsilon: float) -> F64:
    """What the Verifier can still gain from programs, under a reward arm.

    Args:    p_bar, oracle  solve rates of the Verifier and of the optimal test, one shape
             epsilon        band at the ends that earns nothing (selfplay.epsilon)
    Returns: the same shape, 0 to 1. `ours` alone pays most for a program the Verifier always fails: the gates have
             already removed what nobody can solve.
    Raises:  RewardError for an unknown arm.
    """
    p, best = np.asarray(p_bar, dtype=np.float64), np.asarray(oracle, dtype=np.float64)
    if arm == "ours":
        s = skill(p, best)
        return np.where(s < 1.0 - epsilon, 1.0 - s, 0.0)
    if arm == "azr":
        return np.where((p < epsilon) | (p > 1.0 - epsilon), 0.0, 1.0 - p)
    if arm == "sfl":
        return np.asarray(4.0 * p * (1.0 - p))
    if arm == "rzero":
        return np.asarray(1.0 - 2.0 * np.abs(p - 0.5))
    if arm == "regret":
        return np.maximum(best - p, 0.0)
    raise RewardError(f"selfplay.reward {arm!r}: choose ours, azr, sfl, rzero or regret")


def solver_learnability(success_rate: ArrayLike) -> F64:
    """Absolute Zero's rule, for the Solver, where no oracle is known: 1 - rate, but 0 at rate 0 and at rate 1.

    NaN (no answer yet) stays NaN.
    """
    rate = np.asarray(success_rate, dtype=np.float64)
    return np.where((rate <= 0.0) | (rate >= 1.0), 0.0, 1.0 - rate)


def proposer_reward(
    arm: RewardName,
    learnability_v: ArrayLike,
    *,
    gate_failed: ArrayLike = False,
    learnability_s: ArrayLike = np.nan,
    beta: float = 0.7,
    novelty: ArrayLike = 1.0,
    progress: ArrayLike = 0.0,
) -> F64:
    """Reward of programs; every argument is [P] or a scalar for all of them.

    Args:    arm             selfplay.reward; only `ours` is shaped, the arms of others pay learnability_v as it is
             learnability_v  of the Verifier;  learnability_s of the Solver, NaN where it gave no answer (beta is 1)
             gate_failed     ends the matter at -0.5; other arguments of such programs are not read
             beta            weight of learnability_v (selfplay.reward_beta)
             novelty         (0, 1], archive.Elites.novelty: a crowded cell halves the reward at most
             progress        learning progress of the program's stratum, -.5 to .5
    Returns: [P]
    """
    earned = np.asarray(learnability_v, dtype=np.float64)
    if arm == "ours":
        of_s = np.asarray(learnability_s, dtype=np.float64)
        mixed = np.where(np.isnan(of_s), earned, beta * earned + (1.0 - beta) * of_s)
        shaped = mixed * (0.5 + 0.5 * np.asarray(novelty, dtype=np.float64))
        earned = shaped + PROGRESS_WEIGHT * np.asarray(progress, dtype=np.float64)
    return np.where(np.asarray(gate_failed, dtype=bool), GATE_FAILED, earned)
