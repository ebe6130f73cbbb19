"""The test bed of the ablations: windows made once per length, one network trained, its scores on the held-out grid.

Flow:    uniform programs (training months, case14 and case30) -> windows; window suite of case39 (test months, meters,
         families and grid never trained on) -> features; both kept in a cache folder -> learner -> Scores
Shapes:  B windows, T scans, N buses of case39
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation_variants import Variant, network_of
from gg_ray.config import EvaluateConfig, LearnerConfig, RunConfig, ScenarioConfig, VerifierConfig
from gg_ray.evaluate import metrics
from gg_ray.evaluate.scoring import FPR, NODE_FPR, affected
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.files import write_atomic
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.learner import Learner, load_numpy, new_verifier
from gg_ray.pretrain import pretrain
from gg_ray.records import F64, Bool, Experience, Program
from gg_ray.replay.segments import decode_experiences, encode_experiences
from gg_ray.scenario.context import context_source
from gg_ray.scenario.grammar import Stratum, training_families
from gg_ray.selfplay.rollout import Rollout
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import Features, Featurizer, batch_of, case_static

TRAINING, HELD_OUT = ("case14", "case30"), "case39"
PROGRAMS = 25
"""Programs per call; a call takes one stratum of one grid under one metering plan."""
WINDOWS_SEED = 0
"""Of the training windows: all variants and all seeds learn from the same ones."""
BLOCK = 64
"""Windows per forward pass of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a line was measured with; lines of other sizes are not comparable."""

    steps: int = 300
    rounds: int = 3
    windows: int = 30
    """Test windows per family."""


@dataclass(slots=True)
class Part:
    """Windows of one metering plan: inputs, family ("" for plausible ones), affected buses [B, N]."""

    features: Features
    family_B: Any
    affected_BN: Bool


@dataclass(slots=True)
class Bed:
    """Everything that variants of one window length share."""

    training: list[Experience]
    validation: list[Part]
    """Benign windows: thresholds come from these alone."""
    test: list[Part]
    digest: str


@dataclass(slots=True)
class Scores:
    """What one network says about the test windows, and its thresholds from validation."""

    logit_B: F64
    node_BN: F64
    limit: float
    node_limit: float


def bed_of(scans: int, sizes: Sizes, cache: Path) -> Bed:
    """Windows and suite of one length, from the cache folder or made and put there."""
    stem = cache / f"scans{scans}-rounds{sizes.rounds}-windows{sizes.windows}"
    training, suite = stem.with_suffix(".segment"), stem.with_suffix(".npz")
    cache.mkdir(parents=True, exist_ok=True)
    if not training.exists():
        write_atomic(training, encode_experiences(training_windows(scans, sizes.rounds)))
    if not suite.exists():
        packed = io.BytesIO()
        np.savez(packed, **suite_arrays(scans, sizes.windows))
        write_atomic(suite, packed.getvalue())
    with np.load(suite) as held:
        parts = {side: [_part(held, side, index) for index in range(int(held[f"{side}/parts"]))] for side in _SIDES}
        return Bed(
            decode_experiences(training.read_bytes()), parts["validation"], parts["test"], str(held["digest"])
        )  # fmt: skip


_SIDES = ("validation", "test")


def training_windows(scans: int, rounds: int) -> list[Experience]:
    """Gated windows and twins of uniform programs: each round one call per family, and as many plausible ones."""
    scenario = ScenarioConfig(cases=TRAINING, scans=scans, realisations=1, recheck_share=0.0)
    config = RunConfig(scenario=scenario, verifier=VerifierConfig(jacobian=True))
    rollout = Rollout(config, context_source(None))
    unused, rng = new_verifier(VerifierConfig(hidden=16), 0), np.random.default_rng([WINDOWS_SEED, 1])
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
                        events=grammar.uniform(stratum, plan_id, rng), scans=scans, seed=int(rng.integers(1 << 48)),
                    )
                    for _ in range(PROGRAMS)
                ]  # fmt: skip
                out += [item for outcome in rollout.run(programs, unused, 0, rng) for item in outcome.experiences]
    return out


def suite_arrays(scans: int, windows: int) -> dict[str, Any]:
    """Features and truth of the window suite of the held-out grid, by name."""
    sizes = EvaluateConfig(windows=windows, held_out_cases=(HELD_OUT,))
    suite = SuiteMaker(HELD_OUT, ScenarioConfig(scans=scans), sizes, context_source(None)).windows()
    case, featurizer = load_case(HELD_OUT), Featurizer(jacobian=True)
    out: dict[str, Any] = {"digest": np.array(suite.digest)}
    for index, prepared in enumerate(suite.validation):
        count = len(prepared.windows)
        out |= _named("validation", index, featurizer.features(prepared))
        out[f"validation/{index}/family_B"] = np.full(count, "", dtype="U2")
        out[f"validation/{index}/affected_BN"] = np.zeros((count, case.n_bus), dtype=bool)
    for index, group in enumerate(suite.test):
        out |= _named("test", index, featurizer.features(group.prepared))
        out[f"test/{index}/family_B"] = np.array(group.families, dtype="U2")
        out[f"test/{index}/affected_BN"] = np.stack([affected(label, case) for label in group.labels])
    return out | {"validation/parts": np.array(len(suite.validation)), "test/parts": np.array(len(suite.test))}


def _named(side: str, index: int, features: Features) -> dict[str, Any]:
    return {f"{side}/{index}/{field.name}": getattr(features, field.name) for field in fields(Features)}


def _part(held: Any, side: str, index: int) -> Part:
    at = f"{side}/{index}"
    features = Features(**{field.name: held[f"{at}/{field.name}"] for field in fields(Features)})
    return Part(features, held[f"{at}/family_B"], held[f"{at}/affected_BN"])


def train(bed: Bed, variant: Variant, steps: int, seed: int) -> torch.nn.Module:
    """The averaged network after `steps` draws of whole pairs and single windows; draws depend on the seed alone."""
    config = replace(LearnerConfig(), loss=variant.loss)
    network = network_of(variant, seed)
    if variant.pretrain_steps:
        load_numpy(network, pretrained(variant, seed))
    learner = Learner(network, config, steps)  # type: ignore[arg-type]
    statics = {case: case_static(case) for case in TRAINING}
    groups: dict[Any, list[Experience]] = {}
    for index, item in enumerate(bed.training):
        groups.setdefault(item.pair if item.pair >= 0 else ("single", index), []).append(item)
    anomalous = [g for g in groups.values() if len(g) == 2]
    single = [g for g in groups.values() if len(g) == 1]
    rng = np.random.default_rng([seed, 2])
    for _ in range(steps):
        drawn = [anomalous[i] for i in rng.integers(len(anomalous), size=config.batch // 3)]
        drawn += [single[i] for i in rng.integers(len(single), size=config.batch // 3)]
        learner.step(collate([item for group in drawn for item in group], statics))
    return learner.average.eval()


def pretrained(variant: Variant, seed: int) -> dict[str, Any]:
    """Weights after masked reconstruction on benign windows of the training grids, as `gg-ray train` makes them."""
    scenario = ScenarioConfig(cases=TRAINING, scans=variant.scans)
    learner = LearnerConfig(pretrain_steps=variant.pretrain_steps, loss=variant.loss)
    config = RunConfig(scenario=scenario, verifier=variant.verifier, learner=learner, seed=seed)
    return pretrain(config, context_source(None), lambda line: print(line, flush=True)).weights


@torch.inference_mode()
def score(network: torch.nn.Module, bed: Bed) -> Scores:
    """Logits of the test windows, and thresholds: 5 % of validation windows, any bus flagged in 1 % of them."""
    benign, benign_node = _logits(network, bed.validation)
    logit, node = _logits(network, bed.test)
    highest = benign_node.max(axis=1)
    return Scores(
        logit, node, metrics.threshold_for_fpr(benign, FPR), metrics.threshold_for_fpr(highest, NODE_FPR)
    )  # fmt: skip


def _logits(network: torch.nn.Module, parts: list[Part]) -> tuple[F64, F64]:
    n_buses, window, node = case_static(HELD_OUT).n_buses, [], []
    for part in parts:
        for start in range(0, len(part.family_B), BLOCK):
            out = network(batch_of(HELD_OUT, part.features, slice(start, start + BLOCK)))
            window.append(out.implausible.double().numpy())
            node.append(out.node.view(-1, n_buses).double().numpy())
    return np.concatenate(window), np.concatenate(node)


def truth(bed: Bed) -> tuple[Any, Bool]:
    """Family [B] and affected buses [B, N] of the test windows."""
    return np.concatenate([p.family_B for p in bed.test]), np.concatenate([p.affected_BN for p in bed.test])


def figures(scores: Scores, bed: Bed) -> dict[str, float]:
    """Figures of one network: of windows means over families, of nodes over all buses of implausible windows."""
    family_B, true_BN = truth(bed)
    benign, attacked = scores.logit_B[family_B == ""], family_B != ""
    by_family = [scores.logit_B[family_B == name] for name in sorted(set(family_B[attacked]))]
    node, true = scores.node_BN[attacked], true_BN[attacked]
    near = np.stack([_neighbours(load_case(HELD_OUT), row) for row in true])
    flagged = node > scores.node_limit
    around = flagged & (true | near)
    return {
        "auroc": float(np.mean([metrics.auroc(benign, own) for own in by_family])),
        "balanced_accuracy": float(
            np.mean([metrics.balanced_accuracy(benign, own, scores.limit) for own in by_family])
        ),
        "auprc": float(np.mean([metrics.auprc(benign, own) for own in by_family])),
        "node_average_precision": metrics.auprc(node[~true], node[true]),
        "node_f1": metrics.node_f1(list(node), list(true), scores.node_limit),
        "top1": float(true[np.arange(len(node)), node.argmax(axis=1)].mean()),
        "node_precision_1_hop": float(true[around].mean()) if around.any() else float("nan"),
        "node_auroc_1_hop": metrics.auroc(node[near], node[true]),
    }


def _neighbours(case: GridCase, true_N: Bool) -> Bool:
    """Buses one branch away from an affected bus and not affected themselves."""
    out = np.zeros_like(true_N)
    out[case.t_bus[true_N[case.f_bus]]] = True
    out[case.f_bus[true_N[case.t_bus]]] = True
    return out & ~true_N
