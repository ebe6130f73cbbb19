"""The deep rivals' networks against their papers' equations written out loop by loop, and golden steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gg_ray.baselines.gdn import DeviationNetwork, Gdn
from gg_ray.baselines.mtad_gat import GraphAttention, JointNetwork, MtadGat, joint_loss

GOLDEN_GDN = (0.8745476652248652, 0.864473414882025)
GOLDEN_MTAD = (-0.41792602440101956, -0.48221326335902004)


def seeded(seed: int = 0) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def leaky(x: float) -> float:
    return x if x > 0 else 0.2 * x


def test_gdn_forecast_equals_its_equations() -> None:
    """Every sensor in turn: cosine top-k, attention over neighbours and itself, output of v * z."""
    generator = seeded(1)
    network = DeviationNetwork(channels=6, inputs=4, dim=3, top_k=2).double()
    x_wK = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    v, w = network.embedding.detach(), network.project.weight.detach()
    own, other = network.own.weight.detach()[0], network.other.weight.detach()[0]
    expected = []
    for i in range(6):
        cosine = [float(v[i] @ v[j] / (v[i].norm() * v[j].norm())) if j != i else -math.inf for j in range(6)]
        near = sorted(range(6), key=lambda j: -cosine[j])[:2]
        g = [torch.cat((v[j], w @ x_wK[:, j])) for j in range(6)]
        members = [i, *near]
        logit = torch.tensor([leaky(float(own @ g[i] + other @ g[j])) for j in members], dtype=torch.float64)
        alpha = torch.softmax(logit, dim=0)
        z = torch.relu(sum(a * (w @ x_wK[:, j]) for a, j in zip(alpha, members, strict=True)))  # type: ignore[arg-type]
        expected.append(float(network.out((v[i] * z)[None]).detach()))
        assert network.graph()[i].nonzero()[:, 0].tolist() == sorted(members)
    with torch.no_grad():
        np.testing.assert_allclose(network(x_wK[None])[0].numpy(), expected, rtol=1e-12)


def test_gdn_shapes_and_few_sensors() -> None:
    seeded()
    network = DeviationNetwork(channels=3, inputs=5, dim=8, top_k=15)
    assert network.graph().all()
    assert network(torch.zeros(7, 5, 3)).shape == (7, 3)
    alpha, values = network.attention(torch.randn(2, 5, 3))
    assert alpha.shape == (2, 3, 3)
    assert values.shape == (2, 3, 8)
    torch.testing.assert_close(alpha.sum(dim=2), torch.ones(2, 3))
    alone = DeviationNetwork(channels=1, inputs=5, dim=8, top_k=15)
    assert alone(torch.zeros(2, 5, 1)).shape == (2, 1)


def test_gdn_score_is_the_largest_normalised_deviation_smoothed() -> None:
    detector = Gdn()
    errors = np.zeros((1, 5, 2))
    errors[0, 2:, 1] = 6.0
    score = detector._joined(errors, np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert score.tolist() == [2.5]


def test_attention_of_mtad_gat_equals_its_equations() -> None:
    generator = seeded(2)
    layer = GraphAttention(4).double()
    v = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    w = torch.cat((layer.own.weight.detach()[0], layer.other.weight.detach()[0]))
    bias = float(layer.own.bias.detach())
    rows = []
    for i in range(3):
        logit = [leaky(float(w @ torch.cat((v[0, i], v[0, j]))) + bias) for j in range(3)]
        alpha = torch.softmax(torch.tensor(logit, dtype=torch.float64), dim=0)
        rows.append(torch.sigmoid(sum(alpha[j] * v[0, j] for j in range(3))))  # type: ignore[arg-type]
    torch.testing.assert_close(layer(v)[0].detach(), torch.stack(rows))


def test_mtad_gat_shapes_and_answers() -> None:
    seeded()
    network = JointNetwork(channels=5, window=8, hidden=6, latent=3)
    x = torch.randn(4, 8, 5)
    forecast, mean, logvar, rebuilt = network(x)
    assert (forecast.shape, mean.shape, logvar.shape, rebuilt.shape) == ((4, 5), (4, 3), (4, 3), (4, 8, 5))
    network.eval()
    torch.testing.assert_close(network(x), network(x))
    network.train()
    assert (network(x)[3] != network(x)[3]).any(), "the latent is sampled in training"


def test_mtad_gat_score_of_a_perfect_answer_is_zero_and_of_a_hopeless_one_the_mix() -> None:
    class Perfect(JointNetwork):
        def forward(self, x_nwK: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            return self.answer[:, -1], x_nwK, x_nwK, self.answer[:, 1:]

    seeded()
    detector, network = MtadGat(span=4, gamma=0.8), Perfect(channels=2, window=3, hidden=4, latent=2)
    pieces = torch.randn(5, 4, 2)
    network.answer = pieces / 6.0
    torch.testing.assert_close(detector._errors(network, pieces), torch.zeros(5, 2))
    network.answer = pieces / 6.0 + 10.0
    torch.testing.assert_close(detector._errors(network, pieces), torch.full((5, 2), (100.0 + 0.8) / 1.8))


@pytest.mark.parametrize("kind", ["gdn", "mtad_gat"])
def test_golden_step(kind: str) -> None:
    """Loss before and after one Adam step from a fixed start, double precision."""
    generator = seeded(3)
    pieces = torch.randn(8, 5, 4, generator=generator, dtype=torch.float64)
    if kind == "gdn":
        network: torch.nn.Module = DeviationNetwork(4, 4, 6, 2).double()
        detector = Gdn(span=5)
        want = GOLDEN_GDN
    else:
        network = JointNetwork(4, 4, 6, 2).double()
        detector = MtadGat(span=5)  # type: ignore[assignment]
        want = GOLDEN_MTAD
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.eval()  # the latent's mean: no draw in the golden number
    before = detector._loss(network, pieces)
    before.backward()
    optimizer.step()
    after = detector._loss(network, pieces)
    np.testing.assert_allclose([float(before.detach()), float(after.detach())], want, rtol=1e-6)
    assert after < before


def test_joint_loss_is_least_at_the_truth() -> None:
    """Exact forecast, exact reconstruction with unit noise and a latent at its prior: every term is zero."""

    class Truth(JointNetwork):
        def forward(self, x_nwK: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            zero = torch.zeros(len(x_nwK), 2)
            return self.target, zero, zero, x_nwK

    seeded()
    network, pieces = Truth(channels=3, window=4, hidden=4, latent=2), torch.randn(6, 5, 3)
    network.target = pieces[:, -1]
    with torch.no_grad():
        network.logvar.zero_()
        loss = float(joint_loss(network, pieces))
    assert loss == pytest.approx(0.0, abs=2e-6)
