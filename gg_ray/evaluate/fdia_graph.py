"""The outside judge: attacks that we did not write, fdia-graph's own arms and ours in one table, by its protocols.

Flow:    cli evaluate --suite fdia-graph -> fdia_timeline -> fdia_mapping, fdia_arms -> [fdia_graph] -> fdia_report
Source:  fdia-graph 0.20.0 (MIT): its splits, arms, thresholds and `LocalizerBase.score` are called, not re-written
Shapes:  T frames, K frames of a view, N buses, U units drawn together by the bootstrap, R draws

zero-shot  trained on benign, Aq and Ad, tested with As and Ar that no arm has seen; one threshold from labelled
           validation frames (its threshold arms keep their own rule, the next line)
common     trained on all seven families, tested on all; per bus the 99 % quantile of benign training frames
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.evaluate.fdia_arms import EPOCHS, TRAIN, Scans, network_scores, physics_scores, read_scans, trained
from gg_ray.evaluate.fdia_mapping import JudgeError, package
from gg_ray.evaluate.fdia_timeline import Timeline
from gg_ray.evaluate.metrics import Estimate
from gg_ray.learner import to_numpy
from gg_ray.records import F64, I64, Bool
from gg_ray.verifier.model import Verifier

FALSE_FLAGS = 0.01
"""Its budget: share of benign training frames in which a bus may be flagged."""
DRAWS = 1_000
CANDIDATES = 60
"""Thresholds tried on labelled validation frames, between the median score and the one that a bus in 10,000 passes."""
PLAIN, FITTED, PHYSICS = "ours, as trained by self-play", "ours, trained on its families", "ours, physics only"
OURS = (PLAIN, FITTED, PHYSICS)
PEERS: dict[str, Callable[[Any], Any]] = {
    "its SwingThreshold": lambda m: m.SwingThreshold(fa_target=FALSE_FLAGS),
    "its DeltaThreshold": lambda m: m.DeltaThreshold(fa_target=FALSE_FLAGS),
    "its ResidualLocalizer (LNR)": lambda m: m.ResidualLocalizer(fa_target=FALSE_FLAGS),
    "its BusMLP": lambda m: m.BusMLP(fa_target=FALSE_FLAGS, device="cpu"),
    "its BusCNN": lambda m: m.BusCNN(fa_target=FALSE_FLAGS, device="cpu"),
    "its BusMLP, previous swing": lambda m: m.BusMLP(fa_target=FALSE_FLAGS, device="cpu", features="full14+prev"),
    "its BusCNN, previous swing, Jacobian": lambda m: m.BusCNN(
        fa_target=FALSE_FLAGS, device="cpu", features="full14+prev+jac"
    ),
}
"""Its arms with its own defaults (60 epochs, seed 123)."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Families by its numbers: 0 benign, 1 Aq, 2 Ad, 3 As, 4 Ar, 5 At, 6 Al, 7 Am."""

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    tuned: bool
    """One threshold from labelled validation frames; otherwise one per bus from benign training frames."""


PROTOCOLS = (
    Protocol("zero-shot", (0, 1, 2), (0, 1, 2, 3, 4), True),
    Protocol("common", tuple(range(8)), tuple(range(8)), False),
)


@dataclass(slots=True)
class Views:
    """The parts of a timeline that a protocol shows; `test` is read after thresholds are set."""

    train: Any
    val: Any
    test: Any


@dataclass(slots=True)
class Arm:
    """What a method says of the test frames, and the thresholds it was given before."""

    name: str
    score_KN: F64
    threshold_N: F64
    told: Any = None
    """Its `LocalizerScores`."""
    macro: Estimate = field(default_factory=lambda: Estimate(np.nan, np.nan, np.nan))
    micro: Estimate = field(default_factory=lambda: Estimate(np.nan, np.nan, np.nan))
    draws_R: F64 = field(default_factory=lambda: np.zeros(0))
    """Macro F1 of each draw of episodes; the same draws for every arm."""


@dataclass(slots=True)
class Table:
    """One protocol on one timeline."""

    protocol: Protocol
    arms: list[Arm]
    frames: dict[str, int]
    """Frames of each view, attack episodes of the test view and units of the bootstrap."""
    gain: Estimate | None = None
    """Macro F1 of our best arm less that of its best arm, over the same draws; both are picked on the test frames."""
    gain_of: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What every protocol of one evaluation shares; `keep` is the folder of finished scores."""

    scans: Scans
    path: Path
    keep: Path
    network: Verifier
    width: int
    seed: int
    peers: Mapping[str, Callable[[Any], Any]]
    note: Callable[[str], None]


def evaluate_judge(
    timeline: Timeline, network: Verifier, width: int, seed: int, note: Callable[[str], None] = lambda _text: None,
    peers: Mapping[str, Callable[[Any], Any]] = PEERS,
) -> tuple[list[Table], Scans]:  # fmt: skip
    """Every arm under both protocols. Finished scores are kept beside the timeline: a stopped run goes on there.

    Args:   width  scans of a window;  peers  its arms by name
    Raises: JudgeError where the package is missing or the mapping does not hold.
    """
    scans = read_scans(timeline)
    note(f"{scans.case.name}: mapping agrees to {scans.off:.1e} p.u.")
    keep = timeline.path.with_suffix("")
    keep.mkdir(exist_ok=True)
    own = _Setting(
        scans=scans, path=timeline.path, keep=keep, network=network, width=width, seed=seed, peers=peers, note=note
    )  # fmt: skip
    plain_TN = _kept(keep / f"verifier-{_digest(network)}-{width}.npy", lambda: network_scores(network, scans, width))
    return [_table(protocol, own, plain_TN) for protocol in PROTOCOLS], scans


def _table(protocol: Protocol, own: _Setting, plain_TN: F64) -> Table:
    views, scans = views_of(own.path, protocol), own.scans
    arms = []
    for name, make in own.peers.items():
        own.note(f"{scans.case.name}, {protocol.name}: {name}")
        arms.append(_peer(name, make, protocol, views, own.keep))
    train = np.asarray(views.train.idx)

    def fit() -> F64:
        own.note(f"{scans.case.name}, {protocol.name}: {FITTED}")
        fitted = trained(own.network, scans, train, own.width, own.seed, note=own.note)
        return network_scores(fitted, scans, own.width)

    fitted_TN = _kept(own.keep / f"{protocol.name}-fitted-{_digest(own.network)}-{own.width}-{own.seed}.npy", fit)
    benign_T = np.zeros(len(plain_TN), dtype=bool)
    benign_T[train[views.train.export(["family"])["family"] == 0]] = True
    for name, score_TN in ((PLAIN, plain_TN), (FITTED, fitted_TN), (PHYSICS, physics_scores(scans, benign_T))):
        arms.append(our_arm(name, score_TN, protocol, views))
    return _judged(protocol, arms, views, own.seed)


def views_of(path: Path, protocol: Protocol) -> Views:
    """Its chronological splits, restricted to the families of a protocol."""
    load = package().FdiaGraph
    train, val = (load(str(path), split=split, families=protocol.train) for split in ("train", "val"))
    return Views(train, val, load(str(path), split="test", families=protocol.test))


def _peer(name: str, make: Callable[[Any], Any], protocol: Protocol, views: Views, keep: Path) -> Arm:
    """One of its arms, fitted and thresholded by its own methods; what it said is kept on disk."""
    slug = "".join(c if c.isalnum() else "-" for c in name)

    def fit() -> F64:
        arm = make(package("localization"))
        if protocol.tuned and hasattr(arm, "tune_threshold"):
            arm.fit(views.train, val=views.val)
        else:
            arm.fit(views.train)
        return np.vstack([arm.thr, arm.scores(views.test)])

    told = _kept(keep / f"{protocol.name}-{slug}.npy", fit)
    return Arm(name, told[1:], told[0])


def our_arm(name: str, score_TN: F64, protocol: Protocol, views: Views) -> Arm:
    """Scores of every frame as an arm: thresholds from training and validation frames alone.

    A bus that carries no label in training is never flagged by the arm that was trained on labels: its own rule.
    """
    local = _localizer(score_TN)
    if protocol.tuned:
        local.thr = np.full(score_TN.shape[1], _tuned(score_TN[views.val.idx], _truth(views.val)))
    else:
        local.fit(views.train)
    if name == FITTED:
        local.thr[~_truth(views.train).any(axis=0)] = np.inf
    return Arm(name, local.scores(views.test), local.thr)


def _localizer(score_TN: F64) -> Any:
    """Scores made elsewhere behind the door of its localizers, so that its thresholds and metrics apply unchanged."""
    base: Any = package("localization").LocalizerBase

    class FrameScores(base):  # type: ignore[misc]
        def _fields(self) -> list[str]:
            return ["timestep"]

        def _score(self, d: dict[str, I64], ds: Any) -> F64:
            return np.asarray(score_TN[d["timestep"]])

    return FrameScores(fa_target=FALSE_FLAGS)


def _tuned(score_KN: F64, truth_KN: Bool) -> float:
    """Its rule: the threshold with the largest mean F1 per bus over the buses attacked in validation.

    Raises: JudgeError where validation holds no attack.
    """
    if not truth_KN.any():
        raise JudgeError("no attacked validation frame to set a threshold on: the timeline is too short, raise --days")
    levels = 1.0 - np.geomspace(0.5, 1e-4, CANDIDATES)
    candidates = np.unique(np.quantile(score_KN, levels))
    formulas = package("formulas.metrics")
    counts = [formulas.perbus_counts(score_KN > level, truth_KN) for level in candidates]
    tp, fp, fn = (np.stack(part) for part in zip(*counts, strict=True))
    return float(formulas.tau_from_counts(tp, fp, fn, truth_KN.any(axis=0), candidates))


def _truth(view: Any) -> Bool:
    return np.asarray(view.export(["y"])["y"]) > 0


def _judged(protocol: Protocol, arms: list[Arm], views: Views, seed: int) -> Table:
    """Its metrics for every arm, with intervals over episodes."""
    truth = _truth(views.test)
    unit = units_of(np.asarray(views.test.export(["seq_id"])["seq_id"]), np.asarray(views.test.idx))
    units = int(unit[-1]) + 1
    draws_RU = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    for arm in arms:
        local = _localizer(np.zeros((1, truth.shape[1])))
        local.thr = arm.threshold_N
        arm.told = local.score(views.test, scores=arm.score_KN)
        macro_R, micro_R = _drawn(arm.score_KN > arm.threshold_N, truth, unit, draws_RU)
        arm.draws_R = macro_R
        arm.macro, arm.micro = _estimate(arm.told["all"].macro_f1, macro_R), _estimate(arm.told["all"].node_f1, micro_R)
    table = Table(protocol, arms, {
        "train": len(views.train), "validation": len(views.val), "test": len(views.test),
        "test episodes": len(np.unique(views.test.export(["seq_id"])["seq_id"])) - 1, "units": units,
    })  # fmt: skip
    own = [arm for arm in arms if arm.name in OURS]
    their = [arm for arm in arms if arm.name not in OURS]
    if own and their:
        best, rival = (max(group, key=lambda arm: arm.macro.mean) for group in (own, their))
        table.gain = _estimate(best.macro.mean - rival.macro.mean, best.draws_R - rival.draws_R)
        table.gain_of = best.name, rival.name
    return table


def units_of(episode_K: I64, frame_K: I64) -> I64:
    """[K] what the bootstrap draws together: each attack episode, each unbroken run of benign frames between two."""
    new = (np.diff(episode_K) != 0) | ((episode_K[1:] < 0) & (np.diff(frame_K) != 1))
    return np.concatenate([[0], np.cumsum(new)])


def _drawn(flag_KN: Bool, truth_KN: Bool, unit_K: I64, draws_RU: I64) -> tuple[F64, F64]:
    """[R] macro F1 over the buses attacked in a draw, and micro F1, of every draw of units."""
    starts = np.flatnonzero(np.diff(unit_K, prepend=-1))
    tp, fp, fn = (
        draws_RU @ np.add.reduceat(part.astype(np.float64), starts, axis=0)
        for part in (flag_KN & truth_KN, flag_KN & ~truth_KN, ~flag_KN & truth_KN)
    )
    per_bus = package("formulas.metrics").perbus_f1_from_counts(tp, fp, fn)
    active = tp + fn > 0  # a bus that no drawn episode attacks has no F1, as it has none in its metric
    macro = (per_bus * active).sum(axis=1) / np.maximum(active.sum(axis=1), 1)
    micro = 2 * tp.sum(axis=1) / np.maximum(2 * tp.sum(axis=1) + fp.sum(axis=1) + fn.sum(axis=1), 1e-9)
    return macro, micro


def _estimate(value: float, draws_R: F64) -> Estimate:
    low, high = np.quantile(draws_R, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def _kept(path: Path, make: Callable[[], F64]) -> F64:
    """What was computed before, or make it now: a stopped run goes on with the next arm."""
    if not path.is_file():
        value, part = make(), path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, value)
        part.replace(path)
    return np.asarray(np.load(path, allow_pickle=False))


def _digest(network: Verifier) -> str:
    """Which weights, and how they are trained further."""
    digest = hashlib.blake2b(repr((EPOCHS, TRAIN)).encode(), digest_size=6)
    for _, value in sorted(to_numpy(network.state_dict()).items()):
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
