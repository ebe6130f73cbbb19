"""Two detectors of PyOD behind our interface: clustering (CBLOF) and a one-class support vector machine.

Flow:    baselines.series -> [pyod] -> catalogue
Source:  PyOD 3.6 (Zhao, Nasrullah and Li 2019); CBLOF: He, Xu and Deng 2003; OCSVM: Schoelkopf et al. 2001
Shapes:  B windows, C channels, D = 3 C features of a window

Chosen by the TSB-AD-M table (mean VUS-PR .273 and .265, the best of those in PyOD that are not here already) and by
fitness: both score a window by what was fitted alone. ECOD and COPOD rank a window among the windows it is scored
with, so its score would depend on its neighbours; a minimum covariance determinant needs more windows than features.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.baselines.base import DetectorError, GroupDetector
from gg_ray.baselines.series import Channels, View, channels, enough
from gg_ray.records import F64
from gg_ray.verifier.features import Prepared

_LARGE = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Share of windows in large clusters, from the authors' on: PyOD refuses clusters too equal to be told apart by it."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted PyOD model and the scaling of its features."""

    channels: Channels
    mean_D: F64
    std_D: F64
    model: Any


class _PyodDetector(GroupDetector[Fitted]):
    """A PyOD model on mean, last value and largest step of every channel. It says nothing about places."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    @abc.abstractmethod
    def _fitted(self, x_BD: F64, seed: int) -> Any:
        """A fitted PyOD model.  Raises: ImportError without PyOD."""

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Fitted:
        enough(self.name, members)
        known = channels(members, self.view)
        x = np.concatenate([_summary(known, prepared) for prepared in members])
        mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
        try:
            model = self._fitted((x - mean) / std, int(rng.integers(2**31)))
        except ImportError as error:
            raise DetectorError(f"{self.name} needs PyOD ({error}); pip install -e '.[baselines]'") from error
        return Fitted(known, mean, std, model)

    def _score(self, model: Fitted, prepared: Prepared) -> F64:
        x = (_summary(model.channels, prepared) - model.mean_D) / model.std_D
        return np.asarray(model.model.decision_function(x), dtype=np.float64)


class Cblof(_PyodDetector):
    """Distance to the nearest large cluster of benign windows (cluster-based local outlier factor)."""

    name = "cblof"

    def __init__(self, view: View = "readings", clusters: int = 4) -> None:
        """Args: view what it reads;  clusters of the benign windows."""
        super().__init__(view)
        self.clusters = clusters

    def _fitted(self, x_BD: F64, seed: int) -> Any:
        from pyod.models.cblof import CBLOF

        for share in _LARGE:
            with contextlib.suppress(ValueError):
                return CBLOF(n_clusters=self.clusters, alpha=share, random_state=seed).fit(x_BD)
        raise DetectorError(f"{self.name}: {len(x_BD)} benign windows do not form {self.clusters} clusters; use fewer")


class Ocsvm(_PyodDetector):
    """Distance outside the smallest soft region that holds the benign windows (radial kernel)."""

    name = "ocsvm"

    def __init__(self, view: View = "readings", nu: float = 0.1) -> None:
        """Args: view what it reads;  nu largest share of benign windows left outside."""
        super().__init__(view)
        self.nu = nu

    def _fitted(self, x_BD: F64, seed: int) -> Any:
        from pyod.models.ocsvm import OCSVM

        return OCSVM(nu=self.nu).fit(x_BD)


def _summary(known: Channels, prepared: Prepared) -> F64:
    """[B, 3 C] mean, last value and largest step between scans of every channel."""
    x = known.of(prepared)
    step = np.abs(np.diff(x, axis=1)).max(axis=1, initial=0.0)
    return np.concatenate([x.mean(axis=1), x[:, -1], step], axis=1)
