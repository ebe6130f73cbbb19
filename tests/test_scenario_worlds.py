"""Worlds: benign events change what they say, demand noise has its stated size, neighbourhoods agree with networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.grid.cases import load_case
from gg_ray.records import Event
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.grammar import MAGNITUDE_BINS, PRIMITIVES
from gg_ray.scenario.worlds import (
    EPISODE_SCANS,
    LOAD_NOISE,
    LOAD_RHO,
    Fleet,
    Neighbourhood,
    Readings,
    World,
    active_scans,
    apply_benign,
    lose_unit,
    tap_stretches,
    with_taps,
)

CASE = load_case("case57")
FLEET = Fleet(CASE)
SOURCE = ClimatologySource()
LOAD = int(np.argmax(CASE.load_p))
NO_METERS = np.zeros(0, dtype=np.int64)


def _world(seed: int = 0, scans: int = 16) -> World:
    return FLEET.world(SOURCE.window(3, scans, 60.0, "train"), np.random.default_rng(seed))


def _apply(event: Event, seed: int = 0) -> tuple[World, World, Readings]:
    before = _world(seed)
    after, readings = before.copy(), Readings()
    apply_benign(FLEET, after, event, np.array([2]), readings, np.random.default_rng(1))
    return before, after, readings


def test_a_world_repeats_and_its_noise_has_the_stated_process() -> None:
    np.testing.assert_array_equal(_world(5).load_p, _world(5).load_p)
    flat = SOURCE.window(3, 1440, 60.0, "train")
    world = FLEET.world(flat, np.random.default_rng(0))
    loads = CASE.load_p > 0
    shape = np.clip(0.75 * flat.load_T, 0.4, 1.12)[:, None]
    noise = (world.load_p / (CASE.load_p * (1 + (shape - 1) * FLEET.sway) + ~loads))[:, loads] - 1
    # 42 loads of about 1440 (1 - rho) / (1 + rho) = 76 independent scans: 3 standard errors of the deviation are 4 %.
    assert noise.std() == pytest.approx(LOAD_NOISE, rel=0.06)
    lag = np.mean(noise[1:] * noise[:-1]) / np.mean(noise**2)
    assert lag == pytest.approx(LOAD_RHO, abs=0.02)


def test_output_follows_demand() -> None:
    world = _world()
    lift = CASE.gen_p.sum() / CASE.load_p.sum()
    np.testing.assert_allclose(world.gen_p.sum(axis=1), world.load_p.sum(axis=1) * lift, rtol=1e-9)


@given(st.integers(0, MAGNITUDE_BINS - 1), st.integers(2, 12), st.integers(0, 2))
def test_a_load_step_acts_only_in_its_scans_at_its_bus(magnitude: int, onset: int, duration: int) -> None:
    event = Event("load_step", LOAD, onset, magnitude, duration)
    before, after, _ = _apply(event)
    ratio = after.load_p[:, LOAD] / before.load_p[:, LOAD]
    when = active_scans(event, 16)
    expected = 1 - 0.15 + 0.3 * magnitude / (MAGNITUDE_BINS - 1)
    np.testing.assert_allclose(ratio[when], expected)
    outside = np.ones(16, dtype=bool)
    outside[when] = False
    np.testing.assert_array_equal(ratio[outside], 1.0)
    others = np.arange(CASE.n_bus) != LOAD
    np.testing.assert_array_equal(after.load_p[:, others], before.load_p[:, others])


@given(st.integers(0, MAGNITUDE_BINS - 1))
def test_a_large_load_step_stays_within_its_range(magnitude: int) -> None:
    before, after, _ = _apply(Event("load_step_large", LOAD, 4, magnitude, 2))
    factor = (after.load_p / np.where(before.load_p == 0, 1, before.load_p))[4:, LOAD]
    assert (factor >= 0.1 - 1e-12).all()
    assert (factor <= 2.2 + 1e-12).all()
    assert not ((factor > 0.6 + 1e-9) & (factor < 1.4 - 1e-9)).any()


@pytest.mark.parametrize("name", ["demand_transfer", "demand_transfer_large"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_transfer_moves_demand_and_loses_none(name: str, rank: int) -> None:
    before, after, _ = _apply(Event(name, LOAD, 4, 9, 2, rank))
    np.testing.assert_allclose(after.load_p.sum(axis=1), before.load_p.sum(axis=1))
    changed = np.flatnonzero((after.load_p != before.load_p).any(axis=0))
    assert changed.tolist() == sorted({LOAD, FLEET.partner(LOAD, rank)})
    assert (after.load_p[4:, LOAD] < before.load_p[4:, LOAD]).all()


def test_a_lost_unit_is_picked_up_over_three_scans() -> None:
    bus = int(CASE.gen_bus[np.argmax(np.where(CASE.gen_bus == CASE.slack, 0, CASE.gen_p))])
    before, after = _world(), _world()
    lost = lose_unit(FLEET, after, bus, slice(6, 16), np.random.default_rng(0))
    assert lost > 0
    gap = before.gen_p.sum(axis=1) - after.gen_p.sum(axis=1)
    np.testing.assert_allclose(gap[:6], 0.0, atol=1e-12)
    assert gap[6] > gap[7] > gap[8] >= -1e-9
    assert gap[6] < lost


def test_reading_events_touch_no_physics() -> None:
    for name in ("noise_class_change", "meter_outage", "stale_meter"):
        before, after, readings = _apply(Event(name, LOAD, 5, 0, 0))
        for field in ("load_p", "load_q", "gen_p", "gen_v", "out", "gen_out"):
            np.testing.assert_array_equal(getattr(before, field), getattr(after, field))
        assert len(readings.noise) + len(readings.absent) + len(readings.holds) == 1
        for meters, source in readings.holds:
            assert meters.tolist() == [2]
            assert source.tolist() == [0, 1, 2, 3, 4, 4, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15]


def test_an_anomaly_is_not_a_benign_event() -> None:
    with pytest.raises(ValueError, match="'bias' is not a benign primitive"):
        _apply(Event("bias", LOAD, 4))


@pytest.mark.parametrize("name", [p.name for p in PRIMITIVES.values()])
def test_on_a_day_an_anomaly_ends_and_a_benign_event_lasts(name: str) -> None:
    event = Event(name, 0, 100, 0, 2)
    stop = active_scans(event, 1440).stop
    assert stop == (100 + EPISODE_SCANS if PRIMITIVES[name].side == "anomalous" else 1440)
    assert active_scans(event, 48).stop <= 48


def test_tap_moves_are_kept_in_order_of_time() -> None:
    taps = np.flatnonzero(CASE.transformer)[:2]
    world, readings = _world(), Readings()
    for branch, onset in ((taps[0], 9), (taps[1], 4), (taps[0], 6)):
        event = Event("tap_move", CASE.n_bus + int(branch), onset)
        apply_benign(FLEET, world, event, NO_METERS, readings, np.random.default_rng(0))
    assert [first for _, _, first in world.taps] == [4, 6, 9]
    last = tap_stretches(world.taps, 16)[-1][1]
    moved = with_taps(CASE, last)
    assert dict(last) == {int(b): float(moved.tap[b]) for b in taps}
    assert moved.tap[taps[0]] == pytest.approx(CASE.tap[taps[0]] * 1.0125), "the later move (odd scan: up) is in force"
    assert with_taps(CASE, ()) is CASE


@given(st.integers(0, CASE.n_bus - 1), st.integers(0, 4))
def test_neighbourhoods_agree_with_networkx(bus: int, hops: int) -> None:
    graph = nx.Graph()
    graph.add_nodes_from(range(CASE.n_bus))
    graph.add_edges_from(zip(CASE.f_bus.tolist(), CASE.t_bus.tolist(), strict=True))
    expected = nx.single_source_shortest_path_length(graph, bus)
    found = Neighbourhood(CASE).hops(bus)
    assert {i: int(h) for i, h in enumerate(found)} == expected
    assert FLEET.area(bus, hops).tolist() == sorted(i for i, h in expected.items() if h <= hops)
