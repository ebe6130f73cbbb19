"""The twelve families: every primitive does to the readings or declarations what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Event, Program
from gg_ray.scenario.alteration import Unreachable, meters_of
from gg_ray.scenario.anomalies import SCALE_LIMIT, build
from gg_ray.scenario.anomalies_model import PARAMETER_LIMIT, TAP_LIMIT
from gg_ray.scenario.attacks import MAX_LOAD_SHARE
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.grammar import PRIMITIVES

CASE = load_case("case57")
EXECUTOR = Executor(CASE, ScenarioConfig(), ClimatologySource(), all_families=True)
PLAN = EXECUTOR.grammar.plan(0)
N = CASE.n_bus
METERED = np.flatnonzero(PLAN.index_of[N : 2 * N] >= 0)
LOADS = np.flatnonzero((CASE.load_p > 0.01) & (PLAN.index_of[N : 2 * N] >= 0))
SLOW = PLAN.period[PLAN.index_of[N + METERED]] == 2
BUS = int(METERED[~SLOW][np.argmax(np.abs(CASE.load_p[METERED[~SLOW]]))])


def _run(*events: Event, seed: int = 1) -> Attempt:
    return EXECUTOR.run(
        [Program(case=CASE.name, context_id=5, plan_id=0, events=events, scans=16, seed=seed)]
    )[0]  # fmt: skip


def _change(attempt: Attempt) -> np.ndarray:
    assert attempt.main is not None
    assert attempt.twin is not None
    return attempt.main.mean_TM - attempt.twin.mean_TM


def _meter(event: Event) -> int:
    return int(meters_of(PLAN, event)[0])


@pytest.mark.parametrize(("name", "factor"), [("sign_flip", -1.0), ("unit_error", 1000.0)])
def test_encoding_errors_multiply_one_reading(name: str, factor: float) -> None:
    event = Event(name, BUS, 5, 0, 0, 0)
    attempt = _run(event)
    meter = _meter(event)
    assert attempt.main is not None
    assert attempt.twin is not None
    np.testing.assert_allclose(attempt.main.mean_TM[5:9, meter], factor * attempt.twin.mean_TM[5:9, meter])
    touched = np.argwhere(_change(attempt) != 0)
    assert set(touched[:, 1].tolist()) == {meter}
    assert set(touched[:, 0].tolist()) == {5, 6, 7, 8}


def test_a_bias_is_constant_and_a_drift_grows() -> None:
    bias, drift = Event("bias", BUS, 4, 9, 2, 0), Event("drift", BUS, 4, 9, 2, 0)
    steady, growing = (_change(_run(e))[4:, _meter(e)] for e in (bias, drift))
    np.testing.assert_allclose(steady, steady[0])
    steps = np.diff(np.abs(growing))
    np.testing.assert_allclose(steps, steps[0])
    assert steps[0] > 0


def test_a_scale_is_proportional_and_keeps_its_bounds() -> None:
    event = Event("scale", BUS, 4, 8, 2, 0)
    attempt = _run(event)
    assert attempt.twin is not None
    ratio = _change(attempt)[4:, _meter(event)] / attempt.twin.mean_TM[4:, _meter(event)]
    np.testing.assert_allclose(ratio, ratio[0])
    assert attempt.in_bounds == (SCALE_LIMIT[0] <= ratio[0] <= SCALE_LIMIT[1])


def test_swapped_meters_exchange_their_values() -> None:
    attempt = _run(Event("meter_swap", BUS, 4, 0, 2, 1))
    touched = np.flatnonzero((_change(attempt) != 0).any(axis=0))
    assert touched.size == 2
    assert attempt.main is not None
    assert attempt.twin is not None
    np.testing.assert_allclose(attempt.main.mean_TM[4:, touched], attempt.twin.mean_TM[4:, touched[::-1]])


def test_a_frozen_meter_repeats_its_last_reading_with_its_noise() -> None:
    event = Event("freeze", BUS, 6, 0, 1, 0)
    attempt = _run(event)
    window, twin = EXECUTOR.realise(attempt, 1)
    meter = _meter(event)
    assert twin is not None
    arrived = window.z_TM[5:14, meter]
    assert np.unique(arrived[np.isfinite(arrived)]).size == 1
    assert np.unique(twin.z_TM[5:14, meter][np.isfinite(twin.z_TM[5:14, meter])]).size > 4
    np.testing.assert_array_equal(np.delete(window.z_TM, meter, axis=1), np.delete(twin.z_TM, meter, axis=1))


def test_inflated_noise_is_louder_around_the_same_mean() -> None:
    event = Event("noise_inflation", BUS, 2, 15, 2, 0)
    attempt = _run(event)
    meter = _meter(event)
    assert not _change(attempt).any()
    loud, calm = [], []
    for k in range(40):
        window, twin = EXECUTOR.realise(attempt, k)
        assert twin is not None
        assert attempt.main is not None
        loud.append(window.z_TM[2:, meter] - attempt.main.mean_TM[2:, meter])
        calm.append(twin.z_TM[2:, meter] - attempt.main.mean_TM[2:, meter])
    assert np.nanstd(loud) > 2 * np.nanstd(calm)
    assert np.nanstd(calm) < 1.2 * PLAN.sigma[meter]


@pytest.mark.parametrize("name", ["theft", "unmetered_injection"])
def test_hidden_demand_moves_the_state_but_not_its_own_meter(name: str) -> None:
    load = int(LOADS[np.argmax(CASE.load_p[LOADS])])
    attempt = _run(Event(name, load, 4, 12, 2, 0))
    assert attempt.main is not None
    assert attempt.twin is not None
    own = int(PLAN.index_of[N + load])
    # The true state moved: angles at the load drop when more is drawn than read.
    moved = np.angle(attempt.main.state_TN[8, load] / attempt.twin.state_TN[8, load])
    assert (moved < 0) == (name == "theft")
    np.testing.assert_allclose(attempt.main.mean_TM[:, own], attempt.twin.mean_TM[:, own], atol=1e-7)
    assert np.abs(_change(attempt)).max() > 1e-4, "other meters must see the flows change"
    assert attempt.main.labels.node_N.tolist() == (np.arange(N) == load).tolist()


def test_wrong_breaker_status_declares_open_what_carries_flow() -> None:
    target = int(np.flatnonzero(EXECUTOR.grammar.target_mask("wrong_breaker_status", PLAN))[0])
    attempt = _run(Event("wrong_breaker_status", target, 6, 0, 2, 0))
    assert attempt.main is not None
    assert not attempt.main.status_TE[6:, target - N].any()
    assert attempt.main.status_TE[:6].all()
    assert attempt.trajectory is not None
    assert attempt.trajectory.status_TE.all()


def test_an_undeclared_outage_is_real_and_declared_in_service() -> None:
    target = int(np.flatnonzero(EXECUTOR.grammar.target_mask("undeclared_line_outage", PLAN))[0])
    attempt = _run(Event("undeclared_line_outage", target, 6, 0, 2, 0))
    assert attempt.main is not None
    assert attempt.twin is not None
    assert attempt.main.status_TE.all()
    assert not attempt.twin.status_TE[6:, target - N].any()
    channels = PLAN.at(PLAN.layout.branch_channels(target - N))
    assert not attempt.main.mean_TM[6:, channels].any()


def test_a_coordinated_attack_shows_the_area_as_it_would_have_been() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        event = EXECUTOR.grammar.event("coordinated", PLAN, rng)
        assert event is not None
        attempt = _run(replace(event, onset=6))
        if attempt.main is None:
            continue
        channels = PLAN.at(PLAN.layout.branch_channels(event.target - N))
        if channels.size:
            # The dead branch goes on showing flow, and nothing is declared.
            assert np.abs(attempt.main.mean_TM[6:, channels]).max() > 1e-4
            assert attempt.main.status_TE.all()
            return
    raise AssertionError("no coordinated attack on a metered branch in ten draws")


def test_a_masked_trip_is_real_and_its_area_goes_on_showing_the_unit_in_service() -> None:
    units = np.flatnonzero(EXECUTOR.grammar.target_mask("coordinated_trip", PLAN))
    bus = next(int(u) for u in units if PLAN.index_of[N + u] >= 0)
    attempt = _run(Event("coordinated_trip", bus, 6, 0, 2, 0))
    assert attempt.main is not None
    assert attempt.twin is not None
    assert attempt.trajectory is not None
    assert attempt.unhidden is not None
    own = int(PLAN.index_of[N + bus])
    k = int(np.flatnonzero(CASE.gen_bus == bus)[0])
    lost = attempt.unhidden.world.gen_p[6, k] - attempt.trajectory.world.gen_p[6, k]
    assert lost > 0.02 or attempt.trajectory.world.gen_out[6, k]
    np.testing.assert_allclose(attempt.main.mean_TM[6:, own], attempt.unhidden.h_TM[6:, own], atol=1e-12)
    assert (attempt.main.mean_TM[6:, own] - attempt.twin.mean_TM[6:, own] > 0.02).all(), "the twin shows the loss"
    far = PLAN.at(PLAN.layout.bus_channels(int(EXECUTOR.fleet.near.hops(bus).argmax())))
    np.testing.assert_array_equal(_change(attempt)[:, far], 0.0)
    assert attempt.main.labels.node_N[bus]


def test_wrong_declarations_stay_within_their_limits() -> None:
    rng = np.random.default_rng(1)
    inside = {"wrong_tap": 0, "wrong_line_parameter": 0}
    for name in inside:
        events = [EXECUTOR.grammar.event(name, PLAN, rng) for _ in range(20)]
        for event in events:
            assert event is not None
            attempt = _run(event)
            if attempt.main is None:
                continue
            branch = event.target - N
            tap = attempt.main.tap_E[branch] / CASE.tap[branch] - 1
            scale = attempt.main.x_scale_E[branch] - 1
            assert abs(tap) <= TAP_LIMIT + 1e-12
            assert PARAMETER_LIMIT[0] - 1e-12 <= scale <= PARAMETER_LIMIT[1] + 1e-12
            assert not _change(attempt).any(), "readings stay true"
            inside[name] += int(attempt.in_bounds and (tap != 0 or scale != 0))
    assert all(count > 2 for count in inside.values()), inside


def test_redistribution_moves_demand_within_a_fifth_of_each_load_and_keeps_the_sum() -> None:
    executor = Executor(CASE, ScenarioConfig(kappa=(1.0, 1.0)), ClimatologySource(), all_families=True)
    plan = executor.grammar.plan(0)
    assert plan.index_of[N : 2 * N].min() >= 0, "every bus has its P meter"
    rng = np.random.default_rng(2)
    events = [executor.grammar.event("load_redistribution", plan, rng) for _ in range(24)]
    programs = [
        Program(case=CASE.name, context_id=5, plan_id=0, events=(event,), scans=16, seed=k)
        for k, event in enumerate(events) if event is not None
    ]  # fmt: skip
    inside, largest = 0, 0.0
    for attempt in executor.run(programs):
        assert attempt.main is not None
        assert attempt.trajectory is not None
        change = -_change(attempt)[attempt.main.labels.onset, plan.index_of[N : 2 * N]]
        load = attempt.trajectory.world.load_p[attempt.main.labels.onset : attempt.main.labels.end].min(axis=0)
        unread = 0.05 * plan.sigma[plan.index_of[N : 2 * N]].sum()  # meters below 5 % of their sigma are left alone
        elsewhere = (CASE.load_p <= 0.01) & (np.arange(N) != CASE.slack)
        assert not change[elsewhere].any(), "generation and passive buses stay as they are"
        moved = np.abs(change[CASE.load_p > 0.01])
        assert abs(change[CASE.load_p > 0.01].sum()) <= unread
        largest = max(largest, moved.sum() / unread)
        assert {-1.0, 1.0} <= set(np.sign(change).tolist())
        share = (np.abs(change) / np.maximum(load, 1e-9))[CASE.load_p > 0.01].max()
        assert (share <= MAX_LOAD_SHARE * 1.001) == attempt.in_bounds
        inside += int(attempt.in_bounds)
    assert largest > 20, "the sum must be small beside what moves"
    assert 0 < inside < 24, "both sides of the bound are met"


def test_a_partial_attack_leaves_some_meters_of_the_exact_one_alone() -> None:
    for load in LOADS.tolist():
        exact, partial = (_run(Event(name, load, 4, 8, 2, 1)) for name in ("stealth_fdia", "partial_fdia"))
        if exact.main is not None and partial.main is not None and exact.in_bounds and partial.in_bounds:
            seen = [set(np.flatnonzero(_change(a).any(axis=0)).tolist()) for a in (exact, partial)]
            assert seen[1] < seen[0] or len(seen[1]) < len(seen[0])
            return
    raise AssertionError("no load of the grid can be attacked at that size")


def test_a_ramped_attack_grows() -> None:
    for load in LOADS.tolist():
        attempt = _run(Event("ramp_fdia", load, 4, 8, 2, 1))
        if attempt.main is not None and attempt.in_bounds:
            size = np.abs(_change(attempt)[4:]).max(axis=1)
            assert (np.diff(size) > 0).all()
            assert size[-1] > 5 * size[0]
            return
    raise AssertionError("no load of the grid can be attacked at that size")


def test_places_without_a_meter_are_unreachable() -> None:
    dark = int(np.flatnonzero((PLAN.index_of[:N] < 0) & (PLAN.index_of[N : 2 * N] < 0))[0])
    with pytest.raises(Unreachable, match=f"bias: no meter at place {dark}"):
        meters_of(PLAN, Event("bias", dark, 4))


def test_a_benign_event_is_not_an_anomaly() -> None:
    attempt = _run(Event("bias", BUS, 4, 9, 2, 0))
    assert attempt.reachable
    with pytest.raises(ValueError, match="'load_step' is not an anomaly primitive"):
        build(None, Event("load_step", BUS, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [p.name for p in PRIMITIVES.values() if p.side == "anomalous"])
def test_every_primitive_can_be_built_from_the_grammar(name: str) -> None:
    rng = np.random.default_rng(3)
    events = [EXECUTOR.grammar.event(name, PLAN, rng) for _ in range(8)]
    attempts = [_run(event, seed=k) for k, event in enumerate(events) if event is not None]
    assert len(attempts) == 8
    assert any(a.main is not None for a in attempts), [a.notes for a in attempts]
