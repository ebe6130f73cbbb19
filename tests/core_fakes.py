"""A core benchmark small enough for tests: sizes, and methods whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gg_ray.baselines.physics import ChiSquare, LnrOwn, RandomScore
from gg_ray.evaluate.core_job import CLASSICAL, CoreRun, Exploit
from gg_ray.evaluate.core_plan import CoreSizes
from gg_ray.evaluate.core_score import Scorer
from gg_ray.evaluate.scoring import DetectorMethod, Output
from gg_ray.scenario.context import ClimatologySource
from gg_ray.verifier.features import Prepared

SOURCE = ClimatologySource()
TINY = CoreSizes(
    name="tiny", seen=("case14",), unseen=(), windows=2, negatives=12, validation=24, days=2, validation_days=1,
    stride=16, attacks=1, attacked_seeds=2,
)  # fmt: skip


class Residual:
    """The largest normalised residual times a gain, with a word on every question."""

    def __init__(self, name: str, gain: float = 1.0) -> None:
        self.name, self.gain = name, gain
        self.asked = 0

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        """Nothing."""

    def output(self, prepared: Prepared) -> Output:
        self.asked += 1
        score = self.gain * np.abs(prepared.r_BTM).max(axis=(1, 2))
        node = np.repeat(score[:, None], prepared.case.n_bus, axis=1) + np.arange(prepared.case.n_bus)
        return Output(score, prob_B=1 / (1 + np.exp(-score)), node_BN=node, type_B=np.ones(score.size, dtype=np.int64))


def classical() -> Scorer:
    """The two tests that define stealth, and chance; lnr is our own estimator's here: it needs no fit."""
    lnr = DetectorMethod(LnrOwn())
    lnr.name = "lnr"
    methods = (DetectorMethod(RandomScore(0)), DetectorMethod(ChiSquare()), lnr)
    return Scorer(key=CLASSICAL, identity="tests", methods=methods, about={})


def untrained() -> Scorer:
    """The untrained network of all seeds."""
    return Scorer(key="untrained-0", identity="u", methods=(Residual("untrained", 0.0),), about={})


def run_of(fold: int, *, gain: float = 1.0, identity: str = "a", seed: int = 0, arm: str = "") -> Scorer:
    """A run with a Verifier and its control, beside the untrained network; or a run of a control's arm."""
    methods = (Residual(arm, 0.7),) if arm else (Residual("verifier", gain), Residual("uniform", 0.5))
    about = {"fold": fold, "model": f"m{fold}", "seed": seed, "commit": "c", "learner_steps": 1, "executor_calls": 2}
    return Scorer(
        key=f"f{fold}s{seed}{arm}", identity=identity, methods=methods, about=about,
        beside=() if arm else ("untrained-0",),
    )  # fmt: skip


def job(
    folder: Path, scorers: list[Scorer], sizes: CoreSizes = TINY, exploit: Exploit | None = None
) -> tuple[CoreRun, list[str]]:
    """A job and what it says."""
    said: list[str] = []
    return CoreRun(folder, sizes, SOURCE, scorers, said.append, 0, exploit), said
