"""Typed settings of a run; one nested dataclass per box of the picture.

Flow:    configs/*.yaml + dotted overrides -> [config] -> every component gets its own part, never the whole
Source:  field text says unit, effect and reason; defaults are the laptop run (2 cores, no GPU, about 3 minutes)
Run:     gg-ray train --config smoke --selfplay.reward azr --print-config
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

BALANCE_CASE = "gb-balance"
"""The national balance graph: streams of fuels, links and demand around one hub."""
TRAINABLE_CASES = ("case14", "case30", "case57", "gb29", "gb", BALANCE_CASE)
HELD_OUT_CASES = ("case39", "case118", "case300", "illinois200")
SCALE_CASES = ("activsg10k", "activsg25k", "activsg70k")
KNOWN_CASES = (*TRAINABLE_CASES, *HELD_OUT_CASES, *SCALE_CASES)
SUITES = ("quick", "windows", "timelines")
REAL_SUITE = "real-gb"
"""Suite of `gg-ray evaluate` on the real GB record; only a model of the balance graph has it."""
BASELINE_GROUPS = ("quick", "classical", "statistical", "deep")
"""Groups of rivals (baselines.catalogue); quick is the part of the first two that costs a training run no time."""
CORE_SUITE = "core"
"""The whole benchmark of `gg-ray evaluate`: every suite, fold and grid (docs/benchmark.md)."""
OUTSIDE_SUITE = "fdia-graph"
"""Suite of `gg-ray evaluate` whose attacks and rival arms are those of the package fdia-graph (extra `judge`)."""
WINDOW_SCANS = (16, 24, 48)
"""Window lengths that the patch encoder (patches of 8, pooled) serves with one set of weights."""

RewardName = Literal["ours", "azr", "sfl", "rzero", "regret"]
EncoderName = Literal["patch", "cnn", "tgcn", "pygt_tgcn"]
GraphName = Literal["hybrid", "sage", "none"]
ArmName = Literal["selfplay", "uniform", "plr"]
ModeName = Literal["serial", "sync", "async"]


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, its value and the way out."""


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Tail of an error message: `; did you mean scenario.gates?`, or an empty string without a close match.

    A dotted name also matches by its last part, so `learner.hidden` finds `verifier.hidden`.
    """
    names = list(known)
    leaf = _leaf(word)
    exact = [name for name in names if _leaf(name) == leaf]
    found = exact[:3] or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not found:
        leaves = {_leaf(name): name for name in reversed(names)}
        found = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _leaf(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-")


def check_suite(name: str) -> None:
    """Raises: ConfigError for an unknown suite, with the nearest and the known ones."""
    if name not in SUITES:
        known = (*SUITES, CORE_SUITE, REAL_SUITE, OUTSIDE_SUITE)
        raise ConfigError(f"unknown suite {name!r}{did_you_mean(name, known) or ';'} choose from {', '.join(known)}")


def check_cases(cases: Iterable[str], setting: str) -> None:
    """Raises: ConfigError for a grid that nobody knows, with the nearest and the known ones."""
    for case in cases:
        if case not in KNOWN_CASES:
            hint = did_you_mean(case, KNOWN_CASES)
            raise ConfigError(
                f"{setting}: unknown grid case {case!r}{hint or ';'} choose from {', '.join(KNOWN_CASES)}"
            )


@dataclass(frozen=True, kw_only=True)
class ScenarioConfig:
    """Grids, windows, meters and gates."""

    cases: tuple[str, ...] = ("case14", "case30", "case57", "gb29")
    """Training grids. Held-out grids (case39, case118, case300, illinois200) are refused."""
    scans: int = 16
    """Scans in a window, one of 16, 24, 48 (patches of 8)."""
    step_s: float = 60.0
    """Scan interval, seconds (SCADA: one minute)."""
    fold: int = 0
    """Which three anomaly families are held out of training, 0-3 (selfplay.md, section 5)."""
    kappa: tuple[float, float] = (0.35, 0.7)
    """Range of the metered share of bus and branch channels."""
    plans: int = 32
    """Metering plans drawn per grid. Each is a fixed set of meters with its own factorised gain matrices (about 3 MB on
    57 buses, 150 MB on `gb`); with few of them the Verifier over-fits to their gaps (docs/log.md)."""
    missing_rate: float = 0.01
    """Chance that a reading does not arrive; drawn independently of the label."""
    d_min: float = 3.0
    """Smallest detectability d_eff that may enter replay (gate G4)."""
    d_max: float = float("inf")
    """Largest admitted d_eff: the curriculum lowers it."""
    max_events: int = 3
    """Events in a program, at most 3."""
    realisations: int = 2
    """Meter-noise realisations K per program; more lower the variance of the reward and cost features, not solves."""
    gates: Literal["on", "off"] = "on"
    """off leaves only G1 and G2 (valid, repeatable): for the negative-control run (noise trap)."""
    magnitude: Literal["d_eff", "physical"] = "d_eff"
    """d_eff: magnitude bins are target detectability; physical: raw sizes (negative control)."""
    recheck_share: float = 0.02
    """Share of proposer calls that are executed a second time as a whole and compared bit by bit (gate G2)."""
    novelty_memory: int = 50_000
    """Programs remembered by gate G6."""
    cell_cap: int = 500
    """Remembered programs that may share a behaviour cell (gate G6), 1 % of the memory; further ones are turned away.
    Programs without events, whose news is the context, are not capped."""
    data_dir: str = ""
    """Folder with real GB data; empty: the packaged climatology. The command line fills it from GG_DATA_DIR."""

    def __post_init__(self) -> None:
        for case in self.cases:
            hint = "" if case in KNOWN_CASES else did_you_mean(case, TRAINABLE_CASES)
            _check(
                case in TRAINABLE_CASES,
                f"scenario.cases: {case!r} cannot be trained on{hint or ';'} choose from {', '.join(TRAINABLE_CASES)}",
            )
        _check(len(self.cases) > 0, "scenario.cases: name at least one grid")
        _check(self.scans in WINDOW_SCANS, f"scenario.scans: {self.scans}; choose one of {WINDOW_SCANS}")
        _check(self.fold in range(4), f"scenario.fold: {self.fold}; choose 0, 1, 2 or 3")
        _check(0 < self.kappa[0] <= self.kappa[1] <= 1, f"scenario.kappa: {self.kappa}; need 0 < low <= high <= 1")
        _check(1 <= self.max_events <= 3, f"scenario.max_events: {self.max_events}; choose 1 to 3")
        _check(1 <= self.plans <= 1_000, f"scenario.plans: {self.plans}; choose 1 to 1000 (evaluation has its own)")
        _check(self.realisations >= 1, "scenario.realisations: at least 1")
        _check(self.cell_cap >= 1, f"scenario.cell_cap: {self.cell_cap}; at least 1")
        _check(self.d_min < self.d_max, f"scenario.d_min {self.d_min} must lie below scenario.d_max {self.d_max}")


@dataclass(frozen=True, kw_only=True)
class VerifierConfig:
    """The network that is deployed."""

    encoder: EncoderName = "patch"
    """Window to node: patch (patch MLP, pooled), cnn (convolutions over scans), tgcn (our cell), pygt_tgcn (PyTorch
    Geometric Temporal's)."""
    graph: GraphName = "hybrid"
    """hybrid: GATv2 with edge attributes and a fixed U-Net; sage: the GraphSAGE baseline; none: each bus on its own."""
    hidden: int = 64
    """Width of node states."""
    patch: int = 8
    """Scans per patch; must divide the window."""
    heads: int = 4
    """Attention heads; must divide hidden."""
    layers: int = 2
    """Flat message-passing layers before the U-Net."""
    dropout: float = 0.0
    """Dropout after each graph layer."""
    jacobian: bool = False
    """Join the Jacobian block to each bus: what the last scan says against the estimate before it."""

    def __post_init__(self) -> None:
        _check(self.hidden % self.heads == 0, f"verifier.hidden {self.hidden} must be a multiple of heads {self.heads}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the Verifier loss (selfplay.md, section 9)."""

    disturbance: float = 0.5
    type: float = 0.5
    severity: float = 0.1
    node: float = 1.0
    edge: float = 1.0
    state: float = 0.5
    physics: float = 0.05
    physics_warmup_steps: int = 200
    """The physics weight rises linearly over these steps: early states are far from any power flow."""
    twin: float = 0.5
    twin_margin: float = 1.0
    """Least distance (logits) asked for between an anomaly and its twin."""
    twin_slope: float = 0.0
    """Distance (logits) asked for per unit of d_eff: a score that goes on rising with the evidence."""
    twin_limit: float = 16.0
    """Most that is asked for."""
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        _check(self.twin_slope >= 0, f"learner.loss.twin_slope: {self.twin_slope}; at least 0")
        _check(
            0 <= self.twin_margin <= self.twin_limit,
            f"learner.loss.twin_limit: {self.twin_limit}; at least twin_margin, {self.twin_margin}",
        )


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Optimisation of the Verifier."""

    batch: int = 64
    """Windows per step (twins count)."""
    lr: float = 3e-3
    lr_end: float = 1e-4
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Gradient norm bound."""
    ema: float = 0.99
    """Decay of the averaged weights; actors score with them and they are what is served."""
    device: str = "auto"
    """auto takes a GPU when there is one."""
    publish_every: int = 20
    """Learner steps between weight versions."""
    solver_every: int = 4
    """Verifier steps per Solver step."""
    pretrain_steps: int = 0
    """Steps of masked reconstruction on benign windows before the game; the control of a run gets them too."""
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        _check(self.batch >= 2, f"learner.batch: {self.batch}; at least 2")
        _check(self.pretrain_steps >= 0, f"learner.pretrain_steps: {self.pretrain_steps}; 0 or more")
        _check(0 <= self.ema < 1, f"learner.ema: {self.ema}; need 0 <= ema < 1")


@dataclass(frozen=True, kw_only=True)
class ProposerConfig:
    """The policy that writes programs."""

    hidden: int = 128
    lr: float = 1e-3
    batch: int = 32
    """Own programs per policy update."""
    clip: float = 0.2
    entropy: float = 0.03
    entropy_end: float = 0.005
    uniform_mix: float = 0.1
    """Share of the uniform distribution in every head of the behaviour policy."""
    advantage_clip: float = 3.0
    ratio_max: float = 2.0
    """Truncation of the importance ratio."""
    max_policy_lag: int = 2
    """Published proposer versions after which a sample is dropped."""
    max_verifier_lag: int = 10
    """Published Verifier versions after which a sample is dropped: its reward is stale."""


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """The network that completes masked meters."""

    hidden: int = 64
    lr: float = 1e-3
    rank: int = 8
    """Rank of the state covariance: completions are sampled jointly."""
    horizon: int = 4
    """Most last scans that are masked and completed; each question draws 1 to so many."""
    block_meters: int = 8
    """Most meters that are masked; each question draws 1 to so many neighbours. More: hardly ever completed."""
    samples: int = 4
    """Completions per question."""
    share: float = 0.1
    """Largest share of solver-made windows in a batch."""

    def __post_init__(self) -> None:
        _check(1 <= self.horizon <= 4, f"solver.horizon: {self.horizon}; choose 1 to 4")
        _check(self.block_meters >= 1, f"solver.block_meters: {self.block_meters}; at least 1")


@dataclass(frozen=True, kw_only=True)
class SelfplayConfig:
    """The game: quotas, rewards, sources."""

    arm: ArmName = "selfplay"
    """selfplay; uniform (uniform + gate + twins, the control); plr (the control with rank replay)."""
    reward: RewardName = "ours"
    """ours: gated oracle-normalised learnability; azr, sfl, rzero, regret for comparison."""
    family_choice: Literal["scheduler", "policy"] = "scheduler"
    """policy lets the proposer pick the family: only for the negative control."""
    steps: int = 600
    """Verifier steps of the run."""
    programs: int = 32
    """Programs per proposer call; all of one call share a grid."""
    uniform_floor: float = 0.2
    """Share of uniform-grammar programs."""
    mutation_share: float = 0.2
    """Share of mutations of high-learnability programs."""
    anomalous_share: float = 0.5
    """Share of anomalous programs; with twins two thirds of the windows are plausible."""
    hard_share: float = 0.5
    """Share of plausible programs that are plausible-hard."""
    reward_beta: float = 0.7
    """Weight of Verifier learnability against Solver learnability."""
    epsilon: float = 0.05
    """Skill above 1 - epsilon earns nothing."""
    lp_temperature: float = 0.1
    """Softmax temperature of the scheduler's learning-progress quota."""

    def __post_init__(self) -> None:
        _check(self.uniform_floor + self.mutation_share <= 1, "selfplay: uniform_floor + mutation_share exceed 1")
        _check(self.steps >= 1, f"selfplay.steps: {self.steps}; at least 1")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The buffer between actors and learner."""

    limit_bytes: int = 512 * 2**20
    """Payload kept before eviction, bytes; the process needs about 1.2 times this."""
    max_items: int = 200_000
    min_size: int = 256
    """Windows before the learner may start."""
    samples_per_insert: float = 2.0
    """Mean draws per inserted window. Higher: more reuse, more memorising (docs/adr/0005-own-replay.md)."""
    error_buffer: float = 0.1
    """Allowed drift of the limiter, as a share of samples_per_insert x min_size."""
    beta: float = 0.4
    """Importance-weight exponent."""
    rank_share: float = 0.2
    """Share of a batch drawn by rank (PLR); solver.share apart, the rest is uniform over the buffer."""
    rank_temperature: float = 1.0
    """PLR rank exponent is 1 / rank_temperature."""
    staleness_coef: float = 0.1
    """PLR staleness weight (rho_s)."""

    def __post_init__(self) -> None:
        _check(self.samples_per_insert > 0, "replay.samples_per_insert must be positive")
        _check(self.limit_bytes >= 2**20, "replay.limit_bytes: at least 1 MiB")


@dataclass(frozen=True, kw_only=True)
class ActorsConfig:
    """Ray processes and staleness."""

    proposers: int = 1
    solvers: int = 1
    in_flight: int = 2
    """Calls in flight per actor, at most 2."""
    max_lag: int = 2
    """Weight versions an experience may lag behind (async); 0 is synchronous."""
    min_healthy: int = 1
    call_timeout_s: float = 120.0
    """A call that takes longer counts as lost."""
    start_timeout_s: float = 60.0
    """Placement that is not granted within this time ends the run with need against have."""

    def __post_init__(self) -> None:
        _check(1 <= self.in_flight <= 2, f"actors.in_flight: {self.in_flight}; choose 1 or 2")
        _check(self.proposers >= 1 and self.solvers >= 0, "actors: at least one proposer")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 200
    keep: int = 2
    replay_tail: int = 4_000
    """Newest windows saved with a checkpoint; 0 saves the whole buffer."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Held-out evaluation at the end of a run and during it."""

    every_steps: int = 200
    """Learner steps between looks at a small fixed set of validation windows; 0 never looks."""
    suite: str = "quick"
    """quick (windows and timelines), windows or timelines."""
    held_out_cases: tuple[str, ...] = ("case39",)
    """Grids no run may train on; every suite runs on the first training grid and on these."""
    windows: int = 40
    """Gated windows per family in the window suite."""
    days: int = 12
    """Test days per grid in the timeline suite, one attack episode each; the families take turns."""
    validation_days: int = 4
    """Benign days from which thresholds are set."""
    stride: int = 3
    """Scans between two looks at a timeline."""
    incidents_per_day: float = 1.0
    """False-alarm budget that sets the timeline threshold."""
    baselines: bool = True
    baseline_groups: tuple[str, ...] = ("quick",)
    """Rivals in every table: quick, classical, statistical (needs the extra baselines), deep (needs minutes per grid).
    The national balance graph has rivals of its own."""
    uniform_control: bool = True
    """Also train the same Verifier on uniform scenarios with the same budget."""
    supervised_baselines: bool = False
    """Also train the per-bus and GraphSAGE baselines on the very draws of the uniform control, as further rows."""

    def __post_init__(self) -> None:
        check_suite(self.suite)
        check_cases(self.held_out_cases, "evaluate.held_out_cases")
        for group in self.baseline_groups:
            hint = did_you_mean(group, BASELINE_GROUPS)
            known = ", ".join(BASELINE_GROUPS)
            _check(
                group in BASELINE_GROUPS,
                f"evaluate.baseline_groups: unknown {group!r}{hint or ';'} choose from {known}",
            )
        for name in ("windows", "days", "validation_days", "stride"):
            _check(getattr(self, name) >= 1, f"evaluate.{name}: {getattr(self, name)}; at least 1")
        _check(self.every_steps >= 0, f"evaluate.every_steps: {self.every_steps}; 0 or more")
        _check(self.incidents_per_day >= 0, f"evaluate.incidents_per_day: {self.incidents_per_day}; 0 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run; saved beside its results."""

    name: str = "laptop"
    seed: int = 0
    """Root of every random stream: SeedSequence(seed, spawn_key=(role, index))."""
    mode: ModeName = "async"
    """serial: one process, bit-reproducible; sync: Ray in lock-step, equal to serial; async: free-running."""
    scenario: ScenarioConfig = field(default_factory=ScenarioConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    proposer: ProposerConfig = field(default_factory=ProposerConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    selfplay: SelfplayConfig = field(default_factory=SelfplayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _check(
            self.scenario.scans % self.verifier.patch == 0,
            f"scenario.scans {self.scenario.scans} must be a multiple of verifier.patch {self.verifier.patch}",
        )
        _check(
            self.checkpoint.every_steps % self.learner.publish_every == 0,
            f"checkpoint.every_steps {self.checkpoint.every_steps} must be a multiple of learner.publish_every"
            f" {self.learner.publish_every}: a resumed run restarts its players from published weights",
        )
        _check(
            BALANCE_CASE not in self.scenario.cases or self.actors.solvers == 0,
            f"scenario.cases: {BALANCE_CASE} needs actors.solvers 0: some of its readings are computed from others, so"
            " a completed one would contradict them",
        )
        _check(
            not self.evaluate.supervised_baselines
            or (self.evaluate.uniform_control and self.selfplay.arm == "selfplay"),
            "evaluate.supervised_baselines: they learn from the draws of the uniform control; set"
            " evaluate.uniform_control and leave selfplay.arm at selfplay",
        )
        held = set(self.evaluate.held_out_cases) & set(self.scenario.cases)
        _check(not held, f"evaluate.held_out_cases: {', '.join(sorted(held))} is also trained on")


def as_dict(config: object) -> dict[str, object]:
    """Nested plain dictionary of a settings dataclass (for YAML, JSON and the checkpoint)."""
    return dataclasses.asdict(config)  # type: ignore[call-overload,no-any-return]
