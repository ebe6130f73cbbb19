"""Which meters the Solver has to complete: a block is a few neighbouring meters over the last scans of a window.

Flow:    selfplay.players -> [blocks: draw -> hide] -> solver (lesson, completion)
Source:  selfplay.md, section 7 (mode D); docs/adr/0004-rewards-and-quotas.md (how large, and what was measured)
Shapes:  N buses, M installed meters, c hidden ones, T scans
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F32, I64, Window


@dataclass(frozen=True, slots=True)
class Block:
    """Hidden readings: meters [c] installed positions, ascending, over the last `span` scans."""

    meters: I64
    span: int

    def flags(self, case: GridCase, plan: MeterPlan) -> F32:
        """[N] 1 where a bus, or a branch that ends there, lost a meter: what the Solver is told."""
        out = np.zeros(case.n_bus, dtype=np.float32)
        near, far = meter_ends(case, plan)
        out[near[self.meters]] = out[far[self.meters]] = 1.0
        return out


def meter_ends(case: GridCase, plan: MeterPlan) -> tuple[I64, I64]:
    """([M], [M]) buses at the two ends of each meter's branch; twice its bus for a meter of a bus."""
    bus, branch = (owner[plan.channels] for owner in plan.layout.owner())
    at_branch = np.maximum(branch, 0)
    near, far = np.where(bus >= 0, bus, case.f_bus[at_branch]), np.where(bus >= 0, bus, case.t_bus[at_branch])
    return near.astype(np.int64), far.astype(np.int64)


def draw_block(
    window: Window, case: GridCase, plan: MeterPlan, hops_N: I64, meters: int, span: int, rng: np.random.Generator
) -> Block:
    """The meters nearest to a bus that were read in each of the last scans; ties fall by chance.

    Args:    hops_N  distance of each bus from the centre;  meters  how many, fewer where fewer were read
    Returns: Block; empty only where no meter of the grid was read.
    """
    near, far = meter_ends(case, plan)
    order = np.lexsort((rng.random(plan.size), hops_N[near] + hops_N[far]))
    read = np.asarray(np.isfinite(window.z_TM[-span:]).all(axis=0))
    return Block(np.sort(order[read[order]][:meters]), span)


def draw_size(limit: int, rng: np.random.Generator) -> int:
    """1 to limit, small ones more often (log-uniform): success falls with each further meter and scan."""
    return int(np.exp(rng.uniform(0.0, np.log(limit + 1.0))))


def hide(window: Window, block: Block) -> Window:
    """The window as it would look had the block's meters been silent during the last scans: no value, and age grows."""
    span, meters = block.span, block.meters
    z, age = window.z_TM.copy(), window.age_TM.copy()
    z[-span:, meters] = np.nan
    before = age[-span - 1, meters].astype(np.int64) if len(age) > span else np.full(meters.size, 255)
    since = before + np.arange(1, span + 1)[:, None]
    age[-span:, meters] = np.where(before == 255, 255, np.minimum(since, 254))
    return replace(window, z_TM=z, age_TM=age)
