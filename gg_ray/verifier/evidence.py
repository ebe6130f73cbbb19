"""Fixed summary statistics of a window: what an estimation engineer would compute before any learning.

Flow:    verifier.batch (per-scan features) -> [evidence] -> verifier.model (joins encoder, pooled to the graph)
Source:  scan statistics (Naus 1965) and cumulative sums (Page 1954) of normalised residuals, largest normalised
         residual (Schweppe 1970), variance and repeat counts of innovations; docs/adr/0007-verifier-network.md
Shapes:  n buses or branches, T scans, C = 4 channels

Learned patches see eight scans through a narrow layer. The largest sum over any 1, 2, 4, 8 or 16 neighbouring scans,
with exact scaling, makes a slow 1-sigma bias visible wherever in the window it sits; maxima of these over a graph
contain the classical tests as a special case.

On a CPU the compiled kernel of evidence_kernel gives the same numbers (1e-5) in a quarter of the time; the tensor code
here is what runs on other devices, under gradients and in exported graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gg_ray.verifier.evidence_kernel import statistics

SPANS = (1, 2, 4, 8, 16)
"""Lengths of the scan windows over which residuals are summed; each twice the one before."""
EVIDENCE = 4 * (len(SPANS) + 9)
"""Statistics per bus or branch."""
BLOCK_ROWS = 512
"""Rows whose statistics are made at a time."""
_LIMIT = 8.0
_DENSE = torch.contiguous_format
_KNEE = 12.0
_CHANNEL = 5
_ZETA, _RESIDUAL, _DELTA, _FRESH = 1, 2, 3, 4


class Evidence(nn.Module):
    """[n, T, >= 20] per-scan features -> [n, EVIDENCE] statistics; no weights.

    Invariant: defined for every window length; a channel without readings gives zeros; rows are independent.
    """

    def forward(self, x_nTF: Tensor) -> Tensor:
        """Statistics of each row, statistic by statistic and within it channel by channel."""
        plain = x_nTF.device.type == "cpu" and x_nTF.dtype == torch.float32 and not x_nTF.requires_grad
        if plain and not torch.compiler.is_compiling():
            return torch.from_numpy(statistics(x_nTF.numpy()))
        return self.reference(x_nTF)

    def reference(self, x_nTF: Tensor) -> Tensor:
        """The same by tensor operations: any device and dtype, with gradients."""
        # intermediates of a block stay in cache, as in temporal.PatchEncoder
        raw_nSC = torch.cat([_statistics(block) for block in torch.split(x_nTF, BLOCK_ROWS)], dim=1).transpose(0, 1)
        sizes, powers, still, seen = raw_nSC.split((len(SPANS) + 4, 4, 1, 1), dim=1)
        floor = powers.new_tensor([0.1, 0.05, 0.1, 0.05])[:, None]
        levels, logs = level(sizes), torch.log(powers + floor) * seen
        spans = len(SPANS) + 2
        return torch.cat((levels[:, :spans], logs[:, :3], still, levels[:, spans:], logs[:, 3:]), dim=1).flatten(1)


def _statistics(x_nTF: Tensor) -> Tensor:
    """[len(SPANS) + 10, n, C]: largest sums, two last sums, shift, jump; burst, spread, swing, mean; still; seen."""
    n, scans, _ = x_nTF.shape
    # time first: sums and maxima over scans then run over contiguous rows. Cloned because four strided passes over
    # memory that is not yet in cache take longer
    x = x_nTF[..., : 4 * _CHANNEL].clone().reshape(n, scans, 4, _CHANNEL).transpose(0, 1)
    weight, delta = x[..., _FRESH].clone(memory_format=_DENSE), x[..., _DELTA].clone(memory_format=_DENSE)
    # comparisons in place stay float: torch has no vector kernel from float to bool
    quiet = delta.detach().abs().lt_(1e-4).mul_(weight.gt(0.1))
    residual = _linear(x[..., _RESIDUAL].clone(memory_format=_DENSE))
    zeta = _linear(x[..., _ZETA].clone(memory_format=_DENSE))
    moves = _linear(delta)
    square, energy = residual * residual, moves * moves
    sums = _sums(residual, len(SPANS))
    widths = [min(span, scans) for span in SPANS]
    half = scans // 2
    shift = (zeta[half:].sum(dim=0) / (scans - half) - zeta[:half].sum(dim=0) / max(half, 1)).abs()
    return torch.stack(
        (
            *(total.abs().amax(dim=0) / width**0.5 for total, width in zip(sums, widths, strict=True)),
            *(sums[i][-1] / widths[i] ** 0.5 for i in (2, 3)),
            shift * half**0.5 / 2**0.5,
            moves.abs().amax(dim=0),
            _sums(square, 3)[-1].amax(dim=0) / 4,
            (energy * weight).sum(dim=0) / weight.sum(dim=0).clamp(min=1e-3),
            _sums(energy, 3)[-1].amax(dim=0) / 4,
            square.sum(dim=0) / scans,
            _sums(quiet, 4)[-1].amax(dim=0) / 8,
            (weight.amax(dim=0) > 0).to(weight.dtype),
        )
    )


def level(value: Tensor) -> Tensor:
    """Linear in thirds of a sigma up to 12, logarithmic beyond: thresholds near 4 stay sharp, gross errors bounded."""
    size = value.abs()
    return torch.sign(value) * torch.where(
        size <= _KNEE, size / 3, _KNEE / 3 + torch.log(size.clamp(min=_KNEE) / _KNEE)
    )


def unlevel(value: Tensor) -> Tensor:
    """Sizes in sigmas of levels >= 0, the inverse of `level`."""
    beyond = _KNEE * torch.exp((value - _KNEE / 3).clamp(min=0.0, max=_LIMIT))
    return torch.where(value <= _KNEE / 3, 3 * value, beyond)


def _linear(values: Tensor) -> Tensor:
    """Values in sigmas from their inverse hyperbolic sine, in place."""
    return values.clamp_(-_LIMIT, _LIMIT).sinh_()


def _sums(values_TnC: Tensor, count: int) -> list[Tensor]:
    """Sums over every min(k, T) neighbouring scans, [T - min(k, T) + 1, n, C] for k = 1, 2, 4, ... (count of them).

    By doubling: differences of running sums would lose small values behind a gross one to rounding.
    """
    scans, width, out = values_TnC.shape[0], 1, [values_TnC]
    while len(out) < count:
        if 2 * width <= scans:
            out.append(out[-1][:-width] + out[-1][width:])
            width *= 2
        else:
            out.append(values_TnC.sum(dim=0, keepdim=True))
    return out
