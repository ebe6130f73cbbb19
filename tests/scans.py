"""Scans of case14 for tests of the live path."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.meters import MeterPlan, draw_plan, measure
from gg_ray.records import F64
from serve.wire import ScanMessage

T0 = 1_700_000_000 * 10**9
STEP = 60 * 10**9


@functools.cache
def meters(case: str = "case14", seed: int = 3) -> tuple[MeterPlan, F64]:
    """Meters of a grid and what they read in its base state."""
    grid: GridCase = load_case(case)
    plan = draw_plan(grid, seed, (0.6, 0.7), 0.0)
    return plan, measure(grid, grid.v0[None], channels=plan.channels)[0]


def scan(case: str = "case14", noise: int | None = None, seed: int = 3, **changes: Any) -> ScanMessage:
    """A scan of the base state, with meter noise of a seed where one is given."""
    grid, (plan, z) = load_case(case), meters(case, seed)
    if noise is not None:
        z = z + plan.sigma * np.random.default_rng(noise).standard_normal(plan.size)
    given: dict[str, Any] = {
        "grid": "north", "case": case, "time_ns": T0, "step_s": 60.0, "channels": plan.channels, "sigma": plan.sigma,
        "z_M": z, "age_M": np.zeros(plan.size, np.uint8), "status_E": np.ones(grid.n_branch, np.uint8),
        "tap_E": grid.tap.copy(), "x_scale_E": np.ones(grid.n_branch), **changes,
    }  # fmt: skip
    return ScanMessage(**given)
