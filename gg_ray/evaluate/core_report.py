"""Files of a core run: results.json by the contract, report.md, figures.

Flow:    core_tables (rows), core_claims -> [core_report] -> results.json, report.md, *.png
Source:  design.md, section 6 (Results); rows carry suite, kind, case, fold, model and seed, and beside the figures of
         the contract those of CoreRow.more
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.evaluate import figures, results
from gg_ray.evaluate.core_claims import Claim
from gg_ray.evaluate.core_costs import Cost, cost_line
from gg_ray.evaluate.core_plan import ADAPTIVE, CHANGES, NATURAL, SUITES, CoreSizes
from gg_ray.evaluate.core_tables import STEALTHY, CoreRow
from gg_ray.evaluate.report import LOWER_IS_BETTER
from gg_ray.evaluate.results import CONTROLS, FIGURES, MACRO, POOLED, REFERENCES, VERIFIER, Row
from gg_ray.files import write_atomic

SCHEMA = 1
_WINDOW_COLUMNS = (
    "balanced_accuracy", "recall", "auroc", "auprc", "auprc_1pct", "node_f1", "top1", "top5", "hops", "type_f1", "ece",
    "cvar20", "ceiling",
)  # fmt: skip
_TIMELINE_COLUMNS = (
    "event_recall", "event_recall_10", "event_recall_100", "false_incidents_per_day", "realised_over_budget",
    "delay_scans", "delay_p90", "auprc", "vus_pr", "natural_called", "node_event_recall", "node_fpr", "node_f1", "top1",
    "hops", "type_f1", "stealthy_event_recall",
)  # fmt: skip
_NATURAL_COLUMNS = ("natural_called", "natural_called_1pct", "ordinary_called")
_LESS = LOWER_IS_BETTER | {"natural_called", "natural_called_1pct", "ordinary_called", "delay_p90", "node_fpr"}
_NO_BEST = ("false_incidents_per_day", "realised_over_budget", "node_fpr", "ceiling")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFindings:
    """Everything that a core report says."""

    sizes: CoreSizes
    origin: str
    rows: Sequence[CoreRow]
    claims: Sequence[Claim]
    costs: Sequence[Cost]
    stop_check: Sequence[str]
    flags: Sequence[str]
    missing: Sequence[str]
    """Folds without a run, suites without windows, detectors that were absent."""
    budgets: Mapping[str, Mapping[str, float]]
    """By run: learner steps and executor calls of training."""
    command: str
    commit: str
    seed: int
    machine: Mapping[str, Any]
    frozen: str
    """What the manifest was held against."""


def write_core_report(folder: Path, found: CoreFindings) -> Path:
    """Write results.json, figures and report.md.  Returns: the report."""
    write_atomic(folder / "results.json", _json(found))
    drawn = _figures(folder, found.rows)
    parts = [f"# Core benchmark, {found.sizes.name}", ""]
    parts += ["## Stop-check", "", *(f"- {line}" for line in found.stop_check), ""]
    parts += ["## What may be claimed", "", *claim_lines(found.claims), ""]
    parts += ["## What a change costs", "", *cost_lines(found.costs), ""]
    if found.flags:
        parts += ["## What looks wrong", "", *(f"- {line}" for line in found.flags), ""]
    parts += ["## What is missing", "", *(f"- {line}" for line in found.missing or ["nothing"]), ""]
    for suite in SUITES.values():
        own = [r for r in found.rows if r.suite == suite.name]
        if own:
            parts += [f"## {suite.name}", "", f"{suite.asks[0].upper()}{suite.asks[1:]}.", "", *_suite_lines(own)]
    parts += ["## Figures", "", *drawn, "## How it was made", ""]
    facts = {
        "command": f"`{found.command}`", "commit": found.commit, "seed of the detectors": found.seed,
        "contexts": found.origin, "manifest": f"[manifest.json](manifest.json), {found.frozen}",
        "machine": ", ".join(f"{name} {value}" for name, value in found.machine.items()),
        **{f"budget of {run}": ", ".join(f"{k} {v:g}" for k, v in own.items()) for run, own in found.budgets.items()},
        "budget of an attack": f"{found.sizes.attacks} calls of 32 programs and as many policy updates",
        "all rows": "[results.json](results.json)",
    }  # fmt: skip
    parts += [*(f"- {name}: {value}" for name, value in facts.items()), ""]
    return write_atomic(folder / "report.md", "\n".join(parts))


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """A table of the primary hypotheses; what Holm does not allow is said to be undecided."""
    if not claims:
        return ["Nothing: no run with a Verifier row was scored."]
    head = [
        "hypothesis",
        "figure, where",
        "Verifier minus",
        "difference [95 %]",
        "p (Holm)",
        "strata, seeds",
        "verdict",
    ]
    body = []
    for claim in claims:
        d = claim.difference
        verdict = "undecided" if claim.p_holm > 0.05 else "ahead" if d.mean > 0 else "**behind**"
        body.append([
            claim.hypothesis, f"{claim.figure}, {claim.where}", claim.theirs,
            f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", f"{claim.p_holm:.3f}", f"{claim.strata}, {claim.seeds}",
            verdict,
        ])  # fmt: skip
    lines = markdown(head, body)
    if any(claim.seeds < 2 for claim in claims):
        lines += ["", "Claims with one seed per fold hold for these trained networks, not for training them again."]
    return lines


def cost_lines(costs: Sequence[Cost]) -> list[str]:
    """A table of methods by change: average precision on s0-known and after it, and its loss."""
    if not costs:
        return ["Nothing: no part with a change was scored."]
    names = [name for name in CHANGES if any(cost.suite == name for cost in costs)]
    own = {(cost.method, cost.suite): cost for cost in costs}
    before = {cost.method: cost.before for cost in costs}
    ordered = order_of(list(before), before, less=False)
    body = []
    for method in ordered:
        cells = [f"{before[method]:.3f}"]
        for name in names:
            cost = own.get((method, name))
            if cost is None:
                cells += ["-", "-"]
                continue
            interval = "" if cost.low is None else f" [{cost.low:+.1%}, {cost.high:+.1%}]"
            cells += [f"{cost.after:.3f}", f"{cost.loss:+.1%}{interval}"]
        body.append([method, *cells])
    head = ["AUPRC of windows", "s0-known", *(word for name in names for word in (CHANGES[name], "loss [95 %]"))]
    line = cost_line(costs)
    seeds = {cost.seeds for cost in costs if cost.method == VERIFIER}
    lines = [*([line, ""] if line else []), *markdown(head, body), ""]
    lines.append(
        "Loss is 1 - (after / s0-known); negative where the change helped. Lost meters are taken from the very windows"
        " of s0-known, and what the oracle loses there no method can keep."
    )
    if seeds and min(seeds) < 2:
        lines.append("With one seed per fold the intervals hold for these trained networks.")
    return lines


def averaged(rows: Sequence[CoreRow], name: str) -> float | None:
    """Mean of a figure over folds, grids and seeds that have it."""
    values = [value for r in rows if (value := r.figure(name)) is not None]
    return float(np.mean(values)) if values else None


def order_of(methods: Sequence[str], value: Mapping[str, float | None], less: bool) -> list[str]:
    """Ours and its controls, then baselines from best to worst, then random, untrained, oracle."""
    order = (VERIFIER, *CONTROLS, "", *REFERENCES)

    def place(method: str) -> tuple[int, bool, float]:
        known = _base(method) in order
        merit = value.get(method)
        return order.index(_base(method) if known else ""), merit is None, (1 if less else -1) * (merit or 0.0)

    return sorted(dict.fromkeys(methods), key=place)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in body)]


def _suite_lines(rows: Sequence[CoreRow]) -> list[str]:
    lines: list[str] = []
    if rows[0].suite == NATURAL:
        return [*_table(rows, _NATURAL_COLUMNS, "natural events of the test windows, all folds and grids"), ""]
    windows = [r for r in rows if r.kind == "windows"]
    days = [r for r in rows if r.kind == "timelines"]
    if days:
        pooled = [r for r in days if r.row.family == POOLED]
        count = sum(r.count for r in pooled if r.row.method == results.RANDOM)
        lines += [*_table(pooled, _TIMELINE_COLUMNS, f"continuous days, {count} episodes over folds and grids"), ""]
    macro = [r for r in windows if r.row.family == MACRO]
    lines += [*_table(macro, _WINDOW_COLUMNS, "windows, mean over families, folds and grids"), ""]
    if rows[0].suite == ADAPTIVE:
        return lines
    if (cases := list(dict.fromkeys(r.case for r in macro))) and len(cases) > 1:
        lines += ["**Balanced accuracy** of windows by grid", "", *_by(macro, "case", cases), ""]
    families = sorted({r.row.family for r in windows} - {MACRO, STEALTHY}, key=results.family_order)
    lines += ["**Balanced accuracy** of windows by family", "", *_by(windows, "family", families), ""]
    stealthy = [r for r in windows if r.row.family == STEALTHY]
    if stealthy:
        count = sum(r.count for r in stealthy if r.row.method == results.RANDOM)
        title = f"dangerous and unseen by χ² and LNR: {count} windows"
        lines += [*_table(stealthy, ("recall", "auroc", "auprc_1pct", "top1", "ceiling"), title), ""]
    return lines


def _table(rows: Sequence[CoreRow], columns: Sequence[str], title: str) -> list[str]:
    """Methods down, figures across; the best of those that are no reference in bold."""
    by_method: dict[str, list[CoreRow]] = {}
    for r in rows:
        by_method.setdefault(r.row.method, []).append(r)
    value = {m: {c: averaged(own, c) for c in columns} for m, own in by_method.items()}
    shown = [c for c in columns if any(value[m][c] is not None for m in value)]
    if not shown:
        return [f"**{title}**: no row."]
    ordered = order_of(list(by_method), {m: value[m][shown[0]] for m in value}, shown[0] in _LESS)
    best = {c: _best([value[m][c] for m in ordered if _contends(m)], c) for c in shown}
    body = [
        [m, *(_cell(value[m][c], _contends(m) and value[m][c] == best[c]) for c in shown)] for m in ordered
    ]  # fmt: skip
    return [f"**{title[0].upper()}{title[1:]}**", "", *markdown(["method", *shown], body)]


def _contends(method: str) -> bool:
    """Whether a row may be the best: chance, the untrained network and the ceiling may not, under attack either."""
    return _base(method) not in REFERENCES


def _base(method: str) -> str:
    """The method behind a row of s7-adaptive, which names the attacked row too."""
    return method.partition(" (")[0]


def _by(rows: Sequence[CoreRow], what: str, columns: Sequence[str]) -> list[str]:
    """Balanced accuracy with grids or families across."""

    def of(r: CoreRow) -> str:
        return r.case if what == "case" else r.row.family

    methods = list(dict.fromkeys(r.row.method for r in rows))
    value = {
        (m, c): averaged([r for r in rows if r.row.method == m and of(r) == c], "balanced_accuracy")
        for m in methods for c in columns
    }  # fmt: skip
    mean = {m: float(np.mean([v for c in columns if (v := value[m, c]) is not None] or [0.0])) for m in methods}
    ordered = order_of(methods, mean, less=False)
    best = {c: _best([value[m, c] for m in ordered if m not in REFERENCES], "balanced_accuracy") for c in columns}
    body = [
        [m, *(_cell(value[m, c], m not in REFERENCES and value[m, c] == best[c]) for c in columns)] for m in ordered
    ]  # fmt: skip
    return markdown(["method", *columns], body)


def _best(values: Sequence[float | None], column: str) -> float | None:
    known = [v for v in values if v is not None]
    if not known or column in _NO_BEST:
        return None
    return min(known) if column in _LESS else max(known)


def _cell(value: float | None, bold: bool) -> str:
    if value is None:
        return "-"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"**{text}**" if bold else text


def _json(found: CoreFindings) -> str:
    """The document; a row a line, so that two runs can be compared line by line."""
    rows = [
        {
            "suite": r.suite, "kind": r.kind, "case": r.case, "fold": r.fold, "model": r.model, "seed": r.seed,
            "method": r.row.method, "family": r.row.family, "count": r.count,
            **{name: _short(getattr(r.row, name)) for name in FIGURES},
            **{name: _short(value) for name, value in r.more.items()},
        }
        for r in found.rows
    ]  # fmt: skip
    head = {
        "schema": SCHEMA, "suite": "core", "preset": found.sizes.name, "fold": sorted({r.fold for r in found.rows}),
        "case": ", ".join(found.sizes.cases), "model": sorted({r.model for r in found.rows}),
        "seed": found.seed, "commit": found.commit, "origin": found.origin,
        "budget": {name: dict(own) for name, own in found.budgets.items()},
        "stop_check": list(found.stop_check), "claims": [asdict(claim) for claim in found.claims],
        "costs": [asdict(cost) for cost in found.costs],
        "flags": list(found.flags), "missing": list(found.missing), "machine": dict(found.machine),
        "command": found.command,
    }  # fmt: skip
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    return json.dumps(head, indent=1, allow_nan=False)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n'


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _figures(folder: Path, rows: Sequence[CoreRow]) -> list[str]:
    """Heat maps: suites by method, families by method; a figure that cannot be drawn is said to be missing."""
    suites = [_heat(r.row.method, r.suite, r.row.balanced_accuracy, None) for r in _means(rows, "windows", MACRO)] + [
        _heat(r.row.method, f"{r.suite} days", None, r.row.event_recall) for r in _means(rows, "timelines", POOLED)
    ]
    held = [r.row for r in rows if r.suite in ("s3-families", "s5-both") and r.kind == "windows"]
    families = sorted({row.family for row in held} - {MACRO, STEALTHY}, key=results.family_order)
    methods = order_of([row.method for row in held], {}, less=False)
    by_family = [
        Row(method=m, family=f, recall_at_fpr=float(np.mean(values)))
        for m in methods for f in families
        if (values := [
            row.recall_at_fpr for row in held if (row.method, row.family) == (m, f) and row.recall_at_fpr is not None
        ])
    ]  # fmt: skip
    wanted = (
        ("suites.png", "Balanced accuracy of windows, by suite", suites, "balanced_accuracy"),
        ("events.png", "Event recall at one false incident a day, by suite", suites, "event_recall"),
        ("unknown_families.png", "Recall of held-out families at 5 % of false alarms", by_family, "recall_at_fpr"),
    )
    lines = []
    for name, caption, drawn, figure in wanted:
        shown = [row for row in drawn if getattr(row, figure) is not None]
        try:
            figures.family_method_heatmap(shown, folder / name, field=figure)
            lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
        except (figures.FigureError, ValueError) as reason:
            lines += [f"**Not drawn: {caption}** ({reason})", ""]
    return lines


def _means(rows: Sequence[CoreRow], kind: str, family: str) -> list[CoreRow]:
    """One row per suite and method: leading figures averaged over folds, grids and seeds."""
    groups: dict[tuple[str, str], list[CoreRow]] = {}
    for r in rows:
        if r.kind == kind and r.row.family == family and r.suite not in (NATURAL, ADAPTIVE):
            groups.setdefault((r.suite, r.row.method), []).append(r)
    out = []
    for own in groups.values():
        first = own[0]
        row = Row(
            method=first.row.method, family=family, balanced_accuracy=averaged(own, "balanced_accuracy"),
            event_recall=averaged(own, "event_recall"),
        )  # fmt: skip
        out.append(CoreRow(suite=first.suite, kind=kind, case="", fold=0, model="", seed=0, row=row, more={}, count=0))
    return out


def _heat(method: str, column: str, accuracy: float | None, recall: float | None) -> Row:
    return Row(method=method, family=column, balanced_accuracy=accuracy, event_recall=recall)
