"""Classes within which benign scores are alike: voltage level, metering and hour of the week.

Flow:    grid.cases, grid.meters, time -> [classes] -> conformal
Source:  verifier.md, section 7
Shapes:  N buses
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan

LEVELS_KV = (60.0, 200.0)
"""Upper ends of the lower voltage levels; buses at or above the last are extra-high voltage."""
LEVELS = ("below 60 kV", "60-200 kV", "from 200 kV")
METERING = ("none", "flows", "injection")
_HOURS = ("night", "morning", "afternoon", "evening")


def voltage_levels(case: GridCase) -> NDArray[np.str_]:
    """[N] name of each bus' level, from its nominal voltage in kV."""
    return np.array(LEVELS)[np.digitize(case.vn_kv, LEVELS_KV)]


def metering_classes(plan: MeterPlan, case: GridCase) -> NDArray[np.str_]:
    """[N] what is metered at a bus: its injection, only a flow of one of its branches, or nothing."""
    installed = plan.index_of >= 0
    injection = installed[plan.layout.bus(1)] | installed[plan.layout.bus(2)]
    flows = np.zeros(case.n_bus, dtype=bool)
    for channel in range(4):
        ends = case.f_bus if channel < 2 else case.t_bus
        flows[ends[installed[plan.layout.branch(channel)]]] = True
    return np.array(METERING)[np.where(injection, 2, np.where(flows, 1, 0))]


def hour_bin(time_ns: int) -> str:
    """Quarter of a UTC day on a working day or at the weekend: 'working day night' is 0 to 6 h, Monday to Friday."""
    when = datetime.fromtimestamp(time_ns / 1e9, UTC)
    return f"{'working day' if when.weekday() < 5 else 'weekend'} {_HOURS[when.hour // 6]}"
