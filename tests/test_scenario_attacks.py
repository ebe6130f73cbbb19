"""Stealth attacks: fake states balance inside their area, leave the rest alone and stay credible."""

from __future__ import annotations

import numpy as np
import pytest

from gg_ray.grid.cases import load_case
from gg_ray.grid.ybus import ybus
from gg_ray.scenario.attacks import MAX_LOAD_SHARE, Area, Attacker, direction

CASES = {name: load_case(name) for name in ("case14", "case57")}
ATTACKERS = {name: Attacker(case) for name, case in CASES.items()}


def _areas(name: str) -> list[tuple[int, Area]]:
    loads = np.flatnonzero(CASES[name].load_p > 0.01)
    found = [(int(bus), ATTACKERS[name].area(int(bus), 1)) for bus in loads]
    return [(bus, area) for bus, area in found if area is not None]


@pytest.mark.parametrize("name", list(CASES))
def test_an_area_is_enclosed_by_buses_with_an_injection(name: str) -> None:
    case = CASES[name]
    passive = (case.load_p == 0) & (case.load_q == 0)
    passive[case.gen_bus] = False
    areas = _areas(name)
    assert len(areas) > 3
    for bus, area in areas:
        assert bus in area.interior
        assert case.slack not in area.interior
        assert not passive[area.boundary].any()
        inside = np.isin(np.arange(case.n_bus), area.interior)
        crossing = inside[case.f_bus] != inside[case.t_bus]
        ends = np.concatenate([case.f_bus[crossing], case.t_bus[crossing]])
        assert set(ends[~inside[ends]].tolist()) == set(area.boundary.tolist())


def test_a_larger_ball_is_taken_where_it_can_be_enclosed() -> None:
    attacker, grown = ATTACKERS["case57"], 0
    for bus, small in _areas("case57"):
        large = attacker.area(bus, 2)
        assert large is not None, "what one hop encloses, a request for two hops falls back to"
        grown += int(large.interior.size > small.interior.size)
    assert grown > 3


def test_the_slack_cannot_be_rewritten() -> None:
    attacker = ATTACKERS["case14"]
    assert attacker.area(CASES["case14"].slack, 0) is None


def test_an_attack_is_reachable_on_the_national_grid() -> None:
    case = load_case("gb")
    attacker = Attacker(case)
    loads = np.flatnonzero(case.load_p > 0.01)
    reached = [attacker.area(int(bus), 1) for bus in loads]
    assert np.mean([area is not None for area in reached]) > 0.1


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_a_fake_state_has_the_wanted_injections_and_the_true_voltages_outside(name: str, share: float) -> None:
    case, attacker = CASES[name], ATTACKERS[name]
    y = ybus(case)
    v = np.tile(case.v0, (3, 1)) * np.exp(1j * np.array([[0.0], [0.1], [0.3]]))
    for bus, area in _areas(name)[:8]:
        pattern = direction(case, area, bus) * case.load_p[bus]
        ds = np.outer([share, share / 2, 0.0], pattern) * (1 + 0.2j)
        fake = attacker.fake_state(v, area, ds)
        assert fake is not None
        outside = np.setdiff1d(np.arange(case.n_bus), area.interior)
        np.testing.assert_array_equal(fake[:, outside], v[:, outside])
        change = fake * np.conj((y @ fake.T).T) - v * np.conj((y @ v.T).T)
        np.testing.assert_allclose(change[:, area.interior], ds, atol=1e-6)
        beyond = np.setdiff1d(outside, area.boundary)
        assert np.abs(change[:, beyond]).max(initial=0.0) < 1e-12
        np.testing.assert_allclose(fake[2], v[2], atol=1e-8)


def test_an_impossible_change_is_none_not_a_wrong_state() -> None:
    case, attacker = CASES["case14"], ATTACKERS["case14"]
    _, area = _areas("case14")[0]
    ds = np.full((1, area.interior.size), -50.0 + 0j)
    assert attacker.fake_state(case.v0[None], area, ds) is None


def test_credibility_ends_at_the_stated_share_of_the_local_size() -> None:
    case, attacker = CASES["case57"], ATTACKERS["case57"]
    size = np.abs(case.load_p + 1j * case.load_q)
    size[case.gen_bus] += np.abs(case.gen_p)
    accepted, refused = 0, 0
    for bus, area in _areas("case57"):
        for share in (0.25 * MAX_LOAD_SHARE, 3 * MAX_LOAD_SHARE):
            ds = direction(case, area, bus)[None] * case.load_p[bus] * share + 0j
            fake = attacker.fake_state(case.v0[None], area, ds)
            if fake is None:
                continue
            credible = attacker.credible(case.v0[None], fake, area)
            if case.load_p[bus] * share > MAX_LOAD_SHARE * size[bus] + 2e-3:
                assert not credible
                refused += 1
            accepted += credible
    assert accepted
    assert refused > 10


def test_demand_moves_from_the_target_to_its_neighbours() -> None:
    case = CASES["case57"]
    for bus, area in _areas("case57"):
        pattern = direction(case, area, bus)
        here = int(np.flatnonzero(area.interior == bus)[0])
        assert pattern[here] == pytest.approx(1.0)
        others = np.delete(pattern, here)
        assert (others <= 0).all()
        if (np.delete(case.load_p[area.interior], here) != 0).any():
            assert pattern.sum() == pytest.approx(0.0, abs=1e-12)
