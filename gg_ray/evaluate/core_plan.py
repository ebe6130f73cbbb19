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

Part = Literal["standard", "hard", "composed"]
PARTS: tuple[Part, ...] = ("standard", "hard", "composed")
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
    )
}  # fmt: skip
NATURAL, ADAPTIVE = "s6-natural", "s7-adaptive"


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
    attacks: int
    """Calls of 32 programs that the adaptive exploiter may spend on each Verifier."""

    @property
    def cases(self) -> tuple[str, ...]:
        return (*self.seen, *self.unseen)

    def parts(self, case: str) -> tuple[Part, ...]:
        """Parts made on a grid: on unseen ones the standard part alone is asked about."""
        return PARTS if case in self.seen else ("standard",)


PRESETS: dict[str, CoreSizes] = {
    sizes.name: sizes
    for sizes in (
        CoreSizes(
            name="small", seen=("case14",), unseen=("case39",), windows=6, negatives=72, validation=200, days=12,
            validation_days=3, stride=5, attacks=2,
        ),
        CoreSizes(
            name="full", seen=("case30", "gb29"), unseen=("case39", "case118", "case300", "illinois200"), windows=40,
            negatives=480, validation=400, days=24, validation_days=6, stride=3, attacks=64,
        ),
    )
}  # fmt: skip


def sizes_of(preset: str) -> CoreSizes:
    """Sizes by name.  Raises: ConfigError for an unknown preset, with the known ones."""
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"; choose from {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {preset!r}{hint}")
    return PRESETS[preset]
