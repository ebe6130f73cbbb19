"""From an evaluation to files people read: report with figures, registered version, promotion.

Flow:    train -> [publish] -> runs/NAME/report/, runs/NAME/registry/
Source:  design.md, section 6 (run directory); selfplay.md, section 17.5 (figures)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray import provenance
from gg_ray.config import RunConfig, VerifierConfig
from gg_ray.evaluate import figures, results
from gg_ray.evaluate.job import Evaluation, Weights
from gg_ray.evaluate.report import ReportMeta, write_report
from gg_ray.evaluate.results import MACRO, Block
from gg_ray.grid.cases import load_case
from gg_ray.records import FOLDS
from gg_ray.registry import ModelCard, PromotionRefused, Registry, Version
from gg_ray.scenario.grammar import training_families
from gg_ray.selfplay.game import Game
from gg_ray.tracking import read_jsonl
from gg_ray.verifier.features import SCHEMA
from gg_ray.windows_io import write_windows

LOG = logging.getLogger(__name__)
ATTRIBUTION = (
    "Contains BMRS data © Elexon Limited copyright and database right 2019, 2021, 2023, 2024.",
    "Grids: pandapower (BSD-3; IEEE test cases); GBreducednetwork and GBnetwork, University of Edinburgh and "
    "Strathclyde (Bukhsh, McKinnon, Belivanis); the GB data carry no licence of their own.",
)
LIMITS = (
    "A power-flow-consistent attack by someone who holds every meter of an area cannot be seen in one scan: only time "
    "shows it.",
    "p-values are conformal on the validation windows of the evaluated grids; another grid needs its own calibration.",
    "Trained on simulated telemetry; real SCADA noise and delays differ.",
)
D_BINS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, np.inf)


def publish(
    out: Path, config: RunConfig, game: Game, evaluation: Evaluation, trained_s: float,
    beside: Mapping[str, Weights] | None = None, verifiers: Mapping[str, VerifierConfig] | None = None,
) -> str:  # fmt: skip
    """Write the report, register the model (and what was trained beside it), promote it if it earned it.

    Args:    beside  weights of the uniform control and the supervised baselines by row;  verifiers  architecture of
             those that have another one than the run

    Returns: one line for the console.
    """
    meta = ReportMeta(
        name=config.name, held_out_families=sorted(FOLDS[config.scenario.fold]),
        held_out_cases=config.evaluate.held_out_cases, gates=dict(game.counters.rates()),
        facts={
            "training time, s": round(trained_s, 1), "learner steps": game.step, "power-flow solves": game.solves,
            "programs": game.programs, "windows inserted": game.inserted, "mode": config.mode,
            "arm": config.selfplay.arm, "reward": config.selfplay.reward, "gates": config.scenario.gates,
            **{f"stop-check {i + 1}": line for i, line in enumerate(evaluation.notes)},
        },
    )  # fmt: skip
    folder = out / "report"
    drawn = training_figures(folder, game, out / "metrics.jsonl") | evaluation_figures(folder, evaluation)
    write_report(folder, evaluation.results, out / "metrics.jsonl", drawn, meta, evaluation.comparisons)
    _sample_file(folder, evaluation)
    registry = Registry(out / "registry")
    # before the model, so that `latest` is the model
    others = {
        row: _register_rival(registry, row, weights, (verifiers or {}).get(row, config.verifier), config, evaluation)
        for row, weights in (beside or {}).items()
    }
    version = _register(registry, config, game, evaluation, others)
    try:
        registry.promote(version, "champion", gate=promotion_gate)
        return f"registered {version.id} and promoted it to champion"
    except PromotionRefused as refusal:
        return f"registered {version.id}; not promoted: {refusal}"


def promotion_gate(candidate: Version, current: Version | None) -> list[str]:
    """Reasons against promotion: no calibration, not above the untrained and random rows, or clearly below the present
    champion.
    """
    if "calibration" not in candidate.manifest.get("extra", {}):
        return ["it was registered without calibration, so it could give no verdict"]
    own = _measured(candidate, "balanced_accuracy")
    if own is None:
        return ["no balanced accuracy was measured; evaluate with the window suite"]
    against = []
    for row in ("untrained", "random"):
        floor = _measured(candidate, row)
        if floor is not None and own <= floor:
            against.append(f"balanced accuracy {own:.3f} is not above the {row} row ({floor:.3f})")
    held = _measured(current, "balanced_accuracy") if current is not None else None
    if held is not None and own < held - 0.01:
        against.append(f"balanced accuracy {own:.3f} is below the champion's {held:.3f}")
    return against


def _measured(version: Version, name: str) -> float | None:
    """A figure of a registered version, None where its evaluation did not give it."""
    value = version.metrics.get(name)
    return None if value is None else float(value)


def _register(
    registry: Registry, config: RunConfig, game: Game, evaluation: Evaluation, beside: Mapping[str, Version]
) -> Version:
    rows = _macro_rows(evaluation)
    measured: dict[str, float | int | str | None] = {}
    for row in rows:
        name = "balanced_accuracy" if row["method"] == results.VERIFIER else str(row["method"])
        if row["balanced_accuracy"] is not None:
            measured[name] = float(row["balanced_accuracy"])
    measured |= {"learner_steps": game.step, "power_flow_solves": game.solves}
    extra: dict[str, Any] = {
        "calibration": evaluation.calibration.as_json(),
        "digest": {case: shown.digest for case, shown in evaluation.exhibits.items()},
    }
    rivals = {row: rival.id for row, rival in beside.items() if row != results.UNIFORM}
    if results.UNIFORM in beside:
        extra["control"] = beside[results.UNIFORM].id
    if rivals:
        extra["rivals"] = rivals
    return registry.register(
        game.learner.weights(), architecture=asdict(config.verifier), feature_schema=SCHEMA, metrics=measured,
        run=config.name, seed=config.seed, commit=provenance.git_commit(),
        card=ModelCard(
            summary=f"Verifier of run {config.name}: {config.selfplay.arm} training, fold {config.scenario.fold}.",
            rows=rows, **_provenance(config),
        ),
        extra=extra,
    )  # fmt: skip


def _register_rival(
    registry: Registry, row: str, weights: Weights, architecture: VerifierConfig, config: RunConfig,
    evaluation: Evaluation,
) -> Version:  # fmt: skip
    """The uniform control (alias control) or a supervised baseline (no alias) as a version of its own.

    An evaluation can then repeat its rows.
    """
    rows = _macro_rows(evaluation)
    own = next((found for found in rows if found["method"] == row), None)
    kind = "the same network" if row == results.UNIFORM else f"the baseline {row}"
    version = registry.register(
        weights, architecture=asdict(architecture), feature_schema=SCHEMA,
        metrics={} if own is None else {"balanced_accuracy": own["balanced_accuracy"]},
        run=config.name, seed=config.seed, commit=provenance.git_commit(),
        card=ModelCard(
            summary=f"Control of run {config.name}, not for service: {kind} with as many learner steps,"
            " trained on uniform scenarios (same executor, gates and twins) instead of self-play. It has no"
            " calibration, so it gives no verdicts; it is kept so that gg-ray evaluate can put its rows beside the"
            " Verifier's.",
            rows=rows, **_provenance(config),
        ),
    )  # fmt: skip
    if row == results.UNIFORM:
        registry.promote(version, "control")
    return version


def _provenance(config: RunConfig) -> dict[str, Any]:
    """What the cards of one run share."""
    return {
        "trained_on": [*config.scenario.cases, f"families {', '.join(training_families(config.scenario.fold))}"],
        "held_out_families": sorted(FOLDS[config.scenario.fold]), "held_out_grids": config.evaluate.held_out_cases,
        "limits": LIMITS, "attribution": ATTRIBUTION,
    }  # fmt: skip


def _macro_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    block = _headline(evaluation)
    return [asdict(row) for row in block.rows if row.family == MACRO] if block else []


def _headline(evaluation: Evaluation) -> Block | None:
    """The block that decides promotion: windows of the last (held-out) grid."""
    found = [b for b in evaluation.results.results if b.suite == "windows"]
    return found[-1] if found else None


def _sample_file(folder: Path, evaluation: Evaluation) -> None:
    """A few held-out windows as a file, so that `gg-ray score` can be tried at once."""
    samples = [item for shown in evaluation.exhibits.values() for item in shown.sample]
    write_windows(folder / "windows.parquet", samples)


def training_figures(folder: Path, game: Game, metrics_path: Path) -> dict[str, Path | str]:
    """Figures of the training by caption; one without data is the reason for that, which is logged as well."""
    rows = list(read_jsonl(metrics_path)) if metrics_path.exists() else []
    keys = ["loss/total", "loss/implausible", "loss/node", "eval/balanced_accuracy", "eval/auroc", "gate/pass",
            "selfplay/median_d_eff", "selfplay/effective_cells", "solver/nll_per_dim"]  # fmt: skip
    frontier = list(game.frontier)
    families = training_families(game.config.scenario.fold)
    counts = np.zeros((len(families), len(D_BINS) - 1), dtype=np.int64)
    for _, d_eff, _, family in frontier:
        if family in families and d_eff >= D_BINS[0]:
            counts[families.index(family), np.searchsorted(D_BINS[1:-1], d_eff, side="right")] += 1
    steps = [r["step"] for r in rows if "gate/G1" in r]
    rates = {g: [r[f"gate/{g}"] for r in rows if "gate/G1" in r] for g in ("G1", "G2", "G3", "G4", "G5", "G6", "pass")}
    return _drawn(
        {
            "Learning curves": lambda: figures.learning_curves(rows, folder / "learning.png", keys=keys),
            "Detectability of proposed scenarios against skill over time; no method can exceed the curve": (
                lambda: figures.deff_vs_pbar(
                    [f[1] for f in frontier], [f[2] for f in frontier], [f[0] for f in frontier],
                    folder / "frontier.png",
                )
            ),
            "Coverage: gated programs by family and detectability": (
                lambda: figures.coverage(counts, families, D_BINS, folder / "coverage.png")
            ),
            "Share of programs that each gate stops, and share that passes": (
                lambda: figures.gate_rates(steps, rates, folder / "gates.png")
            ),
        }
    )  # fmt: skip


def evaluation_figures(folder: Path, evaluation: Evaluation) -> dict[str, Path | str]:
    """Figures of every evaluated grid by caption, as training_figures."""
    return _drawn(
        {
            f"{case}: {caption}": draw
            for case in evaluation.exhibits
            for caption, draw in _case_figures(folder, evaluation, case)
        }
    )


def _drawn(drawers: Mapping[str, Callable[[], Path]]) -> dict[str, Path | str]:
    out: dict[str, Path | str] = {}
    for caption, draw in drawers.items():
        try:
            out[caption] = draw()
        except figures.FigureError as reason:
            LOG.warning("figure %r is not drawn: %s", caption, reason)
            out[caption] = str(reason)
    return out


def _case_figures(folder: Path, evaluation: Evaluation, case: str) -> list[tuple[str, Callable[[], Path]]]:
    """Captions and drawers of the figures of one evaluated grid."""
    shown, curve = evaluation.exhibits[case], folder / f"reliability_{case}.png"
    out: list[tuple[str, Callable[[], Path]]] = [
        ("reliability of P(implausible)", lambda: figures.reliability(shown.prob_B, shown.implausible_B, curve)),
        ("localisation in the implausible window that the model ranks highest", lambda: _map(folder, evaluation, case)),
    ]
    rows = [b.rows for b in evaluation.results.results if b.suite == "windows" and b.case == case]
    if rows:
        caption, path = "recall at 5 % false positives by family and method", folder / f"recall_{case}.png"
        out.insert(0, (caption, lambda: figures.family_method_heatmap(rows[0], path)))
    return out


def _map(folder: Path, evaluation: Evaluation, case_name: str) -> Path:
    """The grid with the Verifier's bus scores for the implausible window that it ranks highest."""
    place, case = evaluation.exhibits[case_name].place, load_case(case_name)
    if place is None:
        raise figures.FigureError("no implausible window")
    score, truth = 1.0 / (1.0 + np.exp(-place[0])), place[1]
    ends = np.stack([case.f_bus, case.t_bus])
    return figures.grid_map(case.layout, ends, score, truth, folder / f"map_{case_name}.png")
