"""The twelve families: every primitive does to the readings or declarations what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Event, Program
from gg_ray.scenario.alteration import Scene, Unreachable, materiality_scale, meters_of
from gg_ray.scenario.anomalies import SCALE_LIMIT, build
from gg_ray.scenario.anomalies_data import fault_residue
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


def _held_meters(attempt: Attempt) -> np.ndarray:
    assert attempt.main is not None
    return np.concatenate([meters for meters, _ in attempt.main.readings.holds])


def test_a_frozen_meter_repeats_its_last_reading_with_its_noise() -> None:
    event = Event("freeze", BUS, 6, 0, 1, 0)
    attempt = _run(event)
    window, twin = EXECUTOR.realise(attempt, 1)
    (meter,) = _held_meters(attempt).tolist()
    assert twin is not None
    assert attempt.main is not None
    arrived = window.z_TM[5:14, meter]
    assert np.unique(arrived[np.isfinite(arrived)]).size == 1
    assert np.unique(twin.z_TM[5:14, meter][np.isfinite(twin.z_TM[5:14, meter])]).size > 4
    np.testing.assert_array_equal(np.delete(window.z_TM, meter, axis=1), np.delete(twin.z_TM, meter, axis=1))
    bus, branch = PLAN.layout.owner()
    channel = PLAN.channels[meter]
    labels = attempt.main.labels
    assert labels.node_N[bus[channel]] if bus[channel] >= 0 else labels.edge_E[branch[channel]]


@pytest.mark.parametrize("name", ["freeze", "time_skew"])
def test_a_held_reading_is_as_material_as_its_meter_has_moved(name: str) -> None:
    """Gate G3 looks at how far the held value lies off, not at how long it is held."""
    limits = materiality_scale(CASE.name)[PLAN.channels]
    seen = []
    for bus in METERED[PLAN.index_of[3 * N + METERED] < 0][:8].tolist():
        attempt = _run(Event(name, bus, 8, 9 if name == "time_skew" else 0, 1, 0), seed=bus)
        assert attempt.twin is not None
        assert attempt.main is not None
        ((meters, source),) = attempt.main.readings.holds
        h = attempt.twin.mean_TM[:, meters]
        off = (np.abs(h[source] - h) / limits[meters]).max()
        assert attempt.material == pytest.approx(off)
        seen.append(off)
    assert len(set(seen)) > 3


def test_a_frozen_meter_is_the_one_nearby_that_moves_most() -> None:
    event = Event("freeze", BUS, 6, 0, 1, 0)
    attempt = _run(event)
    assert attempt.twin is not None
    h, (meter,) = attempt.twin.mean_TM, _held_meters(attempt).tolist()
    off = np.abs(h[5] - h[6:14]).max(axis=0) / materiality_scale(CASE.name)[PLAN.channels]
    own = PLAN.at(PLAN.layout.bus_channels(BUS))
    assert off[meter] >= off[own].max()
    assert off[meter] == pytest.approx(attempt.material)


def test_fault_values_stay_after_the_fault_has_cleared() -> None:
    event = Event("hv_fault_residue", BUS, 6, 12, 1, 0)
    attempt = _run(event)
    window, twin = EXECUTOR.realise(attempt, 1)
    assert twin is not None
    assert attempt.main is not None
    meters = np.sort(_held_meters(attempt))
    np.testing.assert_array_equal(meters, np.sort(PLAN.at(PLAN.layout.bus_channels(BUS))))
    for meter in meters.tolist():
        held = window.z_TM[6:10, meter]
        if PLAN.period[meter] == 1:
            assert np.unique(held[np.isfinite(held)]).size == 1
    assert np.array_equal(np.delete(window.z_TM, meters, axis=1), np.delete(twin.z_TM, meters, axis=1), equal_nan=True)
    assert np.array_equal(window.z_TM[:6], twin.z_TM[:6], equal_nan=True)
    assert np.array_equal(window.z_TM[14:], twin.z_TM[14:], equal_nan=True)
    voltage = int(PLAN.index_of[BUS])
    assert _change(attempt)[6, voltage] < 0, "a fault lowers the voltage"
    assert attempt.main.status_TE.all(), "it has cleared: the grid itself is as it was"
    np.testing.assert_array_equal(attempt.main.state_TN, attempt.twin.state_TN)  # type: ignore[union-attr]


def test_a_closer_fault_dips_deeper() -> None:
    dips = []
    for support in (0, 2):
        scene = _scene(Event("hv_fault_residue", BUS, 6, 12, 1, support))
        change = fault_residue(scene, Event("hv_fault_residue", BUS, 6, 12, 1, support), 0.5)
        dips.append(change.shift_Tc[6, change.meters.tolist().index(int(PLAN.index_of[BUS]))])
        assert change.in_bounds
    assert dips[0] < dips[1] < 0
    assert dips[0] < -0.2
    assert not fault_residue(scene, Event("hv_fault_residue", BUS, 6, 12, 1, 0), 1.2).in_bounds


def _scene(event: Event) -> Scene:
    caught: list[Scene] = []
    ordinary = EXECUTOR._scene
    EXECUTOR._scene = lambda job: caught.append(ordinary(job)) or caught[-1]  # type: ignore[func-returns-value,method-assign]
    try:
        _run(event)
    finally:
        del EXECUTOR._scene
    return caught[0]


def test_a_change_of_noise_class_goes_both_ways_and_stays_plausible() -> None:
    spread = {}
    for onset in (2, 3):
        attempt = _run(Event("noise_class_change", BUS, onset, 0, 2, 0))
        assert attempt.main is not None
        ((meters, factor),) = attempt.main.readings.noise
        assert meters.tolist() == [_meter(Event("bias", BUS, 4, 0, 0, 0))]
        assert (factor[:onset] == 1).all()
        spread[onset] = float(factor[onset])
        k, scans = spread[onset], 48
        assert np.sqrt(scans * (k * k - 1 - 2 * np.log(k))) < ScenarioConfig().d_min
    assert spread[2] < 1 < spread[3]


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


@pytest.mark.parametrize("name", [p.name for p in PRIMITIVES.values() if p.side == "anomalous" and not p.national])
def test_every_primitive_can_be_built_from_the_grammar(name: str) -> None:
    rng = np.random.default_rng(3)
    events = [EXECUTOR.grammar.event(name, PLAN, rng) for _ in range(8)]
    attempts = [_run(event, seed=k) for k, event in enumerate(events) if event is not None]
    assert len(attempts) == 8
    assert any(a.main is not None for a in attempts), [a.notes for a in attempts]
