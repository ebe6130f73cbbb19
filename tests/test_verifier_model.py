"""The Verifier: relabelling, masking, window lengths, silence of meters, size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray.bench.verifier import run, synthetic_batch
from gg_ray.config import VerifierConfig
from gg_ray.grid.jacobian import F_JAC
from gg_ray.verifier import gat
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.gat import Dense, GatLayer, SageLayer, both_ways
from gg_ray.verifier.model import Verifier, VerifierOutput, probabilities

CONFIGS = [
    VerifierConfig(hidden=16),
    VerifierConfig(hidden=16, graph="sage"),
    VerifierConfig(hidden=16, encoder="tgcn"),
    VerifierConfig(hidden=16, jacobian=True),
    VerifierConfig(hidden=32),  # heads of whole vectors: compiled attention
]


def make_batch(buses: int = 30, scans: int = 16, seed: int = 0) -> GraphBatch:
    batch = synthetic_batch(buses, scans, np.random.default_rng(seed))
    return dataclasses.replace(batch, jac=torch.randn(buses, F_JAC, generator=torch.Generator().manual_seed(seed)))


def make_model(config: VerifierConfig, seed: int = 0) -> Verifier:
    torch.manual_seed(seed)
    model = Verifier(config).eval()
    with torch.no_grad():  # zero-initialised: give the state head something to get wrong
        model.state_head.weight.normal_(std=0.1)
    return model


def join(*batches: GraphBatch) -> GraphBatch:
    """Disjoint union, written out independently of collate."""
    offset = {"node": 0, "substation": 0, "region": 0}
    parts: dict[str, list[torch.Tensor]] = {}
    for g, b in enumerate(batches):
        values = {k: v for k, v in vars(b).items() if isinstance(v, torch.Tensor)}
        values["edge_index"] = b.edge_index + offset["node"]
        values["substation"] = b.substation + offset["substation"]
        values["region"] = b.region + offset["region"]
        for name in ("graph", "edge_graph", "region_graph"):
            values[name] = values[name] + g
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
        offset["node"] += b.x.shape[0]
        offset["substation"] += b.region.shape[0]
        offset["region"] += b.region_graph.shape[0]
    joined: dict[str, Any] = {k: torch.cat(v, dim=1 if k == "edge_index" else 0) for k, v in parts.items()}
    return GraphBatch(**joined, n_graphs=len(batches))


def assert_same(left: VerifierOutput, right: VerifierOutput, names: tuple[str, ...] = ()) -> None:
    for name in names or [item.name for item in dataclasses.fields(VerifierOutput)]:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.encoder}-{c.graph}-{c.jacobian}-{c.hidden}")
def test_relabelling_buses_and_branches_relabels_the_outputs(config: VerifierConfig) -> None:
    model, batch = make_model(config), join(make_batch(30), make_batch(14, seed=1))
    draw = torch.Generator().manual_seed(3)
    buses, branches = batch.x.shape[0], batch.e.shape[0]
    order, edge_order = torch.randperm(buses, generator=draw), torch.randperm(branches, generator=draw)
    place = torch.argsort(order)
    moved: dict[str, Any] = {
        k: v[order] for k, v in vars(batch).items() if isinstance(v, torch.Tensor) and len(v) == buses
    }
    moved |= {k: v[edge_order] for k, v in vars(batch).items() if isinstance(v, torch.Tensor) and len(v) == branches}
    moved["edge_index"] = place[batch.edge_index[:, edge_order]]
    with torch.no_grad():
        want, got = model(batch), model(dataclasses.replace(batch, **moved))
    back = {k: getattr(got, k)[place] for k in ("node", "state_mu", "state_logvar")}
    back["edge"] = got.edge[torch.argsort(edge_order)]
    assert_same(dataclasses.replace(got, **back), want)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.encoder}-{c.graph}-{c.jacobian}-{c.hidden}")
def test_a_window_is_judged_alike_alone_and_in_company(config: VerifierConfig) -> None:
    model, one, two = make_model(config), make_batch(30), make_batch(14, seed=1)
    with torch.no_grad():
        both, first, second = model(join(one, two)), model(one), model(two)
    merged = {
        f.name: torch.cat((getattr(first, f.name), getattr(second, f.name))) for f in dataclasses.fields(VerifierOutput)
    }
    assert_same(both, VerifierOutput(**merged))


def test_the_jacobian_block_counts_where_it_is_switched_on() -> None:
    batch = make_batch(14)
    bare = dataclasses.replace(batch, jac=batch.jac[:, :0])
    without, within = make_model(CONFIGS[0]), make_model(CONFIGS[3])
    with torch.no_grad():
        assert_same(without(batch), without(bare))
        louder = dataclasses.replace(batch, jac=2 * batch.jac)
        assert float((within(louder).node - within(batch).node).abs().max()) > 1e-3


def test_a_branch_out_of_service_carries_no_message() -> None:
    torch.manual_seed(0)
    h, edge = torch.randn(4, 8), torch.randn(3, 5)
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    gat_layer, sage = GatLayer(8, 5, 2), SageLayer(8)
    gat_layer.requires_grad_(False)
    sage.requires_grad_(False)
    for status in (torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])):
        moved, moved_edge = h.clone(), edge.clone()
        moved[1] += 1.0
        moved_edge[1] += 1.0
        change = gat_layer(moved, edge_index, moved_edge, status) - gat_layer(h, edge_index, edge, status)
        ways = (*both_ways(edge_index), status.repeat(2))
        change_sage = sage(moved, *ways) - sage(h, *ways)
        for delta in (change, change_sage):
            assert float(delta[0].abs().max()) > 1e-4, "over the branch in service"
            assert (float(delta[2].abs().max()) > 1e-4) == bool(status[1]), "over the branch in question"
            assert float(delta[3].abs().max()) == 0, "two branches away"
    alone = gat_layer(h, edge_index, edge, torch.zeros(3))
    torch.testing.assert_close(alone, gat_layer.norm(h))


def test_status_mask_cuts_the_sage_network_in_two() -> None:
    model, batch = make_model(CONFIGS[1]), make_batch(30)
    cut = batch.edge_phys.clone()
    cut[((batch.edge_index < 15).sum(0) == 1), 5] = 0.0
    assert bool((cut[:, 5] == 0).any())
    split = dataclasses.replace(batch, edge_phys=cut)
    loud = split.x.clone()
    loud[:15] += 1.0
    with torch.no_grad():
        delta = model(dataclasses.replace(split, x=loud)).node - model(split).node
    assert float(delta[:15].abs().max()) > 1e-4
    assert float(delta[15:].abs().max()) < 1e-6


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_one_set_of_weights_serves_every_window(scans: int) -> None:
    model = make_model(CONFIGS[0])
    with torch.no_grad():
        out = model(make_batch(14, scans))
    assert out.implausible.shape == (1,)
    assert out.type.shape == (1, 13)
    assert out.node.shape == (14,)
    assert out.edge.shape == (18,)
    assert out.state_mu.shape == (14, 2)
    chances = probabilities(out)
    assert float(chances["type"].sum()) == pytest.approx(1.0, abs=1e-5)
    assert all(bool(((p >= 0) & (p <= 1)).all()) for p in chances.values())


def test_silent_meters_give_finite_outputs_and_gradients() -> None:
    batch = make_batch(14)
    silent = dataclasses.replace(
        batch,
        x=torch.zeros_like(batch.x),
        e=torch.zeros_like(batch.e),
        sigma=torch.full_like(batch.sigma, torch.inf),
        edge_phys=torch.zeros_like(batch.edge_phys),
    )
    model = make_model(CONFIGS[0]).train()
    out = model(silent)
    torch.stack([getattr(out, f.name).sum() for f in dataclasses.fields(VerifierOutput)]).sum().backward()
    assert all(bool(getattr(out, f.name).isfinite().all()) for f in dataclasses.fields(VerifierOutput))
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_slack_angle_does_not_reach_the_logits() -> None:
    model, batch = make_model(CONFIGS[0]), make_batch(14)
    turned = dataclasses.replace(batch, xhat=batch.xhat + torch.tensor([0.0, 0.7]))
    with torch.no_grad():
        want, got = model(batch), model(turned)
    assert_same(got, want, ("implausible", "disturbance", "type", "node", "edge", "state_logvar"))
    torch.testing.assert_close(got.state_mu, want.state_mu + torch.tensor([0.0, 0.7]), atol=1e-5, rtol=0)


def test_untrained_network_believes_the_estimator_and_stays_small() -> None:
    model, batch = Verifier(VerifierConfig()), make_batch(14)
    out = model(batch)
    assert torch.equal(out.state_mu, batch.xhat)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert all(p.requires_grad for p in model.parameters())


def test_every_parameter_is_used() -> None:
    # 450 buses: the smallest round number with two regions
    model, batch = make_model(CONFIGS[0]), join(make_batch(450), make_batch(14, seed=1))
    out = model(batch)
    weighted = [(getattr(out, f.name) * torch.randn_like(getattr(out, f.name))).sum() for f in dataclasses.fields(out)]
    torch.stack(weighted).sum().backward()
    dead = [k for k, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-5]
    assert dead == []


def test_large_inputs_and_blocks_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, rows = Dense(24, 16), torch.randn(gat.ONEDNN_ROWS, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias), atol=1e-5, rtol=0
        )
    model, batch = make_model(CONFIGS[0]), make_batch(30)
    with torch.no_grad():
        whole = model(batch)
        monkeypatch.setattr(gat, "BLOCK_BRANCHES", 7)
        assert_same(model(batch), whole)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="hidden 10 must be a multiple of heads 4"):
        GatLayer(10, 4, 4)


@pytest.mark.slow
def test_benchmark_reports_its_keys() -> None:
    report = run(buses=50, scans=16, compiled=False, case="case14")
    assert {"compiled_cpu_ms", "hundred_k_cpu_ms", "jacobian_cpu_ms"} <= report.keys()
    assert 0 < report["tick_p50_ms"] <= report["tick_p99_ms"]
    assert report["stream_tick_cpu_ms"] > 0
    assert report["branches"] == 65
    assert report["cpu_ms"] > 0
    assert report["wall_ms"] > 0
    tgcn, ratio = report["tgcn_loop_cpu_ms"], report["ratio_to_tgcn"]
    assert (tgcn is None and ratio is None) or ratio == pytest.approx(tgcn / report["cpu_ms"])
