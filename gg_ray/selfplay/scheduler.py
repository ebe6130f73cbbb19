"""What the next proposer call is about: grid, sides, families and sources, by quota.

Flow:    [scheduler] -> proposer, grammar, archive -> executor -> verifier -> rewards.skill -> observe -> [scheduler]
Source:  selfplay.md, section 11; learning progress: Graves et al. 1704.03003; docs/adr/0004-rewards-and-quotas.md
Shapes:  F families that may be trained on, P programs of a call

Quotas stand here and not in the policy, so that a collapsing policy cannot narrow the mix of cases and families.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.config import SelfplayConfig
from gg_ray.records import F64, FAMILIES
from gg_ray.scenario.grammar import Stratum

LP_LAG_STEPS = 2_000
"""Learning progress compares skill now with skill this many learner steps ago at most (or the first known one)."""
LP_LAG_SHARE = 0.1
"""Of a run's learner steps, where that is less. With the start of a run as the yardstick, what was learned first and is
long mastered looks like progress to the end, and takes the programs of the families that are still hard."""
LP_LAG_LEAST = 40
LP_LIMIT = 0.5
_SNAPSHOTS = 10
"""Past values of a skill that are kept: enough for the lag, and bounded."""
SKILL_DECAY = 0.95
"""Per observed program: about the last twenty programs of a stratum."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One proposer call: a grid, and for each program its stratum and who writes it (proposer, mutation, uniform)."""

    case: str
    strata: tuple[Stratum, ...]
    sources: tuple[str, ...]


@dataclass(slots=True)
class _Track:
    """Skill of one stratum: an average and its past, at most ten values a lag."""

    now: float
    steps: list[int]
    past: list[float]


class Scheduler:
    """Owner of the quotas.

    Invariant: over any call the count of a side, of a family and of a source is within one of its share; uniform
    programs are never fewer than their share. The same observations and generator give the same assignments.
    """

    def __init__(
        self, config: SelfplayConfig, families: Sequence[str], cases: Sequence[str],
        offered: Mapping[str, Collection[str]] | None = None,
    ) -> None:  # fmt: skip
        """Args: offered  families that have a primitive on a grid, by grid; all of them where nothing is said."""
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown or not families:
            raise ValueError(f"scheduler: families {unknown or 'none given'}; choose from {', '.join(FAMILIES)}")
        if not cases:
            raise ValueError("scheduler: no grid given; name at least one case")
        self.config = config
        self.families, self.cases = tuple(families), tuple(cases)
        self._offered = {
            case: np.array([offered is None or family in offered[case] for family in self.families])
            for case in self.cases
        }
        empty = [case for case, mask in self._offered.items() if not mask.any()]
        if empty:
            raise ValueError(f"scheduler: {empty[0]} offers none of {', '.join(self.families)}")
        self.lag = int(np.clip(LP_LAG_SHARE * config.steps, LP_LAG_LEAST, LP_LAG_STEPS))
        """Learner steps that learning progress looks back."""
        self.calls = 0
        self._tracks: dict[str, _Track] = {}
        self._family_skill: dict[str, float] = {}

    def draw(self, rng: np.random.Generator, programs: int | None = None) -> Assignment:
        """The next call; grids take turns.

        Args:    rng;  programs  number in the call, selfplay.programs by default
        Returns: Assignment whose strata are shuffled, so that sources and strata are independent.
        """
        config = self.config
        count = config.programs if programs is None else programs
        if count < 1:
            raise ValueError(f"scheduler: {count} programs; ask for at least 1")
        case = self.cases[self.calls % len(self.cases)]
        self.calls += 1
        return Assignment(case, self._strata(case, count, rng), self._sources(count, rng))

    def _strata(self, case: str, count: int, rng: np.random.Generator) -> tuple[Stratum, ...]:
        config = self.config
        benign = 1.0 - config.anomalous_share
        kinds = [Stratum("ordinary", "", case), Stratum("hard", "", case)]
        shares = [benign * (1.0 - config.hard_share), benign * config.hard_share]
        if config.family_choice == "policy":
            kinds.append(Stratum("anomalous", "", case))
            shares.append(config.anomalous_share)
        else:
            kinds.extend(Stratum("anomalous", family, case) for family in self.families)
            shares.extend(config.anomalous_share * self.family_shares(case))
        picks = rng.permutation(_systematic(np.array(shares), count, rng))
        return tuple(kinds[pick] for pick in picks)

    def _sources(self, count: int, rng: np.random.Generator) -> tuple[str, ...]:
        config = self.config
        # 1e-9: 0.2 * 35 is 7.000000000000001 and must not become eight
        uniform = min(count, math.ceil(config.uniform_floor * count - 1e-9))
        rest = count - uniform
        mutation = 0
        if rest and config.mutation_share > 0:
            share = min(1.0, config.mutation_share * count / rest)
            mutation = int((_systematic(np.array([share, 1.0 - share]), rest, rng) == 0).sum())
        names = ["uniform"] * uniform + ["mutation"] * mutation + ["proposer"] * (rest - mutation)
        return tuple(names[index] for index in rng.permutation(count))

    def family_shares(self, case: str) -> F64:
        """[F] shares of the anomalous programs of a grid: half even, half softmax of learning progress.

        A family without a primitive on the grid has none.
        """
        offered = self._offered.get(case, np.ones(len(self.families), dtype=bool))
        progress = np.array([self.progress(Stratum("anomalous", family, case)) for family in self.families])
        weight = np.exp((progress - progress.max()) / self.config.lp_temperature) * offered
        return np.asarray(0.5 * offered / offered.sum() + 0.5 * weight / weight.sum())

    def observe(self, stratum: Stratum, skill: float, step: int) -> None:
        """Take in the skill (rewards.skill, 0 to 1) that one gated program of a stratum showed at a learner step."""
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"scheduler: skill {skill} of {stratum.key()}; rewards.skill gives 0 to 1")
        track = self._tracks.get(stratum.key())
        if track is None:
            self._tracks[stratum.key()] = _Track(skill, [step], [skill])
        else:
            track.now += (1.0 - SKILL_DECAY) * (skill - track.now)
            if step >= track.steps[-1] + self.lag // _SNAPSHOTS:
                track.steps.append(step)
                track.past.append(track.now)
                # one snapshot at or before the lag is enough
                keep = max(0, bisect_right(track.steps, step - self.lag) - 1)
                del track.steps[:keep], track.past[:keep]
        if stratum.family:
            old = self._family_skill.get(stratum.family, skill)
            self._family_skill[stratum.family] = old + (1.0 - SKILL_DECAY) * (skill - old)

    def progress(self, stratum: Stratum) -> float:
        """Learning progress of a stratum: skill now minus skill `lag` steps ago, within -.5 to .5; 0 if unseen."""
        track = self._tracks.get(stratum.key())
        if track is None:
            return 0.0
        return float(np.clip(track.now - track.past[0], -LP_LIMIT, LP_LIMIT))

    def skill_of(self, stratum: Stratum) -> float | None:
        """Average skill of a stratum, None before its first program."""
        track = self._tracks.get(stratum.key())
        return None if track is None else track.now

    def skill_vector(self) -> F64:
        """[12] average skill per family over all grids, in the order of records.FAMILIES; 0 where none was seen."""
        return np.array([self._family_skill.get(family, 0.0) for family in FAMILIES])

    def state_dict(self) -> dict[str, Any]:
        """Everything that later assignments depend on, as plain JSON values."""
        return {
            "calls": self.calls,
            "tracks": {
                key: {"now": track.now, "steps": list(track.steps), "past": list(track.past)}
                for key, track in self._tracks.items()
            },
            "family_skill": dict(self._family_skill),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = int(state["calls"])
        self._tracks = {
            key: _Track(float(t["now"]), [int(s) for s in t["steps"]], [float(p) for p in t["past"]])
            for key, t in state["tracks"].items()
        }
        self._family_skill = {key: float(value) for key, value in state["family_skill"].items()}


def _systematic(shares: F64, count: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[count] category numbers, each category floor or ceil of share x count times, unbiased: one random offset."""
    edges = np.cumsum(shares) / shares.sum()
    edges[-1] = 1.0
    points = (np.arange(count) + rng.random()) / count
    return np.searchsorted(edges, points, side="right").astype(np.int64).clip(max=len(shares) - 1)
