"""Graph deviation network: a learnt graph of sensors, attention over it, a forecast, and how far the truth is off.

Flow:    baselines.deep -> [gdn] -> catalogue (row B9)
Source:  Deng and Hooi, "Graph Neural Network-Based Anomaly Detection in Multivariate Time Series", AAAI 2021,
         arXiv 2106.06947; names of steps are theirs
Shapes:  n pieces, L = w + 1 scans (w inputs, one target), K sensors, D embedding width

Not taken over: batch normalisation in the output layers (a piece's forecast must not depend on its neighbours) and a
threshold at the largest validation score (the evaluation sets it).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gg_ray.baselines.deep import DeepDetector, Effort, smooth_maximum
from gg_ray.baselines.series import View
from gg_ray.records import F64

SMOOTH_SCANS = 3
"""Moving average of A(t), as in the code of the authors."""


class DeviationNetwork(nn.Module):
    """Forecast [n, K] of the next scan from w scans [n, w, K]."""

    def __init__(self, channels: int, inputs: int, dim: int, top_k: int) -> None:
        super().__init__()
        self.top_k = min(top_k, channels - 1)
        self.embedding = nn.Parameter(torch.randn(channels, dim) / dim**0.5)
        self.project = nn.Linear(inputs, dim, bias=False)
        self.own, self.other = nn.Linear(2 * dim, 1, bias=False), nn.Linear(2 * dim, 1, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def graph(self) -> Tensor:
        """[K, K] bool: j is one of the top_k sensors most like i, or i itself: graph structure learning."""
        unit = fn.normalize(self.embedding.detach(), dim=1)
        likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
        near = likeness.topk(self.top_k, dim=1).indices
        return torch.eye(len(unit), dtype=torch.bool).scatter(1, near, True)

    def attention(self, x_nwK: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [n, K, K] over neighbours and itself, and W x [n, K, D]: feature extractor."""
        values = self.project(x_nwK.transpose(1, 2))
        g = torch.cat((self.embedding.expand(len(values), -1, -1), values), dim=2)
        # a' (g_i + g_j concatenated) is a sum of two products: one number per sensor each, no K x K x 4D tensor
        logit = fn.leaky_relu(self.own(g) + self.other(g).transpose(1, 2), 0.2)
        return torch.softmax(logit.masked_fill(~self.graph(), -torch.inf), dim=2), values

    def forward(self, x_nwK: Tensor) -> Tensor:
        alpha, values = self.attention(x_nwK)
        z = fn.relu(alpha @ values)
        out: Tensor = self.out(self.embedding * z)  # output layer on v_i * z_i
        return out[..., 0]


class Gdn(DeepDetector):
    """B9, graph deviation score: |forecast error| in interquartile ranges above its median, largest over sensors."""

    name = "gdn"

    def __init__(
        self, view: View = "both", span: int = 6, dim: int = 32, top_k: int = 15, lr: float = 3e-3,
        effort: Effort | None = None,
    ) -> None:  # fmt: skip
        """Args: view what it reads;  span w + 1;  dim of embeddings;  top_k neighbours;  lr;  effort (Effort())."""
        super().__init__(view, span, lr, effort)
        self.dim, self.top_k = dim, top_k

    def _network(self, channels: int) -> nn.Module:
        return DeviationNetwork(channels, self.span - 1, self.dim, self.top_k)

    def _loss(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        return fn.mse_loss(network(pieces_nLK[:, :-1]), pieces_nLK[:, -1])

    def _errors(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        out: Tensor = (network(pieces_nLK[:, :-1]) - pieces_nLK[:, -1]).abs()
        return out

    def _joined(self, errors_BTC: F64, median_C: F64, spread_C: F64) -> F64:
        return smooth_maximum(np.max((errors_BTC - median_C) / spread_C, axis=2), SMOOTH_SCANS)
