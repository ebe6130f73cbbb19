"""Reality: what a Verifier of the national balance graph makes of years it never saw and of events that happened.

Flow:    cli evaluate --suite real-gb -> [real_gb] -> results.Results, notes, figures
Source:  docs/gb-data.md (real events, labelled bad publications); no point adjustment; thresholds from 2023 alone
Shapes:  H half-hours, B windows, T scans

Trained on 2019 and 2021, calibrated on the days of 2023 that carry no label, tested on 2024: with the threshold of
2023, and with one that follows the year before each day (calibration.trailing). The labels of bad publications were
never used in training; they decide here which days are benign, and what counts as found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gg_ray.baselines.national import SeasonalNaive
from gg_ray.calibration.budget import dedup_scans
from gg_ray.calibration.trailing import trailing_thresholds
from gg_ray.config import BALANCE_CASE, ConfigError, RunConfig
from gg_ray.elexon.events import read_events
from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.evaluate import metrics
from gg_ray.evaluate.real_fine import five_minutes, frequency
from gg_ray.evaluate.real_seeded import Limit, seeded_rows
from gg_ray.evaluate.results import Block, Row
from gg_ray.evaluate.rolling import Series, roll
from gg_ray.evaluate.scoring import BlockInfo, DetectorMethod, Method
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.grid import balance as b
from gg_ray.records import F64, I64, TYPES, Bool
from gg_ray.scenario.balance_record import SPLIT_YEARS, BalanceRecord, in_service, load_record
from gg_ray.scenario.balance_windows import readings, window_at
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.history import FOLDER
from gg_ray.verifier.features import Featurizer

SUITE = "real-gb"
INCIDENTS_PER_MONTH = 1.0
DAYS_PER_MONTH = 365.25 / 12
PER_DAY = 48
HALF_HOUR_PLAN = 1_000
_FIT_WINDOWS = 1_500
_GRACE = 2
"""Scans after the last bad one in which an alarm still counts as finding it."""
APART_MW = -2_000.0
"""Supply less INDO below which a half-hour holds dead five-minute records although no list names it (docs/gb-data.md:
33 of them down to -6 GW). They are defects, so they are no benign days; they are scored apart from the listed ones."""
SETTLED_SIGMA = 8.0
"""The rule to beat of docs/gb-data.md. Days on which it fires without a label hold real defects below the cut of the
list, and nobody knows which: thresholds of the seeded part are set on the other days, for all methods alike."""
_CALM = 0.999
DEDUP_MINUTES = 360.0
"""Alarms closer than this are one incident to an operator of half-hourly data."""


@dataclass(slots=True)
class RealFindings:
    """What the suite found: rows of the tables, lines of text, and the series that figures are drawn from."""

    blocks: list[Block]
    notes: list[str]
    record: BalanceRecord
    labelled_H: Bool
    series: dict[str, Series]
    thresholds: dict[str, float]
    settled: dict[str, float] = field(default_factory=dict)
    """Thresholds from the days of 2023 on which the balance law stayed within SETTLED_SIGMA."""
    trailing: dict[str, F64] = field(default_factory=dict)
    """[H] thresholds from the year before each day."""
    frequency: dict[str, F64] = field(default_factory=dict)


class _Labels(NamedTuple):
    """bad [H] listed half-hours;  apart [H] unlisted ones whose supply falls short of demand by 2 GW and more;
    benign [H] half-hours of days that carry neither, a window's reach after them left out;  settled [H] those of them
    whose days stay within SETTLED_SIGMA of the balance law."""

    bad: Bool
    apart: Bool
    benign: Bool
    settled: Bool


def evaluate_real(
    config: RunConfig, methods: Sequence[Method], contexts: ContextSource, info: BlockInfo,
    note: Callable[[str], None] = lambda _text: None,
) -> RealFindings:  # fmt: skip
    """Run the suite.

    Args:   methods  the model under test first
    Raises: ConfigError where no data folder is set or it lacks the record.
    """
    folder = Path(config.scenario.data_dir or ".")
    if not config.scenario.data_dir or not (folder / FOLDER).is_dir():
        raise ConfigError(
            f"suite {SUITE} needs the GB data folder with {FOLDER}/: set GG_DATA_DIR (docs/gb-data.md names its files)"
        )
    record, scans = load_record(config.scenario.data_dir), config.scenario.scans
    methods = [*methods, DetectorMethod(SeasonalNaive(_readings(record), record.t0_ns))]
    labels = _labels(folder, record, scans)
    maker = SuiteMaker(BALANCE_CASE, config.scenario, config.evaluate, contexts)
    _fit(methods, record, scans, info.seed)
    series: dict[str, Series] = {}
    years = record.t0_ns.astype("datetime64[ns]").astype("datetime64[Y]").astype(int) + 1970
    # of the training years only what a defect or the event of 9 August touches
    near = np.convolve(labels.bad | labels.apart, np.ones(2 * _GRACE + 1), "same") > 0
    wanted = np.isin(years, [*SPLIT_YEARS["validation"], *SPLIT_YEARS["test"]]) | near | _august_half_hours(record)
    for method in methods:
        note(f"scoring {int(wanted.sum())} half-hours: {method.name}")
        series[method.name] = score_record(method, record, scans, wanted)
    thresholds = {
        name: _threshold(found, labels.benign & np.isin(years, SPLIT_YEARS["validation"]))
        for name, found in series.items()
    }
    found = RealFindings([], [], record, labels.bad, series, thresholds)
    found.trailing = {
        name: trailing_thresholds(seen.score, labels.benign, record.t0_ns, INCIDENTS_PER_MONTH / DAYS_PER_MONTH)
        for name, seen in series.items()
    }
    for split in SPLIT_YEARS:
        _publications(found, labels, years, info, split, f"publications/{split}", found.thresholds)
    _publications(found, labels, years, info, "test", "publications/trailing_year", found.trailing)
    found.settled = {
        name: _threshold(seen, labels.settled & np.isin(years, SPLIT_YEARS["validation"]))
        for name, seen in series.items()
    }
    _seeded(found, methods, maker, labels, years, info)
    _others(found, labels, years, methods[0].name, scans)
    calm = found.series[methods[0].name].disturbance[labels.settled & np.isin(years, SPLIT_YEARS["validation"])]
    _august(found, methods[0], float(np.nanquantile(calm, _CALM)) if np.isfinite(calm).any() else np.inf)
    found.notes += five_minutes(methods[0], folder, record, scans)
    lines, found.frequency = frequency(methods[0], folder, scans)
    found.notes += lines
    return found


# --- the half-hourly record ------------------------------------------------------------------------------------------


def _labels(folder: Path, record: BalanceRecord, scans: int) -> _Labels:
    listed = read_events(folder / "events" / "fuelhh_bad_publication_periods.csv")
    bad = np.isin(record.t0_ns, [event.first_ns for event in listed])
    k, q = b.laws(record.stream_HC, in_service(record.stream_HC))
    apart = np.nan_to_num(k + q) < APART_MW
    apart &= ~bad
    known = bad | apart
    reach = np.convolve(known.astype(int), np.ones(scans, dtype=int))[: known.size] > 0
    days = record.t0_ns // (PER_DAY * HALF_HOUR_NS)
    benign = ~np.isin(days, days[known]) & ~reach
    with np.errstate(invalid="ignore"):
        away = np.abs(q - record.usual_HU[:, b.U_UNREPORTED]) > SETTLED_SIGMA * record.usual_HU[:, b.U_UNREPORTED_SIGMA]
    reach = np.convolve(away.astype(int), np.ones(scans, dtype=int))[: away.size] > 0
    return _Labels(bad, apart, benign, benign & ~np.isin(days, days[away]) & ~reach)


def score_record(method: Method, record: BalanceRecord, scans: int, wanted_H: Bool) -> Series:
    """Windows of the record that end at wanted half-hours under one method."""
    return roll(method, _readings(record), record.t0_ns, scans, HALF_HOUR_PLAN, wanted_S=wanted_H)


def _readings(record: BalanceRecord) -> F64:
    """[H, M] without what the other years do not carry: frequency and embedded plant."""
    stream = record.stream_HC.copy()
    stream[:, [b.FREQ, b.EMBEDDED_WIND, b.EMBEDDED_SOLAR]] = np.nan
    return readings(stream, record.usual_HU, 1_800.0)


def _fit(methods: Sequence[Method], record: BalanceRecord, scans: int, seed: int) -> None:
    """Give the classical methods trusted windows of the training years."""
    rng = np.random.default_rng(seed)
    runs = record.runs(SPLIT_YEARS["train"], scans)
    places = np.concatenate([np.arange(first, first + count - scans + 1) for first, count in runs])
    chosen = np.sort(rng.choice(places, min(_FIT_WINDOWS, places.size), replace=False))
    z = _readings(record)
    chosen_windows = [window_at(z[i : i + scans], int(record.t0_ns[i]), HALF_HOUR_PLAN) for i in chosen]
    prepared = Featurizer().prepare(chosen_windows, b.balance_plan(HALF_HOUR_PLAN))
    for method in methods:
        method.prepare([prepared], rng)


def _threshold(found: Series, benign_H: Bool) -> float:
    parts = [found.score[a:z] for a, z in _stretches(benign_H & np.isfinite(found.score))]
    return metrics.threshold_for_budget(
        parts, INCIDENTS_PER_MONTH / DAYS_PER_MONTH, scans_per_day=PER_DAY, dedup_minutes=DEDUP_MINUTES
    )


def _stretches(keep_H: Bool) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep_H.astype(np.int8), [0]])))
    return [(int(a), int(z)) for a, z in zip(edges[::2], edges[1::2], strict=True)]


def _false_per_day(series: Series, keep_H: Bool, threshold: float | F64) -> float:
    """Incidents a day among the kept half-hours that were scored."""
    keep = keep_H & np.isfinite(series.score)
    flags = np.nan_to_num(series.score, nan=-np.inf) > threshold
    gap = dedup_scans(PER_DAY, DEDUP_MINUTES)
    found = sum(len(metrics.incidents(flags[a:z], gap)) for a, z in _stretches(keep))
    return float(found / max(keep.sum() / PER_DAY, 1.0))


def _publications(
    found: RealFindings, labels: _Labels, years: I64, info: BlockInfo, split: str, part: str,
    thresholds: Mapping[str, float] | Mapping[str, F64],
) -> None:  # fmt: skip
    """Recall, delay and type on listed bad publications of a split, and false incidents on its days without any."""
    model = next(iter(found.series))
    inside = np.isin(years, SPLIT_YEARS[split])
    rows = []
    parts = {"zero_publication": labels.bad & inside, "dead_record": labels.apart & inside}
    for (kind, marked), (name, series) in itertools.product(parts.items(), found.series.items()):
        events = _stretches(marked)
        flags = np.nan_to_num(series.score, nan=-np.inf) > thresholds[name]
        delays, caught, named, places = [], 0, 0, 0
        for first, last in events:
            hit = np.flatnonzero(flags[first : last + _GRACE])
            delays.append(int(hit[0]) if hit.size else last + _GRACE - first)  # a miss counts at its full length
            if hit.size:
                caught += 1
                named += int(TYPES[series.kind[first + hit[0]]] == "S3")
                places += int(series.top[first + hit[0]] in b.SUPPLY_BUS)
        whole = split != "train"  # the other days of the training years are not scored
        rows.append(Row(
            method=name, family=kind, event_recall=caught / len(events) if events else None,
            false_incidents_per_day=_false_per_day(series, labels.benign & inside, thresholds[name]) if whole else None,
            delay_scans=float(np.median(delays)) if delays else None,
            top1=places / caught if caught and (series.top >= 0).any() else None,
        ))  # fmt: skip
        if name == model and caught:
            found.notes.append(f"{part}, {kind}: {named} of {caught} found were called S3, the family of such defects")
    found.blocks.append(Block(
        suite=f"{SUITE}/{part}", fold=info.fold, case=BALANCE_CASE, model=info.model, seed=info.seed,
        commit=info.commit, rows=tuple(rows), budget={
            "incidents_per_day": INCIDENTS_PER_MONTH / DAYS_PER_MONTH,
            "listed_events": float(len(_stretches(labels.bad & inside))),
            "unlisted_events": float(len(_stretches(labels.apart & inside))),
            "half_hours": float((labels.bad & inside).sum()),
            "days": float((labels.benign & inside).sum() / PER_DAY),
            "learner_steps": float(info.learner_steps), "executor_calls": float(info.executor_calls),
        },
    ))  # fmt: skip


# --- seeded corruption of the test year ------------------------------------------------------------------------------


def _seeded(
    found: RealFindings, methods: Sequence[Method], maker: SuiteMaker, labels: _Labels, years: I64, info: BlockInfo
) -> None:
    """Recall per family on corrupted half-hours of 2024: at thresholds of settled days, and of the year before."""
    record = found.record

    def trailing(name: str, newest_ns: I64) -> F64:
        at = np.searchsorted(record.t0_ns, newest_ns).clip(0, record.t0_ns.size - 1)
        return np.asarray(found.trailing[name][at])

    limits: dict[str, Limit] = {
        "seeded": lambda name, newest_ns: np.full(newest_ns.shape, found.settled[name]),
        "seeded/trailing_year": trailing,
    }
    rows, median = seeded_rows(maker, methods, limits, maker.sizes.windows, HALF_HOUR_PLAN)
    settled, benign = (mask & np.isin(years, SPLIT_YEARS["validation"]) for mask in (labels.settled, labels.benign))
    for kind, own in rows.items():
        found.blocks.append(Block(
            suite=f"{SUITE}/{kind}", fold=info.fold, case=BALANCE_CASE, model=info.model, seed=info.seed,
            commit=info.commit, rows=tuple(own), budget={
                "incidents_per_day": INCIDENTS_PER_MONTH / DAYS_PER_MONTH, "windows": float(maker.sizes.windows),
                "settled_days": float(settled.sum() / PER_DAY), "benign_days": float(benign.sum() / PER_DAY),
                "median_d_eff": median, "learner_steps": float(info.learner_steps),
                "executor_calls": float(info.executor_calls),
            },
        ))  # fmt: skip
    keep = labels.benign & np.isin(years, SPLIT_YEARS["test"])
    for name, series in found.series.items():
        monthly = _false_per_day(series, keep, found.settled[name]) * DAYS_PER_MONTH
        found.notes.append(
            f"{name}: threshold of settled days {found.settled[name]:.3g} gives {monthly:.1f} incidents a month on all"
            f" days of {SPLIT_YEARS['test'][0]} without a known defect"
        )


def _others(found: RealFindings, labels: _Labels, years: I64, name: str, reach: int) -> None:
    """Incidents of the test year on days without a known defect, each with what moved most: false or found?"""
    series, limit = found.series[name], found.thresholds[name]
    keep = labels.benign & np.isin(years, SPLIT_YEARS["test"]) & np.isfinite(series.score)
    flags = keep & (np.nan_to_num(series.score, nan=-np.inf) > limit)
    stream = found.record.stream_HC[:, : b.N_SUPPLY]
    k, q = b.laws(found.record.stream_HC, in_service(found.record.stream_HC))
    for first, last in metrics.incidents(flags, dedup_scans(PER_DAY, DEDUP_MINUTES)):
        at = first + int(np.nanargmax(np.where(flags[first:last], series.score[first:last], -np.inf)))
        window = slice(max(at - reach, 1), at + 1)
        move = np.nan_to_num(np.diff(stream[window.start - 1 : window.stop], axis=0))
        usual = found.record.usual_HU[window]
        scan, channel = np.unravel_index(np.abs(move / usual[:, b.U_SUPPLY_MOVE]).argmax(), move.shape)
        moved = _when(found.record, window.start + int(scan))
        away = np.stack([k, q], axis=1)[window] - usual[:, :2]
        far = np.nanmax(np.abs(away / usual[:, 2:4])) if np.isfinite(away).any() else np.nan
        top = b.BUSES[series.top[at]] if series.top[at] >= 0 else "no bus"
        found.notes.append(
            f"{SPLIT_YEARS['test'][0]}, no known defect: {_when(found.record, first)}Z, score {series.score[at]:.1f},"
            f" {TYPES[series.kind[at]]} at {top}; in the window {b.CHANNELS[channel]} moved"
            f" {move[scan, channel]:+.0f} MW at {moved}Z, the laws went {far:.1f} sigma away"
        )


def _august_half_hours(record: BalanceRecord) -> Bool:
    """[H] the half-hour of the loss of 9 August 2019 and the two after it."""
    since = record.t0_ns - int(np.datetime64("2019-08-09T15:30", "ns").astype(np.int64))
    return np.asarray((since >= 0) & (since < 3 * HALF_HOUR_NS))


def _when(record: BalanceRecord, at: int) -> str:
    return str(np.datetime64(int(record.t0_ns[at]), "ns").astype("datetime64[m]"))


# --- 9 August 2019 ---------------------------------------------------------------------------------------------------


def _august(found: RealFindings, model: Method, calm: float) -> None:
    """The verdict on the half-hours of the loss of 9 August 2019.

    Args: calm  disturbance logit that a thousandth of the settled half-hours of 2023 exceed
    """
    record, series, limit = found.record, found.series[model.name], found.thresholds[model.name]
    for at in np.flatnonzero(_august_half_hours(record)).tolist():
        word = "disturbance" if series.disturbance[at] > calm else "normal"
        if not np.isfinite(series.score[at]):
            word = "not scored"
        elif series.score[at] > limit:
            word = "IMPLAUSIBLE"
        found.notes.append(
            f"9 August 2019, half-hour from {_when(record, at)}Z: {word} (implausible {series.score[at]:.2f} against"
            f" {limit:.2f}, disturbance {series.disturbance[at]:.2f} against {calm:.2f})"
        )
