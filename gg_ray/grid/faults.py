"""What a grid looks like while a fault lasts: linear superposition on the state before it.

Flow:    solved states -> [faults] -> scenario.anomalies_data (fault residue)
Source:  Grainger and Stevenson 1994, ch. 10: V = V0 - z_f V0_f / (z_ff + Z_fault), z_f column f of the bus impedance
         matrix; machines behind their transient reactance (Kundur 1994, table 4.2), loads as constant impedances
Shapes:  N buses, K states
Units:   p.u.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from gg_ray.grid.cases import GridCase
from gg_ray.grid.ybus import ybus

C128 = NDArray[np.complex128]
TRANSIENT_X = 0.3
"""Transient reactance on the machine's own rating; round-rotor machines have 0.15 to 0.4."""
_POWER_FACTOR = 0.85
_SMALLEST_MACHINE = 0.1


class FaultModel:
    """Three-phase faults on one grid; the admittance matrix is factorised once, when the first fault is asked for.

    Invariant: at every bus but the faulted one the change of voltage injects no current into machines and loads.
    """

    def __init__(self, case: GridCase) -> None:
        self.case = case

    @functools.cached_property
    def admittance(self) -> sp.csc_matrix:
        """[N, N] Ybus with loads as impedances at the base state and machines as sources behind a reactance."""
        case = self.case
        own = (case.load_p - 1j * case.load_q) / np.abs(case.v0) ** 2
        capacity = np.zeros(case.n_gen)
        np.add.at(capacity, case.unit_gen, np.nan_to_num(case.unit_pmax, posinf=0.0))
        rating = np.maximum(np.maximum(capacity, np.abs(case.gen_p)) / _POWER_FACTOR, _SMALLEST_MACHINE)
        own[case.gen_bus] += rating / (1j * TRANSIENT_X)
        return (ybus(case) + sp.diags(own)).tocsc()

    @functools.cached_property
    def _lu(self) -> Any:
        return splu(self.admittance)

    def during(self, v_N: C128, bus: int, depth: float) -> C128:
        """[N] voltages while a resistive fault lasts at a bus.

        Args:   v_N state before it; depth share of the bolted fault's strength, 0 none to 1 bolted (no voltage left):
                the fault resistance is abs(z_ff) (1 / depth - 1)
        Raises: ValueError for a depth outside 0 to 1.
        """
        if not 0.0 <= depth <= 1.0:
            raise ValueError(f"{self.case.name}: fault of depth {depth}; choose 0 (none) to 1 (bolted)")
        if depth == 0.0:
            return v_N.copy()
        unit = np.zeros(self.case.n_bus, dtype=np.complex128)
        unit[bus] = 1.0
        column = self._lu.solve(unit)
        resistance = abs(column[bus]) * (1.0 / depth - 1.0)
        return np.asarray(v_N - column * (v_N[bus] / (column[bus] + resistance)))
