"""gg_ray.evaluate.core_costs: losses are those of the tables, and zero where nothing changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_fakes import TINY, classical, job, run_of, untrained

from gg_ray.evaluate import metrics
from gg_ray.evaluate.core_costs import cost_line, costs
from gg_ray.evaluate.core_tables import Tables


def test_the_oracle_is_the_test_that_it_stands_for() -> None:
    d = np.array([0.0, 1.0, 3.0, 5.0])
    rng = np.random.default_rng(0)
    sample = metrics.auprc(rng.standard_normal(400_000), np.repeat(d, 100_000) + rng.standard_normal(400_000), 0.5)
    assert metrics.oracle_auprc(d, 0.5) == pytest.approx(sample, abs=2e-3)
    assert metrics.oracle_auprc([0.0], 0.5) == pytest.approx(0.5, abs=2e-3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder: Path = tmp_path_factory.mktemp("costs")
    scorers = [classical(), untrained(), run_of(0), run_of(0, gain=2.0, seed=1)]
    made, _ = job(folder, scorers)
    made._windows("case14", scorers, TINY.window_parts("case14"))
    return Tables(made.cells, TINY, scorers)


def test_losses_are_those_of_the_tables(tables: Tables) -> None:
    found = {(cost.method, cost.suite): cost for cost in costs(tables, 0)}
    assert ("verifier", "s4-grids") not in found, "no unknown grid was asked about"
    for method in ("chi2", "verifier", "untrained"):
        cost = found[method, "s9-meters"]
        for suite, value in (("s0-known", cost.before), ("s9-meters", cost.after)):
            rows = [
                r.row.auprc for r in tables.rows
                if (r.suite, r.kind, r.row.method, r.row.family) == (suite, "windows", method, "macro")
            ]  # fmt: skip
            assert value == pytest.approx(np.mean(rows), abs=1e-9)
        assert cost.loss == pytest.approx(1 - cost.after / cost.before)
        assert cost.low <= cost.loss <= cost.high
    assert found["verifier", "s9-meters"].seeds == 2
    assert found["oracle", "s9-meters"].low is None
    assert "D8 30 % of meters lost" in str(cost_line(list(found.values())))
    assert cost_line([]) is None


def test_a_change_that_changes_nothing_costs_nothing_with_certainty(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of s9-meters are judged on the same draw of windows and networks."""
    original = Tables.records
    monkeypatch.setattr(
        Tables, "records",
        lambda self, kind, case, part, scorer: original(
            self, kind, case, {"meters": "standard", "meters-negatives": "negatives"}.get(part, part), scorer
        ),
    )  # fmt: skip
    [cost] = [c for c in costs(tables, 0) if (c.method, c.suite) == ("chi2", "s9-meters")]
    assert (cost.loss, cost.low, cost.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
