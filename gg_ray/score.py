"""Verdicts for windows, offline: the same judgement the live path will give.

Flow:    windows_io, registry -> [score] -> Verdict records
Source:  selfplay.md, section 6 (three-way verdict); verifier.md, section 7 (conformal p-value)
Shapes:  B windows, N buses, E branches
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.heard import Heard
from gg_ray.config import VerifierConfig
from gg_ray.evaluate.verdicts import Calibration
from gg_ray.grid import balance, balance_estimation
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.learner import load_numpy, new_verifier
from gg_ray.records import CANNOT_TELL, F64, TYPES, VERDICTS, Verdict, Window, end_ns
from gg_ray.registry import Registry, RegistryError, Version
from gg_ray.verifier import regions
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.exported import Exported, ExportError
from gg_ray.verifier.features import SCHEMA, Features, Featurizer, Prepared, batch_of
from gg_ray.verifier.model import Verifier, VerifierOutput
from gg_ray.windows_io import WindowFileError

LOG = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent / "shipped"
"""Run folder of the model that comes with the package; runs/shipped.sh makes it."""
TOP = 5
BATCH = 32
"""Most windows of one pass."""
HEARD = Heard()
Network = Callable[[GraphBatch], VerifierOutput]
"""A Verifier, or an exported one."""


def load_network(registry: Registry, reference: str) -> tuple[Verifier, Version]:
    """A registered Verifier, verified by hash.

    Raises: RegistryError for an unknown reference, a damaged file, features of another schema or an architecture of
            another program version.
    """
    version = registry.resolve(reference)
    manifest = version.manifest
    if int(manifest["feature_schema"]) != SCHEMA:
        raise RegistryError(f"{version.id}: feature schema {manifest['feature_schema']}, this program has {SCHEMA}")
    weights = registry.load_weights(version)
    try:
        network = new_verifier(VerifierConfig(**version.architecture), 0)
        load_numpy(network, weights)
    except (TypeError, RuntimeError) as error:  # a setting this program does not know; weights of other names or shapes
        reason = " ".join(str(error).split())
        raise RegistryError(
            f"{version.id}: its architecture is not one of this program ({reason}); use the gg-ray that registered it,"
            " or another version (gg-ray models)"
        ) from error
    return network.eval(), version


def load_model(registry: Registry, reference: str) -> tuple[Verifier, Calibration, Version]:
    """A registered Verifier with what verdicts need.

    Raises: RegistryError as load_network, and for a version without calibration or with one that cannot be read.
    """
    network, version = load_network(registry, reference)
    try:
        return network, Calibration.from_json(version.manifest["extra"]["calibration"]), version
    except KeyError as error:
        raise RegistryError(
            f"{version.id}: registered without calibration (no {error}), so it gives no verdicts; register it again"
            " (gg-ray train), or use another version (gg-ray models)"
        ) from error
    except CalibrationError as error:
        raise RegistryError(
            f"{version.id}: {error}; register it again (gg-ray train), or use another version (gg-ray models)"
        ) from error


@dataclass(slots=True)
class Judged:
    """One window as judged: what is told, and what incidents are made of."""

    verdict: Verdict
    window: Window
    score: float
    """Logit of implausible; -inf where nothing could be told."""
    output: VerifierOutput | None
    """What the network said of this window; the next three are None with it where nothing could be told."""
    prepared: Prepared | None
    features: Features | None
    row: int = 0
    """Of this window in both."""

    @property
    def node_N(self) -> F64:
        """Logits of the buses, empty where nothing could be told."""
        return np.zeros(0) if self.output is None else self.output.node.double().numpy()


def load_exported(path: Path) -> tuple[Exported, Calibration, str]:
    """An exported Verifier (gg-ray export) with its calibration and the version that it was made from.

    Raises: ExportError as verifier.exported.Exported, and for a manifest without calibration.
    """
    exported = Exported(path)
    try:
        return exported, Calibration.from_json(exported.manifest["calibration"]), str(exported.manifest["model"])
    except (CalibrationError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: its manifest gives no calibration ({error}); export it again") from error


def verdicts(
    network: Network, calibration: Calibration, windows: Sequence[tuple[Window, MeterPlan]], model: str,
    heard: Heard = HEARD,
) -> list[Verdict]:  # fmt: skip
    """One verdict per window, in order. Windows may mix grids, meters and lengths.

    Raises: WindowFileError as judge.
    """
    return [one.verdict for one in judge(network, calibration, windows, model, heard)]


def judge(
    network: Network, calibration: Calibration, windows: Sequence[tuple[Window, MeterPlan]], model: str,
    heard: Heard = HEARD, limits: Mapping[str, float] | None = None, featurizer: Featurizer | None = None,
) -> Iterator[Judged]:  # fmt: skip
    """Windows judged in order, neighbours of one grid and metering in one pass.

    Args:   limits      thresholds of implausible windows by grid, in place of the calibration's
            featurizer  of calls before, whose factors are used again; one of this call where there is none
    Raises: WindowFileError for a window that the network does not take (its length) or of a grid that is not the one
            that the model was calibrated on, by number.
    """
    featurizer = featurizer or Featurizer(isinstance(network, Verifier) and network.config.jacobian)
    alike: list[tuple[int, Window, MeterPlan]] = []

    def judged() -> list[Judged]:
        made = _alike(network, calibration, limits or {}, alike, featurizer, model)
        alike.clear()
        return made

    for index, (window, plan) in enumerate(windows):
        known, here = calibration.topology.get(window.case), load_case(window.case).topology()
        if known is not None and known != here:
            raise WindowFileError(
                f"window {index}: {model} was calibrated on another {window.case} (topology {known}, here {here});"
                " register a model on this one, or use the gg-ray that registered it"
            )
        reason = heard.missing(window)
        if alike and (reason is not None or len(alike) == BATCH or not _same_meters(alike[0], window, plan)):
            yield from judged()
        if reason is not None:
            yield _cannot_tell(window, model, reason)
        else:
            alike.append((index, window, plan))
    if alike:
        yield from judged()


def _same_meters(first: tuple[int, Window, MeterPlan], window: Window, plan: MeterPlan) -> bool:
    """Whether a window can be judged in one pass with others: same grid, length and meters."""
    _, other, meters = first
    if window.case != other.case or window.z_TM.shape != other.z_TM.shape or plan.plan_id != meters.plan_id:
        return False
    alike = np.array_equal(plan.channels, meters.channels) and np.array_equal(plan.sigma, meters.sigma)
    return plan is meters or alike


def _alike(
    network: Network, calibration: Calibration, limits: Mapping[str, float],
    given: Sequence[tuple[int, Window, MeterPlan]], featurizer: Featurizer, model: str,
) -> list[Judged]:  # fmt: skip
    """Windows of one grid, length and metering in one pass; one by one where it fails: an error names its own."""
    plan, windows = given[0][2], [window for _, window, _ in given]
    limit = limits.get(windows[0].case, calibration.implausible)
    calibration = replace(calibration, implausible=limit)
    alone = len(given) == 1 or not isinstance(network, Verifier)
    try:
        parts = [[window] for window in windows] if alone else [windows]
        return [one for part in parts for one in _pass(network, calibration, part, plan, featurizer, model)]
    except ValueError as error:
        if len(given) == 1:
            raise WindowFileError(f"window {given[0][0]}: {error}") from error
    return [one for item in given for one in _alike(network, calibration, limits, [item], featurizer, model)]


def _cannot_tell(window: Window, model: str, reason: str) -> Judged:
    told = Verdict(
        case=window.case, time_ns=end_ns(window), verdict=CANNOT_TELL, p_implausible=None, p_disturbance=None,
        p_value=None, type="none", buses=(), branches=(), onset_scan=-1, corrected={}, model=model, note=reason,
    )  # fmt: skip
    return Judged(told, window, -math.inf, None, None, None)


@torch.inference_mode()
def _pass(
    network: Network, calibration: Calibration, windows: Sequence[Window], plan: MeterPlan, featurizer: Featurizer,
    model: str,
) -> list[Judged]:  # fmt: skip
    prepared = featurizer.prepare(windows, plan)
    f = featurizer.features(prepared)
    case, count = prepared.case, len(windows)
    if count == 1:
        outputs = [regions.judge(network, batch_of(case.name, f))]
    else:
        step = max(1, regions.FULL_BATCH // case.n_bus)
        outputs = []
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            whole = regions.judge(network, batch_of(case.name, f, rows))
            outputs += [_row(whole, i, case) for i in range(rows.stop - rows.start)]
    out = []
    for row, (window, said) in enumerate(zip(windows, outputs, strict=True)):
        parts = (said.implausible, said.disturbance, said.type, said.node, said.edge, said.state_mu)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            why = "the network's answer is not finite: readings far outside what it takes"
            out.append(_cannot_tell(window, model, why))
            continue
        told = verdict_of(said, calibration, case, plan, prepared.r_BTM[row], end_ns(window), model)
        out.append(Judged(told, window, float(said.implausible[0]), said, prepared, f, row))
    return out


def _row(out: VerifierOutput, i: int, case: GridCase) -> VerifierOutput:
    """What the output for many windows of a grid says of one."""
    nodes, edges = slice(i * case.n_bus, (i + 1) * case.n_bus), slice(i * case.n_branch, (i + 1) * case.n_branch)
    return VerifierOutput(
        implausible=out.implausible[i : i + 1], disturbance=out.disturbance[i : i + 1],
        severity=out.severity[i : i + 1], type=out.type[i : i + 1], node=out.node[nodes], edge=out.edge[edges],
        state_mu=out.state_mu[nodes], state_logvar=out.state_logvar[nodes],
    )  # fmt: skip


def verdict_of(
    out: VerifierOutput, calibration: Calibration, case: GridCase, plan: MeterPlan, r_TM: F64, time_ns: int, model: str
) -> Verdict:
    """The verdict that an output for one window stands for.

    Args:    r_TM  normalised residuals of the window;  time_ns  of its last scan;  model  that signs the verdict
    """
    score = float(out.implausible[0])
    [found] = calibration.verdicts(out.implausible.double().numpy(), out.disturbance.double().numpy())
    verdict = VERDICTS[found]
    if verdict == "normal" and case.name == balance.NAME and balance_estimation.off_limits(r_TM):
        verdict = "disturbance"  # a violated limit needs no network (docs/gb-data.md)
    node, edge = out.node.double().numpy(), out.edge.double().numpy()
    suspect = verdict == "implausible"
    kind = TYPES[int(out.type[0, 1:].argmax()) + 1] if suspect else "none"
    buses = [int(i) for i in np.argsort(-node)[:TOP] if node[i] > 0] if suspect else []
    branches = [int(i) for i in np.argsort(-edge)[:TOP] if edge[i] > 0] if suspect else []
    names = case.branch_names
    state = out.state_mu.double().numpy()
    return Verdict(
        case=case.name, time_ns=time_ns, verdict=verdict,
        p_implausible=float(torch.sigmoid(out.implausible[0])), p_disturbance=float(torch.sigmoid(out.disturbance[0])),
        p_value=calibration.p_value(score, case.name, time_ns), type=kind,
        buses=tuple(case.bus_names[i] for i in buses), branches=tuple(names[i] for i in branches),
        onset_scan=_onset(r_TM, plan, buses, branches) if suspect else -1,
        corrected=corrected_values(case, state, buses), model=model,
        bus_p_values=calibration.bus_p_values(case, plan, node, buses, time_ns),
        p_class=calibration.p_class(case.name, time_ns),
    )  # fmt: skip


def corrected_values(case: GridCase, state_N2: F64, buses: Sequence[int]) -> dict[str, float]:
    """What the denoised state says of the suspected buses: |V| in p.u., on the national graph MW and Hz.

    Args: state_N2 |V| - 1 (p.u.) and angle (rad) at the last scan
    """
    if case.name != balance.NAME:
        return {f"{case.bus_names[i]}.v_pu": round(1.0 + float(state_N2[i, 0]), 5) for i in buses}
    v = ((1.0 + state_N2[:, 0]) * np.exp(1j * state_N2[:, 1])).astype(np.complex128)
    h = measure(case, v[None])[0]
    mw = h[case.n_bus : 2 * case.n_bus] * case.base_mva
    mw[[balance.STATION, balance.UNREPORTED]] *= -1.0  # loads, as the laws give them
    mw[balance.DEMAND] = h[4 * case.n_bus + balance.TIE_DEMAND] * case.base_mva
    return {
        f"{case.bus_names[i]}.hz" if i == balance.HUB else f"{case.bus_names[i]}.mw":
        round(balance.F0_HZ * (1.0 + float(state_N2[i, 0])), 3) if i == balance.HUB else round(float(mw[i]), 1)
        for i in buses
    }  # fmt: skip


def _onset(r_TM: F64, plan: MeterPlan, buses: Sequence[int], branches: Sequence[int]) -> int:
    """First scan at which a meter of the suspected places leaves three sigma; the first of all where none does."""
    layout = plan.layout
    places = [layout.bus_channels(b) for b in buses]
    places += [layout.branch_channels(e) for e in branches]
    if not places:
        return 0
    meters = plan.at(np.concatenate(places))
    hit = np.flatnonzero((np.abs(r_TM[:, meters]) > 3.0).any(axis=1)) if meters.size else np.zeros(0)
    return int(hit[0]) if hit.size else 0


def as_json(verdict: Verdict) -> str:
    """One JSON object per verdict, for `gg-ray score`."""
    fields: dict[str, Any] = asdict(verdict)
    return json.dumps(fields)


def find_registry(runs: Path, run: str | None) -> Registry:
    """The registry of a named run, or of the run that promoted last, or where nothing was trained the shipped one.

    Raises: RegistryError if there is none.
    """
    if run is not None:
        root = Path(run) if (Path(run) / "registry").is_dir() else runs / run
        if run == SHIPPED.name and not (root / "registry").is_dir():
            root = SHIPPED
        if not (root / "registry").is_dir():
            raise RegistryError(f"run {run!r} has no registry; train it first (gg-ray train --name {Path(run).name})")
        return Registry(root / "registry")
    found = sorted(runs.glob("*/registry"), key=_last_written)
    if not found:
        LOG.warning("no trained run under %s/: taking the model that comes with the package (--run shipped)", runs)
        return Registry(SHIPPED / "registry")
    return Registry(found[-1])


def outputs_of(registry: Registry, runs: Path) -> Path:
    """Folder for what is made with the models of a registry: its run; the package itself is never written into."""
    home = registry.root.parent
    return runs / SHIPPED.name if home == SHIPPED else home


def _last_written(registry: Path) -> int:
    """When something was registered or promoted last, ns. The folder's own time changes only when it is made."""
    newest = 0
    for path in (registry, *registry.rglob("*")):
        with suppress(FileNotFoundError):  # a temporary folder of a registration under way
            newest = max(newest, path.stat().st_mtime_ns)
    return newest
