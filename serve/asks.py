"""What the scan loop asks the Verifier, and what it is answered: windows of one grid that overlap, sent once.

Flow:    serve.loop -> [asks] -> serve.verifier, serve.models -> [asks] -> serve.loop
Shapes:  k windows of T scans in T + k - 1 rows; M meters, N buses, E branches
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F32, F64, U8, Verdict, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Consecutive windows of one grid: the k-th is rows k to k + scans.

    end_ns   time of the newest scan of each;  shown  which of them a map is wanted of
    peak     highest score of the incidents that are open: reasons are worked out above it only
    """

    grid: str
    case: str
    plan: MeterPlan
    scans: int
    step_s: float
    end_ns: tuple[int, ...]
    z: F64
    age: U8
    status: U8
    tap: F64
    x_scale: F64
    shown: tuple[bool, ...]
    peak: float

    def windows(self) -> list[Window]:
        """The windows as records: views of the rows."""
        out = []
        for k, end in enumerate(self.end_ns):
            rows = slice(k, k + self.scans)
            tap = self.tap[rows]
            moved = np.argwhere(np.diff(tap, axis=0) != 0.0)
            out.append(Window(
                case=self.case, plan_id=self.plan.plan_id, t0_ns=end - int((self.scans - 1) * self.step_s * 1e9),
                step_s=self.step_s, z_TM=self.z[rows], age_TM=self.age[rows], status_TE=self.status[rows], tap_E=tap[0],
                x_scale_E=self.x_scale[k + self.scans - 1],
                moves=tuple((int(e), float(tap[t + 1, e]), int(t) + 1) for t, e in moved),
            ))  # fmt: skip
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a map shows of one window, in the order of the grid's layout."""

    node_N: F32
    """Probability that a bus is concerned."""
    edge_E: F32
    v_N: F32
    """Believed |V|, p.u."""
    p_E: F32
    """Believed flow into a branch at its from end, MW."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One window as judged."""

    verdict: Verdict | None
    """None where the window could not be judged; `error` says why, and it will not be better next time."""
    score: float | None = None
    """Logit of implausible; None where nothing could be told."""
    threshold: float | None = None
    places: Mapping[int, float] = field(default_factory=dict)
    """Suspected buses with their logits."""
    reasons: Mapping[str, Any] | None = None
    shown: Shown | None = None
    error: str = ""
