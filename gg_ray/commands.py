"""What the commands around training do: evaluate, score, export, models, promote, status.

Flow:    cli -> [commands] -> evaluate.job, score, registry, tracking
Source:  design.md, section 6
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gg_ray import provenance
from gg_ray.alarms import budget_threshold, incidents_of
from gg_ray.baselines import catalogue
from gg_ray.baselines.national import national_detectors
from gg_ray.calibration.heard import Heard
from gg_ray.config import (
    BALANCE_CASE,
    REAL_SUITE,
    ConfigError,
    RunConfig,
    VerifierConfig,
    check_cases,
    check_suite,
)
from gg_ray.config_io import load
from gg_ray.evaluate import results
from gg_ray.evaluate.job import Spread, Weights, evaluate, network_methods
from gg_ray.evaluate.real_gb import evaluate_real
from gg_ray.evaluate.real_report import write_real_report
from gg_ray.evaluate.report import ReportMeta, text_table, write_report
from gg_ray.evaluate.scoring import BlockInfo, DetectorMethod
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.publish import evaluation_figures, promotion_gate
from gg_ray.records import CANNOT_TELL, FOLDS
from gg_ray.registry import Registry, RegistryError, Version
from gg_ray.scenario.context import context_source
from gg_ray.score import (
    HEARD,
    SHIPPED,
    Judged,
    Network,
    as_json,
    find_registry,
    judge,
    load_exported,
    load_model,
    load_network,
    outputs_of,
)
from gg_ray.tracking import read_jsonl
from gg_ray.verifier.exported import export, manifest_of
from gg_ray.verifier.model import Verifier
from gg_ray.windows_io import WindowFileError, read_windows

LOG = logging.getLogger(__name__)
RUNS = Path("runs")
_SHOWN = ("loss/total", "gate/pass", "time/scenarios_per_s", "replay/items", "eval/balanced_accuracy", "eval/auroc")


def evaluate_model(
    model: str, suite: str, run: str | None, out: Path | None, cases: Sequence[str], windows: int | None,
    days: int | None, with_data: Callable[[RunConfig], RunConfig], spread: Spread | None = None,
) -> int:  # fmt: skip
    """Suites on a registered model; prints the tables, writes results.json, report.md and figures into `out`.

    Raises: ConfigError for a size below 1, an unknown suite or grid; RegistryError for an unknown model or run.
    """
    torch.set_num_threads(1)
    if suite != REAL_SUITE:
        check_suite(suite)
    elif cases or days is not None:
        raise ConfigError(f"suite {REAL_SUITE} has one grid and days of its own: leave --cases and --days out")
    registry = find_registry(RUNS, run)
    network, version = load_network(registry, model)
    config = with_data(load(str(registry.root.parent / "config.yaml")))
    if suite == REAL_SUITE and BALANCE_CASE not in config.scenario.cases:
        raise ConfigError(
            f"suite {REAL_SUITE}: {version.id} was trained on {', '.join(config.scenario.cases)}; train one with gg-ray"
            " train --config gb-balance"
        )
    check_cases(cases, "--cases")
    sizes = config.evaluate
    sizes = replace(
        sizes, windows=sizes.windows if windows is None else windows, days=sizes.days if days is None else days
    )  # fmt: skip
    config = replace(config, evaluate=sizes)
    untrained = new_verifier(network.config, config.seed + 1)
    rivals, verifiers = _rivals(registry, version)
    networks = {
        results.VERIFIER: to_numpy(network.state_dict()), **_control(registry, version, network.config),
        results.UNTRAINED: to_numpy(untrained.state_dict()), **rivals,
    }  # fmt: skip
    if suite == REAL_SUITE:
        folder = out or outputs_of(registry, RUNS) / REAL_SUITE
        return _evaluate_real(config, networks, version, network.config, folder, verifiers)
    found = evaluate(
        config, networks,
        learner_steps=int(version.metrics.get("learner_steps") or 0),
        executor_calls=int(version.metrics.get("power_flow_solves") or 0), model=version.id, suite=suite,
        cases=cases or None, note=lambda text: _say(text), verifier=network.config, spread=spread,
        verifiers=verifiers,
    )  # fmt: skip
    folder = out or outputs_of(registry, RUNS) / "evaluation"
    meta = ReportMeta(
        name=f"{config.name}, {version.id}", held_out_families=sorted(FOLDS[config.scenario.fold]),
        held_out_cases=config.evaluate.held_out_cases,
        facts={f"stop-check {i + 1}": line for i, line in enumerate(found.notes)},
    )  # fmt: skip
    for line in found.notes:
        _say(line)
    for block in found.results.results:
        _say(f"\n{block.suite} on {block.case}\n{text_table(block.rows)}")
    write_report(folder, found.results, None, evaluation_figures(folder, found), meta, found.comparisons)
    _say(f"\nwrote {folder}/results.json, report.md and its figures")
    return 0


def _evaluate_real(
    config: RunConfig, networks: Mapping[str, Weights], version: Version, architecture: VerifierConfig, folder: Path,
    verifiers: Mapping[str, VerifierConfig],
) -> int:  # fmt: skip
    """The suite on the real GB record: prints the tables and notes, writes results.json, report.md and figures.

    Raises: ConfigError without the data folder.
    """
    info = BlockInfo(
        fold=config.scenario.fold, model=version.id, seed=config.seed, commit=provenance.git_commit(),
        learner_steps=int(version.metrics.get("learner_steps") or 0),
        executor_calls=int(version.metrics.get("power_flow_solves") or 0),
    )  # fmt: skip
    methods = network_methods(networks, architecture, verifiers)
    methods += [DetectorMethod(detector) for detector in national_detectors(config.seed)]
    found = evaluate_real(config, methods, context_source(config.scenario.data_dir or None), info, _say)
    for block in found.blocks:
        _say(f"\n{block.suite} on {block.case}\n{text_table(block.rows)}")
    for line in found.notes:
        _say(line)
    write_real_report(folder, found, f"{config.name}, {version.id}")
    _say(f"\nwrote {folder}/results.json, report.md and its figures")
    return 0


def _control(registry: Registry, version: Version, architecture: VerifierConfig) -> dict[str, Weights]:
    """The uniform control that was trained beside a version, as a row; none where there is none, which is said."""
    named = version.manifest["extra"].get("control")
    if named is None:
        _say(f"{version.id} has no uniform control registered beside it: the tables have no such row")
        return {}
    control, _ = load_network(registry, named)
    if control.config != architecture:
        raise RegistryError(f"{named}: the control of {version.id}, but of another architecture; train them again")
    return {results.UNIFORM: to_numpy(control.state_dict())}


def _rivals(registry: Registry, version: Version) -> tuple[dict[str, Weights], dict[str, VerifierConfig]]:
    """Weights and architectures of the supervised baselines that were trained beside a version, by row."""
    known = version.manifest["extra"].get("rivals", {})
    # a manifest sorts its keys; the rows come in the order of the tables
    networks = {name: load_network(registry, known[name])[0] for name in catalogue.SUPERVISED if name in known}
    weights: dict[str, Weights] = {name: to_numpy(network.state_dict()) for name, network in networks.items()}
    return weights, {name: network.config for name, network in networks.items()}


def export_model(model: str, run: str | None, out: Path) -> int:
    """A registered Verifier with its calibration as an ONNX file and its manifest.

    Raises: RegistryError for an unknown model or run; ExportError for one that cannot be exported.
    """
    torch.set_num_threads(1)
    network, calibration, version = load_model(find_registry(RUNS, run), model)
    manifest = export(network, out, {"model": version.id, "calibration": calibration.as_json()})
    _say(f"{version.id} -> {out} ({manifest['file']['size'] / 2**20:.1f} MiB), {manifest_of(out).name}")
    _say(f"score with it: gg-ray score FILE --exported {out}")
    return 0


def score_files(
    files: Sequence[Path], model: str, run: str | None, heard: Heard = HEARD, incidents: bool = False,
    budget: float | None = None, exported: Path | None = None,
) -> int:  # fmt: skip
    """One JSON verdict per window of every file, in order; with incidents, one JSON incident instead of its windows.

    Args:   budget  incidents a day on benign days, in place of the threshold that the model was registered with
            exported  a file of export_model, which then judges instead of a registered model
    Raises: ConfigError without files; WindowFileError naming file and window; RegistryError for an unknown name;
            CalibrationError for a budget that the model's benign days do not tell; ExportError for a file that is not
            an exported model of this program.
    """
    if not files:
        raise ConfigError("score: name at least one file of windows (.parquet, .arrow or .json)")
    torch.set_num_threads(1)
    found = [(path, read_windows(path)) for path in files]
    network: Network
    registered: Verifier | None = None
    if exported is None:
        registered, calibration, version = load_model(find_registry(RUNS, run), model)
        network, name = registered, version.id
    else:
        network, calibration, name = load_exported(exported)
    if incidents and registered is None:
        raise ConfigError(
            "--incidents gives reasons by judging a window anew without its parts, which an exported model does not do:"
            " leave --exported or --incidents out"
        )
    limits: dict[str, float] = {}
    if budget is not None:
        for case in sorted({window.case for _, windows in found for window, _ in windows}):
            rule = budget_threshold(calibration, case, budget)
            limits[case] = rule.value
            LOG.warning(
                "%s: threshold %.3g for %g incidents a day, from %s of %.3g benign days; expect %.2g a day, give or"
                " take %.0f %%", case, rule.value, budget, rule.source, calibration.levels[case].days, rule.expected,
                100 * rule.relative_error,
            )  # fmt: skip
    judged: list[Judged] = []
    for path, windows in found:
        try:
            own = judge(network, calibration, windows, name, heard, limits)
            if incidents:
                judged += own
                continue
            lines = [as_json(one.verdict) for one in own]
        except WindowFileError as error:
            raise WindowFileError(f"{path.name}, {error}") from error
        for line in lines:  # a file is judged whole or not at all
            _say(line)
    silent = [one.verdict for one in judged if one.verdict.verdict == CANNOT_TELL]
    if silent:
        LOG.warning("%d of %d windows: cannot tell (%s)", len(silent), len(judged), silent[0].note)
    if registered is not None:
        for incident in incidents_of(registered, judged):
            _say(json.dumps(incident.as_json()))
    return 0


def list_models(run: str | None) -> int:
    """Versions, aliases and headline figures."""
    registry = find_registry(RUNS, run)
    names: dict[str, list[str]] = {}
    for alias, version_id in registry.aliases().items():
        names.setdefault(version_id, []).append(alias)
    versions = registry.list()
    if not versions:
        _say(f"no model is registered in {registry.root}; train one with gg-ray train")
    for version in versions:
        accuracy = version.metrics.get("balanced_accuracy")
        shown = f"{float(accuracy):.3f}" if accuracy is not None else "-"
        _say(f"{version.id:<16} balanced accuracy {shown:<6} {' '.join(names.get(version.id, []))}")
    return 0


def promote_version(reference: str, alias: str, run: str | None, force: bool) -> int:
    """Move an alias.

    Raises: RegistryError for an unknown name, a refusing gate, and for the shipped model: the package does not change.
    """
    registry: Registry = find_registry(RUNS, run)
    if registry.root.parent == SHIPPED:
        raise RegistryError("the model that comes with the package keeps its aliases; name a run of yours (--run NAME)")
    version = registry.resolve(reference)
    registry.promote(version, alias, gate=None if force else promotion_gate)
    _say(f"{alias} -> {version.id}")
    return 0


def calibrate_version(reference: str, run: str | None, cases: Sequence[str], days: int, alias: str) -> int:
    """Register a version anew with benign days of more grids, and move an alias to it.

    Raises: RegistryError as gg_ray.site.calibrate, and for the shipped model: the package does not change.
    """
    from gg_ray.site import calibrate

    registry = find_registry(RUNS, run)
    if registry.root.parent == SHIPPED:
        raise RegistryError("the model that comes with the package is not calibrated anew; name a run (--run NAME)")
    config = load(str(registry.root.parent / "config.yaml"))
    contexts = context_source(config.scenario.data_dir or None)
    version = calibrate(registry, reference, cases, days, config, contexts, _say)
    registry.promote(version, alias)
    _say(f"{alias} -> {version.id}")
    return 0


def show_status(run: str) -> int:
    """Last logged state of a run, how old it is, and its checkpoints.

    Raises: RegistryError if there is no such run.
    """
    places = [Path(run), RUNS / run] if run else [_latest_run()]
    # by its metrics: a folder here that only shares the run's name is not meant
    root = next((place for place in places if (place / "metrics.jsonl").is_file()), None)
    if root is None:
        raise RegistryError(f"no run at {' or '.join(map(str, places))}; start one with gg-ray train")
    metrics = root / "metrics.jsonl"
    rows = list(read_jsonl(metrics))
    if not rows:
        _say(f"{root}: started, no step finished yet")
        return 0
    last: dict[str, Any] = rows[-1]
    age = time.time() - metrics.stat().st_mtime
    _say(f"{root}: step {last['step']}, written {age:.0f} s ago")
    for name in _SHOWN:
        if last.get(name) is not None:
            _say(f"  {name:<24} {float(last[name]):.4g}")
    for path in sorted((root / "checkpoints").glob("step-*"), key=lambda p: (len(p.name), p.name)):
        _say(f"  checkpoint {path.name}")
    return 0


def _latest_run() -> Path:
    found = sorted(RUNS.glob("*/metrics.jsonl"), key=lambda p: p.stat().st_mtime)
    return found[-1].parent if found else RUNS / "laptop"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
