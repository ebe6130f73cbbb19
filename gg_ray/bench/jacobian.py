"""The Jacobian block of one scan of one grid with its factors at hand: what a tick of the live path pays for it.

Flow:    grid.cases -> grid.estimation (factors, once) -> grid.jacobian -> [bench.jacobian] -> gg-ray bench verifier
Source:  one thread, CPU time, minimum over repeats, as in bench.verifier
"""

from __future__ import annotations

import time

import numpy as np

from gg_ray.grid.cases import load_case
from gg_ray.grid.estimation import Estimator
from gg_ray.grid.jacobian import jacobian_features
from gg_ray.grid.meters import draw_plan, measure

_KAPPA = (0.35, 0.7)
_REPEATS = 9


def jacobian_cpu_ms(case: str = "activsg10k", seed: int = 0) -> float:
    """CPU ms of the block of one window; factorisation and its variances come before, as in a running service.

    Args:    case of load_case (activsg10k needs the extra `grids`);  seed of the meter noise
    Raises:  CaseError for an unknown case or a missing optional wheel.
    """
    grid = load_case(case)
    plan = draw_plan(grid, 0, _KAPPA, 0.0)
    estimator = Estimator(grid, plan)
    noise = plan.sigma * np.random.default_rng(seed).standard_normal((1, plan.size))
    z_BM = measure(grid, grid.v0[None])[:, plan.channels] + noise
    earlier_BN = grid.v0[None] * np.exp(-1j * np.angle(grid.v0[grid.slack]))
    status_BE = np.ones((1, grid.n_branch), dtype=bool)
    jacobian_features(estimator, z_BM, earlier_BN, status_BE)  # the first call makes the variances
    cpu = []
    for _ in range(_REPEATS):
        start = time.process_time()
        jacobian_features(estimator, z_BM, earlier_BN, status_BE)
        cpu.append(time.process_time() - start)
    return 1e3 * min(cpu)
