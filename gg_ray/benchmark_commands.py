"""The benchmarks behind `gg-ray evaluate`: suite core, runs of all folds against the frozen suites, resumable; suite
fdia-graph, the outside judge.

Flow:    cli -> [benchmark_commands] -> evaluate.core_job, selfplay.exploiter -> core_report
         cli -> [benchmark_commands] -> evaluate.fdia_timeline, fdia_graph -> fdia_report
Source:  design.md, section 6; docs/benchmark.md, docs/fdia-graph.md
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gg_ray import provenance
from gg_ray.config import BALANCE_CASE, OUTSIDE_SUITE, ConfigError, RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate import results
from gg_ray.evaluate.core_claims import claims, flags, missing_folds, stop_check
from gg_ray.evaluate.core_job import CLASSICAL, CoreRun, Exploit, classical_scorer
from gg_ray.evaluate.core_plan import CoreSizes, sizes_of
from gg_ray.evaluate.core_report import CoreFindings, claim_lines, write_core_report
from gg_ray.evaluate.core_score import Scorer
from gg_ray.evaluate.core_tables import Tables
from gg_ray.evaluate.fdia_graph import evaluate_judge
from gg_ray.evaluate.fdia_mapping import check_system, package
from gg_ray.evaluate.fdia_report import write_judge_report
from gg_ray.evaluate.fdia_timeline import DAYS, FRAMES_PER_DAY, demand_shape, make_timeline, profile_file
from gg_ray.evaluate.scoring import BlockInfo, LastFeatures, NetworkMethod
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import Program
from gg_ray.registry import RegistryError
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.score import find_registry, load_network, outputs_of
from gg_ray.selfplay.exploiter import exploit
from gg_ray.verifier.model import Verifier

RUNS = Path("runs")
LOG = logging.getLogger(__name__)
DETECTOR_SEED = 0
"""Of the random row and of what detectors draw: one for all folds, so that their cells serve all."""


def evaluate_core(
    model: str, runs: str | None, preset: str, out: Path | None, with_data: Callable[[RunConfig], RunConfig]
) -> int:
    """The core suites on one model per run; prints the stop-check first, then progress, then the claims.

    Args:   runs  names or paths, separated by commas, or a pattern of names under runs/; one run per fold, or several
    Raises: ConfigError for an unknown preset, runs that are not there or were trained on another grid;
            SuiteChanged if the suites are not the frozen ones or the folder holds others.
    """
    torch.set_num_threads(1)
    sizes = sizes_of(preset)
    found = [_loaded(name, model, with_data, sizes) for name in run_names(runs, RUNS)]
    contexts = context_source(found[0].config.scenario.data_dir or None)
    folder = out or RUNS / f"core-{preset}"
    shared = LastFeatures(any(run.config.verifier.jacobian for run in found))  # others do not read the block
    scorers = [classical_scorer(sizes.name, DETECTOR_SEED), *(run.scorer(shared) for run in found)]
    _check_names([s.key for s in scorers])
    job = CoreRun(folder, sizes, contexts, scorers, _say, DETECTOR_SEED, _exploit(found, contexts, sizes))
    job.classical_first()
    tables = Tables(job.cells, sizes, scorers)
    checked = stop_check(tables)
    for line in checked:
        _say(line)
        LOG.info(line)
    for line in missing_folds(tables):
        _say(f"missing: {line}")
    job.complete()
    tables = Tables(job.cells, sizes, scorers)
    claimed = claims(tables, DETECTOR_SEED)
    rows = tables.rows
    wrong = flags(rows)
    frozen = job.manifest.reference
    report = write_core_report(
        folder,
        CoreFindings(
            sizes=sizes, origin=contexts.origin, rows=rows, claims=claimed, stop_check=checked, flags=wrong,
            missing=[*missing_folds(tables), *tables.absent, *(f"part {key}" for key in job.manifest.missing())],
            budgets={run.key: run.budget for run in found}, command="gg-ray " + " ".join(sys.argv[1:]),
            commit=provenance.git_commit(), seed=DETECTOR_SEED, machine=provenance.machine_info(),
            frozen="no frozen one to compare with" if frozen is None else "the same as the frozen one",
        ),
    )  # fmt: skip
    for line in (*claim_lines(claimed), *wrong):
        _say(line)
    _say(f"wrote {report.parent}/results.json, report.md, manifest.json and figures")
    return 0


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


class _Run:
    """A run whose model is tested: its networks and what stands behind them."""

    def __init__(
        self, key: str, config: RunConfig, about: Mapping[str, object], networks: Mapping[str, Verifier]
    ) -> None:
        self.key, self.config, self.about, self.networks = key, config, about, networks

    @property
    def budget(self) -> dict[str, float]:
        """Learner steps and power-flow rows of training."""
        return {name: float(str(self.about[name])) for name in ("learner_steps", "executor_calls")}

    def scorer(self, shared: LastFeatures) -> Scorer:
        """Its rows; all networks share the features of what they are asked about."""
        methods = tuple(NetworkMethod(name, network, shared) for name, network in self.networks.items())
        return Scorer(key=self.key, identity=self._identity(), methods=methods, about=self.about)

    def _identity(self) -> str:
        """Hash of all weights."""
        out = hashlib.sha256()
        for name, network in self.networks.items():
            out.update(name.encode())
            for key, value in sorted(to_numpy(network.state_dict()).items()):
                out.update(key.encode() + np.ascontiguousarray(value).tobytes())
        return out.hexdigest()


def run_names(runs: str | None, folder: Path) -> list[str]:
    """Runs by name, path or pattern.  Raises: ConfigError where a pattern fits none."""
    if not runs:
        raise ConfigError(
            "suite core: name the runs, one per fold: --run bench-f0,bench-f1,bench-f2,bench-f3, or --run 'bench-*'"
        )
    names: list[str] = []
    for part in (word.strip() for word in runs.split(",")):
        if any(mark in part for mark in "*?["):
            fitting = sorted(path.parent.name for path in folder.glob(f"{part}/registry"))
            if not fitting:
                raise ConfigError(f"--run {part!r}: no run of such a name under {folder}/ has a registry")
            names += fitting
        else:
            names.append(part)
    return list(dict.fromkeys(names))


def _loaded(name: str, model: str, with_data: Callable[[RunConfig], RunConfig], sizes: CoreSizes) -> _Run:
    """The model of a run, its control where it has one, and an untrained network of the same architecture."""
    registry = find_registry(RUNS, name)
    network, version = load_network(registry, model)
    config = with_data(load(str(registry.root.parent / "config.yaml")))
    if BALANCE_CASE in config.scenario.cases:
        raise ConfigError(f"run {name}: trained on {BALANCE_CASE}; its suite is real-gb")
    if strange := set(sizes.seen) - set(config.scenario.cases):
        raise ConfigError(
            f"run {name}: not trained on {', '.join(sorted(strange))}, which preset {sizes.name} asks about as known;"
            f" it was trained on {', '.join(config.scenario.cases)}"
        )
    networks = {results.VERIFIER: network}
    if (control := version.manifest["extra"].get("control")) is not None:
        networks[results.UNIFORM], _ = load_network(registry, control)
    networks[results.UNTRAINED] = new_verifier(network.config, config.seed + 1)
    about = {
        "fold": config.scenario.fold, "model": f"{name} {version.id}", "seed": config.seed,
        "commit": str(version.manifest.get("commit", "unknown")),
        "learner_steps": int(version.metrics.get("learner_steps") or 0),
        "executor_calls": int(version.metrics.get("power_flow_solves") or 0),
    }  # fmt: skip
    return _Run(Path(name).name, config, about, networks)


def _exploit(runs: Sequence[_Run], contexts: ContextSource, sizes: CoreSizes) -> Exploit:
    """The exploiter of suite s7-adaptive, with the settings of the run that it attacks."""
    by_key = {run.key: run for run in runs}

    def attack(scorer: Scorer, method: str, case: str, per_family: int) -> list[Program]:
        run = by_key[scorer.key]
        network = run.networks[method]
        found = exploit(
            replace(run.config, verifier=network.config), to_numpy(network.state_dict()), case, contexts,
            calls=sizes.attacks, per_family=per_family,
        )  # fmt: skip
        first, last = found.p_bar
        _say(
            f"exploiter against {method} of {scorer.key}: {found.executor_calls} power-flow rows, mean solve rate"
            f" of the Verifier {first:.3f} -> {last:.3f}"
        )
        return found.programs

    return attack


def _check_names(keys: Sequence[str]) -> None:
    """Cells are named after runs: two of one name, or one called like the detectors, would share files."""
    if len(set(keys)) < len(keys):
        raise RegistryError(f"suite core: runs {', '.join(keys[1:])}: names must differ, and none may be {CLASSICAL}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
