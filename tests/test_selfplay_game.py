"""gg_ray.selfplay.game: each call is booked once, versions follow change, arms keep to their sources."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.nested import flatten, unflatten
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import Answered, ProposerPlayer, SolverPlayer

SMALL = {"scenario.cases": ["case14"], "scenario.realisations": 1, "replay.min_size": 8, "selfplay.programs": 6}


def settings(**changes: Any) -> RunConfig:
    return load("smoke", SMALL | changes)


@pytest.fixture(scope="module")
def contexts() -> ContextSource:
    return context_source(None)


@pytest.fixture(scope="module")
def proposer(contexts: ContextSource) -> ProposerPlayer:
    return ProposerPlayer(settings(), contexts)


def test_every_order_is_settled_or_lost_once(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    orders = [game.order() for _ in range(3)]
    assert [order.call_id for order in orders] == [0, 1, 2]
    keep = game.settle(proposer.propose(orders[1])[0])
    question = game.question()
    assert question is not None
    assert question.call_id == 0
    assert len(question.programs) <= len(keep)
    game.settle_lost()
    assert (game.calls, game.settled, game.lost) == (3, 1, 1)
    game.forget_running()
    assert game.calls + game.questions == game.settled + game.answered + game.lost == 4
    game.forget_running()
    assert game.lost == 3, "counted once"
    assert game.order().call_id == 3, "a lost id is not used again"


def test_settle_keeps_what_passed_and_nothing_twice(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    result, windows = proposer.propose(game.order())
    keep = game.settle(result)
    assert keep == [i for i, s in enumerate(result.summaries) if not s.gate]
    assert all(len(windows[i]) == result.summaries[i].windows > 0 for i in keep)
    assert game.inserted == sum(result.summaries[i].windows for i in keep)
    assert len(game.queue) == len(result.samples)
    passed = game.counters.passed
    assert game.settle(result) == [], "gate G6: executed before"
    assert game.counters.stopped["G6"] == len(keep)
    assert game.counters.passed == passed
    assert game.counters.passed + sum(game.counters.stopped.values()) == game.counters.seen


def test_an_order_depends_on_the_state_and_its_number_alone() -> None:
    one, two = Game(settings()), Game(settings())
    for _ in range(3):
        assert one.order() == two.order()
    other = Game(settings(seed=5))
    assert [other.order().assignment for _ in range(3)] != [Game(settings()).order().assignment] * 3


def test_no_question_before_a_program_is_known() -> None:
    assert Game(settings()).question() is None


def filled(config: RunConfig, contexts: ContextSource) -> tuple[Game, Buffer, ProposerPlayer]:
    game, buffer, player = Game(config), Buffer(config), ProposerPlayer(config, contexts)
    while not buffer.may_draw() or (game.config.selfplay.arm == "selfplay" and len(game.queue) < 4):
        result, windows = player.propose(game.order())
        buffer.insert_kept(windows, game.settle(result), 0, batch_id=result.order.call_id)
    return game, buffer, player


@pytest.fixture(scope="module")
def played(contexts: ContextSource) -> tuple[Game, Buffer, ProposerPlayer]:
    return filled(settings(**{"proposer.batch": 4, "learner.solver_every": 2}), contexts)


def test_versions_rise_only_for_networks_that_changed(
    played: tuple[Game, Buffer, ProposerPlayer], contexts: ContextSource
) -> None:
    game, buffer, _ = played
    assert game.versions == {"verifier": 0, "proposer": 0, "solver": 0}
    assert set(game.publish()) == {"verifier"}
    game.learn(buffer.draw())
    assert game.policy.updates == 1
    assert game.solver.steps == 0, "no lessons yet"
    assert set(game.publish()) == {"verifier", "proposer"}
    assert game.versions == {"verifier": 2, "proposer": 1, "solver": 0}
    solver = SolverPlayer(game.config, contexts)
    while len(game.lessons) < 16:
        question = game.question()
        assert question is not None
        game.settle_answer(solver.answer(question)[0])
    steps = 0
    while not game.solver.steps:
        game.learn(buffer.draw())
        steps += 1
        assert steps <= 2
    weights = game.publish()
    assert "solver" in weights
    assert game.versions["solver"] == 1
    for name, value in game.all_weights()["solver"].items():
        np.testing.assert_array_equal(weights["solver"][name], value)
    again = game.publish()
    assert set(again) == {"verifier"}


def test_learning_returns_a_priority_for_each_window(played: tuple[Game, Buffer, ProposerPlayer]) -> None:
    game, buffer, _ = played
    step, draw = game.step, buffer.draw()
    priorities = game.learn(draw)
    assert game.step == step + 1
    assert priorities.shape == (game.config.learner.batch,)
    assert ((priorities >= 0) & (priorities <= 1)).all()
    buffer.reprioritise(draw.keys, draw.generations, priorities)
    metrics = game.metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"loss/total", "gate/pass", "selfplay/programs", "skill/S2", "policy/queue_held"} <= set(metrics)
    assert not {"skill/S1", "skill/T1", "skill/A1"} & set(metrics), "held out of fold 0"


@pytest.mark.parametrize("arm", ["uniform", "plr"])
def test_arms_without_a_policy_write_no_policy_programs(arm: str, contexts: ContextSource) -> None:
    config = settings(**{"selfplay.arm": arm, "actors.solvers": 0, "selfplay.mutation_share": 0.5})
    game, buffer, player = filled(config, contexts)
    assert not game.plays_solver
    order = game.order()
    assert set(order.assignment.sources) == {"uniform"}
    result, windows = player.propose(order)
    assert result.samples == {}
    assert {e.source for items in windows for e in items} <= {"uniform"}
    before = game.policy.proposer.state_dict()
    game.learn(buffer.draw())
    assert game.policy.updates == 0
    assert set(game.publish()) == {"verifier"}
    for name, value in game.policy.proposer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
    mix = {type(selector).__name__: share for selector, share in buffer._mix}
    assert ("Rank" in mix) == (arm == "plr")


def test_solver_rates_are_averaged_and_undefined_ones_ignored(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    game.settle(proposer.propose(game.order())[0])
    question = game.question()
    assert question is not None
    rates = [float("nan"), 0.5, 1.0]
    game.settle_answer(Answered(question=question, rates=rates, completions=12, dropped=1, made=2, lessons=[]))
    assert game.solver_rate["case14"] == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)
    assert game.answered == 1
    assert game.solver_stats == {"completions": 12, "dropped": 1, "made": 2}
    assert game.inserted >= 2


def test_state_round_trip_gives_the_same_future(played: tuple[Game, Buffer, ProposerPlayer]) -> None:
    game, _, player = played
    back = Game(game.config)
    back.load_state_dict(unflatten(flatten(game.state_dict())))
    one, two = game.order(), back.order()
    assert one == two
    result = player.propose(one)[0]
    assert game.settle(result) == back.settle(result)
    assert game.question() == back.question()
    shown = back.metrics()
    assert shown == {name: game.metrics()[name] for name in shown}
    assert {name for name in game.metrics() if name.startswith(("gate/", "selfplay/", "skill/"))} <= set(shown)
