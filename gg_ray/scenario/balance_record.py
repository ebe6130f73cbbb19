"""The national record that balance contexts are cut from: half-hours of every stream, their laws, and what is usual.

Flow:    data folder (elexon.halfhours) or packaged statistics -> [balance_record] -> scenario.balance_worlds, evaluate
Source:  docs/gb-data.md (laws, defects); "Contains BMRS data (c) Elexon Limited copyright and database right
         2019, 2021"
Shapes:  H half-hours on an unbroken clock, C streams in CHANNELS order
Units:   MW
Run:     python -m gg_ray.scenario.balance_record DATA_DIR   # derives the packaged statistics

What is usual of the two laws is taken from the fortnight before each half-hour, never from after it: the live path can
do no better.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from gg_ray.elexon.halfhours import read_half_hours
from gg_ray.elexon.history import read_any
from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.grid.balance import (
    CHANNELS,
    EMBEDDED_SOLAR,
    EMBEDDED_WIND,
    INDO,
    ITSDO,
    LINKS,
    MOVE_MW,
    N_SUPPLY,
    N_USUAL,
    NOT_LINKS,
    PS,
    RATING_MW,
    STATION_SUMMER_MW,
    STATION_WINTER_MW,
    laws,
)  # fmt: skip
from gg_ray.records import F64, I64, Bool
from gg_ray.scenario.history import FOLDER

SPLIT_YEARS = {"train": (2019, 2021), "validation": (2023,), "test": (2024,)}
STATISTICS = "gb_balance.json"
FORTNIGHT = 14 * 48
STATION_SPAN = 2 * 48
_LEAST = 48
_SILENT_S = 86_400.0
FLOOR_MW = (40.0, 40.0)
"""Smallest rolling sigma of station load and of the gross residual. Station load is sharper (10 MW) but leaves that
core by 130 MW in one half-hour of a hundred: in units of the core every ordinary day would hold an anomaly."""
TRUSTED_SIGMA = 6.0
"""A half-hour whose laws are further off is no context for training: what happened there is not known."""
CCGT = CHANNELS.index("CCGT")


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceRecord:
    """Half-hours on an unbroken clock.

    stream_HC  as published, NaN where nothing was;  usual_HU  statistics of the fortnight before (balance.U_ columns)
    trusted_H  complete, alive and within TRUSTED_SIGMA of both laws
    origin     history or climatology
    """

    t0_ns: I64
    stream_HC: F64
    usual_HU: F64
    trusted_H: Bool
    origin: str

    def runs(self, years: tuple[int, ...], least: int) -> list[tuple[int, int]]:
        """(first, count) of unbroken trusted half-hours of some UTC years, at least `least` long."""
        year = self.t0_ns.astype("datetime64[ns]").astype("datetime64[Y]").astype(int) + 1970
        good = self.trusted_H & np.isin(year, years)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
        return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= least]


def record_of(t0_ns: I64, stream_HC: F64, origin: str) -> BalanceRecord:
    """The record of half-hours with gaps: the clock is filled with NaN, then laws and what is usual are worked out."""
    first, last = int(t0_ns[0]), int(t0_ns[-1])
    clock = first + HALF_HOUR_NS * np.arange((last - first) // HALF_HOUR_NS + 1)
    full = np.full((clock.size, len(CHANNELS)), np.nan)
    full[(t0_ns - first) // HALF_HOUR_NS] = stream_HC
    usual = usual_of(clock, full)
    return BalanceRecord(
        t0_ns=clock, stream_HC=full, usual_HU=usual, trusted_H=_trusted(full, usual), origin=origin
    )  # fmt: skip


def station_load(t0_ns: I64) -> F64:
    """Station load that the operator assumes, MW [H]: less in summer time."""
    times = pd.to_datetime(t0_ns, utc=True)
    summer = times.tz_convert("Europe/London").tz_localize(None) != times.tz_localize(None)
    return np.where(summer, STATION_SUMMER_MW, STATION_WINTER_MW)


def in_service(stream_SC: F64, step_s: float = 1_800.0) -> Bool:
    """[S, L] links that were published within the day before each scan.

    A link begins to exist with its first value. One that has been silent for a day carries nothing (a new link is often
    published for some hours of a test, months before it opens); one that is silent for less may carry anything.
    """
    heard = np.isfinite(stream_SC[:, LINKS])
    scan = np.arange(heard.shape[0])[:, None]
    last = np.maximum.accumulate(np.where(heard, scan, -1), axis=0)
    return np.asarray((last >= 0) & (scan - last <= _SILENT_S / step_s))


def usual_of(t0_ns: I64, stream_HC: F64) -> F64:
    """[H, U] medians and robust sigmas of k and q and usual moves of streams, over the fortnight before (MW).

    The median of k is of two days: the operator changes its figure of station load by 100 MW twice a year, on the day
    of the clock change or up to a fortnight off (2024-11-09); a fortnight's median would be wrong for a week each time.
    A usual move is the 95 % quantile of half-hourly changes over 1.96: the spread of a stream that rests and ramps. It
    is at least half of what 2019 and 2021 show, so a resting stream may start.
    Where less than a day came before, what is nominal stands in: the operator's station load, no residual, and sigmas
    of 40 and 100 MW.
    """
    k, q = laws(stream_HC, in_service(stream_HC))
    out = np.empty((t0_ns.size, N_USUAL))
    for column, (value, nominal, sigma, span) in enumerate(
        ((k, station_load(t0_ns), 40.0, STATION_SPAN), (q, np.zeros(t0_ns.size), 100.0, FORTNIGHT))
    ):
        series = pd.Series(value)
        middle = series.rolling(span, min_periods=_LEAST).median().shift(1)
        spread = (series - middle).abs().rolling(FORTNIGHT, min_periods=_LEAST).median() * 1.4826
        out[:, column] = middle.where(middle.notna(), nominal)
        out[:, 2 + column] = np.maximum(spread.shift(1).fillna(sigma), FLOOR_MW[column])
    moves = pd.DataFrame(np.abs(np.diff(stream_HC[:, : INDO + 1], axis=0, prepend=np.nan)))
    wide = moves.rolling(FORTNIGHT, min_periods=_LEAST).quantile(0.95).shift(1).to_numpy() / 1.96
    out[:, 4:] = np.maximum(np.where(np.isfinite(wide), wide, MOVE_MW), 0.5 * MOVE_MW)
    return out


def _trusted(stream_HC: F64, usual_HU: F64) -> Bool:
    needed = [*range(10), INDO, ITSDO]
    k, q = laws(stream_HC, in_service(stream_HC))
    with np.errstate(invalid="ignore"):
        near = (np.abs(k - usual_HU[:, 0]) < TRUSTED_SIGMA * usual_HU[:, 2]) & (
            np.abs(q - usual_HU[:, 1]) < TRUSTED_SIGMA * usual_HU[:, 3]
        )
        rated = (np.abs(np.nan_to_num(stream_HC[:, LINKS])) <= 1.1 * RATING_MW[LINKS]).all(axis=1)
    alive = (np.nan_to_num(stream_HC[:, NOT_LINKS]) != 0).any(axis=1)
    return np.asarray(np.isfinite(stream_HC[:, needed]).all(axis=1) & near & rated & alive)


def from_history(data_dir: str | Path, years: tuple[int, ...] = (2019, 2021, 2023, 2024)) -> BalanceRecord:
    """The record of the data folder.  Raises: HistoryError naming file, row and column."""
    t0, stream = [], []
    for year in years:
        table = read_half_hours(Path(data_dir) / FOLDER / f"fuelhh_{year}.csv")
        value = np.full((table.t0_ns.size, len(CHANNELS)), np.nan)
        value[:, [CHANNELS.index(name) for name in table.channels]] = table.value_HC
        t0.append(table.t0_ns)
        stream.append(value)
    t0_ns, first = np.unique(np.concatenate(t0), return_index=True)
    value = np.concatenate(stream)[first]
    _embed(Path(data_dir), t0_ns, value)
    return record_of(t0_ns, value, "history")


def _embed(data_dir: Path, t0_ns: I64, value_HC: F64) -> None:
    """Fill in embedded wind and solar where a file knows them."""
    path = data_dir / "neso_embedded" / "embedded_2019.csv"
    if not path.is_file():
        return
    history = read_any(path)
    at = np.searchsorted(t0_ns, history.t0_ns)
    known = (at < t0_ns.size) & (t0_ns[np.minimum(at, t0_ns.size - 1)] == history.t0_ns)
    for channel, name in ((EMBEDDED_WIND, "embedded_wind_mw"), (EMBEDDED_SOLAR, "embedded_solar_mw")):
        value_HC[at[known], channel] = history.channel(name)[known]


@functools.lru_cache(maxsize=2)
def load_record(data_dir: str) -> BalanceRecord:
    """The record of a data folder, or one drawn from the packaged statistics where there is none."""
    if data_dir and (Path(data_dir) / FOLDER).is_dir():
        return from_history(data_dir)
    return from_statistics()


# --- packaged statistics ---------------------------------------------------------------------------------------------


def _season_and_type(t0_ns: I64) -> tuple[I64, I64, I64]:
    times = pd.to_datetime(t0_ns, utc=True).tz_convert("Europe/London")
    season = (times.month.to_numpy() % 12) // 3
    weekend = (times.dayofweek.to_numpy() >= 5).astype(np.int64)
    half = times.hour.to_numpy() * 2 + times.minute.to_numpy() // 30
    return season, weekend, half


def derive(data_dir: str | Path) -> dict[str, object]:
    """Statistics of 2019 and 2021 that stand in for the record: medians by season, day type and half-hour, and how
    streams move about them (standard deviation and half-hour correlation)."""
    record = from_history(data_dir, SPLIT_YEARS["train"])
    x = np.nan_to_num(record.stream_HC[:, : ITSDO + 1])
    season, weekend, half = _season_and_type(record.t0_ns)
    profile = np.zeros((4, 2, 48, ITSDO + 1))
    for s in range(4):
        for w in range(2):
            for h in range(48):
                rows = record.trusted_H & (season == s) & (weekend == w) & (half == h)
                profile[s, w, h] = np.median(x[rows], axis=0)
    rest = np.where(record.trusted_H[:, None], x - profile[season, weekend, half], np.nan)
    rho = [float(pd.Series(column).autocorr(1)) for column in rest.T]
    _, q = laws(record.stream_HC, in_service(record.stream_HC))
    drift = np.where(record.trusted_H, q - record.usual_HU[:, 1], np.nan)
    moves = np.diff(np.where(record.trusted_H[:, None], x, np.nan), axis=0)
    return {
        "source": "Elexon BMRS FUELHH, INDO and ITSDO of 2019 and 2021; statistics only",
        "attribution": "Contains BMRS data (c) Elexon Limited copyright and database right 2019, 2021",
        "channels": list(CHANNELS[: ITSDO + 1]),
        "profile_mw": np.round(profile).astype(int).tolist(),
        "sigma_mw": np.round(np.nanstd(rest, axis=0), 1).tolist(),
        "rho": [round(value, 4) if np.isfinite(value) else 0.0 for value in rho],
        "drift_sigma_mw": round(float(np.nanstd(drift)), 1),
        "drift_rho": round(float(pd.Series(drift).autocorr(1)), 4),
        "station_sigma_mw": 12.0,
        "move_mw": np.round(np.nanstd(moves, axis=0), 1).tolist(),
    }  # fmt: skip


def statistics() -> dict[str, object]:
    """The packaged statistics."""
    text = resources.files("gg_ray.scenario").joinpath(STATISTICS).read_text(encoding="utf-8")
    loaded: dict[str, object] = json.loads(text)
    return loaded


def from_statistics(seed: int = 20_261_125, quarters: int = 4) -> BalanceRecord:
    """A record like the real one, 23 days of each quarter of each year: profiles plus AR(1) moves; CCGT balances."""
    known = statistics()
    profile, sigma, rho = (np.array(known[name], dtype=np.float64) for name in ("profile_mw", "sigma_mw", "rho"))
    rng = np.random.default_rng(seed)
    t0, streams = [], []
    for years in SPLIT_YEARS.values():
        for year in years:
            start = np.datetime64(f"{year}-01-01", "ns").astype(np.int64)
            t0_ns = np.concatenate([start + (91 * q * 48 + np.arange(23 * 48)) * HALF_HOUR_NS for q in range(quarters)])
            season, weekend, half = _season_and_type(t0_ns)
            white = rng.standard_normal((t0_ns.size, sigma.size))
            moves = np.stack([
                lfilter([np.sqrt(1 - r * r)], [1.0, -r], column) for r, column in zip(rho, white.T, strict=True)
            ], axis=1)  # fmt: skip
            x = profile[season, weekend, half] + sigma * moves
            x[:, NOT_LINKS] = np.maximum(x[:, NOT_LINKS], 0.0)
            x[:, :N_SUPPLY] = np.clip(x[:, :N_SUPPLY], -RATING_MW, RATING_MW)
            k = station_load(t0_ns) + float(str(known["station_sigma_mw"])) * rng.standard_normal(t0_ns.size)
            drift_rho = float(str(known["drift_rho"]))
            drift = float(str(known["drift_sigma_mw"])) * lfilter(
                [np.sqrt(1 - drift_rho**2)], [1.0, -drift_rho], rng.standard_normal(t0_ns.size)
            )  # fmt: skip
            exports = np.maximum(-x[:, LINKS], 0).sum(axis=1) + np.maximum(-x[:, PS], 0)
            x[:, ITSDO] = x[:, INDO] + k + exports
            _, q = laws(x)
            x[:, CCGT] = np.clip(x[:, CCGT] - q + 40.0 + drift, 300.0, None)
            _, q = laws(x)
            short = q - 40.0 - drift  # CCGT was at its lower bound: demand takes what is over
            x[:, INDO] += short
            x[:, ITSDO] += short
            streams.append(
                np.round(np.concatenate([x, np.full((t0_ns.size, len(CHANNELS) - x.shape[1]), np.nan)], axis=1))
            )
            t0.append(t0_ns)
    return record_of(np.concatenate(t0), np.concatenate(streams), "climatology")


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(derive(sys.argv[1])) + "\n")
