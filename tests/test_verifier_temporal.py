"""Encoders: every window length with one set of weights, TGCN equal to PyTorch Geometric Temporal's."""

from __future__ import annotations

import sys

import pytest
import torch

from gg_ray.verifier import pyg_temporal, temporal
from gg_ray.verifier.gat import both_ways
from gg_ray.verifier.temporal import PatchEncoder, PygtTgcnEncoder, TgcnCell, TgcnEncoder, gcn_weights, make_encoder

NO_EDGES = (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0))
needs_pygt = pytest.mark.skipif(not pyg_temporal.installed(), reason="torch-geometric-temporal is not installed")


def random_graph(n: int = 12, branches: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    start = torch.randint(0, n, (branches,))
    stop = (start + torch.randint(1, n, (branches,))) % n
    return torch.stack((start, stop)), torch.randint(0, 2, (branches,)).float()


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_patch_encoder_serves_every_window_length(scans: int) -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(5, 16, 8)
    assert encoder(torch.randn(7, scans, 5), *NO_EDGES).shape == (7, 16)


def test_patch_positions_count_from_the_window_end() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(3, 8, 4)
    seen: list[torch.Tensor] = []
    encoder.score.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    window = torch.randn(2, 16, 3)
    encoder(window, *NO_EDGES)
    encoder(window[:, 8:], *NO_EDGES)
    torch.testing.assert_close(seen[0][:, 2:], seen[1])


def test_patch_encoder_refuses_partial_and_too_many_patches() -> None:
    encoder = PatchEncoder(3, 8, 8)
    for scans in (0, 12, 72):
        with pytest.raises(ValueError, match=f"window of {scans} scans"):
            encoder(torch.zeros(2, scans, 3), *NO_EDGES)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, window = PatchEncoder(3, 8, 4), torch.randn(11, 8, 3)
    whole = encoder(window, *NO_EDGES)
    monkeypatch.setattr(temporal, "BLOCK_ROWS", 4)
    torch.testing.assert_close(encoder(window, *NO_EDGES), whole)


def test_gcn_weights_are_the_normalised_adjacency() -> None:
    torch.manual_seed(0)
    edge_index, weight = random_graph()
    directed, weights = torch.stack(both_ways(edge_index)), weight.repeat(2)
    dense = torch.eye(12).index_put((directed[1], directed[0]), weights, accumulate=True)
    scale = dense.sum(1).rsqrt()
    want = scale[:, None] * dense * scale
    edge, own = gcn_weights(directed, weights, 12)
    got = torch.diag(own).index_put((directed[1], directed[0]), edge, accumulate=True)
    torch.testing.assert_close(got, want)


@needs_pygt
def test_folded_cell_equals_pyg_temporal_over_several_steps() -> None:
    torch.manual_seed(1)
    edge_index, status = random_graph()
    window = torch.randn(12, 9, 5)
    theirs = PygtTgcnEncoder(5, 8)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):  # GCNConv starts with zero biases, which would hide a wrong fold
                parameter.uniform_(-0.5, 0.5)
    ours = TgcnEncoder(5, 8)
    ours.cell = TgcnCell.fold(theirs.cell)
    for scans in (1, 4, 9):
        got = ours(window[:, :scans], edge_index, status)
        torch.testing.assert_close(got, theirs(window[:, :scans], edge_index, status), atol=1e-6, rtol=0)
    start = torch.randn(12, 8)
    got = ours(window, edge_index, status, start)
    torch.testing.assert_close(got, theirs(window, edge_index, status, start), atol=1e-6, rtol=0)


@needs_pygt
def test_stand_in_leaves_no_trace() -> None:
    pyg_temporal.load_tgcn()
    module = sys.modules.get("torch_sparse")
    assert module is None or module.__spec__ is not None


def test_missing_package_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyg_temporal, "installed", lambda: False)
    with pytest.raises(pyg_temporal.PygTemporalMissing, match="pip install --no-deps torch-geometric-temporal"):
        make_encoder("pygt_tgcn", 5, 8, 8)


def test_tgcn_carries_its_state() -> None:
    torch.manual_seed(2)
    edge_index, status = random_graph()
    encoder, window = TgcnEncoder(5, 8), torch.randn(12, 6, 5)
    halfway = encoder(window[:, :3], edge_index, status)
    torch.testing.assert_close(
        encoder(window[:, 3:], edge_index, status, halfway), encoder(window, edge_index, status), atol=1e-6, rtol=0
    )


def test_unknown_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'gru': choose patch, cnn, tgcn or pygt_tgcn"):
        make_encoder("gru", 5, 8, 8)
