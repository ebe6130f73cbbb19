"""The evaluation of a model: suites on the first training grid and on the held-out ones, against every baseline.

Flow:    train, cli evaluate -> [job] -> scoring, suites -> results.Results, what a report shows of each grid
Source:  selfplay.md, section 17; design.md, section 6

Grids are independent, so each is a job of its own (GridJob) that another process can take: actors.evaluation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gg_ray import provenance
from gg_ray.baselines import catalogue
from gg_ray.baselines.national import national_detectors
from gg_ray.calibration.budget import Levels, dedup_scans, incident_levels
from gg_ray.config import BALANCE_CASE, RunConfig, VerifierConfig, check_suite
from gg_ray.evaluate import metrics
from gg_ray.evaluate.report import Comparison
from gg_ray.evaluate.results import Block, Results
from gg_ray.evaluate.scoring import (
    BlockInfo,
    DetectorMethod,
    LastFeatures,
    Method,
    NetworkMethod,
    Output,
    Thresholds,
    affected,
    stop_check,
    timeline_block,
    window_block,
)
from gg_ray.evaluate.suites import SuiteMaker, WindowSuite
from gg_ray.evaluate.verdicts import Benign, Calibration, Confusion, calibrate, confusion, truths
from gg_ray.grid.meters import MeterPlan
from gg_ray.learner import load_numpy, new_verifier
from gg_ray.records import F64, Bool, Window
from gg_ray.scenario.context import ContextSource, context_source

CLASSICAL = ("kcl", "chi2", "lnr", "lnr_own", "lnr_scan", "innovation", "chi2_or_innovation")
_SAMPLES = 6
"""Windows of each metering plan that go into the sample file of a report."""

Weights: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class GridJob:
    """Everything that scoring one grid needs, small enough to be sent to another process."""

    config: RunConfig
    case: str
    suite: str
    info: BlockInfo
    verifier: VerifierConfig
    """Architecture of the networks."""
    networks: Mapping[str, Weights]
    """Weights by row of the table; the first is the model under test."""
    verifiers: Mapping[str, VerifierConfig] = field(default_factory=dict)
    """Architecture of the rows that have another one."""


@dataclass(slots=True)
class Exhibit:
    """What a report shows of one grid beside its table."""

    digest: str
    prob_B: F64
    """P(implausible) of every test window under the model."""
    implausible_B: Bool
    disturbed_B: Bool
    """Truth of every test window; a masked fault is both."""
    logits_2B: F64 | None
    """Logits of implausible and of disturbance, None where the model does not give the second."""
    sample: list[tuple[Window, MeterPlan]]
    place: tuple[F64, Bool] | None
    """Bus scores and truth of the implausible window that the model ranks highest."""


@dataclass(slots=True)
class GridResult:
    """What became of a GridJob."""

    case: str
    blocks: list[Block]
    exhibit: Exhibit
    calibration: F64
    """Scores of the model on benign validation windows."""
    disturbance: F64
    """Its disturbance scores on those of them without any disturbance; empty where it gives none."""
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Stop-check lines."""
    sizes: str = ""
    """One line for the console: how much was asked."""
    benign: list[Benign] = field(default_factory=list)
    """Benign validation windows with what their classes are made of."""
    levels: Levels | None = None
    """Of the model on benign validation days; None where no timeline was asked for or made."""


@dataclass(slots=True)
class Evaluation:
    """Everything a report needs."""

    results: Results
    comparisons: list[Comparison]
    notes: list[str]
    exhibits: dict[str, Exhibit]
    calibration: Calibration
    """Of the model, from the benign validation windows of all grids together."""


Spread: TypeAlias = Callable[[Sequence[GridJob]], Iterable[GridResult]]


def evaluate(
    config: RunConfig, networks: Mapping[str, Weights], *, learner_steps: int, executor_calls: int, model: str,
    note: Callable[[str], None] = lambda _text: None, suite: str | None = None, cases: Sequence[str] | None = None,
    verifier: VerifierConfig | None = None, spread: Spread | None = None,
    verifiers: Mapping[str, VerifierConfig] | None = None,
) -> Evaluation:  # fmt: skip
    """Run the suites.

    Args:   networks  weights by row of the table, the model under test first;  suite  quick (both), windows, timelines
            verifier  their architecture (the run's when not given);  verifiers  that of the rows that have another one
            spread  runs the jobs, results in any order; one after the other in this process when not given
    Raises: ConfigError for an unknown suite.
    """
    name = suite or config.evaluate.suite
    check_suite(name)
    info = BlockInfo(
        fold=config.scenario.fold, model=model, seed=config.seed, commit=provenance.git_commit(),
        learner_steps=learner_steps, executor_calls=executor_calls,
    )  # fmt: skip
    chosen = list(dict.fromkeys(cases or [_home(config), *config.evaluate.held_out_cases]))
    jobs = [
        GridJob(config=config, case=case, suite=name, info=info, verifier=verifier or config.verifier,
                networks=networks, verifiers=verifiers or {})
        for case in chosen
    ]  # fmt: skip
    found: dict[str, GridResult] = {}
    for result in (spread or serially)(jobs):
        note(result.sizes)
        found[result.case] = result
    ordered = [found[case] for case in chosen]
    calibration = calibrate(
        np.concatenate([grid.calibration for grid in ordered]), np.concatenate([grid.disturbance for grid in ordered]),
        [part for grid in ordered for part in grid.benign],
        {grid.case: grid.levels for grid in ordered if grid.levels is not None},
    )  # fmt: skip
    exhibits = {grid.case: grid.exhibit for grid in ordered}
    return Evaluation(
        Results(
            suite=name, results=tuple(block for grid in ordered for block in grid.blocks),
            machine=provenance.machine_info(), command=_command(), verdicts=_confusions(exhibits, calibration),
        ),
        [row for grid in ordered for row in grid.comparisons], [line for grid in ordered for line in grid.notes],
        exhibits, calibration,
    )  # fmt: skip


def _confusions(exhibits: Mapping[str, Exhibit], calibration: Calibration) -> tuple[Confusion, ...]:
    """Truth against verdict of every grid, at the thresholds that `gg-ray score` will use."""
    return tuple(
        confusion(case, truths(shown.implausible_B, shown.disturbed_B), calibration.verdicts(*shown.logits_2B))
        for case, shown in exhibits.items()
        if shown.logits_2B is not None
    )


def serially(jobs: Sequence[GridJob]) -> Iterator[GridResult]:
    """The jobs one after the other in this process."""
    contexts = context_source(jobs[0].config.scenario.data_dir or None)
    for job in jobs:
        yield run_grid(job, contexts)


def run_grid(job: GridJob, contexts: ContextSource) -> GridResult:
    """All suites of one grid."""
    return score_grid(job, contexts, methods_of(job))


def methods_of(job: GridJob) -> list[Method]:
    """Rows of the tables: the networks, which share their features, and the classical tests."""
    out = network_methods(job.networks, job.verifier, job.verifiers)
    if job.config.evaluate.baselines:
        seed, groups = job.config.seed, job.config.evaluate.baseline_groups
        national = job.case == BALANCE_CASE
        out += map(DetectorMethod, national_detectors(seed) if national else catalogue.detectors(groups, seed))
    return out


def network_methods(
    networks: Mapping[str, Weights], architecture: VerifierConfig, others: Mapping[str, VerifierConfig]
) -> list[Method]:
    """Networks as rows of the tables; they share the features of the windows asked about last."""
    features, out = LastFeatures(architecture.jacobian), list[Method]()
    for name, weights in networks.items():
        network = new_verifier(others.get(name, architecture), 0)
        load_numpy(network, weights)
        out.append(NetworkMethod(name, network, features))
    return out


def score_grid(job: GridJob, contexts: ContextSource, methods: Sequence[Method]) -> GridResult:
    """Suites of one grid under any methods, the model under test first."""
    config, suite, ours = job.config, job.suite, methods[0]
    maker = SuiteMaker(job.case, config.scenario, config.evaluate, contexts)
    windows = maker.windows()
    sizes = f"{job.case}: {sum(len(g.families) for g in windows.test)} test windows, digest {windows.digest}"
    block, scored = window_block(windows, methods, job.info)
    benign = scored.validation[ours.name]
    calm = [
        o.disturbance_B[rows] for o, rows in zip(benign, windows.ordinary, strict=True) if o.disturbance_B is not None
    ]
    out = GridResult(
        job.case, [], _exhibit(windows, scored.test[ours.name]), np.concatenate([o.score_B for o in benign]),
        np.concatenate(calm) if calm else np.zeros(0),
        benign=[Benign.of(part, o.score_B, o.node_BN) for part, o in zip(windows.validation, benign, strict=True)],
    )  # fmt: skip
    if suite in ("quick", "windows"):
        out.blocks.append(block)
        out.comparisons += comparisons(windows, scored.test, scored.thresholds, ours.name, config.seed)
        out.notes += stop_check(block, CLASSICAL)
    if suite in ("quick", "timelines") and job.case != BALANCE_CASE:  # its timelines are real: evaluate.real_gb
        timelines, quiet = maker.timelines(), list[F64]()
        days = timeline_block(
            timelines, methods, job.info, config.evaluate.incidents_per_day, scored.thresholds, quiet
        )  # fmt: skip
        if quiet:
            out.levels = incident_levels(quiet, dedup_scans(timelines.looks_per_day), timelines.looks_per_day)
        if days is None:
            out.notes.append(f"{job.case}: no day of validation, or of the test, passes the gates; timelines left out")
        else:
            sizes += f"; {days.budget['days']:.0f} test days, {100 * days.budget['prevalence']:.2f} % of looks attacked"
            out.blocks.append(days)
    out.sizes = sizes
    return out


def _exhibit(suite: WindowSuite, outputs: Sequence[Output]) -> Exhibit:
    prob: list[F64] = []
    logits: list[F64] = []
    sample: list[tuple[Window, MeterPlan]] = []
    best: tuple[float, tuple[F64, Bool]] | None = None
    for group, out in zip(suite.test, outputs, strict=True):
        prob.append(out.score_B if out.prob_B is None else out.prob_B)
        if out.disturbance_B is not None:
            logits.append(np.stack([out.score_B, out.disturbance_B]))
        picks = np.linspace(0, len(group.families) - 1, _SAMPLES).astype(int)
        sample += [(group.prepared.windows[i], group.prepared.plan) for i in picks]
        rows = [i for i, f in enumerate(group.families) if f]
        if out.node_BN is None or not rows:
            continue
        row = rows[int(np.argmax(out.score_B[rows]))]
        if best is None or out.score_B[row] > best[0]:
            best = float(out.score_B[row]), (out.node_BN[row], affected(group.labels[row], group.prepared.case))
    implausible = np.array([bool(f) for group in suite.test for f in group.families])
    disturbed = np.array([label.disturbance for group in suite.test for label in group.labels])
    return Exhibit(
        suite.digest, np.concatenate(prob), implausible, disturbed,
        np.concatenate(logits, axis=1) if logits else None, sample, best[1] if best else None,
    )  # fmt: skip


def _home(config: RunConfig) -> str:
    """The training grid that is evaluated: case30 where it was trained on, else the first."""
    return "case30" if "case30" in config.scenario.cases else config.scenario.cases[0]


def comparisons(
    suite: WindowSuite,
    outputs: Mapping[str, Sequence[Output]],
    thresholds: Mapping[str, Thresholds],
    ours: str,
    seed: int,
) -> list[Comparison]:
    """Paired bootstrap of macro balanced accuracy, ours minus every other method, thresholds from validation.

    Each window is its own episode (one program each), so windows are resampled; weights make the mean of the weighted
    hits the macro balanced accuracy.
    """
    families = np.array([f for g in suite.test for f in g.families])
    names, counts = np.unique(families, return_counts=True)
    attacked = int((names != "").sum())
    size = {n: c * (1 if n == "" else attacked) for n, c in zip(names.tolist(), counts.tolist(), strict=True)}
    weight = np.array([families.size / (2.0 * size[f]) for f in families.tolist()])
    hits: dict[str, F64] = {}
    for method, out in outputs.items():
        flagged = np.concatenate([o.score_B for o in out]) > thresholds[method].score
        hits[method] = weight * (flagged == (families != ""))
    return [
        Comparison(
            suite="windows", case=suite.case, figure="balanced_accuracy", than=method,
            difference=metrics.paired_difference_ci(hits[ours], theirs, np.random.default_rng(seed)),
        )
        for method, theirs in hits.items()
        if method != ours
    ]  # fmt: skip


def _command() -> str:
    return "gg-ray " + " ".join(sys.argv[1:]) if len(sys.argv) > 1 else "gg-ray train"
