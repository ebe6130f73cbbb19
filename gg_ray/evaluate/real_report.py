"""Report of the real-gb suite: tables, what happened on 9 August 2019, and the figures.

Flow:    evaluate.real_gb -> [real_report] -> results.json, report.md, *.png
Source:  "Contains BMRS data (c) Elexon Limited copyright and database right 2019, 2021, 2023, 2024";
         "Supported by National Energy SO Open Data"
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gg_ray import provenance
from gg_ray.evaluate import figures, results
from gg_ray.evaluate.real_gb import SUITE, RealFindings
from gg_ray.evaluate.report import text_table
from gg_ray.evaluate.results import Results, write_results
from gg_ray.files import write_atomic

ATTRIBUTION = (
    "Contains BMRS data © Elexon Limited copyright and database right 2019, 2021, 2023, 2024. "
    "Supported by National Energy SO Open Data."
)


def write_real_report(folder: Path, found: RealFindings, name: str) -> Path:
    """Write results.json, report.md and figures into a folder.  Returns: the report."""
    found_results = Results(
        suite=SUITE, results=tuple(found.blocks), machine=provenance.machine_info(),
        command="gg-ray " + " ".join(sys.argv[1:]),
    )  # fmt: skip
    write_results(folder / "results.json", found_results)
    model = next(iter(found.series))
    seeded = [row for block in found.blocks if block.suite.endswith("seeded") for row in block.rows]
    drawers: dict[str, Callable[[], Path]] = {
        "Scores by year; listed bad publications in orange; threshold of 2023 dashed, of the year before each day"
        " as a line": lambda: figures.year_scores(
            found.record.t0_ns, found.series[model].score, found.labelled_H, found.thresholds[model],
            found.trailing[model], folder / "test_year.png",
        ),
        "9 August 2019 at 15 s": lambda: figures.frequency_event(found.frequency, folder / "august_2019.png"),
        "Corrupted half-hours of 2024 found, by family and method": lambda: figures.family_method_heatmap(
            seeded, folder / "seeded.png", field="event_recall"
        ),
    }  # fmt: skip
    parts = [f"# Real GB data: {name}", "", ATTRIBUTION, ""]
    for block in found.blocks:
        budget = ", ".join(f"{key} {value:g}" for key, value in block.budget.items())
        parts += [f"## {block.suite}", "", f"Budget: {budget}.", "", "```", text_table(block.rows), "```", ""]
    parts += ["## Notes", "", *(f"- {line}" for line in found.notes), "", "## Figures", ""]
    for caption, draw in drawers.items():
        try:
            parts += [f"![{caption}]({draw().name})", "", f"*{caption}.* {ATTRIBUTION}", ""]
        except figures.FigureError as reason:
            parts += [f"**Not drawn: {caption}** ({reason})", ""]
    parts += ["## How it was made", "", f"Command: `{found_results.command}`; commit {found.blocks[0].commit}, seed"
              f" {found.blocks[0].seed}, rows of the model: {results.VERIFIER}.", ""]  # fmt: skip
    return write_atomic(folder / "report.md", "\n".join(parts))
