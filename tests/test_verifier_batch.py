"""Collation: offsets, declared parameters, twins, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.grid.jacobian import F_JAC
from gg_ray.records import Experience, Labels, Program
from gg_ray.verifier.batch import F_EDGE, F_NODE, BatchError, CaseStatic, collate, from_arrays


def make_static(rng: np.random.Generator, buses: int) -> CaseStatic:
    branches = buses + 3
    ring = np.stack((np.arange(buses), (np.arange(buses) + 1) % buses))
    chords = rng.integers(0, buses - 1, 3)
    substation = np.arange(buses) // 2
    return CaseStatic(
        node_static=rng.standard_normal((buses, 8)),
        edge_static=rng.standard_normal((branches, 8)),
        edge_index=np.concatenate((ring, np.stack((chords, chords + 1))), axis=1),
        substation=substation,
        region=(np.arange(substation[-1] + 1) > 1).astype(int),
        n_regions=2,
        edge_phys_base=np.tile([0.01, 0.1, 0.02, 1.0, 0.0, 1.0], (branches, 1)),
        node_shunt=np.zeros((buses, 2)),
    )


def make_item(
    rng: np.random.Generator, case: str, static: CaseStatic, scans: int = 8, pair: int = -1, implausible: bool = False
) -> Experience:
    n, e = static.n_buses, static.n_branches
    return Experience(
        case=case,
        plan_id=0,
        node_TNF=rng.standard_normal((scans, n, F_NODE)).astype(np.float16),
        edge_TEF=rng.standard_normal((scans, e, F_EDGE)).astype(np.float16),
        xhat_N2=rng.standard_normal((n, 2)).astype(np.float32),
        states_SN2=rng.standard_normal((4, n, 2)).astype(np.float32),
        meas_N2=np.zeros((n, 2), np.float32),
        sigma_N2=np.full((n, 2), np.inf, np.float32),
        param_E3=rng.uniform(0.5, 1.5, (e, 3)).astype(np.float32),
        jac_NJ=rng.standard_normal((n, F_JAC)).astype(np.float16),
        labels=Labels(
            implausible=implausible,
            disturbance=not implausible,
            severity=0.25,
            type=3 if implausible else 0,
            node_N=rng.random(n) < 0.5,
            edge_E=rng.random(e) < 0.5,
            onset=-1,
            end=-1,
        ),
        program=Program(case=case, context_id=0, plan_id=0, events=(), scans=scans, seed=0),
        pair=pair,
        source="uniform",
        d_eff=0.0,
        p_star=0.9,
        p_bar=0.5,
        learnability=0.0,
        version=0,
    )


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(4, 9), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_every_item_is_found_again_in_its_graph_and_nothing_crosses(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    statics = {f"case{n}": make_static(rng, n) for n in set(sizes)}
    items = [make_item(rng, f"case{n}", statics[f"case{n}"]) for n in sizes]
    batch = collate(items, statics)
    assert batch.n_graphs == len(items)
    assert torch.equal(batch.graph[batch.edge_index[0]], batch.edge_graph)
    assert torch.equal(batch.graph[batch.edge_index[1]], batch.edge_graph)
    assert torch.equal(batch.region_graph[batch.region[batch.substation]], batch.graph)
    assert int(batch.region_graph.bincount().max()) == 2
    assert batch.y_node is not None
    assert batch.y_edge is not None
    assert batch.state is not None
    for g, item in enumerate(items):
        nodes, edges = batch.graph == g, batch.edge_graph == g
        static = statics[item.case]
        first = int(nodes.nonzero()[0])
        np.testing.assert_array_equal(batch.x[nodes].numpy(), item.node_TNF.transpose(1, 0, 2))
        np.testing.assert_array_equal(batch.e[edges].numpy(), item.edge_TEF.transpose(1, 0, 2))
        np.testing.assert_array_equal(batch.edge_index[:, edges].numpy() - first, static.edge_index)
        np.testing.assert_array_equal(batch.y_node[nodes].numpy(), item.labels.buses(static.edge_index))
        np.testing.assert_array_equal(batch.y_edge[edges].numpy(), item.labels.edge_E)
        np.testing.assert_array_equal(batch.state[nodes].numpy(), item.state_N2)
        substations = batch.substation[nodes].numpy()
        np.testing.assert_array_equal(substations - substations.min(), static.substation)


def test_declared_parameters_reach_the_physics_and_leave_the_case_untouched() -> None:
    rng = np.random.default_rng(1)
    static = make_static(rng, 5)
    item = make_item(rng, "a", static)
    before = static.edge_phys_base.copy()
    phys = collate([item], {"a": static}).edge_phys.numpy()
    np.testing.assert_array_equal(phys[:, 5], item.param_E3[:, 0])
    np.testing.assert_array_equal(phys[:, 3], item.param_E3[:, 1])
    # a declared length: r, x and b by one factor
    np.testing.assert_allclose(phys[:, :3], before[:, :3] * item.param_E3[:, 2:], rtol=1e-6)
    np.testing.assert_array_equal(phys[:, 4], before[:, 4])
    np.testing.assert_array_equal(static.edge_phys_base, before)


def test_pairs_put_the_anomalous_window_first_and_skip_half_pairs() -> None:
    rng = np.random.default_rng(2)
    static = make_static(rng, 4)
    plan = [(7, False), (7, True), (-1, True), (9, True), (3, True), (3, False), (-1, False)]
    items = [make_item(rng, "a", static, pair=pair, implausible=bad) for pair, bad in plan]
    batch = collate(items, {"a": static}, weights=np.arange(7))
    assert batch.pairs is not None
    assert batch.weight is not None
    assert batch.y_impl is not None
    assert sorted(map(tuple, batch.pairs.T.tolist())) == [(1, 0), (4, 5)]
    assert batch.weight.tolist() == list(range(7))
    assert batch.y_impl.tolist() == [float(bad) for _, bad in plan]
    lonely = collate(items[2:4], {"a": static})
    assert lonely.pairs is not None
    assert lonely.pairs.shape == (2, 0)


def test_unlabelled_batch_equals_bare_arrays() -> None:
    rng = np.random.default_rng(3)
    static = make_static(rng, 6)
    items = [make_item(rng, "a", static) for _ in range(3)]
    left = collate(items, {"a": static}, labelled=False)
    right = from_arrays(
        static,
        node_BTNF=np.stack([i.node_TNF for i in items]),
        edge_BTEF=np.stack([i.edge_TEF for i in items]),
        xhat_BN2=np.stack([i.xhat_N2 for i in items]),
        meas_BN2=np.stack([i.meas_N2 for i in items]),
        sigma_BN2=np.stack([i.sigma_N2 for i in items]),
        param_BE3=np.stack([i.param_E3 for i in items]),
        jac_BNJ=np.stack([i.jac_NJ for i in items]),
    )
    for name, value in vars(left).items():
        other = getattr(right, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert left.y_impl is None
    assert left.pairs is None


def test_to_moves_every_tensor() -> None:
    rng = np.random.default_rng(4)
    static = make_static(rng, 4)
    moved = collate([make_item(rng, "a", static)], {"a": static}).to("meta")
    assert all(v.device.type == "meta" for v in vars(moved).values() if isinstance(v, torch.Tensor))
    assert moved.n_graphs == 1


def test_refusals_name_the_cause() -> None:
    rng = np.random.default_rng(5)
    static = make_static(rng, 4)
    short, long = make_item(rng, "a", static, scans=8), make_item(rng, "a", static, scans=16)
    with pytest.raises(BatchError, match=r"\[8, 16\] scans"):
        collate([short, long], {"a": static})
    with pytest.raises(BatchError, match="'a' has no static arrays; known: b"):
        collate([short], {"b": static})
    with pytest.raises(BatchError, match="at least one window"):
        collate([], {"a": static})
    with pytest.raises(BatchError, match="window 0: node features"):
        collate([short], {"a": make_static(rng, 5)})
    short.jac_NJ = short.jac_NJ[:, 1:]
    with pytest.raises(BatchError, match="window 0: Jacobian block of shape"):
        collate([short], {"a": static})
    short = make_item(rng, "a", static)
    with pytest.raises(BatchError, match="one per window"):
        collate([short], {"a": static}, weights=[1.0, 2.0])
    with pytest.raises(BatchError, match="CaseStatic\\.edge_index"):
        CaseStatic(**{**vars(static), "edge_index": static.edge_index + 1})


def test_the_ends_of_an_affected_branch_are_concerned() -> None:
    labels = Labels(
        implausible=True, disturbance=False, severity=0.0, type=1, node_N=np.array([False, False, False, True, False]),
        edge_E=np.array([False, True, False]), onset=0, end=1,
    )  # fmt: skip
    concerned = labels.buses(np.array([[0, 1, 2], [1, 2, 4]]))
    assert concerned.tolist() == [False, True, True, True, False]
    assert labels.node_N.sum() == 1  # the labels themselves stay
