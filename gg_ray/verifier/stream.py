"""Streaming: one scan in, the judgement of the window that ends with it out, for the price of the scan.

Flow:    telemetry -> Scan -> [stream] -> VerifierOutput; features and model as for windows
Source:  docs/adr/0016-export-and-streaming.md (why exact and not a recurrent state)
Shapes:  T scans of a full window, N buses, E branches, M installed meters, n rows (N or E), P patches, W patch width

Carried are estimates and features of the last T scans, in rings, and the embedding of every patch of scans without its
zeta part: patches count from the window's end, so the patches of this tick were embedded 8, 16, ... ticks ago. Zeta, a
distance to the mean of the window, is the one feature that changes in every scan at every tick; it and the fixed
statistics are made anew (stream_kernel). The graph part follows as for a window.
Invariant: the output is that of the Verifier on the window of the last T scans, to 1e-5 (tested).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.grid.ybus import BranchAdmittance, branch_admittance
from gg_ray.records import F64, I64, U8, Window
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.evidence_kernel import CHANNELS
from gg_ray.verifier.features import C128, Features, Featurizer, Prepared, batch_of
from gg_ray.verifier.model import Summary, Verifier, VerifierOutput
from gg_ray.verifier.stream_rows import Rows
from gg_ray.verifier.temporal import MAX_PATCHES, PatchEncoder
from gg_ray.verifier.unet import Coarse, hierarchy

SHORTEST = 16
"""Scans before the first judgement: the shortest window that the network is trained on."""
LATE = 0.5
"""A scan may come this share of a step early or late; beyond it the stream has a gap and starts anew."""


class StreamError(ValueError):
    """A scan or state that does not fit the stream; the message names the field, the value and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One scan of telemetry, with the meaning of records.Window: z NaN where nothing arrived, declared model."""

    time_ns: int
    z_M: F64
    age_M: U8
    status_E: U8
    tap_E: F64
    x_scale_E: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """All that a stream carries, oldest scan first; plain arrays, so that it can be saved. T scans or fewer.

    r_TM are the normalised residuals and v_TN the estimated voltages: what would cost an estimation to remake.
    """

    time_T: I64
    z_TM: F64
    age_TM: U8
    status_TE: U8
    tap_TE: F64
    x_scale_TE: F64
    r_TM: F64
    v_TN: C128

    @property
    def scans(self) -> int:
        return int(self.time_T.size)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A scan with its estimate."""

    scan: Scan
    r_M: F64
    v_N: C128


class Stream:
    """The Verifier on one grid and metering plan, scan by scan.

    A stream starts anew (the next judgement comes after SHORTEST scans) after a gap, a step back in time or another
    declared length of a branch, which would change the model under the scans already judged. Outages and tap moves do
    not interrupt it: they are declared scan by scan. Until the window is full, and in the first tick after a restore,
    a tick costs as much as a window.
    """

    def __init__(self, network: Verifier, plan: MeterPlan, step_s: float, scans: int = 48) -> None:
        """Args: step_s  seconds between scans;  scans  T of the full window, whole patches, at least SHORTEST.

        Raises: StreamError for gb-balance, another encoder than patch, the Jacobian block, or scans that are no whole
                patches.
        """
        if plan.case == balance.NAME:
            raise StreamError(f"{plan.case}: the scales of its laws belong to a window; score windows (gg-ray score)")
        encoders = network.node_encoder, network.edge_encoder
        if not isinstance(encoders[0], PatchEncoder):
            raise StreamError(f"encoder {network.config.encoder!r}: only verifier.encoder patch can be streamed")
        if network.config.jacobian:
            raise StreamError("a network with verifier.jacobian cannot be streamed: score windows (gg-ray score)")
        self._encoders = encoders[0], encoders[1]
        patch = encoders[0].patch
        if scans % patch or not SHORTEST <= scans <= MAX_PATCHES * patch:
            raise StreamError(f"scans {scans}: need whole patches of {patch}, {SHORTEST} to {MAX_PATCHES * patch}")
        self.case, self.plan, self.network, self.scans, self.patch = load_case(plan.case), plan, network, scans, patch
        self._step_s = step_s
        self._featurizer = Featurizer()
        self._past: deque[_Judged] = deque(maxlen=scans)
        self._rows: tuple[Rows, Rows] | None = None
        self._held_M, self._silence_M = np.full(plan.size, np.nan), np.full(plan.size, scans)
        self._coarse: tuple[bytes, Coarse] = (b"", Coarse(*(torch.empty(0),) * 4))
        self._y: tuple[bytes, BranchAdmittance] | None = None

    def reset(self) -> None:
        """Forget every scan."""
        self._past.clear()
        self._rows = None

    @property
    def state(self) -> StreamState:
        """A copy of what is carried. Raises: StreamError before the first scan."""
        if not self._past:
            raise StreamError("state: no scan has come yet")
        scans = [past.scan for past in self._past]
        return StreamState(
            time_T=np.array([scan.time_ns for scan in scans]), z_TM=np.stack([scan.z_M for scan in scans]),
            age_TM=np.stack([scan.age_M for scan in scans]), status_TE=np.stack([scan.status_E for scan in scans]),
            tap_TE=np.stack([scan.tap_E for scan in scans]), x_scale_TE=np.stack([scan.x_scale_E for scan in scans]),
            r_TM=np.stack([past.r_M for past in self._past]), v_TN=np.stack([past.v_N for past in self._past]),
        )  # fmt: skip

    @property
    def residuals(self) -> F64:
        """[T, M] normalised residuals of the scans held, for the onset of an incident."""
        return np.stack([past.r_M for past in self._past])

    def restore(self, state: StreamState) -> None:
        """Go on from a saved state; a gap since then starts the stream anew at the next tick.

        Raises: StreamError for arrays that do not fit the grid and the plan.
        """
        n, e, m, k = self.case.n_bus, self.case.n_branch, self.plan.size, state.scans
        for item, width in zip(fields(StreamState), ((), (m,), (m,), (e,), (e,), (e,), (m,), (n,)), strict=True):
            have = getattr(state, item.name).shape
            if have != (k, *width) or k > self.scans:
                raise StreamError(f"state.{item.name}: shape {have}, need {(k, *width)}, at most {self.scans} scans")
        self.reset()
        for t in range(k):
            scan = Scan(
                time_ns=int(state.time_T[t]), z_M=state.z_TM[t], age_M=state.age_TM[t], status_E=state.status_TE[t],
                tap_E=state.tap_TE[t], x_scale_E=state.x_scale_TE[t],
            )  # fmt: skip
            self._past.append(_Judged(scan, state.r_TM[t], state.v_TN[t]))

    @torch.inference_mode()
    def tick(self, scan: Scan) -> VerifierOutput | None:
        """Judge the window that ends with this scan: its last T scans, fewer (whole patches) while it fills.

        Returns: output for one graph, None before SHORTEST scans.   Raises: StreamError for a scan that does not fit.
        """
        self._check(scan)
        if self._past and self._interrupted(scan, self._past[-1].scan):
            self.reset()
        self._past.append(_Judged(scan, *self._estimate(scan)))
        count = len(self._past)
        if count == self.scans and self._rows is not None:
            return self._incremental()
        count -= count % self.patch
        return self._whole(count) if count >= SHORTEST else None

    def _check(self, scan: Scan) -> None:
        m, e = self.plan.size, self.case.n_branch
        for name, size in {"z_M": m, "age_M": m, "status_E": e, "tap_E": e, "x_scale_E": e}.items():
            have = getattr(scan, name).shape
            if have != (size,):
                raise StreamError(f"scan.{name}: shape {have}, need ({size},) for {self.case.name} and its plan")
        if np.isinf(scan.z_M).any():
            raise StreamError("scan.z_M: an infinite reading; use NaN for a value that did not arrive")

    def _interrupted(self, scan: Scan, last: Scan) -> bool:
        step_ns = self._step_s * 1e9
        late = abs(scan.time_ns - last.time_ns - step_ns) > LATE * step_ns
        return late or not np.array_equal(scan.x_scale_E, last.x_scale_E)

    def _estimate(self, scan: Scan) -> tuple[F64, C128]:
        """Normalised residuals and voltages of one scan, under its declared model."""
        y = None
        if (scan.tap_E != self.case.tap).any() or (scan.x_scale_E != 1.0).any():
            key = scan.tap_E.tobytes() + scan.x_scale_E.tobytes()
            if self._y is None or self._y[0] != key:
                self._y = key, branch_admittance(self.case, scan.tap_E, scan.x_scale_E)
            y = self._y[1]
        fresh = np.where(scan.age_M == 0, scan.z_M, np.nan)
        estimator = self._featurizer.estimator(self.case, self.plan)
        v, r = estimator.estimate(fresh[None], scan.status_E.astype(bool)[None], y)
        return r[0], v[0]

    def _features(self, past: Sequence[_Judged], z_TM: F64) -> Features:
        """Features of some neighbouring scans as if they were a window with these readings."""
        last = past[-1].scan
        window = Window(
            case=self.case.name, plan_id=self.plan.plan_id, t0_ns=past[0].scan.time_ns, step_s=self._step_s, z_TM=z_TM,
            age_TM=np.stack([p.scan.age_M for p in past]), status_TE=np.stack([p.scan.status_E for p in past]),
            tap_E=last.tap_E, x_scale_E=last.x_scale_E,
        )  # fmt: skip
        r, v = np.stack([p.r_M for p in past]), np.stack([p.v_N for p in past])
        return self._featurizer.features(Prepared(self.case, self.plan, [window], z_TM[None], r[None], v[None]))

    def _whole(self, scans: int) -> VerifierOutput:
        """Judge the last scans as a window; a full one also makes the rings of the ticks that follow."""
        past = list(self._past)[-scans:]
        z = np.stack([p.scan.z_M for p in past])
        features = self._features(past, z)
        if scans == self.scans:
            self._rows = self._rings(features, z)
        out: VerifierOutput = self.network(batch_of(self.case.name, features))
        return out

    def _rings(self, features: Features, z_TM: F64) -> tuple[Rows, Rows]:
        present = np.isfinite(z_TM)
        filled = np.empty_like(z_TM)
        self._held_M[:], self._silence_M[:] = np.nan, self.scans
        for t in range(self.scans):
            self._hold(z_TM[t])
            filled[t] = self._held_M
        node, edge = (
            Rows(encoder, raw[0], filled, present, unit[0], meters[0])
            for encoder, raw, filled, present, unit, meters in zip(
                self._encoders,
                (features.node_BTNF, features.edge_BTEF),
                self._by_row(filled, np.nan),
                self._by_row(present, False),
                self._by_row(self.plan.sigma[None], 1.0),
                self._by_row(np.ones((1, self.plan.size), bool), False),
                strict=True,
            )
        )
        return node, edge

    def _hold(self, z_M: F64) -> None:
        """Carry readings forward, no longer than a window is long."""
        present = np.isfinite(z_M)
        self._silence_M += 1
        self._silence_M[present] = 0
        self._held_M[present] = z_M[present]
        self._held_M[self._silence_M >= self.scans] = np.nan

    def _by_row(self, values_TM: NDArray[Any], fill: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """[T, M] -> per bus [T, N, C] and per branch [T, E, C]; `fill` where there is no meter."""
        scans, n = values_TM.shape[0], self.case.n_bus
        full = np.full((scans, self.plan.layout.size), fill, values_TM.dtype)
        full[:, self.plan.channels] = values_TM
        node, edge = full[:, : CHANNELS * n], full[:, CHANNELS * n :]
        by_row = [part.reshape(scans, CHANNELS, -1).transpose(0, 2, 1) for part in (node, edge)]
        return np.ascontiguousarray(by_row[0]), np.ascontiguousarray(by_row[1])

    def _incremental(self) -> VerifierOutput:
        """Judge a full window of which only the newest scan is new."""
        assert self._rows is not None
        before, now = self._past[-2], self._past[-1]
        # the scan before, as the new window holds it: nothing from the scan that has left
        held = np.where(self._silence_M < self.scans - 1, self._held_M, np.nan)
        features = self._features((before, now), np.stack([held, now.scan.z_M]))
        self._hold(now.scan.z_M)
        filled = self._by_row(self._held_M[None], np.nan)
        present = self._by_row(np.isfinite(now.scan.z_M)[None], False)
        made = []
        for rows, raw, carried, own in zip(
            self._rows, (features.node_BTNF, features.edge_BTEF), filled, present, strict=True
        ):
            rows.push(raw[0, -1], carried[0], own[0])
            made.append(rows.summary())
        features.node_BTNF, features.edge_BTEF = features.node_BTNF[:, -1:], features.edge_BTEF[:, -1:]
        batch = batch_of(self.case.name, features)
        for x_nTF, (_, _, zeta) in zip((batch.x, batch.e), made, strict=True):
            x_nTF[:, 0, 1 : 5 * CHANNELS : 5] = zeta  # the features above know the mean of two scans
        (node, node_proof, _), (edge, edge_proof, _) = made
        scans = torch.tensor(float(self.scans))
        summary = Summary(node=node, edge=edge, node_proof=node_proof, edge_proof=edge_proof, scans=scans)
        return self.network.judge(batch, summary, self._levels(batch))

    def _levels(self, batch: GraphBatch) -> Coarse:
        """Coarse edges, made again when a declared status changes."""
        status = batch.edge_phys[:, 5]
        key = status.numpy().tobytes()
        if self._coarse[0] != key:
            regions = batch.region_graph.shape[0]
            self._coarse = key, hierarchy(batch.edge_index, status, batch.substation, batch.region, regions)
        return self._coarse[1]
