"""gg_ray.evaluate.core_tables, core_claims, core_report: membership of folds, thresholds, claims, flags, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from core_fakes import TINY, classical, job, run_of, untrained

from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.core_claims import claims, flags, missing_folds, stop_check
from gg_ray.evaluate.core_costs import costs
from gg_ray.evaluate.core_job import CLASSICAL
from gg_ray.evaluate.core_plan import PRESETS, SUITES
from gg_ray.evaluate.core_report import CoreFindings, order_of, write_core_report
from gg_ray.evaluate.core_tables import CoreRow, Tables, behaviour_cells, cvar_over_cells, quiet_days
from gg_ray.evaluate.core_timelines import natural_called, places, timeline_figures
from gg_ray.evaluate.results import MACRO, ORACLE, POOLED, Row
from gg_ray.evaluate.scoring import FPR
from gg_ray.records import FOLDS


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """One fold with two seeds, one of them with a run of rank replay."""
    scorers = [classical(), untrained(), run_of(0), run_of(0, gain=3.0, seed=1), run_of(0, arm="plr")]
    made, _ = job(tmp_path_factory.mktemp("tables"), scorers)
    made.complete()
    return Tables(made.cells, TINY, scorers)


def test_a_suite_of_a_fold_holds_known_families_or_its_own(tables: Tables) -> None:
    facts = tables.facts("windows", "case14", "standard")
    for fold in range(4):
        known = {facts[i]["family"] for i in tables.members(SUITES["s0-known"], fold, "case14")}
        new = {facts[i]["family"] for i in tables.members(SUITES["s3-families"], fold, "case14")}
        assert new == FOLDS[fold]
        assert not known & FOLDS[fold]
        left = set(range(len(facts))) - set(tables.members(SUITES["s0-known"], fold, "case14").tolist())
        left -= set(tables.members(SUITES["s3-families"], fold, "case14").tolist())
        assert all(set(facts[i]["needs"]) & FOLDS[fold] and facts[i]["family"] == "A4" for i in left)


def test_every_figure_of_a_row_follows_from_its_cells(tables: Tables) -> None:
    """One row made again by hand, thresholds from validation windows alone."""
    [row] = [
        r for r in tables.rows
        if (r.suite, r.kind, r.fold, r.row.method, r.row.family) == ("s3-families", "windows", 0, "chi2", "S1")
    ]  # fmt: skip
    at = [i for i, f in enumerate(tables.facts("windows", "case14", "standard")) if f["family"] == "S1"]
    score = np.array(tables.records("windows", "case14", "standard", CLASSICAL)["chi2"]["score"])[at]
    calm = np.array(tables.records("windows", "case14", "negatives", CLASSICAL)["chi2"]["score"])
    benign = np.sort(tables.records("windows", "case14", "validation", CLASSICAL)["chi2"]["score"])
    threshold = benign[benign.size - 1 - int(FPR * benign.size)]
    assert row.count == len(at) == TINY.windows
    assert row.more["recall"] == (score > threshold).mean()
    assert row.row.balanced_accuracy == pytest.approx(
        0.5 * (score > threshold).mean() + 0.5 * (calm <= threshold).mean()
    )
    assert row.row.auroc == pytest.approx(np.mean([(s > calm).mean() + 0.5 * (s == calm).mean() for s in score]))
    assert row.more["auprc_1pct"] == pytest.approx(metrics.auprc(calm, score, 0.01))


def test_random_untrained_and_ceiling_stand_in_every_window_table(tables: Tables) -> None:
    groups: dict[tuple[str, int, str], set[str]] = {}
    for r in tables.rows:
        if r.kind == "windows" and r.row.family == MACRO:
            groups.setdefault((r.suite, r.fold, r.case), set()).add(r.row.method)
    assert {suite for suite, _, _ in groups} == {
        "s0-known", "s1-hard", "s2-composed", "s3-families", "s8-outages", "s9-meters",
    }  # fmt: skip
    rows = {"random", "untrained", ORACLE, "verifier", "uniform", "plr", "chi2", "lnr"}
    assert all(rows <= methods for methods in groups.values())
    days = [r for r in tables.rows if r.kind == "timelines" and r.row.family == POOLED]
    assert {r.suite for r in days} == {"s0-known", "s1-hard", "s2-composed", "s3-families"}
    for suite in {r.suite for r in days}:
        assert rows <= {r.row.method for r in days if r.suite == suite}
    assert all((r.row.event_recall or 0.0) > 0.5 for r in days if r.row.method == ORACLE)


def test_rows_of_detectors_come_once_per_fold_and_those_of_runs_per_seed(tables: Tables) -> None:
    names = [
        (r.suite, r.kind, r.case, r.fold, r.seed if r.row.method in ("verifier", "uniform", "plr", "untrained") else -1,
         r.row.method, r.row.family)
        for r in tables.rows
    ]  # fmt: skip
    assert len(names) == len(set(names))
    assert {r.seed for r in tables.rows if r.row.method == "verifier"} == {0, 1}


def test_natural_events_are_a_rate_of_their_own(tables: Tables) -> None:
    rows = {r.row.method: r for r in tables.rows if r.suite == "s6-natural" and r.fold == 0}
    assert {"verifier", "chi2", "random"} <= set(rows)
    assert rows["untrained"].more["natural_called"] == 0.0, "all its scores are equal, so none exceeds the threshold"
    assert all(r.row.balanced_accuracy is None for r in rows.values())


# --- timelines -------------------------------------------------------------------------------------------------------


def day(onset: int, end: int, family: str = "S1", natural: list[list[int]] | None = None, moved: float = 2.0) -> dict:
    return {"event": [[onset, end, family]], "natural": natural or [], "fact": {"moved": moved}, "attacked": 1}


def told(score: list[float], node: list[float] | None = None) -> dict:
    node = node or score
    event = [max(node[40:44])]
    return {"score": score, "node_event": event, "node_top": sorted(node, reverse=True), "node_count": len(node)}


def test_timeline_figures_by_hand() -> None:
    """Two days of 90 looks (stride 16): one episode found at its second look, one missed."""
    calm = [0.1] * 90
    first, second = list(calm), list(calm)
    first[41] = 5.0
    days = [day(40, 44), day(60, 64, "A2")]
    found = timeline_figures(
        "m", days, [told(first), told(second)], [told([*calm[:-1], 0.2])], 16, np.array([True, False])
    )
    row, more, count = found[0]
    assert (row.family, count, row.event_recall, row.delay_scans) == (POOLED, 2, 0.5, 2.5)
    assert more["delay_p90"] == 4.0, "a miss costs its full length"
    assert row.false_incidents_per_day == more["realised_over_budget"] == 0.0
    assert more["event_recall_10"] == more["event_recall_100"] == 0.5, "equal scores do not exceed a threshold"
    assert more["stealthy_event_recall"] == 1.0
    assert [(f[0].family, f[0].event_recall) for f in found[1:]] == [("S1", 1.0), ("A2", 0.0)]
    assert more["node_event_recall"] == 0.5
    assert more["node_fpr"] == 1 / 180, "the look at 5 counts as outside where the record says so"


def test_a_natural_event_counts_only_where_an_incident_begins_in_it() -> None:
    score = np.zeros(100)
    score[[10, 60]] = 1.0
    days = [day(80, 84, natural=[[8, 14], [30, 36], [58, 64], [79, 90]])]
    assert natural_called(days, [score], 0.5, 90) == pytest.approx(2 / 3), "what touches an episode is left out"
    assert natural_called([day(80, 84)], [score], 0.5, 90) is None


def test_a_dangerous_episode_is_quiet_only_if_no_look_of_it_shows() -> None:
    benign = {name: [told([0.0] * 99 + [1.0])] for name in ("chi2", "lnr")}
    seen, unseen = told([0.0] * 50 + [9.0] + [0.0] * 49), told([0.0] * 100)
    days = [day(49, 52), day(49, 52), day(49, 52, moved=0.5), day(60, 70)]
    tests = [{"chi2": seen, "lnr": unseen}, *[{"chi2": unseen, "lnr": unseen}] * 2, {"chi2": seen, "lnr": unseen}]
    assert quiet_days(days, tests, benign).tolist() == [False, True, False, True]
    assert not quiet_days(days, tests, {"chi2": benign["chi2"]}).any(), "without both tests nothing is called stealthy"


def test_places_pool_counts_and_average_hops() -> None:
    rows = [
        {"tp": 1, "fp": 1, "fn": 0, "hit1": 1, "hit5": 1, "hops": 0},
        {"tp": 0, "fp": 0, "fn": 2, "hit1": 0, "hit5": 1, "hops": 3},
    ]
    assert places(rows, {"fp": [1, 0]}) == {"node_f1": 2 / 6, "top1": 0.5, "top5": 1.0, "hops": 1.5}
    assert places([{"hit1": None}]) == {}


def test_cvar_is_the_mean_of_the_worst_fifth_of_the_cells() -> None:
    cells = np.repeat(np.arange(10), 4)
    hits = np.repeat([1, 1, 0.25, 1, 1, 1, 0.5, 1, 1, 1], 4)
    assert cvar_over_cells(hits, cells) == pytest.approx(0.375)
    few = np.r_[cells, [10, 10]]
    assert cvar_over_cells(np.r_[hits, 0, 0], few) == pytest.approx(0.375), "two windows are no cell"
    facts = [{"family": f, "d_eff": d} for f, d in (("S1", 3.1), ("S1", 3.9), ("S1", 5.0), ("A2", 3.5))]
    assert [c == behaviour_cells(facts)[0] for c in behaviour_cells(facts)] == [True, True, False, False]


# --- claims ----------------------------------------------------------------------------------------------------------


def test_the_stop_check_reads_the_detectors_alone_and_fails_where_it_must(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Tables(tables.cells, TINY, [classical()])
    lines = stop_check(alone)
    assert len(lines) == 5
    assert all("best classical" in line and "oracle 0.9" in line and line.endswith("ok") for line in lines[:4])
    assert lines[4].startswith("stop-check: passed")
    monkeypatch.setattr(Tables, "threshold", lambda *_: 1e9)
    calm = stop_check(alone)
    assert "0.500" in calm[0]
    easy = dict(tables.records("windows", "case14", "standard", CLASSICAL))
    for part in ("standard", "hard"):
        alone._told["windows", "case14", part, CLASSICAL] = {"chi2": {"score": [1e10] * len(easy["chi2"]["score"])}}
    assert "FAILED" in stop_check(alone)[0]
    assert stop_check(alone)[-1] == "stop-check: FAILED: retune meters, noise or magnitudes first"


def test_claims_are_paired_and_adjusted(tables: Tables) -> None:
    found = claims(tables, 0)
    assert {c.hypothesis for c in found} == {"H1", "H2", "H3"}
    assert {(c.theirs, c.seeds) for c in found if c.hypothesis == "H3"} == {("uniform", 2), ("plr", 1)}
    assert {c.theirs for c in found if c.hypothesis == "H1"} == {"chi2", "lnr"}, "only rivals that were run"
    assert all(c.p_holm >= c.difference.p for c in found)
    [lnr] = [c for c in found if (c.hypothesis, c.theirs) == ("H1", "lnr")]
    assert lnr.difference.mean == pytest.approx(0.0, abs=1e-12), "the fake Verifier is the same test, scaled"
    assert lnr.p_holm == 1.0
    assert lnr.seeds == 2


def test_folds_without_a_run_are_named(tables: Tables) -> None:
    lines = missing_folds(tables)
    assert [line[:6] for line in lines] == ["fold 1", "fold 2", "fold 3"]
    assert "A3, S3, T3" in lines[1]
    assert "--scenario.fold 2" in lines[1]


def core_row(method: str, value: float, ceiling: float | None = 0.93, family: str = MACRO, count: int = 400) -> CoreRow:
    row = Row(method=method, family=family, balanced_accuracy=value, ceiling=ceiling, auroc=value)
    return CoreRow(
        suite="s1-hard", kind="windows", case="case14", fold=0, model="m", seed=0, row=row, more={}, count=count
    )  # fmt: skip


def test_a_score_above_the_ceiling_is_a_suspected_leak() -> None:
    assert "suspected leak: verifier on s1-hard/S1" in flags([core_row("verifier", 0.99, family="S1")])[0]
    assert flags([core_row("verifier", 0.99, family="S1", count=4)]) == [], "four windows may do that by chance"
    assert flags([core_row("oracle", 0.99, family="S1")]) == []


def test_training_that_did_not_help_and_chance_off_one_half_are_said() -> None:
    lines = flags([core_row("verifier", 0.6), core_row("untrained", 0.7), core_row("random", 0.65, None)])
    assert [line.split(":")[0] for line in lines] == ["training did not help", "too few windows"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_report_holds_every_row_of_the_contract(tables: Tables, tmp_path: Path) -> None:
    found = CoreFindings(
        sizes=TINY, origin="climatology", rows=tables.rows, claims=claims(tables, 0), costs=costs(tables, 0),
        stop_check=stop_check(tables),
        flags=["something"], missing=missing_folds(tables), budgets={"f0s0": {"learner_steps": 1.0}},
        command="gg-ray x", commit="c", seed=0, machine={"cores": 2}, frozen="none",
    )  # fmt: skip
    text = write_core_report(tmp_path, found).read_text()
    content = json.loads((tmp_path / "results.json").read_text())
    assert {"suite", "fold", "case", "model", "seed", "commit", "budget", "rows"} <= set(content)
    assert len(content["rows"]) == len(tables.rows)
    assert all({"method", "family", "suite", "case", "fold", *results.FIGURES} <= set(row) for row in content["rows"])
    assert text.index("## Stop-check") < text.index("## What may be claimed") < text.index("## s0-known")
    for words in (
        "fold 2 has no run",
        "something",
        "oracle",
        "## s6-natural",
        "## What a change costs",
        "## s9-meters",
    ):
        assert words in text
    for name in ("suites.png", "events.png", "unknown_families.png"):
        assert (tmp_path / name).stat().st_size > 1_000
    assert text.count("**Not drawn") == 0


def test_methods_stand_in_the_order_of_a_reader() -> None:
    value = {"a": 0.2, "b": 0.9, "c": None}
    assert order_of(["c", "oracle", "b", "random", "a", "uniform", "verifier"], value, False) == [
        "verifier", "uniform", "b", "a", "c", "random", "oracle",
    ]  # fmt: skip


def test_suites_ask_different_things() -> None:
    asked = [(s.part, s.seen_grid, s.held_out) for s in SUITES.values() if s.part]
    assert len(asked) == len(set(asked)) == 8
    for sizes in PRESETS.values():
        assert sizes.window_parts(sizes.unseen[0]) == ("validation", "negatives", "standard")
        assert {s.part for s in SUITES.values() if s.part} <= set(sizes.window_parts(sizes.seen[0]))
        assert {s.negatives for s in SUITES.values()} <= set(sizes.window_parts(sizes.seen[0]))
