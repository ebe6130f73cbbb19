"""A threshold that follows a drifting benign score, so that the realised rate of incidents keeps to its budget.

Flow:    incidents counted since the last call -> [adaptive] -> threshold for the next scans
Source:  adaptive conformal inference (Gibbs and Candes, NeurIPS 2021) in the form of quantile tracking, the P part of
         conformal PID control (Angelopoulos, Candes, Tibshirani, NeurIPS 2023); verifier.md, section 7

Level is -log10 of the p-value that a scan must fall below. After T days the update telescopes, whatever the scores did:
        level(T) - level(0) = gain * (incidents - budget * T)      while no limit was touched,
so the realised rate differs from the budget by at most (upper - lower) / (gain * T). No exchangeability is needed. At
a limit the promise ends: `at_limit` says so. The limits are there because an attacker who is counted as false would
teach us not to alarm: confirmed incidents must not be passed in, and the level cannot leave its range.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gg_ray.calibration.conformal import CalibrationError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveLevel:
    """Plain state of the controller; `after` returns the next one, so it can be kept and replayed like any record."""

    level: float
    """-log10 p above which a scan is flagged."""
    budget: float
    """Incidents a day."""
    gain: float = 0.02
    """Decades of p for one incident too many."""
    lower: float = 1.0
    upper: float = 6.0

    def __post_init__(self) -> None:
        if not (self.budget > 0 and self.gain > 0 and self.lower <= self.level <= self.upper):
            raise CalibrationError(
                f"adaptive level {self.level:g} in {self.lower:g}..{self.upper:g}, budget {self.budget:g}, gain "
                f"{self.gain:g}: the level must lie inside, budget and gain must be above 0"
            )

    @property
    def at_limit(self) -> bool:
        """Whether the level stands at an end of its range, where the rate is no longer controlled."""
        return self.level in (self.lower, self.upper)

    def after(self, incidents: int, days: float) -> AdaptiveLevel:
        """State after some days (fractions included) with that many incidents opened and not confirmed as real."""
        moved = self.level + self.gain * (incidents - self.budget * days)
        return AdaptiveLevel(**{**asdict(self), "level": min(max(moved, self.lower), self.upper)})

    def as_json(self) -> dict[str, Any]:
        """Plain values; AdaptiveLevel(**values) is the same state."""
        return asdict(self)
