"""The engine against pandapower's solver and our own judge; outages, islands, divergence, refusals, repeatability."""

from __future__ import annotations

import functools
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gg_ray.grid.cases import PQ, PV, CaseError, GridCase, load_case, load_published, pandapower_net, with_tap
from gg_ray.grid.powerflow import PowerFlow, Solution, bridges, connected
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows, injections

PUBLISHED = ("case14", "case30", "case57", "gb29", "gb", "case39", "case118", "case300", "illinois200")
GOLDEN = Path(__file__).parent / "golden" / "grid_case14.json"
IEEE14_VM = (1.060, 1.045, 1.010, 1.019, 1.020, 1.070, 1.062, 1.090, 1.056, 1.051, 1.057, 1.055, 1.050, 1.036)
IEEE14_DEG = (0, -4.98, -12.72, -10.33, -8.78, -14.22, -13.37, -13.36, -14.94, -15.10, -14.79, -15.07, -15.16, -16.04)
"""Solution printed in the IEEE common data file, up to 0.0014 p.u. (bus 4) and 0.02 degrees from a converged one."""


@functools.cache
def solved(name: str) -> tuple[GridCase, Solution]:
    case = load_published(name)
    return case, PowerFlow(case, tol_pu=1e-8, max_iter=30).solve_base()


def inputs(case: GridCase, rows: int) -> list[NDArray[np.float64]]:
    return [np.tile(array, (rows, 1)) for array in (case.load_p, case.load_q, case.gen_p, case.gen_v)]


def requested(case: GridCase) -> NDArray[np.complex128]:
    s = -(case.load_p + 1j * case.load_q)
    s[case.gen_bus] += case.gen_p
    return s


def mismatch(case: GridCase, v_N: NDArray[np.complex128]) -> float:
    """Largest deviation from the requested P at PQ and PV buses and Q at PQ buses, p.u., seen by the judge."""
    residual = Judge(case).residual(v_N[None], requested(case)[None])[0]
    held = (case.kind == PQ) | (case.kind == PV)
    return float(max(np.abs(residual.real[held]).max(), np.abs(residual.imag[case.kind == PQ]).max()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_states_agree_with_pandapower(name: str) -> None:
    case, solution = solved(name)
    assert solution.converged_R.all()
    net = pandapower_net(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandapower's pandas deprecations
        import pandapower

        pandapower.runpp(net, tolerance_mva=1e-8)
    theirs = net.res_bus.vm_pu.to_numpy() * np.exp(1j * np.deg2rad(net.res_bus.va_degree.to_numpy()))
    assert case.node_of_bus.size == len(net.bus)
    assert np.abs(solution.v_RN[0][case.node_of_bus] - theirs).max() < 1e-6


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_judge_confirms_requested_injections(name: str) -> None:
    case, solution = solved(name)
    v = solution.v_RN
    assert mismatch(case, v[0]) < 1e-6
    np.testing.assert_allclose(np.abs(v[0][case.gen_bus]), case.gen_v, atol=1e-9)
    taken = injections(case, v, *branch_flows(case, v, branch_admittance(case)))
    assert np.abs(Judge(case).residual(v, taken)).max() < 1e-9


def test_the_judge_does_not_pass_a_wrong_state() -> None:
    case, solution = solved("case14")
    assert mismatch(case, solution.v_RN[0] * np.exp(1e-4j * np.arange(case.n_bus))) > 1e-4


def test_a_bridge_outage_is_split_and_not_diverged() -> None:
    case = load_case("case118")
    out = np.zeros((2, case.n_branch), dtype=bool)
    out[1, np.flatnonzero(bridges(case))[0]] = True
    solution = PowerFlow(case).solve(*inputs(case, 2), out)
    assert solution.converged_R.tolist() == [True, False]
    assert solution.split_R.tolist() == [False, True]
    assert np.isnan(solution.v_RN[1]).all()
    assert np.isfinite(solution.v_RN[0]).all()


def test_six_times_the_load_diverges_and_is_not_split() -> None:
    case = load_case("case118")
    load_p, load_q, gen_p, gen_v = inputs(case, 2)
    load_p[0], load_q[0] = 6 * load_p[0], 6 * load_q[0]
    solution = PowerFlow(case).solve(load_p, load_q, gen_p, gen_v, np.zeros((2, case.n_branch), dtype=bool))
    assert solution.converged_R.tolist() == [False, True]
    assert not solution.split_R.any()
    assert solution.iterations_R[0] > 0
    assert np.isnan(solution.v_RN[0]).all()


@pytest.mark.parametrize("name", ["case14", "gb29", "case300"])
def test_outage_rows_match_a_case_rebuilt_without_the_branch(name: str) -> None:
    case = load_case(name)
    branches = np.flatnonzero(~bridges(case))
    chosen = np.unique(
        [branches[0], branches[branches.size // 2], np.flatnonzero(case.transformer & ~bridges(case))[0]]
    )
    out = np.zeros((chosen.size, case.n_branch), dtype=bool)
    out[np.arange(chosen.size), chosen] = True
    solution = PowerFlow(case, max_iter=30).solve(*inputs(case, chosen.size), out)
    for row, branch in enumerate(chosen):
        kept = {f: np.delete(getattr(case, f), branch) for f in
                ("f_bus", "t_bus", "r", "x", "g", "b", "tap", "shift", "rate", "transformer")}  # fmt: skip
        rebuilt = PowerFlow(replace(case, **kept), max_iter=30).solve_base()
        assert solution.converged_R[row] == rebuilt.converged_R[0]
        np.testing.assert_allclose(solution.v_RN[row], rebuilt.v_RN[0], atol=1e-8)
        assert np.abs(solution.v_RN[row] - case.v0).max() > 1e-5  # the outage did something


def test_a_generator_outage_frees_its_voltage_and_drops_its_output() -> None:
    case = load_case("case118")
    lost = int(np.flatnonzero((case.gen_p > 0.5) & (case.gen_bus != case.slack))[0])
    out = np.zeros((2, case.n_gen), dtype=bool)
    out[1, lost] = True
    solution = PowerFlow(case).solve(*inputs(case, 2), None, out)
    assert solution.converged_R.all()
    bus = case.gen_bus[lost]
    kind, keep = case.kind.copy(), np.arange(case.n_gen) != lost
    kind[bus] = PQ
    without = replace(
        case, kind=kind, gen_bus=case.gen_bus[keep], gen_p=case.gen_p[keep], gen_v=case.gen_v[keep]
    )  # fmt: skip
    assert mismatch(without, solution.v_RN[1]) < 1e-6
    assert mismatch(case, solution.v_RN[1]) > 0.5
    assert abs(abs(solution.v_RN[1, bus]) - case.gen_v[lost]) > 1e-5


def test_inputs_change_the_rows_they_are_given_for() -> None:
    case = load_case("case57")
    load_p, load_q, gen_p, gen_v = inputs(case, 2)
    load_p[1] *= 0.8
    gen_v[1] -= 0.01
    v = PowerFlow(case).solve(load_p, load_q, gen_p, gen_v).v_RN
    np.testing.assert_allclose(v[0], case.v0, atol=1e-9)
    lighter = replace(case, load_p=0.8 * case.load_p, gen_v=case.gen_v - 0.01)
    assert mismatch(lighter, v[1]) < 1e-6
    np.testing.assert_allclose(np.abs(v[1][case.gen_bus]), case.gen_v - 0.01, atol=1e-9)


def test_a_tap_move_is_solved_as_declared() -> None:
    case = load_case("case14")
    branch = int(np.flatnonzero(case.transformer)[0])
    moved = with_tap(case, branch, case.tap[branch] + 0.025)
    v = PowerFlow(moved).solve_base().v_RN[0]
    assert mismatch(moved, v) < 1e-6
    assert mismatch(case, v) > 1e-3


@pytest.mark.parametrize("label", ["load_p", "load_q", "gen_p", "gen_v"])
def test_a_nan_input_is_named_by_row_and_column(label: str) -> None:
    case = load_case("case14")
    arrays = inputs(case, 3)
    arrays[["load_p", "load_q", "gen_p", "gen_v"].index(label)][2, 1] = np.nan
    with pytest.raises(CaseError, match=f"case14: {label} is not finite at row 2, column 1"):
        PowerFlow(case).solve(*arrays)


def test_row_counts_and_masks_may_change_between_calls() -> None:
    case = load_case("case14")
    engine = PowerFlow(case)
    none, gens = np.zeros((5, case.n_branch), dtype=bool), np.zeros((2, case.n_gen), dtype=bool)
    calls: list[tuple[int, dict[str, Any]]] = [
        (1, {}),
        (5, {"branch_out_RE": none}),
        (2, {"gen_out_RG": gens}),
        (3, {}),
    ]
    for rows, masks in calls:
        solution = engine.solve(*inputs(case, rows), **masks)
        assert solution.v_RN.shape == (rows, case.n_bus)
        np.testing.assert_allclose(solution.v_RN, np.tile(case.v0, (rows, 1)), atol=1e-9)


def test_an_outage_does_not_linger_in_the_next_call() -> None:
    case = load_case("case14")
    engine = PowerFlow(case)
    out = np.zeros((1, case.n_branch), dtype=bool)
    out[0, 0] = True
    assert np.abs(engine.solve(*inputs(case, 1), out).v_RN[0] - case.v0).max() > 1e-3
    np.testing.assert_allclose(engine.solve(*inputs(case, 1), ~out & False).v_RN[0], case.v0, atol=1e-9)


def test_two_runs_are_bit_identical() -> None:
    case = load_case("case300")
    rng = np.random.default_rng(3)
    load_p, load_q, gen_p, gen_v = inputs(case, 8)
    load_p *= rng.uniform(0.95, 1.05, load_p.shape)
    out = np.zeros((8, case.n_branch), dtype=bool)
    out[np.arange(8), np.flatnonzero(~bridges(case))[:8]] = True
    first = PowerFlow(case).solve(load_p, load_q, gen_p, gen_v, out)
    engine = PowerFlow(case)
    engine.solve(0.9 * load_p, load_q, gen_p, gen_v, out)  # the history of an engine must not show
    for _ in range(2):
        again = engine.solve(load_p, load_q, gen_p, gen_v, out)
        assert again.v_RN.tobytes() == first.v_RN.tobytes()


def test_a_load_on_a_bus_without_one_is_refused() -> None:
    case = load_case("case14")
    arrays = inputs(case, 1)
    empty = int(np.setdiff1d(np.arange(case.n_bus), PowerFlow(case).load_buses)[0])
    arrays[0][0, empty] = 0.1
    with pytest.raises(CaseError, match=f"bus {case.bus_names[empty]}"):
        PowerFlow(case).solve(*arrays)


@pytest.mark.parametrize("name", ["case14", "case118", "gb29"])
def test_bridges_are_exactly_the_branches_that_split_the_grid(name: str) -> None:
    case = load_case(name)
    single = np.eye(case.n_branch, dtype=bool)
    splits = [not connected(case, row) for row in single]
    np.testing.assert_array_equal(bridges(case), splits)


def test_a_model_needs_one_slack_and_no_generator_on_a_pq_bus() -> None:
    case = load_case("case14")
    kind = case.kind.copy()
    kind[case.gen_bus[1]] = PQ
    with pytest.raises(CaseError, match="sits on PQ bus"):
        PowerFlow(replace(case, kind=kind))
    with pytest.raises(CaseError, match="exactly one slack bus, has 0"):
        PowerFlow(replace(case, kind=np.where(case.kind == 3, PV, case.kind)))


def test_golden_case14() -> None:
    """Same voltages as the committed file to 1e-8 p.u., the solver's tolerance; the file says how it is made."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    case = load_case("case14")
    assert list(case.bus_names) == golden["bus"]
    np.testing.assert_allclose(np.abs(case.v0), golden["vm_pu"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.angle(case.v0), golden["va_rad"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.abs(case.v0), IEEE14_VM, atol=1.4e-3)
    np.testing.assert_allclose(np.rad2deg(np.angle(case.v0)), IEEE14_DEG, atol=0.025)
    at_4, at_5 = (int(case.bus_names.index(name)) for name in ("4", "5"))
    others = np.delete(np.arange(case.n_bus), [at_4, at_5])
    np.testing.assert_allclose(np.abs(case.v0)[others], np.array(IEEE14_VM)[others], atol=5.1e-4)  # its three decimals
