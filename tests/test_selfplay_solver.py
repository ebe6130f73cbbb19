"""Solver: exact low-rank likelihood, coherent samples, and learning that fills in hidden states."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.distributions import LowRankMultivariateNormal

from gg_ray.config import SolverConfig
from gg_ray.grid.jacobian import F_JAC
from gg_ray.selfplay.solver import Solver, SolverLearner, SolverOutput, correct, nll, sample
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, GraphBatch


def ring(buses: int, graphs: int, scans: int = 16, seed: int = 0) -> GraphBatch:
    """Rings of buses with random features."""
    g = torch.Generator().manual_seed(seed)
    total = buses * graphs
    number = torch.arange(total)
    following = number - number % buses + (number % buses + 1) % buses
    graph = number // buses
    phys = torch.tensor([0.01, 0.1, 0.02, 1.0, 0.0, 1.0]).repeat(total, 1)
    return GraphBatch(
        x=torch.randn(total, scans, F_NODE, generator=g), e=torch.randn(total, scans, F_EDGE, generator=g),
        node_static=torch.randn(total, F_NODE_STATIC, generator=g),
        edge_static=torch.randn(total, F_EDGE_STATIC, generator=g),
        xhat=0.02 * torch.randn(total, 2, generator=g), meas=torch.zeros(total, 2), sigma=torch.ones(total, 2),
        edge_phys=phys, node_shunt=torch.zeros(total, 2), jac=torch.zeros(total, F_JAC),
        edge_index=torch.stack((number, following)), graph=graph,
        edge_graph=graph, substation=number, region=graph, region_graph=torch.arange(graphs), n_graphs=graphs,
    )  # fmt: skip


def random_output(graph: torch.Tensor, span: int, rank: int, dtype: torch.dtype = torch.float64) -> SolverOutput:
    g = torch.Generator().manual_seed(1)
    n = graph.shape[0]
    return SolverOutput(
        mu=torch.randn(n, span, 2, generator=g, dtype=dtype),
        log_sigma=0.3 * torch.randn(n, span, 2, generator=g, dtype=dtype),
        factor=torch.randn(n, span, 2, rank, generator=g, dtype=dtype),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_likelihood_is_that_of_the_dense_gaussian(dtype: torch.dtype, tolerance: float) -> None:
    # buses of the graphs interleaved: the sums must go by index, not by position
    graph = torch.tensor([0, 1, 1, 0, 2, 0, 1])
    output = random_output(graph, span=3, rank=4, dtype=dtype)
    target = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(2), dtype=dtype)
    got = nll(output, target, graph, 3)
    for number in range(3):
        rows = graph == number
        exact = LowRankMultivariateNormal(
            output.mu[rows].flatten(),
            output.factor[rows].flatten(0, 2),
            (2 * output.log_sigma[rows]).exp().flatten(),
        ).log_prob(target[rows].flatten())
        assert float(got[number]) == pytest.approx(-float(exact), rel=tolerance)


def test_likelihood_survives_factors_far_larger_than_the_noise() -> None:
    graph = torch.zeros(40, dtype=torch.int64)
    output = random_output(graph, span=4, rank=8, dtype=torch.float32)
    big = SolverOutput(mu=output.mu, log_sigma=output.log_sigma - 7, factor=output.factor)
    own = big.log_sigma.exp() * torch.randn(big.mu.shape, generator=torch.Generator().manual_seed(0))
    shared = torch.einsum("nscr,r->nsc", big.factor, torch.randn(8, generator=torch.Generator().manual_seed(1)))
    target = big.mu + own + shared
    double = SolverOutput(mu=big.mu.double(), log_sigma=big.log_sigma.double(), factor=big.factor.double())
    exact = nll(double, target.double(), graph, 1)
    assert float(nll(big, target, graph, 1)) == pytest.approx(float(exact), rel=2e-3)


def test_gradients_of_the_likelihood_are_right() -> None:
    graph = torch.tensor([0, 1, 0])
    output = random_output(graph, span=2, rank=2)
    target = torch.zeros(3, 2, 2, dtype=torch.float64)

    def loss(mu: torch.Tensor, log_sigma: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return nll(SolverOutput(mu=mu, log_sigma=log_sigma, factor=factor), target, graph, 2)

    inputs = [t.clone().requires_grad_() for t in (output.mu, output.log_sigma, output.factor)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_samples_have_the_covariance_of_the_likelihood_and_graphs_are_independent() -> None:
    graph = torch.tensor([0, 1, 0])
    output = random_output(graph, span=1, rank=2)
    drawn = sample(output, graph, 2, 60_000, torch.Generator().manual_seed(0)).flatten(1).numpy()
    w = output.factor.flatten(0, 2).numpy()
    same = np.equal.outer(np.repeat([0, 1, 0], 2), np.repeat([0, 1, 0], 2))
    want = (w @ w.T) * same + np.diag((2 * output.log_sigma).exp().flatten().numpy())
    np.testing.assert_allclose(np.cov(drawn.T), want, atol=0.12)
    np.testing.assert_allclose(drawn.mean(axis=0), output.mu.flatten().numpy(), atol=0.05)
    again = sample(output, graph, 2, 5, torch.Generator().manual_seed(3))
    assert again.shape == (5, 3, 1, 2)
    assert torch.equal(again, sample(output, graph, 2, 5, torch.Generator().manual_seed(3)))


def test_the_untrained_mean_is_the_estimate() -> None:
    torch.manual_seed(0)
    solver = Solver(SolverConfig())
    for buses, scans in ((5, 16), (9, 24)):
        batch = ring(buses, 2, scans)
        output = solver(batch, torch.zeros(2 * buses))
        assert output.mu.shape == (2 * buses, 4, 2)
        assert output.factor.shape == (2 * buses, 4, 2, 8)
        torch.testing.assert_close(output.mu, batch.xhat[:, None].expand(-1, 4, -1))
    assert sum(p.numel() for p in solver.parameters()) < 2_000_000


def test_graphs_of_a_batch_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    solver = Solver(SolverConfig())
    for head in (solver.mean, solver.spread):
        torch.nn.init.normal_(head.weight, std=0.1)
    batch = ring(6, 2)
    hidden = torch.zeros(12)
    before = solver(batch, hidden)
    batch.x = batch.x.clone()
    batch.x[:6] += 1.0
    after = solver(batch, hidden)
    torch.testing.assert_close(before.mu[6:], after.mu[6:])
    assert not torch.allclose(before.mu[:6], after.mu[:6])
    assert not torch.allclose(before.mu, solver(ring(6, 2), torch.ones(12)).mu)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"window of 2 scans, solver\.horizon is 4"):
        Solver(SolverConfig())(ring(4, 1, scans=2), torch.zeros(4))
    with pytest.raises(ValueError, match="one flag per bus"):
        Solver(SolverConfig())(ring(4, 1), torch.zeros(5))
    with pytest.raises(ValueError, match="at least one"):
        correct(np.zeros((3, 0)))


@pytest.mark.parametrize(
    ("errors", "want"),
    [
        ([0.0, 0.0], True),
        ([1.2, 1.2, 1.2], True),
        ([1.3, 1.3, 1.3], False),
        ([4.0, *[0.0] * 12], True),
        ([-4.1, *[0.0] * 40], False),
        ([float("nan"), 0.0], False),
    ],
)
def test_correctness_rule(errors: list[float], want: bool) -> None:
    assert bool(correct(errors)) is want
    assert correct([errors, errors]).tolist() == [want, want]


def problem(step: int) -> tuple[GraphBatch, torch.Tensor, torch.Tensor]:
    """Rings whose state is one common level per graph; readings show it at all buses but the hidden ones."""
    batch = ring(6, 8, seed=step)
    g = torch.Generator().manual_seed(10_000 + step)
    level = 0.02 * torch.randn(8, 2, generator=g)
    target = level[batch.graph][:, None] + 0.001 * torch.randn(48, 4, 2, generator=g)
    hidden = (torch.rand(48, generator=g) < 0.3).float()
    batch.x = 0.1 * batch.x
    batch.x[:, :, :2] += 50 * level[batch.graph][:, None] * (1 - hidden)[:, None, None]
    batch.xhat = torch.zeros(48, 2)
    return batch, hidden, target


def test_training_fills_in_hidden_buses_from_their_neighbours() -> None:
    torch.manual_seed(0)
    config = SolverConfig(hidden=32, lr=5e-3)
    learner = SolverLearner(Solver(config), config)

    def error() -> torch.Tensor:
        """Root mean square error of |V| and angle at hidden buses of windows that were never trained on."""
        squares = []
        for step in range(900, 910):
            batch, hidden, target = problem(step)
            with torch.no_grad():
                squares.append((learner.solver(batch, hidden).mu - target)[hidden > 0].square().mean(dim=(0, 1)))
        return torch.stack(squares).mean(dim=0).sqrt()

    before = error()
    metrics = [learner.step(*problem(step)) for step in range(200)]
    assert metrics[-1]["nll_per_dim"] < metrics[0]["nll_per_dim"] - 1.0
    assert sum(m["skipped"] for m in metrics) == 0
    assert bool((error() < 0.5 * before).all()), (before, error())


def test_unit_gaussian_has_the_documented_loss() -> None:
    torch.manual_seed(0)
    config = SolverConfig()
    learner = SolverLearner(Solver(config), config)
    torch.nn.init.zeros_(learner.solver.shared.weight)
    batch = ring(30, 4)
    noise = torch.randn(120, 4, 2, generator=torch.Generator().manual_seed(0))
    target = batch.xhat[:, None] + noise * torch.tensor([0.01, 0.02])
    loss = learner.step(batch, torch.zeros(120), target)["nll_per_dim"]
    assert loss == pytest.approx(0.5 * np.log(2 * np.pi) + 0.5, abs=0.06)


def test_resume_continues_bit_for_bit() -> None:
    torch.manual_seed(0)
    config = SolverConfig(hidden=16)
    straight = SolverLearner(Solver(config), config)
    start = copy.deepcopy(straight.state_dict())
    for step in range(4):
        straight.step(*problem(step))
    first, second = (SolverLearner(Solver(config), config) for _ in range(2))
    first.load_state_dict(start)
    for step in range(2):
        first.step(*problem(step))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.step(*problem(step))
    assert second.steps == straight.steps == 4
    for name, weight in straight.solver.state_dict().items():
        assert torch.equal(weight, second.solver.state_dict()[name]), name


def test_a_batch_with_broken_numbers_changes_nothing() -> None:
    torch.manual_seed(0)
    config = SolverConfig(hidden=16)
    learner = SolverLearner(Solver(config), config)
    batch, hidden, target = problem(0)
    before = copy.deepcopy(learner.solver.state_dict())
    target[0, 0, 0] = torch.nan
    assert learner.step(batch, hidden, target)["skipped"] == 1.0
    for name, weight in learner.solver.state_dict().items():
        assert torch.equal(weight, before[name]), name
