"""gg_ray.selfplay.game: each call is booked once, versions follow change, arms keep to their sources."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.nested import flatten, unflatten
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.scenario.grammar import Stratum, first_family
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game, solver_key, stratum_of
from gg_ray.selfplay.players import Answered, ProposerPlayer, SolverPlayer, Summary

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


def answer_to(game: Game, rate: float, d_eff: float) -> Answered:
    """An invented answer to the next question: every program has one rate and one detectability."""
    question = game.next_question()
    count = len(question.programs)
    return Answered(
        question=question, rates=[rate] * count, d_eff=[d_eff] * count, completions=12, dropped=1, made=2,
        made_plausible=1, lessons=[], solves=16 * count,
    )  # fmt: skip


def test_solver_rates_are_averaged_and_undefined_ones_ignored(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    game.settle(proposer.propose(game.order())[0])
    solves, seen = game.solves, game.counters.seen
    game.settle_answer(answer_to(game, float("nan"), 0.0))
    assert "solver_rate/case14" not in game.metrics()
    first = answer_to(game, 0.5, 0.0)
    game.settle_answer(first)
    assert game.metrics()["solver_rate/case14"] == pytest.approx(0.5)
    game.settle_answer(answer_to(game, 1.0, 0.0))
    assert 0.5 < game.metrics()["solver_rate/case14"] < 1.0
    assert game.answered == 3
    assert game.solver_stats == {"completions": 36, "dropped": 3, "made": 6, "made_plausible": 3}
    assert game.metrics()["solver/plausible_share"] == 0.5
    assert game.counters.rates()["G5"] == pytest.approx(3 / 9)
    assert game.counters.seen == seen, "completions are no programs"
    assert game.solves - solves == game.metrics()["selfplay/solves_solver"] == 16 * 3 * len(first.question.programs)


def test_the_solver_pays_by_kind_of_behaviour_and_not_before_it_answered(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    result = proposer.propose(game.order())[0]
    passed = [s for s in result.summaries if not s.gate]
    cells = [game.archive.cell_of(s.program, s.d_eff) for s in passed]
    plain = [game._reward(s, cell) for s, cell in zip(passed, cells, strict=True)]
    known = solver_key(cells[0])
    game.solver_success.add(known, 0.25)
    for summary, cell, before in zip(passed, cells, plain, strict=True):
        mixed = 0.7 * summary.learnability + 0.3 * 0.75
        assert game._reward(summary, cell) == pytest.approx(mixed if solver_key(cell) == known else before)
    assert len({solver_key(cell) for cell in cells}) > 1
    others = cells[0]._replace(d_bin=cells[0].d_bin + 1), cells[0]._replace(kind="A4")
    assert all(math.isnan(game.solver_success.get(solver_key(cell))) for cell in others)


@pytest.mark.parametrize("reward", ["azr", "sfl"])
def test_only_our_reward_is_shaped(reward: str, contexts: ContextSource) -> None:
    config = settings(**{"selfplay.reward": reward})
    game = Game(config)
    result = ProposerPlayer(config, contexts).propose(game.order())[0]
    for cell in (game.archive.cell_of(s.program, s.d_eff) for s in result.summaries if not s.gate):
        game.solver_success.add(solver_key(cell), 0.25)
    game.settle(result)
    rewards = {
        index: sample.reward for index, sample in zip(result.samples, game.queue._held, strict=True)
    }  # fmt: skip
    assert rewards
    for index, paid in rewards.items():
        summary = result.summaries[index]
        assert paid == (-0.5 if summary.gate else summary.learnability)


def test_families_show_what_was_measured_and_paid(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    summaries = [s for _ in range(4) for s in proposed(game, proposer) if not s.gate]
    shown = game.metrics()
    for family in game.families:
        mine = [s for s in summaries if first_family(s.program) == family]
        if not mine:
            assert f"p_bar/{family}" not in shown
            assert f"learnability/{family}" not in shown
            continue
        p_bar, paid = mine[0].p_bar, mine[0].learnability
        for s in mine[1:]:
            p_bar, paid = 0.95 * p_bar + 0.05 * s.p_bar, 0.95 * paid + 0.05 * s.learnability
        assert shown[f"p_bar/{family}"] == pytest.approx(p_bar)
        assert shown[f"learnability/{family}"] == pytest.approx(paid)
    raw = [(s.p_bar - 0.5) / (s.p_star - 0.5) for s in summaries if s.d_eff > 0]
    assert shown["skill/raw_p95"] == pytest.approx(np.percentile(raw, 95))


def proposed(game: Game, player: ProposerPlayer) -> list[Summary]:
    result = player.propose(game.order())[0]
    game.settle(result)
    return result.summaries


def test_skill_is_booked_by_what_a_program_is(proposer: ProposerPlayer) -> None:
    """Where the grammar has no word of a family it writes a benign program: that is no skill in the family."""
    game = Game(settings())
    result = proposer.propose(game.order())[0]
    benign = next(s for s in result.summaries if not s.gate and not first_family(s.program))
    ordered = replace(benign, stratum=Stratum("anomalous", "A4", "case14"), skill=1.0)
    game.settle(replace(result, summaries=[ordered], samples={}))
    assert game.scheduler.skill_of(ordered.stratum) is None
    assert game.scheduler.skill_vector().max() == 0.0
    assert game.scheduler.skill_of(stratum_of(game.archive.cell_of(benign.program, 0.0))) == 1.0
    assert not game.learnability.values


def test_a_repeated_program_earns_nothing_and_is_no_sample(proposer: ProposerPlayer) -> None:
    game = Game(settings())
    result = proposer.propose(game.order())[0]
    game.settle(result)
    put = game.queue.put_count
    passed = {index for index, s in enumerate(result.summaries) if not s.gate}
    game.settle(result)
    assert game.queue.put_count - put == len(result.samples.keys() - passed), "only those that failed before G6"
    assert all(passed == 0 for _, passed in game.counters.by_family.values()) is (game.counters.passed == 0)
    assert sum(passed for _, passed in game.counters.by_family.values()) == game.counters.passed


def test_a_full_cell_stops_further_programs_and_the_negative_control_has_no_such_gate(
    proposer: ProposerPlayer,
) -> None:
    crowded = Game(settings(**{"scenario.cell_cap": 1}))
    free = Game(settings(**{"scenario.cell_cap": 1, "scenario.gates": "off"}))
    for _ in range(6):
        order = crowded.order()
        result = proposer.propose(order)[0]
        for game in (crowded, free):
            game.settle(result)
    assert crowded.counters.stopped["G6"] > 0
    assert crowded.metrics()["selfplay/fullest_cell"] == 1.0
    assert free.counters.stopped["G6"] == 0
    assert crowded.counters.passed + sum(crowded.counters.stopped.values()) == crowded.counters.seen


def test_every_power_flow_row_is_counted(contexts: ContextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second worlds of hidden events, repeats of gate G2 and the Solver's own executions: counted at the engine."""
    rows = [0]
    solve = PowerFlow.solve

    def counting(self: PowerFlow, load_p: np.ndarray, *rest: Any) -> Any:
        rows[0] += len(load_p)
        return solve(self, load_p, *rest)

    monkeypatch.setattr(PowerFlow, "solve", counting)
    config = settings(**{"scenario.recheck_share": 1.0, "scenario.fold": 1})
    game = Game(config)
    proposer, solver = ProposerPlayer(config, contexts), SolverPlayer(config, contexts)
    extra = 0
    for turn in range(4):
        game.settle(proposer.propose(game.order())[0])
        # the first call also solves a few rows once and for all: where executors begin, where estimators are linear
        extra = rows[0] - game.solves if turn == 0 else extra
        assert game.solves == rows[0] - extra
        game.settle_answer(solver.answer(game.next_question())[0])
        extra = rows[0] - game.solves if turn == 0 else extra
        assert game.solves == rows[0] - extra
    assert 0 <= extra < 16, "a scan too few"
    shown = game.metrics()
    assert shown["selfplay/solves_recheck"] == (game.solves - shown["selfplay/solves_solver"]) / 2
    assert shown["selfplay/solves_recheck"] > game.programs * config.scenario.scans, "some programs have two worlds"


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
