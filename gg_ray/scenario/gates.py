"""Hard gates before the buffer: valid, deterministic, material, detectable, clear of the margin, new.

Flow:    scenario.executor -> [gates] -> selfplay.loop (reward -0.5 on failure), replay
Source:  selfplay.md, section 8. A strict data gate is what keeps self-play stable (Survive-or-Collapse 2605.22217).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import ScenarioConfig
from gg_ray.grid.ybus import Asked, Judge
from gg_ray.records import F64, Program
from gg_ray.scenario.attempt import Attempt, Trajectory
from gg_ray.scenario.executors import AnyExecutor
from gg_ray.scenario.grammar import first_family, program_hash
from gg_ray.scenario.worlds import tap_stretches

GATES = ("G1", "G2", "G3", "G4", "G6")
"""Gates that programs meet. G5 judges completions, which are no programs: it has books of its own."""
JUDGE_LIMIT_PU = 1e-5
V_LIMITS_PU = (0.8, 1.2)
ANGLE_SPREAD_RAD = np.deg2rad(120.0)
G5_PLAUSIBLE, G5_IMPLAUSIBLE = 3.0, 6.0
"""Solver-made windows: errors up to 3 sigma are plausible, from 6 sigma on implausible, between them dropped."""


@dataclass(slots=True)
class GateCounters:
    """How many programs entered and which gate stopped them; completions of the Solver and gate G5 apart.

    Invariant: seen == passed + sum(stopped); the families' seen and passed add up to seen and passed.
    """

    seen: int = 0
    passed: int = 0
    stopped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GATES, 0))
    by_family: dict[str, list[int]] = field(default_factory=dict)
    """family (or "benign") -> [seen, passed]"""
    completions: int = 0
    completions_passed: int = 0
    recheck_solves: int = 0
    """Power-flow rows that gate G2 solved a second time."""

    def rates(self) -> dict[str, float]:
        """Share of programs stopped by each gate and share that passed; under G5 the share of completions stopped."""
        total = max(self.seen, 1)
        dropped = self.completions - self.completions_passed
        return {gate: count / total for gate, count in self.stopped.items()} | {
            "G5": dropped / max(self.completions, 1), "pass": self.passed / total,
        }  # fmt: skip

    def count(self, program: Program, verdict: str) -> None:
        """Book a program under the gate that stopped it, "" for one that passed."""
        self.seen += 1
        family = self.by_family.setdefault(first_family(program) or "benign", [0, 0])
        family[0] += 1
        if verdict:
            self.stopped[verdict] += 1
        else:
            self.passed += 1
            family[1] += 1

    def stop_late(self, program: Program) -> None:
        """G6 acts after the others, where all players' results meet: take back that the program passed."""
        self.stopped["G6"] += 1
        self.passed -= 1
        self.by_family[first_family(program) or "benign"][1] -= 1

    def count_completions(self, passed: int, dropped: int) -> None:
        """Book solver-made windows that gate G5 labelled, and those that it dropped."""
        self.completions += passed + dropped
        self.completions_passed += passed

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
        self.count_completions(other.completions_passed, other.completions - other.completions_passed)
        self.recheck_solves += other.recheck_solves


class Gates:
    """G1 to G4 for executed programs, G5 for completions; the first failing gate is counted. G6 is NoveltyGate.

    With gates off (negative control) only G1 and G2 act.
    """

    def __init__(self, executor: AnyExecutor, config: ScenarioConfig) -> None:
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
            self.counters.count(attempt.program, verdict)
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
        self.counters.recheck_solves += sum(a.solves for a in again)
        return [one.digest() == two.digest() for one, two in zip(attempts, again, strict=True)]

    def completion(self, error_sigma: NDArray[np.float64], d_eff: float, material: float) -> int | None:
        """Gate G5 for a solver-made window: 0 plausible, 1 implausible, None to drop it (and count it).

        Args: error_sigma  errors of the completed meters against the truth in units of their sigma
        """
        worst = float(np.abs(error_sigma).max())
        label: int | None = None
        if worst <= G5_PLAUSIBLE:
            label = 0
        elif worst >= G5_IMPLAUSIBLE and material >= 1.0 and d_eff >= self.config.d_min:
            label = 1
        self.counters.count_completions(passed=int(label is not None), dropped=int(label is None))
        return label


def _asked(solved: Trajectory) -> Asked:
    world, scans = solved.world, solved.v_TN.shape[0]
    stretches = tap_stretches(solved.moves, scans) if solved.moves else []
    return Asked(
        load_p_RN=world.load_p, load_q_RN=world.load_q, gen_p_RG=world.gen_p, gen_v_RG=world.gen_v,
        gen_out_RG=world.gen_out, status_RE=solved.status_TE,
        taps=[(when, branch, ratio) for when, taps in stretches for branch, ratio in taps],
    )  # fmt: skip


class NoveltyGate:
    """G6: a program that was executed before is not news, nor is one more of a crowd. Kept where all results meet.

    Invariant: at most `memory` programs are remembered, the longest unseen leaves first; at most `cell_cap` of them
    share a behaviour cell. Programs without a cell are not capped.
    """

    def __init__(self, memory: int, cell_cap: int) -> None:
        self.memory, self.cell_cap = memory, cell_cap
        self._seen: OrderedDict[int, str] = OrderedDict()
        self._crowd: Counter[str] = Counter()

    def is_new(self, program: Program, cell: str = "") -> bool:
        """Remember a program and its behaviour cell; False if it is remembered already or its cell is full.

        A program that a full cell turns away is not remembered: places in the cell come free as its oldest leave.
        """
        key = program_hash(program)
        if key in self._seen:
            self._seen.move_to_end(key)
            return False
        if cell and self._crowd[cell] >= self.cell_cap:
            return False
        self._seen[key] = cell
        self._crowd[cell] += 1
        if len(self._seen) > self.memory:
            _, left = self._seen.popitem(last=False)
            self._crowd[left] -= 1
        return True

    def fullest(self) -> int:
        """Remembered programs in the most crowded cell."""
        return max((count for cell, count in self._crowd.items() if cell), default=0)

    def state_dict(self) -> dict[str, list[Any]]:
        """Remembered programs, the longest unseen first: hashes, and their cells as numbers into a list of names."""
        names = list(dict.fromkeys(self._seen.values()))
        number = {name: index for index, name in enumerate(names)}
        return {"hashes": list(self._seen), "cells": [number[cell] for cell in self._seen.values()], "names": names}

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        names = [str(name) for name in state["names"]]
        pairs = zip(state["hashes"], state["cells"], strict=True)
        self._seen = OrderedDict((int(key), names[int(cell)]) for key, cell in pairs)
        self._crowd = Counter(self._seen.values())
