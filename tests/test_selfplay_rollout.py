"""gg_ray.selfplay.rollout: outcomes that own their memory, pairs, skill formulas, independence of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.learner import new_verifier
from gg_ray.records import Program
from gg_ray.scenario.context import context_source
from gg_ray.scenario.grammar import Stratum
from gg_ray.selfplay.rollout import STATE_SCANS, Outcome, Rollout, pair_id
from gg_ray.verifier.model import Verifier

FAMILIES = ("S2", "S3", "T2", "A2")


def settings(**changes: Any) -> RunConfig:
    return load("smoke", {"scenario.cases": ["case14"], "scenario.recheck_share": 0.0} | changes)


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return Rollout(settings(), context_source(None))


@pytest.fixture(scope="module")
def programs(rollout: Rollout) -> list[Program]:
    grammar = rollout.executor("case14").grammar
    rng = np.random.default_rng(5)
    strata = [Stratum("anomalous", FAMILIES[i % 4], "case14") for i in range(12)]
    strata += [Stratum(side, "", "case14") for side in ("hard", "ordinary", "hard")]
    return [
        Program(
            case="case14", context_id=i, plan_id=i % 2, events=grammar.uniform(stratum, i % 2, rng), scans=16,
            seed=1000 + i,
        )
        for i, stratum in enumerate(strata)
    ]  # fmt: skip


class Stub:
    """A network that gives every window of a batch the logit that a rule says."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def eval(self) -> Stub:
        return self

    def __call__(self, batch: Any) -> Any:
        return type("Output", (), {"implausible": self.rule(batch)})


def shout(logit: float) -> Any:
    return Stub(lambda batch: torch.full((batch.n_graphs,), logit))


def run(rollout: Rollout, programs: list[Program], network: Any) -> list[Outcome]:
    return rollout.run(programs, network, 7, np.random.default_rng(0))


@pytest.fixture(scope="module")
def network() -> Verifier:
    return new_verifier(settings().verifier, 3).eval()


@pytest.fixture(scope="module")
def outcomes(rollout: Rollout, programs: list[Program], network: Verifier) -> list[Outcome]:
    return run(rollout, programs, network)


def test_enough_programs_pass_for_this_file_to_mean_something(outcomes: list[Outcome]) -> None:
    passed = [o for o in outcomes if not o.gate]
    assert sum(o.d_eff > 0 for o in passed) >= 5
    assert sum(o.d_eff == 0 for o in passed) >= 2
    assert all(not o.experiences for o in outcomes if o.gate)


def test_experiences_own_their_memory(outcomes: list[Outcome]) -> None:
    items = [e for o in outcomes for e in o.experiences]
    for item in items:
        for name in ("node_TNF", "edge_TEF", "xhat_N2", "states_SN2", "meas_N2", "sigma_N2", "param_E3", "jac_NJ"):
            array = getattr(item, name)
            assert array.base is None or array.base.nbytes == array.nbytes, f"{name} keeps a whole batch alive"
    before = items[1].node_TNF.copy()
    kept = items[0].node_TNF.copy()
    items[0].node_TNF[:] = 9.0
    np.testing.assert_array_equal(items[1].node_TNF, before)
    items[0].node_TNF[:] = kept


def test_a_window_and_its_twin_share_a_pair_number_of_their_own(outcomes: list[Outcome], rollout: Rollout) -> None:
    seen = set()
    for outcome in outcomes:
        if not outcome.experiences:
            continue
        anomalous = outcome.d_eff > 0
        assert len(outcome.experiences) == rollout.config.scenario.realisations * (2 if anomalous else 1)
        if not anomalous:
            assert all(item.pair == -1 for item in outcome.experiences)
            assert not any(item.labels.implausible for item in outcome.experiences)
            continue
        for k in range(rollout.config.scenario.realisations):
            main, twin = outcome.experiences[2 * k : 2 * k + 2]
            assert main.pair == twin.pair == pair_id(outcome.program, k)
            assert main.labels.implausible
            assert not twin.labels.implausible
            assert twin.labels.type == 0
            assert main.pair not in seen
            assert 0 <= main.pair < 1 << 62
            seen.add(main.pair)
            # same noise: most of what both show is the same
            assert (main.node_TNF == twin.node_TNF).mean() > 0.2
    assert all(item.version == 7 for o in outcomes for item in o.experiences)


def test_states_are_the_last_scans_relative_to_the_slack(outcomes: list[Outcome], rollout: Rollout) -> None:
    slack = rollout.executor("case14").case.slack
    for item in (e for o in outcomes for e in o.experiences):
        assert item.states_SN2.shape == (STATE_SCANS, 14, 2)
        np.testing.assert_allclose(item.states_SN2[:, slack, 1], 0.0, atol=1e-7)
        assert np.abs(item.states_SN2[..., 0]).max() < 0.5


@pytest.mark.parametrize("logit", [20.0, -20.0], ids=["always shouts", "never shouts"])
def test_a_network_that_says_the_same_of_everything_has_no_skill(
    logit: float, rollout: Rollout, programs: list[Program]
) -> None:
    for outcome in run(rollout, programs, shout(logit)):
        if outcome.gate:
            continue
        if outcome.d_eff > 0:
            assert outcome.p_bar == pytest.approx(0.5, abs=1e-6)  # right on one of each pair
            assert outcome.p_star == pytest.approx(norm.cdf(outcome.d_eff / 2))
            assert outcome.skill == 0.0
            assert outcome.learnability == pytest.approx(1.0, abs=1e-6)
        else:
            assert outcome.p_bar == pytest.approx(0.0 if logit > 0 else 1.0, abs=1e-6)
            assert outcome.skill == (0.0 if logit > 0 else 1.0)


def test_half_certainty_gives_the_textbook_skill(rollout: Rollout, programs: list[Program]) -> None:
    """P = .75 on the attacked window, .25 on its twin: p_bar .75, skill (.75 - .5) / (p* - .5)."""
    odds = float(np.log(3.0))

    def alternate(batch: Any) -> torch.Tensor:
        # windows of a program come main, twin, main, twin
        return odds * (1.0 - 2.0 * (torch.arange(batch.n_graphs) % 2))

    attacks = [p for p in programs[:12] if p.plan_id == 0]
    met = 0
    for outcome in run(rollout, attacks, Stub(alternate)):
        if outcome.gate or outcome.d_eff == 0:
            continue
        met += 1
        best = norm.cdf(outcome.d_eff / 2)
        assert outcome.p_bar == pytest.approx(0.75, abs=1e-6)
        assert outcome.skill == pytest.approx(min(1.0, 0.25 / (best - 0.5)), abs=1e-6)
        assert outcome.learnability == pytest.approx(1.0 - outcome.skill, abs=1e-6)
        assert all(e.learnability == outcome.learnability and e.p_bar == outcome.p_bar for e in outcome.experiences)
    assert met >= 2


def test_an_outcome_does_not_depend_on_its_batch_mates(
    rollout: Rollout, programs: list[Program], network: Verifier, outcomes: list[Outcome]
) -> None:
    for pick in ([0], [3, 1], list(range(len(programs)))[::-1]):
        for index, outcome in zip(pick, run(rollout, [programs[i] for i in pick], network), strict=True):
            expected = outcomes[index]
            assert outcome.gate == expected.gate
            assert outcome.d_eff == pytest.approx(expected.d_eff, rel=1e-6)
            assert outcome.p_bar == pytest.approx(expected.p_bar, abs=1e-4)
            for one, two in zip(outcome.experiences, expected.experiences, strict=True):
                # float16 features: one unit in the last place where the float64 values straddle a rounding
                np.testing.assert_allclose(one.node_TNF, two.node_TNF, rtol=2e-3, atol=2e-3)
                np.testing.assert_allclose(one.states_SN2, two.states_SN2, atol=1e-6)
                np.testing.assert_array_equal(one.labels.node_N, two.labels.node_N)


def test_blocks_of_a_large_batch_score_as_one(rollout: Rollout, programs: list[Program], network: Verifier) -> None:
    from gg_ray.selfplay import rollout as module

    executor = rollout.executor("case14")
    attempt = next(a for a in executor.run(programs[:1]) if a.main is not None)
    windows = [executor.realise(attempt, k)[0] for k in range(9)]
    features = rollout.featurizer.features(rollout.featurizer.prepare(windows, attempt.plan))
    whole = module.score(network, "case14", features)
    np.testing.assert_allclose(module.score(network, "case14", features, block=0), whole, atol=1e-6)
    assert whole.shape == (9,)
    assert ((whole > 0) & (whole < 1)).all()
