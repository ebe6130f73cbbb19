"""What every classical detector is: fitted on benign windows per grid and metering plan, then one score per window.

Flow:    verifier.features (Prepared) -> [base] -> every other module here -> evaluate
Source:  selfplay.md, section 17.3 (baselines); docs/adr/0010-baselines.md
Shapes:  B windows, T scans, N buses, M installed meters
"""

from __future__ import annotations

import abc
import zlib
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, I64
from gg_ray.verifier.features import Prepared

GroupKey = tuple[str, int, int]
"""Case name, plan number and fingerprint of the installed meters and their classes."""
DAY_NS = 86_400_000_000_000
Model = TypeVar("Model")


class DetectorError(ValueError):
    """A detector that cannot be fitted or has not been; the message names it, the grid, the plan and the way out."""


@runtime_checkable
class Detector(Protocol):
    """One score per window, higher = more implausible. Detectors see Prepared windows only, never labels."""

    name: str

    def fit(self, benign: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Learn from benign training windows; each (case, plan) among them replaces what was known of it."""
        ...

    def score(self, prepared: Prepared) -> F64:
        """[B] implausibility.  Raises: DetectorError for a (case, plan) it was not fitted on."""
        ...

    def node_scores(self, prepared: Prepared) -> F64 | None:
        """[B, N] suspicion of each bus, None where the method points nowhere."""
        ...


def group_key(prepared: Prepared) -> GroupKey:
    """Which model serves these windows."""
    plan = prepared.plan
    print_ = zlib.crc32(plan.sigma.tobytes(), zlib.crc32(plan.channels.tobytes()))
    return prepared.case.name, plan.plan_id, print_


class GroupDetector(abc.ABC, Generic[Model]):
    """A detector with one model per (case, plan).

    Invariant: score() never fits. Windows of an unseen group are refused, so that what a classical method was given
    is always written in the evaluation: benign windows of the very grid and plan, more than the zero-shot Verifier has.
    """

    name: str

    def __init__(self) -> None:
        self._models: dict[GroupKey, Model] = {}

    def fit(self, benign: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Build the model of every group among the benign windows; groups fitted before and absent here stay.

        Raises: DetectorError for an empty sequence or a group with too few windows for the method.
        """
        if not benign:
            raise DetectorError(f"{self.name}: no benign windows to fit on")
        groups: dict[GroupKey, list[Prepared]] = {}
        for prepared in benign:
            groups.setdefault(group_key(prepared), []).append(prepared)
        for key, members in groups.items():
            self._models[key] = self._build(members, rng)

    def score(self, prepared: Prepared) -> F64:
        """[B] implausibility, finite.  Raises: DetectorError for a (case, plan) it was not fitted on."""
        return self._score(self._model(prepared), prepared)

    def node_scores(self, prepared: Prepared) -> F64 | None:
        """[B, N] suspicion of each bus, None where the method points nowhere.  Raises: DetectorError as score."""
        return self._nodes(self._model(prepared), prepared)

    def _model(self, prepared: Prepared) -> Model:
        model = self._models.get(group_key(prepared))
        if model is None:
            known = ", ".join(sorted({f"{case} plan {plan}" for case, plan, _ in self._models})) or "nothing"
            raise DetectorError(
                f"{self.name}: not fitted on {prepared.case.name} plan {prepared.plan.plan_id} (fitted on {known}); "
                "call fit with benign windows of this grid and plan first"
            )
        return model

    @abc.abstractmethod
    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Model:
        """Model of one group from its benign windows (all of one case and plan)."""

    @abc.abstractmethod
    def _score(self, model: Model, prepared: Prepared) -> F64:
        """[B] score."""

    def _nodes(self, model: Model, prepared: Prepared) -> F64 | None:
        return None


def fresh_readings(prepared: Prepared) -> F64:
    """[B, T, M] readings measured in the scan they stand in, NaN for absent and aged ones (as r_BTM treats them)."""
    age = np.stack([window.age_TM for window in prepared.windows])
    return np.where(age == 0, prepared.z_BTM, np.nan)


def day_bins(prepared: Prepared, bins: int) -> I64:
    """[B, T] which of `bins` equal parts of the UTC day every scan lies in."""
    start = np.array([window.t0_ns for window in prepared.windows], dtype=np.int64)
    step = np.array([int(window.step_s * 1e9) for window in prepared.windows], dtype=np.int64)
    times = start[:, None] + step[:, None] * np.arange(prepared.z_BTM.shape[1])
    return np.asarray((times % DAY_NS) // (DAY_NS // bins))


def meter_bus(case: GridCase, plan: MeterPlan) -> I64:
    """[M] bus at which each installed meter stands: a branch meter belongs to the end it is mounted at."""
    at = np.concatenate([np.tile(np.arange(case.n_bus), 4), case.f_bus, case.f_bus, case.t_bus, case.t_bus])
    return np.asarray(at[plan.channels])


def bus_maximum(case: GridCase, plan: MeterPlan, value_BM: F64) -> F64:
    """[B, N] largest value among the meters of each bus, 0 where it has none. Values must be >= 0."""
    out = np.zeros((case.n_bus, value_BM.shape[0]))
    np.maximum.at(out, meter_bus(case, plan), value_BM.T)
    return out.T
