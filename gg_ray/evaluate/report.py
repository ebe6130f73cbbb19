"""The report of a run: what the figures say, tables per suite, PNGs, and how to get the same again.

Flow:    Results + metrics.jsonl + PNG files -> [report] -> report.md, results.json
Rule:    every claim is computed from the rows; a missing control, interval or reference row is said to be missing
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gg_ray.evaluate.metrics import Estimate
from gg_ray.evaluate.results import (
    CONTROLS,
    FIGURES,
    MACRO,
    ORACLE,
    POOLED,
    RANDOM,
    REFERENCES,
    UNIFORM,
    UNTRAINED,
    VERIFIER,
    Block,
    Results,
    Row,
    family_order,
    write_results,
)
from gg_ray.evaluate.verdicts import DISTURBANCE, FPR, Confusion
from gg_ray.files import write_atomic
from gg_ray.records import VERDICTS

PRIMARY = ("event_recall", "balanced_accuracy", "recall_at_fpr", "auroc")
"""Figure a suite is decided on: the first that its Verifier row has (timelines lead with event recall)."""
GOAL = ("balanced_accuracy", 0.80)
"""The project's first goal, on window suites."""
LEAK_MARGIN = 0.02
"""Balanced accuracy above the ceiling by more than this is treated as a leak, less as sampling noise."""
LOWER_IS_BETTER = frozenset({"false_incidents_per_day", "delay_scans", "hops", "ece"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Paired difference, Verifier minus another method (metrics.paired_difference_ci).

    Used for the summary when figure and family are those that decide the suite; otherwise point estimates are compared.
    """

    suite: str
    case: str
    figure: str
    than: str
    family: str = MACRO
    difference: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMeta:
    """What a reader needs beside the figures; empty parts are left out."""

    name: str
    held_out_families: Sequence[str] = ()
    held_out_cases: Sequence[str] = ()
    gates: Mapping[str, float] = field(default_factory=dict)
    """Counter per gate; when empty, the last values in metrics.jsonl whose name contains "gate"."""
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """Further lines: wall time, executor calls, learner steps, ..."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verifier against one other method: +1 ahead, -1 behind, 0 not told apart."""

    sign: int
    interval: bool
    """Decided by a paired interval rather than by two point estimates."""
    sentence: str


def write_report(
    folder: Path,
    results: Results,
    metrics_path: Path | None,
    figures: Mapping[str, Path | str],
    meta: ReportMeta,
    comparisons: Sequence[Comparison] = (),
) -> Path:
    """Writes report.md and results.json into a folder.

    figures maps a caption to a PNG, or to the reason for which there is none: that is said in its place.
    Returns: the report. Raises: OSError naming the file; a file that is there already is then whole, and the old one.
    """
    write_results(folder / "results.json", results)
    gates = meta.gates or _last_gates(metrics_path)
    parts = [f"# Report of run {meta.name}", "", "## What the figures say", ""]
    parts += [f"- {line}" for line in findings(results, comparisons)]
    for block in results.results:
        parts += ["", f"## Suite {block.suite}, {block.case}", "", *_block_lines(block)]
    if results.verdicts:
        parts += ["", "## Verdicts", "", *_verdict_lines(results.verdicts)]
    if figures:
        parts += ["", "## Figures"]
    for caption, drawn in figures.items():
        if isinstance(drawn, str):
            parts += ["", f"**Not drawn: {caption}** ({drawn})"]
        else:
            parts += ["", f"![{caption}]({Path(os.path.relpath(drawn, folder)).as_posix()})", "", f"*{caption}*"]
    if gates:
        parts += ["", "## Gates", "", *_markdown(["gate", "value"], [[name, _plain(v)] for name, v in gates.items()])]
    parts += ["", "## How it was made", "", *_provenance(results, meta), ""]
    return write_atomic(folder / "report.md", "\n".join(parts))


def findings(results: Results, comparisons: Sequence[Comparison] = ()) -> list[str]:
    """The summary, one sentence an entry, computed from the rows; the first gives the count over suites."""
    lines: list[str] = []
    against: dict[str, list[Outcome]] = {"strongest baseline": [], "uniform control": []}
    for block in results.results:
        ours, figure = _deciding(block)
        where = f"{block.suite}, {block.case}"
        if ours is None or figure is None:
            lines.append(f"{where}: there is no Verifier row, so nothing is claimed.")
            continue
        text = f"{where}: {_words(figure)} of the Verifier is {_at(ours, figure)} ({_family_words(ours.family)})"
        best = _strongest(block, figure, ours.family)
        if best is None:
            text += "; no baseline was run"
        else:
            outcome = _against(block, figure, ours, best, comparisons)
            against["strongest baseline"].append(outcome)
            text += f"; it {outcome.sentence} the strongest baseline"
        control = block.row(UNIFORM, ours.family)
        if control is None or getattr(control, figure) is None:
            text += "; no uniform control was run, so nothing can be said about what self-play adds"
        else:
            outcome = _against(block, figure, ours, control, comparisons)
            against["uniform control"].append(outcome)
            text += f"; it {outcome.sentence} the uniform control"
        lines += [f"{text}.", *_warnings(block, ours, figure)]
    return [_headline(against), *lines]


def text_table(rows: Sequence[Row]) -> str:
    """Plain aligned table for the console: only figures that some row has, methods in report order."""
    shown = [name for name in FIGURES if any(getattr(r, name) is not None for r in rows)]
    rank = {method: i for i, method in enumerate(_methods(rows, shown[0] if shown else PRIMARY[0]))}
    ordered = sorted(rows, key=lambda r: (family_order(r.family), rank[r.method]))
    cells = [["family", "method", *(_SHORT.get(name, name) for name in shown)]]
    cells += [[r.family, r.method, *(_cell(getattr(r, name)) for name in shown)] for r in ordered]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


# Claims -------------------------------------------------------------------------------------------------------------


def _deciding(block: Block) -> tuple[Row | None, str | None]:
    """The Verifier's macro row (else pooled, else its first) and the figure that decides the suite."""
    mine = sorted((r for r in block.rows if r.method == VERIFIER), key=lambda r: family_order(r.family), reverse=True)
    for row in mine:
        figure = next((name for name in PRIMARY if getattr(row, name) is not None), None)
        if figure is not None:
            return row, figure
    return None, None


def _strongest(block: Block, figure: str, family: str) -> Row | None:
    rivals = [
        r
        for r in block.rows
        if r.family == family and r.method not in (VERIFIER, *CONTROLS, *REFERENCES) and getattr(r, figure) is not None
    ]
    return max(rivals, key=lambda r: float(getattr(r, figure)), default=None)


def _at(row: Row, figure: str) -> str:
    """The figure, with its price in false incidents where that is what it trades against."""
    price = row.false_incidents_per_day
    bought = f" for {price:.2g} false incidents a day" if figure == "event_recall" and price is not None else ""
    return f"{getattr(row, figure):.3f}{bought}"


def _against(block: Block, figure: str, ours: Row, other: Row, comparisons: Sequence[Comparison]) -> Outcome:
    difference = float(getattr(ours, figure)) - float(getattr(other, figure))
    name = f"{other.method} at {_at(other, figure)}"
    key = (block.suite, block.case, figure, other.method, ours.family)
    paired = next((c for c in comparisons if (c.suite, c.case, c.figure, c.than, c.family) == key), None)
    if paired is None:
        sign = 0 if abs(difference) < 1e-12 else int(math.copysign(1, difference))
        verb = {1: "scores above", 0: "equals", -1: "does not beat"}[sign]
        note = f"difference {difference:+.3f}, point estimates without an interval"
        return Outcome(sign, False, f"{verb} {name} ({note}),")
    d = paired.difference
    sign = 1 if d.low > 0 else -1 if d.high < 0 else 0
    verb = {1: "beats", 0: "cannot be told apart from", -1: "is beaten by"}[sign]
    return Outcome(sign, True, f"{verb} {name} (paired difference {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]),")


def _headline(against: Mapping[str, Sequence[Outcome]]) -> str:
    clauses, unsure = [], 0
    for name, outcomes in against.items():
        article = "any baseline" if "baseline" in name else f"a {name}"
        if not outcomes:
            clauses.append(f"was not compared with {article}")
            continue
        signs, n = [o.sign for o in outcomes], len(outcomes)
        won, lost = signs.count(1), signs.count(-1)
        unsure += sum(not o.interval for o in outcomes)
        if won == 0:
            clauses.append(f"**does not beat the {name}** in any suite (of {n}: behind in {lost}, level in {n - lost})")
        else:
            rest = "" if won == n else f" (behind in {lost}, level in {n - won - lost})"
            clauses.append(f"is ahead of the {name} in {won} of {n} suites{rest}")
    caveat = f" {unsure} of these comparisons have no interval, so chance is not excluded." if unsure else ""
    return f"The Verifier {' and '.join(clauses)}.{caveat}"


def _warnings(block: Block, ours: Row, figure: str) -> list[str]:
    where, lines = f"{block.suite}, {block.case}", []
    goal_figure, goal = GOAL
    value = getattr(ours, goal_figure)
    if figure == goal_figure and value is not None:
        word = "reached" if value > goal else "**not reached**"
        lines.append(f"{where}: the goal of {_words(goal_figure)} above {goal:.0%} is {word} ({value:.3f}).")
    for row in block.rows:
        if row.method in REFERENCES or row.ceiling is None or row.balanced_accuracy is None:
            continue
        if row.balanced_accuracy > row.ceiling + LEAK_MARGIN:
            lines.append(
                f"{where}: **suspected leak**: {row.method} on {row.family} has balanced accuracy "
                f"{row.balanced_accuracy:.3f}, above the oracle ceiling {row.ceiling:.3f}."
            )
    untrained = block.row(UNTRAINED, ours.family)
    if untrained is not None and (other := getattr(untrained, figure)) is not None and getattr(ours, figure) <= other:
        lines.append(f"{where}: **training did not help**: the untrained network has {_words(figure)} {other:.3f}.")
    chance = block.row(RANDOM, ours.family)
    if chance is not None and chance.auroc is not None and abs(chance.auroc - 0.5) > 0.1:
        lines.append(f"{where}: a random score has AUROC {chance.auroc:.3f}; too few windows to trust these rows.")
    missing = [name for name in REFERENCES if name != ORACLE and block.row(name, ours.family) is None]
    if missing:
        lines.append(f"{where}: no {' and no '.join(missing)} row.")
    return lines


# Tables -------------------------------------------------------------------------------------------------------------

_SHORT = {
    "balanced_accuracy": "bal.acc",
    "recall_at_fpr": "recall@fpr",
    "event_recall": "ev.recall",
    "false_incidents_per_day": "false/day",
    "delay_scans": "delay",
}


def _block_lines(block: Block) -> list[str]:
    budget = ", ".join(f"{name} {_plain(value)}" for name, value in block.budget.items())
    lines = [
        f"Model {block.model}, fold {block.fold}, seed {block.seed}, commit {block.commit}. Budget: {budget or '-'}."
    ]
    if not block.rows:
        return [*lines, "", "No rows."]
    figure = _deciding(block)[1] or next(
        (n for n in PRIMARY if any(getattr(r, n) is not None for r in block.rows)), PRIMARY[1]
    )
    figures = [
        figure,
        *(n for n in ("recall_at_fpr",) if n != figure and any(getattr(r, n) is not None for r in block.rows)),
    ]
    for name in figures:
        lines += ["", f"**{_words(name).capitalize()}** by family", "", *_family_table(block.rows, name)]
    overall = MACRO if any(r.family == MACRO for r in block.rows) else POOLED
    rows = [r for r in block.rows if r.family == overall]
    if rows:
        shown = [n for n in FIGURES if any(getattr(r, n) is not None for r in rows)]
        by_method = {r.method: r for r in rows}
        body = [[m, *(_cell(getattr(by_method[m], n)) for n in shown)] for m in _methods(rows, figure)]
        lines += ["", f"All figures, {_family_words(overall)}", ""]
        lines += _markdown(["method", *(_SHORT.get(n, n) for n in shown)], body)
    return lines


def _family_table(rows: Sequence[Row], name: str) -> list[str]:
    """Methods down, families across, best method that is not a reference in bold, the ceiling last."""
    families = sorted({r.family for r in rows}, key=family_order)
    value = {(r.method, r.family): getattr(r, name) for r in rows}
    methods = _methods(rows, name)
    if name == "balanced_accuracy" and ORACLE not in methods:
        ceilings = {r.family: r.ceiling for r in rows if r.ceiling is not None}
        if ceilings:
            methods.append(ORACLE)
            value |= {(ORACLE, family): ceiling for family, ceiling in ceilings.items()}
    body = []
    for method in methods:
        line = ["oracle ceiling" if method == ORACLE else method]
        for family in families:
            contenders = [v for m in methods if m not in REFERENCES and (v := value.get((m, family))) is not None]
            v = value.get((method, family))
            top = max(contenders, default=math.inf)
            bold = v is not None and method not in REFERENCES and v == top
            line.append(f"**{_cell(v)}**" if bold else _cell(v))
        body.append(line)
    return _markdown(["method", *families], body)


def _methods(rows: Sequence[Row], name: str) -> list[str]:
    """Ours, controls, baselines from best to worst on the widest family, then random, untrained, oracle."""
    present = list(dict.fromkeys(r.method for r in rows))
    widest = max((r.family for r in rows), key=family_order, default=MACRO)
    value = {r.method: getattr(r, name) for r in rows if r.family == widest}
    sign = 1.0 if name in LOWER_IS_BETTER else -1.0
    fixed = (VERIFIER, *CONTROLS, *REFERENCES)
    baselines = [m for m in present if m not in fixed]
    baselines.sort(key=lambda m: math.inf if value.get(m) is None else sign * float(value[m]))
    front = [m for m in (VERIFIER, *CONTROLS) if m in present]
    return [*front, *baselines, *(m for m in REFERENCES if m in present)]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in body)]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _plain(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(figure: str) -> str:
    return {"recall_at_fpr": "recall at the fixed false-positive rate", "auroc": "AUROC"}.get(
        figure, figure.replace("_", " ")
    )


def _family_words(family: str) -> str:
    return {MACRO: "mean over families", POOLED: "all families pooled"}.get(family, f"family {family}")


def _verdict_lines(verdicts: Sequence[Confusion]) -> list[str]:
    """Truth down, verdict across, one table a grid, and the error that costs an operator's trust."""
    lines = [
        f"Windows of the test by truth (rows) and verdict, each threshold exceeded by {FPR:.0%} of benign validation"
        " windows; a masked fault counts as implausible."
    ]
    for found in verdicts:
        rows = [[truth, *map(str, counts)] for truth, counts in zip(VERDICTS, found.counts, strict=True)]
        share, events = found.natural_called_implausible, sum(found.counts[DISTURBANCE])
        said = "there was no natural event" if share is None else f"{share:.1%} of {events}"
        lines += ["", f"**{found.case}**", "", *_markdown([f"{found.case}, truth", *VERDICTS], rows)]
        lines += ["", f"Natural events called implausible: {said}."]
    return lines


# Provenance ---------------------------------------------------------------------------------------------------------


def _provenance(results: Results, meta: ReportMeta) -> list[str]:
    def distinct(name: str) -> str:
        return ", ".join(dict.fromkeys(str(getattr(b, name)) for b in results.results)) or "-"

    facts: dict[str, str] = {
        "command": f"`{results.command}`",
        "commit": distinct("commit"),
        "seed": distinct("seed"),
        "model": distinct("model"),
        "fold": distinct("fold"),
        "held-out families": ", ".join(meta.held_out_families) or "none named",
        "held-out grids": ", ".join(meta.held_out_cases) or "none named",
        "machine": ", ".join(f"{name} {_plain(value)}" for name, value in results.machine.items()) or "-",
        **{name: _plain(value) for name, value in meta.facts.items()},
    }
    return [
        *(f"- {name}: {value}" for name, value in facts.items()),
        "- all rows: [results.json](results.json)",
    ]


def _last_gates(metrics_path: Path | None) -> dict[str, float]:
    """Last value of every metric whose name contains "gate"; a half-written last line is skipped."""
    gates: dict[str, float] = {}
    if metrics_path is None or not metrics_path.exists():
        return gates
    for line in metrics_path.read_text(encoding="utf-8").splitlines():
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in row.items() if isinstance(row, dict) else ():
            if "gate" in name and isinstance(value, int | float):
                gates[name] = value
    return gates
