"""Detection, delay, localisation and calibration metrics, with thresholds fixed on benign validation data.

Flow:    scores of any method -> [metrics] -> evaluate.results
Source:  docs/metrics.md; event and volume metrics: Paparrizos et al., PVLDB 15(11), 2022 (VUS); no point adjustment
         anywhere (arXiv 2109.05257: random scores win with it)
Rules:   a score is higher when the window is less believable; a scan is flagged when score > threshold (strictly);
         an event is a half-open interval [onset, end) of scans
Shapes:  S scans of one timeline, B windows, N buses, K events or episodes
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order
from scipy.special import ndtr, ndtri
from sklearn.metrics import brier_score_loss, f1_score

from gg_ray.calibration.budget import dedup_scans
from gg_ray.evaluate.ranking import average_precisions, right_order
from gg_ray.records import F64, I64, Bool

Event = tuple[int, int]
"""Half-open interval [onset, end) of attacked scans."""
HopsFrom = Callable[[int], I64]
"""Graph distance from one bus to every bus, in branches."""


class MetricError(ValueError):
    """A metric was asked of data it is not defined on; the message names the input and the way out."""


def _scores(values: ArrayLike, name: str) -> F64:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise MetricError(f"{name} is empty: the metric needs at least one score")
    if not np.isfinite(array).all():
        raise MetricError(f"{name} has {int((~np.isfinite(array)).sum())} non-finite scores: clip them at the source")
    return array


def _binary(neg: ArrayLike, pos: ArrayLike) -> tuple[Bool, F64]:
    neg_B, pos_B = _scores(neg, "scores_neg"), _scores(pos, "scores_pos")
    return np.r_[np.zeros(neg_B.size, bool), np.ones(pos_B.size, bool)], np.r_[neg_B, pos_B]


# Windows ------------------------------------------------------------------------------------------------------------


def balanced_accuracy(scores_neg: ArrayLike, scores_pos: ArrayLike, threshold: float) -> float:
    """Mean of the true-negative and the true-positive rate at a fixed threshold, 0 to 1; 0.5 is chance."""
    neg_B, pos_B = _scores(scores_neg, "scores_neg"), _scores(scores_pos, "scores_pos")
    return 0.5 * float(np.mean(neg_B <= threshold)) + 0.5 * float(np.mean(pos_B > threshold))


def auroc(scores_neg: ArrayLike, scores_pos: ArrayLike) -> float:
    """Chance that a random positive scores above a random negative, ties counted half."""
    return right_order(_scores(scores_pos, "scores_pos"), _scores(scores_neg, "scores_neg"))


def auprc(scores_neg: ArrayLike, scores_pos: ArrayLike, prevalence: float | None = None) -> float:
    """Average precision (step sum, no interpolation).

    prevalence re-weights the two classes to that share of positives, so 50 % suites can be read at 1 %;
    None keeps the sample's own share. A random score has the prevalence as its value.
    """
    neg_B, pos_B = _scores(scores_neg, "scores_neg"), _scores(scores_pos, "scores_pos")
    if prevalence is None:
        prevalence = pos_B.size / (pos_B.size + neg_B.size)
    if not 0 < prevalence < 1:
        raise MetricError(f"prevalence {prevalence}: give a share between 0 and 1, or None for the sample's own")
    weights = np.ones((1, pos_B.size)), np.ones((1, neg_B.size))
    return float(average_precisions(pos_B, weights[0], neg_B, weights[1], prevalence)[0])


def threshold_for_fpr(benign: ArrayLike, fpr: float) -> float:
    """Smallest threshold that flags at most the share fpr of benign validation scores.

    With fewer than 1 / fpr scores it is their maximum. Always finite.
    """
    if not 0 <= fpr <= 1:
        raise MetricError(f"fpr {fpr}: give a share between 0 and 1")
    sorted_B = np.sort(_scores(benign, "benign"))
    allowed = math.floor(fpr * sorted_B.size + 1e-9)
    if allowed >= sorted_B.size:
        return float(np.nextafter(sorted_B[0], -np.inf))
    return float(sorted_B[sorted_B.size - allowed - 1])


def recall_at_fpr(scores_neg: ArrayLike, scores_pos: ArrayLike, fpr: float) -> float:
    """Share of positives flagged at the threshold that flags at most the share fpr of these negatives."""
    return float(np.mean(_scores(scores_pos, "scores_pos") > threshold_for_fpr(scores_neg, fpr)))


def fpr_at_tpr(scores_neg: ArrayLike, scores_pos: ArrayLike, tpr: float = 0.95) -> float:
    """Share of negatives that score at least as high as the positive which completes the share tpr of positives."""
    if not 0 < tpr <= 1:
        raise MetricError(f"tpr {tpr}: give a share above 0 and up to 1")
    pos_B = np.sort(_scores(scores_pos, "scores_pos"))[::-1]
    cut = pos_B[math.ceil(tpr * pos_B.size - 1e-9) - 1]
    return float(np.mean(_scores(scores_neg, "scores_neg") >= cut))


# Timelines ----------------------------------------------------------------------------------------------------------


def incidents(flag_S: ArrayLike, gap: int) -> list[Event]:
    """Flagged scans merged into incidents [first, last + 1) when they lie at most gap scans apart."""
    at_K = np.flatnonzero(np.asarray(flag_S, dtype=bool))
    if at_K.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(at_K) > gap)
    first, last = at_K[np.r_[0, breaks + 1]], at_K[np.r_[breaks, at_K.size - 1]]
    return [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]


def threshold_for_budget(
    benign: Sequence[ArrayLike],
    incidents_per_day: float,
    *,
    scans_per_day: float,
    dedup_minutes: float = 15.0,
    max_flag_share: float = 0.1,
) -> float:
    """Smallest threshold at which it and every higher one keep benign timelines within an incident budget.

    benign is one array of scores per timeline. The count of incidents is not monotone in the threshold (an alarm that
    is always on is a single incident), so the search comes down from the top and stops at the first violation;
    max_flag_share closes the same loophole for budgets that merging can never exceed.
    """
    timelines = [_scores(score_S, "benign timeline") for score_S in benign]
    if not timelines or incidents_per_day < 0:
        raise MetricError(f"{len(timelines)} timelines, budget {incidents_per_day}: need both, neither negative")
    gap = dedup_scans(scans_per_day, dedup_minutes)
    total = sum(t.size for t in timelines)
    allowed = math.floor(incidents_per_day * total / scans_per_day + 1e-9)
    score_A = np.concatenate(timelines)
    owner_A = np.repeat(np.arange(len(timelines)), [t.size for t in timelines])
    scan_A = np.concatenate([np.arange(t.size) for t in timelines])
    flagged: list[list[int]] = [[] for _ in timelines]
    count = 0
    order = np.argsort(-score_A, kind="stable")
    for n_flagged, a in enumerate(order, start=1):
        known, scan = flagged[owner_A[a]], int(scan_A[a])
        i = bisect_left(known, scan)
        left = i > 0 and scan - known[i - 1] <= gap
        right = i < len(known) and known[i] - scan <= gap
        already_one = left and right and known[i] - known[i - 1] <= gap
        count += 1 - int(left) - int(right) + int(already_one)
        insort(known, scan)
        last_of_ties = n_flagged == order.size or score_A[order[n_flagged]] < score_A[a]
        if last_of_ties and (count > allowed or n_flagged > max_flag_share * total):
            return float(score_A[a])
    return float(np.nextafter(score_A.min(), -np.inf))


@dataclass(frozen=True, slots=True)
class EventOutcome:
    """What became of each event: found or not, and the scans lost (the full length when missed)."""

    detected_K: Bool
    delay_K: I64

    @property
    def recall(self) -> float:
        """Share of events with a flagged scan inside; NaN without events."""
        return float(self.detected_K.mean()) if self.detected_K.size else math.nan

    @property
    def median_delay(self) -> float:
        """Median delay in scans, misses included; NaN without events."""
        return float(np.median(self.delay_K)) if self.delay_K.size else math.nan


def event_recall(score_S: ArrayLike, events: Sequence[Event], threshold: float) -> EventOutcome:
    """Finds the first score above the threshold inside each event; alarms before the onset do not count."""
    scores = _scores(score_S, "score_S")
    detected, delay = [], []
    for onset, end in events:
        if not 0 <= onset < end <= scores.size:
            raise MetricError(f"event [{onset}, {end}) does not fit a timeline of {scores.size} scans")
        hits = np.flatnonzero(scores[onset:end] > threshold)
        detected.append(hits.size > 0)
        delay.append(int(hits[0]) if hits.size else end - onset)
    return EventOutcome(np.asarray(detected, dtype=bool), np.asarray(delay, dtype=np.int64))


def false_incidents_per_day(
    scores: Sequence[ArrayLike],
    threshold: float,
    *,
    scans_per_day: float,
    dedup_minutes: float = 15.0,
    events: Sequence[Sequence[Event]] | None = None,
) -> float:
    """Incidents per day of timelines (one array of scores each) that begin outside every event.

    An incident whose first flagged scan lies in [onset, end + de-duplication time) belongs to that event. One that was
    already on at the onset is false: nobody could have told. Days are counted over the scans that can be false.
    """
    gap = dedup_scans(scans_per_day, dedup_minutes)
    false, scans = 0, 0
    for score_S, spans in zip(scores, events if events is not None else [()] * len(scores), strict=True):
        array = _scores(score_S, "timeline")
        inside_S = np.zeros(array.size, dtype=bool)
        for onset, end in spans:
            inside_S[onset : end + gap] = True
        false += sum(not inside_S[first] for first, _ in incidents(array > threshold, gap))
        scans += int((~inside_S).sum())
    if scans == 0:
        raise MetricError("no scan lies outside the events: add benign days to count false incidents")
    return false * scans_per_day / scans


def range_auc_pr(score_S: ArrayLike, events: Sequence[Event], buffer: int, keep_S: ArrayLike | None = None) -> float:
    """Area under precision and recall with a soft label around each event (R-AUC-PR).

    The label is 1 inside an event and sqrt(1 - j / buffer) at j = 1 .. buffer // 2 scans before or after it. With
    TP = sum of labels over flagged scans, at every distinct threshold
        precision = TP / flagged,   recall = min(1, TP / P) * (events with a flagged scan in reach / events),
        P = (scans inside events + sum of labels) / 2,
    and the area is the step sum of precision over recall. Scans with keep_S false count nowhere.
    """
    scores = _scores(score_S, "score_S")
    if not events:
        raise MetricError("range_auc_pr needs at least one event")
    keep = np.ones(scores.size, bool) if keep_S is None else np.asarray(keep_S, bool)
    half, hard_S = buffer // 2, np.zeros(scores.size)
    label_S, reach = np.zeros(scores.size), []
    for onset, end in events:
        hard_S[onset:end] = label_S[onset:end] = 1.0
        reach.append((max(0, onset - half), min(scores.size, end + half)))
        for j in range(1, half + 1):
            for at in (onset - j, end - 1 + j):
                if 0 <= at < scores.size:
                    label_S[at] = max(label_S[at], math.sqrt(1 - j / buffer))
    order = np.argsort(-scores, kind="stable")
    tp = np.cumsum((label_S * keep)[order])
    flagged = np.cumsum(keep[order])
    last_of_ties = np.r_[scores[order][1:] < scores[order][:-1], True] & (flagged > 0)
    best_K = np.sort([scores[a:b][keep[a:b]].max(initial=-np.inf) for a, b in reach])
    seen = (best_K.size - np.searchsorted(best_K, scores[order], side="left")) / best_K.size
    positives = 0.5 * float((hard_S * keep).sum() + (label_S * keep).sum())
    if positives == 0:
        raise MetricError("every event lies in scans that are left out: keep at least one")
    recall = (np.minimum(1.0, tp / positives) * seen)[last_of_ties]
    precision = (tp / np.maximum(flagged, 1))[last_of_ties]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def vus_pr(score_S: ArrayLike, events: Sequence[Event], max_buffer: int = 16, keep_S: ArrayLike | None = None) -> float:
    """Volume under the precision-recall surface: range_auc_pr averaged over buffers 0, 1, ..., max_buffer scans.

    The default buffer is one window of 16 scans. Source: Paparrizos et al. 2022, section 5, with the buffer made
    symmetric (the public code lets it reach one scan less after the event than before).
    """
    return float(np.mean([range_auc_pr(score_S, events, buffer, keep_S) for buffer in range(max_buffer + 1)]))


# Places and types ---------------------------------------------------------------------------------------------------


def node_f1(score: Sequence[ArrayLike], true: Sequence[ArrayLike], threshold: float) -> float:
    """F1 over all buses of all windows pooled, bus flagged when score > threshold; NaN when nothing is true or flagged.

    score and true hold one [N] array per window; N may differ between grids.
    """
    flag = np.concatenate([np.asarray(s, dtype=np.float64) for s in score]) > threshold
    truth = np.concatenate([np.asarray(t, dtype=bool) for t in true])
    if not (flag.any() or truth.any()):
        return math.nan
    return float(f1_score(truth, flag, zero_division=0))


def topk_hit(score_N: ArrayLike, true_N: ArrayLike, k: int) -> bool:
    """True when an affected bus is among the k highest scores; ties count against us, so constant scores miss."""
    scores, truth = np.asarray(score_N, dtype=np.float64), np.asarray(true_N, dtype=bool)
    if not truth.any():
        raise MetricError("topk_hit: no bus is marked as affected; leave such windows out")
    return int((scores[~truth] >= scores[truth].max()).sum()) < k


def hops_from(edge_index: ArrayLike, n_nodes: int) -> HopsFrom:
    """Breadth-first distances over undirected branches [2, E]; a bus out of reach is n_nodes hops away."""
    ends = np.asarray(edge_index, dtype=np.int64)
    graph = csr_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(n_nodes, n_nodes))

    def distances(source: int) -> I64:
        order, parent = breadth_first_order(graph, source, directed=False)
        hops_N = np.full(n_nodes, n_nodes, dtype=np.int64)
        hops_N[source] = 0
        for node in order[1:]:
            hops_N[node] = hops_N[parent[node]] + 1
        return hops_N

    return distances


def hop_distance(score_N: ArrayLike, true_N: ArrayLike, hops: I64 | HopsFrom) -> int:
    """Branches between the highest-scored bus and the nearest affected one; the farthest of tied buses counts.

    hops is an [N, N] array or a function from a bus to its [N] distances (hops_from).
    """
    scores, truth = np.asarray(score_N, dtype=np.float64), np.asarray(true_N, dtype=bool)
    if not truth.any():
        raise MetricError("hop_distance: no bus is marked as affected; leave such windows out")
    nearest_N = np.min([hops(int(i)) if callable(hops) else hops[i] for i in np.flatnonzero(truth)], axis=0)
    return int(nearest_N[scores == scores.max()].max())


def type_macro_f1(true_B: ArrayLike, pred_B: ArrayLike) -> float:
    """F1 averaged over the anomaly types (label > 0) that occur in true_B; type 0, none, only adds false alarms."""
    true, pred = np.asarray(true_B, dtype=np.int64), np.asarray(pred_B, dtype=np.int64)
    labels = np.unique(true[true > 0])
    if labels.size == 0:
        return math.nan
    return float(f1_score(true, pred, labels=labels, average="macro", zero_division=0))


# Calibration --------------------------------------------------------------------------------------------------------


def reliability_bins(prob_B: ArrayLike, label_B: ArrayLike, bins: int = 15) -> tuple[F64, F64, I64]:
    """Mean probability, share of positives and count of each equal-mass bin; equal probabilities share a bin."""
    prob, label = _scores(prob_B, "prob_B"), np.asarray(label_B, dtype=np.float64).ravel()
    if prob.min() < 0 or prob.max() > 1 or label.size != prob.size:
        raise MetricError(f"reliability: {prob.size} probabilities in [0, 1] need as many labels, got {label.size}")
    inner = np.unique(np.quantile(prob, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    bin_B = np.searchsorted(inner, prob, side="left")
    count = np.bincount(bin_B, minlength=inner.size + 1)
    used = count > 0
    mean_prob = np.bincount(bin_B, prob, inner.size + 1)[used] / count[used]
    share_pos = np.bincount(bin_B, label, inner.size + 1)[used] / count[used]
    return mean_prob, share_pos, count[used].astype(np.int64)


def ece(prob_B: ArrayLike, label_B: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean |probability - share of positives| over equal-mass bins, weighted by count."""
    mean_prob, share_pos, count = reliability_bins(prob_B, label_B, bins)
    return float(np.sum(count * np.abs(mean_prob - share_pos)) / count.sum())


def brier(prob_B: ArrayLike, label_B: ArrayLike) -> float:
    """Mean squared difference between probability and outcome."""
    return float(brier_score_loss(np.asarray(label_B, dtype=np.int64), _scores(prob_B, "prob_B"), labels=[0, 1]))


# Uncertainty, tails, ceilings ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_ci(
    values: ArrayLike, rng: np.random.Generator, n: int = 1000, *, level: float = 0.95, episode: ArrayLike | None = None
) -> Estimate:
    """Percentile interval of the mean when whole episodes are drawn again with replacement.

    values holds one figure per episode, or several when episode names the one each belongs to: scans of an episode
    are not independent and must be drawn together. Needs two episodes or more.
    """
    value_B = _scores(values, "values")
    ids = np.arange(value_B.size) if episode is None else np.unique(np.asarray(episode), return_inverse=True)[1]
    total_K, size_K = np.bincount(ids, value_B), np.bincount(ids)
    if total_K.size < 2:
        raise MetricError("bootstrap_ci: one episode has no spread; give at least two")
    draws = rng.multinomial(total_K.size, np.full(total_K.size, 1 / total_K.size), size=n)
    means = (draws @ total_K) / (draws @ size_K)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value_B.mean()), float(low), float(high))


def paired_difference_ci(
    ours: ArrayLike,
    theirs: ArrayLike,
    rng: np.random.Generator,
    n: int = 1000,
    *,
    level: float = 0.95,
    episode: ArrayLike | None = None,
) -> Estimate:
    """Interval of mean(ours - theirs) on the same episodes in the same order; it excludes 0 when the gain is real."""
    a, b = _scores(ours, "ours"), _scores(theirs, "theirs")
    if a.size != b.size:
        raise MetricError(f"paired difference of {a.size} and {b.size} values: both methods need the same episodes")
    return bootstrap_ci(a - b, rng, n, level=level, episode=episode)


def cvar(values: ArrayLike, share: float = 0.2) -> float:
    """Mean of the worst (lowest) share of cells, at least one: what the weak spots look like."""
    sorted_K = np.sort(_scores(values, "values"))
    return float(sorted_K[: max(1, math.ceil(share * sorted_K.size - 1e-9))].mean())


def oracle_accuracy(d_eff: ArrayLike) -> F64:
    """p* = Phi(d_eff / 2): best balanced accuracy against a deviation of d_eff standard deviations, known direction."""
    return np.asarray(ndtr(np.asarray(d_eff, dtype=np.float64) / 2), dtype=np.float64)


def oracle_recall(d_eff: ArrayLike, fpr: float) -> F64:
    """Phi(d_eff - z_(1 - fpr)): recall of the Gaussian known-direction test at a false-positive rate."""
    return np.asarray(ndtr(np.asarray(d_eff, dtype=np.float64) - ndtri(1 - fpr)), dtype=np.float64)


def oracle_scores(d_eff: ArrayLike, rng: np.random.Generator) -> tuple[F64, F64]:
    """Scores of that test: as many negatives from N(0, 1) as positives from N(d_eff, 1), for the ceiling row."""
    d_B = _scores(d_eff, "d_eff")
    return rng.standard_normal(d_B.size), d_B + rng.standard_normal(d_B.size)


def oracle_auprc(d_eff: ArrayLike, prevalence: float) -> float:
    """Average precision of that test on a mixture of deviations: negatives N(0, 1), positives N(d_eff, 1).

    The sum over recall in steps of a hundredth of a standard deviation of the threshold.
    """
    d_B = _scores(d_eff, "d_eff")
    threshold = np.arange(d_B.max() + 9.0, -9.0, -0.01)
    recall = ndtr(d_B[:, None] - threshold).mean(axis=0)
    share = prevalence * recall + (1.0 - prevalence) * ndtr(-threshold)
    return float((np.diff(recall, prepend=0.0) * prevalence * recall / share).sum())
