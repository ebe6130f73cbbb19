"""What the ablations change: settings, columns that the network may not read, parts replaced by others.

Flow:    [ablation_variants] -> ablation_bed.train
Source:  verifier.md, section 5; TopK Graph U-Net (Gao and Ji 1905.05178) by torch_geometric's GraphUNet
Shapes:  Nt buses and Et branches of a batch, T scans

Nothing here is a setting of gg_ray: a variant wraps the network, or swaps a module of it after it was initialised, so
all other weights start from the full model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gg_ray.config import LossConfig, VerifierConfig
from gg_ray.learner import new_verifier
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.evidence import EVIDENCE
from gg_ray.verifier.extremes import STATISTICS
from gg_ray.verifier.gat import both_ways
from gg_ray.verifier.model import EDGE_WIDTH, Verifier, VerifierOutput

VALUE, ZETA, RESIDUAL, DELTA, FRESH = range(5)
"""Columns of each channel in GraphBatch.x and GraphBatch.e."""
SHORT = 12
"""Scans of the variant that reads only the newest part of a window of 16."""

Mask = Callable[[GraphBatch], GraphBatch]


def without(columns: Sequence[int]) -> Mask:
    """These columns of every channel are zero, in what encoders, evidence and the joins read."""

    def mask(batch: GraphBatch) -> GraphBatch:
        x, e = batch.x.clone(), batch.e.clone()
        for column in columns:
            x[..., column::5] = 0.0
            e[..., column:20:5] = 0.0  # the last column of e is the declared status
        return replace(batch, x=x, e=e)

    return mask


def no_estimate(batch: GraphBatch) -> GraphBatch:
    """The estimated state is not read; Ablated adds it back to the state that comes out."""
    return replace(batch, xhat=torch.zeros_like(batch.xhat))


def residual_only(batch: GraphBatch) -> GraphBatch:
    """Residuals, masks and declared status on the bare graph: no reading, no estimate, no parameter of the grid."""
    bare = torch.zeros_like(batch.edge_phys)
    bare[:, 3], bare[:, 5] = 1.0, batch.edge_phys[:, 5]
    return replace(
        no_estimate(without((VALUE, ZETA, DELTA))(batch)), edge_phys=bare,
        node_static=torch.zeros_like(batch.node_static), edge_static=torch.zeros_like(batch.edge_static),
    )  # fmt: skip


def newest(batch: GraphBatch) -> GraphBatch:
    """The last SHORT scans only."""
    return replace(batch, x=batch.x[:, -SHORT:].contiguous(), e=batch.e[:, -SHORT:].contiguous())


class Zeros(nn.Module):
    """Stands for a part that says nothing: [n, width] zeros, whatever it is asked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: Tensor, *_: Any) -> Tensor:
        return rows.new_zeros(rows.shape[0], self.width)


class FlatOnly(nn.Module):
    """Stands for the U-Net: bus states as they are."""

    def forward(self, h_ND: Tensor, *_: Any) -> Tensor:
        return h_ND


class TopKUNet(nn.Module):
    """GraphUNet in the place of the fixed U-Net: two learned poolings that keep half of the buses each."""

    def __init__(self, hidden: int) -> None:
        from torch_geometric.nn import GraphUNet

        super().__init__()
        self.net = GraphUNet(hidden, hidden, hidden, depth=2, pool_ratios=0.5)
        self.norm = nn.LayerNorm(hidden)
        self.graph: Tensor | None = None
        """[Nt] graph of each bus, set before each pass: pooling keeps half of every graph, not of the batch."""

    def forward(self, h_ND: Tensor, edge_index: Tensor, status_E: Tensor, *_: Any) -> Tensor:
        ways = torch.stack(both_ways(edge_index[:, status_E > 0.5]))
        out: Tensor = self.norm(h_ND + self.net(h_ND, ways, self.graph))
        return out


def drop_evidence(network: Verifier) -> None:
    network.evidence = Zeros(EVIDENCE)  # type: ignore[assignment]


def drop_encoders(network: Verifier) -> None:
    network.node_encoder = Zeros(network.config.hidden)
    network.edge_encoder = Zeros(EDGE_WIDTH)  # type: ignore[assignment]


def drop_edge_attributes(network: Verifier) -> None:
    """Attention and messages between buses know which buses a branch joins and nothing else of it."""
    for layer in network.flat:
        for way in layer.edge:
            _silence(way.weight)


def drop_extremes(network: Verifier) -> None:
    """Statistics reach the heads through bus and branch states and pools alone."""
    for layer in (network.node_extremes, network.node_direct, network.graph_surprise, network.graph_direct):
        _silence(layer.weight)
    first = network.config.hidden + EVIDENCE
    kept = torch.ones_like(network.node_join.weight)
    kept[:, first : first + STATISTICS] = 0.0
    with torch.no_grad():
        network.node_join.weight.mul_(kept)
    network.node_join.weight.register_hook(lambda gradient: gradient * kept)


def _silence(weight: nn.Parameter) -> None:
    """Zero, and not trained. The module stays what the compiled kernels of inference know."""
    nn.init.zeros_(weight)
    weight.requires_grad_(False)


def drop_unet(network: Verifier) -> None:
    network.unet = FlatOnly()  # type: ignore[assignment]


def topk_unet(network: Verifier) -> None:
    network.unet = TopKUNet(network.config.hidden)  # type: ignore[assignment]
    network.register_forward_pre_hook(_tell_graph)


def _tell_graph(network: nn.Module, inputs: tuple[GraphBatch]) -> None:
    network.unet.graph = inputs[0].graph  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table: the full model, or what is different."""

    what: str
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mask: Mask | None = None
    alter: Callable[[Verifier], None] | None = None
    scans: int = 16
    pretrain_steps: int = 0


class Ablated(nn.Module):
    """A Verifier that is shown masked batches; losses see the batch as it is."""

    def __init__(self, inner: Verifier, mask: Mask) -> None:
        super().__init__()
        self.inner, self.mask = inner, mask

    def forward(self, batch: GraphBatch) -> VerifierOutput:
        masked = self.mask(batch)
        out: VerifierOutput = self.inner(masked)
        return replace(out, state_mu=out.state_mu + (batch.xhat - masked.xhat))


def network_of(variant: Variant, seed: int) -> nn.Module:
    """The untrained network of a variant; what it shares with the full model starts from the same weights."""
    network = new_verifier(variant.verifier, seed)
    if variant.alter is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            variant.alter(network)
    return network if variant.mask is None else Ablated(network, variant.mask)


VARIANTS: dict[str, Variant] = {
    "full": Variant(what="the defaults"),
    "no residuals": Variant(what="normalised residuals zeroed wherever they are read", mask=without([RESIDUAL])),
    "no innovations": Variant(what="deviations from the window's mean and changes zeroed", mask=without([ZETA, DELTA])),
    "no evidence": Variant(what="fixed statistics zeroed", alter=drop_evidence),
    "no extremes": Variant(what="no extremes of buses, no surprise of the grid (ADR 21)", alter=drop_extremes),
    "no temporal encoder": Variant(what="encoders of buses and branches zeroed: last scan and statistics stay",
                                 alter=drop_encoders),
    "no edge attributes": Variant(what="GATv2 messages without branch attributes", alter=drop_edge_attributes),
    "no U-Net": Variant(what="two GATv2 layers alone", alter=drop_unet),
    "no estimated state": Variant(what="estimated voltages and angle differences zeroed", mask=no_estimate),
    "no twin hinge": Variant(what="loss weight 0", loss=LossConfig(twin=0.0)),
    "no physics loss": Variant(what="loss weight 0", loss=LossConfig(physics=0.0)),
    "no state loss": Variant(what="loss weight 0", loss=LossConfig(state=0.0)),
    "residual-only": Variant(what="residuals, masks and declared status on the bare graph", mask=residual_only),
    "GraphSAGE": Variant(what="three SAGE layers for GATv2 and U-Net", verifier=VerifierConfig(graph="sage")),
    "per-bus MLP": Variant(what="no messages between buses", verifier=VerifierConfig(graph="none")),
    "CNN encoder": Variant(what="dilated convolutions over scans", verifier=VerifierConfig(encoder="cnn")),
    "TGCN encoder": Variant(what="TGCN cell over scans", verifier=VerifierConfig(encoder="tgcn")),
    "TopK U-Net": Variant(what="torch_geometric's GraphUNet for the fixed U-Net", alter=topk_unet),
    "Jacobian": Variant(what="Jacobian block joined to each bus", verifier=VerifierConfig(jacobian=True)),
    "pretrained": Variant(
        what="300 steps of masked reconstruction on other benign windows first", pretrain_steps=300
    ),
    "newest 12 scans": Variant(what="patches of 4 over the last 12 of the 16 scans", mask=newest,
                               verifier=VerifierConfig(patch=4)),
    "T = 24": Variant(what="windows of 24 scans, trained and judged on its own", scans=24),
    "T = 48": Variant(what="windows of 48 scans, trained and judged on its own", scans=48),
}  # fmt: skip
