"""System frequency after a loss: one aggregated machine with inertia, response, recovery and load damping.

Flow:    scenario.balance_worlds (deficits) -> [swing] -> FREQ
Source:  aggregated swing equation (Kundur 1994, ch. 11); figures of 9 August 2019 as cited in docs/gb-data.md
Shapes:  S seconds
Units:   MW, MVA s, Hz, s
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from gg_ray.records import F64

F0_HZ = 50.0
SHED_HZ = 48.8
"""First stage of low-frequency demand disconnection; it sheds SHED_SHARE of demand once."""
SHED_SHARE = 0.037
"""931 MW of 25 GW were shed on 9 August 2019, not the nominal 5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What resists a change of frequency.

    inertia_mvas  kinetic energy of synchronous machines;  damping  share of demand per Hz
    response_mw_per_hz, response_mw, response_s  droop, largest holding and time constant of primary response
    recovery_s    time constant of dispatch that brings frequency back
    """

    demand_mw: float
    inertia_mvas: float = 210_000.0
    damping: float = 0.0184
    response_mw_per_hz: float = 2_000.0
    response_mw: float = 1_000.0
    response_s: float = 6.0
    recovery_s: float = 150.0


def swing(deficit_S: F64, system: System) -> F64:
    """[S] deviation from 50 Hz, one value a second, for supply missing (positive) or in excess.

    Euler steps of 0.1 s: a tenth of the fastest time constant in use.
    """
    return np.asarray(_swing(
        np.ascontiguousarray(deficit_S, dtype=np.float64), system.demand_mw, system.inertia_mvas, system.damping,
        system.response_mw_per_hz, system.response_mw, system.response_s, system.recovery_s,
    ))  # fmt: skip


@numba.njit(cache=True)
def _swing(  # type: ignore[no-untyped-def]
    deficit, demand, energy, damping, droop, most, lag, recovery
):  # pragma: no cover - compiled
    out = np.empty(deficit.shape[0])
    f, response, dispatch, shed = 0.0, 0.0, 0.0, 0.0
    dt = 0.1
    for s in range(deficit.shape[0]):
        for _ in range(10):
            wanted = min(max(-droop * f, -most), most)
            response += dt / lag * (wanted - response)
            # dispatch answers what response holds, so that response is free again for the next loss
            dispatch += dt / recovery * (response - droop * f * 0.5)
            if shed == 0.0 and f < SHED_HZ - F0_HZ:
                shed = SHED_SHARE * demand
            surplus = response + dispatch + shed - deficit[s] - damping * demand * f
            f += dt * F0_HZ * surplus / (2.0 * energy)
        out[s] = f
    return out
