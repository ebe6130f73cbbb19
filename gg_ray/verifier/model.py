"""The Verifier: window of telemetry on a grid in, verdict, places, type and denoised state out.

Flow:    batch -> temporal -> gat -> unet -> [model] -> losses, calibration
Source:  HYBRID A of verifier.md 5.2 (graph 'hybrid'), GraphSAGE baseline ('sage'), per-bus ('none'); selfplay.md 10
Shapes:  B graphs, Nt buses, Et branches, T scans, D hidden, K edge width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gg_ray.config import VerifierConfig
from gg_ray.grid.jacobian import F_JAC
from gg_ray.records import TYPES
from gg_ray.verifier import graph_kernel, summary_kernel
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, GraphBatch
from gg_ray.verifier.evidence import EVIDENCE, Evidence
from gg_ray.verifier.extremes import BEST, STATISTICS, SURPRISE, bus_extremes, standing, surprise
from gg_ray.verifier.gat import (
    LOGIT_LIMIT,
    Dense,
    GatLayer,
    SageLayer,
    both_ways,
    count_by,
    fused,
    joined,
    max_by,
    plain,
    sum_by,
)  # fmt: skip
from gg_ray.verifier.temporal import PatchEncoder, make_encoder
from gg_ray.verifier.unet import Coarse, FixedUNet

EDGE_WIDTH = 32
STATE_SCALE = (0.01, 0.02)
"""|V| (p.u.) and angle (rad) that one unit of the state head stands for; state_logvar is in these units too."""
PRIOR_LOGIT = -2.0
"""Initial bias of node and edge logits: few places are implausible, and the focal loss starts calm."""
_PHYS_FEATURES = 6 + 2
_SUMMARY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierOutput:
    """Logits and states of one forward pass, in batch order.

    state_mu is |V| - 1 (p.u.) and angle (rad); state_logvar is the log-variance of state / STATE_SCALE.
    """

    implausible: Tensor
    """[B]"""
    disturbance: Tensor
    """[B]"""
    severity: Tensor
    """[B], 0 to 1"""
    type: Tensor
    """[B, 13]"""
    node: Tensor
    """[Nt]"""
    edge: Tensor
    """[Et]"""
    state_mu: Tensor
    """[Nt, 2]"""
    state_logvar: Tensor
    """[Nt, 2]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the scans of a window say of each bus and branch by itself: the only part that reads more than the last one.

    Rows are independent, so a stream can carry them (verifier.stream).
    """

    node: Tensor
    """[Nt, D] encoded window"""
    edge: Tensor
    """[Et, EDGE_WIDTH]"""
    node_proof: Tensor
    """[Nt, EVIDENCE] fixed statistics"""
    edge_proof: Tensor
    """[Et, EVIDENCE]"""
    scans: Tensor
    """[] length of the window"""


def probabilities(output: VerifierOutput) -> dict[str, Tensor]:
    """Probabilities for people and calibration: sigmoid of each binary logit, softmax of the type.

    Returns: implausible, disturbance, severity [B]; type [B, 13]; node [Nt]; edge [Et].
    """
    return {
        "implausible": torch.sigmoid(output.implausible),
        "disturbance": torch.sigmoid(output.disturbance),
        "severity": output.severity,
        "type": torch.softmax(output.type, dim=1),
        "node": torch.sigmoid(output.node),
        "edge": torch.sigmoid(output.edge),
    }


class Verifier(nn.Module):
    """One network for every grid size: nothing in its weights depends on buses, branches, graphs or scans.

    Invariant: relabelling buses, branches or graphs relabels the outputs and changes nothing else; estimated
    angles enter only as differences over branches, so turning the reference angle moves no logit.
    """

    def __init__(self, config: VerifierConfig) -> None:
        super().__init__()
        width = config.hidden
        self.config = config
        self.node_encoder = make_encoder(config.encoder, F_NODE, width, config.patch)
        self.edge_encoder = PatchEncoder(F_EDGE, EDGE_WIDTH, config.patch)
        self.evidence = Evidence()
        jacobian = F_JAC if config.jacobian else 0
        self.node_join = Dense(width + EVIDENCE + STATISTICS + F_NODE + F_NODE_STATIC + 1 + jacobian, width)
        self.node_norm = nn.LayerNorm(width)
        self.edge_join = Dense(EDGE_WIDTH + EVIDENCE + F_EDGE + F_EDGE_STATIC + _PHYS_FEATURES, EDGE_WIDTH)
        if config.graph == "hybrid":
            self.flat = nn.ModuleList(
                GatLayer(width, EDGE_WIDTH, config.heads, config.dropout) for _ in range(config.layers)
            )
            self.unet: FixedUNet | None = FixedUNet(width, config.dropout)
        else:
            count = config.layers + 1 if config.graph == "sage" else 0
            self.flat = nn.ModuleList(SageLayer(width, config.dropout) for _ in range(count))
            self.unet = None
        self.edge_update = Dense(EDGE_WIDTH, EDGE_WIDTH)
        self.edge_ends = Dense(width, 2 * EDGE_WIDTH, bias=False)
        self.edge_head = Dense(EDGE_WIDTH, 1)
        self.node_hidden = Dense(width, width)
        self.node_head = Dense(width, 1)
        self.node_extremes = Dense(2 * STATISTICS, width, bias=False)
        self.node_direct = Dense(2 * STATISTICS, 1, bias=False)
        self.state_head = Dense(width, 4)
        self.gate = Dense(width, 1, bias=False)  # a bias would cancel in the normalised attention
        self.graph_hidden = Dense(2 * width + EDGE_WIDTH + _SUMMARY + 2 * EVIDENCE, width)
        self.graph_surprise = Dense(SURPRISE, width, bias=False)
        self.graph_head = Dense(width, 3 + len(TYPES))
        self.graph_direct = Dense(SURPRISE, 1, bias=False)
        self.register_buffer("state_scale", torch.tensor(STATE_SCALE), persistent=False)
        self.state_scale: Tensor
        nn.init.constant_(self.node_head.bias, PRIOR_LOGIT)
        nn.init.constant_(self.edge_head.bias, PRIOR_LOGIT)
        # the untrained network believes the estimator: training learns a correction
        nn.init.zeros_(self.state_head.weight)
        nn.init.zeros_(self.state_head.bias)
        # and suspects what the largest residual test suspects
        nn.init.zeros_(self.node_direct.weight)
        nn.init.zeros_(self.graph_direct.weight)
        with torch.no_grad():
            self.graph_direct.weight[0, BEST] = 1.0

    def forward(self, batch: GraphBatch) -> VerifierOutput:
        """Judge every window of the batch.

        Raises:  ValueError if T is not whole patches (temporal.PatchEncoder).
        """
        return self.judge(batch, self.summarise(batch))

    def summarise(self, batch: GraphBatch) -> Summary:
        """First half of forward: every row's window, without its neighbours (the TGCN encoders do hear them)."""
        node, node_proof = self._rows(self.node_encoder, batch.x, batch)
        edge, edge_proof = self._rows(self.edge_encoder, batch.e, batch)
        scans = torch.tensor(float(batch.x.shape[1]), device=batch.x.device)
        return Summary(node=node, edge=edge, node_proof=node_proof, edge_proof=edge_proof, scans=scans)

    def _rows(self, encoder: nn.Module, x_nTF: Tensor, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Encoded rows [n, D] and their statistics [n, EVIDENCE]."""
        if isinstance(encoder, PatchEncoder) and isinstance(self.evidence, Evidence) and fused(x_nTF, 0):
            weights = encoder.weights(encoder.patches(x_nTF))
            pooled, proof = summary_kernel.summarised(plain(x_nTF), *weights)
            return encoder.activated(torch.from_numpy(pooled)), torch.from_numpy(proof)
        return encoder(x_nTF, batch.edge_index, batch.edge_phys[:, 5]), self.evidence(x_nTF)

    def judge(self, batch: GraphBatch, summary: Summary, coarse: Coarse | None = None) -> VerifierOutput:
        """Second half of forward: the graph. Of batch.x and batch.e only the last scan is read.

        Args:    coarse  the levels of unet.hierarchy, where the caller has made them
        """
        status = batch.edge_phys[:, 5]
        proof = summary.node_proof, summary.edge_proof
        extremes = bus_extremes(*proof, batch.edge_index)
        h, edge = self._encode(batch, summary, extremes)
        if self.unet is None:
            ways, alive = both_ways(batch.edge_index), status.repeat(2)
            for layer in self.flat:
                h = layer(h, *ways, alive)
        else:
            for layer in self.flat:
                h = layer(h, batch.edge_index, edge, status)
            n_regions = batch.region_graph.shape[0]
            h = self.unet(h, batch.edge_index, status, batch.substation, batch.region, n_regions, coarse)
        if fused(edge, EDGE_WIDTH):
            states, logits = graph_kernel.branch_states(
                plain(joined([edge], [self.edge_update])), plain(self.edge_ends(h)), plain(batch.edge_index),
                plain(self.edge_head.weight[0]), float(self.edge_head.bias),
            )  # fmt: skip
            edge, edge_logit = torch.from_numpy(states), torch.from_numpy(logits)
        else:
            from_end, to_end = self.edge_ends(h).split(EDGE_WIDTH, dim=1)
            start, stop = batch.edge_index
            edge = fn.gelu(self.edge_update(edge) + from_end.index_select(0, start) + to_end.index_select(0, stop))
            edge_logit = self.edge_head(edge)[:, 0]
        # a network without graph layers hears no neighbour here either
        place = standing(extremes, batch.edge_index, status if len(self.flat) else torch.zeros_like(status))
        if fused(h, self.node_hidden.out_features):
            hidden = joined([h, place], [self.node_hidden, self.node_extremes], gelu=True)
        else:
            hidden = fn.gelu(self.node_hidden(h) + self.node_extremes(place))
        node_logit = (self.node_head(hidden) + self.node_direct(place))[:, 0]
        state = self.state_head(hidden)
        graph, direct = self._read_out(batch, h, edge, node_logit, edge_logit, summary)
        return VerifierOutput(
            implausible=graph[:, 0] + direct,
            disturbance=graph[:, 1],
            severity=torch.sigmoid(graph[:, 2]),
            type=graph[:, 3:],
            node=node_logit,
            edge=edge_logit,
            state_mu=batch.xhat + state[:, :2] * self.state_scale,
            state_logvar=state[:, 2:],
        )

    def _encode(self, batch: GraphBatch, summary: Summary, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Telemetry, last scan and static parts joined: node states [Nt, D] and edge states [Et, K]."""
        encoded, proof = summary.node, (summary.node_proof, summary.edge_proof)
        voltage = 10 * batch.xhat[:, :1]
        parts = [encoded, proof[0], extremes, batch.x[:, -1], batch.node_static, voltage]
        if self.config.jacobian:
            parts.append(batch.jac)
        physics = _physics(batch.edge_phys, batch.xhat, batch.edge_index)
        edges = [summary.edge, proof[1], batch.e[:, -1], batch.edge_static, physics]
        if fused(encoded, encoded.shape[1]):
            h = joined(parts, [self.node_join], gelu=True, norm=self.node_norm)
            return h, joined(edges, [self.edge_join], gelu=True)
        h = self.node_norm(fn.gelu(self.node_join(torch.cat(parts, dim=1))))
        return h, fn.gelu(self.edge_join(torch.cat(edges, dim=1)))

    def _read_out(
        self,
        batch: GraphBatch,
        h: Tensor,
        edge: Tensor,
        node_logit: Tensor,
        edge_logit: Tensor,
        summary: Summary,
    ) -> tuple[Tensor, Tensor]:
        """Graph logits [B, 3 + types] and what the surprise adds to the first [B].

        They read attention and max pools of states, largest and mean logits, largest evidence and its surprise.
        """
        size, proof = batch.n_graphs, (summary.node_proof, summary.edge_proof)
        weight = self.gate(h).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp()
        if fused(h, h.shape[1]):
            attention = torch.from_numpy(
                graph_kernel.group_mean(plain(h), plain(batch.graph), size, plain(weight[:, 0]))
            )
        else:
            attention = sum_by(weight * h, batch.graph, size) / sum_by(weight, batch.graph, size).clamp(min=1e-12)
        largest = [max_by(values, batch.graph, size) for values in (h, node_logit[:, None], proof[0])]
        largest += [max_by(values, batch.edge_graph, size) for values in (edge, edge_logit[:, None], proof[1])]
        soft = (_log_mean_exp(node_logit, batch.graph, size), _log_mean_exp(edge_logit, batch.edge_graph, size))
        loud = surprise(*proof, largest[2], largest[5], batch.graph, batch.edge_graph, summary.scans)
        pooled = torch.cat((attention, *largest, torch.stack(soft, dim=1)), dim=1)
        hidden = fn.gelu(self.graph_hidden(pooled) + self.graph_surprise(loud))
        return self.graph_head(hidden), self.graph_direct(loud)[:, 0]


def _physics(phys: Tensor, xhat: Tensor, index: Tensor) -> Tensor:
    """[Et, 8] declared model of each branch and the drop of its estimated state.

    asinh keeps short and long lines, a factor of 1e4 apart in p.u., in one range without a per-grid scale.
    """
    if fused(phys, 0):
        return torch.from_numpy(graph_kernel.branch_physics(plain(phys), plain(xhat), plain(index)))
    drop = xhat[index[0]] - xhat[index[1]]
    r, x, b, tap, shift, alive = phys.unbind(dim=1)
    physics = torch.stack(
        (torch.asinh(20 * r), torch.asinh(20 * x), torch.asinh(b), 10 * (tap - 1), shift, alive), dim=1
    )
    return torch.cat((physics, torch.asinh(10 * drop)), dim=1)


def _log_mean_exp(logit: Tensor, index: Tensor, size: int) -> Tensor:
    """Smooth maximum [size] that, unlike a mean, still sees one loud bus among thousands."""
    total = sum_by(logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp(), index, size)
    return (total / count_by(logit, index, size)).clamp(min=1e-12).log()
