"""Every rival by name and group, with the settings that the search on validation windows chose.

Flow:    physics, lnr, statistical, distances, pyod, autoencoder, gdn, mtad_gat -> [catalogue] -> evaluate.job, bench
Source:  selfplay.md, section 17.3 (rows and tuning budget); docs/adr/0010-baselines.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gg_ray.baselines.autoencoder import AutoEncoder
from gg_ray.baselines.base import Detector, DetectorError
from gg_ray.baselines.distances import Mahalanobis, SeasonalZ
from gg_ray.baselines.gdn import Gdn
from gg_ray.baselines.lnr import Lnr
from gg_ray.baselines.mtad_gat import MtadGat
from gg_ray.baselines.physics import ChiSquare, KclResidual, LnrOwn, LnrScan, RandomScore
from gg_ray.baselines.pyod import Cblof, Ocsvm
from gg_ray.baselines.statistical import Innovation, IsolationForest, MaxOf, Pca
from gg_ray.config import EncoderName, GraphName, LearnerConfig, RunConfig, VerifierConfig

GROUPS: dict[str, tuple[str, ...]] = {
    "quick": (
        "random", "kcl", "chi2", "lnr", "lnr_own", "lnr_scan", "innovation", "chi2_or_innovation", "pca",
        "iforest",
    ),
    "classical": ("random", "kcl", "chi2", "lnr", "lnr_own", "lnr_scan", "innovation", "chi2_or_innovation"),
    "statistical": ("mahalanobis", "seasonal_z", "pca", "iforest", "cblof", "ocsvm"),
    "deep": ("autoencoder", "gdn", "mtad_gat"),
    "supervised": ("per_bus_mlp", "per_bus_cnn", "graphsage"),
}  # fmt: skip
"""Names by group, in the order of the tables; quick is what a training run shows beside its model."""


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A network in the Verifier's place: same features, heads and losses; what lies between them is what it lacks."""

    encoder: EncoderName
    graph: GraphName
    hidden: int = 64
    dropout: float = 0.0
    lr: float = 3e-3

    def settings(self, config: RunConfig) -> tuple[VerifierConfig, LearnerConfig]:
        """Architecture and optimisation of this baseline beside a run's Verifier."""
        network = replace(
            config.verifier, encoder=self.encoder, graph=self.graph, hidden=self.hidden, dropout=self.dropout
        )  # fmt: skip
        return network, replace(config.learner, lr=self.lr)


SUPERVISED: dict[str, Supervised] = {
    "per_bus_mlp": Supervised(encoder="patch", graph="none"),
    "per_bus_cnn": Supervised(encoder="cnn", graph="none"),
    "graphsage": Supervised(encoder="patch", graph="sage"),
}
"""Rows of the supervised group, trained beside the uniform control (selfplay.game.Game.pupils)."""

CHOSEN: dict[str, Mapping[str, Any]] = {
    "mahalanobis": {"view": "residuals", "segments": 2},
    "seasonal_z": {"prior": 0.5},
    "cblof": {"view": "residuals", "clusters": 4},
    "ocsvm": {"view": "residuals", "nu": 0.5},
    "autoencoder": {"view": "residuals"},
    "gdn": {"view": "residuals"},
    "mtad_gat": {"view": "residuals"},
}
"""Settings by detector; what is absent keeps the default of its class.

Best of `gg-ray bench baselines --case case14 --trials 16 --windows 10 --groups statistical` (seed 0, fc10455). The deep
ones have not been searched: they read what every statistical one that had the choice reads best.
"""

MAKERS: dict[str, Callable[..., Detector]] = {
    "kcl": KclResidual, "chi2": ChiSquare, "lnr": Lnr, "lnr_own": LnrOwn, "lnr_scan": LnrScan,
    "innovation": Innovation, "pca": Pca, "iforest": IsolationForest, "mahalanobis": Mahalanobis,
    "seasonal_z": SeasonalZ, "cblof": Cblof, "ocsvm": Ocsvm, "autoencoder": AutoEncoder, "gdn": Gdn,
    "mtad_gat": MtadGat,
}  # fmt: skip


def detectors(groups: Sequence[str], seed: int) -> list[Detector]:
    """New detectors of some groups, each once, in the order of the tables.

    The supervised group gives none: its rows are networks that need a training run (evaluate.supervised_baselines).

    Args:   groups  names of GROUPS;  seed  of the random row: what the others draw comes from the generator of fit
    Raises: DetectorError for an unknown group.
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise DetectorError(f"unknown group of baselines {unknown[0]!r}; choose from {', '.join(GROUPS)}")
    names = dict.fromkeys(name for group in groups for name in GROUPS[group])
    return [_make(name, seed) for name in names if name not in SUPERVISED]


def _make(name: str, seed: int) -> Detector:
    if name == "random":
        return RandomScore(seed)
    if name == "chi2_or_innovation":
        return MaxOf(name, [ChiSquare(), Innovation()])
    return MAKERS[name](**CHOSEN.get(name, {}))
