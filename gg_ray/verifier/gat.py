"""Message passing on the bus graph: attention with edge attributes, and a SAGE layer.

Flow:    temporal -> [gat] -> unet -> model
Source:  GATv2 (Brody et al. 2105.14491), edge attributes also in the message; GraphSAGE (Hamilton et al. 1706.02216)
Shapes:  N nodes, E undirected branches, 2E directed messages, D hidden, H heads, K edge attributes

A branch is stored once and carries messages both ways. Out of service it stays in the arrays and is masked, so an
outage changes neither shapes nor a compiled graph. Inference on a CPU takes the compiled passes of graph_kernel
(`fused`), whose oracle is the tensor code here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as fn
from numpy.typing import NDArray
from torch import Tensor, nn

from gg_ray.verifier import dense_kernel, graph_kernel
from gg_ray.verifier.simd import WIDTH

LOGIT_LIMIT = 15.0
"""Attention logits are clamped to this before exp: no max pass is needed and float32 cannot overflow."""
BLOCK_BRANCHES = 4096
"""Messages are made for this many branches at a time: intermediates stay in cache and are not allocated anew."""
ONEDNN_ROWS = 1024
"""Inputs with fewer rows stay with torch's own kernel, whose call is cheaper."""
_TINY = 1e-12


def fused(tensor: Tensor, width: int) -> bool:
    """Whether compiled kernels may stand in: inference in float32 on a CPU, not traced, rows of whole vectors."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and width % WIDTH == 0
    )


def plain(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor as numba kernels want them."""
    out: NDArray[Any] = tensor.detach().contiguous().numpy()
    return out


def joined(
    parts: Sequence[Tensor], layers: Sequence[nn.Module], *, stacked: bool = False, gelu: bool = False,
    scale: Tensor | None = None, onto: Tensor | None = None, norm: nn.LayerNorm | None = None,
) -> Tensor:  # fmt: skip
    """dense_kernel.dense on tensors: norm(onto + scale * gelu(sum of each layer on its own part)).

    Args:    layers  one for all parts side by side, or one for each part; stacked: all on the same part, with their
             outputs side by side. The first alone may have a bias.
    """
    weights: list[Tensor] = [layer.get_parameter("weight") for layer in layers]
    weight = torch.cat(weights, dim=0 if stacked else 1)
    bias: Tensor | None = dict(layers[0].named_parameters()).get("bias")
    if bias is not None and stacked:
        bias = torch.cat((bias, bias.new_zeros(weight.shape[0] - bias.shape[0])))
    return torch.from_numpy(
        dense_kernel.dense(
            [plain(part) for part in parts], plain(weight), None if bias is None else plain(bias), gelu=gelu,
            scale_n=None if scale is None else plain(scale), onto_nD=None if onto is None else plain(onto),
            norm=None if norm is None else (plain(norm.weight), plain(norm.bias), norm.eps),
        )
    )  # fmt: skip


def sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Rows of values [M, ...] summed by index [M] into [size, ...]; rows without a source are zero."""
    return values.new_zeros((size, *values.shape[1:])).index_add_(0, index, values)


def mean_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Rows of values [M, D] averaged by index [M] into [size, D]; rows without a source are zero."""
    if fused(values, values.shape[1]):
        return torch.from_numpy(graph_kernel.group_mean(plain(values), index.numpy(), size))
    return sum_by(values, index, size) / count_by(values, index, size)[:, None]


def max_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Column maxima [size, D] of the rows of values [M, D] by index; 0 for an empty group."""
    if fused(values, values.shape[1]):
        return torch.from_numpy(graph_kernel.group_max(plain(values), plain(index), size))
    if size == 1 and values.shape[0]:
        return values.amax(dim=0, keepdim=True)
    out = values.new_zeros(size, values.shape[1])
    return out.scatter_reduce(0, index[:, None].expand_as(values), values, "amax", include_self=False)


def count_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Rows of values per group [size], at least 1, in their dtype; unlike bincount it exports to every runtime."""
    return sum_by(values.new_ones(values.shape[0]), index, size).clamp(min=1)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equal first dimension in aligned blocks of BLOCK_BRANCHES rows; one block in an exported graph."""
    if torch.compiler.is_compiling():  # the compiler fuses, and a number of blocks would tie the graph to a size
        return iter((tensors,))
    return zip(*(torch.split(tensor, BLOCK_BRANCHES) for tensor in tensors), strict=True)


def both_ways(edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Source and destination [2E] of the messages of branches [2, E]: all forwards, then all backwards."""
    return edge_index.reshape(-1), edge_index.flip(0).reshape(-1)


class Dense(nn.Linear):
    """nn.Linear that takes oneDNN's float32 kernel for large inference inputs on a CPU.

    torch sends float32 products to MKL, which keeps to AVX2 on AMD processors: half the speed of oneDNN's AVX-512
    (10k buses: 9.4 against 4.7 ms for the patch product). Same weights, results equal to about 1e-6.
    """

    def forward(self, input: Tensor) -> Tensor:
        if (
            not torch.compiler.is_compiling()
            and input.shape[0] >= ONEDNN_ROWS
            and not torch.is_grad_enabled()
            and input.device.type == "cpu"
            and input.dtype == torch.float32 == self.weight.dtype
            and torch.backends.mkldnn.is_available()
        ):
            out: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
            return out
        return super().forward(input)


def activated(layer: Dense, values: Tensor) -> Tensor:
    """gelu of a layer."""
    if fused(values, layer.out_features):
        return joined([values], [layer], gelu=True)
    return fn.gelu(layer(values))


class GatLayer(nn.Module):
    """GATv2 with edge attributes, residual connection and LayerNorm.

    Invariant: a node with no branch in service keeps LayerNorm of its own state; logits never exceed LOGIT_LIMIT.
    The two directions of a branch have projections of their own: a branch is not symmetric (tap side, pf and pt).
    """

    def __init__(self, hidden: int, edge: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"GatLayer: hidden {hidden} must be a multiple of heads {heads}")
        self.heads = heads
        self.source = Dense(hidden, hidden)
        self.query = Dense(hidden, hidden, bias=False)
        self.edge = nn.ModuleList(Dense(edge, hidden, bias=False) for _ in range(2))
        self.attention = nn.Parameter(torch.empty(heads, hidden // heads))
        self.out = Dense(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.attention)

    def forward(self, h_ND: Tensor, edge_index: Tensor, edge_EK: Tensor, status_E: Tensor) -> Tensor:
        """One round of messages.

        Args:    h_ND node states;  edge_index [2, E];  edge_EK branch attributes;  status_E 1 in service, 0 out
        Returns: [N, D]
        """
        n, d = h_ND.shape
        if fused(h_ND, d // self.heads) and not (self.training and self.dropout.p):
            states = joined([h_ND], [self.source, self.query], stacked=True)
            edges = joined([edge_EK], list(self.edge), stacked=True)
            mean_ND, reached_N = graph_kernel.attended(
                plain(states), plain(edges), plain(self.attention), plain(edge_index), plain(status_E), LOGIT_LIMIT
            )
            mean, reached = torch.from_numpy(mean_ND), torch.from_numpy(reached_N)
            return joined([mean], [self.out], scale=reached, onto=h_ND, norm=self.norm)
        source, query = self.source(h_ND), self.query(h_ND)
        # attention vectors as a block diagonal [H, D]: one small GEMM instead of a multiply and a reduction per branch
        eye = torch.eye(self.heads, device=h_ND.device, dtype=h_ND.dtype)
        attention = (eye[:, :, None] * self.attention).reshape(self.heads, d)
        total, acc = h_ND.new_zeros(n, self.heads), torch.zeros_like(h_ND)
        for way, project in enumerate(self.edge):
            for src, dst, edge, status in blocks(edge_index[way], edge_index[1 - way], edge_EK, status_E):
                message = source.index_select(0, src) + project(edge)
                logit = fn.linear(fn.leaky_relu(query.index_select(0, dst) + message, 0.2), attention)
                alpha = logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp() * status[:, None]
                total = total.index_add_(0, dst, alpha)
                message = message.view(-1, self.heads, d // self.heads) * alpha[:, :, None]
                acc = acc.index_add_(0, dst, message.view(-1, d))
        # normalised after the sum: N divisions instead of 2E, and no second gather
        mean = (acc.view(n, self.heads, -1) / total.clamp(min=_TINY)[:, :, None]).view(n, d)
        # without neighbours the bias of `out` would still move the state: mask it away
        reached = (total[:, :1] > 0).to(h_ND.dtype)
        out: Tensor = self.norm(h_ND + self.dropout(self.out(fn.gelu(mean)) * reached))
        return out


class SageLayer(nn.Module):
    """GraphSAGE with weighted mean aggregation, residual connection and LayerNorm.

    Invariant: a directed edge of weight 0 has no influence on any node.
    """

    def __init__(self, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.own = Dense(hidden, hidden)
        self.neighbour = Dense(hidden, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h_ND: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
        """Args: h_ND node states; src, dst [M] directed edges; weight [M], 0 masks an edge. Returns: [N, D]."""
        n = h_ND.shape[0]
        if fused(h_ND, h_ND.shape[1]) and not (self.training and self.dropout.p):
            mean_ND = graph_kernel.neighbour_mean(plain(h_ND), plain(src), plain(dst), plain(weight))
            parts = h_ND, torch.from_numpy(mean_ND)
            return joined(parts, (self.own, self.neighbour), gelu=True, onto=h_ND, norm=self.norm)
        total = sum_by(weight, dst, n).clamp(min=_TINY)
        acc = torch.zeros_like(h_ND)
        for start, stop, share in blocks(src, dst, weight):
            acc = acc.index_add_(0, stop, h_ND.index_select(0, start) * share[:, None])
        mean = acc / total[:, None]
        out: Tensor = self.norm(h_ND + self.dropout(fn.gelu(self.own(h_ND) + self.neighbour(mean))))
        return out
