"""How much of the telemetry must be heard before a verdict is given.

Flow:    windows -> [heard] -> score: a verdict, or "cannot tell"
Source:  docs/calibration.md; share chosen, not measured: far below what the Verifier is trained on (35 to 70 % of the
         channels installed, a few per cent of them lost)
Shapes:  T scans, M installed meters
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.grid import balance
from gg_ray.records import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A verdict needs `share` of a window's meters to have reported at least once in its last `scans` scans.

    On the national balance graph any scan of the window counts: its streams are published at half-hours and slower than
    the scans.
    """

    share: float = 0.25
    scans: int = 4

    def __post_init__(self) -> None:
        if not (0.0 < self.share <= 1.0 and self.scans >= 1):
            raise CalibrationError(
                f"share of meters heard {self.share:g} in {self.scans} scans: give a share above 0, at most 1, and 1"
                " scan or more"
            )

    def missing(self, window: Window) -> str | None:
        """Why no verdict can be given, None where enough was heard. At least one meter must have been."""
        scans = window.z_TM.shape[0] if window.case == balance.NAME else min(self.scans, window.z_TM.shape[0])
        meters = window.z_TM.shape[1]
        count = int((~np.isnan(window.z_TM[-scans:])).any(axis=0).sum())
        needed = max(1, math.ceil(self.share * meters - 1e-9))
        if count >= needed:
            return None
        return f"{count} of {meters} meters heard in the last {scans} scans; a verdict needs {needed}"
