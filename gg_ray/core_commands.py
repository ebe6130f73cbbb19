"""The benchmark behind `gg-ray evaluate --suite core`: runs of all folds against the frozen suites, resumable.

Flow:    cli -> [core_commands: core_runs (networks), core_work (processes)] -> evaluate.core_job -> core_report
Source:  design.md, section 6; docs/benchmark.md
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from gg_ray import provenance
from gg_ray.config import ConfigError, RunConfig
from gg_ray.core_runs import DETECTOR_SEED, RUNS, Benchmark, loaded, run_names, unequal
from gg_ray.core_work import in_processes
from gg_ray.evaluate.core_claims import claims, flags, missing_folds, stop_check
from gg_ray.evaluate.core_costs import cost_line, costs
from gg_ray.evaluate.core_plan import sizes_of
from gg_ray.evaluate.core_report import CoreFindings, claim_lines, write_core_report
from gg_ray.evaluate.core_tables import Tables

LOG = logging.getLogger(__name__)


def evaluate_core(
    model: str, runs: str | None, preset: str, out: Path | None, workers: int,
    with_data: Callable[[RunConfig], RunConfig],
) -> int:  # fmt: skip
    """The core suites on one model per run; prints the stop-check first, then progress, then the claims.

    Args:   runs  names or paths, separated by commas, or a pattern of names under runs/; one run per fold, or several;
            workers  processes, each with one grid at a time
    Raises: ConfigError for an unknown preset, runs that are not there, do not fit together or were trained on another
            grid; SuiteChanged if the suites are not the frozen ones or the folder holds others.
    """
    torch.set_num_threads(1)
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1")
    sizes = sizes_of(preset)
    folder = out or RUNS / f"core-{preset}"
    found = Benchmark(loaded(run_names(runs, RUNS), model, with_data, sizes), sizes, folder)
    job = found.job(_say)
    job.manifest.adopt(sizes.cases)
    job.classical_first()
    tables = Tables(job.cells, sizes, job.scorers)
    checked = stop_check(tables)
    for line in checked:
        _say(line)
        LOG.info(line)
    absent = [*(run.lacks for run in found.runs if run.lacks), *missing_folds(tables)]
    for line in absent:
        _say(f"missing: {line}")
    if workers > 1:
        in_processes(found, workers)
        job = found.job(_say)  # its manifest takes in what the processes made
    job.complete()
    tables = Tables(job.cells, sizes, job.scorers)
    claimed, changed = claims(tables, DETECTOR_SEED), costs(tables, DETECTOR_SEED)
    rows = tables.rows
    wrong = [*flags(rows), *unequal(found.runs)]
    frozen = job.manifest.reference
    report = write_core_report(
        folder,
        CoreFindings(
            sizes=sizes, origin=found.contexts.origin, rows=rows, claims=claimed, costs=changed, stop_check=checked,
            flags=wrong,
            missing=[*absent, *tables.absent, *(f"part {key}" for key in job.manifest.missing())],
            budgets={run.key: run.budget for run in found.runs}, command="gg-ray " + " ".join(sys.argv[1:]),
            commit=provenance.git_commit(), seed=DETECTOR_SEED, machine=provenance.machine_info(),
            frozen="no frozen one to compare with" if frozen is None else "the same as the frozen one",
        ),
    )  # fmt: skip
    cost = cost_line(changed)
    for line in (*claim_lines(claimed), *([cost] if cost else []), *wrong):
        _say(line)
    _say(f"wrote {report.parent}/results.json, report.md, manifest.json and figures")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
