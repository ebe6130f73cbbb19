"""Rings of one kind of rows (buses or branches) of a stream: what a tick need not make anew.

Flow:    verifier.stream -> [stream_rows] -> verifier.model (Summary)
Source:  verifier.features (what a window does at its first scan), verifier.temporal (patches), stream_kernel
Shapes:  n rows, T scans, F features, C = 4 channels, P patches of K scans, W = PATCH_WIDTH; LANES of evidence_kernel

Embedding is linear, so a patch splits into a part that stays (all but zeta) and a part that changes with the mean. A
window forgets what came before its first scan: there nothing has moved yet, and a channel that is silent there counts
as unseen until it speaks. Both touch few numbers, and for good, because the first scan is the next to leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gg_ray.records import F16, F32, F64, Bool
from gg_ray.verifier.evidence_kernel import CHANNELS, LANES, ROWS, STATISTICS, blocks_of, decode
from gg_ray.verifier.gat import Dense
from gg_ray.verifier.stream_kernel import summarise
from gg_ray.verifier.temporal import BLOCK_ROWS, PATCH_WIDTH, PatchEncoder

_FEATURES = 5
_READ = slice(0, _FEATURES * CHANNELS)


def lanes(values_nC: NDArray[Any], fill: float) -> NDArray[Any]:
    """[n, C] -> [blocks, LANES], the last block filled up."""
    n = values_nC.shape[0]
    out = np.full((blocks_of(n) * ROWS, CHANNELS), fill, values_nC.dtype)
    out[:n] = values_nC
    return out.reshape(-1, LANES)


class Rows:
    """Invariant: `summary` equals encoder and evidence on the window that the rings hold, oldest scan order[0]."""

    def __init__(
        self, encoder: PatchEncoder, raw_TnF: F16, filled_TnC: F64, present_TnC: Bool, unit_nC: F64
    ) -> None:  # fmt: skip
        """Args: raw_TnF features of a full window;  filled_TnC readings, carried forward, NaN where nothing has
        come yet;  present_TnC  where a scan has a reading of its own;  unit_nC  sigma of the channel.
        """
        scans, n, features = raw_TnF.shape
        self.encoder, self.patch, self.n = encoder, encoder.patch, n
        self.order = np.arange(scans)
        self.raw, self.present = raw_TnF.copy(), present_TnC.copy()
        self.unit = lanes(unit_nC, 1.0)
        shape = (self.unit.shape[0], scans, LANES)
        self.filled = np.full(shape, np.nan)
        self.residual, self.moves, self.fresh, self.still = (np.zeros(shape, np.float32) for _ in range(4))
        for t in range(scans):
            self._write(t, filled_TnC[t])
        weight = encoder.embed.weight.detach()
        columns = np.arange(self.patch * features).reshape(self.patch, features)[:, _READ]
        by_channel = columns.reshape(self.patch, CHANNELS, _FEATURES)
        self._zeta = _dense(weight[:, by_channel[..., 1].ravel()])
        rest = weight.clone()
        rest[:, by_channel[..., 1].ravel()] = 0.0
        self._rest = _dense(rest)
        self._first_delta = weight[:, by_channel[0, :, 3]]
        self.embedded = torch.zeros(scans, n, PATCH_WIDTH)
        for end in range(self.patch - 1, scans):
            self.embedded[end] = self._rest(self._patch(self.order[end + 1 - self.patch : end + 1]))

    def push(self, raw_nF: F16, filled_nC: F64, present_nC: Bool) -> None:
        """The newest scan takes the place of the oldest; arguments as those of the constructor, of one scan."""
        slot = self.order[0]
        self.order = np.roll(self.order, -1)
        self.raw[slot], self.present[slot] = raw_nF, present_nC
        self._write(slot, filled_nC)
        self._begin()
        self.embedded[slot] = self._rest(self._patch(self.order[-self.patch :]))

    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded rows [n, D], their statistics, and zeta [n, C] of the last scan."""
        n, scans = self.n, self.order.size
        zeta = np.empty((n, scans, CHANNELS), np.float32)
        proof = np.empty((n, STATISTICS * CHANNELS), np.float32)
        summarise(
            self.filled, self.unit, self.residual, self.moves, self.fresh, self.still, self.order, zeta, proof
        )  # fmt: skip
        ends = self.order[self.patch - 1 :: self.patch].tolist()
        moving = torch.from_numpy(zeta).view(n, len(ends), self.patch * CHANNELS)
        out = []
        for start in range(0, n, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            embedded = self._zeta(moving[rows].flatten(0, 1)).view(-1, len(ends), PATCH_WIDTH)
            for p, end in enumerate(ends):
                embedded[:, p] += self.embedded[end, rows]
            out.append(self.encoder.pool(embedded))
        return torch.cat(out), torch.from_numpy(proof), torch.from_numpy(zeta[:, -1])

    def _write(self, slot: int, filled_nC: F64) -> None:
        """Rings of one scan from its features."""
        columns = self.raw[slot][:, _READ].astype(np.float32).reshape(self.n, CHANNELS, _FEATURES)
        zeta, residual, moves, fresh = (lanes(columns[..., k], 0.0) for k in (1, 2, 3, 4))
        still = np.empty_like(fresh)
        decode(zeta.ravel(), residual.ravel(), moves.ravel(), fresh.ravel(), still.ravel())
        self.filled[:, slot] = lanes(filled_nC, np.nan)
        for ring, values in ((self.residual, residual), (self.moves, moves), (self.fresh, fresh), (self.still, still)):
            ring[:, slot] = values

    def _begin(self) -> None:
        """At the first scan of a window nothing has moved yet."""
        start, end = self.order[0], self.order[self.patch - 1]
        delta = self.raw[start][:, 3 : _READ.stop : _FEATURES]
        self.embedded[end] -= torch.from_numpy(delta.astype(np.float32)) @ self._first_delta.T
        delta[:] = 0.0
        self.moves[:, start] = 0.0
        self.still[:, start] = self.fresh[:, start] > 0.1
        filled_nC = self.filled[:, start].reshape(-1, CHANNELS)[: self.n]
        silent_nC = np.isfinite(filled_nC) & ~self.present[start]
        if silent_nC.any():
            self._forget(silent_nC)

    def _forget(self, silent_nC: Bool) -> None:
        """Channels without a reading at the first scan are unseen until they have one, and have not moved there."""
        row, channel = np.nonzero(silent_nC)
        touched, last = np.unique(row), 0
        for t, slot in enumerate(self.order):
            block, lane = row // ROWS, (row % ROWS) * CHANNELS + channel
            back = self.present[slot][row, channel]
            self.raw[slot][row, _FEATURES * channel + 3] = 0.0
            self.moves[block, slot, lane] = 0.0
            self.still[block[back], slot, lane[back]] = self.fresh[block[back], slot, lane[back]] > 0.1
            row, channel, block, lane = row[~back], channel[~back], block[~back], lane[~back]
            last = t
            if not row.size:
                break
            self.raw[slot][row, _FEATURES * channel] = 0.0
            self.raw[slot][row, _FEATURES * channel + 4] = 0.0
            self.filled[block, slot, lane] = np.nan
            self.fresh[block, slot, lane] = 0.0
            self.still[block, slot, lane] = 0.0
        for end in range(self.patch - 1, min(last + self.patch, self.order.size)):
            slots = self.order[end + 1 - self.patch : end + 1]
            self.embedded[self.order[end], touched] = self._rest(self._patch(slots, touched))

    def _patch(self, slots: NDArray[np.int64], rows: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """[rows, K * F] features of the scans in some slots, as the encoder reads a patch."""
        block: F32 = np.stack([self.raw[slot][rows] for slot in slots], axis=1).astype(np.float32)
        return torch.from_numpy(block).flatten(1)


def _dense(weight: Tensor) -> Dense:
    """Linear layer without bias of given weights."""
    layer = Dense(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return layer.eval()
