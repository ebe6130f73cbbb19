"""Calibration of a registered model on benign days of more grids: what `gg-ray calibrate` does.

Flow:    registry, benign validation days of a grid -> [site] -> a new version with the same weights
Source:  docs/calibration.md (budgets in incidents a day); verifier.md, section 7

A model's thresholds are of the grids that it was judged on. On another grid its scores stand elsewhere, so a budget of
incidents a day needs benign days of that grid; they come from the validation months, as all thresholds do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gg_ray import provenance
from gg_ray.calibration.budget import dedup_scans, incident_levels, threshold_for
from gg_ray.config import BALANCE_CASE, ConfigError, RunConfig
from gg_ray.evaluate.scoring import NetworkMethod
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.evaluate.verdicts import Calibration
from gg_ray.grid.cases import load_case
from gg_ray.registry import Registry, RegistryError, Version
from gg_ray.scenario.context import ContextSource
from gg_ray.score import load_model

LOG = logging.getLogger(__name__)


def calibrate(
    registry: Registry, reference: str, cases: Sequence[str], days: int, config: RunConfig, contexts: ContextSource,
    say: Callable[[str], None],
) -> Version:  # fmt: skip
    """Register the model anew with levels of benign days of more grids.

    Args:   days  of each grid;  config  of the run that trained it (scenario settings)
    Raises: RegistryError for an unknown version; ConfigError for the national balance graph, whose days are real
    """
    if BALANCE_CASE in cases:
        raise ConfigError(f"--case {BALANCE_CASE}: its thresholds come from the real record (gg-ray evaluate real-gb)")
    network, calibration, version = load_model(registry, reference)
    method = NetworkMethod("verifier", network)
    sizes = replace(config.evaluate, validation_days=days)
    levels, topology = dict(calibration.levels), dict(calibration.topology)
    for case in cases:
        timelines = SuiteMaker(case, config.scenario, sizes, contexts).timelines()
        quiet = [method.output(day.prepared).score_B for day in timelines.validation]
        if not quiet:
            raise RegistryError(f"{case}: no benign day passes the gates")
        levels[case] = incident_levels(quiet, dedup_scans(timelines.looks_per_day), timelines.looks_per_day)
        topology[case] = load_case(case).topology()
        once = threshold_for(levels[case], 1.0)
        above = float((np.concatenate(quiet) > calibration.implausible).mean())
        say(
            f"{case}: {len(quiet)} benign days; one incident a day at {once.value:.3g} ({once.source}); the model's own"
            f" threshold {calibration.implausible:.3g} is passed by {100 * above:.1f} % of looks"
        )
    return _registered(registry, version, replace(calibration, levels=levels, topology=topology), cases)


def _registered(registry: Registry, version: Version, calibration: Calibration, cases: Sequence[str]) -> Version:
    manifest = version.manifest
    added = f"\nCalibrated on benign days of {', '.join(cases)} as well: the weights are those of {version.id}.\n"
    return registry.register(
        registry.load_weights(version), architecture=version.architecture,
        feature_schema=int(manifest["feature_schema"]), metrics=version.metrics, run=str(manifest["run"]),
        seed=int(manifest["seed"]), commit=provenance.git_commit(), card=registry.card(version) + added,
        parent=version.id, extra={**manifest["extra"], "calibration": calibration.as_json()},
    )  # fmt: skip
