"""The two players: what a Proposer and a Solver do in one call. Ray actors construct these and call them, no more.

Flow:    selfplay.game (Order, Question) -> [players] -> Proposed, Answered -> selfplay.game
Source:  selfplay.md, sections 7 (roles), 11 (sources), 20 (pseudo-code)
Shapes:  P programs, K realisations, S completed scans, M installed meters

Every call draws from SeedSequence(seed, spawn_key=(role, call_id)): which process answers it does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.grid.cases import load_case
from gg_ray.grid.detectability import Innovation
from gg_ray.grid.meters import measure
from gg_ray.learner import load_numpy, new_verifier
from gg_ray.records import U8, Event, Experience, Labels, Program, Window
from gg_ray.scenario.attempt import Attempt, Side
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.gates import G5_PLAUSIBLE, GateCounters
from gg_ray.scenario.grammar import Stratum
from gg_ray.scenario.telemetry import materiality_scale
from gg_ray.selfplay.blocks import Block, draw_block, draw_size, hide
from gg_ray.selfplay.legal import encode_case
from gg_ray.selfplay.policy_update import PolicySample
from gg_ray.selfplay.proposer import Proposer
from gg_ray.selfplay.rollout import Outcome, Rollout, build_experiences, plan_ids
from gg_ray.selfplay.scheduler import Assignment
from gg_ray.selfplay.solver import Solver, correct, sample
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static

ROLE_PROPOSER, ROLE_SOLVER = 1, 2
_SEED_SPACE = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One proposer call."""

    call_id: int
    assignment: Assignment
    parents: tuple[Program | None, ...]
    """Per program: whom to mutate, None for the other sources."""
    exemplars: tuple[tuple[Event, ...], ...]
    skill: tuple[float, ...]
    verifier_version: int
    proposer_version: int


@dataclass(slots=True, kw_only=True)
class Summary:
    """What the driver needs to know of one program; small, the windows travel apart."""

    program: Program
    stratum: Stratum
    gate: str
    d_eff: float
    p_bar: float
    p_star: float
    skill: float
    learnability: float
    windows: int
    solves: int
    """Power-flow rows that its execution took, the second worlds of hidden events included."""


@dataclass(slots=True, kw_only=True)
class Proposed:
    """Result of an Order: summaries in order, the policy's samples without rewards, gate counters of this call."""

    order: Order
    summaries: list[Summary]
    samples: dict[int, PolicySample]
    """By program index; reward 0 until the game has shaped it."""
    counters: GateCounters

    @property
    def solves(self) -> int:
        """Power-flow rows of this call, those that gate G2 solved again included."""
        return sum(summary.solves for summary in self.summaries) + self.counters.recheck_solves


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One solver call: windows of these programs, some meters hidden."""

    call_id: int
    programs: tuple[Program, ...]
    solver_version: int


@dataclass(slots=True, kw_only=True)
class Lesson:
    """A window with hidden meters and the true states behind it: what the Solver learns from."""

    experience: Experience
    hidden_N: NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class Answered:
    """Result of a Question: success rate and d_eff per program, what gate G5 did with the completions, and lessons."""

    question: Question
    rates: list[float]
    """NaN where nothing could be asked."""
    d_eff: list[float]
    completions: int
    dropped: int
    made: int
    """Windows made for replay; they travel apart."""
    made_plausible: int
    """Those of them whose completion is right within 3 sigma."""
    lessons: list[Lesson]
    solves: int
    """Power-flow rows that regenerating the programs took."""


class ProposerPlayer:
    """Writes, executes, gates and scores programs."""

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        self.config = config
        self.rollout = Rollout(config, contexts)
        self.verifier = new_verifier(config.verifier, config.seed).eval()
        self.policy = new_proposer(config)
        self._encodings: dict[str, Any] = {}

    def load(self, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Take published weights: "verifier" (averaged) and "proposer"."""
        if "verifier" in weights:
            load_numpy(self.verifier, weights["verifier"])
        if "proposer" in weights:
            load_numpy(self.policy, weights["proposer"])

    def propose(self, order: Order) -> tuple[Proposed, list[list[Experience]]]:
        """Execute one order.

        Returns: the summary, and the windows of each program (empty where a gate stopped it).
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_PROPOSER, order.call_id)))
        assignment = order.assignment
        grammar = self.rollout.executor(assignment.case).grammar
        count = len(assignment.strata)
        contexts = [int(i) for i in rng.integers(0, _SEED_SPACE, count)]
        plans = plan_ids(self.config, count, rng)
        seeds = [int(i) for i in rng.integers(0, _SEED_SPACE, count)]
        bodies: list[tuple[Event, ...]] = [()] * count
        samples: dict[int, PolicySample] = {}
        written = [i for i, source in enumerate(assignment.sources) if source == "proposer"]
        if written:
            self._write(order, written, contexts, plans, bodies, samples, rng)
        sources = list(assignment.sources)
        for i in range(count):
            parent = order.parents[i]
            if assignment.sources[i] == "mutation" and parent is not None:
                bodies[i] = grammar.mutate(parent.events, plans[i], rng)
            elif assignment.sources[i] != "proposer":
                bodies[i] = grammar.uniform(assignment.strata[i], plans[i], rng)
                sources[i] = "uniform"
        programs = [
            Program(
                case=assignment.case, context_id=contexts[i], plan_id=plans[i], events=bodies[i],
                scans=self.config.scenario.scans, seed=seeds[i], source=sources[i], mode=assignment.strata[i].mode,
            )
            for i in range(count)
        ]  # fmt: skip
        gates = self.rollout.gates(assignment.case)
        gates.counters = GateCounters()
        outcomes = self.rollout.run(programs, self.verifier, order.verifier_version, rng)
        summaries = [_summary(o, s) for o, s in zip(outcomes, assignment.strata, strict=True)]
        proposed = Proposed(order=order, summaries=summaries, samples=samples, counters=gates.counters)
        return proposed, [o.experiences for o in outcomes]

    def _write(
        self, order: Order, written: Sequence[int], contexts: Sequence[int], plans: Sequence[int],
        bodies: list[tuple[Event, ...]], samples: dict[int, PolicySample], rng: np.random.Generator,
    ) -> None:  # fmt: skip
        """Let the policy write its share of the programs."""
        case = order.assignment.case
        grammar = self.rollout.executor(case).grammar
        if case not in self._encodings:
            self._encodings[case] = encode_case(load_case(case))
        levels = []
        for i in written:
            scenario = self.config.scenario
            context = self.rollout.contexts.window(contexts[i], scenario.scans, scenario.step_s, "train")
            levels.append((float(context.load_T.mean()), float(context.wind_T.mean())))
        generator = torch.Generator().manual_seed(int(rng.integers(0, _SEED_SPACE)))
        strata = [order.assignment.strata[i] for i in written]
        drafts = self.policy.sample(
            self._encodings[case], grammar, strata, [plans[i] for i in written],
            torch.tensor(levels, dtype=torch.float32), torch.tensor(order.skill, dtype=torch.float32),
            order.exemplars, generator,
        )  # fmt: skip
        for i, draft, stratum, level in zip(written, drafts, strata, levels, strict=True):
            bodies[i] = draft.events
            samples[i] = PolicySample(
                stratum=stratum, plan_id=plans[i], context=level, skill=order.skill, exemplars=order.exemplars,
                tokens=draft.tokens, logp=draft.logp, reward=0.0, policy_version=order.proposer_version,
                verifier_version=order.verifier_version,
            )  # fmt: skip


def _summary(outcome: Outcome, stratum: Stratum) -> Summary:
    return Summary(
        program=outcome.program, stratum=stratum, gate=outcome.gate, d_eff=outcome.d_eff, p_bar=outcome.p_bar,
        p_star=outcome.p_star, skill=outcome.skill, learnability=outcome.learnability, windows=len(outcome.experiences),
        solves=outcome.solves,
    )  # fmt: skip


class SolverPlayer:
    """Deduction: completes hidden meters from the rest of a window and the declared events."""

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        self.config = config
        self.rollout = Rollout(config, contexts)
        self.solver = new_solver(config)

    def load(self, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Take published weights: "solver"."""
        if "solver" in weights:
            load_numpy(self.solver, weights["solver"])

    def answer(self, question: Question) -> tuple[Answered, list[Experience]]:
        """Regenerate the programs' plausible windows, hide a block, complete it, check it, splice it back.

        Returns: the summary with its lessons, and the solver-made windows that passed gate G5.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_SOLVER, question.call_id)))
        executor = self.rollout.executor(question.programs[0].case)
        made: list[Experience] = []
        lessons: list[Lesson] = []
        rates: list[float] = []
        dropped = completions = 0
        attempts = executor.run(list(question.programs))
        for attempt in attempts:
            result = self._complete(attempt, question, rng) if attempt.main is not None else _Completion()
            made += result.made
            lessons += result.lessons
            rates.append(result.rate)
            completions += self.config.solver.samples * len(result.lessons)
            dropped += result.dropped
        answered = Answered(
            question=question, rates=rates, d_eff=[a.d_eff for a in attempts], completions=completions,
            dropped=dropped, made=len(made), made_plausible=sum(not e.labels.implausible for e in made),
            lessons=lessons, solves=sum(a.solves for a in attempts),
        )  # fmt: skip
        return answered, made

    def _complete(self, attempt: Attempt, question: Question, rng: np.random.Generator) -> _Completion:
        """One window: the plausible side (twin of an anomaly, else the window itself)."""
        executor, settings = self.rollout.executor(attempt.program.case), self.config.solver
        case, plan = executor.case, attempt.plan
        main, twin = executor.realise(attempt, int(rng.integers(1, 1 << 30)))
        window, side = (main, attempt.main) if twin is None else (twin, attempt.twin)
        assert side is not None
        hops = executor.near.hops(int(rng.integers(0, case.n_bus)))
        meters, span = (draw_size(limit, rng) for limit in (settings.block_meters, settings.horizon))
        block = draw_block(window, case, plan, hops, meters, span, rng)
        if not block.meters.size:
            return _Completion()
        flags = block.flags(case, plan)
        lesson = self._experience(attempt, side, hide(window, block))
        batch = collate([lesson], {case.name: case_static(case.name)})
        with torch.inference_mode():
            output = self.solver(batch, torch.from_numpy(flags))
            generator = torch.Generator().manual_seed(int(rng.integers(0, _SEED_SPACE)))
            states = sample(output, batch.graph, 1, settings.samples, generator).double().numpy()[:, :, -span:]
        truth = side.mean_TM[-span:, block.meters]
        made: list[Experience] = []
        dropped, right = 0, 0
        for k in range(states.shape[0]):
            v = ((1.0 + states[k, :, :, 0].T) * np.exp(1j * states[k, :, :, 1].T)).astype(np.complex128)
            guess = measure(case, v, status_RE=side.status_TE[-span:])[:, plan.channels[block.meters]]
            error = (guess - truth) / plan.sigma[block.meters]
            right += int(correct(error.ravel()))
            if k == 0:
                spliced = self._splice(attempt, side, window, block, guess - truth)
                dropped += spliced is None
                made += [] if spliced is None else [spliced]
        return _Completion(made, [Lesson(experience=lesson, hidden_N=flags)], right / states.shape[0], dropped)

    def _splice(
        self, attempt: Attempt, side: Side, window: Window, block: Block, wrong: NDArray[np.float64]
    ) -> Experience | None:
        """The completion put back with the window's own noise; labelled by gate G5, None if it lies in the margin.

        Args: wrong  completion minus truth, [span, meters of the block]
        """
        executor = self.rollout.executor(attempt.program.case)
        gates = self.rollout.gates(attempt.program.case)
        scans, meters = window.z_TM.shape[0], block.meters
        shift = np.zeros((scans, meters.size))
        shift[-block.span :] = wrong
        shift = as_held(shift, window.age_TM[:, meters])
        innovation = Innovation(meters, shift, np.zeros(0, dtype=np.int64), np.zeros((scans, 0)))
        d_eff = float(np.sqrt(executor.detectability(attempt.plan).squared([innovation], scans)[0]))
        scale = materiality_scale(attempt.program.case)[attempt.plan.channels[meters]]
        error = shift[-block.span :] / attempt.plan.sigma[meters]
        label = gates.completion(error, d_eff, float((np.abs(shift).max(axis=0) / scale).max()))
        if label is None:
            return None
        spliced = replace(window, z_TM=window.z_TM.copy())
        spliced.z_TM[:, meters] += shift
        experience = self._experience(attempt, side, spliced)
        experience.source, experience.d_eff, experience.pair = "solver", d_eff, -1
        experience.labels = self._labels(attempt, side, block, error, bool(label), scans)
        return experience

    def _labels(
        self, attempt: Attempt, side: Side, block: Block, error: NDArray[np.float64], implausible: bool, scans: int,
    ) -> Labels:  # fmt: skip
        labels = replace(side.labels, node_N=side.labels.node_N.copy(), edge_E=side.labels.edge_E.copy())
        if implausible:
            wrong = attempt.plan.channels[block.meters[np.abs(error).max(axis=0) >= G5_PLAUSIBLE]]
            bus, branch = attempt.plan.layout.owner()
            labels.implausible, labels.type = True, 0  # no family made it: the type head skips it
            labels.node_N[bus[wrong][bus[wrong] >= 0]] = True
            labels.edge_E[branch[wrong][branch[wrong] >= 0]] = True
            labels.onset, labels.end = scans - block.span, scans
        return labels

    def _experience(self, attempt: Attempt, side: Side, window: Window) -> Experience:
        featurizer = self.rollout.featurizer
        features = featurizer.features(featurizer.prepare([window], attempt.plan))
        return build_experiences([(0, 0, side)], [attempt], features, 0)[0]


def as_held(shift_TM: NDArray[np.float64], age_TM: U8) -> NDArray[np.float64]:
    """[T, M] a shift of true values as telemetry shows it: a held reading keeps what it was shifted by when it came.

    Otherwise the end of a repeat would tell a completed window from a measured one.
    """
    came = np.arange(shift_TM.shape[0])[:, None] - age_TM.astype(np.int64)
    return np.where(came >= 0, np.take_along_axis(shift_TM, np.maximum(came, 0), axis=0), 0.0)


@dataclass(slots=True)
class _Completion:
    made: list[Experience] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    rate: float = float("nan")
    dropped: int = 0


def new_proposer(config: RunConfig) -> Proposer:
    """Freshly initialised policy whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 7 + ROLE_PROPOSER)
        return Proposer(config.proposer)


def new_solver(config: RunConfig) -> Solver:
    """Freshly initialised Solver whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 7 + ROLE_SOLVER)
        return Solver(config.solver, config.verifier.patch)
