"""Window to vector: encoders [n, T, F] -> [n, hidden] for buses and branches.

Flow:    batch -> [temporal] -> gat, unet
Source:  patches: PatchTST (Nie et al. 2211.14730); TGCN (Zhao et al. 1811.05320); costs in verifier.md 5.1
Shapes:  n buses or branches, T scans, F features, P patches, W patch width, D hidden
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gg_ray.records import F32
from gg_ray.verifier import patch_kernel
from gg_ray.verifier.gat import Dense, activated, both_ways, fused, plain, sum_by
from gg_ray.verifier.patch_kernel import PATCH_WIDTH
from gg_ray.verifier.pyg_temporal import load_tgcn

MAX_PATCHES = 8
BLOCK_ROWS = 1024


class PatchEncoder(nn.Module):
    """Patches of scans through one shared linear layer, then pooled over patches.

    Invariant: the newest patch always has position 0, so one set of weights serves every window length.
    """

    def __init__(self, features: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = Dense(patch * features, PATCH_WIDTH, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_PATCHES, PATCH_WIDTH))
        self.score = Dense(PATCH_WIDTH, 1, bias=False)
        self.out = Dense(3 * PATCH_WIDTH, hidden)

    def forward(self, x_nTF: Tensor, edge_index: Tensor, status: Tensor) -> Tensor:
        """Encode each row on its own; edge_index and status are part of the encoder interface and not read.

        Raises:  ValueError if T is not 1 to MAX_PATCHES whole patches.
        """
        patches = self.patches(x_nTF)
        if fused(x_nTF, PATCH_WIDTH):
            return self.activated(torch.from_numpy(patch_kernel.pooled(plain(x_nTF), *self.weights(patches))))
        # consecutive scans of a row are adjacent in memory: unfolding is a view and the encoder one GEMM
        flat = x_nTF.reshape(x_nTF.shape[0], patches, self.patch * x_nTF.shape[2])
        if torch.compiler.is_compiling() or x_nTF.shape[0] <= BLOCK_ROWS:
            return self._pool(flat)
        # rows are independent: blocks whose intermediates stay in cache take half the time of one pass at 10k buses
        return torch.cat([self._pool(block) for block in torch.split(flat, BLOCK_ROWS)])

    def patches(self, x_nTF: Tensor) -> int:
        """Patches of a window.   Raises: ValueError if they are not 1 to MAX_PATCHES whole ones."""
        scans = x_nTF.shape[1]
        patches, rest = scans // self.patch, scans % self.patch
        if rest or not 1 <= patches <= MAX_PATCHES:
            raise ValueError(
                f"window of {scans} scans: need a multiple of the patch {self.patch}, "
                f"at most {MAX_PATCHES * self.patch}; set scenario.scans or verifier.patch"
            )
        return patches

    def weights(self, patches: int) -> tuple[F32, F32, F32]:
        """What patch_kernel needs of the layers before `out`, for windows of so many patches."""
        position = self.position[:patches].flip(0)
        return plain(self.embed.weight.T), plain(position), plain(self.score.weight[0])

    def _pool(self, flat_nPK: Tensor) -> Tensor:
        n, patches, _ = flat_nPK.shape
        return self.pool(self.embed(flat_nPK.flatten(0, 1)).view(n, patches, PATCH_WIDTH))

    def pool(self, embedded_nPW: Tensor) -> Tensor:
        """Embedded patches [n, P, PATCH_WIDTH], oldest first -> [n, D]."""
        position = self.position[: embedded_nPW.shape[1]].flip(0)
        h_nPW = fn.gelu(embedded_nPW + position)
        share = torch.softmax(self.score(h_nPW), dim=1)
        pooled = torch.cat(((share * h_nPW).sum(dim=1), h_nPW.mean(dim=1), h_nPW[:, -1]), dim=1)
        return self.activated(pooled)

    def activated(self, pooled_nW: Tensor) -> Tensor:
        """Pools [n, 3 * PATCH_WIDTH] -> [n, D]."""
        return activated(self.out, pooled_nW)


def gcn_weights(edge_index: Tensor, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Symmetric GCN normalisation with unit self loops.

    Args:    edge_index [2, M] directed;  weight [M];  n nodes
    Returns: edge weights [M] and self-loop weights [n] of D^-1/2 (A + I) D^-1/2.
    """
    scale = (1 + sum_by(weight, edge_index[1], n)).rsqrt()
    return scale[edge_index[0]] * weight * scale[edge_index[1]], scale * scale


class TgcnCell(nn.Module):
    """GRU whose input is convolved over the graph: the TGCN cell with its convolutions folded into one projection.

    Invariant: equal to PyTorch Geometric Temporal's TGCN with the weights that `fold` gives.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = Dense(features, 3 * hidden)
        self.gates = Dense(hidden, 2 * hidden, bias=False)
        self.candidate = Dense(hidden, hidden, bias=False)

    def forward(self, ax_nF: Tensor, h_nD: Tensor) -> Tensor:
        """One scan. Args: ax_nF convolved input A x; h_nD carried state. Returns: new state [n, D]."""
        projected = self.input(ax_nF)
        update, reset = torch.sigmoid(projected[:, : 2 * self.hidden] + self.gates(h_nD)).chunk(2, dim=1)
        candidate = torch.tanh(projected[:, 2 * self.hidden :] + self.candidate(reset * h_nD))
        return torch.lerp(candidate, h_nD, update)

    @classmethod
    def fold(cls, tgcn: Any) -> TgcnCell:
        """The same cell from a PyTorch Geometric Temporal TGCN: linear(cat(A x W, h)) = A x (W_x W) + h W_h."""
        size = int(tgcn.out_channels)
        cell = cls(int(tgcn.in_channels), size)
        weights, biases, states = [], [], []
        for gate in ("z", "r", "h"):
            conv, linear = getattr(tgcn, f"conv_{gate}"), getattr(tgcn, f"linear_{gate}")
            from_input, from_state = linear.weight[:, :size], linear.weight[:, size:]
            weights.append(from_input @ conv.lin.weight)
            biases.append(from_input @ conv.bias + linear.bias)
            states.append(from_state)
        with torch.no_grad():
            cell.input.weight.copy_(torch.cat(weights))
            cell.input.bias.copy_(torch.cat(biases))
            cell.gates.weight.copy_(torch.cat(states[:2]))
            cell.candidate.weight.copy_(states[2])
        return cell


class TgcnEncoder(nn.Module):
    """Our TGCN cell over the scans; the state is carried and the last one returned."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = TgcnCell(features, hidden)

    def forward(self, x_nTF: Tensor, edge_index: Tensor, status: Tensor, h_nD: Tensor | None = None) -> Tensor:
        """Args: x_nTF window; edge_index [2, E] branches; status [E]; h_nD state to start from. Returns: [n, D]."""
        n, scans, _ = x_nTF.shape
        src, dst = both_ways(edge_index)
        weight, own = gcn_weights(torch.stack((src, dst)), status.repeat(2), n)
        # A x for all scans at once: only the input is convolved, so no scan waits for another
        ax = own[:, None, None] * x_nTF
        ax = ax.index_add(0, dst, weight[:, None, None] * x_nTF.index_select(0, src))
        state = x_nTF.new_zeros(n, self.cell.hidden) if h_nD is None else h_nD
        for t in range(scans):
            state = self.cell(ax[:, t], state)
        return state


class CnnEncoder(nn.Module):
    """Three dilated convolutions over the scans of a row (15 scans wide), then pooled: serves any window length."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        width = PATCH_WIDTH
        self.layers = nn.ModuleList(
            nn.Conv1d(features if dilation == 1 else width, width, 3, padding=dilation, dilation=dilation)
            for dilation in (1, 2, 4)
        )
        self.out = Dense(3 * width, hidden)

    def forward(self, x_nTF: Tensor, edge_index: Tensor, status: Tensor) -> Tensor:
        """As PatchEncoder.forward, for any number of scans."""
        h_nWT = x_nTF.transpose(1, 2)
        for layer in self.layers:
            h_nWT = fn.gelu(layer(h_nWT))
        pooled = torch.cat((h_nWT.amax(dim=2), h_nWT.mean(dim=2), h_nWT[:, :, -1]), dim=1)
        return fn.gelu(self.out(pooled))


class PygtTgcnEncoder(nn.Module):
    """PyTorch Geometric Temporal's TGCN, one call per scan. Same function class as TgcnEncoder, slower."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = load_tgcn()(features, hidden)

    def forward(self, x_nTF: Tensor, edge_index: Tensor, status: Tensor, h_nD: Tensor | None = None) -> Tensor:
        """As TgcnEncoder.forward."""
        directed = torch.stack(both_ways(edge_index))
        weight = status.repeat(2)
        state = h_nD
        for t in range(x_nTF.shape[1]):
            state = self.cell(x_nTF[:, t], directed, weight, state)
        if state is None:
            raise ValueError("window of 0 scans: need at least one")
        return state


def make_encoder(name: str, features: int, hidden: int, patch: int) -> nn.Module:
    """Encoder by its settings name. Raises: ValueError for an unknown name, PygTemporalMissing for pygt_tgcn."""
    if name == "patch":
        return PatchEncoder(features, hidden, patch)
    if name == "cnn":
        return CnnEncoder(features, hidden)
    if name == "tgcn":
        return TgcnEncoder(features, hidden)
    if name == "pygt_tgcn":
        return PygtTgcnEncoder(features, hidden)
    raise ValueError(f"verifier.encoder {name!r}: choose patch, cnn, tgcn or pygt_tgcn")
