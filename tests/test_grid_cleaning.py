"""Cleaning: GB within its statutory bands, merging without losing names or power, case57's taps, ratings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gg_ray.grid import cleaning
from gg_ray.grid.cases import MERGE_Z_PU, PQ, CaseError, load_case, load_published
from gg_ray.grid.cleaning import merge_low_impedance, published_to_node, reset_voltages, statutory_bands
from gg_ray.grid.powerflow import PowerFlow, connected
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows, injections

CLEANED = ("case14", "case30", "case57", "gb29", "gb", "case39", "case118", "case300", "illinois200")


@pytest.mark.slow
def test_gb_holds_every_voltage_inside_its_statutory_band() -> None:
    case = load_case("gb")
    width = np.select([case.vn_kv >= 380, case.vn_kv >= 130], [0.05, 0.10], 0.06)
    np.testing.assert_allclose(statutory_bands(case), (1 - width, 1 + width))
    assert (np.abs(np.abs(case.v0) - 1) <= width).all()
    np.testing.assert_allclose((case.v_min, case.v_max), (1 - width, 1 + width))
    assert case.tap.min() >= 0.85 - 1e-12
    assert case.tap.max() <= 1.15 + 1e-12
    before = PowerFlow(load_published("gb"), max_iter=30).solve_base().v_RN
    assert np.abs(before).min() < 0.81  # what the cleaning is for
    assert np.abs(before).max() > 1.19


def test_gb_keeps_every_published_bus_and_name() -> None:
    case, published = load_case("gb"), load_published("gb")
    assert (case.n_bus, case.n_branch) == (2062, 3042)
    assert (published.n_bus, published.n_branch) == (2224, 3207)
    assert len(case.merged_z) == 165
    assert case.node_of_bus.shape == (2224,)
    assert np.unique(case.node_of_bus).tolist() == list(range(2062))
    assert sorted("/".join(case.bus_names).split("/")) == sorted(published.bus_names)
    for bus in (0, 777, 2223):
        assert published.bus_names[published.node_of_bus[bus]] in case.bus_names[published_to_node(case, bus)].split(
            "/"
        )
    assert np.hypot(case.r, case.x)[~case.transformer].min() >= MERGE_Z_PU


def test_merging_keeps_load_generation_and_units() -> None:
    case, published = merge_low_impedance(load_published("gb"), MERGE_Z_PU), load_published("gb")
    for field in ("load_p", "load_q", "gs", "gen_p"):
        np.testing.assert_allclose(getattr(case, field).sum(), getattr(published, field).sum())
    np.testing.assert_allclose(case.bs.sum() + case.b.sum(), published.bs.sum() + published.b.sum())
    assert case.b.sum() < published.b.sum() - 15  # 1,564 Mvar of charging has become shunts
    np.testing.assert_array_equal(case.node_of_bus[published.gen_bus[published.unit_gen]], case.gen_bus[case.unit_gen])
    assert case.kind[case.node_of_bus[published.slack]] == published.kind[published.slack]
    assert connected(case, np.zeros(case.n_branch, dtype=bool))


def test_merging_moves_the_state_by_less_than_two_thousandths() -> None:
    published = load_published("gb")
    merged = merge_low_impedance(published, MERGE_Z_PU)
    before = PowerFlow(published, max_iter=30).solve_base().v_RN[0]
    after = PowerFlow(merged, max_iter=30).solve_base().v_RN[0]
    assert 0 < np.abs(np.abs(after[merged.node_of_bus]) - np.abs(before)).max() < 2e-3


def test_transformers_are_never_merged_and_nothing_small_returns_the_case_itself() -> None:
    case = load_published("case14")
    assert merge_low_impedance(case, 1e-9) is case
    everything = merge_low_impedance(case, 10.0)
    stepping = (case.tap != 1) | (case.shift != 0) | (case.vn_kv[case.f_bus] != case.vn_kv[case.t_bus])
    assert everything.n_branch <= stepping.sum()
    assert len(everything.merged_z) == (~stepping).sum()


def test_case57_has_the_published_voltages() -> None:
    """0.936 p.u. at bus 31 in the IEEE solution; pandapower's orientation of the taps gives 0.72."""
    assert abs(np.abs(load_case("case57").v0).min() - 0.936) < 1e-3
    assert np.abs(PowerFlow(load_published("case57"), max_iter=30).solve_base().v_RN).min() < 0.73


@pytest.mark.parametrize("name", CLEANED)
def test_the_cleaned_base_state_carries_its_requested_injections(name: str) -> None:
    case = load_case(name)
    s = -(case.load_p + 1j * case.load_q)
    s[case.gen_bus] += case.gen_p
    residual = Judge(case).residual(case.v0[None], s[None])[0]
    assert np.abs(residual.real).max() < 1e-6  # the slack too: its output is what it delivers
    assert np.abs(residual.imag[case.kind == PQ]).max() < 1e-6
    taken = injections(case, case.v0[None], *branch_flows(case, case.v0[None], branch_admittance(case)))
    assert np.abs(Judge(case).residual(case.v0[None], taken)).max() < 1e-9
    assert (np.abs(case.v0) >= case.v_min).all()
    assert (np.abs(case.v0) <= case.v_max).all()


def test_a_grid_that_cannot_be_brought_into_its_bands_is_refused() -> None:
    with pytest.raises(CaseError, match=r"gb: bus .* stays at .* p\.u\. \(\d+ buses\)"):
        reset_voltages(merge_low_impedance(load_published("gb"), MERGE_Z_PU), rounds=1)


def test_a_base_state_without_solution_is_refused() -> None:
    case = load_published("case14")
    with pytest.raises(CaseError, match="case14: the base state does not converge"):
        cleaning.prepare(replace(case, load_p=20 * case.load_p))


def test_derived_ratings_leave_a_margin_and_a_floor() -> None:
    case = load_case("gb29")
    assert case.derived_rating
    flow = np.max([np.abs(end[0]) for end in branch_flows(case, case.v0[None], branch_admittance(case))], axis=0)
    floor = 0.6 * np.quantile(flow, 0.75)
    for name in ("case14", "gb", "case118"):
        loaded = load_case(name)
        ends = branch_flows(loaded, loaded.v0[None], branch_admittance(loaded))
        assert (np.max([np.abs(end[0]) for end in ends], axis=0) < loaded.rate).all()
    bare = cleaning._ratings(replace(case, rate=np.zeros(case.n_branch)))
    np.testing.assert_allclose(bare.rate, np.maximum(1.5 * flow, floor))
    given = replace(case, rate=np.linspace(50, 60, case.n_branch), derived_rating=False)
    assert cleaning._ratings(given) is given
