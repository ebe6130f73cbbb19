"""The evaluation of a model: suites on the first training grid and on the held-out ones, against every baseline.

Flow:    train, cli evaluate -> [job] -> scoring, suites -> results.Results, figures data
Source:  selfplay.md, section 17; design.md, section 6
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gg_ray.config import RunConfig
from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.report import Comparison
from gg_ray.evaluate.results import Block, Results
from gg_ray.evaluate.scoring import BlockInfo, Method, Output, stop_check, timeline_block, window_block
from gg_ray.evaluate.suites import SuiteMaker, TimelineSuite, WindowSuite
from gg_ray.records import F64
from gg_ray.scenario.context import ContextSource

SUITES = ("quick", "windows", "timelines")
CLASSICAL = ("kcl", "chi2", "lnr", "lnr_own", "innovation", "chi2_or_innovation")


class SuiteError(ValueError):
    """An unknown suite; the message names the known ones."""


@dataclass(slots=True)
class Evaluation:
    """Everything a report needs."""

    results: Results
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Stop-check lines and what was left out."""
    windows: dict[str, WindowSuite] = field(default_factory=dict)
    outputs: dict[str, dict[str, list[Output]]] = field(default_factory=dict)
    """Per case and method, one Output per window group."""
    calibration: F64 = field(default_factory=lambda: np.zeros(0))
    """Benign validation scores of the Verifier, pooled over grids (ascending)."""


def evaluate(
    config: RunConfig, contexts: ContextSource, methods: Sequence[Method], *, learner_steps: int, executor_calls: int,
    model: str, note: Callable[[str], None] = lambda _text: None, suite: str | None = None,
    cases: Sequence[str] | None = None,
) -> Evaluation:  # fmt: skip
    """Run the suites.

    Args:   methods  the first one is the model under test;  suite  quick (both), windows or timelines
    Raises: SuiteError for an unknown suite.
    """
    name = suite or config.evaluate.suite
    check_suite(name)
    info = BlockInfo(
        fold=config.scenario.fold, model=model, seed=config.seed, commit=results.git_commit(),
        learner_steps=learner_steps, executor_calls=executor_calls,
    )  # fmt: skip
    out = Evaluation(Results(results=(), machine=results.machine_info(), command=_command()))
    blocks: list[Block] = []
    calibration: list[F64] = []
    for case in cases or [_home(config), *config.evaluate.held_out_cases]:
        maker = SuiteMaker(case, config.scenario, config.evaluate, contexts)
        windows = maker.windows()
        note(f"{case}: {sum(len(g.families) for g in windows.test)} test windows, digest {windows.digest}")
        block, outputs, thresholds = window_block(windows, methods, info)
        if name in ("quick", "windows"):
            blocks.append(block)
            out.comparisons += comparisons(windows, outputs, thresholds, methods[0].name, config.seed)
            out.notes += stop_check(block, CLASSICAL)
        out.windows[case], out.outputs[case] = windows, outputs
        calibration += [methods[0].output(p).score_B for p in windows.validation]
        if name in ("quick", "timelines"):
            days: TimelineSuite = maker.timelines()
            note(f"{case}: {len(days.test)} test days, {100 * days.attacked_share:.2f} % of looks attacked")
            blocks.append(timeline_block(days, methods, info, config.evaluate.incidents_per_day))
    out.results = Results(results=tuple(blocks), machine=out.results.machine, command=out.results.command)
    out.calibration = np.sort(np.concatenate(calibration))
    return out


def check_suite(name: str) -> None:
    """Raises: SuiteError for an unknown suite, naming the known ones."""
    if name not in SUITES:
        raise SuiteError(f"unknown suite {name!r}; choose from {', '.join(SUITES)}")


def _home(config: RunConfig) -> str:
    """The training grid that is evaluated: case30 where it was trained on, else the first."""
    return "case30" if "case30" in config.scenario.cases else config.scenario.cases[0]


def comparisons(
    suite: WindowSuite, outputs: dict[str, list[Output]], thresholds: dict[str, float], ours: str, seed: int
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
        flagged = np.concatenate([o.score_B for o in out]) > thresholds[method]
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
