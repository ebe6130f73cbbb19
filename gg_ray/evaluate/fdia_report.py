"""Tables of the outside judge: results.json, report.md and lines for the terminal.

Flow:    fdia_graph -> [fdia_report] -> results.json, report.md
Source:  design.md, section 6 (Results); figures are those of fdia-graph's `LocalizerBase.score`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gg_ray import provenance
from gg_ray.config import OUTSIDE_SUITE
from gg_ray.evaluate.fdia_graph import OURS, Arm, Table
from gg_ray.evaluate.fdia_mapping import RELEASE
from gg_ray.evaluate.fdia_timeline import Timeline
from gg_ray.evaluate.metrics import Estimate
from gg_ray.evaluate.results import POOLED, Block, Results, Row, write_results
from gg_ray.evaluate.scoring import BlockInfo
from gg_ray.files import write_atomic

ATTACKS = ("Aq", "Ad", "As", "Ar", "At", "Al", "Am")
NOTES = (
    "F1 macro is the mean F1 per bus over the buses attacked in the test frames (its headline), F1 micro counts all bus"
    " calls together; in brackets 95 % intervals over episodes. Flags: share of benign bus-frames flagged. Frames:"
    " share of benign frames with any flag. Families: micro F1 on its frames, blank where the test has none.",
    "Half of the frames are attacked, so F1 here says nothing about alarms per day.",
)


def write_judge_report(
    folder: Path, tables: Sequence[Table], timeline: Timeline, off: float, info: BlockInfo, name: str
) -> list[str]:
    """Write results.json and report.md.  Returns: the tables and findings as lines."""
    blocks = tuple(_block(table, timeline, info) for table in tables)
    command = "gg-ray " + " ".join(sys.argv[1:])
    found = Results(suite=OUTSIDE_SUITE, results=blocks, machine=provenance.machine_info(), command=command)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", found)
    lines: list[str] = []
    for table in tables:
        frames = ", ".join(f"{key} {value}" for key, value in table.frames.items())
        lines += ["", f"## {table.protocol.name}, ieee{timeline.system}", "", f"Frames: {frames}.", ""]
        lines += _markdown(table.arms)
        if table.gain is not None:
            ours, theirs = table.gain_of
            verdict = "a gain" if table.gain.low > 0 else "a loss" if table.gain.high < 0 else "no clear difference"
            lines += ["", f"Macro F1, *{ours}* less *{theirs}*: {_interval(table.gain)}, {verdict}."]
    head = [
        f"# Outside judge fdia-graph {RELEASE} on ieee{timeline.system}: {name}", "", *NOTES, "",
        f"Demand: {timeline.shape}, {len(timeline.states_TN4)} scans of one minute. Its grid and noise-free flows agree"
        f" with ours to {off:.1e} p.u.",
    ]  # fmt: skip
    tail = ["", "## How it was made", "", f"Command: `{command}`; commit {info.commit}, seed {info.seed}.", ""]
    write_atomic(folder / "report.md", "\n".join([*head, *lines, *tail]))
    return lines


def _block(table: Table, timeline: Timeline, info: BlockInfo) -> Block:
    rows = []
    for arm in table.arms:
        rows += [
            Row(method=arm.name, family=family, node_f1=arm.told[family].node_f1)
            for family in ATTACKS
            if arm.told.get(family) is not None
        ]
        rows.append(Row(method=arm.name, family=POOLED, node_f1=arm.macro.mean))
    budget = {key.replace(" ", "_"): float(value) for key, value in table.frames.items()}
    return Block(
        suite=f"{OUTSIDE_SUITE}/{table.protocol.name}", fold=info.fold, case=f"ieee{timeline.system}", model=info.model,
        seed=info.seed, commit=info.commit, rows=tuple(rows),
        budget={**budget, "learner_steps": float(info.learner_steps), "executor_calls": float(info.executor_calls)},
    )  # fmt: skip


def _markdown(arms: Sequence[Arm]) -> list[str]:
    """One row per arm, its own first, best macro F1 last within each part."""
    shown = [family for family in ATTACKS if any(arm.told.get(family) is not None for arm in arms)]
    lines = [
        "| arm | F1 macro | F1 micro | flags | frames | " + " | ".join(shown) + " |",
        "|---|---|---|---|---|" + "---|" * len(shown),
    ]
    for arm in sorted(arms, key=lambda a: (a.name in OURS, a.macro.mean)):
        told, benign = arm.told, arm.told["benign"]
        cells = ["" if told.get(f) is None else f"{told[f].node_f1:.2f}" for f in shown]
        lines.append(
            f"| {arm.name} | {_interval(arm.macro)} | {arm.micro.mean:.3f} | {benign.bus_alarm_rate:.4f} |"
            f" {benign.false_alarm_rate:.3f} | {' | '.join(cells)} |"
        )
    return lines


def _interval(value: Estimate) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
