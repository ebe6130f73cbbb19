"""Statistics of the real half-hours, small enough to ship, and artificial half-hours drawn from them.

Flow:    scenario.history -> [climatology: derive -> climatology.json -> Climatology.generate] -> scenario.context
Source:  Elexon FUELHH and INDO of 2019, 2021, 2023, 2024; docs/adr/0003-contexts-and-climatology.md
Run:     python -m gg_ray.scenario.climatology DATA_DIR [--out FILE]      # derives the shipped file again
Shapes:  D days (UTC), H half-hours, K 50 draws a day; load cells are [3 day types, 12 months, 48 local half-hours]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from gg_ray.elexon.settlement import DAY_NS, HALF_HOUR_NS, LONDON
from gg_ray.records import F64, I64, Bool
from gg_ray.scenario.history import HalfHours, history_files, read_history

log = logging.getLogger(__name__)

FORMAT = 1
FILE = "climatology.json"
ATTRIBUTION = "Contains BMRS data © Elexon Limited copyright and database right 2019, 2021, 2023, 2024"
COMMAND = "python -m gg_ray.scenario.climatology DATA_DIR"
DAY_TYPES = ("weekday", "saturday", "sunday_or_holiday")
CELLS = (3, 12, 48)
LEVELS = (0.001, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.999)
"""Quantile levels of the wind capacity factor; the outer two are the range that is ever drawn."""
CF_FLOOR = 0.005
"""Capacity factors are clipped to [floor, 1 - floor] before the logit: it has no value at 0 and 1."""
SCORE_LIMIT = 3.5
"""Largest deviation drawn, standard deviations: beyond it the cell statistics (14 to 90 days) say nothing."""
DIGITS = 6
"""Decimals in the shipped file: 10 kW of demand, and above what summation order can move."""
EXTREME_LEVELS = (0.005, 0.995)
"""Two-sided outer 1 % of the corpus, for demand and for its half-hourly ramp."""
_SALT = 0x6C696D61


class ClimatologyError(ValueError):
    """The statistics are foreign or out of range; the message names the field, its value and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """Bounds outside which a context counts as extreme: demand relative to the mean, and its change per half-hour."""

    load_low: float
    load_high: float
    ramp_low: float
    ramp_high: float


@cache
def bank_holidays(year: int) -> frozenset[date]:
    """Bank holidays of England and Wales by the standing rules; one-off royal holidays count as working days."""
    # Easter Sunday, Gregorian computus of Meeus (Astronomical Algorithms, chapter 8).
    b, c = divmod(year, 100)
    h = (19 * (year % 19) + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    ell = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    n = h + ell - 7 * ((year % 19 + 11 * h + 22 * ell) // 451) + 114
    easter = date(year, n // 31, n % 31 + 1)
    may, late_may, august = date(year, 5, 1), date(year, 5, 31), date(year, 8, 31)
    days = {
        easter - timedelta(days=2),
        easter + timedelta(days=1),
        may + timedelta(days=-may.weekday() % 7),
        late_may - timedelta(days=late_may.weekday()),
        august - timedelta(days=august.weekday()),
    }
    for fixed in (date(year, 1, 1), date(year, 12, 25), date(year, 12, 26)):
        days.add(fixed)
        if fixed.weekday() >= 5:  # the next free working day is given instead
            substitute = fixed
            while substitute.weekday() >= 5 or substitute in days:
                substitute += timedelta(days=1)
            days.add(substitute)
    return frozenset(days)


def day_type(day: date) -> int:
    """Index in DAY_TYPES."""
    if day.weekday() == 6 or day in bank_holidays(day.year):
        return 2
    return 1 if day.weekday() == 5 else 0


def local_cells(t0_ns: I64) -> tuple[I64, I64, I64]:
    """Day type, month (0-11) and half-hour of the London clock (0-47) of half-hours that start at t0_ns; each [H].

    On the 50-period day local 01:00 and 01:30 come twice, on the 46-period day they do not come.
    """
    utc_day, half_hour = np.divmod(t0_ns, DAY_NS)
    days, inverse = np.unique(utc_day, return_inverse=True)
    at_start = np.array([_offset_half_hours(int(d) * DAY_NS) for d in days], dtype=np.int64)
    at_end = np.array([_offset_half_hours((int(d) + 1) * DAY_NS) for d in days], dtype=np.int64)
    offset = at_start[inverse]
    for row in np.flatnonzero((at_start != at_end)[inverse]):  # only the two clock-change days of a year
        offset[row] = _offset_half_hours(int(t0_ns[row]))
    local_day, slot = np.divmod(utc_day * 48 + half_hour // HALF_HOUR_NS + offset, 48)
    days, inverse = np.unique(local_day, return_inverse=True)
    dates = [date(1970, 1, 1) + timedelta(days=int(d)) for d in days]
    kind = np.array([day_type(d) for d in dates], dtype=np.int64)[inverse]
    month = np.array([d.month - 1 for d in dates], dtype=np.int64)[inverse]
    return kind, month, slot


def _offset_half_hours(t_ns: int) -> int:
    offset = datetime.fromtimestamp(t_ns // 1_000_000_000, tz=LONDON).utcoffset()
    return 0 if offset is None else int(offset.total_seconds()) // 1800


def extremes(t0_ns: I64, load: F64) -> Extremes:
    """Outer 1 % of a corpus: load [H] relative to its mean."""
    low, high = np.quantile(load, EXTREME_LEVELS)
    # Pairs across a gap are no ramp.
    down, up = np.quantile(np.diff(load)[np.diff(t0_ns) == HALF_HOUR_NS], EXTREME_LEVELS)
    return Extremes(load_low=float(low), load_high=float(high), ramp_low=float(down), ramp_high=float(up))


def derive(data_dir: str | Path) -> dict[str, Any]:
    """All statistics of the shipped file, rounded, from the four history files.  Raises: HistoryError."""
    return {
        "format": FORMAT,
        "attribution": ATTRIBUTION,
        "command": COMMAND,
        "inputs_sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in history_files(data_dir)},
        **_rounded(statistics(read_history(data_dir))),
    }


def statistics(half_hours: HalfHours) -> dict[str, Any]:
    """Cell means and spreads, wind quantiles, persistence and the synchronous-share regression (see the ADR)."""
    t0_ns, load, wind = half_hours.t0_ns, half_hours.load_mw / half_hours.load_mw.mean(), half_hours.wind_cf
    kind, month, slot = local_cells(t0_ns)
    cell = np.ravel_multi_index((kind, month, slot), CELLS)
    size = math.prod(CELLS)
    count = np.bincount(cell, minlength=size)
    if count.min() < 2:
        thin = np.unravel_index(int(count.argmin()), CELLS)
        raise ClimatologyError(
            f"load cell {DAY_TYPES[int(thin[0])]}, month {thin[1] + 1}, half-hour {thin[2]}: {count.min()} values; "
            "at least 2 are needed, give whole years"
        )
    mean = np.bincount(cell, load, size) / count
    std = np.sqrt(np.bincount(cell, (load - mean[cell]) ** 2, size) / (count - 1))
    z = (load - mean[cell]) / std[cell]

    clipped = np.clip(wind, CF_FLOOR, 1 - CF_FLOOR)
    logit = np.log(clipped / (1 - clipped))
    logit_mean = np.array([logit[month == m].mean() for m in range(12)])
    logit_std = np.array([logit[month == m].std() for m in range(12)])
    score = (logit - logit_mean[month]) / logit_std[month]
    # INDO is net of embedded wind: a windy day takes demand away, so the two deviations are not independent.
    link = float(np.corrcoef(z, score)[0, 1])

    design = np.stack([np.ones_like(load), load, wind], axis=1)
    shape = half_hours.shape
    coefficients = np.linalg.lstsq(design, shape, rcond=None)[0]
    rest = shape - design @ coefficients
    low, high = np.quantile(shape, (LEVELS[0], LEVELS[-1]))
    return {
        "half_hours": int(t0_ns.size),
        "load": {
            "mean_mw": half_hours.load_mw.mean(),
            "mean": mean.reshape(CELLS),
            "std": std.reshape(CELLS),
            "range": [load.min(), load.max()],
            "lag1": autocorrelation(t0_ns, z, 1),
            "lag48": autocorrelation(t0_ns, z, 48),
            "wind_correlation": link,
            "own_lags": _lags(t0_ns, (z - link * score) / math.sqrt(1 - link**2)),
        },
        "wind": {
            "levels": list(LEVELS),
            "quantiles": np.stack([np.quantile(wind[month == m], LEVELS) for m in range(12)]),
            "logit_mean": logit_mean,
            "logit_std": logit_std,
            "lag1": autocorrelation(t0_ns, score, 1),
            "lag48": autocorrelation(t0_ns, score, 48),
        },
        "shape": {
            "intercept": coefficients[0],
            "load": coefficients[1],
            "wind": coefficients[2],
            "std": rest.std(),
            "range": [low, high],
            "own_lags": _lags(t0_ns, rest),
        },
        "extremes": asdict(extremes(t0_ns, load)),
    }


def autocorrelation(t0_ns: I64, x: F64, lag: int) -> float:
    """Correlation of x [H] (mean 0) with itself lag half-hours later, over the pairs that exist."""
    row = (t0_ns - t0_ns[0]) // HALF_HOUR_NS
    grid = np.full(int(row[-1]) + 1, np.nan)
    grid[row] = x
    product = grid[:-lag] * grid[lag:]
    return float(np.nanmean(product) / np.mean(x**2))


def _lags(t0_ns: I64, x: F64) -> list[float]:
    return [autocorrelation(t0_ns, x, lag) for lag in (1, 48, 96)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_rounded(item) for item in value]
    return round(float(value), DIGITS) if isinstance(value, float | np.floating) else value


def two_scale(lag1: float, lag48: float, lag96: float) -> tuple[float, float, float]:
    """Sum of a slow and a fast AR(1) with the given half-hour, one-day and two-day correlations.

    Returns: share of variance that is slow, slow and fast coefficient per half-hour.
    Source:  share * slow**48 = lag48, share * slow**96 = lag96 (the fast part is gone after a day), then lag1.
    """
    if not 0 < lag96 < lag48 < lag1 < 1:
        raise ClimatologyError(f"lags {lag1}, {lag48}, {lag96}: need 0 < two days < one day < half an hour < 1")
    share = min(lag48**2 / lag96, 0.99)
    slow = (lag48 / share) ** (1 / 48)
    fast = (lag1 - share * slow) / (1 - share)
    return share, slow, min(max(fast, 0.0), 0.995)


def smooth_pair(lag1: float, lag48: float) -> tuple[float, float]:
    """Coefficients of the AR(2) with two real poles that has these half-hour and one-day correlations.

    One AR(1) cannot be both: wind keeps 0.997 of itself over half an hour and yet only 0.40 over a day.
    """
    if not 0 < lag48 < lag1 < 1:
        raise ClimatologyError(f"lags {lag1}, {lag48}: need 0 < one day < half an hour < 1")
    weight, p, q = 1.0, 0.0, 0.0
    for _ in range(50):  # contraction: weight is within a few per cent of 1
        p = (lag48 / weight) ** (1 / 48)
        q = min(max((lag1 - p) / (1 - lag1 * p), 0.0), p - 1e-3)
        weight = p * (1 - q**2) / ((p - q) * (1 + p * q))
    return p + q, -p * q


@dataclass(frozen=True, slots=True, kw_only=True)
class Climatology:
    """Checked statistics; draws half-hours with the same daily shape, spread and persistence as the record.

    Invariant: arrays finite and of the documented shape, spreads positive, quantiles not falling,
    correlations falling with the lag and in (0, 1).
    """

    load_mean: F64
    load_std: F64
    load_range: tuple[float, float]
    load_lags: tuple[float, float, float]
    wind_link: float
    wind_quantiles: F64
    wind_lags: tuple[float, float]
    shape_fit: tuple[float, float, float, float]
    """Intercept, per unit of load, per unit of wind, standard deviation of the rest."""
    shape_range: tuple[float, float]
    shape_lags: tuple[float, float, float]
    extremes: Extremes

    @classmethod
    def load(cls) -> Climatology:
        """The statistics shipped with the package.  Raises: ClimatologyError."""
        text = resources.files("gg_ray.scenario").joinpath(FILE).read_text(encoding="utf-8")
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ClimatologyError(f"{FILE}: {error}; install again or run: {COMMAND}") from error

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Climatology:
        """Check a record as `derive` gives it.  Raises: ClimatologyError naming the field."""
        if record.get("format") != FORMAT:
            raise ClimatologyError(f"format: {record.get('format')!r}, this version reads {FORMAT}; run: {COMMAND}")
        load, wind, shape = (_part(record, name) for name in ("load", "wind", "shape"))
        bounds = _part(record, "extremes")
        quantiles = _array(wind, "quantiles", (12, len(LEVELS)), 0.0, 1.0)
        if np.any(np.diff(quantiles, axis=1) < 0) or tuple(wind.get("levels", ())) != LEVELS:
            raise ClimatologyError(f"wind.quantiles: must rise over the levels {LEVELS}; run: {COMMAND}")
        load_range, shape_range = (_array(part, "range", (2,), 0.0, 2.0) for part in (load, shape))
        load_lags, shape_lags = (_array(part, "own_lags", (3,), 0.0, 1.0) for part in (load, shape))
        fit = [float(_array(shape, name, (), -2.0, 2.0)) for name in ("intercept", "load", "wind", "std")]
        built = cls(
            load_mean=_array(load, "mean", CELLS, 0.2, 2.0),
            load_std=_array(load, "std", CELLS, 1e-6, 0.5),
            load_range=(float(load_range[0]), float(load_range[1])),
            load_lags=(float(load_lags[0]), float(load_lags[1]), float(load_lags[2])),
            wind_link=float(_array(load, "wind_correlation", (), -0.99, 0.99)),
            wind_quantiles=quantiles,
            wind_lags=(float(_array(wind, "lag1", (), 0.0, 1.0)), float(_array(wind, "lag48", (), 0.0, 1.0))),
            shape_fit=(fit[0], fit[1], fit[2], fit[3]),
            shape_range=(float(shape_range[0]), float(shape_range[1])),
            shape_lags=(float(shape_lags[0]), float(shape_lags[1]), float(shape_lags[2])),
            extremes=Extremes(**{k: float(_array(bounds, k, (), -2.0, 2.0)) for k in Extremes.__dataclass_fields__}),
        )
        _ = two_scale(*built.load_lags), two_scale(*built.shape_lags), smooth_pair(*built.wind_lags)
        return built

    def generate(self, days: I64, restart: Bool) -> tuple[I64, F64, F64, F64]:
        """Half-hours of the given UTC days.

        Args:    days [D] day numbers since 1970-01-01, ascending; restart [D] True where the past is forgotten.
        Returns: t0_ns, load (relative to the mean), wind capacity factor, synchronous share; each [48 D].
        A day's noise comes from its date alone and a chain of days begins anew at every restart, so no two
        chains share a random number.
        """
        noise_D5K = np.stack([_day_noise(int(day)) for day in days])
        t0_ns = (days[:, None] * DAY_NS + np.arange(48) * HALF_HOUR_NS).reshape(-1)
        kind, month, slot = local_cells(t0_ns)

        score = _ar2(noise_D5K[:, 0], restart, *smooth_pair(*self.wind_lags))
        knots = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
        wind = np.empty_like(score)
        for m in range(12):
            rows = month == m
            wind[rows] = np.interp(score[rows], knots, self.wind_quantiles[m])

        own = _two_scale_path(noise_D5K[:, 1], noise_D5K[:, 2], restart, self.load_lags)
        z = np.clip(self.wind_link * score + math.sqrt(1 - self.wind_link**2) * own, -SCORE_LIMIT, SCORE_LIMIT)
        load = np.clip(self.load_mean[kind, month, slot] + self.load_std[kind, month, slot] * z, *self.load_range)

        rest = _two_scale_path(noise_D5K[:, 3], noise_D5K[:, 4], restart, self.shape_lags)
        intercept, per_load, per_wind, std = self.shape_fit
        shape = np.clip(intercept + per_load * load + per_wind * wind + std * rest, *self.shape_range)
        return t0_ns, load, wind, shape


def _day_noise(day: int) -> F64:
    """Five standard normal streams of one date: [5, 50]; the last two of each start a chain."""
    return np.random.Generator(np.random.Philox(key=(_SALT << 64) + day)).standard_normal((5, 50))


def _ar2(noise_D50: F64, restart: Bool, a: float, b: float) -> F64:
    """Unit-variance AR(2) path [48 D]; b = 0 is an AR(1)."""
    lag1 = a / (1 - b)
    drive = math.sqrt(max(1 - a * lag1 - b * (a * lag1 + b), 0.0))
    out: list[float] = []
    y = before = 0.0
    for row, fresh in zip(noise_D50.tolist(), restart.tolist(), strict=True):
        if fresh:
            before = row[48]
            y = lag1 * before + math.sqrt(1 - lag1**2) * row[49]
        for e in row[:48]:
            y, before = a * y + b * before + drive * e, y
            out.append(y)
    return np.array(out)


def _two_scale_path(slow_D50: F64, fast_D50: F64, restart: Bool, lags: tuple[float, float, float]) -> F64:
    share, slow, fast = two_scale(*lags)
    path: F64 = math.sqrt(share) * _ar2(slow_D50, restart, slow, 0.0)
    path += math.sqrt(1 - share) * _ar2(fast_D50, restart, fast, 0.0)
    return path


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    if not isinstance(part, dict):
        raise ClimatologyError(f"{name}: {type(part).__name__} where a table is due; run: {COMMAND}")
    return part


def _array(part: dict[str, Any], name: str, shape: tuple[int, ...], low: float, high: float) -> F64:
    try:
        value: F64 = np.asarray(part.get(name), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ClimatologyError(f"{name}: {error}; run: {COMMAND}") from error
    if value.shape != shape or not np.all((value >= low) & (value <= high)):
        raise ClimatologyError(f"{name}: shape {value.shape}, need {shape} in [{low}, {high}]; run: {COMMAND}")
    return value


def main(arguments: list[str] | None = None) -> None:
    """Derive the statistics again and write them.  Raises: HistoryError, ClimatologyError."""
    parser = argparse.ArgumentParser(description="Derive the shipped statistics from the history files.")
    parser.add_argument("data_dir", type=Path, help="folder that holds elexon_fuelhh_indo/")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(FILE), help="default: the packaged file")
    options = parser.parse_args(arguments)
    record = derive(options.data_dir)
    Climatology.from_dict(record)
    options.out.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    log.info("climatology: %d half-hours -> %s", record["half_hours"], options.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
