"""Does the Jacobian block pay? The same Verifier with and without it, on the same uniformly drawn windows.

Flow:    uniform programs (training months, case14 and case30) -> learner; window suite of case39 (test months, meters,
         families and grid never trained on) -> thresholds from its benign validation windows -> one line per network
Run:     python benchmarks/jacobian_ablation.py --seed 0        # about two CPU minutes on one thread
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gg_ray.config import EvaluateConfig, LearnerConfig, RunConfig, ScenarioConfig, VerifierConfig
from gg_ray.evaluate import metrics
from gg_ray.evaluate.scoring import LastFeatures, NetworkMethod, affected, thresholds_of
from gg_ray.evaluate.suites import SuiteMaker, WindowSuite
from gg_ray.grid.cases import GridCase
from gg_ray.learner import Learner, load_numpy, new_verifier
from gg_ray.records import Bool, Experience, Program
from gg_ray.scenario.context import context_source
from gg_ray.scenario.grammar import Stratum, training_families
from gg_ray.selfplay.rollout import Rollout
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static

TRAINING, HELD_OUT = ("case14", "case30"), "case39"
PROGRAMS = 25
"""Programs per call; a call takes one stratum of one grid under one metering plan."""


def training_windows(rounds: int, seed: int) -> list[Experience]:
    """Gated windows and twins of uniform programs: each round one call per family, and as many plausible ones."""
    scenario = ScenarioConfig(cases=TRAINING, realisations=1, recheck_share=0.0)
    config = RunConfig(scenario=scenario, verifier=VerifierConfig(jacobian=True))
    rollout = Rollout(config, context_source(None))
    unused, rng = new_verifier(VerifierConfig(hidden=16), 0), np.random.default_rng([seed, 1])
    out: list[Experience] = []
    for _ in range(rounds):
        for case in TRAINING:
            grammar = rollout.executor(case).grammar
            anomalous = [
                Stratum("anomalous", f, case) for f in training_families(0) if grammar.primitives("anomalous", f)
            ]
            for stratum in [*anomalous, *[Stratum(side, "", case) for side in ("hard", "ordinary") for _ in range(2)]]:
                plan_id = int(rng.integers(config.scenario.plans))
                programs = [
                    Program(
                        case=case, context_id=int(rng.integers(1 << 48)), plan_id=plan_id,
                        events=grammar.uniform(stratum, plan_id, rng), scans=config.scenario.scans,
                        seed=int(rng.integers(1 << 48)),
                    )
                    for _ in range(PROGRAMS)
                ]  # fmt: skip
                out += [item for outcome in rollout.run(programs, unused, 0, rng) for item in outcome.experiences]
    return out


def train(windows: list[Experience], config: VerifierConfig, steps: int, seed: int) -> Any:
    """The averaged network after `steps` draws of whole pairs and single windows."""
    learner = Learner(new_verifier(config, seed), LearnerConfig(), steps)
    statics = {case: case_static(case) for case in TRAINING}
    groups: dict[Any, list[Experience]] = {}
    for index, item in enumerate(windows):
        groups.setdefault(item.pair if item.pair >= 0 else ("single", index), []).append(item)
    anomalous = [g for g in groups.values() if len(g) == 2]
    single = [g for g in groups.values() if len(g) == 1]
    rng = np.random.default_rng([seed, 2])
    for _ in range(steps):
        drawn = [anomalous[i] for i in rng.integers(len(anomalous), size=LearnerConfig().batch // 3)]
        drawn += [single[i] for i in rng.integers(len(single), size=LearnerConfig().batch // 3)]
        learner.step(collate([item for group in drawn for item in group], statics))
    network = new_verifier(config, seed)
    load_numpy(network, learner.weights())
    return network.eval()


def measure(network: Any, suite: WindowSuite, features: LastFeatures) -> dict[str, float]:
    """Figures of one network on the suite; node figures over the buses of implausible windows."""
    method = NetworkMethod("verifier", network, features)
    limits = thresholds_of([method.output(part) for part in suite.validation])
    assert limits.node is not None
    positive, negative, scores, truth, near = [], [], [], [], []
    for group in suite.test:
        out = method.output(group.prepared)
        assert out.node_BN is not None
        case = group.prepared.case
        for row, (family, label) in enumerate(zip(group.families, group.labels, strict=True)):
            (positive if family else negative).append(out.score_B[row])
            if family:
                true = affected(label, case)
                scores.append(out.node_BN[row])
                truth.append(true)
                near.append(_neighbours(case, true))
    score, true, beside = (np.concatenate(parts) for parts in (scores, truth, near))
    flagged = score > limits.node
    around = flagged & (true | beside)
    return {
        "auroc": metrics.auroc(negative, positive),
        "balanced_accuracy": metrics.balanced_accuracy(negative, positive, limits.score),
        "node_f1": metrics.node_f1(scores, truth, limits.node),
        "node_average_precision": metrics.auprc(score[~true], score[true]),
        "node_precision": float(true[flagged].mean()) if flagged.any() else float("nan"),
        "node_precision_1_hop": float(true[around].mean()) if around.any() else float("nan"),
        "node_auroc_1_hop": metrics.auroc(score[beside], score[true]),
        "top1": float(np.mean([t[np.argmax(s)] for s, t in zip(scores, truth, strict=True)])),
    }


def _neighbours(case: GridCase, true_N: Bool) -> Bool:
    """Buses one branch away from an affected bus and not affected themselves."""
    out = np.zeros_like(true_N)
    out[case.t_bus[true_N[case.f_bus]]] = True
    out[case.f_bus[true_N[case.t_bus]]] = True
    return out & ~true_N


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=30, help="test windows per family")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    windows = training_windows(options.rounds, options.seed)
    suite = SuiteMaker(
        HELD_OUT,
        ScenarioConfig(),
        EvaluateConfig(windows=options.windows, held_out_cases=(HELD_OUT,)),
        context_source(None),
    ).windows()
    features = LastFeatures(jacobian=True)
    print(f"{len(windows)} windows, suite {suite.digest}, {time.process_time() - start:.0f} CPU s", flush=True)
    for jacobian in (False, True):
        config = replace(VerifierConfig(), jacobian=jacobian)
        row = measure(train(windows, config, options.steps, options.seed), suite, features)
        what = {"jacobian": jacobian, "seed": options.seed, "steps": options.steps}
        figures = {key: round(value, 4) for key, value in row.items()}
        print(json.dumps(what | figures | {"cpu_s": round(time.process_time() - start)}), flush=True)


if __name__ == "__main__":
    main()
