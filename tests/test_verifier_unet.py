"""Fixed pooling: coarse edges, reach across the grid, no mixing between graphs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.verifier.gat import mean_by
from gg_ray.verifier.unet import FixedUNet, coarsen


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), buses=st.integers(2, 12), branches=st.integers(0, 25), clusters=st.integers(1, 5))
def test_coarse_edges_are_the_set_of_crossing_pairs(seed: int, buses: int, branches: int, clusters: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, buses, (2, branches), generator=draw)
    status = torch.randint(0, 2, (branches,), generator=draw).float()
    cluster = torch.randint(0, clusters, (buses,), generator=draw)
    want: dict[tuple[int, int], float] = {}
    for (i, j), alive in zip(edge_index.T.tolist(), status.tolist(), strict=True):
        a, b = sorted((int(cluster[i]), int(cluster[j])))
        if a != b:
            want[a, b] = max(want.get((a, b), 0.0), alive)
    edges, alive_C = coarsen(edge_index, status, cluster, clusters)
    assert dict(zip(map(tuple, edges.T.tolist()), alive_C.tolist(), strict=True)) == want


def test_mean_by_leaves_empty_groups_at_zero() -> None:
    got = mean_by(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]), 4)
    assert got[:, 0].tolist() == [2.0, 0.0, 5.0, 0.0]


def path_of(buses: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    start = torch.arange(buses - 1)
    substation = torch.arange(buses) // 4
    region = torch.arange(int(substation[-1]) + 1) // 5
    return torch.stack((start, start + 1)), torch.ones(buses - 1), substation, region


def test_a_far_bus_is_heard_through_the_regions() -> None:
    torch.manual_seed(0)
    net = FixedUNet(8).eval().requires_grad_(False)
    edge_index, status, substation, region = path_of(60)
    h = torch.randn(60, 8)
    moved = h.clone()
    moved[0] += 1.0
    hear = (
        net(moved, edge_index, status, substation, region, 3) - net(h, edge_index, status, substation, region, 3)
    ).abs()
    assert float(hear[25].max()) > 1e-5, "25 branches away, one region off: out of reach of flat layers"


def test_graphs_do_not_mix() -> None:
    torch.manual_seed(0)
    net = FixedUNet(8).eval().requires_grad_(False)
    edge_index, status, substation, region = path_of(20)
    h = torch.randn(40, 8)
    both = net(
        h,
        torch.cat((edge_index, edge_index + 20), 1),
        status.repeat(2),
        torch.cat((substation, substation + 5)),
        torch.cat((region, region + 1)),
        2,
    )
    for part in (0, 1):
        alone = net(h[20 * part : 20 * part + 20], edge_index, status, substation, region, 1)
        torch.testing.assert_close(both[20 * part : 20 * part + 20], alone, atol=1e-6, rtol=1e-5)
