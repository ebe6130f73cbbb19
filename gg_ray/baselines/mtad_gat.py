"""MTAD-GAT: attention over features and over time, a recurrent layer, and two answers: forecast and reconstruction.

Flow:    baselines.deep -> [mtad_gat] -> catalogue (row B8)
Source:  Zhao et al., "Multivariate Time-series Anomaly Detection via Graph Attention Network", ICDM 2020,
         arXiv 2009.02040
Shapes:  n pieces, L = w + 1 scans, K channels, w scans of an input window, D hidden width, Z latent width

Not taken over: cleaning of training data by spectral residuals (ours are clean by construction), the threshold by
peaks over threshold and the point adjustment (the evaluation sets the one and allows no other). Their reconstruction
probability is taken as the Gaussian density relative to its peak, which is 1 for a perfect answer. Losses are means
over channels and scans, not sums, so that both stay of one size on any grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gg_ray.baselines.deep import DeepDetector, Effort
from gg_ray.baselines.series import View
from gg_ray.records import F64

KERNEL = 7
"""Width of the convolution over each series."""
RANGE = 6.0
"""Deviations that one unit of the network stands for: channels of about +-3 deviations fill a range of one, as their
minimum-maximum scaling does, without a gross error in training deciding it."""
_LOGVAR = 8.0


class GraphAttention(nn.Module):
    """Attention over m nodes with vectors of length l, all pairs joined: sigmoid of the weighted sum of all."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(length, 1), nn.Linear(length, 1, bias=False)

    def forward(self, v_nml: Tensor) -> Tensor:
        # w' (v_i, v_j) is a sum of two products, so the m x m logits need no m x m x 2l tensor
        logit = fn.leaky_relu(self.own(v_nml) + self.other(v_nml).transpose(1, 2), 0.2)
        out: Tensor = torch.sigmoid(torch.softmax(logit, dim=2) @ v_nml)
        return out


class JointNetwork(nn.Module):
    """A window [n, w, K] -> forecast of the next scan, and latent and reconstructed distribution of the window."""

    def __init__(self, channels: int, window: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.shape = (window, channels)
        self.smooth = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2)
        self.features, self.times = GraphAttention(window), GraphAttention(channels)
        self.recurrent = nn.GRU(3 * channels, hidden, batch_first=True)
        self.forecast = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.encode = nn.Linear(hidden, 2 * latent)
        self.decode = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, window * channels)
        )  # fmt: skip
        self.logvar = nn.Parameter(torch.full((channels,), -2.0))

    def represent(self, x_nwK: Tensor) -> Tensor:
        """[n, D] last state of the recurrent layer over smoothed, feature-wise and time-wise attended windows."""
        x = self.smooth(x_nwK.transpose(1, 2)).transpose(1, 2)
        by_feature = self.features(x.transpose(1, 2)).transpose(1, 2)
        state: Tensor = self.recurrent(torch.cat((x, by_feature, self.times(x)), dim=2))[1][0]
        return state

    def forward(self, x_nwK: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Forecast [n, K], latent mean and log-variance [n, Z], reconstructed mean [n, w, K]; sampled in training."""
        state = self.represent(x_nwK)
        mean, logvar = self.encode(state).chunk(2, dim=1)
        logvar = logvar.clamp(-_LOGVAR, _LOGVAR)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return self.forecast(state), mean, logvar, self.decode(z).view(-1, *self.shape)

    def noise(self) -> Tensor:
        """[K] variance of a reconstructed reading."""
        return self.logvar.clamp(-_LOGVAR, _LOGVAR).exp()


def joint_loss(network: JointNetwork, pieces_nLK: Tensor) -> Tensor:
    """RMSE of the forecast plus the negative evidence bound of the reconstruction; pieces in network units."""
    x, target = pieces_nLK[:, :-1], pieces_nLK[:, -1]
    forecast, mean, logvar, rebuilt = network(x)
    ahead = ((forecast - target) ** 2).mean(dim=1).clamp(min=1e-12).sqrt().mean()
    likelihood = 0.5 * ((x - rebuilt) ** 2 / network.noise() + network.noise().log()).mean()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum(dim=1).mean() / (x.shape[1] * x.shape[2])
    out: Tensor = ahead + likelihood + divergence
    return out


class MtadGat(DeepDetector):
    """B8: sum over channels of ((forecast error)^2 + gamma (1 - p)) / (1 + gamma), largest over the window."""

    name = "mtad_gat"

    def __init__(
        self, view: View = "both", span: int = 9, hidden: int = 64, latent: int = 16, gamma: float = 0.8,
        lr: float = 1e-3, effort: Effort | None = None,
    ) -> None:  # fmt: skip
        """Args: view;  span w + 1;  hidden, latent widths;  gamma share of reconstruction;  lr;  effort."""
        super().__init__(view, span, lr, effort)
        self.hidden, self.latent, self.gamma = hidden, latent, gamma

    def _network(self, channels: int) -> nn.Module:
        return JointNetwork(channels, self.span - 1, self.hidden, self.latent)

    def _loss(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        assert isinstance(network, JointNetwork)
        return joint_loss(network, pieces_nLK / RANGE)

    def _errors(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        """Forecast from the scans before the last one, reconstruction of the window that ends with it."""
        assert isinstance(network, JointNetwork)
        pieces = pieces_nLK / RANGE
        ahead = (network(pieces[:, :-1])[0] - pieces[:, -1]) ** 2
        rebuilt = network(pieces[:, 1:])[3][:, -1]
        p = torch.exp(-0.5 * (pieces[:, -1] - rebuilt) ** 2 / network.noise())
        out: Tensor = (ahead + self.gamma * (1.0 - p)) / (1.0 + self.gamma)
        return out

    def _joined(self, errors_BTC: F64, median_C: F64, spread_C: F64) -> F64:
        best: F64 = errors_BTC.sum(axis=2).max(axis=1)
        return best
