"""An equal tuning budget: every learned baseline gets as many trials, scored on validation windows alone.

Flow:    catalogue, series -> [tuning] -> bench.baselines -> catalogue.CHOSEN, SUPERVISED
Source:  selfplay.md, section 17.3 (16 trials each, validation fold); Bergstra and Bengio 2012 (random search)
Run:     gg-ray bench baselines --case case30 --trials 16
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from gg_ray.baselines.base import Detector
from gg_ray.baselines.catalogue import MAKERS
from gg_ray.records import F64
from gg_ray.verifier.features import Prepared

TRIALS = 16
"""Goal of selfplay.md; a space with fewer points is searched whole."""
_VIEWS = ("readings", "residuals", "both")
SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "mahalanobis": {"view": _VIEWS, "segments": (2, 4, 8)},
    "seasonal_z": {"prior": (0.5, 1.0, 2.0, 4.0, 8.0)},
    "cblof": {"view": _VIEWS, "clusters": (2, 4, 8)},
    "ocsvm": {"view": _VIEWS, "nu": (0.02, 0.1, 0.5)},
    "autoencoder": {"view": _VIEWS, "span": (2, 4, 8), "code": (4, 16, 32), "lr": (1e-3, 3e-3)},
    "gdn": {"view": _VIEWS, "span": (4, 6, 9), "dim": (16, 64), "top_k": (5, 15), "lr": (1e-3, 3e-3)},
    "mtad_gat": {"view": _VIEWS, "span": (5, 9), "hidden": (32, 64), "gamma": (0.8, 1.0), "lr": (1e-3, 3e-3)},
}
"""Settings that are tried, by detector."""
SUPERVISED_SPACE: dict[str, Sequence[Any]] = {
    "hidden": (32, 64, 96), "dropout": (0.0, 0.1), "lr": (1e-3, 3e-3, 6e-3)
}  # fmt: skip
"""The same for the supervised baselines, whose networks have these settings in common."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Validation windows of one metering plan with the family of each, "" for plausible ones."""

    prepared: Prepared
    families: Sequence[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings that were tried and the macro AUROC they reached."""

    settings: Mapping[str, Any]
    auroc: float


def points(space: Mapping[str, Sequence[Any]], trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Distinct settings of a space: all of them, or `trials` drawn without replacement where there are more."""
    every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if len(every) <= trials:
        return every
    return [every[i] for i in sorted(rng.choice(len(every), trials, replace=False).tolist())]


def macro_auroc(scores: Sequence[F64], groups: Sequence[Labelled]) -> float:
    """Mean over plans and families of the AUROC against all plausible windows of that plan; free of thresholds."""
    found = []
    for score, group in zip(scores, groups, strict=True):
        names = np.array(group.families)
        negative = score[names == ""]
        for family in sorted(set(group.families) - {""}):
            positive = score[names == family]
            truth = np.repeat([0, 1], [negative.size, positive.size])
            found.append(roc_auc_score(truth, np.concatenate([negative, positive])))
    return float(np.mean(found))


def search(
    name: str, fit: Sequence[Prepared], validation: Sequence[Labelled], trials: int, seed: int,
    make: Callable[..., Detector] | None = None,
) -> list[Trial]:  # fmt: skip
    """Trials of one detector, best first; ties keep the order of the space.

    Args:   name  of SPACES;  fit  benign training windows;  validation  windows of validation months and training
            families: no test window, held-out family or held-out grid is seen;  make  (default MAKERS[name])
    """
    build = make or MAKERS[name]
    out = []
    for settings in points(SPACES[name], trials, np.random.default_rng([seed, 1])):
        detector = build(**settings)
        detector.fit(fit, np.random.default_rng([seed, 2]))
        scores = [detector.score(group.prepared) for group in validation]
        out.append(Trial(settings, macro_auroc(scores, validation)))
    return sorted(out, key=lambda trial: -trial.auroc)
