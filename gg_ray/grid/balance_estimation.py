"""What the balance laws and recent moves say about each reading of gb-balance, as an estimator says elsewhere.

Flow:    verifier.features, scenario.balance_executor -> [balance_estimation] -> residuals, states, d_eff
Source:  docs/gb-data.md (laws across the streams); AR(1) innovations: Box and Jenkins 1976
Shapes:  B windows, T scans, N buses, M meters
Units:   p.u.; residuals in standard deviations
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid import balance as b
from gg_ray.grid.detectability import Innovation
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, Bool

C128 = NDArray[np.complex128]
_FREQUENCY_SPREAD_HZ = 0.076
_RATED_SIGMA = 0.025
"""Share of its capacity by which a link's reading may pass 105 % of it before that is one sigma off."""
_MEMORY_S = 60_000.0
"""Time constant of supply and demand: half-hourly correlation 0.97."""
_LAW_RHO = (0.3, 0.6)
_FREQUENCY_RHO = {1_800.0: 0.29, 300.0: 0.77, 15.0: 0.98}


def estimate(z_BTM: F64, plan: MeterPlan) -> tuple[C128, F64]:
    """State and residual of each reading.

    Args:    z_BTM  fresh readings, NaN where a scan has none
    Returns: v [B, T, N]; residuals [B, T, M], zero where absent. Laws: distance from what is usual in rolling sigmas.
             Supply and demand: the move since the last reading, where the law it enters moved with it (the geometric
             mean of both, so about unit normal), or the excess over a link's capacity. FREQ: distance from 50 Hz.
    """
    r = np.zeros_like(z_BTM)
    filled = _carried(z_BTM)
    sigma = scale(z_BTM, plan)
    sigma_k, sigma_q = sigma[..., b.M_STATION], sigma[..., b.M_UNREPORTED]
    # readings of the laws are injections: minus the load
    r[..., b.M_STATION] = (-z_BTM[..., b.M_STATION] - filled[..., b.M_STATION_USUAL]) / sigma_k
    r[..., b.M_UNREPORTED] = (-z_BTM[..., b.M_UNREPORTED] - filled[..., b.M_UNREPORTED_USUAL]) / sigma_q
    r[..., b.M_FREQUENCY] = (z_BTM[..., b.M_FREQUENCY] - 1.0) * b.F0_HZ / _FREQUENCY_SPREAD_HZ
    moves = np.zeros_like(z_BTM)
    moves[:, 1:] = z_BTM[:, 1:] - filled[:, :-1]
    laws = np.stack([moves[..., b.M_STATION] / sigma_k, moves[..., b.M_UNREPORTED] / sigma_q], axis=-1)
    with np.errstate(invalid="ignore"):
        supply = moves[..., b.M_SUPPLY] / sigma[..., b.M_SUPPLY]
        # a false surplus of supply is a load that nobody reported: the law's injection falls
        against = -laws[..., 1:2]
        r[..., b.M_SUPPLY] = np.where(supply * against > 0, np.sign(supply) * np.sqrt(np.abs(supply * against)), 0.0)
        rated = b.RATING_MW / b.BASE_MVA
        excess = np.maximum(np.abs(z_BTM[..., b.M_SUPPLY]) / rated - 1.05, 0.0) / _RATED_SIGMA
        is_link = np.isin(np.arange(b.N_SUPPLY), b.LINKS)
        r[..., b.M_SUPPLY] += np.where(is_link, np.sign(z_BTM[..., b.M_SUPPLY]) * excess, 0.0)
        demand = moves[..., b.M_INDO] / sigma[..., b.M_INDO]
        r[..., b.M_INDO] = np.where(
            demand * laws[..., 0] > 0, np.sign(demand) * np.sqrt(np.abs(demand * laws[..., 0])), 0.0
        )
    r = np.where(np.isfinite(z_BTM), np.nan_to_num(r), 0.0)
    return _states(filled), r


def off_limits(r_TM: F64) -> bool:
    """Whether the frequency of the newest scan lies outside the operational band; not where none came.

    Args: r_TM  residuals of `estimate`
    """
    return bool(abs(r_TM[-1, b.M_FREQUENCY]) * _FREQUENCY_SPREAD_HZ > b.OPERATIONAL_HZ)


def scale(z_BTM: F64, plan: MeterPlan) -> F64:
    """[B, T, M] sigma of every reading: what is usual now where the window carries it, else the plan's.

    The country changes: OTHER moved 42 MW from one half-hour to the next in 2019 and three times that in 2024, and the
    laws drift threefold. In sigmas of then, ordinary days of now would be anomalies.
    """
    filled = _carried(z_BTM)
    out = np.broadcast_to(plan.sigma, z_BTM.shape).copy()
    share = b.STEP_SHARE[b.cadence_of(plan.plan_id)]
    for meters, source, factor in (
        (b.M_SUPPLY, b.M_SUPPLY_MOVE, share), (b.M_INDO, b.M_INDO_MOVE, 1.0),
        (b.M_STATION, b.M_STATION_SIGMA, 1.0), (b.M_UNREPORTED, b.M_UNREPORTED_SIGMA, 1.0),
    ):  # fmt: skip
        known = filled[..., source]
        out[..., meters] = np.where(known > 0, known * factor, out[..., meters])
    return out


def _carried(z_BTM: F64) -> F64:
    """Last reading so far; NaN before the first."""
    scans = z_BTM.shape[1]
    last = np.maximum.accumulate(np.where(np.isfinite(z_BTM), np.arange(scans)[None, :, None], -1), axis=1)
    return np.where(last >= 0, np.take_along_axis(z_BTM, np.maximum(last, 0), axis=1), np.nan)


def _states(filled_BTM: F64) -> C128:
    """[B, T, N] the state that the readings describe, silent streams at nothing and frequency at 50 Hz."""
    shape = filled_BTM.shape[:2]
    z = np.nan_to_num(filled_BTM).reshape(-1, filled_BTM.shape[-1])
    injection = np.zeros((z.shape[0], len(b.BUSES)))
    injection[:, b.SUPPLY_BUS] = z[:, b.M_SUPPLY]
    injection[:, b.STATION] = z[:, b.M_STATION]
    injection[:, b.WIND_BUS], injection[:, b.SOLAR_BUS] = z[:, b.M_WIND], z[:, b.M_SOLAR]
    injection[:, b.DEMAND] = -z[:, b.M_INDO] - z[:, b.M_WIND] - z[:, b.M_SOLAR]
    # an absurd reading must not leave the range of the arc sine: 150 GW through a tie
    injection = np.clip(injection, -150.0, 150.0)
    frequency = np.where(z[:, b.M_FREQUENCY] > 0.8, z[:, b.M_FREQUENCY], 1.0)
    return b.state_of(injection, np.clip(frequency, 0.8, 1.2)).reshape(*shape, -1)


class BalanceDetectability:
    """d_eff of a corruption: its distance from nothing in the metric of how each reading usually moves.

    Readings are AR(1) in time and independent of each other; a law's reading has its rolling sigma. Exact for one false
    stream whose true move is unknown: it costs the move of the stream and the move of the law.
    """

    def __init__(self, plan: MeterPlan) -> None:
        step = b.cadence_of(plan.plan_id)
        self.plan = plan
        self.rho = np.full(plan.size, np.exp(-max(step, 300.0) / _MEMORY_S))
        self.rho[b.M_STATION], self.rho[b.M_UNREPORTED] = _LAW_RHO
        self.rho[b.M_FREQUENCY] = _FREQUENCY_RHO[step]
        self.stretch = 1.0 / np.sqrt(2 * (1 - self.rho))
        """[M] spread of a stream in units of its usual move; laws and frequency are given as spreads already."""
        self.stretch[list(b.LAWS)] = 1.0
        self.stretch[b.M_FREQUENCY] = _FREQUENCY_SPREAD_HZ / b.F0_HZ / plan.sigma[b.M_FREQUENCY]

    def of(self, shift_TM: F64, there_TM: Bool, sigma_TM: F64) -> float:
        """d_eff^2 of one window.

        Args: shift_TM  false minus true readings;  there_TM  scans that have a reading;  sigma_TM  of each (`scale`)
        """
        total = 0.0
        for meter in np.flatnonzero((shift_TM != 0).any(axis=0) & there_TM.any(axis=0)):
            if meter >= b.M_STATION_USUAL:
                continue
            rows = there_TM[:, meter]
            a = shift_TM[rows, meter]
            a = a / (sigma_TM[rows, meter] * self.stretch[meter])
            rho = self.rho[meter]
            total += float(a[0] ** 2 + ((a[1:] - rho * a[:-1]) ** 2).sum() / (1 - rho**2))
        return total

    def squared(self, innovations: Sequence[Innovation], scans: int) -> F64:
        """[P] d_eff^2 of innovations on given meters, laws at their plan's sigma (as `detectability.Detectability`)."""
        out = np.zeros(len(innovations))
        usual = np.tile(self.plan.sigma, (scans, 1))
        for index, item in enumerate(innovations):
            shift = np.zeros((scans, self.plan.size))
            for column, meter in enumerate(item.meters.tolist()):  # a meter may be listed twice
                shift[:, meter] += item.a_Tc[:, column]
            out[index] = self.of(shift, np.ones_like(shift, dtype=bool), usual)
        return out
