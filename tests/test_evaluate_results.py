"""Result records: rows from scores, refusal of bad figures, the file of the contract."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gg_ray.evaluate import metrics
from gg_ray.evaluate import results as res
from gg_ray.evaluate.verdicts import Confusion


def _results(rows: tuple[res.Row, ...]) -> res.Results:
    block = res.Block(
        suite="S1", fold=0, case="case39", model="m1", seed=3, commit="abc", budget={"executor_calls": 1000}, rows=rows
    )
    return res.Results(suite="S1", results=(block,), machine={"cpu": "x", "cores": 2}, command="gg-ray evaluate")


def test_row_from_scores_by_hand() -> None:
    hops = metrics.hops_from([[0, 1], [1, 2]], 3)
    pos = res.ScoredWindows(
        score_B=np.array([0.4, 0.9]),
        prob_B=np.array([1.0, 1.0]),
        node_score=[np.array([0.9, 0.1, 0.0]), np.array([0.1, 0.2, 0.9])],
        node_true=[np.array([True, False, False]), np.array([True, False, False])],
        hops=[hops, hops],
        type_true_B=np.array([1, 2]),
        type_pred_B=np.array([1, 1]),
        d_eff_B=np.array([3.0, 5.0]),
    )
    neg = res.ScoredWindows(
        score_B=np.array([0.1, 0.2, 0.3, 0.8]),
        prob_B=np.zeros(4),
        node_score=[np.array([0.6, 0.0])] + [np.zeros(2)] * 3,
    )
    row = res.row_from_scores("verifier", "S1", pos, neg, 0.35, fpr=0.25, prevalence=None, node_threshold=0.5)
    assert row.balanced_accuracy == pytest.approx(0.875)
    assert row.auroc == pytest.approx(7 / 8)
    assert row.auprc == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert row.recall_at_fpr == 1.0
    assert (row.top1, row.top5, row.hops) == (0.5, 1.0, 1.0)
    assert row.node_f1 == pytest.approx(2 * 1 / (2 + 3))  # the false flag in the benign window counts
    assert row.type_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert row.ece == 0.0
    assert row.ceiling == pytest.approx((0.93319 + 0.99379) / 2, abs=1e-4)
    assert row.vus_pr is row.event_recall is row.delay_scans is row.false_incidents_per_day is None


def test_row_without_extras_leaves_them_null() -> None:
    row = res.row_from_scores(
        "lnr", "S1", res.ScoredWindows(score_B=np.ones(3)), res.ScoredWindows(score_B=np.zeros(3)), 0.5
    )
    assert row.auprc == 1.0
    assert row.node_f1 is row.top1 is row.hops is row.type_f1 is row.ece is row.ceiling is None


def test_row_from_timelines_by_hand() -> None:
    score = np.zeros(1440)
    score[[305, 600, 900]] = 1.0
    first = res.ScoredTimeline(
        score_S=score, events=(res.TimelineEvent(300, 320, "A1"), res.TimelineEvent(895, 905, "S1"))
    )
    second = res.ScoredTimeline(score_S=np.zeros(1440), events=(res.TimelineEvent(100, 140, "A1"),))
    a1 = res.row_from_timelines("verifier", "A1", [first, second], 0.5, scans_per_day=1440)
    assert a1.event_recall == 0.5
    assert a1.delay_scans == (5 + 40) / 2
    outside = 2880 - (20 + 15) - (10 + 15) - (40 + 15)
    assert a1.false_incidents_per_day == pytest.approx(1440 / outside)
    negatives = outside
    assert a1.balanced_accuracy == pytest.approx((1 / 60 + (negatives - 1) / negatives) / 2)
    pooled = res.row_from_timelines("verifier", res.POOLED, [first, second], 0.5, scans_per_day=1440)
    assert pooled.event_recall == pytest.approx(2 / 3)
    assert pooled.false_incidents_per_day == a1.false_incidents_per_day
    assert pooled.vus_pr is not None
    assert a1.vus_pr is not None
    with pytest.raises(res.ResultsError, match="T4: no event"):
        res.row_from_timelines("verifier", "T4", [first], 0.5, scans_per_day=1440)


def test_timelines_do_not_leak_into_each_other() -> None:
    """An alarm at the start of the next timeline is no near miss of an event at the end of the last one."""
    quiet, loud = np.zeros(200), np.zeros(200)
    quiet[50:60] = 2.0
    loud[0] = 1.0
    one = res.ScoredTimeline(score_S=quiet, events=(res.TimelineEvent(50, 60, "A1"), res.TimelineEvent(190, 200, "A1")))
    joined = res.row_from_timelines("m", "A1", [one, res.ScoredTimeline(score_S=loud)], 0.5, scans_per_day=1440)
    loud_far = np.roll(loud, 100)
    apart = res.row_from_timelines("m", "A1", [one, res.ScoredTimeline(score_S=loud_far)], 0.5, scans_per_day=1440)
    assert joined.vus_pr == pytest.approx(apart.vus_pr)


def test_oracle_row_is_the_ceiling() -> None:
    row = res.oracle_row("S1", np.full(10, 3.0), fpr=0.05)
    assert row.balanced_accuracy == row.ceiling == pytest.approx(0.9332, abs=1e-4)
    assert row.recall_at_fpr == pytest.approx(0.9123, abs=1e-3)


def test_macro_row_averages_what_is_there() -> None:
    rows = [
        res.Row(method="m", family="S1", auroc=0.6, hops=2.0),
        res.Row(method="m", family="A1", auroc=0.8),
        res.Row(method="m", family=res.POOLED, auroc=0.0),
        res.Row(method="other", family="A1", auroc=0.1),
    ]
    macro = res.macro_row("m", rows)
    assert macro.family == res.MACRO
    assert macro.auroc == pytest.approx(0.7)
    assert macro.hops == 2.0
    assert macro.ece is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auroc", float("nan")),
        ("hops", float("inf")),
        ("auprc", 1.2),
        ("delay_scans", -1.0),
        ("ece", True),
        ("top1", "1"),
    ],
)
def test_row_refuses_what_is_no_figure(field: str, value: object) -> None:
    with pytest.raises(res.ResultsError, match=field):
        res.Row(method="m", family="S1", **{field: value})  # type: ignore[arg-type]


def test_block_refuses_a_row_twice_and_windows_of_unequal_length() -> None:
    with pytest.raises(res.ResultsError, match="two rows for m/S1"):
        _results((res.Row(method="m", family="S1"), res.Row(method="m", family="S1")))
    with pytest.raises(res.ResultsError, match=r"prob_B: 2 entries for 3"):
        res.ScoredWindows(score_B=np.zeros(3), prob_B=np.zeros(2))


FIELDS = {
    "method", "family", "balanced_accuracy", "auroc", "auprc", "vus_pr", "recall_at_fpr", "event_recall",
    "false_incidents_per_day", "delay_scans", "node_f1", "top1", "top5", "hops", "type_f1", "ece", "ceiling",
}  # fmt: skip
"""Of a row, by design.md, section 6."""


def test_the_file_has_the_shape_of_the_contract(tmp_path: Path) -> None:
    one = _results((res.Row(method="m", family="S1", auroc=0.75), res.oracle_row("S1", np.full(3, 4.0))))
    [block] = one.results
    other = replace(block, suite="T", case="case14", budget={"executor_calls": 1000, "days": 2}, rows=block.rows[:1])
    counts = Confusion("case39", ((8, 1, 1), (2, 5, 1), (0, 0, 9)))
    results = replace(one, suite="quick", results=(block, replace(other, budget={**other.budget, "days": 2})),
                      verdicts=(counts,))  # fmt: skip
    path = res.write_results(tmp_path / "deep" / "results.json", results)
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    data = json.loads(path.read_text())
    head = {name: data[name] for name in ("schema", "suite", "fold", "case", "model", "seed", "commit")}
    assert head == {
        "schema": 2, "suite": "quick", "fold": 0, "case": "case39, case14", "model": "m1", "seed": 3, "commit": "abc",
    }  # fmt: skip
    assert data["budget"] == {"executor_calls": 1000, "days": 2}
    assert [(row["suite"], row["case"], row["method"]) for row in data["rows"]] == [
        ("S1", "case39", "m"), ("S1", "case39", "oracle"), ("T", "case14", "m"),
    ]  # fmt: skip
    assert all(set(row) == FIELDS | {"suite", "case"} for row in data["rows"])
    assert data["rows"][0]["hops"] is None
    assert [part["budget"] for part in data["parts"]] == [{"executor_calls": 1000}, {"executor_calls": 1000, "days": 2}]
    [verdicts] = data["verdicts"]
    assert verdicts["confusion"]["disturbance"] == {"normal": 2, "disturbance": 5, "implausible": 1}
    assert (verdicts["natural_events"], verdicts["natural_called_implausible"]) == (8, 1 / 8)


def test_budgets_that_differ_between_parts_stand_with_the_parts_alone() -> None:
    [block] = _results(()).results
    both = (block, replace(block, case="case14", budget={"executor_calls": 7, "fpr": 0.05}))
    data = res.Results(suite="S1", results=both, machine={}, command="").as_json()
    assert data["budget"] == {"fpr": 0.05}
    assert [part["budget"]["executor_calls"] for part in data["parts"]] == [1000, 7]


def test_blocks_of_two_models_are_refused() -> None:
    [block] = _results(()).results
    with pytest.raises(res.ResultsError, match="model m1, m2"):
        res.Results(suite="S1", results=(block, replace(block, model="m2")), machine={}, command="")


def test_windows_join_field_by_field() -> None:
    one = res.ScoredWindows(score_B=np.array([1.0]), node_score=[np.zeros(2)], prob_B=np.array([0.5]))
    two = res.ScoredWindows(score_B=np.array([2.0, 3.0]), node_score=[np.ones(3), np.ones(3)])
    joined = res.join_windows([one, two])
    assert joined is not None
    assert joined.score_B.tolist() == [1.0, 2.0, 3.0]
    assert [part.size for part in joined.node_score or ()] == [2, 3, 3]
    assert joined.prob_B is None, "one part has none"
    assert res.join_windows([]) is None


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = res.write_results(tmp_path / "results.json", _results(()))
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        res.write_results(path, _results((res.Row(method="m", family="S1"),)))
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
