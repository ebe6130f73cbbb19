"""Fault states against a direct solve of the faulted network, and what a fault must look like."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from gg_ray.grid.cases import load_case
from gg_ray.grid.faults import FaultModel


@pytest.mark.parametrize("name", ["case14", "case57", "gb29"])
@pytest.mark.parametrize("depth", [0.05, 0.5, 1.0 - 1e-9])
def test_superposition_equals_the_network_with_a_shunt_at_the_faulted_bus(name: str, depth: float) -> None:
    case = load_case(name)
    model = FaultModel(case)
    bus = case.n_bus // 2
    sources = model.admittance @ case.v0  # currents of the machines behind their reactances
    z_ff = spsolve(model.admittance, np.eye(case.n_bus)[bus])[bus]
    conductance = np.zeros(case.n_bus)
    conductance[bus] = 1.0 / (abs(z_ff) * (1.0 / depth - 1.0))
    direct = spsolve((model.admittance + sp.diags(conductance)).tocsc(), sources)
    np.testing.assert_allclose(model.during(case.v0, bus, depth), direct, atol=1e-7)


def test_a_bolted_fault_leaves_no_voltage_and_dips_less_far_away() -> None:
    case = load_case("case57")
    model = FaultModel(case)
    during = model.during(case.v0, 20, 1.0)
    assert abs(during[20]) < 1e-12
    neighbours = np.concatenate([case.t_bus[case.f_bus == 20], case.f_bus[case.t_bus == 20]])
    assert np.abs(during[neighbours]).max() < 0.9
    assert np.abs(during).max() > np.abs(during[neighbours]).max()
    depths = [abs(model.during(case.v0, 20, d)[20]) for d in (0.0, 0.1, 0.4, 0.8, 1.0)]
    assert depths == sorted(depths, reverse=True)
    np.testing.assert_array_equal(model.during(case.v0, 20, 0.0), case.v0)


def test_a_depth_beyond_bolted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fault of depth 1\.2"):
        FaultModel(load_case("case14")).during(load_case("case14").v0, 3, 1.2)
