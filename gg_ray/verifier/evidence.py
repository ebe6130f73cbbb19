"""Fixed summary statistics of a window: what an estimation engineer would compute before any learning.

Flow:    verifier.batch (per-scan features) -> [evidence] -> verifier.model (joins encoder, pooled to the graph)
Source:  cumulative sums of normalised residuals (Page 1954), largest normalised residual (Schweppe 1970), variance and
         repeat counts of innovations; docs/adr/0007-verifier-network.md
Shapes:  n buses or branches, T scans, C = 4 channels

Learned patches see eight scans through a narrow layer; sums over 4, 8 and 16 scans with exact scaling are what makes a
slow 1-sigma bias visible, and their maxima over a graph contain the classical tests as a special case.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPANS = (4, 8, 16)
"""Scans over which residuals are summed, ending at the last scan."""
EVIDENCE = 4 * (2 * len(SPANS) + 6)
"""Statistics per bus or branch."""
_LIMIT = 8.0
_CHANNEL = 5
_ZETA, _RESIDUAL, _DELTA, _FRESH = 1, 2, 3, 4


class Evidence(nn.Module):
    """[n, T, >= 20] per-scan features -> [n, EVIDENCE] statistics; no weights.

    Invariant: depends on the last max(SPANS) scans and the window's two halves only, so every window length fits; a
    channel without readings gives zeros.
    """

    def forward(self, x_nTF: Tensor) -> Tensor:
        n, scans, _ = x_nTF.shape
        x = x_nTF[..., : 4 * _CHANNEL].reshape(n, scans, 4, _CHANNEL)
        fresh = x[..., _FRESH]
        residual = torch.sinh(x[..., _RESIDUAL].clamp(-_LIMIT, _LIMIT))
        sums = torch.einsum("ntc,tk->nkc", residual, self._windows(scans, x)).flatten(1)
        recent = x[:, -min(8, scans) :]
        moves = torch.sinh(recent[..., _DELTA].clamp(-_LIMIT, _LIMIT))
        weight = recent[..., _FRESH]
        count = weight.sum(dim=1).clamp(min=1e-3)
        spread = torch.log((moves.square() * weight).sum(dim=1) / count + 0.05)
        still = ((moves.abs() < 1e-4).to(x.dtype) * (weight > 0.1)).sum(dim=1) / recent.shape[1]
        half = scans // 2
        zeta = torch.sinh(x[..., _ZETA].clamp(-_LIMIT, _LIMIT))
        shift = (zeta[:, half:].mean(dim=1) - zeta[:, :half].mean(dim=1)) * half**0.5 / 2**0.5
        seen = (fresh.amax(dim=1) > 0).to(x.dtype)
        parts = (
            torch.asinh(sums), torch.asinh(sums.abs()), torch.asinh(residual.abs().amax(dim=1)),
            torch.asinh(moves.abs().amax(dim=1)), spread * seen, still * seen, torch.asinh(shift.abs()),
            torch.log(residual.square().mean(dim=1) + 0.05) * seen,
        )  # fmt: skip
        return torch.cat(parts, dim=1)

    @staticmethod
    def _windows(scans: int, like: Tensor) -> Tensor:
        """[T, len(SPANS)] weights 1 / sqrt(k) on the last k scans: each sum of unit normals is unit normal."""
        out = like.new_zeros(scans, len(SPANS))
        for column, span in enumerate(SPANS):
            k = min(span, scans)
            out[-k:, column] = k**-0.5
        return out
