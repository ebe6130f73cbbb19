"""What the core benchmark asks: its suites, and how much of each (presets).

Flow:    [core_plan] -> core_pools (what to make), core_tables (what to read from it), report, docs/benchmark.md
Source:  selfplay.md, section 17.2; verifier.md, section 3

A pool is made once per grid and serves every fold: it holds all twelve families, and a suite of a fold takes those
that its model has seen, or has not. Suites are called S0 to S7 in the sources; so are the sensor families S1 to S4.
Here and in every table suites carry a dash: s1-hard is a suite, S1 a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gg_ray.config import ConfigError, did_you_mean

Part = Literal["standard", "hard", "composed", "outages", "meters"]
PARTS: tuple[Part, ...] = ("standard", "hard", "composed")
"""Parts of the intact grid with all its meters; they share the plausible windows called negatives."""
CHANGED: tuple[Part, ...] = ("outages", "meters")
"""Parts with a change that holds from before the window on; each has plausible windows with the same change."""
BENIGN = ("validation", "negatives")
OUTAGES = 6
"""Standing outages per grid in suite s8-outages, of one branch and of two in turn."""
LOST_METERS = 0.3
"""Share of a window's meters that suite s9-meters takes away."""
HARD_D = (3.0, 6.0)
"""d_eff of the hard part, the upper end excluded."""
ALARM_RATES = (1.0, 10.0, 100.0)
"""False incidents a day on a grid of up to 10,000 nodes at which event recall is read (selfplay.md, 17.1)."""
NODE_RATE = 1e-5
"""Share of benign bus-looks that the bus threshold of timelines lets through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One question: which part of a pool, on which grids, of families that the fold has seen or not."""

    name: str
    part: Part | None
    """None: there are no positives of the pool in it (s6-natural), or they are made per model (s7-adaptive)."""
    seen_grid: bool
    held_out: bool
    asks: str
    timeline: bool = True

    @property
    def negatives(self) -> str:
        """Part that holds the plausible windows of the suite."""
        return negatives_of(self.part) if self.part else "negatives"


def negatives_of(part: str) -> str:
    """Name of the plausible windows that belong to a part."""
    return f"{part}-negatives" if part in CHANGED else "negatives"


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(name="s0-known", part="standard", seen_grid=True, held_out=False,
              asks="known families on known grids; new months, meters and seeds"),
        Suite(name="s1-hard", part="hard", seen_grid=True, held_out=False,
              asks="the same where they hardly show: 3 <= d_eff < 6"),
        Suite(name="s2-composed", part="composed", seen_grid=True, held_out=False,
              asks="a known anomaly while a known hard event goes on: training never has both"),
        Suite(name="s3-families", part="standard", seen_grid=True, held_out=True,
              asks="families that the fold keeps from training"),
        Suite(name="s4-grids", part="standard", seen_grid=False, held_out=False,
              asks="known families on grids that no run may train on"),
        Suite(name="s5-both", part="standard", seen_grid=False, held_out=True,
              asks="unknown families on unknown grids"),
        Suite(name="s6-natural", part=None, seen_grid=True, held_out=False, timeline=False,
              asks="real disturbances only: how many are called implausible"),
        Suite(name="s7-adaptive", part=None, seen_grid=True, held_out=False, timeline=False,
              asks="programs of a fresh Proposer that was trained against the frozen Verifier"),
        Suite(name="s8-outages", part="outages", seen_grid=True, held_out=False, timeline=False,
              asks="known families on known grids with one or two branches declared out since before the window"),
        Suite(name="s9-meters", part="meters", seen_grid=True, held_out=False, timeline=False,
              asks="the windows of s0-known without 30 % of their meters"),
    )
}  # fmt: skip
NATURAL, ADAPTIVE = "s6-natural", "s7-adaptive"
CHANGES = {"s4-grids": "unknown grid", "s8-outages": "standing outage", "s9-meters": "30 % of meters lost"}
"""Suites that are s0-known with one thing changed: what that costs stands in a table of its own (core_costs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSizes:
    """How much is asked. Sizes are part of what is frozen: another size is another benchmark."""

    name: str
    seen: tuple[str, ...]
    """Grids that every run trained on."""
    unseen: tuple[str, ...]
    windows: int
    """Gated windows per family and part."""
    negatives: int
    """Plausible windows per grid, half of them plausible-hard."""
    validation: int
    """Benign validation windows per grid; half as many, of training months, for detectors that fit."""
    days: int
    """Test days per grid and part, one episode each; the families take turns."""
    validation_days: int
    stride: int
    """Scans between two looks at a timeline."""
    day_parts: tuple[Part, ...] = PARTS
    """Parts that exist as days too."""
    attacks: int
    """Calls of 32 programs that the adaptive exploiter may spend on each network."""
    attacked_seeds: int
    """Runs of a fold that are attacked, the lowest seeds first."""

    @property
    def cases(self) -> tuple[str, ...]:
        return (*self.seen, *self.unseen)

    def parts(self, case: str) -> tuple[Part, ...]:
        """Parts made on a grid: on unseen ones the standard part alone is asked about."""
        return PARTS if case in self.seen else ("standard",)

    def window_parts(self, case: str) -> tuple[str, ...]:
        """Everything that is made of windows on a grid; a part of s9-meters comes after what it is made of."""
        changed = [name for part in CHANGED for name in (part, negatives_of(part))] if case in self.seen else []
        return (*BENIGN, *self.parts(case), *changed)

    def timeline_parts(self, case: str) -> tuple[str, ...]:
        """Everything that is made of days on a grid."""
        return ("validation", *(part for part in self.parts(case) if part in self.day_parts))


PRESETS: dict[str, CoreSizes] = {
    sizes.name: sizes
    for sizes in (
        CoreSizes(
            name="small", seen=("case14",), unseen=("case39",), windows=6, negatives=72, validation=200, days=12,
            validation_days=3, stride=5, attacks=2, attacked_seeds=1,
        ),
        CoreSizes(
            name="desk", seen=("case30", "gb29"), unseen=("case39", "case118"), windows=24, negatives=288,
            validation=300, days=36, validation_days=6, stride=5, day_parts=("standard",), attacks=32, attacked_seeds=1,
        ),
        CoreSizes(
            name="full", seen=("case30", "gb29"), unseen=("case39", "case118", "case300", "illinois200"), windows=40,
            negatives=480, validation=400, days=24, validation_days=6, stride=3, attacks=64, attacked_seeds=5,
        ),
    )
}  # fmt: skip


def sizes_of(preset: str) -> CoreSizes:
    """Sizes by name.  Raises: ConfigError for an unknown preset, with the known ones."""
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"; choose from {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {preset!r}{hint}")
    return PRESETS[preset]
