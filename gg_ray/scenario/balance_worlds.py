"""What the country does during one window: streams of the truth at any cadence, and the benign events that change them.

Flow:    scenario.balance_record -> [balance_worlds: cut, apply] -> scenario.balance_executor
Source:  docs/gb-data.md; docs/adr/0014-balance-graph.md
Shapes:  T scans of the window, A scans before it, C streams
Units:   MW, Hz

Half-hourly records are read as means; finer clocks interpolate between the centres of half-hours and add the moves that
five-minute records show about such a line. What one plant gains another loses, so the laws keep the real residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.grid.balance import (
    CHANNELS,
    FREQ,
    INDO,
    ITSDO,
    LINKS,
    N_SUPPLY,
    PS,
    RATING_MW,
    U_SUPPLY_MOVE,
    U_UNREPORTED,
    U_UNREPORTED_SIGMA,
    laws,
    readings_of,
)
from gg_ray.records import F64, Bool, Event
from gg_ray.scenario.balance_record import CCGT, BalanceRecord
from gg_ray.scenario.swing import System, swing

WIND = CHANNELS.index("WIND")
_OCGT, _NPSHYD, _NUCLEAR = (CHANNELS.index(name) for name in ("OCGT", "NPSHYD", "NUCLEAR"))
_RESTLESS = [CHANNELS.index(name) for name in ("BIOMASS", "NPSHYD", "NUCLEAR", "OCGT", "OIL", "OTHER", "WIND")]
_SYNCHRONOUS = [CHANNELS.index(name) for name in ("BIOMASS", "CCGT", "COAL", "NPSHYD", "NUCLEAR", "OCGT")]
SECOND_NS = 1_000_000_000
_FINE_MOVE = {WIND: 35.0, PS: 40.0}
"""AR(1) moves about the interpolated half-hours, MW: as large as in the five-minute record of July 2019."""
_FREQUENCY_SIGMA_HZ, _FREQUENCY_MEMORY_S = 0.076, 730.0
"""Of 22 June 2026: correlation .99, .76 and .41 over 15 s, 4 and 10 min; steps of 0.013 Hz. Excursions last minutes."""
_MEAN_FREQUENCY = {1_800.0: (0.055, 0.29), 300.0: (0.072, 0.77)}
"""Spread (Hz) and scan-to-scan correlation of frequency means over a scan; the same day."""
INERTIA_S = (3.5, 6.0)
"""Inertia constant of synchronous plant, s on its rating."""
_LOADING = 0.62
"""Output of what spins over its rating: 25 GW then carry 160 to 240 GVA s, as on 9 August 2019."""
LEAST_TRIP_MW = 250.0
"""Smallest loss that counts as a disturbance; a plant or link with less to lose is replaced by CCGT."""
DURATIONS = (1, 3, 10_000)
"""Scans that an event of this grid lasts: a bad publication is short."""


@dataclass(slots=True)
class Frame:
    """One window of the truth.

    truth_TC   [A + T, C] what really flowed in each scan; links that do not exist yet are NaN
    usual_TU   what is usual of the laws;  before  A scans ahead of the window (means need them)
    known      which of FREQ, ITSDO and embedded plant this feed carries
    """

    t0_ns: int
    step_s: float
    truth_TC: F64
    usual_TU: F64
    before: int
    known: Bool
    disturbed: bool = False
    station_step: bool = False
    """The operator changed its figure of station load within the window."""
    silent: list[tuple[int, slice]] | None = None
    """Streams declared to be out of service, as (channel, scans of the window)."""

    @property
    def scans(self) -> int:
        return int(self.usual_TU.shape[0])

    @property
    def block(self) -> int:
        """Scans that one FUELINST value covers (1 but at the 15-s clock)."""
        return 20 if self.step_s < 300 else 1


def history_scans(step_s: float) -> int:
    """Scans before a window that its means reach back to."""
    return {1_800.0: 0, 300.0: 5, 15.0: 19}[step_s]


def half_hours_needed(scans: int, step_s: float) -> int:
    """Unbroken half-hours that a window of this length is cut from."""
    if step_s == HALF_HOUR_NS / SECOND_NS:
        return scans
    return int(np.ceil((scans + history_scans(step_s)) * step_s / 1_800.0)) + 2


def cut(record: BalanceRecord, first: int, offset: int, scans: int, step_s: float, rng: np.random.Generator) -> Frame:
    """A window of `scans` from half-hour `first` on, its first scan `offset` scans into the second half-hour.

    Everything random about the window (fine moves, frequency) comes from rng.
    """
    before = history_scans(step_s)
    if step_s == 1_800.0:
        rows = slice(first, first + scans)
        truth, usual, t0 = record.stream_HC[rows].copy(), record.usual_HU[rows], int(record.t0_ns[first])
    else:
        t0 = int(record.t0_ns[first + 1]) + int(offset * step_s * SECOND_NS)
        need = half_hours_needed(scans, step_s)
        rows = slice(first, first + need)
        at = (
            t0
            - int(record.t0_ns[first])
            + ((np.arange(scans + before) - before + 0.5) * step_s * SECOND_NS).astype(np.int64)
        )
        place = at / HALF_HOUR_NS - 0.5
        low = np.clip(place.astype(np.int64), 0, need - 2)
        share = np.clip(place - low, 0.0, 1.0)[:, None]
        block = record.stream_HC[rows]
        truth = (1 - share) * block[low] + share * block[low + 1]
        usual = record.usual_HU[rows][np.clip((at[before:] // HALF_HOUR_NS).astype(np.int64), 0, need - 1)]
        _fine_moves(truth, step_s, rng)
    truth[:, FREQ] = 50.0 + _ordinary_frequency(truth.shape[0], step_s, rng)
    return Frame(
        t0_ns=t0, step_s=step_s, truth_TC=truth, usual_TU=usual, before=before,
        known=np.ones(len(CHANNELS), dtype=bool), silent=[],
    )  # fmt: skip


def _fine_moves(truth_TC: F64, step_s: float, rng: np.random.Generator) -> None:
    rho = float(np.exp(-step_s / 600.0))
    for channel, size in _FINE_MOVE.items():
        room = np.minimum(1.0, np.abs(truth_TC[:, channel]) / (4 * size))
        white: F64 = rng.standard_normal((truth_TC.shape[0],))
        moves = _ar1(white, rho) * (size * room)
        _move(truth_TC, slice(None), channel, moves)
        truth_TC[:, CCGT] -= moves


def _ar1(white_T: F64, rho: float) -> F64:
    scaled = white_T * np.sqrt(1 - rho**2)
    scaled[0] = white_T[0]
    return np.asarray(lfilter([1.0], [1.0, -rho], scaled))


def _ordinary_frequency(scans: int, step_s: float, rng: np.random.Generator) -> F64:
    size, rho = _MEAN_FREQUENCY.get(step_s, (_FREQUENCY_SIGMA_HZ, float(np.exp(-step_s / _FREQUENCY_MEMORY_S))))
    # some hours are twice as restless as others
    white: F64 = rng.standard_normal(scans)
    moves = _ar1(white, rho)
    return float(rng.uniform(0.7, 1.5)) * size * moves


# --- variety that the training years do not have --------------------------------------------------------------------


def vary(frame: Frame, rng: np.random.Generator) -> None:
    """Make a frame of the past look like one of other years: other links, a wider residual. Labels do not matter here.

    Links trade places (each scaled to the capacity of the other), the drift of the gross residual grows up to fourfold
    and some fuels move up to four times as much, with their rolling sigmas. CCGT takes the difference: the laws hold as
    well as before.
    """
    x, frame.usual_TU = frame.truth_TC, frame.usual_TU.copy()
    if rng.random() < 0.5:
        order = rng.permutation(LINKS)
        size = RATING_MW[LINKS] / RATING_MW[order]
        before, moved = np.nan_to_num(x[:, LINKS]), x[:, order] * size
        after = np.nan_to_num(moved)
        x[:, LINKS] = moved
        x[:, CCGT] -= (after - before).sum(axis=1)
        x[:, ITSDO] += (np.maximum(-after, 0) - np.maximum(-before, 0)).sum(axis=1)
        frame.usual_TU[:, LINKS + U_SUPPLY_MOVE.start] = frame.usual_TU[:, order + U_SUPPLY_MOVE.start] * size
    if rng.random() < 0.6:
        factor = float(np.exp(rng.uniform(0.0, np.log(4.0))))
        _, q = laws(x, np.isfinite(x[:, LINKS]))
        centre = np.concatenate(
            [np.repeat(frame.usual_TU[:1, U_UNREPORTED], frame.before), frame.usual_TU[:, U_UNREPORTED]]
        )
        x[:, CCGT] += (factor - 1.0) * (q - centre)
        frame.usual_TU[:, U_UNREPORTED_SIGMA] *= factor
    for channel in rng.permutation(_RESTLESS)[: int(rng.integers(0, 4))]:
        factor = float(np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
        wilder = x[:, channel].mean() + factor * (x[:, channel] - x[:, channel].mean())
        wilder = np.clip(wilder, 0.0, max(RATING_MW[channel], float(x[:, channel].max())))
        x[:, CCGT] -= wilder - x[:, channel]
        x[:, channel] = wilder
        frame.usual_TU[:, U_SUPPLY_MOVE.start + channel] *= factor
    _never_negative(x, slice(None))


# --- benign events --------------------------------------------------------------------------------------------------


def active(event: Event, scans: int) -> slice:
    """Scans of the window in which an event acts."""
    return slice(event.onset, min(scans, event.onset + DURATIONS[event.duration]))


def grade(event: Event, low: float, high: float) -> float:
    """Physical size of a benign event: its magnitude bin on a linear scale."""
    return low + (high - low) * event.magnitude / 15


def apply_benign(frame: Frame, event: Event, channel: int, rng: np.random.Generator) -> None:
    """Change the truth (or what is published of it) by one benign event."""
    when = active(event, frame.scans)
    inside = slice(frame.before + when.start, frame.before + when.stop)
    x, name = frame.truth_TC, event.primitive
    length = inside.stop - inside.start
    if name == "stream_outage":
        assert frame.silent is not None
        frame.silent.append((channel, when))
    elif name == "demand_step":
        change = np.full(length, grade(event, -0.03, 0.03)) * x[inside, INDO]
        x[inside, INDO] += change
        x[inside, ITSDO] += change
        _pick_up(x, inside, change, frame.step_s, rng, plant_only=True)
    elif name == "plant_trip":
        channel = channel if abs(np.nan_to_num(x[inside.start, channel])) >= LEAST_TRIP_MW else CCGT
        there = np.nan_to_num(x[inside, channel])
        direction = float(np.sign(there[0]))
        # what trips is running: a link that has turned round, or a plant that has come down, has less to lose
        lost = direction * np.clip(direction * there, 0.0, grade(event, 300.0, 1_600.0))
        size = float(lost[0])
        lost[0] *= rng.uniform(0.2, 1.0) if frame.step_s > 60 else 1.0
        _move(x, inside, channel, -lost)
        _pick_up(x, inside, lost, frame.step_s, rng)
        _excursion(frame, inside.start, size, rng)
        frame.disturbed |= abs(size) >= LEAST_TRIP_MW
    elif name == "link_reversal":
        if np.isnan(x[inside, channel]).any():
            channel = int(LINKS[np.isfinite(x[inside][:, LINKS]).all(axis=0)][0])  # a link that exists
        there = x[inside, channel]
        ramp = np.minimum(1.0, (np.arange(length) + 1) / max(1.0, 1_800.0 / frame.step_s))
        change = (RATING_MW[channel] * grade(event, -1.0, 1.0) - there) * ramp
        _move(x, inside, channel, change)
        _pick_up(x, inside, -change, frame.step_s, rng, plant_only=True)
    elif name == "balance_wind_ramp":
        steps = max(2.0, 7_200.0 / frame.step_s)
        size = grade(event, -0.7, 0.7)
        wanted = x[inside, WIND] * (1 + size * np.minimum(1.0, (np.arange(length) + 1) / steps))
        change = np.clip(wanted, 0.0, RATING_MW[WIND]) - x[inside, WIND]
        x[inside, WIND] += change
        _pick_up(x, inside, -change, frame.step_s, rng, plant_only=True)
    elif name == "clock_change":
        # the operator's figure of station load changes, on the day or a fortnight off: INDO moves, ITSDO is metered
        x[inside.start :, INDO] += 100.0 if event.magnitude % 2 else -100.0
        frame.station_step = True
    elif name == "frequency_excursion":
        frame.known[FREQ] = True
        _excursion(frame, inside.start, grade(event, -1_500.0, 1_500.0), rng)
        frame.disturbed = True
    else:
        raise ValueError(f"{name!r} is not a benign primitive of this grid")


def _move(x: F64, inside: slice, channel: int, change: F64) -> None:
    """Change one supply stream of a truth [A + T, C]; exports and pumping move transmission demand with them."""
    before = np.nan_to_num(x[inside, channel])
    x[inside, channel] = before + change
    if channel in LINKS or channel == PS:
        x[inside, ITSDO] += np.maximum(-(before + change), 0) - np.maximum(-before, 0)


def _pick_up(
    x: F64, inside: slice, missing: F64, step_s: float, rng: np.random.Generator, *, plant_only: bool = False
) -> None:
    """The rest of the country covers what is missing: pumped storage and hydro first, gas after some minutes.

    Invariant: what one cannot give the next one does, gas and demand last, so the balance laws stay as they were.
    """
    minutes = (np.arange(missing.size) + 1) * step_s / 60.0
    fast = np.zeros(missing.size) if plant_only else missing * (1.0 - np.minimum(1.0, minutes / 45.0))
    left = missing.copy()
    for channel, share in zip((PS, _OCGT, _NPSHYD), rng.dirichlet([4.0, 2.0, 1.0]), strict=True):
        least = -RATING_MW[channel] if channel == PS else 0.0
        room = np.clip(x[inside, channel] + fast * share, least, RATING_MW[channel]) - x[inside, channel]
        given = np.clip(room, np.minimum(fast * share, 0.0), np.maximum(fast * share, 0.0))
        _move(x, inside, channel, given)
        left -= given
    x[inside, CCGT] += left
    _never_negative(x, inside)


def _never_negative(x: F64, inside: slice) -> None:
    """Gas has nothing left to give back: demand takes what is missing."""
    below = np.maximum(-x[inside, CCGT], 0.0)
    for channel in (CCGT, INDO, ITSDO):
        x[inside, channel] += below


def _excursion(frame: Frame, start: int, missing_mw: float, rng: np.random.Generator) -> None:
    """Frequency after a loss (positive) or surplus at the beginning of a scan, averaged or sampled as FREQ is."""
    seconds = int((frame.truth_TC.shape[0] - start) * frame.step_s)
    spinning = max(float(frame.truth_TC[start, _SYNCHRONOUS].sum()), 5_000.0)
    system = System(
        demand_mw=max(float(frame.truth_TC[start, INDO]), 10_000.0),
        inertia_mvas=float(rng.uniform(*INERTIA_S)) * spinning / _LOADING,
        response_mw=float(rng.uniform(800.0, 1_600.0)), recovery_s=float(rng.uniform(100.0, 400.0)),
    )  # fmt: skip
    f = swing(np.full(min(seconds, 3_600), missing_mw), system)
    per = int(frame.step_s)
    whole = f[: (f.size // per) * per].reshape(-1, per)
    seen = whole[:, -1] if frame.step_s < 60 else whole.mean(axis=1)
    frame.truth_TC[start : start + seen.size, FREQ] += seen


# --- publication ----------------------------------------------------------------------------------------------------


def publish(frame: Frame) -> F64:
    """[A + T, C] what the feeds say in each scan: NaN where a slower stream has nothing new or a stream is not carried.

    Half-hourly demand is published in the scan that ends its half-hour; at the 15-s clock it is left out.
    """
    x, step = frame.truth_TC.copy(), frame.step_s
    ends_ns = frame.t0_ns + ((np.arange(x.shape[0]) - frame.before + 1) * step * SECOND_NS).astype(np.int64)
    if step == 15.0:
        mean = np.cumsum(np.nan_to_num(x[:, :N_SUPPLY]), axis=0)
        mean = (
            np.concatenate([mean[frame.block - 1 : frame.block], mean[frame.block :] - mean[: -frame.block]])
            / frame.block
        )
        value = np.full((x.shape[0], N_SUPPLY), np.nan)
        value[frame.block - 1 :] = mean
        value[:, np.isnan(x[0, :N_SUPPLY])] = np.nan
        value[ends_ns % (300 * SECOND_NS) != 0] = np.nan
        x[:, :N_SUPPLY] = value
        x[:, N_SUPPLY:FREQ] = np.nan
    elif step == 300.0:
        between = ends_ns % HALF_HOUR_NS != 0
        for channel in (INDO, ITSDO):
            mean = np.convolve(x[:, channel], np.full(6, 1 / 6))[: x.shape[0]]
            x[:, channel] = np.where(between, np.nan, mean)
    if step != 1_800.0:
        x[:, FREQ + 1 :] = np.nan
    x[:, ~frame.known] = np.nan
    for channel, when in frame.silent or ():
        x[frame.before + when.start : frame.before + when.stop, channel] = np.nan
    x[:, :FREQ] = np.round(x[:, :FREQ])
    x[:, FREQ] = np.round(x[:, FREQ], 3)
    return x


def averaged(published_TC: F64, frame: Frame) -> F64 | None:
    """[T, C] means over the demand's half-hour, for the laws; None where scans are half-hours already.

    NaN at the 15-s clock, where no demand is published.
    """
    if frame.step_s == 1_800.0:
        return None
    out = published_TC[frame.before :].copy()
    if frame.step_s == 300.0:
        supply = published_TC[:, :N_SUPPLY]
        total = np.apply_along_axis(lambda column: np.convolve(column, np.full(6, 1 / 6), "valid"), 0, supply)
        out[:, :N_SUPPLY] = total
    return out


def read(frame: Frame, published_TC: F64) -> F64:
    """[T, M] readings of the window that a publication [A + T, C] gives."""
    flows = np.isfinite(frame.truth_TC[:, LINKS])
    span = frame.before if frame.step_s == 300.0 else 0  # a mean over six scans needs a link in all of them
    exists = (
        np.stack([flows[i : i + span + 1].any(axis=0) for i in range(frame.scans)]) if span else flows[frame.before :]
    )
    return readings_of(published_TC[frame.before :], frame.usual_TU, averaged(published_TC, frame), exists)
