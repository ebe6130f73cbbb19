"""Metrics: hand-computed cases, invariances, budgets that hold, and random scores that get nothing for free."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gg_ray.evaluate import metrics as m

SCORES = hnp.arrays(np.float64, st.integers(1, 40), elements=st.integers(-8, 8).map(float))
FLAGS = hnp.arrays(np.bool_, st.integers(1, 80))


def test_hand_computed_window_metrics() -> None:
    neg, pos = [0.1, 0.2, 0.3, 0.8], [0.4, 0.9]
    assert m.balanced_accuracy(neg, pos, 0.35) == pytest.approx((0.75 + 1.0) / 2)
    assert m.auroc(neg, pos) == pytest.approx(7 / 8)
    assert m.auprc(neg, pos) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # at one half, each positive weighs .25 and each negative .125: the second step has precision .5 / .625
    assert m.auprc(neg, pos, prevalence=0.5) == pytest.approx(0.5 * 1 + 0.5 * 0.5 / 0.625)
    assert m.recall_at_fpr(neg, pos, 0.0) == 0.5
    assert m.recall_at_fpr(neg, pos, 0.25) == 1.0
    assert m.fpr_at_tpr(neg, pos, 1.0) == 0.25
    assert m.fpr_at_tpr(neg, pos, 0.5) == 0.0


def test_score_equal_to_threshold_is_not_flagged() -> None:
    assert m.balanced_accuracy([1.0], [1.0], 1.0) == 0.5
    assert m.recall_at_fpr([1.0], [1.0], 0.5) == 0.0


def test_random_scores_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    neg, pos = rng.standard_normal(20_000), rng.standard_normal(20_000)
    assert m.auroc(neg, pos) == pytest.approx(0.5, abs=0.01)
    assert m.auprc(neg, pos) == pytest.approx(0.5, abs=0.02)
    assert m.auprc(neg, pos, prevalence=0.01) == pytest.approx(0.01, abs=0.002)
    assert m.balanced_accuracy(neg, pos, 0.3) == pytest.approx(0.5, abs=0.01)
    assert m.recall_at_fpr(neg, pos, 0.05) == pytest.approx(0.05, abs=0.01)
    assert m.fpr_at_tpr(neg, pos) == pytest.approx(0.95, abs=0.01)


@given(SCORES, SCORES)
def test_ranking_metrics_ignore_monotone_transforms(neg: m.F64, pos: m.F64) -> None:
    def bent(x: m.F64) -> m.F64:
        return np.asarray(np.sign(x) * np.abs(x) ** 3 + 2 * x - 5)

    assert m.auroc(bent(neg), bent(pos)) == pytest.approx(m.auroc(neg, pos))
    assert m.auprc(bent(neg), bent(pos)) == pytest.approx(m.auprc(neg, pos))
    assert m.auprc(bent(neg), bent(pos), 0.1) == pytest.approx(m.auprc(neg, pos, 0.1))
    assert m.recall_at_fpr(bent(neg), bent(pos), 0.1) == m.recall_at_fpr(neg, pos, 0.1)


@given(SCORES, SCORES, st.floats(0, 1))
def test_recall_is_a_rate_that_grows_with_the_fpr(neg: m.F64, pos: m.F64, fpr: float) -> None:
    recall = m.recall_at_fpr(neg, pos, fpr)
    assert 0 <= recall <= 1
    assert recall >= m.recall_at_fpr(neg, pos, fpr / 2)
    assert m.recall_at_fpr(neg, pos, 1.0) == (1.0 if pos.min() >= neg.min() else np.mean(pos >= neg.min()))


@given(SCORES, st.floats(0, 1))
def test_threshold_for_fpr_keeps_the_budget_and_is_the_smallest(benign: m.F64, fpr: float) -> None:
    threshold = m.threshold_for_fpr(benign, fpr)
    assert math.isfinite(threshold)
    assert np.mean(benign > threshold) <= fpr + 1e-9
    lower = benign[benign < threshold]
    if threshold in benign:
        assert np.mean(benign >= threshold) > fpr - 1e-9
    if lower.size:
        assert np.mean(benign > lower.max()) > fpr


def test_bad_input_is_named() -> None:
    with pytest.raises(m.MetricError, match=r"scores_neg.*non-finite"):
        m.auroc([np.nan, 1.0], [1.0])
    with pytest.raises(m.MetricError, match="scores_pos is empty"):
        m.auroc([1.0], [])
    with pytest.raises(m.MetricError, match="prevalence"):
        m.auprc([0.0], [1.0], prevalence=1.0)
    with pytest.raises(m.MetricError, match="does not fit"):
        m.event_recall([1.0, 2.0], [(1, 3)], 0.0)


def test_incidents_merge_within_the_gap() -> None:
    flags = np.zeros(40, bool)
    flags[[0, 1, 5, 30]] = True
    assert m.incidents(flags, gap=4) == [(0, 6), (30, 31)]
    assert m.incidents(flags, gap=3) == [(0, 2), (5, 6), (30, 31)]
    assert m.incidents(np.zeros(5, bool), gap=3) == []


@given(FLAGS, st.integers(1, 10))
def test_incidents_cover_every_flag_and_lie_apart(flags: m.Bool, gap: int) -> None:
    spans = m.incidents(flags, gap)
    covered = np.zeros(flags.size, bool)
    for first, end in spans:
        covered[first:end] = True
        assert flags[first]
        assert flags[end - 1]
    assert (covered | ~flags).all()
    assert all(b[0] - (a[1] - 1) > gap for a, b in itertools.pairwise(spans))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        hnp.arrays(np.float64, st.integers(5, 60), elements=st.integers(0, 30).map(float)), min_size=1, max_size=3
    ),
    st.integers(0, 6),
)
def test_threshold_for_budget_holds_at_it_and_above(timelines: list[m.F64], allowed: int) -> None:
    total, day, share = sum(t.size for t in timelines), 20.0, 0.5
    threshold = m.threshold_for_budget(
        timelines, allowed * day / total, scans_per_day=day, dedup_minutes=150, max_flag_share=share
    )
    levels = np.unique(np.concatenate(timelines))

    def cost(level: float) -> tuple[int, int]:
        return sum(len(m.incidents(t > level, 2)) for t in timelines), sum(int((t > level).sum()) for t in timelines)

    for level in [threshold, *levels[levels >= threshold]]:
        assert cost(level)[0] <= allowed
        assert cost(level)[1] <= share * total
    below = levels[levels < threshold]
    if threshold in levels:
        next_cost = cost(float(below.max()) if below.size else -1.0)
        assert next_cost[0] > allowed or next_cost[1] > share * total


def test_always_on_alarm_does_not_meet_a_budget() -> None:
    ramp = np.arange(1440.0)  # one flagged run at any threshold: a single incident however low it is set
    threshold = m.threshold_for_budget([ramp], 5, scans_per_day=1440)
    assert np.mean(ramp > threshold) <= 0.1


def test_event_recall_and_delay_by_hand() -> None:
    score = np.zeros(30)
    score[[4, 12, 29]] = 1.0
    outcome = m.event_recall(score, [(5, 9), (10, 20), (25, 30)], 0.5)
    assert outcome.detected_K.tolist() == [False, True, True]  # the alarm just before the first onset is no detection
    assert outcome.delay_K.tolist() == [4, 2, 4]
    assert outcome.recall == pytest.approx(2 / 3)
    assert outcome.median_delay == 4


def test_no_point_adjustment_random_score_stays_at_chance() -> None:
    rng = np.random.default_rng(1)
    scans, length = 60_000, 5
    score = rng.random(scans)
    events = [(a, a + length) for a in range(100, scans - 100, 200)]
    threshold = m.threshold_for_fpr(rng.random(50_000), 0.01)
    recall = m.event_recall(score, events, threshold).recall
    assert recall == pytest.approx(1 - 0.99**length, abs=0.04)
    assert recall < 0.12
    inside = np.concatenate([score[a:b] for a, b in events])
    assert np.mean(inside > threshold) < 0.03  # flagged scans of a found event are not credited to the whole event
    assert m.vus_pr(score, events, 4) < 0.06


def test_false_incidents_belong_to_the_scan_that_starts_them() -> None:
    score = np.zeros(2880)
    score[[100, 110, 2000]] = 1.0  # one merged incident and another
    assert m.false_incidents_per_day([score], 0.5, scans_per_day=1440) == pytest.approx(1.0)
    score[1000:1012] = 1.0  # inside the event and shortly after it
    days = (2880 - 25) / 1440
    assert m.false_incidents_per_day([score], 0.5, scans_per_day=1440, events=[[(1000, 1010)]]) == pytest.approx(
        2 / days
    )
    score[990] = 1.0  # already on before the onset
    assert m.false_incidents_per_day([score], 0.5, scans_per_day=1440, events=[[(1000, 1010)]]) == pytest.approx(
        3 / days
    )


def test_range_auc_pr_by_hand() -> None:
    perfect = np.array([0, 0, 1, 1, 0, 0.0])
    assert m.range_auc_pr(perfect, [(2, 4)], 0) == pytest.approx(1.0)
    # buffer 2: one scan on either side carries sqrt(1/2); P = (2 + 2 + sqrt 2) / 2
    soft = math.sqrt(0.5)
    positives = (2 + 2 + 2 * soft) / 2
    first = 2 / positives
    rest = (min(1.0, (2 + 2 * soft) / positives) - first) * (2 + 2 * soft) / 6
    assert m.range_auc_pr(perfect, [(2, 4)], 2) == pytest.approx(first + rest)
    assert m.vus_pr(perfect, [(2, 4)], 1) == pytest.approx(1.0)  # buffer 1 reaches no scan
    # one of two events found at the top: existence halves its recall
    half = np.array([1, 0, 0, 0, 0, 0.0])
    assert m.range_auc_pr(half, [(0, 1), (4, 5)], 0) == pytest.approx(0.25 * 1 + 0.75 * 2 / 6)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, 40, elements=st.integers(0, 20).map(float)), st.integers(0, 30), st.integers(1, 9))
def test_vus_is_a_rate_without_regard_to_scale_or_to_left_out_scans(score: m.F64, onset: int, length: int) -> None:
    events = [(onset, onset + length)]
    value = m.vus_pr(score, events, 6)
    assert 0 <= value <= 1 + 1e-9
    assert m.vus_pr(score**3 + 4, events, 6) == pytest.approx(value)
    padded, keep = np.r_[score, np.full(10, 1e9)], np.r_[np.ones(40, bool), np.zeros(10, bool)]
    if onset + length + 3 <= 40:
        assert m.vus_pr(padded, events, 6, keep) == pytest.approx(value)


def slow_vus(score: list[float], events: list[tuple[int, int]], largest: int, keep: list[bool]) -> float:
    """VUS-PR from the definitions, one flagged set at a time, with plain loops: shares no code with the module."""
    areas = []
    for buffer in range(largest + 1):
        half, soft = buffer // 2, []
        for scan in range(len(score)):
            away = min(max(onset - scan, scan - (end - 1), 0) for onset, end in events)
            soft.append(1.0 if away == 0 else (1 - away / buffer) ** 0.5 if away <= half else 0.0)
        inside = [any(onset <= scan < end for onset, end in events) for scan in range(len(score))]
        kept = [scan for scan in range(len(score)) if keep[scan]]
        positives = sum(soft[scan] + inside[scan] for scan in kept) / 2
        area, before = 0.0, 0.0
        for threshold in sorted({score[scan] for scan in kept}, reverse=True):
            flagged = [scan for scan in kept if score[scan] >= threshold]
            found = sum(any(onset - half <= scan < end + half for scan in flagged) for onset, end in events)
            hit = sum(soft[scan] for scan in flagged)
            recall = min(1.0, hit / positives) * found / len(events)
            area += (recall - before) * hit / len(flagged)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@given(
    st.lists(st.integers(0, 9), min_size=40, max_size=40), st.integers(2, 10), st.integers(18, 28), st.integers(1, 5),
    st.integers(0, 9), st.integers(0, 35),
)  # fmt: skip
def test_vus_is_that_of_a_slow_independent_implementation(
    raw: list[int], first: int, second: int, length: int, largest: int, left_out: int
) -> None:
    events = [(first, first + length), (second, second + 3)]
    keep = [not left_out <= scan < left_out + 2 or any(a <= scan < b for a, b in events) for scan in range(40)]
    ours = m.vus_pr(np.array(raw, dtype=float), events, largest, np.array(keep))
    assert ours == pytest.approx(slow_vus([float(v) for v in raw], events, largest, keep), abs=1e-12)


def test_places() -> None:
    true = np.array([False, True, False, False])
    assert m.topk_hit([0.1, 0.9, 0.3, 0.2], true, 1)
    assert not m.topk_hit([0.5, 0.4, 0.6, 0.1], true, 2)
    assert m.topk_hit([0.5, 0.4, 0.6, 0.1], true, 3)
    assert not m.topk_hit([0.5, 0.5, 0.5, 0.5], true, 3)  # constant scores know nothing
    path = m.hops_from([[0, 1], [1, 2]], 4)  # 0 - 1 - 2, and 3 alone
    assert path(0).tolist() == [0, 1, 2, 4]
    matrix = np.stack([path(i) for i in range(4)])
    for hops in (path, matrix):
        assert m.hop_distance([0, 1, 0, 0], true, hops) == 0
        assert m.hop_distance([0, 0, 1, 0], true, hops) == 1
        assert m.hop_distance([0, 1, 1, 0], true, hops) == 1
        assert m.hop_distance([0, 0, 0, 1], true, hops) == 4
    assert m.node_f1([[0.9, 0.8, 0.1], [0.0, 0.7]], [[1, 0, 0], [1, 0]], 0.5) == pytest.approx(2 * 1 / (3 + 2))
    assert math.isnan(m.node_f1([[0.0]], [[0]], 0.5))
    with pytest.raises(m.MetricError, match="no bus"):
        m.topk_hit([1.0], [False], 1)


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_hops_are_a_metric(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hops = m.hops_from(rng.integers(0, n, (2, n)), n)
    d = np.stack([hops(i) for i in range(n)])
    assert (d == d.T).all()
    assert (np.diag(d) == 0).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :]).all()


def test_type_f1_averages_over_types_that_occur() -> None:
    assert m.type_macro_f1([1, 1, 2, 0], [1, 1, 2, 0]) == 1.0
    assert m.type_macro_f1([1, 1, 2, 0], [1, 0, 3, 1]) == pytest.approx((2 * 1 / (2 + 2) + 0) / 2)
    assert math.isnan(m.type_macro_f1([0, 0], [1, 0]))


def test_calibration() -> None:
    rng = np.random.default_rng(2)
    prob = rng.random(60_000)
    label = rng.random(60_000) < prob
    assert m.ece(prob, label) < 0.01
    assert m.ece(prob, ~label) > 0.4
    assert m.ece([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.0)
    assert m.ece([0.8, 0.8], [0, 0]) == pytest.approx(0.8)
    assert m.brier([0.0, 0.5], [0, 1]) == pytest.approx(0.125)
    _, _, count = m.reliability_bins(prob, label)
    assert len(count) == 15
    assert count.max() - count.min() <= 2
    with pytest.raises(m.MetricError, match="labels"):
        m.ece([1.2], [1])


@given(hnp.arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.1, 0.5, 0.5001, 1.0])), st.randoms())
def test_ece_does_not_depend_on_order(prob: m.F64, random: object) -> None:
    label = prob > 0.3
    order = np.random.default_rng(random.randint(0, 9)).permutation(30)  # type: ignore[attr-defined]
    assert m.ece(prob[order], label[order]) == pytest.approx(m.ece(prob, label))


def test_bootstrap_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        e = m.bootstrap_ci(rng.normal(1.0, 2.0, 40), rng, n=200)
        assert e.low <= e.mean <= e.high
        covered += e.low <= 1.0 <= e.high
    assert 0.86 < covered / 200 < 0.99


def test_bootstrap_draws_episodes_not_scans() -> None:
    rng = np.random.default_rng(4)
    level = rng.normal(size=10)
    values, episode = np.repeat(level, 50), np.repeat(np.arange(10), 50)
    together = m.bootstrap_ci(values, rng, episode=episode)
    alone = m.bootstrap_ci(values, rng)
    assert together.high - together.low > 4 * (alone.high - alone.low)
    with pytest.raises(m.MetricError, match="at least two"):
        m.bootstrap_ci([1.0, 2.0], rng, episode=[7, 7])


def test_paired_difference_sees_through_shared_difficulty() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(size=100) * 10
    gain = m.paired_difference_ci(hard + 0.5 + 0.1 * rng.normal(size=100), hard, rng)
    assert 0.4 < gain.low < gain.high < 0.6
    with pytest.raises(m.MetricError, match="same episodes"):
        m.paired_difference_ci([1.0, 2.0], [1.0], rng)


def test_cvar_is_the_mean_of_the_worst() -> None:
    assert m.cvar(np.arange(10.0)) == pytest.approx(0.5)
    assert m.cvar([0.3, 0.9]) == pytest.approx(0.3)
    assert m.cvar(np.arange(10.0), share=1.0) == pytest.approx(4.5)


def test_oracle_scores_agree_with_the_closed_forms() -> None:
    d = np.full(40_000, 3.0)
    neg, pos = m.oracle_scores(d, np.random.default_rng(6))
    assert m.oracle_accuracy(3.0) == pytest.approx(0.9332, abs=1e-4)
    assert m.balanced_accuracy(neg, pos, 1.5) == pytest.approx(float(m.oracle_accuracy(3.0)), abs=0.005)
    assert m.recall_at_fpr(neg, pos, 0.01) == pytest.approx(float(m.oracle_recall(3.0, 0.01)), abs=0.02)
    assert m.auroc(neg, pos) == pytest.approx(float(m.oracle_accuracy(3.0 * math.sqrt(2))), abs=0.005)
    assert m.oracle_recall(0.0, 0.05) == pytest.approx(0.05)
