"""Every baseline on the window suite of one grid: accuracy beside the seconds it takes; or the search for settings.

Flow:    evaluate.suites, baselines.catalogue, selfplay.loop -> [bench.baselines] -> gg-ray bench baselines
Source:  selfplay.md, section 17.3; docs/adr/0010-baselines.md (results)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gg_ray import provenance
from gg_ray.baselines import catalogue, tuning
from gg_ray.baselines.base import Detector
from gg_ray.baselines.deep import DeepDetector, Effort
from gg_ray.baselines.tuning import Labelled, Trial
from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate.results import MACRO
from gg_ray.evaluate.scoring import BlockInfo, DetectorMethod, LastFeatures, Method, NetworkMethod, Output, window_block
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.learner import Learner, load_numpy, new_verifier
from gg_ray.scenario.context import context_source
from gg_ray.scenario.grammar import training_families
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play
from gg_ray.verifier.features import Prepared

_LOOK = 16
"""Validation windows per training family in the search."""


class Timed:
    """A row of the table with the CPU seconds that its fit and its scores take."""

    def __init__(self, method: Method) -> None:
        self.name, self.method = method.name, method
        self.fit_s = self.score_s = 0.0
        self.windows = 0

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        began = time.process_time()
        self.method.prepare(fit, rng)
        self.fit_s = time.process_time() - began

    def output(self, prepared: Prepared) -> Output:
        began = time.process_time()
        out = self.method.output(prepared)
        self.score_s += time.process_time() - began
        self.windows += len(prepared.windows)
        return out


def run(
    case: str = "case30", seed: int = 0, windows: int = 40, steps: int = 150, trials: int = 0, fit_s: float = 30.0,
    groups: Sequence[str] = ("classical", "statistical", "deep", "supervised"),
) -> dict[str, Any]:  # fmt: skip
    """The table, or with trials > 0 the settings that a search on validation windows chooses.

    Args:    windows  per family of the suite;  steps  of the uniform game that the supervised rows learn from
             fit_s  CPU seconds that a fit of a deep row may take per metering plan
    Returns: by row: macro balanced accuracy and AUROC, CPU seconds of fit, CPU ms per scored window (places included)
    """
    config = replace(load("laptop"), seed=seed, mode="serial")
    config = replace(
        config, evaluate=replace(config.evaluate, windows=windows),
        selfplay=replace(config.selfplay, arm="uniform", steps=steps), actors=replace(config.actors, solvers=0),
    )  # fmt: skip
    maker = SuiteMaker(case, config.scenario, config.evaluate, context_source(None))
    return _search(config, maker, groups, trials, fit_s) if trials else _table(config, maker, groups, fit_s)


def _table(config: RunConfig, maker: SuiteMaker, groups: Sequence[str], fit_s: float) -> dict[str, Any]:
    rivals = catalogue.detectors(groups, config.seed)
    for rival in rivals:
        if isinstance(rival, DeepDetector):
            rival.effort = Effort(seconds=fit_s)
    methods = [Timed(DetectorMethod(detector)) for detector in rivals]
    trained_s = 0.0
    if "supervised" in groups:
        pupils = {name: choice.settings(config) for name, choice in catalogue.SUPERVISED.items()}
        game, trained_s = _played(config, {n: Learner(new_verifier(v, config.seed), o, config.selfplay.steps)
                                           for n, (v, o) in pupils.items()})  # fmt: skip
        features = LastFeatures()
        methods += [
            Timed(_network(n, learner, features)) for n, learner in (game.pupils | {"uniform": game.learner}).items()
        ]
    info = BlockInfo(
        fold=config.scenario.fold, model="baselines", seed=config.seed, commit=provenance.git_commit(),
        learner_steps=config.selfplay.steps, executor_calls=0,
    )  # fmt: skip
    block, _ = window_block(maker.windows(), methods, info)
    out: dict[str, Any] = {"case": maker.case.name, "windows": maker.sizes.windows, "uniform_training_s": trained_s}
    for method in methods:
        row = block.row(method.name, MACRO)
        assert row is not None
        out[method.name] = {
            "balanced_accuracy": _rounded(row.balanced_accuracy), "auroc": _rounded(row.auroc),
            "node_f1": _rounded(row.node_f1), "fit_s": round(method.fit_s, 2),
            "score_ms": round(1e3 * method.score_s / max(method.windows, 1), 3),
        }  # fmt: skip
    return out


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _network(name: str, learner: Learner, features: LastFeatures) -> NetworkMethod:
    network = new_verifier(learner.network.config, 0)
    load_numpy(network, learner.weights())
    return NetworkMethod(name, network, features)


def _played(config: RunConfig, pupils: Mapping[str, Learner]) -> tuple[Game, float]:
    """A finished uniform game that taught the pupils on the way, and its CPU seconds."""
    game = Game(config)
    game.pupils = dict(pupils)
    began = time.process_time()
    play(config, context_source(config.scenario.data_dir or None), game, Buffer(config), lambda _game, _buffer: None)
    return game, time.process_time() - began


def _search(config: RunConfig, maker: SuiteMaker, groups: Sequence[str], trials: int, fit_s: float) -> dict[str, Any]:
    fit = maker.windows().fit
    found = maker.validation_groups(training_families(config.scenario.fold), _LOOK)
    validation = [Labelled(group.prepared, group.families) for group in found]
    out: dict[str, Any] = {"case": maker.case.name}
    for name in (name for group in groups for name in catalogue.GROUPS[group] if name in tuning.SPACES):
        out[name] = _best(tuning.search(name, fit, validation, trials, config.seed, _maker(name, fit_s)))
    if "supervised" in groups:
        out |= _search_supervised(config, validation, trials)
    return out


def _maker(name: str, fit_s: float) -> Callable[..., Detector]:
    make = catalogue.MAKERS[name]
    deep = isinstance(make, type) and issubclass(make, DeepDetector)
    return functools.partial(make, effort=Effort(seconds=fit_s)) if deep else make


def _search_supervised(config: RunConfig, validation: Sequence[Labelled], trials: int) -> dict[str, Any]:
    """All trials learn from the draws of one game: a trial costs learner steps and no executor call."""
    chosen = tuning.points(tuning.SUPERVISED_SPACE, trials, np.random.default_rng([config.seed, 1]))
    pupils: dict[str, Learner] = {}
    for name, base in catalogue.SUPERVISED.items():
        for index, settings in enumerate(chosen):
            network, learner = replace(base, **settings).settings(config)
            pupils[f"{name}/{index}"] = Learner(new_verifier(network, config.seed), learner, config.selfplay.steps)
    game, _ = _played(config, pupils)
    features, out = LastFeatures(), dict[str, Any]()
    for name in catalogue.SUPERVISED:
        tried = []
        for index, settings in enumerate(chosen):
            method = _network(name, game.pupils[f"{name}/{index}"], features)
            scores = [method.output(group.prepared).score_B for group in validation]
            tried.append(Trial(settings, tuning.macro_auroc(scores, validation)))
        out[name] = _best(sorted(tried, key=lambda trial: -trial.auroc))
    return out


def _best(tried: Sequence[Trial]) -> dict[str, Any]:
    return {"settings": tried[0].settings, "auroc": round(tried[0].auroc, 3), "worst": round(tried[-1].auroc, 3),
            "trials": len(tried)}  # fmt: skip
