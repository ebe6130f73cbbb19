"""Which networks the core benchmark asks: models of runs, their controls, untrained ones, and what attacks them.

Flow:    runs/NAME/registry -> [core_runs] -> evaluate.core_job
Source:  selfplay.md, section 17.3 (rows); docs/benchmark.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.config import BALANCE_CASE, ConfigError, RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate import results
from gg_ray.evaluate.core_job import CLASSICAL, RIVALS, CoreRun, Note, detector_scorers
from gg_ray.evaluate.core_plan import CoreSizes
from gg_ray.evaluate.core_score import Scorer
from gg_ray.evaluate.scoring import LastFeatures, NetworkMethod
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import Program
from gg_ray.registry import RegistryError
from gg_ray.scenario.context import context_source
from gg_ray.score import find_registry, load_network
from gg_ray.selfplay.exploiter import exploit
from gg_ray.verifier.model import Verifier

RUNS = Path("runs")
DETECTOR_SEED = 0
"""Of the random row and of what detectors draw: one for all folds, so that their cells serve all."""
BUDGET_MARGIN = 0.1
"""Largest relative difference of power-flow rows between a run and its control that passes as an equal budget."""
_ROW_OF_ARM = {"selfplay": results.VERIFIER, "uniform": results.UNIFORM, "plr": results.PLR}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run whose model is tested: its networks by row, an untrained one of its architecture, and what stands behind
    them."""

    key: str
    config: RunConfig
    about: Mapping[str, Any]
    networks: Mapping[str, Verifier]
    untrained: Verifier | None
    """None for a run of a control's arm: the run that it stands beside has one."""
    lacks: str = ""
    """What the run should have and has not, for the report."""

    @property
    def budget(self) -> dict[str, float]:
        """Learner steps and power-flow rows of training."""
        return {name: float(self.about[name]) for name in ("learner_steps", "executor_calls")}


class Benchmark:
    """Everything a process needs to score: scorers over networks held in memory, context source, exploiter."""

    def __init__(self, runs: Sequence[Run], sizes: CoreSizes, folder: Path) -> None:
        """Raises: RegistryError where two runs have one name, or one is called like the detectors."""
        self.runs, self.sizes, self.folder = list(runs), sizes, folder
        self.contexts = context_source(self.runs[0].config.scenario.data_dir or None)
        self.scorers = _scorers(self.runs, sizes)
        keys = [scorer.key for scorer in self.scorers]
        if len(set(keys)) < len(keys):
            raise RegistryError(
                f"suite core: runs {', '.join(run.key for run in self.runs)}: names must differ, and none may be"
                f" {CLASSICAL} or {RIVALS}: cells are named after runs"
            )

    def job(self, note: Note) -> CoreRun:
        """The resumable job over all of them."""
        return CoreRun(
            self.folder, self.sizes, self.contexts, self.scorers, note, DETECTOR_SEED, self._attack(note)
        )  # fmt: skip

    def _attack(self, note: Note) -> Callable[[Scorer, str, str, int], list[Program]]:
        """The exploiter of suite s7-adaptive, with the settings of the run that it attacks."""
        by_key = {run.key: run for run in self.runs}

        def attack(scorer: Scorer, method: str, case: str, per_family: int) -> list[Program]:
            run = by_key[scorer.key]
            network = run.networks[method]
            found = exploit(
                replace(run.config, verifier=network.config), to_numpy(network.state_dict()), case, self.contexts,
                calls=self.sizes.attacks, per_family=per_family,
            )  # fmt: skip
            first, last = found.p_bar
            note(
                f"exploiter against {method} of {scorer.key}: {found.executor_calls} power-flow rows, mean solve rate"
                f" of the Verifier {first:.3f} -> {last:.3f}"
            )
            return found.programs

        return attack


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


def loaded(
    names: Sequence[str], model: str, with_data: Callable[[RunConfig], RunConfig], sizes: CoreSizes
) -> list[Run]:  # fmt: skip
    """Runs by name, self-play ones first.

    Raises: ConfigError for a run that was trained on other grids than the preset asks about, or a control's run without
            a self-play run of its fold and seed.
    """
    found = sorted((_loaded(name, model, with_data, sizes) for name in names), key=_is_control)
    main = [run for run in found if not _is_control(run)]
    for run in found:
        if _is_control(run) and not any(_pair(run, other) for other in main):
            raise ConfigError(
                f"run {run.key}: trained as arm {run.config.selfplay.arm} of fold {run.about['fold']} with seed"
                f" {run.about['seed']}; name a self-play run of the same fold and seed beside it, or leave it out"
            )
    return found


def _loaded(name: str, model: str, with_data: Callable[[RunConfig], RunConfig], sizes: CoreSizes) -> Run:
    """The model of a run, its control where it has one, and an untrained network of the same architecture.

    A model that the promotion gate held back is asked all the same: leaving failures out would flatter the method.
    """
    registry = find_registry(RUNS, name)
    held_back = model == "champion" and model not in registry.aliases()
    network, version = load_network(registry, "latest" if held_back else model)
    config = with_data(load(str(registry.root.parent / "config.yaml")))
    if BALANCE_CASE in config.scenario.cases:
        raise ConfigError(f"run {name}: trained on {BALANCE_CASE}; its suite is real-gb")
    if strange := set(sizes.seen) - set(config.scenario.cases):
        raise ConfigError(
            f"run {name}: not trained on {', '.join(sorted(strange))}, which preset {sizes.name} asks about as known;"
            f" it was trained on {', '.join(config.scenario.cases)}"
        )
    row = _ROW_OF_ARM[config.selfplay.arm]
    networks, lacks = {row: network}, list[str]()
    if held_back:
        lacks.append(f"run {name}: no champion, asked is its latest model, {version.id}")
    if row == results.VERIFIER and (control := version.manifest["extra"].get("control")) is not None:
        try:
            networks[results.UNIFORM], _ = load_network(registry, control)
        except RegistryError as reason:  # the model of the package comes without its control
            lacks.append(f"run {name}: no row of its uniform control ({reason})")
    untrained = new_verifier(network.config, config.seed + 1) if row == results.VERIFIER else None
    about = {
        "fold": config.scenario.fold, "model": f"{name} {version.id}", "seed": config.seed,
        "commit": str(version.manifest.get("commit", "unknown")),
        "learner_steps": int(version.metrics.get("learner_steps") or 0),
        "executor_calls": int(version.metrics.get("power_flow_solves") or 0),
    }  # fmt: skip
    return Run(
        key=Path(name).name, config=config, about=about, networks=networks, untrained=untrained, lacks="; ".join(lacks)
    )  # fmt: skip


def _scorers(runs: Sequence[Run], sizes: CoreSizes) -> list[Scorer]:
    """Detectors, untrained networks (one per architecture and seed, whatever the fold), then the runs.

    All networks share the features of what they are asked about.
    """
    shared = LastFeatures(any(run.config.verifier.jacobian for run in runs))  # others do not read the block
    untrained: dict[str, Scorer] = {}
    own: list[Scorer] = []
    for run in runs:
        beside: tuple[str, ...] = ()
        if run.untrained is not None:
            mark = _fingerprint({results.UNTRAINED: run.untrained})
            key = f"untrained-{mark[:8]}"
            method = NetworkMethod(results.UNTRAINED, run.untrained, shared)
            untrained.setdefault(mark, Scorer(key=key, identity=mark, methods=(method,), about={}))
            beside = (key,)
        methods = tuple(NetworkMethod(name, network, shared) for name, network in run.networks.items())
        own.append(
            Scorer(key=run.key, identity=_fingerprint(run.networks), methods=methods, about=run.about, beside=beside)
        )
    return [*detector_scorers(sizes.name, DETECTOR_SEED), *untrained.values(), *own]


def _fingerprint(networks: Mapping[str, Verifier]) -> str:
    """Hash of all weights."""
    out = hashlib.sha256()
    for name, network in networks.items():
        out.update(name.encode())
        for key, value in sorted(to_numpy(network.state_dict()).items()):
            out.update(key.encode() + np.ascontiguousarray(value).tobytes())
    return out.hexdigest()


def _is_control(run: Run) -> bool:
    return results.VERIFIER not in run.networks


def _pair(run: Run, other: Run) -> bool:
    return all(run.about[name] == other.about[name] for name in ("fold", "seed"))


def unequal(runs: Sequence[Run]) -> list[str]:
    """Runs of a control's arm whose budget is not that of the run they stand beside, a line each."""
    lines = []
    for run in runs:
        for other in runs:
            if not _is_control(run) and _is_control(other) and _pair(run, other):
                lines += _difference(run, other)
    return lines


def _difference(run: Run, other: Run) -> list[str]:
    """What of a control's budget is not its rival's."""
    ours, theirs = run.budget, other.budget
    lines = []
    for name, margin in (("learner_steps", 0.0), ("executor_calls", BUDGET_MARGIN)):
        if abs(theirs[name] - ours[name]) > margin * ours[name]:
            lines.append(
                f"unequal budget: {name} {theirs[name]:.0f} of {other.key} against {ours[name]:.0f} of {run.key}:"
                " their difference is not that of the arms alone"
            )
    return lines
