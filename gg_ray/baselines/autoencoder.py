"""Auto-encoder: benign pieces of a window through a narrow code; what it cannot give back is unusual.

Flow:    baselines.deep -> [autoencoder] -> catalogue (row B7)
Source:  Sakurada and Yairi 2014 (reconstruction error of an auto-encoder); selfplay.md, section 17.3
Shapes:  n pieces, L scans, K channels, D code width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gg_ray.baselines.deep import DeepDetector, Effort
from gg_ray.baselines.series import View
from gg_ray.records import F64


class CodeNetwork(nn.Module):
    """[n, L, K] -> [n, L, K] through `code` numbers."""

    def __init__(self, channels: int, span: int, hidden: int, code: int) -> None:
        super().__init__()
        width = channels * span
        self.encode = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, code))
        self.decode = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, pieces_nLK: Tensor) -> Tensor:
        out: Tensor = self.decode(self.encode(pieces_nLK.flatten(1)))
        return out.view_as(pieces_nLK)


class AutoEncoder(DeepDetector):
    """B7: mean squared reconstruction error of a piece, the largest over the window."""

    name = "autoencoder"

    def __init__(
        self, view: View = "both", span: int = 4, code: int = 16, hidden: int = 64, lr: float = 1e-3,
        effort: Effort | None = None,
    ) -> None:  # fmt: skip
        """Args: view what it reads;  span scans of a piece;  code, hidden widths;  lr;  effort (default Effort())."""
        super().__init__(view, span, lr, effort)
        self.code, self.hidden = code, hidden

    def _network(self, channels: int) -> nn.Module:
        return CodeNetwork(channels, self.span, self.hidden, self.code)

    def _loss(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        return torch.mean((network(pieces_nLK) - pieces_nLK) ** 2)

    def _errors(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        out: Tensor = ((network(pieces_nLK) - pieces_nLK) ** 2).mean(dim=1)
        return out

    def _joined(self, errors_BTC: F64, median_C: F64, spread_C: F64) -> F64:
        best: F64 = errors_BTC.mean(axis=2).max(axis=1)
        return best
