"""A small fixed look at a Verifier while it trains: validation months, training families, unseen metering plans.

Flow:    selfplay weights -> [look] -> metrics eval/...
Source:  thresholds are not tuned here: skill is read at probability one half and as areas under curves
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gg_ray.config import RunConfig
from gg_ray.evaluate import metrics
from gg_ray.evaluate.scoring import NetworkMethod
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.grammar import training_families
from gg_ray.verifier.model import Verifier

_WINDOWS = 12


class QuickLook:
    """Balanced accuracy and AUROC on one small window set: the last training grid, validation months, unseen meters.

    Invariant: the same windows every time; held-out grids, test months and test thresholds are never touched.
    """

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        # A training grid: what people watch while they tune must not be a grid that tables call held out.
        case = config.scenario.cases[-1]
        sizes = replace(config.evaluate, windows=_WINDOWS)
        maker = SuiteMaker(case, config.scenario, sizes, contexts)
        self.families = training_families(config.scenario.fold)
        self.groups = maker.validation_groups(self.families, _WINDOWS)

    def look(self, network: Verifier) -> dict[str, float]:
        """eval/balanced_accuracy (at probability 1/2), eval/auroc and eval/auroc_FAMILY."""
        method = NetworkMethod("look", network)
        prob: list[float] = []
        family: list[str] = []
        for group in self.groups:
            out = method.output(group.prepared)
            assert out.prob_B is not None
            prob += out.prob_B.tolist()
            family += group.families
        p, names = np.array(prob), np.array(family)
        negative = p[names == ""]
        out_metrics = {
            "eval/balanced_accuracy": metrics.balanced_accuracy(negative, p[names != ""], 0.5),
            "eval/auroc": metrics.auroc(negative, p[names != ""]),
        }
        for name in self.families:
            if (names == name).any():
                out_metrics[f"eval/auroc_{name}"] = metrics.auroc(negative, p[names == name])
        return out_metrics
