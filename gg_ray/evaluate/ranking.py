"""Average precision and the chance of a right order, many samples at once.

Flow:    scores -> [ranking] -> metrics (one sample), core_costs (replicates of a bootstrap)
Source:  average precision without interpolation, Mann-Whitney; held against scikit-learn in the tests, whose checks of
         each call take a hundred times as long as the sums: a report asks for tens of thousands of them
Shapes:  S samples, B positives, B' negatives
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from gg_ray.records import F64


def average_precisions(
    positive_B: F64, weight_SB: F64, negative_B: F64, negative_SB: F64, prevalence: float
) -> F64:  # fmt: skip
    """[S] average precision of weighted samples, classes re-weighted to a prevalence (step sum, no interpolation)."""
    score = np.concatenate([positive_B, negative_B])
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    hits = np.cumsum(np.concatenate([weight_SB, np.zeros_like(negative_SB)], axis=1)[:, order], axis=1)[:, last]
    false = np.cumsum(np.concatenate([np.zeros_like(weight_SB), negative_SB], axis=1)[:, order], axis=1)[:, last]
    recall = hits / hits[:, -1:]
    share = prevalence * recall + (1.0 - prevalence) * false / false[:, -1:]
    precision = np.divide(prevalence * recall, share, out=np.zeros_like(share), where=share > 0)
    return np.asarray((np.diff(recall, axis=1, prepend=0.0) * precision).sum(axis=1))


def right_order(positive_B: F64, negative_B: F64) -> float:
    """Chance that a random positive scores above a random negative, ties counted half."""
    ranks = rankdata(np.concatenate([positive_B, negative_B]))[: positive_B.size].sum()
    least = positive_B.size * (positive_B.size + 1) / 2
    return float((ranks - least) / (positive_B.size * negative_B.size))
