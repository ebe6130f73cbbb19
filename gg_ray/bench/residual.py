"""Residual benchmark: the float64 judge on a batch of perturbed states, as the executor's gate calls it.

Flow:    cli bench residual -> [bench.residual] -> one dict of numbers
Source:  grid.ybus.Judge.residual_batch_last; docs/physics.md, residual. One thread, CPU time, median over REPEATS
Shapes:  B states, N buses; arrays are [N, B], batch last
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gg_ray.grid.cases import load_case
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows, injections, ybus

REPEATS = 15
_SPREAD = 0.01
"""Standard deviation of the perturbation of |V| (p.u.) and angle (rad) around the base state."""


def run(case: str = "activsg10k", batch: int = 64, seed: int = 0) -> dict[str, Any]:
    """Rates of the judge.

    Args:    case of load_case; batch states per call; seed of the perturbation
    Returns: states_per_s per CPU second, wall_states_per_s, cpu_ms of one batch, max_residual (p.u., with the injection
             taken by the branch-end sums, a second way to the same numbers), buses, nnz.
    Raises:  CaseError for an unknown case or a missing optional wheel.
    """
    grid = load_case(case)
    rng = np.random.default_rng(seed)
    shape = (batch, grid.n_bus)
    turn = np.exp(1j * _SPREAD * rng.standard_normal(shape))
    v = grid.v0 * (1 + _SPREAD * rng.standard_normal(shape)) * turn
    s = injections(grid, v, *branch_flows(grid, v, branch_admittance(grid)))
    e, f, p, q = (np.ascontiguousarray(part.T) for part in (v.real, v.imag, s.real, s.imag))
    judge = Judge(grid)
    dp, dq = judge.residual_batch_last(e, f, p, q)  # the first call compiles
    cpu_s, wall_s = np.empty(REPEATS), np.empty(REPEATS)
    for i in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        judge.residual_batch_last(e, f, p, q)
        cpu_s[i], wall_s[i] = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "states_per_s": batch / float(np.median(cpu_s)),
        "wall_states_per_s": batch / float(np.median(wall_s)),
        "cpu_ms": float(np.median(cpu_s)) * 1e3,
        "cpu_ms_min": float(cpu_s.min()) * 1e3,
        "cpu_ms_max": float(cpu_s.max()) * 1e3,
        "max_residual": float(max(np.abs(dp).max(), np.abs(dq).max())),
        "case": case,
        "buses": grid.n_bus,
        "nnz": int(ybus(grid).nnz),
        "batch": batch,
        "repeats": REPEATS,
        "seed": seed,
    }
