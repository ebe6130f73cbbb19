"""Models at work: which one judges a grid, how it is loaded, tried, swapped and watched.

Flow:    registry aliases -> [models: load, try, swap] -> answers for serve.verifier
Source:  ray.md, section 6 (hot swap in the background, old weights kept, a bad push changes nothing);
         docs/adr/0024-models-at-work.md
Shapes:  as serve.asks

A set of models is immutable; a swap exchanges one reference between two batches, so no answer mixes versions, and each
answer carries the version that gave it.
"""

from __future__ import annotations

import logging
import math
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gg_ray.alarms import budget_threshold
from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.reasons import reasons
from gg_ray.evaluate.verdicts import Calibration
from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan, measure
from gg_ray.grid.ybus import branch_admittance, branch_flows
from gg_ray.records import CANNOT_TELL, Verdict, Window
from gg_ray.registry import Registry, RegistryError
from gg_ray.score import HEARD, SHIPPED, TOP, Judged, judge, load_model
from gg_ray.verifier.features import Featurizer
from gg_ray.verifier.model import Verifier
from serve.asks import Ask, Scored, Shown

LOG = logging.getLogger(__name__)
METERINGS = 8
"""Meterings whose factors a model keeps: strangers name any, and those of a large grid take much memory."""
GOLDEN_CASE, GOLDEN_SCANS = "case14", 16


@dataclass(frozen=True, slots=True)
class Model:
    """A registered Verifier that is ready to judge."""

    network: Verifier
    calibration: Calibration
    id: str
    digest: str
    run: str
    limits: Mapping[str, float] = field(default_factory=dict)
    featurizer: Featurizer = field(default_factory=Featurizer, repr=False)
    """Keeps the factors of the last meterings: making them costs as much as judging a window (docs/adr/0023)."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def national(self) -> bool:
        """Whether it is a model of the national balance graph and of nothing else."""
        return set(self.calibration.topology) == {balance.NAME}

    @property
    def name(self) -> str:
        """Run and version, as answers carry it."""
        return f"{self.run}/{self.id.rpartition('/')[2]}"

    def limit(self, case: str) -> float:
        """Logit above which a window is called implausible."""
        return self.limits.get(case, self.calibration.implausible)

    def judged(self, windows: Sequence[tuple[Window, Any]]) -> list[Judged]:
        """Windows as judged; raises what gg_ray.score.judge raises."""
        with self.lock:
            return list(
                judge(self.network, self.calibration, windows, self.name, HEARD, self.limits, self.featurizer)
            )  # fmt: skip


def load(registry: Registry, reference: str, budget: float = 0.0) -> Model:
    """A model from a registry, verified by hash, with thresholds for a budget of incidents a day where it is given.

    Raises: RegistryError as gg_ray.score.load_model, and for one that fails its own trial
    """
    network, calibration, version = load_model(registry, reference)
    limits: dict[str, float] = {}
    for case in calibration.levels if budget > 0 else ():
        try:
            limits[case] = budget_threshold(calibration, case, budget).value
        except CalibrationError as error:
            LOG.warning("%s: %s keeps the threshold of its registration: %s", version.id, case, error)
    digest = str(version.manifest["files"]["model.safetensors"]["sha256"])[:16]
    featurizer = Featurizer(network.config.jacobian, METERINGS)
    model = Model(network, calibration, version.id, digest, registry.root.parent.name, limits, featurizer)
    trial(model)
    return model


def trial(model: Model) -> None:
    """One quiet window through the whole path: what a swap and a health check ask of a model.

    Raises: RegistryError for an answer that is not finite or not a verdict
    """
    case = load_case(balance.NAME if model.national else GOLDEN_CASE)
    plan = balance.balance_plan(1_000) if model.national else draw_plan(case, 1_000, (0.5, 0.5), 0.0)
    quiet = measure(case, case.v0[None], channels=plan.channels)
    rng = np.random.default_rng(0)
    window = Window(
        case=case.name, plan_id=plan.plan_id, t0_ns=0, step_s=60.0, tap_E=case.tap, x_scale_E=np.ones(case.n_branch),
        z_TM=quiet + plan.sigma * rng.standard_normal((GOLDEN_SCANS, plan.size)),
        age_TM=np.zeros((GOLDEN_SCANS, plan.size), dtype=np.uint8),
        status_TE=np.ones((GOLDEN_SCANS, case.n_branch), dtype=np.uint8),
    )  # fmt: skip
    # another grid's fingerprint is for its own windows: the trial asks whether the weights work
    told = replace(model, calibration=replace(model.calibration, topology={})).judged([(window, plan)])[0].verdict
    if told.verdict == CANNOT_TELL or told.p_implausible is None or not math.isfinite(told.p_implausible):
        raise RegistryError(f"{model.id}: its trial on a quiet window gave {told.verdict!r} ({told.note})")


@dataclass(frozen=True, slots=True)
class Challenger:
    """A second model beside the champion.

    canary  share of grids that it answers for (by name, so a grid keeps its model);  shadow  share of batches that it
    judges as well, to be compared and not shown
    """

    model: Model
    canary: float = 0.0
    shadow: float = 0.0


@dataclass(slots=True)
class Comparison:
    """How the challenger judged what the champion judged."""

    windows: int = 0
    verdicts_differ: int = 0
    score_difference: float = 0.0
    """Sum of |difference| of logits."""

    def take(self, ours: Sequence[Judged], theirs: Sequence[Judged]) -> None:
        for one, other in zip(ours, theirs, strict=True):
            self.windows += 1
            self.verdicts_differ += one.verdict.verdict != other.verdict.verdict
            if math.isfinite(one.score) and math.isfinite(other.score):
                self.score_difference += abs(one.score - other.score)


class Models:
    """The models of a deployment, newest registry first; one set at a time."""

    def __init__(self, models: Sequence[Model], challenger: Challenger | None = None) -> None:
        if not models:
            raise RegistryError("no model to serve")
        self.models, self.challenger = tuple(models), challenger
        self.comparison = Comparison()
        self._asked = 0

    @classmethod
    def load(cls, registries: Sequence[str], budget: float = 0.0, reference: str = "champion") -> Models:
        """Champions of run folders and then the shipped ones.  Raises: RegistryError"""
        roots = [Path(run) / "registry" for run in registries] + [path / "registry" for path in shipped()]
        missing = [root.parent for root in roots if not root.is_dir()]
        if missing:
            raise RegistryError(f"{missing[0]}: no registry there; name a run folder (gg-ray models lists them)")
        return cls([load(Registry(root), reference, budget) for root in roots])

    def of(self, case: str) -> Model:
        """The model that judges a grid.  Raises: RegistryError where there is none."""
        for model in self.models:
            if model.national == (case == balance.NAME):
                return model
        raise RegistryError(
            f"no model for {case}: train one (gg-ray train --config gb-balance) and name its run with --run"
        )

    def answers_for(self, grid: str, case: str) -> Model:
        """The model of a grid, canary considered."""
        own, other = self.of(case), self.challenger
        if other is None or other.canary <= 0 or other.model.national != own.national:
            return own
        share = zlib.crc32(grid.encode()) / 2**32
        return other.model if share < other.canary else own

    @torch.inference_mode()
    def answer(self, asks: Sequence[Ask]) -> list[list[Scored]]:
        """Answers of every ask, in order. What cannot be judged says so by itself and harms nobody else."""
        self._asked += 1
        by_model: dict[int, tuple[Model, list[int]]] = {}
        for i, ask in enumerate(asks):
            try:
                model = self.answers_for(ask.grid, ask.case)
            except RegistryError:
                continue
            by_model.setdefault(id(model), (model, []))[1].append(i)
        out: list[list[Scored]] = [
            [Scored(verdict=None, error=f"no model judges {ask.case}")] * len(ask.end_ns) for ask in asks
        ]
        for model, mine in by_model.values():
            # neighbours of one grid model and metering share a pass of the network
            order = sorted(mine, key=lambda i: (asks[i].case, id(asks[i].plan)))
            given = [(window, asks[i].plan) for i in order for window in asks[i].windows()]
            judged = self._judge(model, given)
            at = 0
            for i in order:
                count = len(asks[i].end_ns)
                out[i] = [
                    _scored(model, one, asks[i], k) for k, one in enumerate(judged[at : at + count])
                ]  # fmt: skip
                at += count
        return out

    def _judge(self, model: Model, given: Sequence[tuple[Window, Any]]) -> list[Judged | str]:
        judged = _each(model, given)
        other = self.challenger
        if other is not None and other.shadow > 0 and other.model is not model:
            due = math.floor(self._asked * other.shadow) > math.floor((self._asked - 1) * other.shadow)
            if due and other.model.national == model.national:
                theirs = _each(other.model, given)
                both = [(a, b) for a, b in zip(judged, theirs, strict=True) if isinstance(a, Judged)]
                pairs = [(a, b) for a, b in both if isinstance(b, Judged)]
                self.comparison.take([a for a, _ in pairs], [b for _, b in pairs])
        return judged

    def verdicts(self, windows: Sequence[tuple[Window, Any]]) -> list[Verdict]:
        """Verdicts of windows from HTTP, in order.  Raises: RegistryError, WindowFileError"""
        by_model: dict[int, tuple[Model, list[int]]] = {}
        for i, (window, _) in enumerate(windows):
            model = self.of(window.case)
            by_model.setdefault(id(model), (model, []))[1].append(i)
        out: dict[int, Verdict] = {}
        for model, mine in by_model.values():
            judged = model.judged([windows[i] for i in mine])
            out |= {i: one.verdict for i, one in zip(mine, judged, strict=True)}
        return [out[i] for i in range(len(windows))]

    def about(self) -> list[dict[str, Any]]:
        """What GET /v1/models says."""
        out: list[dict[str, Any]] = [
            {
                "run": m.run, "version": m.id, "name": m.name, "digest": m.digest,
                "grids": "gb-balance" if m.national else "networks", "role": "champion",
            }
            for m in self.models
        ]  # fmt: skip
        if self.challenger is not None:
            m = self.challenger.model
            out.append({
                "run": m.run, "version": m.id, "name": m.name, "digest": m.digest, "role": "challenger",
                "grids": "gb-balance" if m.national else "networks", "canary": self.challenger.canary,
                "shadow": self.challenger.shadow, "windows": self.comparison.windows,
                "verdicts_differ": self.comparison.verdicts_differ,
                "mean_score_difference": self.comparison.score_difference / max(self.comparison.windows, 1),
            })  # fmt: skip
        return out


def shipped() -> list[Path]:
    """Run folders of the models that come with the package."""
    return [path for path in (SHIPPED, SHIPPED.with_name("shipped_balance")) if (path / "registry").is_dir()]


def _each(model: Model, given: Sequence[tuple[Window, Any]]) -> list[Judged | str]:
    """Every window as judged, or the reason why it cannot be."""
    try:
        return list(model.judged(given))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        if len(given) == 1:
            return [" ".join(str(error).split())[:300]]
    return [one for item in given for one in _each(model, [item])]


def _scored(model: Model, one: Judged | str, ask: Ask, k: int) -> Scored:
    if isinstance(one, str):
        return Scored(verdict=None, error=one)
    told = one.verdict
    if one.output is None or one.prepared is None or one.features is None:
        return Scored(verdict=told)
    places: dict[int, float] = {}
    why = None
    if told.verdict != "normal":
        node = one.node_N
        suspect = np.flatnonzero(node > 0) if told.verdict == "implausible" else np.zeros(0, dtype=np.int64)
        places = {int(i): round(float(node[i]), 3) for i in suspect}
        if one.score > ask.peak:
            top = suspect[np.argsort(-node[suspect], kind="stable")][:TOP].tolist()
            why = reasons(model.network, one.prepared, one.features, one.row, top)
    return Scored(
        verdict=told, score=one.score, threshold=model.limit(told.case), places=places, reasons=why,
        shown=_shown(one) if ask.shown[k] else None,
    )  # fmt: skip


def _shown(one: Judged) -> Shown:
    assert one.output is not None
    case, state = load_case(one.verdict.case), one.output.state_mu.double().numpy()
    v = np.asarray((1.0 + state[:, 0]) * np.exp(1j * state[:, 1]), dtype=np.complex128)
    flow = branch_flows(case, v[None], branch_admittance(case))[0][0].real * case.base_mva
    in_service = one.window.status_TE[-1].astype(bool)
    return Shown(
        node_N=torch.sigmoid(one.output.node).numpy().astype(np.float32),
        edge_E=torch.sigmoid(one.output.edge).numpy().astype(np.float32),
        v_N=np.abs(v).astype(np.float32), p_E=np.where(in_service, flow, 0.0).astype(np.float32),
    )  # fmt: skip
