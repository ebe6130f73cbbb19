"""Policy update: baselines, expiry, exact resume, and the two regressions: the frontier and the noise trap."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from gg_ray.config import ProposerConfig, ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.nested import flatten, unflatten
from gg_ray.records import Event
from gg_ray.scenario.grammar import D_EDGES, Grammar, Stratum
from gg_ray.selfplay.legal import HEADS, encode_case
from gg_ray.selfplay.policy_update import (
    OWN_BATCH,
    Baseline,
    PolicyQueue,
    PolicySample,
    ProposerLearner,
    advantage_key,
    stratum_advantages,
)
from gg_ray.selfplay.proposer import Proposer
from gg_ray.selfplay.rewards import learnability, p_star, proposer_reward


def sample(policy_version: int = 0, verifier_version: int = 0, reward: float = 0.0, mark: int = 0) -> PolicySample:
    tokens = np.full((3, 6), -1)
    tokens[0] = [mark, 0, 2, 0, 0, 0]
    return PolicySample(
        stratum=Stratum("ordinary", "", "case14"), plan_id=mark, context=(1.0, 0.5), skill=(0.1,) * 12,
        exemplars=((Event("bias", 3, 4, 8, 2, 0),), ()), tokens=tokens, logp=-3.25, reward=reward,
        policy_version=policy_version, verifier_version=verifier_version,
    )  # fmt: skip


# advantages


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-1, 1)), min_size=1, max_size=60))
def test_stratum_means_of_advantages_are_zero(rows: list[tuple[str, float]]) -> None:
    keys, rewards = [key for key, _ in rows], np.array([reward for _, reward in rows])
    advantage = stratum_advantages(rewards, keys, {}, clip=1e9)
    for key in set(keys):
        members = np.array([k == key for k in keys])
        if members.sum() >= OWN_BATCH:
            assert abs(advantage[members].mean()) < 1e-6
            if rewards[members].std() > 1e-3:
                assert advantage[members].std() == pytest.approx(1.0, abs=2e-3)


def test_a_stratum_that_always_earns_more_has_no_advantage_over_others() -> None:
    rng = np.random.default_rng(0)
    keys = ["easy"] * 20 + ["hard"] * 20
    rewards = np.concatenate([rng.normal(5.0, 0.1, 20), rng.normal(-5.0, 0.1, 20)])
    advantage = stratum_advantages(rewards, keys, {})
    assert abs(advantage[:20].mean() - advantage[20:].mean()) < 1e-9


def test_rare_strata_use_what_was_seen_before() -> None:
    ema: dict[str, Baseline] = {}
    rng = np.random.default_rng(1)
    assert stratum_advantages([0.7], ["rare"], ema)[0] == 0.0
    for _ in range(400):
        stratum_advantages(rng.normal(0.4, 0.2, 3), ["rare"] * 3, ema)
    got = stratum_advantages([0.6, 0.2], ["rare"] * 2, ema)
    np.testing.assert_allclose(got, [1.0, -1.0], atol=0.35)
    assert ema["rare"].mean == pytest.approx(0.4, abs=0.06)


def test_advantages_are_clipped_and_bad_rewards_are_named() -> None:
    rewards = np.zeros(200)
    rewards[0] = 1.0
    assert stratum_advantages(rewards, ["a"] * 200, {}).max() == 3.0
    with pytest.raises(ValueError, match="nan of a b program"):
        stratum_advantages([0.0, float("nan")], ["a", "b"], {})
    with pytest.raises(ValueError, match="2 strata keys"):
        stratum_advantages([0.0], ["a", "b"], {})


def test_baseline_keys_hold_only_what_the_scheduler_decides() -> None:
    key = advantage_key
    assert key(Stratum("anomalous", "S1", "x"), 14) == key(Stratum("anomalous", "S4", "y"), 30)
    assert key(Stratum("anomalous", "T4", "x"), 14) != key(Stratum("anomalous", "T1", "x"), 14)
    assert key(Stratum("anomalous", "", "x"), 14) == "deduction/anomalous/small"
    assert len({key(Stratum("hard", "", "x"), n) for n in (14, 118, 2062)}) == 3
    assert key(Stratum("hard", "", "x"), 14) != key(Stratum("hard", "", "x", "induction"), 14)


# queue


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 14)), max_size=30))
def test_queue_counts_every_exit_and_never_hands_out_stale_samples(moves: list[tuple[int, int, int]]) -> None:
    config = ProposerConfig(batch=8)
    queue = PolicyQueue(config)
    policy = verifier = marks = put = 0
    for count, policy_step, verifier_step in moves:
        queue.put([sample(policy, verifier, mark=marks + i) for i in range(count)])
        marks += count
        put += count
        policy += policy_step // 4
        verifier += verifier_step // 3
        got = queue.take(policy, verifier)
        assert len(got) in (0, 8)
        assert all(policy - s.policy_version <= 2 and verifier - s.verifier_version <= 10 for s in got)
        assert [s.plan_id for s in got] == sorted(s.plan_id for s in got)
        assert len(queue) <= queue.capacity
        assert put == queue.put_count == queue.taken + queue.dropped_capacity + queue.dropped_lag + len(queue)


def test_queue_drops_by_either_lag_and_keeps_the_newest() -> None:
    queue = PolicyQueue(ProposerConfig(batch=2))
    queue.put([sample(0, 0, mark=0), sample(3, 0, mark=1), sample(0, 5, mark=2), sample(3, 5, mark=3)])
    assert queue.take(3, 11) == []
    assert queue.dropped_lag == 3
    queue.put([sample(3, 5, mark=mark) for mark in range(4, 9)])
    assert queue.dropped_capacity == 2
    assert [s.plan_id for s in queue.take(3, 11)] == [5, 6]


def test_queue_state_round_trip_through_json() -> None:
    queue = PolicyQueue(ProposerConfig(batch=2))
    queue.put([sample(mark=1), sample(2, 3, 0.75, mark=2), sample(mark=3)])
    queue.take(0, 0)
    copy = PolicyQueue(ProposerConfig(batch=2))
    copy.load_state_dict(json.loads(json.dumps(queue.state_dict())))
    assert copy.state_dict() == queue.state_dict()
    assert copy.metrics() == queue.metrics()
    queue.put([sample(mark=4)])
    copy.put([sample(mark=4)])
    for one, two in zip(queue.take(0, 0), copy.take(0, 0), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        assert replace(one, tokens=two.tokens) == two


# learner


class Game:
    """Programs of one family on case14, rewarded as a function of the target d_eff of the first event."""

    def __init__(
        self,
        reward: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        *,
        gates: str = "on",
        seed: int = 0,
        **settings: object,
    ) -> None:
        torch.manual_seed(seed)
        self.config = ProposerConfig(**{"batch": 64, "lr": 1e-2, "entropy": 0.01, **settings})  # type: ignore[arg-type]
        self.grammar = Grammar(load_case("case14"), ScenarioConfig(max_events=1, gates=gates))  # type: ignore[arg-type]
        self.encoding = encode_case(self.grammar.case)
        self.learner = ProposerLearner(Proposer(self.config), self.config, total_updates=150)
        self.reward = reward
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.strata = [Stratum("anomalous", "S2", "case14")] * self.config.batch

    def play(self) -> tuple[list[PolicySample], NDArray[np.float64]]:
        count = len(self.strata)
        context, skill = torch.full((count, 2), 0.5), torch.zeros(12)
        drafts = self.learner.proposer.sample(
            self.encoding, self.grammar, self.strata, [0] * count, context, skill, [], self.generator
        )
        bins = np.array([draft.events[0].magnitude for draft in drafts])
        d = self.rng.uniform(D_EDGES[bins], D_EDGES[bins + 1])
        samples = [
            PolicySample(
                stratum=stratum, plan_id=0, context=(0.5, 0.5), skill=(0.0,) * 12, exemplars=(), tokens=draft.tokens,
                logp=draft.logp, reward=float(reward), policy_version=0, verifier_version=0,
            )
            for draft, stratum, reward in zip(drafts, self.strata, self.reward(d), strict=True)
        ]  # fmt: skip
        return samples, d

    def run(self, updates: int) -> NDArray[np.float64]:
        """Detectabilities of the last five batches."""
        seen = []
        for _ in range(updates):
            samples, d = self.play()
            self.learner.update(samples, {"case14": self.grammar})
            seen.append(d)
        return np.concatenate(seen[-5:])


def ours(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gate at 3, Verifier of 40 % of the oracle's sensitivity: the frontier is just above the gate."""
    value = learnability("ours", ndtr(0.4 * d / 2), p_star(d), 0.05)
    return proposer_reward("ours", value, gate_failed=d < 3.0)


def azr_without_gates(d: NDArray[np.float64]) -> NDArray[np.float64]:
    return proposer_reward("azr", learnability("azr", ndtr(0.4 * d / 2), p_star(d), 0.05))


def test_the_policy_moves_to_the_known_frontier() -> None:
    game = Game(ours)
    first = game.play()[1]
    last = game.run(150)
    # below the gate only what the uniform tenth and the bin that straddles it bring
    assert (last < 3.0).mean() < 0.15
    assert 3.0 <= np.median(last) < 4.5
    assert np.median(first) > 7.0
    assert game.reward(last).mean() > game.reward(first).mean() + 0.2


def test_without_gates_absolute_zero_reward_falls_into_noise() -> None:
    game = Game(azr_without_gates, gates="off")
    first = game.play()[1]
    last = game.run(150)
    assert np.median(first) > 2.5
    assert np.median(last) < 1.0
    assert (last < 3.0).mean() > 0.8


def test_first_ratio_is_one_and_metrics_are_complete() -> None:
    game = Game(ours)
    metrics = game.learner.update(game.play()[0], {"case14": game.grammar})
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["ratio_clip_share"] == 0.0
    assert metrics["skipped"] == 0.0
    assert metrics["grad_norm"] > 0
    assert {f"entropy_{head}" for head in HEADS} <= set(metrics)
    assert metrics["entropy_coefficient"] == 0.01


def test_entropy_coefficient_is_annealed_and_then_stays() -> None:
    game = Game(ours, entropy=0.03, entropy_end=0.005)
    values = []
    for updates in (0, 75, 150, 1000):
        game.learner.updates = updates
        values.append(game.learner.entropy_coefficient())
    np.testing.assert_allclose(values, [0.03, 0.0175, 0.005, 0.005])


def test_samples_far_outside_the_clip_do_not_move_the_policy() -> None:
    """Ratio above 1 + clip with a positive advantage, below 1 - clip with a negative one: no gradient but entropy's."""
    game = Game(ours, entropy=0.0, entropy_end=0.0)
    samples = game.play()[0]
    half = len(samples) // 2
    moved = [
        replace(s, logp=s.logp - 2.0, reward=1.0) if i < half else replace(s, logp=s.logp + 2.0, reward=0.0)
        for i, s in enumerate(samples)
    ]
    metrics = game.learner.update(moved, {"case14": game.grammar})
    assert metrics["ratio_clip_share"] == 1.0
    assert metrics["grad_norm"] == 0.0


def test_a_batch_may_mix_grids() -> None:
    torch.manual_seed(0)
    config = ProposerConfig(batch=8)
    learner = ProposerLearner(Proposer(config), config, 10)
    grammars = {name: Grammar(load_case(name), ScenarioConfig()) for name in ("case14", "case30")}
    samples = []
    for number in range(8):
        name = ("case14", "case30")[number % 2]
        stratum = Stratum("anomalous", "A2", name)
        shown = ((Event("bias", number, 4, 8, 2, 0),),)
        skill = tuple(np.linspace(0, number / 8, 12))
        draft = learner.proposer.sample(
            encode_case(grammars[name].case), grammars[name], [stratum], [number], torch.tensor([[1.0, number / 8]]),
            torch.tensor(skill, dtype=torch.float32), shown, torch.Generator().manual_seed(number),
        )[0]  # fmt: skip
        samples.append(
            PolicySample(
                stratum=stratum, plan_id=number, context=(1.0, number / 8), skill=skill, exemplars=shown,
                tokens=draft.tokens, logp=draft.logp, reward=number / 8, policy_version=0, verifier_version=0,
            )
        )  # fmt: skip
    metrics = learner.update(samples, grammars)
    # every sample is re-evaluated under its own conditions, or the ratio would not be one
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["ratio_clip_share"] == 0.0
    with pytest.raises(ValueError, match="no grammar for case30"):
        learner.update(samples, {"case14": grammars["case14"]})
    with pytest.raises(ValueError, match="empty"):
        learner.update([], grammars)


def test_resume_continues_bit_for_bit() -> None:
    straight, stopped = Game(ours), Game(ours)
    straight.run(4)
    stopped.run(2)
    resumed = Game(ours, seed=99)
    resumed.learner.load_state_dict(unflatten(flatten(stopped.learner.state_dict())))
    resumed.generator, resumed.rng = stopped.generator, stopped.rng
    resumed.run(2)
    one, two = straight.learner.state_dict(), resumed.learner.state_dict()
    assert one["updates"] == two["updates"] == 4
    assert one["baselines"] == two["baselines"]
    for name, weight in one["proposer"].items():
        assert torch.equal(weight, two["proposer"][name]), name
