"""gg_ray.learner: complete state, averaged weights, refused gradients, seeds."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from gg_ray.config import LearnerConfig, VerifierConfig
from gg_ray.grid.cases import load_case
from gg_ray.grid.jacobian import F_JAC
from gg_ray.learner import Learner, load_numpy, new_verifier, pick_device
from gg_ray.nested import flatten, unflatten
from gg_ray.records import Experience, Labels, Program
from gg_ray.verifier.batch import F_EDGE, F_NODE, GraphBatch, collate
from gg_ray.verifier.features import case_static

VERIFIER = VerifierConfig(hidden=16)


@pytest.fixture(scope="module")
def batch() -> GraphBatch:
    case, rng, items = load_case("case14"), np.random.default_rng(0), []
    n, e = case.n_bus, case.n_branch
    for i in range(6):
        node, edge = rng.normal(size=(16, n, F_NODE)), rng.normal(size=(16, e, F_EDGE))
        node[..., 4::5] = edge[..., 4::5] = 1.0  # fresh
        edge[..., -1] = 1.0  # in service
        labels = Labels(
            implausible=i % 2 == 0, disturbance=i == 1, severity=0.2, type=2 if i % 2 == 0 else 0,
            node_N=np.arange(n) == i, edge_E=np.zeros(e, dtype=bool), onset=-1, end=-1,
        )  # fmt: skip
        items.append(
            Experience(
                case="case14", plan_id=0, node_TNF=node.astype(np.float16),
                edge_TEF=edge.astype(np.float16), xhat_N2=np.zeros((n, 2), dtype=np.float32),
                states_SN2=np.zeros((4, n, 2), dtype=np.float32), meas_N2=np.zeros((n, 2), dtype=np.float32),
                sigma_N2=np.full((n, 2), np.inf, dtype=np.float32), param_E3=np.ones((e, 3), dtype=np.float32),
                jac_NJ=rng.normal(size=(n, F_JAC)).astype(np.float16),
                labels=labels, pair=i // 2, source="uniform", d_eff=4.0, p_star=0.9, p_bar=0.5, learnability=0.5,
                version=0, program=Program(case="case14", context_id=0, plan_id=0, events=(), scans=16, seed=i),
            )
        )  # fmt: skip
    return collate(items, {"case14": case_static("case14")})


def new(**changes: object) -> Learner:
    config = dataclasses.replace(LearnerConfig(device="cpu"), **changes)  # type: ignore[arg-type]
    return Learner(new_verifier(VERIFIER, 0), config, 60)


def test_a_fixed_batch_is_learned(batch: GraphBatch) -> None:
    learner = new()
    losses = [learner.step(batch)[0]["loss/total"] for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    metrics, p = learner.step(batch)
    assert p.shape == (6,)
    assert ((p >= 0) & (p <= 1)).all()
    assert metrics["learner/skipped"] == 0.0
    assert learner.step_count == 41


def test_resume_continues_bit_for_bit(batch: GraphBatch) -> None:
    straight, stopped = new(), new()
    for _ in range(6):
        straight.step(batch)
    for _ in range(3):
        stopped.step(batch)
    resumed = Learner(new_verifier(VERIFIER, 99), straight.config, 60)
    resumed.load_state_dict(unflatten(flatten(stopped.state_dict())))
    for _ in range(3):
        resumed.step(batch)
    one, two = straight.state_dict(), resumed.state_dict()
    for part in ("network", "average"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    for slot, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(value, two["optimizer"]["state"][slot][name]) for name, value in moments.items())
    assert (one["step"], one["skipped"]) == (two["step"], two["skipped"])


def test_a_gradient_that_is_not_finite_changes_nothing(batch: GraphBatch) -> None:
    learner = new()
    learner.step(batch)
    before, average = copy.deepcopy(learner.network.state_dict()), learner.weights()
    broken = dataclasses.replace(batch, x=torch.full_like(batch.x, float("nan")))
    metrics, _ = learner.step(broken)
    assert metrics["learner/skipped"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in learner.network.state_dict().items())
    for name, value in learner.weights().items():
        np.testing.assert_array_equal(value, average[name])
    learner.step(batch)
    assert learner.skipped == 1
    assert learner.step_count == 3


def test_the_average_follows_the_live_weights(batch: GraphBatch) -> None:
    learner = new(ema=0.0)
    learner.step(batch)
    for name, value in learner.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), learner.weights()[name])
    slow = new(ema=0.99)
    start = slow.weights()
    slow.step(batch)
    live = slow.network.state_dict()
    name = next(key for key, value in start.items() if (live[key].numpy() != value).any())
    # the ramp (1 + 0) / (10 + 0): one tenth stays
    np.testing.assert_allclose(slow.weights()[name], 0.1 * start[name] + 0.9 * live[name].numpy(), rtol=1e-4, atol=1e-6)


def test_published_weights_are_copies(batch: GraphBatch) -> None:
    learner = new()
    weights = learner.weights()
    kept = copy.deepcopy(weights)
    learner.step(batch)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, kept[name])
    frozen = {name: value.copy() for name, value in weights.items()}
    for value in frozen.values():
        value.setflags(write=False)  # as Ray hands them out
    network = new_verifier(VERIFIER, 5)
    load_numpy(network, frozen)
    assert all((network.state_dict()[name].numpy() == value).all() for name, value in frozen.items())


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    learner = new(lr=2e-3, lr_end=1e-4)
    rates = []
    for step in (0, 19, 30, 60, 500):
        learner.step_count = step
        rates.append(learner.lr)
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[1]
    assert rates[2] == pytest.approx(1e-4 + 0.5 * 1.9e-3, rel=1e-6)
    assert rates[3] == rates[4] == pytest.approx(1e-4)


def test_seeds_and_devices() -> None:
    torch.manual_seed(3)
    one = new_verifier(VERIFIER, 0).state_dict()
    torch.manual_seed(4)
    two = new_verifier(VERIFIER, 0).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(RuntimeError, match=r"learner\.device 'cuda'.*no GPU"):
            pick_device("cuda")
