"""Rings of one kind of rows (buses or branches) of a stream: what a tick need not make anew.

Flow:    verifier.stream -> [stream_rows] -> verifier.model (Summary)
Source:  verifier.features (what a window does at its first scan), verifier.temporal (patches), stream_kernel
Shapes:  n rows, T scans, F features, C = 4 channels, P patches of K scans, W = PATCH_WIDTH; lanes
         are the channels that have a meter

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

from gg_ray.records import F16, F64, Bool
from gg_ray.verifier import patch_kernel
from gg_ray.verifier.evidence_kernel import CHANNELS, FEATURES, SIGMAS, STATISTICS, history
from gg_ray.verifier.gat import Dense, plain
from gg_ray.verifier.patch_kernel import PATCH_WIDTH
from gg_ray.verifier.simd import WIDTH
from gg_ray.verifier.stream_kernel import LANES, summarise, write_scan
from gg_ray.verifier.temporal import PatchEncoder

_READ = slice(0, FEATURES * CHANNELS)
_DELTA, _FRESH, _STILL = 2, 3, 4


class Rows:
    """Invariant: `summary` equals encoder and evidence on the window that the rings hold, oldest scan order[0]."""

    def __init__(
        self, encoder: PatchEncoder, raw_TnF: F16, filled_TnC: F64, present_TnC: Bool, unit_nC: F64, meters_nC: Bool,
    ) -> None:  # fmt: skip
        """Args: raw_TnF features of a full window;  filled_TnC readings, carried forward, NaN where nothing has
        come yet;  present_TnC  where a scan has a reading of its own;  unit_nC  sigma of the channel;  meters_nC  where
        there is a meter: all other channels are zero in raw_TnF, now and later.
        """
        scans, n, features = raw_TnF.shape
        self.encoder, self.patch, self.n = encoder, encoder.patch, n
        self.order = np.arange(scans)
        self.raw = raw_TnF.copy()
        self.row, self.channel = np.nonzero(meters_nC)
        blocks = -(-self.row.size // LANES)
        self.unit = self._lanes(unit_nC, 1.0)
        self.present = np.stack([self._lanes(present_nC, False).ravel() for present_nC in present_TnC])
        self.filled = np.full((blocks, scans, LANES), np.nan)
        self.sigmas = np.zeros((blocks * LANES // WIDTH, scans, SIGMAS, WIDTH), np.float32)
        for t in range(scans):
            self._write(t, filled_TnC[t])
        weight = encoder.embed.weight.detach()
        numbers = np.arange(self.patch * features).reshape(self.patch, features)[:, _READ]
        by_channel = numbers.reshape(self.patch, CHANNELS, FEATURES)
        self._zeta = plain(weight[:, by_channel[..., 1].ravel()].T)
        rest = weight.clone()
        rest[:, by_channel[..., 1].ravel()] = 0.0
        self._rest = _dense(rest)
        self._first_delta = weight[:, by_channel[0, :, 3]]
        self.embedded = torch.zeros(scans, n, PATCH_WIDTH)
        for end in range(self.patch - 1, scans):
            self.embedded[end] = self._rest(self._patch(self.order[end + 1 - self.patch : end + 1]))
        # written anew by every tick, where there is a meter
        self._moving = np.zeros((n, scans, CHANNELS), np.float32)
        self._past = history(scans)

    def push(self, raw_nF: F16, filled_nC: F64, present_nC: Bool) -> None:
        """The newest scan takes the place of the oldest; arguments as those of the constructor, of one scan."""
        slot = self.order[0]
        self.order = np.roll(self.order, -1)
        self.raw[slot], self.present[slot] = raw_nF, self._lanes(present_nC, False).ravel()
        self._write(slot, filled_nC)
        self._begin()
        self.embedded[slot] = self._rest(self._patch(self.order[-self.patch :]))

    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded rows [n, D], their statistics, and zeta [n, C] of the last scan."""
        proof = np.zeros((self.n, STATISTICS * CHANNELS), np.float32)
        summarise(
            self.filled, self.unit, self.sigmas, self._past, self.order, self.row, self.channel, self._moving, proof
        )  # fmt: skip
        ends = self.order[self.patch - 1 :: self.patch]
        position = plain(self.encoder.position[: ends.size].flip(0))
        pooled = patch_kernel.pooled(
            self._moving, self._zeta, position, plain(self.encoder.score.weight[0]), 1, plain(self.embedded), ends
        )  # fmt: skip
        encoded = self.encoder.activated(torch.from_numpy(pooled))
        return encoded, torch.from_numpy(proof), torch.from_numpy(self._moving[:, -1])

    def _lanes(self, values_nC: NDArray[Any], fill: float) -> NDArray[Any]:
        """Channels with a meter side by side [blocks, LANES], the last block filled up."""
        held = values_nC[self.row, self.channel]
        out = np.full(-(-held.size // LANES) * LANES, fill, values_nC.dtype)
        out[: held.size] = held
        return out.reshape(-1, LANES)

    def _write(self, slot: int, filled_nC: F64) -> None:
        """Rings of one scan from its features."""
        columns = np.zeros((self.sigmas.shape[0] * WIDTH, FEATURES), np.float32)
        columns[: self.row.size] = self.raw[slot][:, _READ].reshape(self.n, CHANNELS, FEATURES)[self.row, self.channel]
        write_scan(columns, slot, self.sigmas)
        self.filled[:, slot] = self._lanes(filled_nC, np.nan)

    def _begin(self) -> None:
        """At the first scan of a window nothing has moved yet."""
        start, end = self.order[0], self.order[self.patch - 1]
        delta = self.raw[start][:, 3 : _READ.stop : FEATURES]
        self.embedded[end] -= torch.from_numpy(delta.astype(np.float32)) @ self._first_delta.T
        delta[:] = 0.0
        first = self.sigmas[:, start]
        first[:, _DELTA] = 0.0
        first[:, _STILL] = first[:, _FRESH] > 0.1
        silent = np.flatnonzero(np.isfinite(self.filled[:, start].ravel()) & ~self.present[start])
        if silent.size:
            self._forget(silent)

    def _forget(self, lane: NDArray[np.int64]) -> None:
        """Channels without a reading at the first scan are unseen until they have one, and have not moved there."""
        touched, last = np.unique(self.row[lane]), 0
        for t, slot in enumerate(self.order):
            back = self.present[slot][lane]
            self.raw[slot][self.row[lane], FEATURES * self.channel[lane] + 3] = 0.0
            sigmas = self.sigmas[:, slot]
            sigmas[lane // WIDTH, _DELTA, lane % WIDTH] = 0.0
            heard = lane[back]
            fresh = sigmas[heard // WIDTH, _FRESH, heard % WIDTH]
            sigmas[heard // WIDTH, _STILL, heard % WIDTH] = fresh > 0.1
            lane, last = lane[~back], t
            if not lane.size:
                break
            self.raw[slot][self.row[lane], FEATURES * self.channel[lane]] = 0.0
            self.raw[slot][self.row[lane], FEATURES * self.channel[lane] + 4] = 0.0
            self.filled[lane // LANES, slot, lane % LANES] = np.nan
            sigmas[lane // WIDTH, _FRESH, lane % WIDTH] = 0.0
            sigmas[lane // WIDTH, _STILL, lane % WIDTH] = 0.0
        for end in range(self.patch - 1, min(last + self.patch, self.order.size)):
            slots = self.order[end + 1 - self.patch : end + 1]
            self.embedded[self.order[end], touched] = self._rest(self._patch(slots, touched))

    def _patch(self, slots: NDArray[np.int64], rows: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """[rows, K * F] features of the scans in some slots, as the encoder reads a patch."""
        block = np.stack([self.raw[slot][rows] for slot in slots], axis=1)
        return torch.from_numpy(block).float().flatten(1)  # numpy casts half precision element by element


def _dense(weight: Tensor) -> Dense:
    """Linear layer without bias of given weights."""
    layer = Dense(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return layer.eval()
