"""One method on every window of a real record: what it says, by the newest scan of the window.

Flow:    evaluate.real_gb (half-hours), evaluate.real_fine (five minutes, 15 s) -> [rolling] -> series
Shapes:  S scans of a record, T scans of a window, M meters
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gg_ray.evaluate.scoring import Method
from gg_ray.grid import balance as b
from gg_ray.records import F64, I64, Bool
from gg_ray.scenario.balance_windows import windows
from gg_ray.verifier.features import Featurizer


@dataclass(slots=True)
class Series:
    """Scores of one method over a record [S]: NaN where no window ends."""

    t0_ns: I64
    score: F64
    disturbance: F64
    kind: I64
    top: I64
    """Bus that the method suspects most, -1 where it points nowhere."""

    def __getitem__(self, part: slice) -> Series:
        return Series(
            self.t0_ns[part], self.score[part], self.disturbance[part], self.kind[part], self.top[part]
        )  # fmt: skip


def roll(
    method: Method, z_SM: F64, t0_ns: I64, scans: int, plan_id: int, *, least: int | None = None,
    wanted_S: Bool | None = None,
) -> Series:  # fmt: skip
    """Every window of readings under one method.

    Args: z_SM  readings of a regular clock, NaN where nothing came;  scans  T
          least, wanted_S  as balance_windows.windows takes them
    """
    size = t0_ns.size
    out = Series(
        t0_ns, np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, dtype=np.int64), np.full(size, -1)
    )  # fmt: skip
    featurizer, plan = Featurizer(), b.balance_plan(plan_id)
    for ends, chunk in windows(z_SM, t0_ns, scans, plan_id, least, wanted_S):
        said = method.output(featurizer.prepare(chunk, plan))
        out.score[ends] = said.score_B
        if said.disturbance_B is not None:
            out.disturbance[ends] = said.disturbance_B
        if said.type_B is not None:
            out.kind[ends] = said.type_B
        if said.node_BN is not None:
            out.top[ends] = said.node_BN.argmax(axis=1)
    return out
