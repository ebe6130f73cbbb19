"""Thresholds that follow the feed: each day's from the year before it, as an operator would set them every morning.

Flow:    evaluate.real_gb (scores of a record) -> [trailing] -> thresholds in force
Source:  rolling quantile of block maxima; Gumbel 1958 (one maximum per block); docs/adr/0014-balance-graph.md
Shapes:  H half-hours, D days

A threshold fixed on one year presumes that the next one is like it. The laws of the GB record drift (docs/gb-data.md),
so a threshold that looks back over a moving year keeps its budget where a fixed one does not. It never looks ahead.
"""

from __future__ import annotations

import numpy as np

from gg_ray.records import F64, I64, Bool

WINDOW_DAYS = 365
LEAST_DAYS = 180
"""Days with scores below which no threshold is given: a budget of one a month needs months to be learned from."""
_DAY_NS = 86_400_000_000_000


def trailing_thresholds(score_H: F64, benign_H: Bool, t0_ns: I64, incidents_per_day: float) -> F64:
    """Threshold in force at each half-hour: a share of `incidents_per_day` of the days of the year before exceeded it.

    Args:    score_H  NaN where nothing was scored;  benign_H  half-hours without a known defect: others do not count
             t0_ns  their starts, ascending
    Returns: [H], inf on days before which fewer than LEAST_DAYS days have a score.
    Raises:  ValueError for a budget that is not between 0 and 1 a day.
    """
    if not 0.0 < incidents_per_day < 1.0:
        raise ValueError(
            f"incidents_per_day: {incidents_per_day}; a daily maximum speaks of more than 0 and less than 1"
        )
    day_H = (t0_ns - t0_ns[0]) // _DAY_NS + WINDOW_DAYS
    # one maximum per day: a bad half-hour stays in every window of the next hours and must count once
    highest_D = np.full(int(day_H[-1]) + 1, -np.inf)
    kept = benign_H & np.isfinite(score_H)
    np.maximum.at(highest_D, day_H[kept], score_H[kept])
    before_DW = np.lib.stride_tricks.sliding_window_view(highest_D, WINDOW_DAYS)[:-1]
    seen_D = np.isfinite(before_DW).sum(axis=1)
    # days without a score sort first, so ranks are counted from the top
    rank_D = np.maximum(np.floor(incidents_per_day * seen_D).astype(np.int64), 0)
    ordered_DW = np.sort(before_DW, axis=1)
    limit_D = np.take_along_axis(ordered_DW, (WINDOW_DAYS - 1 - rank_D)[:, None], axis=1)[:, 0]
    limit_D = np.where(seen_D >= LEAST_DAYS, limit_D, np.inf)
    return np.asarray(limit_D[day_H - WINDOW_DAYS])
