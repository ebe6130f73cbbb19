"""PNG figures of the report: learning, frontier, heat map, coverage, gates, calibration, place.

Flow:    metrics.jsonl rows, results rows, arrays -> [figures] -> report/*.png
Source:  colours: Okabe and Ito; sequential map cividis (readable with every common colour-vision deficiency)
Rules:   Figure objects only, no pyplot: nothing global changes, so actors and servers may draw too
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from gg_ray.evaluate import metrics
from gg_ray.evaluate.results import Row, family_order
from gg_ray.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Line colours in order of use; line styles change after one round."""
STYLES = ("-", "--", ":", "-.")
INK, GREY, PALE = "#222222", "#8A8A8A", "#E4E4E4"
DPI = 120
_LEVEL_LABEL = 7
"""Characters of a column name that fit side by side."""
D_SHOWN = 32.0
"""Largest d_eff of the axis: beyond it the oracle is at 1 and points are drawn at the edge."""


class FigureError(ValueError):
    """There is nothing to draw; the message says what is missing."""


def learning_curves(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    keys: Sequence[str] | None = None,
    x: str = "step",
    marks: Mapping[str, float] | None = None,
) -> Path:
    """One small panel per metric over steps: raw values pale, running median on top.

    rows are lines of metrics.jsonl; a metric may be missing from some. keys default to the first nine numeric ones;
    marks draws a named reference level (a goal, chance) as a dashed line in the panel of that key.
    """
    if keys is None:
        names = dict.fromkeys(k for r in rows for k, v in r.items() if k != x and _number(v))
        keys = list(names)[:9]
    series = {
        key: np.array([(r[x], r[key]) for r in rows if _number(r.get(x)) and _number(r.get(key))]) for key in keys
    }
    series = {key: points for key, points in series.items() if points.size}
    if not series:
        raise FigureError(f"learning curves: no row has {x!r} and one of {list(keys)}")
    columns = min(3, len(series))
    lines = math.ceil(len(series) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.4 * lines + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for ax, (key, points) in zip(axes, series.items(), strict=False):
        _style(ax)
        ax.plot(points[:, 0], points[:, 1], color=COLOURS[5], alpha=0.55, linewidth=0.9)
        ax.plot(points[:, 0], _running_median(points[:, 1]), color=COLOURS[0], linewidth=1.8)
        if marks and key in marks:
            ax.axhline(marks[key], color=COLOURS[1], linewidth=1.2, linestyle="--")
        ax.set_title(key, fontsize=10, color=INK, loc="left")
    for ax in axes[len(series) :]:
        ax.remove()
    for ax in axes[max(0, len(series) - columns) : len(series)]:
        ax.set_xlabel(x, fontsize=9)
        ax.tick_params(labelbottom=True)
    return _save(figure, path)


def deff_vs_pbar(d_eff_K: ArrayLike, p_bar_K: ArrayLike, step_K: ArrayLike, path: Path) -> Path:
    """Detectability against skill, coloured by time, with the oracle curve Phi(d / 2) that no method can exceed."""
    d, p, step = (np.asarray(a, dtype=np.float64).ravel() for a in (d_eff_K, p_bar_K, step_K))
    ok = np.isfinite(d) & np.isfinite(p) & np.isfinite(step)
    if not ok.any():
        raise FigureError("d_eff against p_bar: no finite record")
    d, p, step = d[ok], p[ok], step[ok]
    right = float(np.clip(np.quantile(d, 0.99) * 1.05, 8.0, D_SHOWN))
    figure, ax = _single((6.4, 4.2))
    size = float(np.clip(4000 / d.size, 9, 40))
    dots = ax.scatter(np.minimum(d, right), p, c=step, s=size, cmap="cividis", alpha=0.7, linewidths=0)
    curve = np.linspace(0, right, 200)
    ax.plot(curve, metrics.oracle_accuracy(curve), color=COLOURS[1], linewidth=2, label="oracle, Φ(d/2)")
    ax.axhline(0.5, color=GREY, linewidth=1, linestyle="--", label="chance")
    ax.set(xlim=(0, right * 1.01), ylim=(min(-0.02, float(p.min())), 1.03))
    ax.set_xlabel("detectability d_eff (standard deviations)", fontsize=10)
    ax.set_ylabel("Verifier skill p̄", fontsize=10)
    figure.legend(fontsize=9, frameon=False, loc="outside upper left", ncols=2)
    figure.colorbar(dots, ax=ax, label="step", pad=0.02)
    return _save(figure, path)


def family_method_heatmap(rows: Sequence[Row], path: Path, *, field: str = "recall_at_fpr") -> Path:
    """One figure of merit, methods down and families across; a figure that was not measured is hatched."""
    methods = list(dict.fromkeys(r.method for r in rows))
    families = sorted({r.family for r in rows}, key=family_order)
    cells = np.full((len(methods), len(families)), np.nan)
    for r in rows:
        value = getattr(r, field)
        if value is not None:
            cells[methods.index(r.method), families.index(r.family)] = value
    if not np.isfinite(cells).any():
        raise FigureError(f"heat map: no row has {field}")
    return _matrix(cells, methods, families, path, label=field.replace("_", " "), unit=True)


def coverage(count_FD: ArrayLike, families: Sequence[str], d_edges: Sequence[float], path: Path) -> Path:
    """Programs seen per family and detectability bin (logarithmic colour); empty cells are hatched.

    d_edges has one entry more than count_FD has columns; its last may be inf.
    """
    counts = np.asarray(count_FD, dtype=np.float64)
    if counts.shape != (len(families), len(d_edges) - 1):
        raise FigureError(f"coverage: {counts.shape} counts for {len(families)} families and {len(d_edges)} edges")
    if not (counts > 0).any():
        raise FigureError("coverage: every cell is empty")
    bins = [f"≥ {a:g}" if math.isinf(b) else f"{a:g}-{b:g}" for a, b in itertools.pairwise(d_edges)]
    cells = np.where(counts > 0, counts, np.nan)
    return _matrix(cells, list(families), bins, path, label="programs", unit=False, xlabel="detectability d_eff")


def gate_rates(step_K: ArrayLike, rates: Mapping[str, ArrayLike], path: Path) -> Path:
    """Share of programs at each gate over time, 0 to 1; many lie at 0, so the first ones are the widest."""
    if not rates or np.asarray(step_K).size == 0:
        raise FigureError(f"gate rates: {len(rates)} gates over {np.asarray(step_K).size} steps")
    figure, ax = _single((6.8, 3.8))
    for i, (name, values) in enumerate(rates.items()):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        width = 1.4 + 0.6 * (len(rates) - 1 - i)
        ax.plot(step_K, np.asarray(values, dtype=np.float64), style, color=colour, linewidth=width, label=name)
    ax.set_ylim(-0.02, 1.03)
    ax.set_xlabel("step", fontsize=10)
    ax.set_ylabel("share of programs", fontsize=10)
    figure.legend(fontsize=9, frameon=False, loc="outside right upper")
    return _save(figure, path)


def reliability(prob_B: ArrayLike, label_B: ArrayLike, path: Path, *, bins: int = 15) -> Path:
    """Stated probability against observed share in equal-mass bins, with a histogram of the probabilities."""
    prob = np.asarray(prob_B, dtype=np.float64)
    mean_prob, share_pos, count = metrics.reliability_bins(prob, label_B, bins)
    figure = Figure(figsize=(4.8, 5.4), dpi=DPI, layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for ax in (top, below):
        _style(ax)
    top.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle="--", label="perfect")
    error = 1.96 * np.sqrt(share_pos * (1 - share_pos) / count)
    top.errorbar(mean_prob, share_pos, error, color=COLOURS[0], marker="o", markersize=4, linewidth=1.5, label="model")
    top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    top.set_ylabel("observed share implausible", fontsize=10)
    score = metrics.ece(prob, label_B, bins)
    top.set_title(f"ECE {score:.3f} ({prob.size} windows)", fontsize=10, loc="left", color=INK)
    top.legend(fontsize=9, frameon=False, loc="upper left")
    below.hist(prob, bins=np.linspace(0, 1, 31), color=COLOURS[5])
    below.set_xlabel("stated probability", fontsize=10)
    below.set_ylabel("windows", fontsize=10)
    return _save(figure, path)


def grid_map(
    position_N2: ArrayLike, edge_index: ArrayLike, score_N: ArrayLike, true_N: ArrayLike, path: Path, *, top: int = 5
) -> Path:
    """Where the model points: buses coloured by score, affected buses ringed, the top few numbered by rank."""
    xy, ends = np.asarray(position_N2, dtype=np.float64), np.asarray(edge_index, dtype=np.int64)
    score, truth = np.asarray(score_N, dtype=np.float64), np.asarray(true_N, dtype=bool)
    if not len(xy) == len(score) == len(truth):
        raise FigureError(f"grid map: {len(xy)} positions, {len(score)} scores, {len(truth)} labels must be equal")
    figure, ax = _single((7.0, 5.6))
    ax.grid(False)
    ax.set_axis_off()
    ax.set_aspect("equal", adjustable="datalim")
    size = float(np.clip(9000 / max(len(xy), 1), 8, 130))
    segments = [np.stack((xy[a], xy[b])) for a, b in ends.T]
    ax.add_collection(LineCollection(segments, colors="#BDBDBD", linewidths=0.9, zorder=1))
    order = np.argsort(score)  # high scores on top
    dots = ax.scatter(
        xy[order, 0],
        xy[order, 1],
        c=score[order],
        s=size,
        cmap="Blues",
        edgecolors="#666666",
        linewidths=0.4,
        zorder=2,
    )
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": COLOURS[1], "linewidths": 2.2, "zorder": 3}
    ax.scatter(xy[truth, 0], xy[truth, 1], s=size * 2.2 + 30, label="affected", **ring)
    for rank, node in enumerate(order[::-1][:top], start=1):
        ax.annotate(
            str(rank),
            xy[node],
            xytext=(7, 7),
            textcoords="offset points",
            fontsize=10,
            fontweight="bold",
            color=INK,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=4,
        )
    if truth.any():
        figure.legend(fontsize=9, frameon=False, loc="outside upper left")
    figure.colorbar(dots, ax=ax, label="bus score", shrink=0.7, pad=0.02)
    return _save(figure, path)


# Parts --------------------------------------------------------------------------------------------------------------


def year_scores(
    t0_ns_H: ArrayLike, score_H: ArrayLike, bad_H: ArrayLike, threshold: float, trailing_H: ArrayLike, path: Path
) -> Path:
    """Scores by time with the fixed threshold (dashed) and the one in force at each time (line, gaps where there is
    none); half-hours that a list calls bad are marked."""
    times = np.asarray(t0_ns_H).astype("datetime64[ns]")
    scores, bad = np.asarray(score_H, dtype=np.float64), np.asarray(bad_H, dtype=bool)
    trailing = np.asarray(trailing_H, dtype=np.float64)
    if not np.isfinite(scores).any():
        raise FigureError("scores by time: no window was scored")
    years = times.astype("datetime64[Y]").astype(int) + 1970
    shown = [year for year in np.unique(years) if np.isfinite(scores[years == year]).mean() > 0.1] or [years[0]]
    figure = Figure(figsize=(10.0, 2.2 * len(shown) + 0.2), dpi=DPI, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(shown), 1))
    for ax, year in zip(axes, shown, strict=True):
        _style(ax)
        here = years == year
        ax.plot(times[here], scores[here], color=COLOURS[0], linewidth=0.5)
        marked = here & bad
        ax.plot(times[marked], scores[marked], "o", color=COLOURS[1], markersize=4)
        ax.axhline(threshold, color=INK, linestyle="--", linewidth=0.8)
        ax.plot(times[here], np.where(np.isfinite(trailing), trailing, np.nan)[here], color=INK, linewidth=0.8)
        ax.set_ylabel(f"{year}: logit", fontsize=9)
    return _save(figure, path)


def frequency_event(event: Mapping[str, ArrayLike], path: Path) -> Path:
    """Frequency samples of an event and what the model said after each: real disturbance, bad data."""
    if "time_ns" not in event:
        raise FigureError("frequency event: the trace is not in the data folder")
    times = np.asarray(event["time_ns"]).astype(np.int64).astype("datetime64[ns]")
    figure = Figure(figsize=(8.0, 4.6), dpi=DPI, layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True)
    for ax in (top, low):
        _style(ax)
    top.plot(times, np.asarray(event["hertz"]), "o-", color=COLOURS[0], markersize=3, linewidth=1.0)
    top.axhline(49.5, color=GREY, linestyle="--", linewidth=0.8)
    top.set_ylabel("frequency, Hz", fontsize=10)
    low.plot(times, np.asarray(event["disturbance"]), color=COLOURS[2], label="disturbance")
    low.plot(times, np.asarray(event["implausible"]), color=COLOURS[1], linestyle="--", label="implausible")
    low.set_ylabel("logit", fontsize=10)
    low.xaxis.set_major_formatter(DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    low.set_xlabel("UTC", fontsize=10)
    low.legend(fontsize=9, frameon=False)
    return _save(figure, path)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _style(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(True, color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=INK)


def _single(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    ax = figure.subplots()
    _style(ax)
    return figure, ax


def _running_median(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    half = max(1, len(values) // 40)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _matrix(
    cells: np.ndarray[Any, Any],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    label: str,
    unit: bool,
    xlabel: str = "",
) -> Path:
    """Annotated heat map; unit fixes the colour scale to 0-1, otherwise it is logarithmic."""
    figure, ax = _single((1.9 + 0.62 * len(columns), 1.3 + 0.36 * len(rows)))
    ax.grid(False)
    ax.set_facecolor("#F4F4F4")
    for i, j in np.argwhere(~np.isfinite(cells)):
        ax.add_patch(_hatch(float(j), float(i)))
    top = max(2.0, float(np.nanmax(cells)))
    scale: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0} if unit else {"norm": LogNorm(1.0, top)}
    image = ax.imshow(cells, cmap="cividis", aspect="auto", **scale)
    for i, j in np.argwhere(np.isfinite(cells)):
        red, green, blue, _ = image.to_rgba(cells[i : i + 1, j : j + 1])[0, 0]
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
        text = f"{cells[i, j]:.2f}" if unit else _short(float(cells[i, j]))
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), columns)
    if max(map(len, columns)) > _LEVEL_LABEL:
        ax.tick_params(axis="x", labelrotation=30)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel, fontsize=10)
    bar = figure.colorbar(image, ax=ax, label=label, pad=0.02)
    if not unit:  # counts, not powers of ten
        ticks = np.unique(np.round(np.geomspace(1.0, top, 5)))
        bar.set_ticks(ticks.tolist(), labels=[_short(tick) for tick in ticks])
        bar.minorticks_off()
    return _save(figure, path)


def _hatch(j: float, i: float) -> Rectangle:
    return Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="none", edgecolor="#CFCFCF", hatch="///", linewidth=0)


def _short(count: float) -> str:
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.1f}k" if count < 1e5 else f"{count / 1000:.0f}k"


def _save(figure: Figure, path: Path) -> Path:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    return write_atomic(path, drawn.getvalue())
