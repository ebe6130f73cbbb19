"""Admittances and the judge: independent oracles, outages, renumbering, and the float32 trap."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gg_ray.grid.cases import CaseError, GridCase, load_case, load_published, pandapower_net
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows, ends_matrix, injections, ybus

C128 = NDArray[np.complex128]


def states(case: GridCase, rows: int, seed: int = 0) -> C128:
    rng = np.random.default_rng(seed)
    shape = (rows, case.n_bus)
    return case.v0 * (1 + 0.02 * rng.standard_normal(shape)) * np.exp(0.02j * rng.standard_normal(shape))


def injected(case: GridCase, v_RN: C128) -> C128:
    return injections(case, v_RN, *branch_flows(case, v_RN, branch_admittance(case)))


def relabelled(case: GridCase, new: NDArray[np.int64]) -> GridCase:
    """Bus i becomes bus new[i]."""
    old = np.argsort(new)
    return replace(
        case, f_bus=new[case.f_bus], t_bus=new[case.t_bus], gs=case.gs[old], bs=case.bs[old], v0=case.v0[old]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["case14", "case57", "case300"])
def test_matrix_equals_pandapowers_own(name: str) -> None:
    net = pandapower_net(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandapower's pandas deprecations
        import pandapower

        pandapower.runpp(net)
    theirs = net._ppc["internal"]["Ybus"].toarray()
    case = load_published(name)
    node = net._pd2ppc_lookups["bus"][net.bus.index.to_numpy()]
    ours = ybus(case).toarray()
    np.testing.assert_allclose(
        ours[np.ix_(case.node_of_bus, case.node_of_bus)], theirs[np.ix_(node, node)], rtol=1e-9, atol=1e-9
    )


def test_one_branch_by_hand() -> None:
    """z = 0.01 + 0.1j, b = 0.04, ratio 0.95 at the from end, shift 30 degrees: MATPOWER manual, eq. 3.2."""
    case = load_case("case14")
    one = [np.array([value]) for value in (0.01, 0.1, 0.0, 0.04, 0.95, np.pi / 6)]
    r, x, g, b, tap, shift = one
    case = replace(case, f_bus=np.array([0]), t_bus=np.array([1]), r=r, x=x, g=g, b=b, tap=tap, shift=shift)
    y = branch_admittance(case)
    ys = 1 / (0.01 + 0.1j)
    ratio = 0.95 * np.exp(1j * np.pi / 6)
    np.testing.assert_allclose(y.yff[0], (ys + 0.02j) / 0.95**2)
    np.testing.assert_allclose(y.yft[0], -ys / np.conj(ratio))
    np.testing.assert_allclose(y.ytf[0], -ys / ratio)
    np.testing.assert_allclose(y.ytt[0], ys + 0.02j)
    scaled = branch_admittance(case, tap=np.array([1.0]), x_scale=np.array([2.0]))
    np.testing.assert_allclose(scaled.ytf[0], -1 / (0.02 + 0.2j) / np.exp(1j * np.pi / 6))  # a line twice as long
    np.testing.assert_allclose(scaled.ytt[0], 1 / (0.02 + 0.2j) + 0.04j)


def test_a_branch_without_impedance_is_named() -> None:
    case = load_case("case14")
    x, r = case.x.copy(), case.r.copy()
    x[3] = r[3] = 0
    with pytest.raises(CaseError, match=rf"branch 3 \({case.branch_names[3]}\) has r = x = 0"):
        branch_admittance(replace(case, x=x, r=r))


@pytest.mark.parametrize("name", ["case14", "case57", "gb29", "case300"])
def test_injection_is_v_times_conjugate_current(name: str) -> None:
    """Branch ends plus shunts equal V conj(Y V): two ways to the same power."""
    case = load_case(name)
    v = states(case, 3)
    np.testing.assert_allclose(injected(case, v), v * np.conj((ybus(case) @ v.T).T), atol=1e-9)


def test_flows_are_zero_out_of_service_and_ends_sum_at_their_buses() -> None:
    case = load_case("case30")
    v, y = states(case, 2), branch_admittance(case)
    status = np.ones((2, case.n_branch), dtype=bool)
    status[1, [0, 7]] = False
    s_f, s_t = branch_flows(case, v, y, status)
    free_f, free_t = branch_flows(case, v, y)
    assert (s_f[1, [0, 7]] == 0).all()
    assert (s_t[1, [0, 7]] == 0).all()
    assert (s_f[status] == free_f[status]).all()
    assert (s_t[status] == free_t[status]).all()
    summed = np.zeros(case.n_bus, dtype=complex)
    for e in range(case.n_branch):
        summed[case.f_bus[e]] += s_f[1, e]
        summed[case.t_bus[e]] += s_t[1, e]
    np.testing.assert_allclose(ends_matrix(case) @ np.concatenate([s_f[1], s_t[1]]), summed, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_judge_with_outages_equals_the_dense_matrix_without_them(seed: int, rows: int) -> None:
    """70 rows: more than one block of the compiled kernel."""
    case = load_case("case30")
    rng = np.random.default_rng(seed)
    v = states(case, rows, seed)
    s = rng.standard_normal((rows, case.n_bus)) + 1j * rng.standard_normal((rows, case.n_bus))
    status = rng.random((rows, case.n_branch)) > rng.random()
    ours = Judge(case).residual(v, s, status)
    for row in {0, rows // 2, rows - 1}:
        dense = ybus(case, status[row]).toarray()
        np.testing.assert_allclose(ours[row], s[row] - v[row] * np.conj(dense @ v[row]), atol=1e-10)


@given(st.permutations(range(30)))
def test_a_relabelled_case_has_the_relabelled_matrix(order: list[int]) -> None:
    case, new = load_case("case30"), np.array(order)
    renamed = relabelled(case, new)
    np.testing.assert_allclose(ybus(renamed).toarray()[np.ix_(new, new)], ybus(case).toarray(), atol=1e-12)
    assert np.abs(Judge(renamed).residual(renamed.v0[None], injected(renamed, renamed.v0[None]))).max() < 1e-10


def test_residual_is_positive_where_more_is_reported_than_carried() -> None:
    case = load_case("case14")
    s = injected(case, case.v0[None])
    s[0, 4] += 0.1 + 0.2j
    residual = Judge(case).residual(case.v0[None], s)[0]
    np.testing.assert_allclose(residual[4], 0.1 + 0.2j, atol=1e-12)
    assert np.abs(np.delete(residual, 4)).max() < 1e-12


def test_a_nan_state_stays_visible_and_leaves_other_rows_alone() -> None:
    case = load_case("case14")
    v = states(case, 3)
    s = injected(case, v)
    v[1] = np.nan
    residual = Judge(case).residual(v, s)
    assert np.isnan(residual[1]).all()
    assert np.abs(residual[[0, 2]]).max() < 1e-12


def test_float32_storage_is_a_false_residual_of_the_published_gb_grid_but_not_of_the_merged_one() -> None:
    """The trap: magnitude and angle rounded to float32, nothing else wrong (docs/physics.md, float32)."""

    def false_mva(case: GridCase, v_RN: C128) -> float:
        s = injected(case, v_RN)
        assert np.abs(Judge(case).residual(v_RN, s)).max() * case.base_mva < 1e-6
        vm, va = np.abs(v_RN).astype(np.float32), np.angle(v_RN).astype(np.float32)
        rounded = vm.astype(np.float64) * np.exp(1j * va.astype(np.float64))
        return float(np.abs(Judge(case).residual(rounded, s)).max()) * case.base_mva

    published = load_published("gb")
    assert false_mva(published, PowerFlow(published, max_iter=30).solve_base().v_RN) > 0.1
    merged = load_case("gb")
    assert false_mva(merged, merged.v0[None]) < 0.05
