"""Programs in, labelled and scored experiences out: what a proposer does between two weight versions.

Flow:    selfplay.proposer -> [rollout: executor -> gates -> realise -> features -> Verifier] -> replay, rewards
Source:  selfplay.md, sections 8, 9 and 20 (propose)
Shapes:  P programs of one grid, K noise realisations, N buses
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Experience, Program, Window
from gg_ray.scenario.attempt import Attempt, Side
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.executors import AnyExecutor, executor_of
from gg_ray.scenario.gates import Gates
from gg_ray.selfplay.rewards import learnability, p_bar_anomalous, p_bar_benign, p_star, skill
from gg_ray.verifier.features import Features, Featurizer, batch_of, case_static
from gg_ray.verifier.model import Verifier

PLANS_PER_CALL = 4
STATE_SCANS = 4
"""True states kept with an experience; solver.horizon may not exceed it."""


@dataclass(slots=True)
class Outcome:
    """What became of one program."""

    program: Program
    gate: str
    """Gate that stopped it, "" if it passed."""
    d_eff: float = 0.0
    p_bar: float = 0.5
    p_star: float = 0.0
    skill: float = 0.0
    learnability: float = 0.0
    solves: int = 0
    """Power-flow rows of its execution."""
    experiences: list[Experience] = field(default_factory=list)


class Rollout:
    """Executes, gates, realises and scores programs of any configured grid.

    Invariant: outcomes depend on (program seeds, network weights) alone; the order of calls matters only to the
    novelty gate and to which calls gate G2 repeats.
    """

    def __init__(
        self, config: RunConfig, contexts: ContextSource, *, all_families: bool = False, split: str = "train"
    ) -> None:
        self.config, self.contexts, self.split = config, contexts, split
        self.all_families = all_families
        self.featurizer = Featurizer(config.verifier.jacobian)
        self._executors: dict[str, AnyExecutor] = {}
        self._gates: dict[str, Gates] = {}

    def executor(self, case: str) -> AnyExecutor:
        """Executor of a grid, built on first use."""
        if case not in self._executors:
            self._executors[case] = executor_of(
                load_case(case), self.config.scenario, self.contexts, all_families=self.all_families
            )
        return self._executors[case]

    def gates(self, case: str) -> Gates:
        """Gates of a grid with their counters."""
        if case not in self._gates:
            self._gates[case] = Gates(self.executor(case), self.config.scenario)
        return self._gates[case]

    @property
    def counters(self) -> dict[str, Gates]:
        return self._gates

    def run(
        self, programs: Sequence[Program], network: Verifier, version: int, rng: np.random.Generator
    ) -> list[Outcome]:
        """Outcomes of programs that share a grid, in their order.

        Args: network  scores with its present weights (evaluation mode);  version  is written on the experiences;
              rng  decides which calls gate G2 repeats
        """
        case = programs[0].case
        attempts = self.executor(case).run(programs, self.split)
        verdicts = self.gates(case).check(attempts, rng)
        outcomes = [
            Outcome(a.program, v, d_eff=a.d_eff, solves=a.solves) for a, v in zip(attempts, verdicts, strict=True)
        ]  # fmt: skip
        passed = [i for i, v in enumerate(verdicts) if not v]
        by_plan: dict[int, list[int]] = {}
        for i in passed:
            by_plan.setdefault(attempts[i].plan.plan_id, []).append(i)
        for members in by_plan.values():
            self._realise([attempts[i] for i in members], [outcomes[i] for i in members], network, version)
        return outcomes

    def _realise(
        self, attempts: Sequence[Attempt], outcomes: Sequence[Outcome], network: Verifier, version: int
    ) -> None:
        """K windows (and twins) of each attempt, featurised and scored together."""
        executor = self.executor(attempts[0].program.case)
        k_count = self.config.scenario.realisations
        windows: list[Window] = []
        owners: list[tuple[int, int, Side]] = []
        for index, attempt in enumerate(attempts):
            for k in range(k_count):
                main, twin = executor.realise(attempt, k)
                assert attempt.main is not None
                windows.append(main)
                owners.append((index, k, attempt.main))
                if twin is not None and attempt.twin is not None:
                    windows.append(twin)
                    owners.append((index, k, attempt.twin))
        features = self.featurizer.features(self.featurizer.prepare(windows, attempts[0].plan))
        p = score(network, attempts[0].program.case, features)
        experiences = build_experiences(owners, attempts, features, version)
        for row, (index, _, _) in enumerate(owners):
            outcomes[index].experiences.append(experiences[row])
        for index, (attempt, outcome) in enumerate(zip(attempts, outcomes, strict=True)):
            mine = [row for row, owner in enumerate(owners) if owner[0] == index]
            self._judge(attempt, outcome, p[mine], k_count)

    def _judge(self, attempt: Attempt, outcome: Outcome, p: NDArray[np.float64], k_count: int) -> None:
        d_min = self.config.scenario.d_min
        if attempt.anomalous:
            pairs = p.reshape(k_count, 2)
            mean = float(p_bar_anomalous(pairs[None, :, 0], pairs[None, :, 1])[0])
            best = float(p_star(np.array([attempt.d_eff]))[0])
        else:
            mean = float(p_bar_benign(p[None])[0])
            best = float(p_star(np.array([d_min]))[0])
        outcome.p_bar, outcome.p_star = mean, best
        outcome.skill = float(skill(np.array([mean]), np.array([best]))[0])
        outcome.learnability = float(
            learnability(
                self.config.selfplay.reward, np.array([mean]), np.array([best]), epsilon=self.config.selfplay.epsilon
            )[0]
        )
        for item in outcome.experiences:
            item.p_bar, item.p_star, item.learnability = mean, best, outcome.learnability


@torch.inference_mode()
def score(network: Verifier, case: str, features: Features, block: int = 64) -> NDArray[np.float64]:
    """P(implausible) of each window, [B]; large grids are scored in blocks so that memory stays bounded."""
    network.eval()
    static = case_static(case)
    per_block = max(1, int(block * 2_000 / max(static.n_buses, 30) / 10))
    out = []
    for start in range(0, len(features.xhat_BN2), per_block):
        part = slice(start, start + per_block)
        batch = batch_of(case, features, part)
        out.append(torch.sigmoid(network(batch).implausible).double().numpy())
    return np.concatenate(out)


def build_experiences(
    owners: Sequence[tuple[int, int, Side]], attempts: Sequence[Attempt], features: Features, version: int
) -> list[Experience]:
    """Experiences that own their arrays (a view of the batch would keep all of it alive)."""
    out = []
    for row, (index, k, side) in enumerate(owners):
        attempt = attempts[index]
        out.append(
            Experience(
                case=attempt.program.case,
                plan_id=attempt.plan.plan_id,
                node_TNF=features.node_BTNF[row].copy(),
                edge_TEF=features.edge_BTEF[row].copy(),
                xhat_N2=features.xhat_BN2[row].copy(),
                states_SN2=true_states(side, load_case(attempt.program.case).slack),
                meas_N2=features.meas_BN2[row].copy(),
                sigma_N2=features.sigma_BN2[row].copy(),
                param_E3=features.param_BE3[row].copy(),
                jac_NJ=features.jac_BNJ[row].copy(),
                labels=side.labels,
                program=attempt.program,
                pair=pair_id(attempt.program, k) if attempt.anomalous else -1,
                source=attempt.program.source,
                d_eff=attempt.d_eff,
                p_star=0.0,
                p_bar=0.5,
                learnability=0.0,
                version=version,
            )
        )
    return out


def pair_id(program: Program, k: int) -> int:
    """63-bit number shared by a window and its twin of one noise realisation."""
    return (program.seed * 64 + k) % (1 << 62)


def true_states(side: Side, slack: int) -> NDArray[np.float32]:
    """[S, N, 2] |V| - 1 and angle relative to the slack of the last STATE_SCANS scans."""
    last = side.state_TN[-STATE_SCANS:]
    return np.stack([np.abs(last) - 1.0, np.angle(last * np.conj(last[:, [slack]]))], axis=-1).astype(np.float32)


def plan_ids(config: RunConfig, count: int, rng: np.random.Generator) -> list[int]:
    """Metering plan of each program: drawn before and independently of everything else.

    One call uses a few plans only, so that windows are estimated together; over calls all plans come up equally often.
    """
    few = rng.choice(config.scenario.plans, min(PLANS_PER_CALL, config.scenario.plans), replace=False)
    return [int(few[i]) for i in rng.integers(0, few.size, count)]
