"""gg_ray.selfplay.players: hidden readings are really hidden, and gate G5 labels what the Solver makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.nested import flatten, unflatten
from gg_ray.records import Program, Window
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.scenario.gates import GateCounters
from gg_ray.scenario.grammar import Stratum
from gg_ray.selfplay.blocks import Block, draw_block, draw_size, hide, meter_ends
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import ProposerPlayer, Question, SolverPlayer, as_held, new_proposer, new_solver

SPAN = 4


def settings(**changes: Any) -> RunConfig:
    return load("smoke", {"scenario.cases": ["case14"], "scenario.realisations": 1, "selfplay.programs": 6} | changes)


@pytest.fixture(scope="module")
def contexts() -> ContextSource:
    return context_source(None)


@pytest.fixture(scope="module")
def solver(contexts: ContextSource) -> SolverPlayer:
    return SolverPlayer(settings(), contexts)


@pytest.fixture(scope="module")
def attempts(solver: SolverPlayer) -> list[Attempt]:
    executor = solver.rollout.executor("case14")
    rng = np.random.default_rng(2)
    programs = [
        Program(
            case="case14", context_id=i, plan_id=0, scans=16, seed=50 + i,
            events=executor.grammar.uniform(Stratum(side, "S2" if side == "anomalous" else "", "case14"), 0, rng),
        )
        for i, side in enumerate(("ordinary", "hard", "anomalous", "anomalous"))
    ]  # fmt: skip
    out = [a for a in executor.run(programs) if a.main is not None]
    assert len(out) >= 3
    return out


def block_of(solver: SolverPlayer, attempt: Attempt, meters: int = 6) -> tuple[Window, Block]:
    executor = solver.rollout.executor("case14")
    window = executor.realise(attempt, 1)[0]
    hops = executor.fleet.near.hops(3)
    return window, draw_block(window, executor.case, attempt.plan, hops, meters, SPAN, np.random.default_rng(0))


def test_a_block_is_the_nearest_meters_that_were_read(solver: SolverPlayer, attempts: list[Attempt]) -> None:
    executor = solver.rollout.executor("case14")
    case, plan = executor.case, attempts[0].plan
    window, block = block_of(solver, attempts[0])
    assert block.meters.size == 6
    assert np.all(np.diff(block.meters) > 0)
    assert np.isfinite(window.z_TM[-SPAN:, block.meters]).all()
    near, far = meter_ends(case, plan)
    bus, branch = plan.layout.owner()
    for meter, channel in enumerate(plan.channels):
        ends = (bus[channel],) * 2 if bus[channel] >= 0 else (case.f_bus[branch[channel]], case.t_bus[branch[channel]])
        assert (near[meter], far[meter]) == ends
    hops = executor.fleet.near.hops(3)
    distance = hops[near] + hops[far]
    rest = np.setdiff1d(np.flatnonzero(np.isfinite(window.z_TM[-SPAN:]).all(axis=0)), block.meters)
    assert distance[block.meters].max() <= distance[rest].min()
    flags = block.flags(case, plan)
    assert set(np.flatnonzero(flags)) == {*near[block.meters], *far[block.meters]}
    everything = draw_block(window, case, plan, hops, 10_000, SPAN, np.random.default_rng(0))
    assert everything.meters.size == rest.size + 6


def test_sizes_of_blocks_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    sizes = np.bincount([draw_size(8, rng) for _ in range(4000)], minlength=10)
    assert sizes[0] == sizes[9] == 0
    assert (np.diff(sizes[1:9]) < 60).all(), "small ones more often"
    assert sizes[8] > 100
    assert {draw_size(1, rng) for _ in range(20)} == {1}


def test_a_meter_that_was_silent_is_not_asked_for(solver: SolverPlayer, attempts: list[Attempt]) -> None:
    window, block = block_of(solver, attempts[0], meters=10_000)
    silent = replace(window, z_TM=window.z_TM.copy())
    silent.z_TM[-2, block.meters[0]] = np.nan
    executor = solver.rollout.executor("case14")
    hops = executor.fleet.near.hops(3)
    found = draw_block(silent, executor.case, attempts[0].plan, hops, 10_000, SPAN, np.random.default_rng(0))
    assert found.meters.tolist() == block.meters[1:].tolist()


def test_hidden_readings_change_nothing_in_a_lesson(solver: SolverPlayer, attempts: list[Attempt]) -> None:
    for attempt in attempts:
        assert attempt.main is not None
        window, block = block_of(solver, attempt)
        other = replace(window, z_TM=window.z_TM.copy())
        other.z_TM[-SPAN:, block.meters] += np.random.default_rng(0).normal(0, 5, (SPAN, block.meters.size))
        one = solver._experience(attempt, attempt.main, hide(window, block))
        two = solver._experience(attempt, attempt.main, hide(other, block))
        seen = solver._experience(attempt, attempt.main, window)
        for name in ("node_TNF", "edge_TEF", "xhat_N2", "meas_N2", "sigma_N2", "param_E3", "jac_NJ"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert (one.node_TNF != seen.node_TNF).any() or (one.edge_TEF != seen.edge_TEF).any()


def test_hiding_makes_readings_old_not_fresh(solver: SolverPlayer, attempts: list[Attempt]) -> None:
    window, block = block_of(solver, attempts[0])
    hidden = block.meters
    masked = hide(window, block)
    assert np.isnan(masked.z_TM[-SPAN:, hidden]).all()
    last = window.age_TM[-SPAN - 1, hidden].astype(int)
    np.testing.assert_array_equal(masked.age_TM[-1, hidden], np.where(last == 255, 255, last + SPAN))
    assert (masked.age_TM[-SPAN:, hidden] > 0).all()
    rest = np.setdiff1d(np.arange(window.z_TM.shape[1]), hidden)
    np.testing.assert_array_equal(masked.z_TM[:, rest], window.z_TM[:, rest])
    np.testing.assert_array_equal(masked.age_TM[:, rest], window.age_TM[:, rest])
    np.testing.assert_array_equal(masked.z_TM[:-SPAN], window.z_TM[:-SPAN])
    assert np.isfinite(window.z_TM[-SPAN:, hidden]).all(), "the window itself is untouched"
    short = hide(replace(window, z_TM=window.z_TM[-SPAN:], age_TM=window.age_TM[-SPAN:]), block)
    assert (short.age_TM[:, hidden] == 255).all()


def test_a_held_reading_keeps_the_shift_of_the_scan_it_came_from() -> None:
    shift = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    age = np.array([[0, 0], [0, 255], [0, 1], [1, 0], [2, 1]], dtype=np.uint8)
    expected = [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 6.0], [1.0, 6.0]]
    np.testing.assert_array_equal(as_held(shift, age), expected)
    np.testing.assert_array_equal(as_held(shift, np.zeros_like(age)), shift)


@pytest.mark.parametrize(("error", "label"), [(0.0, 0), (1.9, 0), (60.0, 1), (4.5, None)])
def test_completions_are_labelled_by_their_error(
    error: float, label: int | None, solver: SolverPlayer, attempts: list[Attempt]
) -> None:
    """An error of so many sigma on one hidden meter over the last scans; 4.5 lies in the margin of gate G5."""
    attempt = attempts[0]
    assert attempt.main is not None
    window, block = block_of(solver, attempt)
    errors = np.zeros((SPAN, block.meters.size))
    errors[:, 1] = error
    gates = solver.rollout.gates("case14")
    gates.counters = GateCounters()
    made = solver._splice(attempt, attempt.main, window, block, errors * attempt.plan.sigma[block.meters])
    assert (gates.counters.completions, gates.counters.completions_passed) == (1, label is not None)
    if label is None:
        assert made is None
        return
    assert made is not None
    assert made.source == "solver"
    assert made.pair == -1
    assert made.labels.implausible == bool(label)
    if not label:
        assert made.labels.onset == attempt.main.labels.onset
        assert not made.labels.node_N.any()
        if error == 0.0:
            plain = solver._experience(attempt, attempt.main, window)
            np.testing.assert_array_equal(made.node_TNF, plain.node_TNF)
        return
    assert made.d_eff >= solver.config.scenario.d_min
    assert (made.labels.onset, made.labels.end, made.labels.type) == (12, 16, 0)
    bus, branch = attempt.plan.layout.owner()
    channel = attempt.plan.channels[block.meters[1]]
    if bus[channel] >= 0:
        assert np.flatnonzero(made.labels.node_N).tolist() == [bus[channel]]
    else:
        assert np.flatnonzero(made.labels.edge_E).tolist() == [branch[channel]]
    assert not attempt.main.labels.node_N.any(), "labels of the window itself are untouched"


def test_answers_repeat_and_count(solver: SolverPlayer, attempts: list[Attempt]) -> None:
    question = Question(call_id=3, programs=tuple(a.program for a in attempts), solver_version=0)
    answered, made = solver.answer(question)
    again, made_again = solver.answer(question)
    assert answered.rates == pytest.approx(again.rates, nan_ok=True)
    assert answered.made == len(made) == len(made_again)
    for one, two in zip(made, made_again, strict=True):
        np.testing.assert_array_equal(one.node_TNF, two.node_TNF)
    assert len(answered.rates) == len(attempts)
    finite = [rate for rate in answered.rates if np.isfinite(rate)]
    assert finite
    assert all(0 <= rate <= 1 for rate in finite)
    assert answered.made + answered.dropped == len(answered.lessons)
    assert answered.completions == solver.config.solver.samples * len(answered.lessons)
    assert answered.d_eff == pytest.approx([a.d_eff for a in attempts])
    assert answered.solves == sum(a.solves for a in attempts)
    assert answered.made_plausible == sum(not e.labels.implausible for e in made)
    for lesson in answered.lessons:
        assert lesson.hidden_N.sum() > 0
        assert not lesson.experience.labels.implausible, "lessons show plausible windows, of an anomaly its twin"
    other = solver.answer(replace(question, call_id=4))[0]
    one, two = answered.lessons[0], other.lessons[0]
    assert (one.experience.node_TNF != two.experience.node_TNF).any()


def test_proposals_depend_on_the_order_alone(contexts: ContextSource) -> None:
    config = settings()
    game = Game(config)
    orders = [game.order() for _ in range(2)]
    fresh, used = ProposerPlayer(config, contexts), ProposerPlayer(config, contexts)
    used.propose(orders[1])
    one, windows = fresh.propose(orders[0])
    two, windows_two = used.propose(orders[0])
    assert one.summaries == two.summaries
    assert one.counters == two.counters
    for left, right in zip(windows, windows_two, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a.node_TNF, b.node_TNF)
    assert one.solves == sum(s.solves for s in one.summaries) >= 6 * 16
    written = [i for i, source in enumerate(orders[0].assignment.sources) if source == "proposer"]
    assert sorted(one.samples) == written
    for index, sample in one.samples.items():
        assert one.summaries[index].program.source == "proposer"
        assert sample.reward == 0.0
        assert np.isfinite(sample.logp)
        assert sample.plan_id == one.summaries[index].program.plan_id
    # a mutation without a parent is a program of the grammar
    for summary, source in zip(one.summaries, orders[0].assignment.sources, strict=True):
        assert summary.program.source == ("proposer" if source == "proposer" else "uniform")


def test_published_weights_arrive(contexts: ContextSource) -> None:
    config = settings()
    player = ProposerPlayer(config, contexts)
    other = Game(settings(seed=9)).all_weights()
    player.load({"verifier": other["verifier"]})
    for name, value in player.verifier.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other["verifier"][name])
    same = new_proposer(config).state_dict()
    for name, value in player.policy.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), same[name].numpy())
    player.load({"proposer": other["proposer"], "solver": other["solver"]})
    for name, value in player.policy.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other["proposer"][name])


def test_fresh_networks_depend_on_the_seed_alone() -> None:
    for make in (new_proposer, new_solver):
        one, two, other = make(settings()), make(settings()), make(settings(seed=1))
        state = unflatten(flatten(one.state_dict()))
        assert all((state[k] == v).all() for k, v in two.state_dict().items())
        assert any((state[k] != v).any() for k, v in other.state_dict().items())
