"""The executor: same in, same out; labels follow from causes; twins differ by the cause alone; physics is judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import CaseError, load_case
from gg_ray.grid.estimation import Gain, wide_prior
from gg_ray.grid.powerflow import bridges
from gg_ray.grid.ybus import Judge
from gg_ray.records import TYPES, Event, Program
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ClimatologySource, ContextError
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.grammar import PRIMITIVES, Grammar, GrammarError
from gg_ray.scenario.worlds import World, tap_stretches, with_taps

SOURCE = ClimatologySource()
CONFIG = ScenarioConfig()
CASE = load_case("case57")
EXECUTOR = Executor(CASE, CONFIG, SOURCE, all_families=True)
ANOMALIES = [p.name for p in PRIMITIVES.values() if p.side == "anomalous" and not p.national]
BENIGN = [p.name for p in PRIMITIVES.values() if p.side != "anomalous" and not p.national]
DATA_FAMILIES = ("S1", "S2", "S3", "S4", "A2", "A3")


def _program(events: tuple[Event, ...], seed: int = 1, plan_id: int = 0, context_id: int = 5) -> Program:
    return Program(case=CASE.name, context_id=context_id, plan_id=plan_id, events=events, scans=16, seed=seed)


def _draw(name: str, seed: int, plan_id: int = 0) -> Program:
    rng = np.random.default_rng([seed, len(name)])
    event = EXECUTOR.grammar.event(name, EXECUTOR.grammar.plan(plan_id), rng)
    assert event is not None
    return _program((event,), seed, plan_id)


def _reached(name: str, tries: int = 40) -> Attempt:
    """The first attempt of a primitive that is reachable and inside its bounds."""
    attempts = EXECUTOR.run([_draw(name, seed) for seed in range(tries)])
    for attempt in attempts:
        if attempt.main is not None and attempt.in_bounds and attempt.d_eff > 0:
            return attempt
    raise AssertionError(f"{name}: none of {tries} programs is reachable: {attempts[0].notes}")


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


# --- determinism -----------------------------------------------------------------------------------------------------


def test_two_executions_agree_bit_by_bit_and_alone_agrees_with_a_batch() -> None:
    programs = [_draw(name, 3) for name in (*ANOMALIES, *BENIGN)]
    one, two = EXECUTOR.run(programs), EXECUTOR.run(programs)
    fresh = Executor(CASE, CONFIG, SOURCE, all_families=True).run(programs)
    assert [a.digest() for a in one] == [a.digest() for a in two] == [a.digest() for a in fresh]
    for attempt in one:
        alone = EXECUTOR.run([attempt.program])[0]
        assert alone.d_eff == pytest.approx(attempt.d_eff, rel=1e-6, abs=1e-9)
        assert (alone.main is None) == (attempt.main is None)
        if alone.main is not None and attempt.main is not None:
            np.testing.assert_allclose(alone.main.state_TN, attempt.main.state_TN, atol=1e-9, rtol=0)


def test_another_seed_is_another_world() -> None:
    a, b = EXECUTOR.run([_program((), seed=1), _program((), seed=2)])
    assert a.digest() != b.digest()


def test_a_window_comes_back_from_program_and_seed() -> None:
    program = _draw("bias", 4)
    first, second = EXECUTOR.run([program])[0], EXECUTOR.run([program])[0]
    a, twin_a = EXECUTOR.realise(first, 3)
    b, twin_b = EXECUTOR.realise(second, 3)
    other, _ = EXECUTOR.realise(first, 4)
    assert twin_a is not None
    assert twin_b is not None
    assert _same(a.z_TM, b.z_TM)
    assert _same(a.age_TM, b.age_TM)
    assert _same(twin_a.z_TM, twin_b.z_TM)
    assert not _same(a.z_TM, other.z_TM)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENIGN)
def test_benign_events_are_plausible_and_hard_ones_are_disturbances(name: str) -> None:
    for attempt in EXECUTOR.run([_draw(name, seed) for seed in range(6)]):
        assert attempt.main is not None
        labels = attempt.main.labels
        assert not labels.implausible
        assert attempt.twin is None
        assert labels.type == 0
        assert (labels.onset, labels.end) == (-1, -1)
        assert not labels.node_N.any()
        assert not labels.edge_E.any()
        assert labels.disturbance == (PRIMITIVES[name].side == "hard" or labels.severity > 0)


@pytest.mark.parametrize("name", ANOMALIES)
def test_anomalies_are_implausible_and_hidden_real_faults_stay_disturbances(name: str) -> None:
    attempt = _reached(name)
    assert attempt.main is not None
    assert attempt.twin is not None
    labels, twin = attempt.main.labels, attempt.twin.labels
    real = name in ("undeclared_line_outage", "undeclared_gen_trip", "coordinated", "coordinated_trip")
    assert labels.implausible
    assert labels.type == TYPES.index(PRIMITIVES[name].family)
    assert 0 <= labels.onset < labels.end <= 16
    assert labels.node_N.any() or labels.edge_E.any()
    assert labels.disturbance == (real or labels.severity > 0)
    # The twin is what would have been right to report: plausible, and a disturbance where the fault is real.
    assert not twin.implausible
    assert twin.type == 0
    assert twin.disturbance == labels.disturbance
    assert not twin.node_N.any()


def test_severity_marks_a_dangerous_state_without_calling_it_implausible(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(replace(CASE, v_max=np.full(CASE.n_bus, 0.9)), CONFIG, SOURCE)
    attempt = executor.run([_program(())])[0]
    assert attempt.main is not None
    assert attempt.main.labels.severity > 0
    assert attempt.main.labels.disturbance
    assert not attempt.main.labels.implausible


# --- twins -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from(ANOMALIES), st.integers(0, 10_000), st.integers(0, 7))
def test_window_and_twin_share_delivery_and_differ_only_where_the_cause_acts(
    name: str, seed: int, plan_id: int
) -> None:
    rng = np.random.default_rng(seed)
    event = EXECUTOR.grammar.event(name, EXECUTOR.grammar.plan(plan_id), rng)
    follower = EXECUTOR.grammar.event("stale_meter", EXECUTOR.grammar.plan(plan_id), rng)
    assert follower is not None
    if event is None:
        return
    attempt = EXECUTOR.run([_program((event, follower), seed, plan_id)])[0]
    if attempt.main is None:
        return
    window, twin = EXECUTOR.realise(attempt, seed)
    assert twin is not None
    assert _same(np.isnan(window.z_TM), np.isnan(twin.z_TM))
    assert _same(window.age_TM, twin.age_TM)
    labels = attempt.main.labels
    if PRIMITIVES[name].family in DATA_FAMILIES:
        assert _same(window.z_TM[: labels.onset], twin.z_TM[: labels.onset])
        # A delivered value may be held for two scans beyond the cause (slow meter, stale repeat).
        assert _same(window.z_TM[labels.end + 4 :], twin.z_TM[labels.end + 4 :])
        difference = np.abs(attempt.main.mean_TM - attempt.twin.mean_TM)  # type: ignore[union-attr]
        outside = np.ones(16, dtype=bool)
        outside[labels.onset : labels.end] = False
        assert difference[outside].max() == 0.0
        assert _same(window.status_TE, twin.status_TE)


@pytest.mark.parametrize(
    "name", ["wrong_breaker_status", "undeclared_line_outage", "wrong_tap", "wrong_line_parameter"]
)
def test_a_topology_twin_has_the_same_readings_and_a_true_declaration(name: str) -> None:
    attempt = _reached(name)
    window, twin = EXECUTOR.realise(attempt, 0)
    assert twin is not None
    assert _same(window.z_TM, twin.z_TM)
    lies = (window.status_TE != twin.status_TE).any(), (window.tap_E != twin.tap_E).any()
    assert any(lies) or (window.x_scale_E != twin.x_scale_E).any()
    assert attempt.trajectory is not None
    assert _same(twin.status_TE.astype(bool), attempt.trajectory.status_TE)
    assert _same(twin.tap_E, CASE.tap)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sized_anomalies_hit_their_target() -> None:
    names = [n for n in ANOMALIES if PRIMITIVES[n].sized]
    attempts = EXECUTOR.run([_draw(name, seed) for name in names for seed in range(5)])
    met = set()
    for attempt in attempts:
        name = attempt.program.events[0].primitive
        if attempt.main is None or not attempt.in_bounds or attempt.d_eff == 0.0 or name == "time_skew":
            continue
        if name == "hv_fault_residue":  # held readings are copies, which may show more than their values do
            assert attempt.d_eff > 0.9 * attempt.d_target
            continue
        assert abs(attempt.d_eff / attempt.d_target - 1) < 0.1, (name, attempt.d_eff, attempt.d_target)
        met.add(name)
    assert met >= {"bias", "drift", "scale", "spike", "noise_inflation", "theft", "wrong_tap", "load_redistribution"}


def test_exact_stealth_is_invisible_to_a_residual_that_sees_a_bias_of_the_same_size() -> None:
    shares = {}
    for name in ("stealth_fdia", "bias"):
        attempt = _reached(name)
        assert attempt.main is not None
        assert attempt.twin is not None
        gain = Gain(CASE, attempt.plan, wide_prior(CASE))
        # Only meters: with the forecast as good as absent, a detector of snapshots has nothing else to compare with.
        free = Gain(CASE, attempt.plan, type(gain.prior)(*(np.full(CASE.n_bus, 1e3) for _ in range(3))))
        a_TM = attempt.main.mean_TM - attempt.twin.mean_TM
        lam = free.misfit(np.hstack([a_TM, np.zeros((16, 3 * CASE.n_bus))])).sum()
        shares[name] = lam / float((a_TM**2 @ free.precision[: attempt.plan.size]).sum())
    assert shares["stealth_fdia"] < 1e-2
    assert shares["bias"] > 0.1


def test_an_attack_too_large_for_its_area_is_out_of_bounds() -> None:
    attempts = EXECUTOR.run([
        replace(p, events=(replace(p.events[0], magnitude=15),))
        for p in (_draw("stealth_fdia", seed) for seed in range(12))
    ])  # fmt: skip
    assert any(not a.in_bounds for a in attempts if a.reachable)
    assert all(a.main is not None and a.main.labels.implausible for a in attempts if a.reachable)


def test_an_event_without_effect_is_unreachable_and_says_why() -> None:
    blocked = [b for b in np.flatnonzero(CASE.load_p > 0.01) if EXECUTOR.attacker.area(int(b), 1) is None]
    assert blocked, "every load of the grid has an attack area; choose another grid"
    attempt = EXECUTOR.run([_program((Event("stealth_fdia", int(blocked[0]), 4, 9, 2, 0),))])[0]
    assert not attempt.reachable
    assert attempt.main is None
    assert "no attack area" in attempt.notes[0]


def test_a_declaration_cannot_be_false_about_a_branch_that_another_event_declares() -> None:
    line = int(np.flatnonzero(~bridges(CASE))[3])
    place = CASE.n_bus + line
    events = (Event("wrong_breaker_status", place, 4, 0, 2, 0), Event("line_switch", place, 6, 0, 2, 0))
    attempt = EXECUTOR.run([_program(events)])[0]
    assert not attempt.reachable
    assert "same branch" in attempt.notes[0]


def test_a_meter_that_is_declared_out_hides_its_own_error() -> None:
    plan = EXECUTOR.grammar.plan(0)
    bus = int(np.flatnonzero(plan.index_of[CASE.n_bus : 2 * CASE.n_bus] >= 0)[0])
    bias, outage = Event("bias", bus, 4, 10, 2, 0), Event("meter_outage", bus, 3, 0, 2, 0)
    seen, part, hidden = EXECUTOR.run(
        [_program((bias,)), _program((bias, replace(outage, duration=0))), _program((bias, outage))]
    )
    assert seen.d_eff == pytest.approx(seen.d_target, rel=0.01)
    assert part.d_eff == pytest.approx(part.d_target, rel=0.01)
    window, twin = EXECUTOR.realise(hidden, 0)
    assert twin is not None
    assert _same(window.z_TM, twin.z_TM)
    assert hidden.d_eff == 0.0, "nothing of it arrives, so the gate must not believe in it"


def test_a_spike_on_a_slow_meter_arrives() -> None:
    plan = EXECUTOR.grammar.plan(0)
    slow = [m for m in np.flatnonzero(plan.period == 2) if CASE.n_bus <= plan.channels[m] < 2 * CASE.n_bus]
    assert slow
    bus = int(plan.channels[slow[0]]) - CASE.n_bus
    for onset in (4, 5):
        attempt = EXECUTOR.run([_program((Event("spike", bus, onset, 12, 0, 0),))])[0]
        assert any(not _same(*(w.z_TM for w in EXECUTOR.realise(attempt, k))) for k in range(2))  # type: ignore[union-attr]


# --- unusable inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["load_T", "wind_T"])
def test_a_gap_in_the_context_is_named(field: str) -> None:
    context = SOURCE.window(5, 16, 60.0, "train")
    series = getattr(context, field).copy()
    series[3] = np.nan
    with pytest.raises(ContextError, match=rf"context 5: {field} is nan at scan 3"):
        EXECUTOR.run([_program(())], contexts=[replace(context, **{field: series})])


def test_a_context_of_another_length_is_named() -> None:
    with pytest.raises(ContextError, match="24 scans for a program of 16"):
        EXECUTOR.run([_program(())], contexts=[SOURCE.window(5, 24, 60.0, "train")])


def test_a_program_of_another_grid_is_refused() -> None:
    with pytest.raises(GrammarError, match=r"'case14'.*'case57'"):
        EXECUTOR.run([replace(_program(()), case="case14")])


def test_a_world_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(CASE, CONFIG, SOURCE)
    _scale_world(executor, np.nan, monkeypatch)
    with pytest.raises(CaseError, match="load_p is not finite"):
        executor.run([_program(())])


def test_a_world_beyond_collapse_has_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(CASE, CONFIG, SOURCE)
    _scale_world(executor, 5.0, monkeypatch)
    attempt = executor.run([_program(())])[0]
    assert not attempt.converged
    assert not attempt.split
    assert attempt.main is None
    with pytest.raises(ValueError, match="did not converge"):
        executor.realise(attempt, 0)


def _scale_world(executor: Executor, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = executor.fleet.world

    def world(context: object, rng: np.random.Generator) -> World:
        made = ordinary(context, rng)  # type: ignore[arg-type]
        made.load_p *= factor
        made.load_q *= factor
        return made

    monkeypatch.setattr(executor.fleet, "world", world)


def test_an_outage_that_islands_is_refused_by_the_grammar_and_told_from_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bridge = int(np.flatnonzero(bridges(CASE))[0])
    program = _program((Event("line_switch", CASE.n_bus + bridge, 4, 0, 2, 0),))
    with pytest.raises(GrammarError, match=r"target .* is not allowed"):
        EXECUTOR.run([program])
    monkeypatch.setattr(Grammar, "validate", lambda self, program: None)
    attempt = EXECUTOR.run([program])[0]
    assert attempt.split
    assert attempt.main is None


# --- physics ---------------------------------------------------------------------------------------------------------


def test_solved_trajectories_pass_an_independent_judge_with_outages_and_tap_moves() -> None:
    rng = np.random.default_rng(0)
    draw = EXECUTOR.grammar.event
    plan = EXECUTOR.grammar.plan(0)
    moved, out = 0, 0
    programs = []
    for seed in range(12):
        events = [draw("tap_move", plan, rng), draw("tap_move", plan, rng), draw("line_switch", plan, rng)]
        programs.append(_program(tuple(e for e in events if e is not None), seed))
    passive = (CASE.load_p == 0) & (CASE.load_q == 0)
    passive[CASE.gen_bus] = False
    assert passive.any()
    for attempt in EXECUTOR.run(programs):
        true = attempt.trajectory
        if not attempt.converged or true is None:
            continue
        out += int((~true.status_TE).any())
        for when, taps in tap_stretches(true.moves, 16):
            moved = max(moved, len(taps))
            gap = Judge(with_taps(CASE, taps)).residual(
                true.v_TN[when], np.zeros_like(true.v_TN[when]), true.status_TE[when]
            )
            assert np.abs(gap[:, passive]).max() < 1e-6
    assert moved == 2, "two declared moves must both be in force"
    assert out


def test_tap_stretches_keep_every_branch_until_it_moves_again() -> None:
    moves = ((3, 1.02, 4), (1, 0.98, 9), (3, 1.05, 9))
    stretches = [(w.start, w.stop, taps) for w, taps in tap_stretches(moves, 16)]
    assert stretches == [(0, 4, ()), (4, 9, ((3, 1.02),)), (9, 16, ((1, 0.98), (3, 1.05)))]
