"""Figures: every one draws a readable PNG from ordinary and awkward data, and touches no global state."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gg_ray.evaluate import figures
from gg_ray.evaluate.results import Row

RNG = np.random.default_rng(0)
STEPS = np.arange(0, 100, 10)
Draw = Callable[[Path], Path]

ORDINARY: dict[str, Draw] = {
    "learning": lambda p: figures.learning_curves(
        [{"step": int(s), "loss": 1 / (1 + s), "acc": 0.5 + s / 300, "note": "x"} for s in STEPS], p, marks={"acc": 0.8}
    ),
    "learning_gaps": lambda p: figures.learning_curves(
        [{"step": 1, "a": 1.0}, {"step": 2, "b": float("nan")}, {"step": 3, "b": 2.0}, {"a": 3.0}], p
    ),
    "frontier": lambda p: figures.deff_vs_pbar([3.0, 5.0, np.inf], [0.7, 0.9, 1.0], [0, 10, 20], p),
    "heatmap": lambda p: figures.family_method_heatmap(
        [
            Row(method="a", family="S1", recall_at_fpr=0.2),
            Row(method="a", family="macro", recall_at_fpr=0.3),
            Row(method="b", family="S1"),
        ],
        p,
    ),
    "coverage": lambda p: figures.coverage([[0, 5], [120_000, 1]], ["S1", "A1"], [3, 6, np.inf], p),
    "gates": lambda p: figures.gate_rates(STEPS, {f"G{i}": np.full(10, 0.1 * i) for i in range(1, 10)}, p),
    "reliability": lambda p: figures.reliability(RNG.random(300), RNG.random(300) < 0.5, p),
    "reliability_constant": lambda p: figures.reliability(np.full(5, 0.5), np.array([1, 0, 1, 0, 1]), p),
    "map": lambda p: figures.grid_map(
        RNG.random((9, 2)), [[0, 1, 2], [1, 2, 3]], RNG.random(9), np.arange(9) == 2, p
    ),
    "map_benign": lambda p: figures.grid_map(RNG.random((3, 2)), [[0], [1]], np.zeros(3), np.zeros(3, bool), p),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_draws_a_png_of_sensible_size(name: str, tmp_path: Path) -> None:
    path = ORDINARY[name](tmp_path / "new" / f"{name}.png")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert 250 <= width <= 2400
    assert 150 <= height <= 2400


def test_same_data_gives_the_same_file(tmp_path: Path) -> None:
    draw = ORDINARY["coverage"]
    assert draw(tmp_path / "a.png").read_bytes() == draw(tmp_path / "b.png").read_bytes()


def test_missing_figure_is_drawn_unlike_a_zero(tmp_path: Path) -> None:
    def draw(value: float | None, name: str) -> bytes:
        rows = [Row(method="a", family="S1", auroc=0.5), Row(method="a", family="A1", auroc=value)]
        return figures.family_method_heatmap(rows, tmp_path / name, field="auroc").read_bytes()

    assert draw(None, "none.png") != draw(0.0, "zero.png")


EMPTY: dict[str, tuple[str, Draw]] = {
    "learning": ("no row", lambda p: figures.learning_curves([{"step": 1}], p, keys=["loss"])),
    "frontier": ("no finite", lambda p: figures.deff_vs_pbar([np.inf], [0.5], [0], p)),
    "heatmap": ("no row has recall", lambda p: figures.family_method_heatmap([Row(method="a", family="b")], p)),
    "coverage": ("every cell", lambda p: figures.coverage([[0]], ["S1"], [3, 6], p)),
    "coverage_shape": ("edges", lambda p: figures.coverage([[1, 2]], ["S1"], [3, 6], p)),
    "gates": ("0 gates", lambda p: figures.gate_rates([], {}, p)),
    "map": ("must be equal", lambda p: figures.grid_map([[0, 0]], [[], []], [1, 2], [True], p)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_draw_is_said(name: str, tmp_path: Path) -> None:
    message, draw = EMPTY[name]
    with pytest.raises(figures.FigureError, match=message):
        draw(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_pyplot_is_not_imported() -> None:
    code = "import sys, gg_ray.evaluate.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_scores_by_year_leave_out_years_that_were_hardly_scored(tmp_path: Path) -> None:
    times = np.arange("2022-12-25", "2024-01-05", np.timedelta64(30, "m"), dtype="datetime64[ns]").astype(np.int64)
    score = np.where(times > np.datetime64("2023-01-01", "ns").astype(np.int64), 1.0, np.nan)
    bad = np.zeros(times.size, dtype=bool)
    bad[5_000] = True
    assert (
        figures.year_scores(times, score, bad, 0.5, np.full(times.size, 0.6), tmp_path / "y.png").stat().st_size > 5_000
    )
    with pytest.raises(figures.FigureError, match="no window"):
        figures.year_scores(times, np.full(times.size, np.nan), bad, 0.5, score, tmp_path / "n.png")


def test_a_frequency_event_without_its_trace_is_said(tmp_path: Path) -> None:
    with pytest.raises(figures.FigureError, match="not in the data folder"):
        figures.frequency_event({}, tmp_path / "f.png")
