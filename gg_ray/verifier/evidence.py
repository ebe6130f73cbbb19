"""Fixed summary statistics of a window: what an estimation engineer would compute before any learning.

Flow:    verifier.batch (per-scan features) -> [evidence] -> verifier.model (joins encoder, pooled to the graph)
Source:  scan statistics (Naus 1965) and cumulative sums (Page 1954) of normalised residuals, largest normalised
         residual (Schweppe 1970), variance and repeat counts of innovations; docs/adr/0007-verifier-network.md
Shapes:  n buses or branches, T scans, C = 4 channels

Learned patches see eight scans through a narrow layer. The largest sum over any 1, 2, 4, 8 or 16 neighbouring scans,
with exact scaling, makes a slow 1-sigma bias visible wherever in the window it sits; maxima of these over a graph
contain the classical tests as a special case.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPANS = (1, 2, 4, 8, 16)
"""Lengths of the scan windows over which residuals are summed."""
EVIDENCE = 4 * (len(SPANS) + 9)
"""Statistics per bus or branch."""
_LIMIT = 8.0
_KNEE = 12.0
_CHANNEL = 5
_ZETA, _RESIDUAL, _DELTA, _FRESH = 1, 2, 3, 4


class Evidence(nn.Module):
    """[n, T, >= 20] per-scan features -> [n, EVIDENCE] statistics; no weights.

    Invariant: defined for every window length; a channel without readings gives zeros.
    """

    def forward(self, x_nTF: Tensor) -> Tensor:
        n, scans, _ = x_nTF.shape
        x = x_nTF[..., : 4 * _CHANNEL].reshape(n, scans, 4, _CHANNEL)
        weight = x[..., _FRESH]
        seen = (weight.amax(dim=1) > 0).to(x.dtype)
        residual = torch.sinh(x[..., _RESIDUAL].clamp(-_LIMIT, _LIMIT))
        moves = torch.sinh(x[..., _DELTA].clamp(-_LIMIT, _LIMIT))
        zeta = torch.sinh(x[..., _ZETA].clamp(-_LIMIT, _LIMIT))
        sums, square = _running(residual), _running(residual.square())
        parts = [level(_over(sums, min(span, scans)).abs().amax(dim=1) / min(span, scans) ** 0.5) for span in SPANS]
        ending = [level(_over(sums, min(span, scans))[:, -1] / min(span, scans) ** 0.5) for span in (4, 8)]
        burst = torch.log(_over(square, 4).amax(dim=1) / 4 + 0.1) * seen
        count = weight.sum(dim=1).clamp(min=1e-3)
        spread = torch.log((moves.square() * weight).sum(dim=1) / count + 0.05) * seen
        swing = torch.log(_over(_running(moves.square()), 4).amax(dim=1) / 4 + 0.1) * seen
        quiet = (moves.abs() < 1e-4).to(x.dtype) * (weight > 0.1)
        still = _over(_running(quiet), min(8, scans)).amax(dim=1) / 8
        half = scans // 2
        shift = level((zeta[:, half:].mean(dim=1) - zeta[:, :half].mean(dim=1)).abs() * half**0.5 / 2**0.5)
        jump = level(moves.abs().amax(dim=1))
        mean = torch.log(residual.square().mean(dim=1) + 0.05) * seen
        return torch.cat((*parts, *ending, burst, spread, swing, still, shift, jump, mean), dim=1)


def level(value: Tensor) -> Tensor:
    """Linear in thirds of a sigma up to 12, logarithmic beyond: thresholds near 4 stay sharp, gross errors bounded."""
    size = value.abs()
    return torch.sign(value) * torch.where(
        size <= _KNEE, size / 3, _KNEE / 3 + torch.log(size.clamp(min=_KNEE) / _KNEE)
    )


def _running(values_nTC: Tensor) -> Tensor:
    """[n, T + 1, C] running sums with a leading zero."""
    return torch.cat((torch.zeros_like(values_nTC[:, :1]), values_nTC.cumsum(dim=1)), dim=1)


def _over(running_nTC: Tensor, span: int) -> Tensor:
    """[n, T - span + 1, C] sums over every window of `span` scans."""
    return running_nTC[:, span:] - running_nTC[:, :-span]
