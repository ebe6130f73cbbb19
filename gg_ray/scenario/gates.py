"""Hard gates before the buffer: valid, deterministic, material, detectable, clear of the margin, new.

Flow:    scenario.executor -> [gates] -> selfplay.loop (reward -0.5 on failure), replay
Source:  selfplay.md, section 8. A strict data gate is what keeps self-play stable (Survive-or-Collapse 2605.22217).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import ScenarioConfig
from gg_ray.grid.ybus import Asked, Judge
from gg_ray.records import F64, Program
from gg_ray.scenario.attempt import Attempt, Trajectory
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.grammar import first_family, program_hash
from gg_ray.scenario.worlds import tap_stretches

GATES = ("G1", "G2", "G3", "G4", "G5", "G6")
JUDGE_LIMIT_PU = 1e-5
V_LIMITS_PU = (0.8, 1.2)
ANGLE_SPREAD_RAD = np.deg2rad(120.0)
G5_PLAUSIBLE, G5_IMPLAUSIBLE = 3.0, 6.0
"""Solver-made windows: errors up to 3 sigma are plausible, from 6 sigma on implausible, between them dropped."""


@dataclass(slots=True)
class GateCounters:
    """How many attempts entered and which gate stopped them."""

    seen: int = 0
    passed: int = 0
    stopped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GATES, 0))
    by_family: dict[str, list[int]] = field(default_factory=dict)
    """family (or "benign") -> [seen, passed]"""

    def rates(self) -> dict[str, float]:
        """Share of attempts stopped by each gate, and the share that passed."""
        total = max(self.seen, 1)
        return {gate: count / total for gate, count in self.stopped.items()} | {"pass": self.passed / total}

    def add(self, other: GateCounters) -> None:
        """Sum of two counters (actors report theirs)."""
        self.seen += other.seen
        self.passed += other.passed
        for gate, count in other.stopped.items():
            self.stopped[gate] += count
        for family, (seen, passed) in other.by_family.items():
            mine = self.by_family.setdefault(family, [0, 0])
            mine[0] += seen
            mine[1] += passed


class Gates:
    """G1 to G4 for executed programs, G5 for completions; the first failing gate is counted. G6 is NoveltyGate.

    Invariant: seen == passed + sum(stopped). With gates off (negative control) only G1 and G2 act.
    """

    def __init__(self, executor: Executor, config: ScenarioConfig) -> None:
        self.executor, self.config = executor, config
        self.judge = Judge(executor.case)
        self.counters = GateCounters()

    def check(self, attempts: Sequence[Attempt], rng: np.random.Generator) -> list[str]:
        """Name of the gate that stops each attempt, "" for those that pass.

        Args: rng draws which calls are executed a second time as a whole (gate G2)
        """
        residual = self._judge(attempts)
        repeats = self._repeats(attempts) if rng.random() < self.config.recheck_share else [True] * len(attempts)
        verdicts = []
        for attempt, worst, same in zip(attempts, residual, repeats, strict=True):
            verdict = self._first_failure(attempt, worst, same)
            verdicts.append(verdict)
            self._count(attempt, verdict)
        return verdicts

    def _judge(self, attempts: Sequence[Attempt]) -> F64:
        """[P] largest deviation of each attempt's solved worlds from the injections and set-points asked for, p.u.

        By our own judge and never the solver; on the branches and tap ratios in force at each scan.
        """
        out = np.zeros(len(attempts))
        for index, attempt in enumerate(attempts):
            if attempt.converged:
                for solved in (attempt.trajectory, attempt.unhidden):
                    if solved is not None:
                        out[index] = max(out[index], self.judge.worst(solved.v_TN, _asked(solved)).max())
        return out

    def _first_failure(self, attempt: Attempt, residual: float, repeats: bool) -> str:
        if not self._valid(attempt, residual):
            return "G1"
        if not repeats:
            return "G2"
        if attempt.anomalous or not attempt.reachable:
            if self.config.gates == "on":
                if not attempt.reachable:
                    return "G4"
                if attempt.material < 1.0:
                    return "G3"
                if not self.config.d_min <= attempt.d_eff <= self.config.d_max:
                    return "G4"
            elif not attempt.reachable:
                return "G1"
        return ""

    def _valid(self, attempt: Attempt, residual: float) -> bool:
        if not attempt.converged or attempt.split or not attempt.in_bounds or attempt.trajectory is None:
            return False
        if residual > JUDGE_LIMIT_PU:
            return False
        v = attempt.trajectory.v_TN
        vm = np.abs(v)
        if not np.isfinite(vm).all() or vm.min() < V_LIMITS_PU[0] or vm.max() > V_LIMITS_PU[1]:
            return False
        angle = np.angle(v * np.conj(v[:, [self.executor.case.slack]]))
        return bool(np.ptp(angle, axis=1).max() < ANGLE_SPREAD_RAD)

    def _repeats(self, attempts: Sequence[Attempt]) -> list[bool]:
        """The same call executed again must give the same bits.

        The whole call is repeated: the sweep reuses its factorisation from row to row, so a program solved alone
        agrees to 1e-12 (tested), not bit by bit.
        """
        again = self.executor.run([a.program for a in attempts], contexts=[a.context for a in attempts])
        return [one.digest() == two.digest() for one, two in zip(attempts, again, strict=True)]

    def _count(self, attempt: Attempt, verdict: str) -> None:
        self.counters.seen += 1
        family = self.counters.by_family.setdefault(first_family(attempt.program) or "benign", [0, 0])
        family[0] += 1
        if verdict:
            self.counters.stopped[verdict] += 1
        else:
            self.counters.passed += 1
            family[1] += 1

    def completion(self, error_sigma: NDArray[np.float64], d_eff: float, material: float) -> int | None:
        """Gate G5 for a solver-made window: 0 plausible, 1 implausible, None to drop it (and count it).

        Args: error_sigma  errors of the completed meters against the truth in units of their sigma
        """
        worst = float(np.abs(error_sigma).max())
        if worst <= G5_PLAUSIBLE:
            return 0
        if worst >= G5_IMPLAUSIBLE and material >= 1.0 and d_eff >= self.config.d_min:
            return 1
        self.counters.stopped["G5"] += 1
        self.counters.seen += 1
        return None


def _asked(solved: Trajectory) -> Asked:
    world, scans = solved.world, solved.v_TN.shape[0]
    stretches = tap_stretches(solved.moves, scans) if solved.moves else []
    return Asked(
        load_p_RN=world.load_p, load_q_RN=world.load_q, gen_p_RG=world.gen_p, gen_v_RG=world.gen_v,
        gen_out_RG=world.gen_out, status_RE=solved.status_TE,
        taps=[(when, branch, ratio) for when, taps in stretches for branch, ratio in taps],
    )  # fmt: skip


class NoveltyGate:
    """G6: a program that was executed before is not news. Kept where all players' results meet.

    Invariant: at most `memory` hashes, the longest unseen leaves first.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._seen: OrderedDict[int, None] = OrderedDict()

    def is_new(self, program: Program) -> bool:
        """Remember a program; False if it is remembered already."""
        key = program_hash(program)
        if key in self._seen:
            self._seen.move_to_end(key)
            return False
        self._seen[key] = None
        if len(self._seen) > self.memory:
            self._seen.popitem(last=False)
        return True

    def state_dict(self) -> list[int]:
        return list(self._seen)

    def load_state_dict(self, state: Sequence[int]) -> None:
        self._seen = OrderedDict((int(key), None) for key in state)
