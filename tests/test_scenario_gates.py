"""The gates: every one fires on a made example, counters add up, novelty forgets in order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import PQ, load_case
from gg_ray.records import FAMILIES, Event, Program
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.gates import JUDGE_LIMIT_PU, GateCounters, Gates, NoveltyGate
from gg_ray.scenario.grammar import Stratum

CONFIG = ScenarioConfig(recheck_share=0.0)
CASE = load_case("case57")
EXECUTOR = Executor(CASE, CONFIG, ClimatologySource(), all_families=True)
PLAN = EXECUTOR.grammar.plan(0)
METERED = int(np.flatnonzero(PLAN.index_of[CASE.n_bus : 2 * CASE.n_bus] >= 0)[0])


def _program(events: tuple[Event, ...] = (), seed: int = 1) -> Program:
    return Program(case=CASE.name, context_id=5, plan_id=0, events=events, scans=16, seed=seed)


def _attempt(*events: Event) -> Attempt:
    return EXECUTOR.run([_program(events)])[0]


def _bias() -> Attempt:
    attempt = _attempt(Event("bias", METERED, 4, 10, 2, 0))
    assert attempt.reachable
    return replace(attempt, material=2.0)


def _verdict(attempt: Attempt, config: ScenarioConfig = CONFIG) -> str:
    return Gates(EXECUTOR, config).check([attempt], np.random.default_rng(0))[0]


def test_counters_add_up_over_all_families() -> None:
    rng = np.random.default_rng(2)
    gates = Gates(EXECUTOR, CONFIG)
    total = GateCounters()
    for round_ in range(3):
        programs = [
            _program(EXECUTOR.grammar.uniform(Stratum("anomalous", family, CASE.name), 0, rng), seed=i + 100 * round_)
            for i, family in enumerate(FAMILIES * 2)
        ] + [_program(EXECUTOR.grammar.uniform(Stratum("hard", "", CASE.name), 0, rng), seed=round_)]
        verdicts = gates.check(EXECUTOR.run(programs), rng)
        assert len(verdicts) == len(programs)
        counters = gates.counters
        assert counters.seen == 25 * (round_ + 1)
        assert counters.seen == counters.passed + sum(counters.stopped.values())
        assert sum(seen for seen, _ in counters.by_family.values()) == counters.seen
        assert sum(passed for _, passed in counters.by_family.values()) == counters.passed
    assert gates.counters.stopped["G4"] > 0
    assert 0 < gates.counters.passed < gates.counters.seen
    total.add(gates.counters)
    total.add(gates.counters)
    assert total.seen == 2 * gates.counters.seen
    assert total.rates()["pass"] == pytest.approx(gates.counters.rates()["pass"])
    assert sum(rate for gate, rate in total.rates().items() if gate != "G5") == pytest.approx(1.0)
    total.count_completions(passed=3, dropped=1)
    assert total.rates()["G5"] == pytest.approx(0.25)
    assert sum(rate for gate, rate in total.rates().items() if gate != "G5") == pytest.approx(1.0), "books of its own"


def test_what_g6_stops_is_taken_back_from_the_family_too() -> None:
    counters = GateCounters()
    bias = _program((Event("bias", METERED, 4, 10, 2, 0),))
    counters.count(bias, "")
    counters.count(_program(), "")
    counters.count(bias, "G4")
    counters.stop_late(bias)
    assert counters.by_family == {"S2": [2, 0], "benign": [1, 1]}
    assert (counters.seen, counters.passed) == (3, 1)
    assert {gate: n for gate, n in counters.stopped.items() if n} == {"G4": 1, "G6": 1}


def test_a_benign_and_a_clear_anomaly_pass() -> None:
    assert _verdict(_attempt()) == ""
    assert _verdict(_bias()) == ""


def _with_voltage(attempt: Attempt, v_TN: np.ndarray) -> Attempt:
    assert attempt.trajectory is not None
    return replace(attempt, trajectory=replace(attempt.trajectory, v_TN=v_TN))


@pytest.mark.parametrize("fault", ["diverged", "split", "bounds", "power", "low", "high", "angle", "nan"])
def test_g1_stops_what_is_not_a_valid_state(fault: str) -> None:
    attempt = _attempt()
    assert attempt.trajectory is not None
    v = attempt.trajectory.v_TN.copy()
    if fault == "diverged":
        attempt = replace(attempt, converged=False)
    elif fault == "split":
        attempt = replace(attempt, split=True)
    elif fault == "bounds":
        attempt = replace(attempt, in_bounds=False)
    else:
        if fault == "power":
            v[7, 20] *= 1 + 1e-4
        elif fault in ("low", "high"):
            v *= {"low": 0.7, "high": 1.4}[fault] / np.abs(v)
        elif fault == "angle":
            v[3] = np.abs(v[3]) * np.exp(1j * np.linspace(0, 2.5, CASE.n_bus))
        else:
            v[0, 0] = np.nan
        attempt = _with_voltage(attempt, v)
    assert _verdict(attempt) == "G1"


@functools.cache
def _executor(name: str) -> Executor:
    return Executor(load_case(name), CONFIG, ClimatologySource(), all_families=True)


def _solved(name: str, *events: Event) -> tuple[Gates, Attempt]:
    """An attempt of a grid and the gates that judge it."""
    executor = _executor(name)
    program = Program(case=name, context_id=5, plan_id=0, events=events, scans=16, seed=1)
    attempt = executor.run([program])[0]
    assert attempt.converged
    assert attempt.trajectory is not None
    return Gates(executor, CONFIG), attempt


@pytest.mark.parametrize("bus", [0, 7, 14, 20, 26])
def test_the_judge_sees_a_tampered_voltage_on_a_grid_without_passive_buses(bus: int) -> None:
    """gb29 has no zero-injection bus at all: only a comparison with what was asked can find anything there."""
    gates, attempt = _solved("gb29")
    assert gates._judge([attempt])[0] < 0.01 * JUDGE_LIMIT_PU
    assert gates.check([attempt], np.random.default_rng(0)) == [""]
    for factor in (1 + 1e-4, np.exp(1e-4j)):
        v = attempt.trajectory.v_TN.copy()  # type: ignore[union-attr]
        v[9, bus] *= factor
        assert gates.check([_with_voltage(attempt, v)], np.random.default_rng(0)) == ["G1"]


@pytest.mark.parametrize("what", ["load_p", "load_q", "gen_p", "gen_v", "out", "taps"])
def test_the_judge_sees_a_state_of_another_world(what: str) -> None:
    """A right power flow of the wrong inputs must fail: one bus, one scan, 0.01 MW."""
    gates, attempt = _solved("case57")
    true = attempt.trajectory
    assert true is not None
    world, status, moves = true.world.copy(), true.status_TE.copy(), true.moves
    if what in ("load_p", "load_q"):
        getattr(world, what)[4, int(np.flatnonzero(CASE.kind == PQ)[7])] += 1e-4
    elif what == "gen_p":
        world.gen_p[4, int(np.flatnonzero(CASE.gen_bus != CASE.slack)[1])] += 1e-4
    elif what == "gen_v":
        world.gen_v[4, int(np.flatnonzero(CASE.gen_bus != CASE.slack)[1])] += 1e-4
    elif what == "out":
        status[4, 3] = False
    else:
        tap = int(np.flatnonzero(CASE.transformer)[0])
        moves = ((tap, float(CASE.tap[tap] * 1.01), 4),)
    wrong = replace(attempt, trajectory=replace(true, world=world, status_TE=status, moves=moves))
    assert gates.check([wrong], np.random.default_rng(0)) == ["G1"]


def test_the_judge_reads_the_slack_voltage_but_not_its_power() -> None:
    gates, attempt = _solved("case57")
    true = attempt.trajectory
    assert true is not None
    at = int(np.flatnonzero(CASE.gen_bus == CASE.slack)[0])
    world = true.world.copy()
    world.gen_p[:, at] += 1.0  # the engine ignores it: the slack balances
    assert gates._judge([replace(attempt, trajectory=replace(true, world=world))])[0] < JUDGE_LIMIT_PU
    world.gen_v[2, at] += 1e-4
    assert gates._judge([replace(attempt, trajectory=replace(true, world=world))])[0] > JUDGE_LIMIT_PU


@pytest.mark.parametrize("name", ["case57", "gb29"])
def test_outages_moved_taps_and_lost_machines_pass_the_judge(name: str) -> None:
    grammar = _executor(name).grammar
    rng = np.random.default_rng(4)
    plan = grammar.plan(0)
    gone = opened = moved = 0
    for _ in range(6):
        events = [grammar.event(word, plan, rng) for word in ("tap_move", "line_switch", "gen_trip")]
        gates, attempt = _solved(name, *(event for event in events if event is not None))
        true = attempt.trajectory
        assert true is not None
        assert gates._judge([attempt])[0] < 0.01 * JUDGE_LIMIT_PU
        gone += int(true.world.gen_out.any())
        opened += int((~true.status_TE).any())
        moved += len(true.moves)
        if true.world.gen_out.any():
            # The lost machine's bus is solved as PQ: were it still held to its set-point, this would fail.
            silent = true.world.copy()
            silent.gen_out[:] = False
            assert gates._judge([replace(attempt, trajectory=replace(true, world=silent))])[0] > JUDGE_LIMIT_PU
    assert gone
    assert opened
    assert moved


def test_the_judge_sees_windows_with_moved_taps_and_outages() -> None:
    tap = int(np.flatnonzero(CASE.transformer)[0])
    line = int(np.flatnonzero(EXECUTOR.grammar.target_mask("line_switch", PLAN))[5])
    assert line != CASE.n_bus + tap
    attempt = _attempt(Event("tap_move", CASE.n_bus + tap, 5, 0, 2, 0), Event("line_switch", line, 8, 0, 2, 0))
    gates = Gates(EXECUTOR, CONFIG)
    assert attempt.trajectory is not None
    assert 0 < gates._judge([attempt])[0] < 0.01 * JUDGE_LIMIT_PU
    # With the published ratio the same state does not balance: the judge must use the one in force.
    silent = replace(attempt, trajectory=replace(attempt.trajectory, moves=()))
    assert gates._judge([silent])[0] > JUDGE_LIMIT_PU
    v = attempt.trajectory.v_TN.copy()
    v[12] *= np.exp(1j * 1e-3 * np.arange(CASE.n_bus))
    assert _verdict(_with_voltage(attempt, v)) == "G1"


def test_the_world_without_the_hidden_event_is_judged_too() -> None:
    load = int(np.flatnonzero(EXECUTOR.grammar.target_mask("theft", PLAN))[0])
    attempt = _attempt(Event("theft", load, 4, 12, 2, 0))
    assert attempt.unhidden is not None
    v = attempt.unhidden.v_TN.copy()
    v[3, 20] *= 1 + 1e-4
    assert Gates(EXECUTOR, CONFIG)._judge([attempt])[0] < JUDGE_LIMIT_PU
    spoiled = replace(attempt, unhidden=replace(attempt.unhidden, v_TN=v))
    assert Gates(EXECUTOR, CONFIG)._judge([spoiled])[0] > JUDGE_LIMIT_PU


def test_g2_catches_an_executor_that_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(CASE, CONFIG, ClimatologySource())
    always = replace(CONFIG, recheck_share=1.0)
    gates = Gates(executor, always)
    attempts = executor.run([_program(), _program(seed=2)])
    assert gates.check(attempts, np.random.default_rng(0)) == ["", ""]
    honest, calls = executor.run, []

    def restless(programs: Sequence[Program], *args: object, **more: object) -> list[Attempt]:
        calls.append(len(programs))
        done = honest(programs, *args, **more)  # type: ignore[arg-type]
        main = done[1].main
        assert main is not None
        main.mean_TM[0, 0] = np.nextafter(main.mean_TM[0, 0], np.inf)  # the last bit of one value
        return done

    monkeypatch.setattr(executor, "run", restless)
    assert gates.check(attempts, np.random.default_rng(0)) == ["", "G2"]
    assert calls == [2]
    assert gates.counters.stopped["G2"] == 1
    assert gates.counters.recheck_solves == 2 * sum(a.solves for a in attempts), "both calls were solved again"


def test_g3_stops_the_immaterial_and_g4_the_undetectable_and_the_too_easy() -> None:
    clear = _bias()
    assert _verdict(replace(clear, material=0.9)) == "G3"
    assert _verdict(replace(clear, d_eff=2.9)) == "G4"
    assert _verdict(replace(clear, d_eff=9.0), replace(CONFIG, d_max=8.0)) == "G4"
    assert _verdict(replace(clear, reachable=False, main=None)) == "G4"
    assert _verdict(replace(_attempt(), d_eff=0.0, material=0.0)) == "", "gates G3 and G4 are for anomalies"


def test_without_gates_the_undetectable_enters_and_the_unreachable_does_not() -> None:
    off = replace(CONFIG, gates="off")
    clear = _bias()
    assert _verdict(replace(clear, d_eff=0.1, material=0.0), off) == ""
    assert _verdict(replace(clear, reachable=False), off) == "G1"
    assert _verdict(replace(clear, in_bounds=False), off) == "G1"


@given(st.floats(0, 20), st.floats(0, 10), st.floats(0, 3))
def test_g5_keeps_a_margin_between_plausible_and_implausible(error: float, d_eff: float, material: float) -> None:
    gates = Gates(EXECUTOR, CONFIG)
    label = gates.completion(np.array([0.1, -error]), d_eff, material)
    if error <= 3.0:
        assert label == 0
    elif error >= 6.0 and d_eff >= 3.0 and material >= 1.0:
        assert label == 1
    else:
        assert label is None
    assert (gates.counters.completions, gates.counters.completions_passed) == (1, label is not None)
    assert gates.counters.seen == 0, "a completion is no program"


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 6))
def test_g6_remembers_the_latest_programs_and_no_more(seeds: list[int], memory: int) -> None:
    gate = NoveltyGate(memory, cell_cap=1)
    recent: list[int] = []
    for number in seeds:
        program = replace(_program(), context_id=number)
        assert gate.is_new(program) == (number not in recent)
        recent = [*(n for n in recent if n != number), number][-memory:]
        assert len(gate.state_dict()["hashes"]) <= memory
    copy = NoveltyGate(memory, cell_cap=1)
    copy.load_state_dict(gate.state_dict())
    assert copy.state_dict() == gate.state_dict()
    assert [copy.is_new(replace(_program(), context_id=n)) for n in recent] == [False] * len(recent)


def test_g6_finds_the_same_events_in_another_context() -> None:
    gate = NoveltyGate(10, cell_cap=10)
    bias = _program((Event("bias", METERED, 4, 10, 2, 0),))
    assert gate.is_new(bias)
    assert not gate.is_new(replace(bias, context_id=99, seed=99, source="proposer"))
    assert gate.is_new(replace(bias, plan_id=1))


def test_g6_turns_a_crowd_away_until_its_oldest_leave() -> None:
    def numbered(number: int) -> Program:
        return replace(_program(), context_id=number)

    gate = NoveltyGate(memory=4, cell_cap=2)
    assert [gate.is_new(numbered(n), "S2 near bus 3") for n in range(4)] == [True, True, False, False]
    assert gate.fullest() == 2
    assert gate.is_new(numbered(2), "elsewhere"), "turned away is not remembered"
    assert gate.is_new(numbered(3)), "no cell, no cap"
    assert gate.is_new(numbered(4)), "pushes the oldest of the crowd out"
    copy = NoveltyGate(4, 2)
    copy.load_state_dict(gate.state_dict())
    for one in (gate, copy):
        assert [one.is_new(numbered(n), "S2 near bus 3") for n in (5, 6, 7)] == [True, True, False], "5 pushes 1 out"
        assert one.fullest() == 2
