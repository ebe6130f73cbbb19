"""gg_ray.grid.outages: a grid without some of its branches keeps its arrays and obeys Kirchhoff's law."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from gg_ray.grid.cases import CaseError, load_case
from gg_ray.grid.outages import standing_outages, without
from gg_ray.grid.powerflow import bridges
from gg_ray.grid.ybus import branch_admittance, branch_flows, ybus

CASE = load_case("case14")


def test_the_base_state_without_a_branch_balances_and_the_branch_carries_nothing() -> None:
    branch = int(np.flatnonzero(~bridges(CASE))[2])
    reduced = without(CASE, [branch])
    flow = np.abs(branch_flows(reduced, reduced.v0[None], branch_admittance(reduced))[0][0])
    assert flow[branch] < 1e-7
    assert np.abs(branch_flows(CASE, CASE.v0[None], branch_admittance(CASE))[0][0])[branch] > 1e-2, (
        "it carried something before"
    )
    injection = reduced.v0 * np.conj(ybus(reduced) @ reduced.v0)
    load = CASE.load_p + 1j * CASE.load_q
    passive = np.setdiff1d(np.arange(CASE.n_bus), CASE.gen_bus)
    np.testing.assert_allclose(injection[passive], -load[passive], atol=1e-6)
    assert reduced.n_branch == CASE.n_branch
    assert without(CASE, []) is CASE


def test_an_outage_that_splits_the_grid_is_refused_by_name() -> None:
    bridge = int(np.flatnonzero(bridges(CASE))[0])
    with pytest.raises(CaseError, match=rf"case14: outage of {CASE.branch_names[bridge]} splits the grid"):
        without(CASE, [bridge])


def test_branches_become_bridges_as_others_are_opened() -> None:
    first = int(np.flatnonzero(~bridges(CASE))[0])
    after = bridges(CASE, [first])
    assert after[first], "nothing opens it again"
    assert set(np.flatnonzero(bridges(CASE))) < set(np.flatnonzero(after))


@pytest.mark.parametrize("name", ["case14", "case30", "gb29"])
def test_standing_outages_are_of_one_and_two_branches_in_turn_and_differ(name: str) -> None:
    case = load_case(name)
    found = list(islice(standing_outages(case, np.random.default_rng(0)), 6))
    assert [len(outage) for outage in found] == [1, 2, 1, 2, 1, 2]
    assert len(set(found)) == 6
    for outage in found:
        assert np.abs(without(case, outage).v0).min() > 0.85
    assert found == list(islice(standing_outages(case, np.random.default_rng(0)), 6))
