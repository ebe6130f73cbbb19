"""Compiled passes of inference against the tensor code: isolated nodes, outages, empty groups, no branches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy.special import ndtr
from torch import Tensor, nn

from gg_ray.bench.verifier import synthetic_batch
from gg_ray.config import VerifierConfig
from gg_ray.verifier.batch import F_NODE, GraphBatch
from gg_ray.verifier.evidence import EVIDENCE, Evidence
from gg_ray.verifier.gat import GatLayer, SageLayer, both_ways, fused, joined, max_by, mean_by
from gg_ray.verifier.model import Verifier, VerifierOutput
from gg_ray.verifier.simd import WIDTH, exp8, gelu8, load, log8, store
from gg_ray.verifier.summary_kernel import summarised
from gg_ray.verifier.temporal import PatchEncoder


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@njit
def _apply(x, exps, logs, gelus):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(0, x.size, WIDTH):
        v = load(x, i)
        store(exps, i, exp8(v))
        store(logs, i, log8(exp8(v)))
        store(gelus, i, gelu8(v))


def test_functions_of_lanes_equal_those_of_numbers() -> None:
    x = np.concatenate((np.linspace(-80, 80, 8_000), np.linspace(-6, 6, 8_000))).astype(np.float32)
    exps, logs, gelus = (np.empty_like(x) for _ in range(3))
    _apply(x, exps, logs, gelus)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(exps, np.exp(exact), rtol=3e-7)
    np.testing.assert_allclose(logs, exact, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(gelus, exact * ndtr(exact), rtol=3e-7, atol=1e-6)


def test_kernels_stand_in_for_inference_alone() -> None:
    x = torch.zeros(2, WIDTH)
    assert not fused(x, WIDTH)
    with torch.no_grad():
        assert fused(x, WIDTH)
        assert not fused(x.double(), WIDTH)
        assert not fused(x, WIDTH + 1)
        assert not fused(x.to("meta"), WIDTH)


graphs = st.tuples(st.integers(1, 40), st.integers(0, 60), st.integers(0, 2**16))


def random_graph(n: int, e: int, seed: int) -> tuple[torch.Generator, Tensor, Tensor]:
    """Branches between any buses (loops and parallel ones among them), about a quarter of them out of service."""
    draw = torch.Generator().manual_seed(seed)
    status = (torch.rand(e, generator=draw) > 0.25).float()
    return draw, torch.randint(0, n, (2, e), generator=draw), status


@settings(max_examples=25)
@given(graphs, st.sampled_from([(64, 4), (32, 2), (16, 4), (96, 12)]))
def test_attention_equals_the_tensor_code(graph: tuple[int, int, int], shape: tuple[int, int]) -> None:
    """Heads of 16, 8 and (by the tensor code, since no whole vector) 4; more heads than lanes."""
    draw, index, status = random_graph(*graph)
    torch.manual_seed(0)
    layer = GatLayer(shape[0], 8, shape[1]).requires_grad_(False)
    h = 3 * torch.randn(graph[0], shape[0], generator=draw)
    edge = torch.randn(graph[1], 8, generator=draw)
    want = layer(h, index, edge, status)
    with torch.inference_mode():
        close(layer(h, index, edge, status), want)


@settings(max_examples=25)
@given(graphs, st.sampled_from([8, 40, 64]))
def test_neighbour_means_and_groups_equal_the_tensor_code(graph: tuple[int, int, int], width: int) -> None:
    draw, index, status = random_graph(*graph)
    torch.manual_seed(0)
    layer = SageLayer(width).requires_grad_(False)
    h = torch.randn(graph[0], width, generator=draw)
    group = torch.randint(0, 5, (graph[0],), generator=draw)
    want = layer(h, *both_ways(index), status.repeat(2)), mean_by(h, group, 6), max_by(h, group, 6)
    with torch.inference_mode():
        close(layer(h, *both_ways(index), status.repeat(2)), want[0])
        close(mean_by(h, group, 6), want[1])
        assert torch.equal(max_by(h, group, 6), want[2])


@pytest.mark.parametrize("rows", [0, 1, 2, 24, 25, 100])
@pytest.mark.parametrize("width", [8, 32, 72])
def test_joined_layers_equal_the_tensor_code(rows: int, width: int) -> None:
    torch.manual_seed(rows)
    layers = nn.Linear(5, width), nn.Linear(20, width, bias=False)
    parts = torch.randn(rows, 5), torch.randn(rows, 60)[:, 10:30]
    onto, scale, norm = torch.randn(rows, width), torch.rand(rows), nn.LayerNorm(width)
    with torch.inference_mode():
        product = layers[0](parts[0]) + layers[1](parts[1])
        close(joined(parts, layers), product)
        change = scale[:, None] * torch.nn.functional.gelu(product)
        close(joined(parts, layers, gelu=True, scale=scale, onto=onto, norm=norm), norm(onto + change))
        stacked = torch.cat((layers[0](parts[0]), parts[0] @ layers[0].weight.T), dim=1)
        again = nn.Linear(5, width, bias=False)
        again.weight = layers[0].weight
        close(joined(parts[:1], (layers[0], again), stacked=True), stacked)


@settings(max_examples=25)
@given(
    n=st.integers(1, 30), patches=st.integers(1, 8), features=st.integers(F_NODE, F_NODE + 2),
    metered=st.floats(0, 1), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_a_row_is_summarised_as_encoder_and_evidence_do(
    n: int, patches: int, features: int, metered: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    encoder = PatchEncoder(features, 16, 4).requires_grad_(False)
    x = torch.randn(n, 4 * patches, features, generator=draw)
    x[..., 4:20:5] = torch.rand(n, 4 * patches, 4, generator=draw)
    bare = torch.rand(n, 4, generator=draw) >= metered
    x[..., :20].unflatten(2, (4, 5)).masked_fill_(bare[:, None, :, None], 0.0)
    want = encoder(x, torch.empty(2, 0), torch.empty(0))
    with torch.inference_mode():
        pooled, proof = summarised(x.numpy(), *encoder.weights(patches))
        close(encoder.activated(torch.from_numpy(pooled)), want)
        close(encoder(x, torch.empty(2, 0), torch.empty(0)), want)
    assert proof.shape == (n, EVIDENCE)
    close(torch.from_numpy(proof), Evidence().reference(x))
    assert not torch.from_numpy(proof).unflatten(1, (-1, 4)).transpose(1, 2)[bare].any()


def thinned(batch: GraphBatch) -> GraphBatch:
    """Branches out of service, and with them a bus without any."""
    phys = batch.edge_phys.clone()
    phys[::5, 5] = 0.0
    phys[(batch.edge_index == 3).any(dim=0), 5] = 0.0
    return dataclasses.replace(batch, edge_phys=phys)


def without_branches(batch: GraphBatch) -> GraphBatch:
    empty = {name: getattr(batch, name)[:0] for name in ("e", "edge_static", "edge_phys", "edge_graph")}
    return dataclasses.replace(batch, edge_index=batch.edge_index[:, :0], **empty)


@pytest.mark.parametrize("case", ["metered", "thin", "none in service", "no branches"])
@pytest.mark.parametrize("graph", ["hybrid", "sage", "none"])
def test_the_network_equals_its_tensor_code(case: str, graph: str) -> None:
    torch.manual_seed(0)
    model = Verifier(VerifierConfig(graph=graph)).eval().requires_grad_(False)
    model.state_head.weight.normal_(std=0.1)
    batch = synthetic_batch(150, 24, np.random.default_rng(0), None if case == "metered" else 0.5)
    if case == "thin":
        batch = thinned(batch)
    elif case == "none in service":
        batch.edge_phys[:, 5] = 0.0
    elif case == "no branches":
        batch = without_branches(batch)
    want = model(batch)
    with torch.inference_mode():
        got = model(batch)
    for item in dataclasses.fields(VerifierOutput):
        close(getattr(got, item.name), getattr(want, item.name))
