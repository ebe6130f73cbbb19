"""What demand, wind and the generation mix do during a window or a day: cut from the real record or drawn like it.

Flow:    scenario.history or scenario.climatology -> [context] -> scenario.grammar, scenario.executor, evaluate
Source:  selfplay.md, section 4 (context c); docs/adr/0003-contexts-and-climatology.md
Shapes:  H half-hours in UTC order, T scans, R runs (unbroken half-hours of one split)
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gg_ray.elexon.settlement import DAY_NS, HALF_HOUR_NS
from gg_ray.records import F64, I64, Bool, Context
from gg_ray.scenario.climatology import Climatology, Extremes, extremes
from gg_ray.scenario.history import FOLDER, read_history

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
TEST_MONTHS = (3, 6, 9, 12)
VALIDATION_FROM_DAY = 22
CLIMATOLOGY_YEARS = (2001, 2013)
"""First year and the one after the last that the climatology dates its days with: past years, so the clock
changes are settled, and none that the record holds."""

RARE_EVERY = 16
"""One context in so many lies in the outer 1 % of the corpus (selfplay.md, section 5: plausible-hard)."""
_RARE_TRIES, _RARE_ROUNDS = 64, 5

_CENTRE_NS = HALF_HOUR_NS // 2
_MINUTE_NS = 60_000_000_000
_NS_PER_S = 1_000_000_000
_WINDOW_SALT = 0x77696E64
_DAY_SALT = 0x64617973


class ContextError(ValueError):
    """A context was asked for that does not exist; the message names the argument, its value and the way out."""


def split_index(t_ns: I64) -> I64:
    """Index in SPLITS of UTC times [H]: months 3, 6, 9, 12 are test, of the others days from 22 on validation."""
    stamp = t_ns.astype("datetime64[ns]")
    month = stamp.astype("datetime64[M]")
    day = (stamp.astype("datetime64[D]") - month.astype("datetime64[D]")).astype(np.int64) + 1
    month_of_year = month.astype(np.int64) % 12 + 1
    late = np.where(day >= VALIDATION_FROM_DAY, 1, 0)
    return np.where(np.isin(month_of_year, TEST_MONTHS), 2, late).astype(np.int64)


def split_of(t_ns: int) -> str:
    """Split of one UTC time."""
    return SPLITS[int(split_index(np.array([t_ns], dtype=np.int64))[0])]


@dataclass(frozen=True, slots=True)
class _Run:
    """Unbroken half-hours of one split: where its values start, when, and how long its centres reach."""

    first_row: int
    rows: int
    first_centre_ns: int

    @property
    def span_ns(self) -> int:
        return (self.rows - 1) * HALF_HOUR_NS


class ContextSource:
    """Contexts by number, from half-hourly means that are read as values at the centre of their half-hour.

    Invariant: (number, scans, step, split) decides the result, whatever was asked before; a context never
    touches a half-hour of another split or one that is missing; values are finite, wind and shape in 0..1.
    """

    def __init__(self, t0_ns: I64, load: F64, wind: F64, shape: F64, bounds: Extremes, origin: str) -> None:
        """Args: t0_ns [H] ascending UTC half-hour starts; load (relative), wind, shape [H]; bounds for is_extreme."""
        values = np.stack([load, wind, shape])
        if not np.all(np.isfinite(values)):
            raise ContextError(f"{origin}: {int((~np.isfinite(values)).sum())} values are not finite; leave gaps out")
        if t0_ns.size == 0 or np.any(np.diff(t0_ns) <= 0) or np.any(t0_ns % HALF_HOUR_NS):
            raise ContextError(f"{origin}: {t0_ns.size} half-hours; need at least one, ascending, on the half-hour")
        self.origin = origin
        self.bounds = bounds
        self._values = np.ascontiguousarray(values)
        split = split_index(t0_ns)
        breaks = np.flatnonzero((np.diff(t0_ns) != HALF_HOUR_NS) | (np.diff(split) != 0)) + 1
        starts, ends = np.concatenate([[0], breaks]), np.concatenate([breaks, [t0_ns.size]])
        self._runs: dict[str, list[_Run]] = {name: [] for name in SPLITS}
        self._days: dict[str, list[tuple[_Run, int]]] = {name: [] for name in SPLITS}
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True):
            run = _Run(a, b - a, int(t0_ns[a]) + _CENTRE_NS)
            name = SPLITS[int(split[a])]
            self._runs[name].append(run)
            begin, end = int(t0_ns[a]), int(t0_ns[b - 1]) + HALF_HOUR_NS
            self._days[name] += [(run, day) for day in range(-(-begin // DAY_NS) * DAY_NS, end - DAY_NS + 1, DAY_NS)]
        for index, name in enumerate(SPLITS):
            # Shuffled once: the first few days of an evaluation are spread over the seasons.
            shuffle = np.random.Generator(np.random.Philox(key=(_DAY_SALT << 64) + index))
            self._days[name] = [self._days[name][i] for i in shuffle.permutation(len(self._days[name])).tolist()]
        self._starts: dict[tuple[int, float, str], I64] = {}

    def window(self, context_id: int, scans: int, step_s: float, split: str) -> Context:
        """A window at a start minute drawn evenly from all that fit the split without a gap.

        Every RARE_EVERY-th number draws until the window is extreme: real, hard to judge, and so for all labels alike.

        Args:    context_id any whole number from 0; scans T; step_s seconds between scans; split one of SPLITS.
        Returns: Context with T values per series, linear between half-hour centres. About 30 microseconds,
                 0.2 ms for a rare one.
        Raises:  ContextError for an argument out of range or a length that no run of the split can hold.
        """
        upto = self._start_minutes(scans, step_s, split)
        if not 0 <= context_id < 2**63:
            raise ContextError(f"context_id {context_id}: need 0 <= context_id < 2**63")
        key = ((_WINDOW_SALT + SPLITS.index(split)) << 64) + context_id
        rare = context_id % RARE_EVERY == RARE_EVERY - 1
        draws, total = np.random.Philox(key=key), int(upto[-1])
        pick = int(draws.random_raw()) % total
        if rare:
            pick = self._rare(pick, draws, upto, scans, step_s, split)
        place = int(np.searchsorted(upto, pick, side="right"))
        minute = pick - (int(upto[place - 1]) if place else 0)
        run = self._runs[split][place]
        return self._cut(context_id, run, run.first_centre_ns + minute * _MINUTE_NS, scans, step_s, split)

    def day(self, day_index: int, step_s: float, split: str) -> Context:
        """One whole UTC day, 00:00 on; the days of a split come in a fixed shuffled order.

        Args:    day_index 0 to days(split) - 1; step_s seconds between scans, 1,440 scans at 60.
        Returns: Context whose context_id is day_index. Before the first and after the last half-hour centre of
                 an unbroken run the value is held (at most 15 minutes): the neighbour is missing or of another split.
        Raises:  ContextError for an index or step out of range.
        """
        if not (math.isfinite(step_s) and 0 < step_s <= 86_400):
            raise ContextError(f"step_s {step_s}: need 0 < step_s <= 86400")
        if not 0 <= day_index < self.days(split):
            raise ContextError(
                f"day_index {day_index}: {self.origin} has whole {split} days 0 to {self.days(split) - 1}"
            )
        run, t0_ns = self._days[split][day_index]
        return self._cut(day_index, run, t0_ns, int(86_400 // step_s), step_s, split)

    def days(self, split: str) -> int:
        """Whole UTC days of a split.  Raises: ContextError for an unknown split."""
        _check_split(split)
        return len(self._days[split])

    def is_extreme(self, context: Context) -> bool:
        """Whether demand or its ramp per half-hour ever enters the outer 1 % (two-sided) of the corpus."""
        return bool(self._outer(context.load_T[None], context.step_s)[0])

    def _rare(self, pick: int, draws: np.random.Philox, upto: I64, scans: int, step_s: float, split: str) -> int:
        """The first of further picks whose window is extreme; the one given if none of them is."""
        first_row = np.array([run.first_row for run in self._runs[split]])
        load = self._values[0]
        for _ in range(_RARE_ROUNDS):
            picks = (draws.random_raw(_RARE_TRIES) % np.uint64(upto[-1])).astype(np.int64)
            places = np.searchsorted(upto, picks, side="right")
            minutes = picks - np.where(places > 0, upto[places - 1], 0)
            position = (first_row[places] + minutes / 30.0)[:, None] + np.arange(scans) * (step_s / 1_800.0)
            low = np.minimum(position.astype(np.int64), load.size - 2)
            hit = self._outer(load[low] + (position - low) * (load[low + 1] - load[low]), step_s)
            if hit.any():
                return int(picks[np.argmax(hit)])
        return pick

    def _outer(self, load_KT: F64, step_s: float) -> Bool:
        """[K] whether demand or its ramp per half-hour ever leaves the bounds."""
        bounds, ramp = self.bounds, np.diff(load_KT) * (1_800.0 / step_s)
        level = (load_KT < bounds.load_low) | (load_KT > bounds.load_high)
        steep = (ramp < bounds.ramp_low) | (ramp > bounds.ramp_high)
        return np.asarray(level.any(axis=1) | steep.any(axis=1))

    def _start_minutes(self, scans: int, step_s: float, split: str) -> I64:
        """Running count of start minutes over the runs of a split; kept, since few window lengths are used."""
        upto = self._starts.get((scans, step_s, split))
        if upto is not None:
            return upto
        _check_split(split)
        if scans < 1:
            raise ContextError(f"scans {scans}: at least 1")
        if not (math.isfinite(step_s) and step_s > 0):
            raise ContextError(f"step_s {step_s}: need a positive number of seconds")
        need_ns = math.ceil((scans - 1) * step_s * _NS_PER_S)
        span = np.array([run.span_ns for run in self._runs[split]], dtype=np.int64)
        upto = np.cumsum(np.where(span >= need_ns, (span - need_ns) // _MINUTE_NS + 1, 0))
        if upto.size == 0 or upto[-1] == 0:
            longest = span.max() / 3.6e12 if span.size else 0.0
            raise ContextError(
                f"{scans} scans of {step_s} s last {need_ns / 3.6e12:.1f} h: the longest unbroken {split} run of "
                f"{self.origin} has {longest:.1f} h; take fewer scans or a shorter step"
            )
        self._starts[scans, step_s, split] = upto
        return upto

    def _cut(self, number: int, run: _Run, t0_ns: int, scans: int, step_s: float, split: str) -> Context:
        # Whole nanoseconds until here: a float of the epoch would be off by 256 ns and make equal windows differ.
        position = (t0_ns - run.first_centre_ns) / HALF_HOUR_NS + np.arange(scans) * (step_s / 1_800.0)
        low = max(int(position[0]), 0)
        high = min(int(position[-1]) + 2, run.rows)
        rows = slice(run.first_row + low, run.first_row + high)
        knots = np.arange(low, high)
        load, wind, shape = self._values
        return Context(
            context_id=number,
            t0_ns=t0_ns,
            step_s=step_s,
            load_T=np.interp(position, knots, load[rows]),
            wind_T=np.interp(position, knots, wind[rows]),
            shape_T=np.interp(position, knots, shape[rows]),
            split=split,
            origin=self.origin,
        )


class HistorySource(ContextSource):
    """Contexts cut from the four real years; what was not published is never drawn."""

    def __init__(self, data_dir: str | Path) -> None:
        """Raises: HistoryError if a file is missing or unreadable."""
        record = read_history(data_dir)
        load = record.load_mw / record.load_mw.mean()
        super().__init__(
            record.t0_ns, load, record.wind_cf, record.shape, extremes(record.t0_ns, load), origin="history"
        )


class ClimatologySource(ContextSource):
    """Contexts drawn from the shipped statistics, dated 2001 to 2012; the same calendar rule, no data folder."""

    def __init__(self, climatology: Climatology | None = None) -> None:
        """Args: climatology, by default the shipped one.  Raises: ClimatologyError."""
        statistics = Climatology.load() if climatology is None else climatology
        first, end = (np.datetime64(f"{year}-01-01", "D").astype(np.int64) for year in CLIMATOLOGY_YEARS)
        days = np.arange(first, end, dtype=np.int64)
        split = split_index(days * DAY_NS)
        restart: Bool = np.diff(split, prepend=-1) != 0
        t0_ns, load, wind, shape = statistics.generate(days, restart)
        super().__init__(t0_ns, load, wind, shape, statistics.extremes, origin="climatology")


def context_source(data_dir: str | Path | None) -> ContextSource:
    """The real record if its folder is there, else the climatology; which one is logged.

    Raises: HistoryError if the folder is there but a file is missing or unreadable: half a record is no fallback.
    """
    if data_dir and (Path(data_dir) / FOLDER).is_dir():
        log.info("contexts: history in %s", data_dir)
        return HistorySource(data_dir)
    if data_dir:
        log.warning("contexts: no %s/ in %s, using the packaged climatology", FOLDER, data_dir)
    else:
        log.info("contexts: packaged climatology")
    return ClimatologySource()


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ContextError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
