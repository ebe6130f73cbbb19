"""The state of a self-play run between calls: quotas, archive, queues, learners, versions, counters.

Flow:    selfplay.loop and actors.selfplay drive this one object: order -> settle, question -> settle_answer, learn
Source:  selfplay.md, sections 9, 11, 12, 14
Shapes:  P programs

Both loops hold the same words; what differs is only who carries the calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.grid.cases import load_case
from gg_ray.learner import Learner, new_verifier, to_numpy
from gg_ray.records import Event, Program
from gg_ray.scenario.gates import GateCounters, NoveltyGate
from gg_ray.scenario.grammar import Grammar, training_families
from gg_ray.selfplay.archive import Elites
from gg_ray.selfplay.buffer import Draw, priorities_after
from gg_ray.selfplay.players import Answered, Lesson, Order, Proposed, Question, new_proposer, new_solver
from gg_ray.selfplay.policy_update import PolicyQueue, ProposerLearner
from gg_ray.selfplay.rewards import p_star, proposer_reward, solver_learnability
from gg_ray.selfplay.scheduler import Scheduler
from gg_ray.selfplay.solver import SolverLearner
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static

ROLE_GAME = 5
LESSONS = 512
LESSON_BATCH = 16
QUESTION_PROGRAMS = 4
_RATE_DECAY = 0.9


class Game:
    """Everything a run remembers apart from the replay buffer.

    Invariant: `step` counts Verifier updates; calls + questions == settled + answered + lost + running; versions rise
    by one per publication. All randomness of the bookkeeping comes from (seed, ROLE_GAME, call_id).
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        play = config.selfplay
        cases = config.scenario.cases
        self.families = training_families(config.scenario.fold)
        self.learner = Learner(new_verifier(config.verifier, config.seed), config.learner, play.steps)
        self.policy = ProposerLearner(new_proposer(config), config.proposer, max(1, play.steps // 10))
        self.solver = SolverLearner(new_solver(config), config.solver)
        self.scheduler = Scheduler(self._scheduler_config(), self.families, cases)
        self.archive = Elites({name: load_case(name) for name in cases})
        self.queue = PolicyQueue(config.proposer)
        self.novelty = NoveltyGate(config.scenario.novelty_memory)
        self.grammars = {name: Grammar(load_case(name), config.scenario) for name in cases}
        self.counters = GateCounters()
        self.lessons: deque[Lesson] = deque(maxlen=LESSONS)
        self.recent: deque[Program] = deque(maxlen=256)
        self.step = self.calls = self.questions = self.solves = self.programs = self.inserted = 0
        self.settled = self.answered = self.lost = 0
        self.versions = {"verifier": 0, "proposer": 0, "solver": 0}
        self.published_updates = {"proposer": 0, "solver": 0}
        self.solver_rate: dict[str, float] = {}
        self.solver_stats = {"completions": 0, "dropped": 0, "made": 0}
        self.frontier: deque[tuple[int, float, float, str]] = deque(maxlen=20_000)
        """(step, d_eff, p_bar, family) of gated anomalous programs: figure "d_eff against p_bar over time"."""
        self._metrics: dict[str, float] = {}

    def _scheduler_config(self) -> Any:
        """Arms without a policy have no policy programs: uniform and plr draw every program from the grammar."""
        from dataclasses import replace

        play = self.config.selfplay
        return play if play.arm == "selfplay" else replace(play, uniform_floor=1.0, mutation_share=0.0)

    @property
    def plays_solver(self) -> bool:
        return self.config.selfplay.arm == "selfplay" and self.config.actors.solvers > 0

    # --- orders -----------------------------------------------------------------------------------------------------

    def order(self) -> Order:
        """The next proposer call."""
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_GAME, self.calls)))
        assignment = self.scheduler.draw(rng)
        parents: list[Program | None] = []
        for stratum, source in zip(assignment.strata, assignment.sources, strict=True):
            found: list[Program] = []
            if source == "mutation":
                found = self.archive.parents(1, rng, case=assignment.case, kind=stratum.family or stratum.side)
            parents.append(found[0] if found else None)
        shown = self.archive.exemplars(6, case=assignment.case)
        order = Order(
            call_id=self.calls, assignment=assignment, parents=tuple(parents),
            exemplars=tuple(program.events for program in shown),
            skill=tuple(float(v) for v in self.scheduler.skill_vector()),
            verifier_version=self.versions["verifier"], proposer_version=self.versions["proposer"],
        )  # fmt: skip
        self.calls += 1
        return order

    def question(self) -> Question | None:
        """The next solver call: recent programs of one grid; None while there are none."""
        if not self.recent:
            return None
        rng = np.random.default_rng(
            np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_GAME, 1 << 20, self.questions))
        )  # fmt: skip
        case = self.recent[int(rng.integers(len(self.recent)))].case
        fitting = [program for program in self.recent if program.case == case]
        picks = rng.permutation(len(fitting))[:QUESTION_PROGRAMS]
        question = Question(
            call_id=self.questions, programs=tuple(fitting[i] for i in picks), solver_version=self.versions["solver"]
        )  # fmt: skip
        self.questions += 1
        return question

    def next_question(self) -> Question:
        """The next solver call, when there are recent programs.  Raises: RuntimeError while there are none."""
        question = self.question()
        if question is None:
            raise RuntimeError("no question without recent programs: look at Game.recent first")
        return question

    # --- results ----------------------------------------------------------------------------------------------------

    def settle(self, result: Proposed) -> list[int]:
        """Book a finished proposer call; its windows travel apart and need not be here.

        Returns: indices of the programs whose windows go into replay (new programs that passed every gate)
        """
        self.settled += 1
        self.solves += result.solves
        self.counters.add(result.counters)
        keep: list[int] = []
        samples = []
        for index, summary in enumerate(result.summaries):
            self.programs += 1
            gate = summary.gate
            if not gate and not self.novelty.is_new(summary.program):
                gate = "G6"
                self.counters.stopped["G6"] += 1
                self.counters.passed -= 1
            reward_args: dict[str, Any] = {"gate_failed": bool(gate)}
            if not gate:
                cell = self.archive.cell_of(summary.program, summary.d_eff)
                reward_args |= {
                    "novelty": self.archive.novelty(cell),
                    "progress": self.scheduler.progress(summary.stratum),
                    "learnability_s": self._solver_learnability(summary.stratum.case),
                }
                self.archive.record(summary.program, summary.d_eff, summary.learnability)
                self.scheduler.observe(summary.stratum, summary.skill, self.step)
                self.recent.append(summary.program)
                if summary.d_eff > 0:
                    self.frontier.append((self.step, summary.d_eff, summary.p_bar, summary.stratum.family))
                keep.append(index)
                self.inserted += summary.windows
            if index in result.samples:
                from dataclasses import replace

                reward = float(
                    proposer_reward(summary.learnability, beta=self.config.selfplay.reward_beta, **reward_args)
                )
                samples.append(replace(result.samples[index], reward=reward))
        self.queue.put(samples)
        return keep

    def _solver_learnability(self, case: str) -> float:
        rate = self.solver_rate.get(case)
        return float("nan") if rate is None else float(solver_learnability(rate))

    def settle_answer(self, result: Answered) -> None:
        """Book a finished solver call; all windows it made go into replay."""
        self.answered += 1
        case = result.question.programs[0].case
        for rate in result.rates:
            if np.isfinite(rate):
                old = self.solver_rate.get(case, rate)
                self.solver_rate[case] = _RATE_DECAY * old + (1 - _RATE_DECAY) * rate
        self.solver_stats["completions"] += result.completions
        self.solver_stats["dropped"] += result.dropped
        self.counters.stopped["G5"] += result.dropped
        self.counters.seen += result.dropped
        self.solves += len(result.question.programs) * self.config.scenario.scans
        self.solver_stats["made"] += result.made
        self.lessons.extend(result.lessons)
        self.inserted += result.made

    def settle_lost(self) -> None:
        """Book a call whose answer will never come. Its id is not used again, so a late insert stays recognisable."""
        self.lost += 1

    def forget_running(self) -> None:
        """Whatever was asked and has not come back counts as lost: when no player runs, at a resume and at the end."""
        self.lost = self.calls - self.settled + self.questions - self.answered

    # --- learning ---------------------------------------------------------------------------------------------------

    def learn(self, draw: Draw) -> NDArray[np.float64]:
        """One Verifier step, and a Solver or policy step where due. Returns: new priorities of the drawn windows."""
        metrics, p = self.learner.step(draw.batch)
        self.step += 1
        self._metrics |= metrics
        if (
            self.plays_solver
            and self.step % self.config.learner.solver_every == 0
            and len(self.lessons) >= LESSON_BATCH
        ):
            self._metrics |= {f"solver/{k}": v for k, v in self._solver_step().items()}
        if self.config.selfplay.arm == "selfplay":
            taken = self.queue.take(self.versions["proposer"], self.versions["verifier"])
            if taken:
                self._metrics |= {f"policy/{k}": v for k, v in self.policy.update(taken, self.grammars).items()}
        return priorities_after(p, draw, float(p_star(np.array([self.config.scenario.d_min]))[0]))

    def _solver_step(self) -> dict[str, float]:
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_GAME, 2 << 20, self.step)))
        picks = rng.integers(0, len(self.lessons), LESSON_BATCH)
        chosen = [self.lessons[int(i)] for i in picks]
        batch = collate(
            [lesson.experience for lesson in chosen],
            {lesson.experience.case: case_static(lesson.experience.case) for lesson in chosen},
        )
        span = self.config.solver.horizon
        hidden = torch.from_numpy(np.concatenate([lesson.hidden_N for lesson in chosen]))
        target = torch.from_numpy(
            np.concatenate([lesson.experience.states_SN2[-span:].transpose(1, 0, 2) for lesson in chosen])
        )  # fmt: skip
        return self.solver.step(batch, hidden, target)

    def publish_due(self) -> bool:
        return self.step % self.config.learner.publish_every == 0

    def publish(self) -> dict[str, dict[str, NDArray[Any]]]:
        """New weights for the players; versions rise only for networks that changed."""
        self.versions["verifier"] += 1
        out = {"verifier": self.learner.weights()}
        trained = (
            ("proposer", self.policy.proposer, self.policy.updates),
            ("solver", self.solver.solver, self.solver.steps),
        )
        for name, network, count in trained:
            if count != self.published_updates[name]:
                self.published_updates[name] = count
                self.versions[name] += 1
                out[name] = to_numpy(network.state_dict())
        return out

    def all_weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Present weights of every network, for players that start or restart."""
        return {
            "verifier": self.learner.weights(), "proposer": to_numpy(self.policy.proposer.state_dict()),
            "solver": to_numpy(self.solver.solver.state_dict()),
        }  # fmt: skip

    def note(self, values: Mapping[str, float]) -> None:
        """Add measurements that are made outside (times, actors, looks) to what `metrics` reports."""
        self._metrics |= values

    # --- what the user sees -----------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Everything that is logged each step, by name (docs/metrics.md)."""
        rates = self.counters.rates()
        out = dict(self._metrics)
        out |= {f"gate/{name}": value for name, value in rates.items()}
        out |= {
            "selfplay/programs": float(self.programs), "selfplay/solves": float(self.solves),
            "selfplay/inserted": float(self.inserted), "selfplay/archive_cells": float(len(self.archive)),
            "selfplay/effective_cells": float(self.archive.effective_cells()),
            "selfplay/version": float(self.versions["verifier"]), "selfplay/lost_calls": float(self.lost),
        }  # fmt: skip
        recent = [item for item in self.frontier if item[0] >= self.step - 100]
        if recent:
            out["selfplay/median_d_eff"] = float(np.median([item[1] for item in recent]))
            out["selfplay/mean_p_bar"] = float(np.mean([item[2] for item in recent]))
        for family, value in zip(self.families, self._family_skill(), strict=True):
            out[f"skill/{family}"] = value
        for case, rate in self.solver_rate.items():
            out[f"solver_rate/{case}"] = rate
        out |= {f"solver/{name}": float(value) for name, value in self.solver_stats.items()}
        out |= {f"policy/{name}": value for name, value in self.queue.metrics().items()}
        return out

    def _family_skill(self) -> list[float]:
        from gg_ray.records import FAMILIES

        vector = self.scheduler.skill_vector()
        return [float(vector[FAMILIES.index(family)]) for family in self.families]

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Complete state apart from replay: a game that loads it continues bit for bit."""
        from dataclasses import asdict

        c = self.counters
        return {
            "learner": self.learner.state_dict(), "policy": self.policy.state_dict(),
            "solver": self.solver.state_dict(),
            "scheduler": self.scheduler.state_dict(), "archive": self.archive.state_dict(),
            "queue": self.queue.state_dict(), "novelty": self.novelty.state_dict(),
            "gates": {"seen": c.seen, "passed": c.passed, "stopped": dict(c.stopped), "by_family": dict(c.by_family)},
            "recent": [asdict(program) for program in self.recent],
            "frontier": [list(item) for item in self.frontier],
            "lessons": _pack_lessons(self.lessons),
            "counts": {
                name: getattr(self, name)
                for name in (
                    "step", "calls", "questions", "solves", "programs", "inserted", "settled", "answered", "lost",
                )
            },
            "versions": dict(self.versions), "published": dict(self.published_updates),
            "solver_rate": dict(self.solver_rate), "solver_stats": dict(self.solver_stats),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.policy.load_state_dict(state["policy"])
        self.solver.load_state_dict(state["solver"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.archive.load_state_dict(state["archive"])
        self.queue.load_state_dict(state["queue"])
        self.novelty.load_state_dict(state["novelty"])
        gates = state["gates"]
        self.counters = GateCounters(int(gates["seen"]), int(gates["passed"]))
        self.counters.stopped |= {name: int(count) for name, count in gates["stopped"].items()}
        self.counters.by_family = {name: [int(a), int(b)] for name, (a, b) in gates["by_family"].items()}
        self.recent = deque((_program(item) for item in state["recent"]), maxlen=self.recent.maxlen)
        self.frontier = deque(
            ((int(a), float(b), float(c), str(d)) for a, b, c, d in state["frontier"]), maxlen=self.frontier.maxlen
        )  # fmt: skip
        self.lessons = deque(_unpack_lessons(state["lessons"]), maxlen=LESSONS)
        for name, value in state["counts"].items():
            setattr(self, name, int(value))
        self.versions = {name: int(value) for name, value in state["versions"].items()}
        self.published_updates = {name: int(value) for name, value in state["published"].items()}
        self.solver_rate = {name: float(value) for name, value in state["solver_rate"].items()}
        self.solver_stats = {name: int(value) for name, value in state["solver_stats"].items()}


def _program(fields: Mapping[str, Any]) -> Program:
    return Program(**{**fields, "events": tuple(Event(**event) for event in fields["events"])})


def _pack_lessons(lessons: Sequence[Lesson]) -> dict[str, Any]:
    from gg_ray.replay.segments import encode_experiences

    return {
        "experiences": encode_experiences([lesson.experience for lesson in lessons]),
        "hidden": [lesson.hidden_N for lesson in lessons],
    }  # fmt: skip


def _unpack_lessons(state: Mapping[str, Any]) -> list[Lesson]:
    from gg_ray.replay.segments import decode_experiences

    experiences = decode_experiences(state["experiences"], "solver lessons")
    return [
        Lesson(experience=e, hidden_N=np.asarray(h, dtype=np.float32))
        for e, h in zip(experiences, state["hidden"], strict=True)
    ]  # fmt: skip
