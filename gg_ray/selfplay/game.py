"""The state of a self-play run between calls: quotas, archive, queues, learners, versions, counters.

Flow:    selfplay.loop and actors.selfplay drive this one object: order -> settle, question -> settle_answer, learn
Source:  selfplay.md, sections 9, 11, 12, 14
Shapes:  P programs

Both loops hold the same words; what differs is only who carries the calls.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gg_ray.config import RunConfig, SelfplayConfig
from gg_ray.grid.cases import load_case
from gg_ray.learner import Learner, new_verifier, to_numpy
from gg_ray.records import FAMILIES, Event, Program
from gg_ray.replay.segments import decode_experiences, encode_experiences
from gg_ray.scenario.gates import GateCounters, NoveltyGate
from gg_ray.scenario.grammar import Grammar, Stratum, training_families
from gg_ray.selfplay.archive import Cell, Elites
from gg_ray.selfplay.averages import Averages
from gg_ray.selfplay.buffer import Draw, priorities_after
from gg_ray.selfplay.players import Answered, Lesson, Order, Proposed, Question, Summary, new_proposer, new_solver
from gg_ray.selfplay.policy_update import PolicyQueue, ProposerLearner
from gg_ray.selfplay.rewards import p_star, proposer_reward, raw_skill, solver_learnability
from gg_ray.selfplay.scheduler import Scheduler
from gg_ray.selfplay.solver import SolverLearner
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static

ROLE_GAME = 5
LESSONS = 512
LESSON_BATCH = 16
QUESTION_PROGRAMS = 4
RATE_DECAY, FAMILY_DECAY = 0.9, 0.95
"""Memory of the Solver's success and of a family's figures: about ten answers and twenty programs."""
SOLVER_COUNTS = ("completions", "dropped", "made", "made_plausible")
AVERAGES = ("solver_rate", "solver_success", "p_bar", "learnability")
RAW_SKILLS = 512
"""Newest gated anomalies whose skill before clipping is reported."""


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
        self.grammars = {name: Grammar(load_case(name), config.scenario) for name in cases}
        offered = {name: grammar.offered() for name, grammar in self.grammars.items()}
        self.scheduler = Scheduler(self._scheduler_config(), self.families, cases, offered)
        self.archive = Elites({name: load_case(name) for name in cases})
        self.queue = PolicyQueue(config.proposer)
        self.novelty = NoveltyGate(config.scenario.novelty_memory, config.scenario.cell_cap)
        self.counters = GateCounters()
        self.lessons: deque[Lesson] = deque(maxlen=LESSONS)
        self.recent: deque[Program] = deque(maxlen=256)
        self.step = self.calls = self.questions = self.solves = self.programs = self.inserted = 0
        self.settled = self.answered = self.lost = 0
        self.versions = {"verifier": 0, "proposer": 0, "solver": 0}
        self.published_updates = {"proposer": 0, "solver": 0}
        self.solver_rate, self.solver_success = Averages(RATE_DECAY), Averages(RATE_DECAY)
        """Success of the Solver per grid (shown), and per kind of behaviour (solver_key: paid)."""
        self.p_bar, self.learnability = Averages(FAMILY_DECAY), Averages(FAMILY_DECAY)
        """Per family, of gated programs: solve rate, and learnability as the reward arm counts it."""
        self.solver_stats = dict.fromkeys(SOLVER_COUNTS, 0)
        self.solves_solver = self.solves_pretrain = 0
        self.uniform_solves = self.uniform_windows = 0
        """Price of the grammar's own programs: what the control's budget is computed from."""
        self.frontier: deque[tuple[int, float, float, str]] = deque(maxlen=20_000)
        """(step, d_eff, p_bar, family) of gated anomalous programs: figure "d_eff against p_bar over time"."""
        self._metrics: dict[str, float] = {}
        self.pupils: dict[str, Learner] = {}
        """Other networks that learn from the same draws: equal windows and steps, no say in the game. Not saved."""

    def _scheduler_config(self) -> SelfplayConfig:
        """Arms without a policy have no policy programs: uniform and plr draw every program from the grammar."""
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
            passed = not summary.gate
            if summary.program.source == "uniform":
                self.uniform_solves += summary.solves
            cell = self.archive.cell_of(summary.program, summary.d_eff)
            if passed and not self._is_new(summary.program, cell):
                self.counters.stop_late(summary.program)
                continue  # dropped: neither into replay nor into the policy's update
            if index in result.samples:
                samples.append(replace(result.samples[index], reward=self._reward(summary, cell)))
            if passed:
                self._settle_program(summary, cell)
                keep.append(index)
        self.queue.put(samples)
        return keep

    def _is_new(self, program: Program, cell: Cell) -> bool:
        """Gate G6, which the negative control goes without as without G3 and G4."""
        if self.config.scenario.gates == "off":
            return True
        return self.novelty.is_new(program, "/".join(map(str, cell)) if program.events else "")

    def _reward(self, summary: Summary, cell: Cell) -> float:
        play = self.config.selfplay
        reward = proposer_reward(
            play.reward, summary.learnability, gate_failed=bool(summary.gate), beta=play.reward_beta,
            novelty=self.archive.novelty(cell), progress=self.scheduler.progress(stratum_of(cell)),
            learnability_s=solver_learnability(self.solver_success.get(solver_key(cell))),
        )  # fmt: skip
        return float(reward)

    def _settle_program(self, summary: Summary, cell: Cell) -> None:
        """Book a program that passed every gate, as what it is: see stratum_of."""
        done = stratum_of(cell)
        self.archive.record(summary.program, summary.d_eff, summary.learnability)
        self.scheduler.observe(done, summary.skill, self.step)
        self.recent.append(summary.program)
        if done.family:
            self.p_bar.add(done.family, summary.p_bar)
            self.learnability.add(done.family, summary.learnability)
        if summary.d_eff > 0:
            self.frontier.append((self.step, summary.d_eff, summary.p_bar, done.family))
        self.inserted += summary.windows
        if summary.program.source == "uniform":
            self.uniform_windows += summary.windows

    def settle_answer(self, result: Answered) -> None:
        """Book a finished solver call; all windows it made go into replay."""
        self.answered += 1
        for program, d_eff, rate in zip(result.question.programs, result.d_eff, result.rates, strict=True):
            self.solver_rate.add(program.case, rate)
            self.solver_success.add(solver_key(self.archive.cell_of(program, d_eff)), rate)
        for name in SOLVER_COUNTS:
            self.solver_stats[name] += getattr(result, name)
        self.counters.count_completions(result.made, result.dropped)
        self.solves += result.solves
        self.solves_solver += result.solves
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
        for pupil in self.pupils.values():
            pupil.step(draw.batch)
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
            "selfplay/solves_solver": float(self.solves_solver),
            "selfplay/solves_pretrain": float(self.solves_pretrain),
            "selfplay/solves_recheck": float(self.counters.recheck_solves),
            "selfplay/fullest_cell": float(self.novelty.fullest()),
            "selfplay/inserted": float(self.inserted), "selfplay/archive_cells": float(len(self.archive)),
            "selfplay/effective_cells": float(self.archive.effective_cells()),
            "selfplay/version": float(self.versions["verifier"]), "selfplay/lost_calls": float(self.lost),
        }  # fmt: skip
        newest = list(itertools.takewhile(lambda item: item[0] >= self.step - 100, reversed(self.frontier)))
        if newest:
            out["selfplay/median_d_eff"] = float(np.median([item[1] for item in newest]))
            out["selfplay/mean_p_bar"] = float(np.mean([item[2] for item in newest]))
        judged = np.array([item[1:3] for item in itertools.islice(reversed(self.frontier), RAW_SKILLS)])
        if judged.size:
            out["skill/raw_p95"] = float(np.percentile(raw_skill(judged[:, 1], p_star(judged[:, 0])), 95))
        vector = self.scheduler.skill_vector()
        out |= {f"skill/{family}": float(vector[FAMILIES.index(family)]) for family in self.families}
        for group, averages in (
            ("p_bar", self.p_bar), ("learnability", self.learnability), ("solver_rate", self.solver_rate)
        ):  # fmt: skip
            out |= {f"{group}/{name}": value for name, value in averages.values.items()}
        out |= {f"solver/{name}": float(value) for name, value in self.solver_stats.items()}
        if self.solver_stats["made"]:
            out["solver/plausible_share"] = self.solver_stats["made_plausible"] / self.solver_stats["made"]
        out |= {f"policy/{name}": value for name, value in self.queue.metrics().items()}
        return out

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Complete state apart from replay: a game that loads it continues bit for bit."""
        return {
            "learner": self.learner.state_dict(), "policy": self.policy.state_dict(),
            "solver": self.solver.state_dict(),
            "scheduler": self.scheduler.state_dict(), "archive": self.archive.state_dict(),
            "queue": self.queue.state_dict(), "novelty": self.novelty.state_dict(),
            "gates": asdict(self.counters),
            "recent": [asdict(program) for program in self.recent],
            "frontier": [list(item) for item in self.frontier],
            "lessons": _pack_lessons(self.lessons),
            "counts": {
                name: getattr(self, name)
                for name in (
                    "step", "calls", "questions", "solves", "solves_solver", "programs", "inserted", "settled",
                    "answered", "lost", "uniform_solves", "uniform_windows", "solves_pretrain",
                )
            },
            "averages": {name: getattr(self, name).state_dict() for name in AVERAGES},
            "versions": dict(self.versions), "published": dict(self.published_updates),
            "solver_stats": dict(self.solver_stats),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.policy.load_state_dict(state["policy"])
        self.solver.load_state_dict(state["solver"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.archive.load_state_dict(state["archive"])
        self.queue.load_state_dict(state["queue"])
        self.novelty.load_state_dict(state["novelty"])
        self.counters = GateCounters(**state["gates"])
        self.recent = deque((_program(item) for item in state["recent"]), maxlen=self.recent.maxlen)
        self.frontier = deque(
            ((int(a), float(b), float(c), str(d)) for a, b, c, d in state["frontier"]), maxlen=self.frontier.maxlen
        )  # fmt: skip
        self.lessons = deque(_unpack_lessons(state["lessons"]), maxlen=LESSONS)
        for name, value in state["counts"].items():
            setattr(self, name, int(value))
        self.versions = {name: int(value) for name, value in state["versions"].items()}
        self.published_updates = {name: int(value) for name, value in state["published"].items()}
        for name in AVERAGES:
            getattr(self, name).load_state_dict(state["averages"][name])
        self.solver_stats = {name: int(value) for name, value in state["solver_stats"].items()}


def stratum_of(cell: Cell) -> Stratum:
    """What a program is, whatever was ordered: where the grammar has no word of a family, it writes a benign one."""
    if cell.kind in FAMILIES:
        return Stratum("anomalous", cell.kind, cell.case)
    return Stratum("hard" if cell.kind == "hard" else "ordinary", "", cell.case)


def solver_key(cell: Cell) -> str:
    """Grid, kind and detectability: whole cells get one answer in hundreds of learner steps."""
    return f"{cell.case}/{cell.kind}/{cell.d_bin}"


def _program(fields: Mapping[str, Any]) -> Program:
    return Program(**{**fields, "events": tuple(Event(**event) for event in fields["events"])})


def _pack_lessons(lessons: Sequence[Lesson]) -> dict[str, Any]:
    return {
        "experiences": encode_experiences([lesson.experience for lesson in lessons]),
        "hidden": [lesson.hidden_N for lesson in lessons],
    }  # fmt: skip


def _unpack_lessons(state: Mapping[str, Any]) -> list[Lesson]:
    experiences = decode_experiences(state["experiences"], "solver lessons")
    return [
        Lesson(experience=e, hidden_N=np.asarray(h, dtype=np.float32))
        for e, h in zip(experiences, state["hidden"], strict=True)
    ]  # fmt: skip
