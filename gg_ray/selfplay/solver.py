"""The Solver in deduction mode: a window with a block of meters hidden in, the true states of its last scans out.

Flow:    masked GraphBatch -> [solver] -> completions: solve rate (rewards), hard negatives for the Verifier
Source:  selfplay.md, sections 7 and 10; low-rank Gaussian by the matrix determinant lemma and Woodbury's identity
Shapes:  Nt buses and Et branches of B graphs, S last scans (horizon), r rank, k completions

Trained by likelihood, not adversarially. The state of a graph is one Gaussian with covariance diag + W W^T: the r
factors are shared by all buses and scans of the graph, so a sampled completion is coherent over the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from gg_ray.config import SolverConfig
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, GraphBatch
from gg_ray.verifier.gat import GatLayer, mean_by, sum_by
from gg_ray.verifier.temporal import PatchEncoder

EDGE_WIDTH = 32
LAYERS = 3
ATTENTION_HEADS = 4
STATE_SCALE = (0.01, 0.02)
"""|V| (p.u.) and angle (rad) that one unit of the output heads stands for."""
SIGMA_RANGE = (1e-3, 30.0)
"""Bounds of the diagonal's standard deviation in units of STATE_SCALE: a likelihood has no lower bound of its own."""
MEAN_WEIGHT = 5.0
"""Weight of the plain error of the mean beside the likelihood. Alone, the likelihood lets the factors explain an error
that all buses share, and then hardly tells the mean about it (2203.09168): on the ring problem of the tests the hidden
buses' error after 300 steps is .019 p.u. and .021 rad without it (no better than the prior), .005 and .006 with it, at
the price of .25 nats per dimension."""
MAX_ERROR_SIGMA = 4.0
MAX_CHI2_PER_DOF = 1.5
GRADIENT_CLIP = 1.0
_PHYS_FEATURES = 6 + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOutput:
    """Gaussian over |V| - 1 (p.u.) and angle (rad) of the last S scans."""

    mu: Tensor
    """[Nt, S, 2]"""
    log_sigma: Tensor
    """[Nt, S, 2] log of the diagonal's standard deviation, in the units of mu."""
    factor: Tensor
    """[Nt, S, 2, r] columns of W, in the units of mu; the r factors belong to the graph."""


class Solver(nn.Module):
    """Completes states from what was left of the readings; one set of weights for every grid.

    Invariant: relabelling buses relabels the output; the untrained mean is the estimate xhat at every scan.
    """

    def __init__(self, config: SolverConfig, patch: int = 8) -> None:
        super().__init__()
        self.config = config
        width, span = config.hidden, config.horizon
        self.node_encoder = PatchEncoder(F_NODE, width, patch)
        self.edge_encoder = PatchEncoder(F_EDGE, EDGE_WIDTH, patch)
        # per-scan output needs the scans themselves beside the pooled window; the last entry is the hidden flag
        self.node_join = nn.Linear(width + span * F_NODE + F_NODE_STATIC + 2, width)
        self.node_norm = nn.LayerNorm(width)
        self.edge_join = nn.Linear(EDGE_WIDTH + span * F_EDGE + F_EDGE_STATIC + _PHYS_FEATURES, EDGE_WIDTH)
        self.graph = nn.ModuleList(GatLayer(width, EDGE_WIDTH, ATTENTION_HEADS) for _ in range(LAYERS))
        self.whole = nn.Linear(width, width)
        self.read = nn.Linear(width, width)
        self.mean = nn.Linear(width, span * 2)
        self.spread = nn.Linear(width, span * 2)
        self.shared = nn.Linear(width, span * 2 * config.rank)
        self.register_buffer("scale", torch.tensor(STATE_SCALE), persistent=False)
        self.scale: Tensor
        for head in (self.mean, self.spread):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        # not zero: W = 0 is a saddle of the likelihood, and no factor would ever leave it
        nn.init.normal_(self.shared.weight, std=0.02)
        nn.init.zeros_(self.shared.bias)

    def forward(self, batch: GraphBatch, hidden: Tensor) -> SolverOutput:
        """Distribution of the states.

        Args:    batch   readings of the hidden block already removed;  hidden f32 [Nt] 1 where a bus lost its meters
        Raises:  ValueError if the window is shorter than the horizon or hidden does not fit.
        """
        n, scans = batch.x.shape[:2]
        span = self.config.horizon
        if scans < span:
            raise ValueError(f"solver: window of {scans} scans, solver.horizon is {span}; shorten the horizon")
        if hidden.shape != (n,):
            raise ValueError(f"solver: hidden {tuple(hidden.shape)} for {n} buses; need one flag per bus")
        index, status = batch.edge_index, batch.edge_phys[:, 5]
        encoded = self.node_encoder(batch.x, index, status)
        recent = batch.x[:, scans - span :].flatten(1)
        known = torch.cat((encoded, recent, batch.node_static, 10 * batch.xhat[:, :1], hidden[:, None]), dim=1)
        h = self.node_norm(fn.gelu(self.node_join(known)))
        edge = self._edges(batch, status)
        for layer in self.graph:
            h = layer(h, index, edge, status)
        # one virtual node: load and wind of the whole grid reach every bus in one step
        h = h + fn.gelu(self.whole(mean_by(h, batch.graph, batch.n_graphs)))[batch.graph]
        h = fn.gelu(self.read(h))
        low, high = (math.log(bound) for bound in SIGMA_RANGE)
        log_sigma = self.spread(h).view(n, span, 2).clamp(low, high) + self.scale.log()
        factor = self.shared(h).view(n, span, 2, -1) * self.scale[:, None]
        mu = batch.xhat[:, None] + self.mean(h).view(n, span, 2) * self.scale
        return SolverOutput(mu=mu, log_sigma=log_sigma, factor=factor)

    def _edges(self, batch: GraphBatch, status: Tensor) -> Tensor:
        """[Et, EDGE_WIDTH] branch attributes: window, last scans, static part and declared physics."""
        index, scans = batch.edge_index, batch.e.shape[1]
        drop = batch.xhat[index[0]] - batch.xhat[index[1]]
        r, x, b, tap, shift, alive = batch.edge_phys.unbind(dim=1)
        # the same scales as the Verifier: short and long lines differ by 1e4 in p.u.
        physics = torch.stack(
            (torch.asinh(20 * r), torch.asinh(20 * x), torch.asinh(b), 10 * (tap - 1), shift, alive), dim=1
        )
        recent = batch.e[:, scans - self.config.horizon :].flatten(1)
        encoded = self.edge_encoder(batch.e, index, status)
        joined = torch.cat((encoded, recent, batch.edge_static, physics, torch.asinh(10 * drop)), dim=1)
        return fn.gelu(self.edge_join(joined))


def nll(output: SolverOutput, target: Tensor, graph: Tensor, n_graphs: int) -> Tensor:
    """Exact negative log-likelihood of the true states, one Gaussian per graph.

    Args:    target [Nt, S, 2] |V| - 1 and angle;  graph i64 [Nt] graph of each bus
    Returns: [B], nats, summed over the 2 S n dimensions of each graph.
    Source:  with U = D^-1/2 W, z = D^-1/2 (x - mu), M = I + U^T U and y = M^-1 U^T z: log det = log det D + log det M
             and the quadratic form is |z - U y|^2 + |y|^2, a sum of squares that float32 cannot turn negative.
    """
    rank = output.factor.shape[-1]
    inverse = (-output.log_sigma).exp()
    z_ND = ((target - output.mu) * inverse).flatten(1)
    u_NDr = (output.factor * inverse[..., None]).flatten(1, 2)
    eye = torch.eye(rank, dtype=z_ND.dtype, device=z_ND.device)
    m_Brr = eye + sum_by(u_NDr.transpose(1, 2) @ u_NDr, graph, n_graphs)
    b_Br = sum_by(torch.einsum("ndr,nd->nr", u_NDr, z_ND), graph, n_graphs)
    root = torch.linalg.cholesky(m_Brr)
    y_Br = torch.cholesky_solve(b_Br[..., None], root)[..., 0]
    rest_ND = z_ND - torch.einsum("ndr,nr->nd", u_NDr, y_Br[graph])
    quadratic = sum_by(rest_ND.square().sum(dim=1), graph, n_graphs) + y_Br.square().sum(dim=1)
    log_det = sum_by(2.0 * output.log_sigma.flatten(1).sum(dim=1), graph, n_graphs)
    log_det = log_det + 2.0 * root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    constant = dimensions(output, graph, n_graphs) * math.log(2.0 * math.pi)
    total: Tensor = 0.5 * (quadratic + log_det + constant)
    return total


def dimensions(output: SolverOutput, graph: Tensor, n_graphs: int) -> Tensor:
    """[B] number of state components per graph: 2 S n."""
    per_bus = output.mu[0].numel()
    return torch.bincount(graph, minlength=n_graphs).to(output.mu.dtype) * per_bus


@torch.no_grad()
def sample(output: SolverOutput, graph: Tensor, n_graphs: int, k: int, generator: torch.Generator) -> Tensor:
    """Joint completions. Returns: [k, Nt, S, 2]; all buses and scans of a graph share its r factor draws."""
    rank = output.factor.shape[-1]
    kind, device = output.mu.dtype, output.mu.device
    shared_kBr = torch.randn(k, n_graphs, rank, generator=generator, dtype=kind, device=device)
    own = torch.randn(k, *output.mu.shape, generator=generator, dtype=kind, device=device)
    moved = torch.einsum("nscr,knr->knsc", output.factor, shared_kBr[:, graph])
    completed: Tensor = output.mu + moved + output.log_sigma.exp() * own
    return completed


def correct(errors_sigma: ArrayLike) -> NDArray[np.bool_]:
    """Whether completions count as right: no error above 4 sigma and mean chi2 per degree of freedom at most 1.5.

    Args:    errors_sigma [..., m] completed minus noise-free value of each masked meter over the meter's sigma, m >= 1
    Returns: [...] bool
    Raises:  ValueError if no meter was masked: there is no answer to judge.
    """
    error = np.asarray(errors_sigma, dtype=np.float64)
    if error.ndim == 0 or error.shape[-1] == 0:
        raise ValueError(f"correct: errors of shape {error.shape}; need at least one masked meter")
    inside = np.abs(error).max(axis=-1) <= MAX_ERROR_SIGMA
    return np.asarray(inside & ((error**2).mean(axis=-1) <= MAX_CHI2_PER_DOF))


class SolverLearner:
    """Likelihood training of a Solver.

    Invariant: state_dict is complete: a learner that loads it continues bit for bit. A step whose gradient is not
    finite changes no weight.
    """

    def __init__(self, solver: Solver, config: SolverConfig) -> None:
        self.solver = solver
        self.optimizer = torch.optim.Adam(solver.parameters(), lr=config.lr)
        self.steps = 0

    def step(self, batch: GraphBatch, hidden: Tensor, target: Tensor) -> dict[str, float]:
        """One step. Args: as Solver.forward; target [Nt, S, 2] true states.

        Returns: nll_per_dim (nats of STATE_SCALE units: 1.42 is a unit Gaussian), loss, rmse_hidden_v (p.u.),
                 rmse_hidden_angle (rad), grad_norm, skipped.
        """
        output = self.solver(batch, hidden)
        nats = nll(output, target, batch.graph, batch.n_graphs)
        # per dimension: a grid of 300 buses must not outweigh one of 14
        per_dim = nats / dimensions(output, batch.graph, batch.n_graphs) - self.solver.scale.log().mean()
        off = fn.smooth_l1_loss(output.mu / self.solver.scale, target / self.solver.scale)
        loss = per_dim.mean() + MEAN_WEIGHT * off
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.solver.parameters(), GRADIENT_CLIP)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.steps += 1
        square = (output.mu.detach() - target).square().mean(dim=1) * hidden[:, None]
        rmse = (square.sum(dim=0) / hidden.sum().clamp(min=1)).sqrt()
        return {
            "nll_per_dim": float(per_dim.detach().mean()),
            "loss": float(loss.detach()),
            "rmse_hidden_v": float(rmse[0]),
            "rmse_hidden_angle": float(rmse[1]),
            "grad_norm": float(norm),
            "skipped": float(not finite),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser moments and the step count."""
        return {"solver": self.solver.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state["solver"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])
