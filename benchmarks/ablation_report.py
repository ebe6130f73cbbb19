"""Table and figure of the ablations: values with their spread over seeds, differences to the full model with intervals.

Flow:    ablations (lines, scores) -> [ablation_report] -> report.md, ablations.png
Source:  Efron and Tibshirani 1993, ch. 16: bootstrap of test windows within families, same draws for both networks
Shapes:  D draws, B test windows, N buses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ablation_bed import HELD_OUT, TRAINING, Bed, Scores, truth
from benchmarks.ablation_variants import VARIANTS
from gg_ray import provenance
from gg_ray.evaluate.figures import COLOURS, DPI, GREY, INK, PALE
from gg_ray.records import F64, Bool

FULL = "full"
FIGURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "auprc": "AUPRC",
    "node_average_precision": "node average precision",
}
DRAWS = 500

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """Variant minus full: mean over the seeds that both have, 95 % interval over test windows, value of each seed."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """The interval excludes 0 and at least two seeds, all there are, have its sign."""
        agree = len(self.by_seed) > 1 and len({np.sign(value) for value in self.by_seed}) == 1
        return agree and bool(self.low > 0 or self.high < 0)


def draws_of(family_B: Any, rng: np.random.Generator, count: int = DRAWS) -> F64:
    """[1 + D, B] how often each window is taken: once in row 0, then drawn anew within its family."""
    out = np.ones((1 + count, family_B.size))
    for name in sorted(set(family_B)):
        rows = np.flatnonzero(family_B == name)
        out[1:, rows] = rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), size=count)
    return out


def replicates(scores: Scores, family_B: Any, true_BN: Bool, weight_DB: F64) -> dict[str, F64]:
    """Each of FIGURES [D] under every row of weights; with weight one it is what ablation_bed.figures gives."""
    benign = family_B == ""
    negative, w_negative = scores.logit_B[benign], weight_DB[:, benign]
    passed = w_negative @ (negative <= scores.limit) / w_negative.sum(axis=1)
    auroc, balanced, auprc = [], [], []
    for name in sorted(set(family_B) - {""}):
        own = family_B == name
        positive, w_positive = scores.logit_B[own], weight_DB[:, own]
        above = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        pairs = w_positive.sum(axis=1) * w_negative.sum(axis=1)
        auroc.append(((w_positive @ above) * w_negative).sum(axis=1) / pairs)
        balanced.append(0.5 * passed + 0.5 * (w_positive @ (positive > scores.limit)) / w_positive.sum(axis=1))
        both = own | benign
        auprc.append(average_precision(scores.logit_B[both], own[both], weight_DB[:, both]))
    node, true = scores.node_BN[~benign], true_BN[~benign]
    weight = np.repeat(weight_DB[:, ~benign], node.shape[1], axis=1)
    means = {
        name: np.mean(rows, axis=0)
        for name, rows in {"auroc": auroc, "balanced_accuracy": balanced, "auprc": auprc}.items()
    }
    return means | {"node_average_precision": average_precision(node.ravel(), true.ravel(), weight)}


def average_precision(score_M: F64, true_M: Bool, weight_DM: F64) -> F64:
    """[D] step sum of precision over recall under weights; equal scores count together, as in scikit-learn."""
    order = np.argsort(-score_M, kind="stable")
    score, weight = score_M[order], weight_DM[:, order]
    last = np.r_[np.flatnonzero(np.diff(score)), score.size - 1]
    hits = np.cumsum(weight * true_M[order], axis=1)[:, last]
    taken = np.cumsum(weight, axis=1)[:, last]
    gain = np.diff(hits, axis=1, prepend=0.0)
    return np.asarray((gain * hits / np.maximum(taken, 1e-12)).sum(axis=1) / hits[:, -1])


def differences(scores: Mapping[Key, Scores], beds: Mapping[int, Bed]) -> dict[str, dict[str, Difference]]:
    """Of every variant but the full model: windows of another length are drawn apart, all others together."""
    made: dict[Key, dict[str, F64]] = {}
    weights = {}
    for scans, bed in beds.items():
        weights[scans] = truth(bed), draws_of(truth(bed)[0], np.random.default_rng([0, scans]))
    for (name, seed), found in scores.items():
        (family_B, true_BN), weight_DB = weights[VARIANTS[name].scans]
        made[name, seed] = replicates(found, family_B, true_BN, weight_DB)
    out: dict[str, dict[str, Difference]] = {}
    for name in dict.fromkeys(name for name, _ in scores):
        seeds = [seed for own, seed in scores if own == name and (FULL, seed) in scores]
        if name == FULL or not seeds:
            continue
        out[name] = {}
        for figure in FIGURES:
            gaps = np.stack([made[name, seed][figure] - made[FULL, seed][figure] for seed in seeds])
            low, high = np.quantile(gaps[:, 1:].mean(axis=0), [0.025, 0.975])
            by_seed = tuple(gaps[:, 0].tolist())
            out[name][figure] = Difference(float(gaps[:, 0].mean()), float(low), float(high), by_seed)
    return out


def write_report(
    out: Path, lines: Sequence[Mapping[str, Any]], scores: Mapping[Key, Scores], beds: Mapping[int, Bed]
) -> None:
    """report.md from all lines; differences and ablations.png where the scores are still in the cache."""
    found = differences(scores, beds)
    (out / "report.md").write_text(report(lines, found), encoding="utf-8")
    if found:
        forest(found, out / "ablations.png")


def report(lines: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Difference]]) -> str:
    """Markdown of both tables."""
    first, machine = lines[0], provenance.machine_info()
    counts = sorted({line["training_windows"] for line in lines if VARIANTS[line["variant"]].scans == 16})
    commits = ", ".join(sorted({line["commit"] for line in lines}))
    text = [
        "# Ablations of the Verifier",
        "",
        f"`python -m benchmarks.ablations`: {first['steps']} steps on {'/'.join(map(str, counts))} gated windows of"
        f" uniform programs on {' and '.join(TRAINING)} (16 scans), judged on {HELD_OUT} with {first['windows']}"
        " windows per family and as many plausible ones (test months and meters, twelve families, three of them never"
        " trained on). Thresholds come from benign validation windows (5 % flagged). AUROC, balanced accuracy and"
        " AUPRC are means over families; node average precision is over all buses of implausible windows.",
        "",
        f"{machine['cores']} shared cores, {machine['cpu']}, torch {machine['torch']}, no GPU, one thread; commit"
        f" {commits}; {sum(line['cpu_s'] + line['data_cpu_s'] for line in lines) / 60:.0f} CPU minutes in all.",
        "",
        "## Values: mean over seeds (least to greatest)",
        "",
        "| variant | what differs | seeds | " + " | ".join(FIGURES.values()) + " | CPU s |",
        "|---|---|--:|" + "--:|" * (len(FIGURES) + 1),
    ]
    for name in dict.fromkeys(name for name in VARIANTS if any(line["variant"] == name for line in lines)):
        own = [line for line in lines if line["variant"] == name]
        cells = [_spread([line[figure] for line in own]) for figure in FIGURES]
        cpu = np.mean([line["cpu_s"] for line in own])
        text.append(f"| {name} | {VARIANTS[name].what} | {len(own)} | {' | '.join(cells)} | {cpu:.0f} |")
    text += [
        "",
        f"## Differences to the full model, paired by seed: mean [95 % over test windows, {DRAWS} draws]",
        "",
        "**Bold**: the interval excludes 0 and two seeds or more agree in sign. Intervals hold the networks fixed,"
        f" so they leave out what another seed would change; of {len(found) * len(FIGURES)} intervals about"
        f" {0.05 * len(found) * len(FIGURES):.0f} would exclude 0 by chance. Windows of another length are other"
        " windows: those rows are not paired.",
        "",
        "| variant | seeds | " + " | ".join(FIGURES.values()) + " |",
        "|---|--:|" + "--:|" * len(FIGURES),
    ]
    for name, row in found.items():
        cells = [_cell(row[figure]) for figure in FIGURES]
        text.append(f"| {name} | {len(row['auroc'].by_seed)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _cell(gap: Difference) -> str:
    mean = f"**{gap.mean:+.3f}**" if gap.clear else f"{gap.mean:+.3f}"
    return f"{mean} [{gap.low:+.3f}, {gap.high:+.3f}]"


def forest(found: Mapping[str, Mapping[str, Difference]], path: Path) -> None:
    """One panel per figure, one row per variant: interval, mean, and a small mark for each seed."""
    names = list(found)[::-1]
    figure = Figure(figsize=(12.0, 1.2 + 0.27 * len(names)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(FIGURES), sharey=True)
    for ax, (key, title) in zip(panels, FIGURES.items(), strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, axis="x", color=PALE, linewidth=0.7)
        ax.axvline(0.0, color=GREY, linewidth=1)
        for row, name in enumerate(names):
            gap = found[name][key]
            colour = COLOURS[0] if gap.clear and gap.mean > 0 else COLOURS[1] if gap.clear else GREY
            ax.plot((gap.low, gap.high), (row, row), color=colour, linewidth=1.8)
            ax.plot(gap.mean, row, "o", color=colour, markersize=5)
            ax.plot(gap.by_seed, [row] * len(gap.by_seed), "|", color=INK, markersize=7)
        ax.set_title(title, fontsize=10, loc="left", color=INK)
        ax.tick_params(labelsize=9, colors=INK)
    panels[0].set_yticks(range(len(names)), names)
    figure.supxlabel("variant minus full model: mean, 95 % over test windows (coloured: clear), each seed", fontsize=9)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
