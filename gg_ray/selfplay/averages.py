"""Running averages by name: how well something goes of late, per family, grid or behaviour cell.

Flow:    programs and answers that the game settles -> [averages] -> rewards (the Solver's term), live table, metrics
"""

from __future__ import annotations

import math
from collections.abc import Mapping


class Averages:
    """Exponential averages that begin at their first value.

    Invariant: a name is known from its first finite value on; values that are not finite change nothing.
    """

    def __init__(self, decay: float) -> None:
        """Args: decay  weight of the past at each new value, 0 to 1."""
        self.decay = decay
        self.values: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        if math.isfinite(value):
            old = self.values.get(name, value)
            self.values[name] = self.decay * old + (1.0 - self.decay) * value

    def get(self, name: str) -> float:
        """The average, NaN before the first value."""
        return self.values.get(name, math.nan)

    def state_dict(self) -> dict[str, float]:
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.values = {name: float(value) for name, value in state.items()}
