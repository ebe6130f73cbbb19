"""Windows after a change that training never starts from: branches out of service, and meters that are lost.

Flow:    core_pools (programs, executor) -> [core_changes] -> core_job (cells), core_costs (what a change costs)
Source:  verifier.md, sections 3.2 (held-out topology) and 9.1 (D8, 30 % of meters missing)
Shapes:  B windows, T scans, M installed meters

Training opens a line inside a window, never before its second scan; no program begins with one open. A lost meter
delivers nothing in the whole window; which ones are lost follows from the program's seed and not from its label.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from gg_ray.evaluate.core_manifest import Digest
from gg_ray.evaluate.core_plan import BENIGN, CHANGED, LOST_METERS, OUTAGES, negatives_of
from gg_ray.evaluate.core_pools import Change, PoolMaker, PoolPart
from gg_ray.evaluate.suites import SUITE_SEED
from gg_ray.grid.cases import GridCase
from gg_ray.grid.detectability import Detectability, Innovation
from gg_ray.grid.meters import MeterPlan
from gg_ray.grid.outages import standing_outages
from gg_ray.records import Bool, Window
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.worlds import LOAD_NOISE, LOAD_RHO

NEVER = 255
"""Age of a reading that has not come since the window began (grid.meters.deliver)."""
_PURPOSE = {"outages": 31, "outages-negatives": 32, "topologies": 33}
_METERS = 34


def make_part(maker: PoolMaker, part: str, digest: Digest) -> PoolPart:
    """Any part of a grid by name (CoreSizes.window_parts)."""
    outages, meters = CHANGED
    if part in (outages, negatives_of(outages)):
        return _after_outages(maker, part, digest)
    if part == meters:
        return maker.part(part, maker.drawn("standard"), digest, LostMeters(maker.case))
    if part == negatives_of(meters):
        return maker.part(part, maker.drawn("negatives"), digest, LostMeters(maker.case))
    return maker.benign(part, digest) if part in BENIGN else maker.positives(part, digest)


def topologies(maker: PoolMaker) -> list[tuple[int, ...]]:
    """The standing outages of a grid, by branch."""
    return list(islice(standing_outages(maker.case, maker.maker.rng(_PURPOSE["topologies"])), OUTAGES))


def _after_outages(maker: PoolMaker, part: str, digest: Digest) -> PoolPart:
    """Windows of every standing outage in equal shares."""
    sizes, found = maker.sizes, topologies(maker)
    total = sizes.windows if part in CHANGED else sizes.negatives // 2
    attempts: list[Attempt] = []
    for index, outage in enumerate(found):
        share = total // len(found) + (index < total % len(found))
        own = PoolMaker(maker.case.name, sizes, maker.contexts, outage)
        rng = maker.maker.rng(_PURPOSE[part], index)
        if part in CHANGED:
            attempts += own.draw_positives("standard", share, rng)
        else:
            attempts += own.draw_benign("test", 2 * share, rng)
    return maker.part(part, attempts, digest)


class LostMeters(Change):
    """Takes LOST_METERS of a window's meters away; detectability is measured anew with the meters that are left."""

    def __init__(self, case: GridCase) -> None:
        self.case = case

    def kept(self, attempt: Attempt) -> Bool:
        """[M] meters that are left."""
        size = attempt.plan.size
        kept = np.ones(size, dtype=bool)
        rng = np.random.default_rng([SUITE_SEED, _METERS, attempt.program.seed])
        kept[rng.choice(size, round(LOST_METERS * size), replace=False)] = False
        return kept

    def window(self, attempt: Attempt, window: Window) -> Window:
        kept = self.kept(attempt)
        return replace(
            window, z_TM=np.where(kept, window.z_TM, np.nan),
            age_TM=np.where(kept, window.age_TM, NEVER).astype(np.uint8),
        )  # fmt: skip

    def d_eff(self, attempt: Attempt) -> float:
        """What the meters that are left can see of the anomaly: from 0, where it lay on lost ones alone."""
        change = attempt.alteration
        if change is None:
            return attempt.d_eff
        kept, plan, scans = self.kept(attempt), attempt.plan, attempt.context.scans
        seen = kept[change.meters]
        whole = change.innovation()
        left = Innovation((np.cumsum(kept) - 1)[whole.meters[seen]], whole.a_Tc[:, seen], whole.pseudo, whole.u_Tk)
        fewer = Detectability(self.case, _without(plan, kept), LOAD_NOISE, LOAD_RHO)
        # copied and noisy readings show meter by meter: what they show goes with the meters
        extra = change.extra_d2 * (float(seen.mean()) if seen.size else 0.0)
        squared = max(float(fewer.squared([left], scans)[0]), extra)
        # fewer meters never show more; the outage of a reading inside the window is in the attempt's own figure alone
        return min(attempt.d_eff, float(np.sqrt(squared)))


def _without(plan: MeterPlan, kept: Bool) -> MeterPlan:
    """The plan with some of its meters."""
    index_of = np.full(plan.layout.size, -1, dtype=np.int64)
    index_of[plan.channels[kept]] = np.arange(int(kept.sum()))
    return replace(
        plan, channels=plan.channels[kept], index_of=index_of, sigma=plan.sigma[kept], period=plan.period[kept],
        phase=plan.phase[kept],
    )  # fmt: skip
