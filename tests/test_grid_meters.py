"""The meter model: h(x) against a slow reference, plans that depend on nothing but (case, plan_id), delivery."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.meters import (
    PMU_SHARE,
    POWER_CLASSES,
    POWER_FLOOR_PU,
    STALE_RATE,
    VOLTAGE_CLASSES,
    Delivery,
    MeterPlan,
    deliver,
    draw_delivery,
    draw_plan,
    layout_of,
    measure,
)
from gg_ray.grid.ybus import branch_admittance, branch_flows, injections

KAPPA = (0.35, 0.7)


def states(case: GridCase, rows: int) -> NDArray[np.complex128]:
    rng = np.random.default_rng(5)
    shape = (rows, case.n_bus)
    return case.v0 * (1 + 0.02 * rng.standard_normal(shape)) * np.exp(0.3j + 0.02j * rng.standard_normal(shape))


@pytest.mark.parametrize("name", ["case14", "case57", "gb29", "case300"])
@pytest.mark.parametrize("outages", ["none", "shared", "per row"])
def test_readings_equal_the_complex_reference(name: str, outages: str) -> None:
    case, layout = load_case(name), layout_of(load_case(name))
    v, y = states(case, 3), branch_admittance(case)
    status = np.ones((3, case.n_branch), dtype=bool)
    if outages == "shared":
        status[:, [0, 5]] = False
    if outages == "per row":
        status[1, [0, 5]] = status[2, 9] = False
    given_status = {"none": None, "shared": status[:1], "per row": status}[outages]
    h = measure(case, v, None, given_status)
    s_f, s_t = branch_flows(case, v, y, status)
    s = injections(case, v, s_f, s_t)
    relative = np.angle(v * np.exp(-1j * np.angle(v[:, [case.slack]])))
    for channel, want in enumerate((np.abs(v), s.real, s.imag, relative)):
        np.testing.assert_allclose(h[:, layout.bus(channel)], want, atol=1e-9)
    for channel, want in enumerate((s_f.real, s_f.imag, s_t.real, s_t.imag)):
        np.testing.assert_allclose(h[:, layout.branch(channel)], want, atol=1e-9)


def test_declared_admittances_replace_the_cases_own() -> None:
    case, layout = load_case("case14"), layout_of(load_case("case14"))
    x_scale = np.ones(case.n_branch)
    x_scale[4] = 1.3
    changed = (
        measure(case, case.v0[None], branch_admittance(case, x_scale=x_scale))[0] - measure(case, case.v0[None])[0]
    )
    moved = np.flatnonzero(np.abs(changed) > 1e-9)
    ends = np.concatenate([layout.bus_channels(int(b))[1:3] for b in (case.f_bus[4], case.t_bus[4])])
    assert set(moved) == {*layout.branch_channels(4), *ends}


def test_layout_covers_every_channel_once_and_knows_the_owner() -> None:
    layout = layout_of(load_case("case14"))
    slices = [layout.bus(k) for k in range(4)] + [layout.branch(k) for k in range(4)]
    assert np.concatenate([np.arange(layout.size)[s] for s in slices]).tolist() == list(range(layout.size))
    bus, branch = layout.owner()
    assert ((bus >= 0) ^ (branch >= 0)).all()
    for i in (0, 13):
        assert np.flatnonzero(bus == i).tolist() == layout.bus_channels(i).tolist()
    for e in (0, 19):
        assert np.flatnonzero(branch == e).tolist() == layout.branch_channels(e).tolist()


def plans_equal(a: MeterPlan, b: MeterPlan) -> bool:
    return a.kappa == b.kappa and all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ("channels", "index_of", "sigma", "period", "phase")
    )


def test_a_plan_depends_on_case_and_number_alone() -> None:
    case = load_case("case118")
    first = draw_plan(case, 3, KAPPA, 0.01)
    np.random.seed(1)  # noqa: NPY002 - the global stream must not matter
    draw_plan(load_case("case14"), 9, KAPPA, 0.2)
    assert plans_equal(first, draw_plan(case, 3, KAPPA, 0.01))
    assert plans_equal(first, draw_plan(replace(case, rate=case.rate * 2, region=case.region * 0), 3, KAPPA, 0.01))
    assert not plans_equal(first, draw_plan(case, 4, KAPPA, 0.01))
    assert first.kappa != draw_plan(load_case("case300"), 3, KAPPA, 0.01).kappa


def test_plans_keep_to_the_observability_range_and_the_accuracy_classes() -> None:
    case = load_case("case300")
    plans = [draw_plan(case, i, KAPPA, 0.01) for i in range(40)]
    shares = np.array([plan.kappa for plan in plans])
    assert (shares >= KAPPA[0]).all()
    assert (shares <= KAPPA[1]).all()
    assert np.ptp(shares) > 0.25  # they really vary
    base = np.abs(measure(case, case.v0[None])[0])
    for plan in plans[:5]:
        layout, has = plan.layout, plan.index_of >= 0
        assert has.sum() == plan.size
        assert (plan.index_of[plan.channels] == np.arange(plan.size)).all()
        n_ends = case.n_branch
        assert abs(has[layout.branch(0)].mean() - plan.kappa) < 5 * np.sqrt(0.25 / n_ends)
        assert (has[layout.bus(0)] == has[layout.bus(1)]).all()  # one RTU reads V, P and Q
        assert (has[layout.bus(0)] == has[layout.bus(2)]).all()
        assert (has[layout.branch(2)] == has[layout.branch(3)]).all()
        assert has[layout.bus(3)].mean() < 3 * PMU_SHARE * plan.kappa
        sigma = plan.expand(plan.sigma)
        assert set(np.unique(sigma[layout.bus(0)][has[layout.bus(0)]])) <= set(VOLTAGE_CLASSES)
        power = np.concatenate([np.flatnonzero(has)[(plan.channels >= case.n_bus) & (plan.channels < 3 * case.n_bus)]])
        ratio = np.array([np.maximum(c * base[power], POWER_FLOOR_PU) for c in POWER_CLASSES])
        assert (np.abs(ratio - sigma[power]).min(axis=0) < 1e-12).all()
        assert plan.at(np.arange(layout.size)).tolist() == list(range(plan.size))
        assert plan.at(np.flatnonzero(~has)).size == 0
        assert np.isnan(sigma[~has]).all()


def test_delivery_is_drawn_alike_from_the_same_stream() -> None:
    plan = draw_plan(load_case("case57"), 0, KAPPA, 0.01)
    a, b = (draw_delivery(plan, 24, np.random.default_rng(8)) for _ in range(2))
    np.testing.assert_array_equal(a.source_TM, b.source_TM)
    np.testing.assert_array_equal(a.absent_TM, b.absent_TM)
    c = draw_delivery(plan, 24, np.random.default_rng(9))
    assert (a.absent_TM != c.absent_TM).any()


def test_missing_and_stale_shares_lie_within_binomial_bounds() -> None:
    plan = draw_plan(load_case("case300"), 0, KAPPA, 0.03)
    plan = replace(plan, phase=np.zeros_like(plan.phase), period=np.ones_like(plan.period))
    absent = held = total = 0
    for seed in range(20):
        delivery = draw_delivery(plan, 48, np.random.default_rng(seed))
        absent += int(delivery.absent_TM.sum())
        held += int((delivery.source_TM[1:] < np.arange(1, 48)[:, None]).sum())
        total += delivery.absent_TM.size
    for count, rate, extra in ((absent, 0.03, 4 * 6 * 20), (held, STALE_RATE * 47 / 48, 0)):
        spread = 5 * np.sqrt(rate * (1 - rate) * total)
        assert rate * total - spread < count < rate * total + spread + extra  # extra: at most one quiet RTU a window


def test_slow_meters_hold_every_second_scan() -> None:
    plan = draw_plan(load_case("case57"), 0, KAPPA, 0.0)
    slow = plan.period == 2
    assert 0 < slow.mean() < 0.25
    source = np.median([draw_delivery(plan, 8, np.random.default_rng(s)).source_TM for s in range(9)], axis=0)
    assert (source[:, ~slow] == np.arange(8)[:, None]).all()
    assert ((source[1:, slow] == source[:-1, slow]).sum(axis=0) >= 3).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 12))
def test_delivery_holds_ages_and_blanks(seed: int, scans: int, meters: int) -> None:
    """Against a loop that keeps the newest scan seen so far, channel by channel."""
    rng = np.random.default_rng(seed)
    back = rng.integers(0, 3, (scans, meters))
    source = np.maximum(np.arange(scans)[:, None] - back, 0)
    delivery = Delivery(source_TM=source, absent_TM=rng.random((scans, meters)) < 0.3)
    reading = rng.standard_normal((scans, meters))
    before = reading.copy()
    z, age = deliver(reading, delivery)
    assert (reading == before).all()  # the true readings are shared with the twin
    for m in range(meters):
        newest = -1
        for t in range(scans):
            if delivery.absent_TM[t, m]:
                assert np.isnan(z[t, m])
            else:
                assert z[t, m] == reading[source[t, m], m]
                newest = max(newest, int(source[t, m]))
            assert age[t, m] == (255 if newest < 0 else t - newest)


def test_measuring_some_channels_gives_the_same_bits_as_measuring_all() -> None:
    case = load_case("case57")
    rng = np.random.default_rng(0)
    v = case.v0 * (1 + 0.01 * rng.standard_normal((3, case.n_bus)))
    status = rng.random((3, case.n_branch)) > 0.1
    channels = rng.permutation(layout_of(case).size)[:50]
    some = measure(case, v, None, status, channels)
    np.testing.assert_array_equal(some, measure(case, v, None, status)[:, channels])
