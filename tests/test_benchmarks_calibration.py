"""benchmarks/calibration.py: its table on scores whose law is known, and the inversion of p-values."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import SCANS, rows_of, score_at
from gg_ray.calibration.conformal import make_table


def test_rows_on_independent_scores() -> None:
    """For independent scans the per-scan threshold is right but for the merging of neighbours: all variants agree."""
    rng = np.random.default_rng(0)
    known, unseen = [[rng.normal(size=SCANS) for _ in range(count)] for count in (30, 60)]
    rows = {row.variant: row for row in rows_of("noise", known, unseen, None, [4.0])}
    assert set(rows) == {"iid", "block", "at_most", "adaptive"}
    for variant in ("iid", "block", "adaptive"):
        row = rows[variant]
        assert row.ratio is not None
        assert row.low is not None
        assert row.high is not None
        assert row.low < 1.0 < row.high
        assert row.realised == pytest.approx(4.0 * row.ratio)
    assert rows["at_most"].ratio is not None
    assert rows["at_most"].ratio < 1.0


def test_too_few_days_are_a_note_and_not_a_number() -> None:
    rng = np.random.default_rng(1)
    days = [rng.normal(size=SCANS) for _ in range(5)]
    [row] = [row for row in rows_of("noise", days, days, None, [2.0]) if row.variant == "at_most"]
    assert row.ratio is None
    assert "5 days cannot guarantee 2 incidents" in row.note


@pytest.mark.parametrize("p", [0.3, 1e-3, 2e-5])
def test_score_at_inverts_the_p_value(p: float) -> None:
    table = make_table(np.random.default_rng(2).normal(size=20_000), np.arange(20_000))
    score = score_at(table, p)
    assert table.p([score])[0] > p >= table.p([score + 1e-6])[0]
