"""Conformal p-values by class, with a generalised-Pareto tail beyond the sample.

Flow:    scores of benign days -> [conformal] -> score (p-values), budget (tail), publish (stored with the model)
Source:  split conformal p-value (Vovk et al. 2005), Mondrian classes; peaks over threshold (Pickands 1975; SPOT, Siffer
         et al. KDD 2017); whole groups as the unit: Dunn, Wasserman, Ramdas, JASA 2023; verifier.md, section 7
Shapes:  K scores, V values kept of a class

What is guaranteed. If the new day and the D calibration days are exchangeable, `block_p` of a scan drawn at random from
the new day is an average of valid p-values over draws of one scan per day, so P(block_p <= a) <= 2a, and in practice a;
it cannot be smaller than 1 / (D + 1). `p` pools all scans, (1 + #{s_cal >= s}) / (n + 1): the same share with a finer
end, valid for exchangeable scans, and as D grows for exchangeable days. Scans of one day are alike, so neither is a
statement about one given hour, nor after a change of season, grid or model: that is what `adaptive` and `drift` are
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gg_ray.records import F64, I64

Key = tuple[str, ...]
"""Class of a score, from what divides most to what divides least: pooling drops names from the end."""

LEAST_SCORES = 100
"""Scores that a class needs to stand alone; with fewer it uses the class above it."""
LEAST_BLOCKS = 5
"""Days that a class needs to stand alone."""
LEAST_EXCESSES = 100
"""Scores beyond the start of a tail that a fit needs."""
TAIL_LEVELS = (0.999, 0.99, 0.98)
"""Quantile at which the tail starts: the highest that leaves enough excesses."""
SHAPE_LIMIT = 0.5
"""A fit with |shape| beyond it is not believed: no finite variance, or an end point just above the sample."""
FIT_ALPHA = 0.01
"""A tail is refused when a Kolmogorov-Smirnov test of its own excesses falls below this."""
EXTRAPOLATION = 10.0
"""A p-value is never reported below 1 / (EXTRAPOLATION * n): one decade beyond the sample."""
_EXACT, _COARSE = 128, 64


class CalibrationError(ValueError):
    """Scores that no calibration can be made of; the message names what is missing and the way out."""


@dataclass(frozen=True, slots=True)
class Tail:
    """P(score > start + y) = rate * (1 + shape y / scale)^(-1/shape): generalised Pareto beyond `start`."""

    start: float
    rate: float
    shape: float
    scale: float
    floor: float
    """Smallest p-value that is reported."""

    def p(self, score_K: ArrayLike) -> F64:
        """[K] p-values of scores above start; continuous with the rank at start and never below the floor."""
        excess = np.asarray(score_K, dtype=np.float64) - self.start
        survival = stats.genpareto.sf(excess, self.shape, scale=self.scale)
        return np.asarray(np.maximum(self.rate * survival, self.floor))


def fit_excesses(excess_K: F64) -> tuple[float, float] | None:
    """(shape, scale) of a generalised Pareto law of positive excesses by maximum likelihood, None where it is not sane.

    Not sane: fewer than LEAST_EXCESSES, no spread, |shape| above SHAPE_LIMIT, or excesses that do not follow the fit.
    """
    if (
        excess_K.size < LEAST_EXCESSES
        or not float(excess_K.max()) > 0.0
        or np.unique(excess_K).size < excess_K.size / 2
    ):
        return None
    unit = float(excess_K.mean())
    shape, _, scale = stats.genpareto.fit(excess_K / unit, 0.1, floc=0.0, scale=1.0)
    if not (np.isfinite([shape, scale]).all() and abs(shape) <= SHAPE_LIMIT and scale > 0.0):
        return None
    # parameters were fitted to these very excesses, so a rejection is a strong one
    if stats.kstest(excess_K / unit, stats.genpareto(shape, scale=scale).cdf).pvalue < FIT_ALPHA:
        return None
    return float(shape), float(scale * unit)


def fit_tail(sorted_K: F64) -> Tail | None:
    """Tail of ascending scores, None where no level leaves enough excesses or no fit is sane: the rank stands then."""
    n = sorted_K.size
    for level in TAIL_LEVELS:
        start = float(np.quantile(sorted_K, level, method="lower"))
        beyond = sorted_K[np.searchsorted(sorted_K, start, side="right") :]
        fitted = fit_excesses(beyond - start)
        if fitted is not None:
            return Tail(start, (1 + beyond.size) / (n + 1), *fitted, floor=1.0 / (EXTRAPOLATION * n))
    return None


@dataclass(frozen=True, slots=True)
class Table:
    """One class: how many benign scores are at least as large as a value.

    Invariant: p never falls when a score falls, and thinning (all of the largest, a grid below) only raises it.
    """

    value_V: F64
    """Ascending, distinct."""
    above_V: F64
    """Scores above the value before: those at least as large as any score between the two."""
    share_V: F64
    """The same as a sum over days of the share of that day's scores."""
    scores: int
    blocks: int
    tail: Tail | None

    def p(self, score_K: ArrayLike) -> F64:
        """[K] p-values: rank inside the sample, fitted tail beyond its start."""
        score = np.asarray(score_K, dtype=np.float64)
        rank = (1.0 + self._step(self.above_V, score)) / (self.scores + 1.0)
        if self.tail is None:
            return rank
        return np.where(score > self.tail.start, self.tail.p(score), rank)

    def block_p(self, score_K: ArrayLike) -> F64:
        """[K] p-values with days as the exchangeable unit; at least 1 / (blocks + 1)."""
        return (1.0 + self._step(self.share_V, np.asarray(score_K, dtype=np.float64))) / (self.blocks + 1.0)

    def _step(self, count_V: F64, score_K: F64) -> F64:
        return np.append(count_V, 0.0)[np.searchsorted(self.value_V, score_K, side="left")]


def make_table(score_K: ArrayLike, block_K: ArrayLike) -> Table:
    """Table of one class.  Raises: CalibrationError without scores, for scores that are not finite."""
    score, block = np.asarray(score_K, dtype=np.float64), np.asarray(block_K)
    if score.size == 0 or score.shape != block.shape:
        raise CalibrationError(
            f"{score.size} scores with {block.size} days: give at least one score, each with its day"
        )
    if not np.isfinite(score).all():
        raise CalibrationError(f"{int((~np.isfinite(score)).sum())} scores are not finite: leave those windows out")
    order = np.argsort(score, kind="stable")
    score = score[order]
    _, day, per_day = np.unique(block[order], return_inverse=True, return_counts=True)
    value, first = np.unique(score, return_index=True)
    above = (score.size - first).astype(np.float64)
    share = np.append(np.cumsum((1.0 / per_day[day])[::-1])[::-1], 0.0)[first]
    keep = np.arange(value.size)
    if value.size > _EXACT + _COARSE:
        # ranks in equal ratios: thinning then raises every p-value by the same few per cent at most
        from_top = np.geomspace(_EXACT + 1, value.size, _COARSE).astype(np.int64)
        keep = np.append(np.unique(value.size - from_top), np.arange(value.size - _EXACT, value.size))
    lower = np.append(0, keep[:-1] + 1)  # a score between two kept values may lie below all that was left out there
    return Table(value[keep], above[lower], share[lower], int(score.size), int(per_day.size), fit_tail(score))


@dataclass(frozen=True, slots=True)
class Conformal:
    """Tables of all classes that have enough scores and days; the empty key, everything pooled, is always there."""

    tables: Mapping[Key, Table]

    def key_of(self, key: Key) -> Key:
        """The class that answers for a key: itself or the nearest above it."""
        while key not in self.tables:
            key = key[:-1]
        return key

    def p(self, score_K: ArrayLike, classes: Sequence[ArrayLike]) -> F64:
        """[K] p-values; classes holds one [K] column of names per part of the key."""
        return self._by_class("p", score_K, classes)

    def block_p(self, score_K: ArrayLike, classes: Sequence[ArrayLike]) -> F64:
        """[K] p-values with days as the exchangeable unit."""
        return self._by_class("block_p", score_K, classes)

    def _by_class(self, how: str, score_K: ArrayLike, classes: Sequence[ArrayLike]) -> F64:
        score = np.asarray(score_K, dtype=np.float64)
        out = np.empty(score.shape)
        for key, rows in groups(classes, score.size):
            out[rows] = getattr(self.tables[self.key_of(key)], how)(score[rows])
        return out

    def as_json(self) -> list[dict[str, Any]]:
        """Plain values, as a registered model carries them; rounded so that p-values can only rise."""
        return [
            {
                "class": list(key), "value": _up(table.value_V, 5), "above": _up(table.above_V, 0),
                "share": _up(table.share_V, 4), "scores": table.scores, "blocks": table.blocks,
                "tail": None if table.tail is None else asdict(table.tail),
            }
            for key, table in self.tables.items()
        ]  # fmt: skip

    @classmethod
    def from_json(cls, stored: Sequence[Mapping[str, Any]]) -> Conformal:
        """The calibration that as_json wrote.  Raises: CalibrationError naming a field that is missing or unusable."""
        try:
            tables = {
                tuple(row["class"]): Table(
                    np.array(row["value"], dtype=np.float64), np.array(row["above"], dtype=np.float64),
                    np.array(row["share"], dtype=np.float64), int(row["scores"]), int(row["blocks"]),
                    None if row["tail"] is None else Tail(**row["tail"]),
                )
                for row in stored
            }  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"stored calibration: {type(error).__name__} {error}") from error
        if () not in tables:
            raise CalibrationError("stored calibration: the pooled class is missing")
        return cls(tables)


def calibrate(score_K: ArrayLike, classes: Sequence[ArrayLike], block_K: ArrayLike) -> Conformal:
    """Tables of every class with LEAST_SCORES scores from LEAST_BLOCKS days, of every class above it, and of all.

    Args:   score_K  benign scores, higher is less believable;  classes  [K] columns of the key, most dividing first
            block_K  day of each score, by any name
    Raises: CalibrationError without scores, for scores that are not finite.
    """
    score, block = np.asarray(score_K, dtype=np.float64), np.asarray(block_K)
    tables: dict[Key, Table] = {(): make_table(score, block)}
    for depth in range(1, len(classes) + 1):
        for key, rows in groups(classes[:depth], score.size):
            if rows.size >= LEAST_SCORES and np.unique(block[rows]).size >= LEAST_BLOCKS and key[:-1] in tables:
                tables[key] = make_table(score[rows], block[rows])
    return Conformal(tables)


def _up(value_V: F64, digits: int) -> list[float]:
    """Rounded up, in order."""
    return [round(float(v), digits) for v in np.ceil(value_V * 10.0**digits - 1e-6) / 10.0**digits]


def groups(classes: Sequence[ArrayLike], size: int) -> Iterator[tuple[Key, I64]]:
    """Rows of each combination of names among [K] columns."""
    code = np.zeros(size, dtype=np.int64)
    names: list[NDArray[Any]] = []
    for column in classes:
        known, own = np.unique(np.broadcast_to(np.asarray(column), (size,)), return_inverse=True)
        names.append(known)
        code = code * known.size + own
    found, where, counts = np.unique(code, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(where, kind="stable"), np.cumsum(counts)[:-1])
    for one, own_rows in zip(found.tolist(), rows, strict=True):
        key: list[str] = []
        for known in reversed(names):
            one, at = divmod(one, known.size)
            key.append(str(known[at]))
        yield tuple(reversed(key)), own_rows.astype(np.int64)
