"""The report says what the rows say: wins, defeats, ties, leaks and missing parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gg_ray.evaluate import report
from gg_ray.evaluate import results as res
from gg_ray.evaluate.metrics import Estimate
from gg_ray.evaluate.verdicts import Confusion


def _results(values: dict[str, float], *, figure: str = "balanced_accuracy", **extra: float) -> res.Results:
    rows = []
    for method, value in values.items():
        own = extra if method == res.VERIFIER else {}
        rows += [res.Row(method=method, family=f, **{figure: value}, **own) for f in ("S1", res.MACRO)]
    block = res.Block(
        suite="S3", fold=1, case="case39", model="m7", seed=5, commit="abc1234", budget={"fpr": 0.05}, rows=tuple(rows)
    )
    return res.Results(
        suite="S3", results=(block,), machine={"cpu": "test", "cores": 2}, command="gg-ray evaluate --seed 5"
    )


FULL = {"verifier": 0.9, "uniform": 0.85, "pca": 0.8, "lnr": 0.6, "random": 0.5, "untrained": 0.52, "oracle": 0.97}


def test_ahead_of_both() -> None:
    lines = report.findings(_results(FULL))
    assert "is ahead of the strongest baseline in 1 of 1" in lines[0]
    assert "is ahead of the uniform control in 1 of 1" in lines[0]
    assert "2 of these comparisons have no interval" in lines[0]
    assert "pca at 0.800" in lines[1]
    assert "+0.100" in lines[1]
    assert any("above 80% is reached" in line for line in lines)


def test_defeat_is_said_plainly() -> None:
    lines = report.findings(_results({**FULL, "verifier": 0.7}))
    assert "**does not beat the strongest baseline** in any suite" in lines[0]
    assert "**does not beat the uniform control** in any suite" in lines[0]
    assert "ahead" not in lines[0]
    assert any("**not reached**" in line for line in lines)


def test_references_are_no_baselines() -> None:
    lines = report.findings(_results({"verifier": 0.9, "oracle": 0.97, "untrained": 0.95, "random": 0.5}))
    assert "was not compared with any baseline" in lines[0]
    assert any("**training did not help**" in line for line in lines)


@pytest.mark.parametrize(
    ("low", "high", "said", "head"),
    [
        (0.02, 0.18, "it beats pca", "is ahead of the strongest baseline"),
        (-0.01, 0.2, "cannot be told apart from pca", "does not beat the strongest baseline"),
        (-0.3, -0.1, "is beaten by pca", "behind in 1, level in 0"),
    ],
)
def test_interval_decides_over_point_estimates(low: float, high: float, said: str, head: str) -> None:
    paired = report.Comparison(
        suite="S3", case="case39", figure="balanced_accuracy", than="pca", difference=Estimate(0.1, low, high)
    )
    lines = report.findings(_results(FULL), [paired])
    assert said in lines[1]
    assert head in lines[0]


def test_interval_of_another_figure_is_not_used() -> None:
    paired = report.Comparison(suite="S3", case="case39", figure="auroc", than="pca", difference=Estimate(-1, -2, -0.5))
    assert "is beaten by" not in report.findings(_results(FULL), [paired])[1]


def test_missing_control_and_missing_verifier() -> None:
    lines = report.findings(_results({"verifier": 0.9, "pca": 0.8}))
    assert "no uniform control was run" in lines[1]
    assert "was not compared with a uniform control" in lines[0]
    assert any("no random and no untrained row" in line for line in lines)
    assert "nothing is claimed" in report.findings(_results({"pca": 0.8}))[1]


def test_score_above_the_ceiling_is_called_a_leak() -> None:
    assert any("suspected leak" in line for line in report.findings(_results(FULL, ceiling=0.85)))
    assert not any("suspected leak" in line for line in report.findings(_results(FULL, ceiling=0.89)))


def test_event_recall_comes_with_its_price() -> None:
    lines = report.findings(_results(FULL, figure="event_recall", false_incidents_per_day=2.0))
    assert "event recall of the Verifier is 0.900 for 2 false incidents a day" in lines[1]


def test_report_file(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    png = run / "report" / "heat.png"
    png.parent.mkdir(parents=True)
    png.write_bytes(b"png")
    log = run / "metrics.jsonl"
    log.write_text('{"step": 1, "gates/valid": 10}\n{"step": 2, "gates/valid": 25, "loss": 1}\n{"step": 3, "gat')
    meta = report.ReportMeta(name="demo", held_out_families=("S2", "T2"), facts={"executor calls": 1200})
    figs: dict[str, Path | str] = {"Recall by family": png, "Coverage": "coverage: every cell is empty"}
    found = replace(
        _results(FULL, ceiling=0.97), verdicts=(Confusion("case39", ((90, 8, 2), (10, 86, 4), (5, 5, 190))),)
    )
    path = report.write_report(run / "report", found, log, figs, meta)
    text = path.read_text()
    assert path == run / "report" / "report.md"
    assert sorted(file.name for file in path.parent.iterdir()) == ["heat.png", "report.md", "results.json"]
    assert "![Recall by family](heat.png)" in text
    assert "**Not drawn: Coverage** (coverage: every cell is empty)" in text
    assert "| gates/valid | 25 |" in text
    assert "gg-ray evaluate --seed 5" in text
    assert "abc1234" in text
    assert "S2, T2" in text
    assert "executor calls: 1200" in text
    assert str(tmp_path) not in text
    assert json.loads((run / "report" / "results.json").read_text()) == found.as_json()
    methods = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    first = methods[methods.index("method") + 1 :][:7]
    assert first == ["verifier", "uniform", "pca", "lnr", "random", "untrained", "oracle ceiling"]
    assert "| verifier | **0.900** | **0.900** |" in text
    assert "| oracle ceiling | 0.970 | 0.970 |" in text
    assert "| case39, truth | normal | disturbance | implausible |" in text
    assert "| disturbance | 10 | 86 | 4 |" in text
    assert "Natural events called implausible: 4.0% of 100." in text


def test_ceiling_row_is_made_from_the_rows_when_no_oracle_row_exists(tmp_path: Path) -> None:
    path = report.write_report(
        tmp_path, _results({"verifier": 0.9}, ceiling=0.96), None, {}, report.ReportMeta(name="x")
    )
    assert "| oracle ceiling | 0.960 | 0.960 |" in path.read_text()


def test_report_of_nothing(tmp_path: Path) -> None:
    empty = res.Results(suite="quick", results=(), machine={}, command="gg-ray evaluate")
    text = report.write_report(tmp_path, empty, tmp_path / "none.jsonl", {}, report.ReportMeta(name="x")).read_text()
    assert "was not compared with any baseline and was not compared with a uniform control" in text
    for absent in ("## Gates", "## Figures", "## Verdicts"):
        assert absent not in text


def test_text_table_is_aligned_and_drops_empty_columns() -> None:
    table = report.text_table(_results(FULL).results[0].rows).splitlines()
    assert table[0].split() == ["family", "method", "bal.acc"]
    assert table[2].split() == ["S1", "verifier", "0.900"]
    assert table[-1].split() == ["macro", "oracle", "0.970"]
    assert len({len(line) for line in table}) == 1
    assert report.text_table([]).splitlines()[0].split() == ["family", "method"]
