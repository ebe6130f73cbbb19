"""Our arms in the tables of the outside judge: the Verifier as it is, the same trained by its protocol, plain physics.

Flow:    fdia_timeline, fdia_mapping -> Scans -> [fdia_arms] -> scores per frame and bus -> fdia_graph
Source:  docs/fdia-graph.md; verifier.md, section 3: features see the observed past only, attacked readings included
Shapes:  T frames, N buses, E branches, M installed meters, B windows, S scans of a window, K frames of a list
Units:   p.u., rad; scores are dimensionless, higher is more suspicious
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gg_ray.config import LearnerConfig, LossConfig
from gg_ray.evaluate.fdia_mapping import PLAN_ID, check_mapping, judge_case, meter_plan, package, readings
from gg_ray.evaluate.fdia_timeline import Timeline
from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.learner import Learner, load_numpy, new_verifier, to_numpy
from gg_ray.records import F64, I64, Bool, Window
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.features import Features, Featurizer, Prepared, batch_of
from gg_ray.verifier.model import Verifier

C128 = NDArray[np.complex128]
STEP_S = 60.0
BLOCK = 128
"""Windows whose features are made at a time."""
PAST = 5
"""Frames before the newest one whose median stands for the level that a meter held."""
TRAIN = LearnerConfig(
    batch=32, lr=1e-3, lr_end=5e-5, ema=0.99, device="cpu",
    # what its labels say nothing about has no weight: branches, our families, disturbances, severity, twins
    loss=LossConfig(disturbance=0, type=0, severity=0, edge=0, twin=0, node=2.0, focal_gamma=1.0),
)  # fmt: skip
EPOCHS = 12
"""Passes over the training frames; its own arms take 60."""


@dataclass(slots=True)
class Scans:
    """One timeline as every arm of ours reads it: labels are kept apart, in `data`.

    z_TM readings; r_TM normalised residuals and v_TN voltages of the estimate of each frame alone; off the
    largest disagreement of the mapping, p.u.
    """

    case: GridCase
    plan: MeterPlan
    data: Any
    z_TM: F64
    r_TM: F64
    v_TN: C128
    off: float


def read_scans(timeline: Timeline) -> Scans:
    """Map, check and estimate a timeline.  Raises: JudgeError where the mapping does not hold."""
    data = package().FdiaGraph(str(timeline.path))
    case = judge_case(timeline.system)
    off = check_mapping(case, data, timeline.states_TN4)
    plan = meter_plan(case, data)
    told = data.export(["node_x", "edge_x"])
    z_TM = readings(case, plan, np.asarray(told["node_x"], np.float64), np.asarray(told["edge_x"], np.float64))
    v_TN, r_TM = Featurizer().estimator(case, plan).estimate(z_TM)
    return Scans(case, plan, data, z_TM, r_TM, v_TN, off)


def prepared(scans: Scans, ends_B: I64, width: int) -> Prepared:
    """Windows that end at frames ends_B and reach width - 1 frames back; nothing has arrived before the first frame."""
    frames_BS = ends_B[:, None] + np.arange(1 - width, 1)
    before = frames_BS < 0
    at = np.maximum(frames_BS, 0)
    z_BTM = np.where(before[..., None], np.nan, scans.z_TM[at])
    r_BTM = np.where(before[..., None], 0.0, scans.r_TM[at])
    status = np.ones((width, scans.case.n_branch), dtype=np.uint8)
    tap, length = scans.case.tap, np.ones(scans.case.n_branch)
    windows = [
        Window(
            case=scans.case.name, plan_id=PLAN_ID, t0_ns=int(first) * int(STEP_S * 1e9), step_s=STEP_S, z_TM=z,
            age_TM=np.where(np.isnan(z), 255, 0).astype(np.uint8), status_TE=status, tap_E=tap, x_scale_E=length,
        )
        for first, z in zip(frames_BS[:, 0], z_BTM, strict=True)
    ]  # fmt: skip
    return Prepared(scans.case, scans.plan, windows, z_BTM, r_BTM, scans.v_TN[at])


@torch.inference_mode()
def network_scores(network: Verifier, scans: Scans, width: int) -> F64:
    """[T, N] probability of the node head for the newest scan of the window that ends at each frame."""
    network.eval()
    featurizer, out = Featurizer(), np.empty((len(scans.z_TM), scans.case.n_bus))
    for start in range(0, len(out), BLOCK):
        ends = np.arange(start, min(start + BLOCK, len(out)))
        batch = batch_of(scans.case.name, featurizer.features(prepared(scans, ends, width)))
        node = network(batch).node.double().sigmoid()
        out[ends] = node.numpy().reshape(ends.size, -1)
    return out


def trained(
    network: Verifier, scans: Scans, frames_K: I64, width: int, seed: int, epochs: int = EPOCHS,
    note: Callable[[str], None] = lambda _text: None,
) -> Verifier:  # fmt: skip
    """A copy of a Verifier trained further on labelled frames, by the project's learner.

    Args: frames_K  frames whose labels may be seen; windows read the observed frames before them whatever those hold
    """
    copy = new_verifier(network.config, seed)
    load_numpy(copy, to_numpy(network.state_dict()))
    features = _features(scans, frames_K, width)
    told = scans.data.export(["y", "clean"])
    y_KN = np.asarray(told["y"], dtype=np.float32)[frames_K]
    clean = np.asarray(told["clean"], dtype=np.float64)[frames_K]
    angle = np.deg2rad(clean[..., 3])
    state_KN2 = np.stack([clean[..., 0] - 1.0, angle - angle[:, [scans.case.slack]]], axis=-1)
    steps = epochs * max(1, frames_K.size // TRAIN.batch)
    learner = Learner(copy, TRAIN, steps)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(frames_K.size)
        losses = []
        for rows in np.array_split(order, max(1, frames_K.size // TRAIN.batch)):
            batch = _labelled(batch_of(scans.case.name, _rows(features, rows)), y_KN[rows], state_KN2[rows])
            losses.append(learner.step(batch)[0]["loss/node"])
        note(f"{scans.case.name}: step {learner.step_count} of {steps}, loss/node {np.mean(losses):.3f}")
    return learner.average


def _features(scans: Scans, frames_K: I64, width: int) -> Features:
    featurizer = Featurizer()
    parts = [
        featurizer.features(prepared(scans, frames_K[start : start + BLOCK], width))
        for start in range(0, frames_K.size, BLOCK)
    ]
    return Features(*(np.concatenate([getattr(part, name) for part in parts]) for name in Features.__slots__))


def _rows(features: Features, rows: I64) -> Features:
    return Features(*(getattr(features, name)[rows] for name in Features.__slots__))


def _labelled(batch: GraphBatch, y_BN: NDArray[np.float32], state_BN2: F64) -> GraphBatch:
    """The judge's labels; what it does not label is zero and has no weight in TRAIN."""
    count = len(y_BN)
    batch.y_impl = torch.from_numpy(y_BN.max(axis=1))
    batch.y_dist, batch.severity = torch.zeros(count), torch.zeros(count)
    batch.y_type = torch.zeros(count, dtype=torch.int64)
    batch.y_node, batch.y_edge = torch.from_numpy(y_BN.reshape(-1)), torch.zeros(batch.edge_index.shape[1])
    batch.state = torch.from_numpy(state_BN2.reshape(-1, 2).astype(np.float32))
    batch.pairs, batch.pair_d = torch.zeros((2, 0), dtype=torch.int64), torch.zeros(0)
    batch.weight = torch.ones(count)
    return batch


def physics_scores(scans: Scans, benign_T: Bool) -> F64:
    """[T, N] largest innovation of the P and Q meters of a bus, in robust deviations of benign frames.

    An innovation is a reading less the median of the PAST frames before it: one attacked frame moves that median
    little, so the return from it is no alarm, and a meter's lasting bias cancels.
    """
    channels = np.arange(scans.case.n_bus, 3 * scans.case.n_bus)
    index = scans.plan.index_of[channels]
    own_TC = scans.z_TM[:, index[index >= 0]]
    held = np.concatenate([np.repeat(own_TC[:1], PAST, axis=0), own_TC[:-1]])
    innovation = own_TC - np.median(sliding_window_view(held, PAST, axis=0), axis=-1)
    spread = 1.4826 * np.median(np.abs(innovation[benign_T]), axis=0)
    full = np.zeros((len(own_TC), channels.size))
    full[:, index >= 0] = np.abs(innovation) / np.maximum(spread, 1e-9)
    return np.asarray(full.reshape(len(own_TC), 2, -1).max(axis=1))
