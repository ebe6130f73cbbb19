"""Is a difference more than chance: paired bootstrap over episodes and seeds, and Holm over the primary claims.

Flow:    hits of two methods on the same episodes -> [inference] -> core_tables (claims), report
Source:  selfplay.md, section 17.4; Holm 1979; Efron and Tibshirani 1993, ch. 16
Shapes:  K strata (fold and grid), R training seeds of a stratum, B episodes of a stratum

Strata share what they are made of: the grids of a fold the same trained networks, the folds of a grid the same frozen
episodes. A replicate therefore draws networks once per fold and episodes once per grid, part and family, and judges
every stratum on that draw; drawing anew for each would take shared luck for independent evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gg_ray.evaluate.metrics import MetricError
from gg_ray.records import F64, I64

Block = tuple[str, int]
"""Name of a set of episodes and its size: strata that hold the set share its draws."""
Statistic = Callable[[F64, I64], float]
"""Figure of merit of values [B] on drawn episodes (positions, with repeats)."""


class Drawn:
    """One replicate: positions drawn with replacement, the same for everybody who asks for a set by its name."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kept: dict[tuple[str, int], I64] = {}

    def of(self, name: str, size: int) -> I64:
        """[size] positions below size."""
        key = (name, size)
        if key not in self._kept:
            self._kept[key] = self._rng.integers(size, size=size)
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class Paired:
    """Values of two methods on the same episodes of one stratum: [R, B] each, a row per training seed.

    A method without seeds (a classical test) has the same row R times.

    networks  name of the networks behind the rows, "" for a stratum of its own
    blocks    what the B episodes are made of, in order; none for a stratum of its own
    """

    ours_RB: F64
    theirs_RB: F64
    statistic: Statistic
    networks: str = ""
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        if self.ours_RB.shape != self.theirs_RB.shape or self.ours_RB.ndim != 2 or not self.ours_RB.size:
            raise MetricError(
                f"paired values of {self.ours_RB.shape} and {self.theirs_RB.shape}: both need one row per seed and the"
                " same episodes"
            )
        if self.blocks and sum(size for _, size in self.blocks) != self.ours_RB.shape[1]:
            raise MetricError(f"blocks of {self.blocks} for {self.ours_RB.shape[1]} episodes: sizes must add up")

    def value(self) -> float:
        """Ours minus theirs on all seeds and episodes."""
        return self._on(np.arange(self.ours_RB.shape[0]), np.arange(self.ours_RB.shape[1]))

    def draw(self, drawn: Drawn) -> float:
        """The same on seeds and episodes drawn anew; all seeds and both methods are judged on the same draw."""
        seeds, episodes = self.ours_RB.shape
        own = f"own {id(self)}"
        starts = np.cumsum([0, *(size for _, size in self.blocks)])
        parts = [start + drawn.of(name, size) for (name, size), start in zip(self.blocks, starts, strict=False)]
        at = np.concatenate(parts) if parts else drawn.of(f"{own} episodes", episodes)
        return self._on(drawn.of(f"networks {self.networks or own}", seeds), at)

    def _on(self, seeds: I64, episodes: I64) -> float:
        own = [self.statistic(self.ours_RB[r], episodes) for r in seeds.tolist()]
        other = [self.statistic(self.theirs_RB[r], episodes) for r in seeds.tolist()]
        return float(np.mean(own) - np.mean(other))


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Values of two methods on episodes of their own (each was attacked by its own exploiter), [B] and [B']."""

    ours_B: F64
    theirs_B: F64

    def value(self) -> float:
        """Mean of ours minus mean of theirs."""
        return float(self.ours_B.mean() - self.theirs_B.mean())

    def draw(self, drawn: Drawn) -> float:
        """The same on episodes drawn anew, for each on its own."""
        pairs = (("ours", self.ours_B), ("theirs", self.theirs_B))
        mean = [values[drawn.of(f"own {id(self)} {side}", values.size)].mean() for side, values in pairs]
        return float(mean[0] - mean[1])


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over strata of ours minus theirs, its 95 % interval, and a two-sided bootstrap p-value."""

    mean: float
    low: float
    high: float
    p: float


def mean_of(values_B: F64, drawn: I64) -> float:
    """Plain mean: the statistic of recall and of weighted hits."""
    return float(values_B[drawn].mean())


def difference(strata: Sequence[Paired] | Sequence[Unpaired], rng: np.random.Generator, n: int = 2_000) -> Difference:
    """Bootstrap of the mean difference over strata.

    p = 2 min(share of replicates <= 0, share >= 0), never below 1 / n.
    Raises:  MetricError without strata.
    """
    if not strata:
        raise MetricError("difference: no stratum; both methods need scores of the same suite")
    draws = np.empty(n)
    for replicate in range(n):
        drawn = Drawn(rng)
        draws[replicate] = np.mean([stratum.draw(drawn) for stratum in strata])
    low, high = np.quantile(draws, [0.025, 0.975])
    p = min(1.0, max(2.0 * float(min((draws <= 0).mean(), (draws >= 0).mean())), 1.0 / n))
    return Difference(float(np.mean([stratum.value() for stratum in strata])), float(low), float(high), p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: the k-th smallest times (m - k + 1), made monotone, at most 1.

    Source: Holm 1979: controls the chance of any false claim among m, whatever their dependence.
    """
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    running = 0.0
    for rank, index in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        out[index] = running
    return [float(value) for value in out]
