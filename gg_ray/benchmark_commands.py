"""The benchmark behind `gg-ray evaluate --suite fdia-graph`: the outside judge.

Flow:    cli -> [benchmark_commands] -> evaluate.fdia_timeline, fdia_graph -> fdia_report
Source:  design.md, section 6; docs/fdia-graph.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from gg_ray import provenance
from gg_ray.config import OUTSIDE_SUITE, ConfigError, RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate.fdia_graph import evaluate_judge
from gg_ray.evaluate.fdia_mapping import check_system, package
from gg_ray.evaluate.fdia_report import write_judge_report
from gg_ray.evaluate.fdia_timeline import DAYS, FRAMES_PER_DAY, demand_shape, make_timeline, profile_file
from gg_ray.evaluate.scoring import BlockInfo
from gg_ray.scenario.context import context_source
from gg_ray.score import find_registry, load_network, outputs_of

RUNS = Path("runs")


def evaluate_outside(
    model: str, grid: int | None, profile: Path | None, run: str | None, out: Path | None, days: int | None,
    with_data: Callable[[RunConfig], RunConfig],
) -> int:  # fmt: skip
    """The outside judge on a registered model: fdia-graph's attacks and arms; prints and writes both tables.

    Raises: JudgeError for an unknown grid, a missing package or a profile that cannot be read; ConfigError for days
            below 1; RegistryError for an unknown model or run.
    """
    torch.set_num_threads(1)
    package()
    system, days = check_system(grid), DAYS if days is None else days
    if days < 1:
        raise ConfigError(f"--days {days}: at least 1")
    registry = find_registry(RUNS, run)
    network, version = load_network(registry, model)
    config = with_data(load(str(registry.root.parent / "config.yaml")))
    frames = days * FRAMES_PER_DAY
    if profile is None:
        source = context_source(config.scenario.data_dir or None)
        load_T, shape = demand_shape(source, frames, config.seed), f"GB demand, {source.origin}"
    else:
        load_T, shape = profile_file(profile, frames), str(profile)
    folder = out or outputs_of(registry, RUNS) / OUTSIDE_SUITE / f"ieee{system}"
    timeline = make_timeline(system, load_T, shape, config.seed, folder / "cache", _say)
    tables, scans = evaluate_judge(timeline, network, config.scenario.scans, config.seed, _say)
    info = BlockInfo(
        fold=config.scenario.fold, model=version.id, seed=config.seed, commit=provenance.git_commit(),
        learner_steps=int(version.metrics.get("learner_steps") or 0),
        executor_calls=int(version.metrics.get("power_flow_solves") or 0),
    )  # fmt: skip
    for line in write_judge_report(folder, tables, timeline, scans.off, info, f"{config.name}, {version.id}"):
        _say(line)
    _say(f"\nwrote {folder}/results.json and report.md")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
