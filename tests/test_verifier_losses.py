"""Losses: injections against a dense Ybus, class balance, extremes, twins, and twenty golden steps.

Golden:    python tests/test_verifier_losses.py      # writes tests/golden/verifier_losses.json, one thread
Tolerance: 1e-4 relative, because kernels differ between processors by rounding only and twenty steps amplify it little
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gg_ray.config import ConfigError, LossConfig, VerifierConfig
from gg_ray.verifier.batch import F_EDGE, F_NODE, CaseStatic, GraphBatch, from_arrays
from gg_ray.verifier.losses import bus_injections, focal_bce, power_mismatch, verifier_loss
from gg_ray.verifier.model import Verifier, VerifierOutput

GOLDEN = Path(__file__).parent / "golden" / "verifier_losses.json"


def random_network(
    rng: np.random.Generator, buses: int = 9, branches: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.arange(branches) % buses
    edge_index = np.stack((start, (start + 1 + np.arange(branches) // buses) % buses))
    phys = np.stack(
        (
            rng.uniform(0, 0.05, branches),
            rng.uniform(0.02, 0.3, branches),
            rng.uniform(0, 0.2, branches),
            rng.uniform(0.9, 1.1, branches),
            rng.uniform(-0.3, 0.3, branches),
            (rng.random(branches) < 0.8).astype(float),
        ),
        axis=1,
    )
    return edge_index, phys, rng.normal(0, 0.1, (buses, 2))


def dense_injections(
    v: np.ndarray, angle: np.ndarray, edge_index: np.ndarray, phys: np.ndarray, shunt: np.ndarray
) -> np.ndarray:
    """S = V conj(Ybus V) from MATPOWER's branch equations, all complex and dense."""
    ybus = np.diag(shunt[:, 0] + 1j * shunt[:, 1])
    for (i, j), (r, x, b, tap, shift, status) in zip(edge_index.T, phys, strict=True):
        ys, ratio = status / (r + 1j * x), tap * np.exp(1j * shift)
        ybus[i, i] += (ys + 0.5j * status * b) / tap**2
        ybus[j, j] += ys + 0.5j * status * b
        ybus[i, j] -= ys / np.conj(ratio)
        ybus[j, i] -= ys / ratio
    voltage = v * np.exp(1j * angle)
    power = voltage * np.conj(ybus @ voltage)
    return np.stack((power.real, power.imag), axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_injections_equal_a_dense_ybus(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edge_index, phys, shunt = random_network(rng)
    v, angle = rng.uniform(0.9, 1.1, 9), rng.normal(0, 0.2, 9)
    want = dense_injections(v, angle, edge_index, phys, shunt)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        real = [torch.tensor(a, dtype=dtype) for a in (v, angle, phys, shunt)]
        got = bus_injections(real[0], real[1], torch.tensor(edge_index), real[2], real[3])
        # absolute at the scale of the flows: float32 holds seven digits of |y| up to 50 p.u.
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max())))


def readings(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normals with fresh masks between 0 and 1."""
    x = rng.standard_normal(shape)
    x[..., 4:20:5] = rng.random(x[..., 4:20:5].shape)
    return x


def labelled_batch(seed: int = 0, graphs: int = 4, scans: int = 16) -> GraphBatch:
    rng = np.random.default_rng(seed)
    edge_index, phys, shunt = random_network(rng)
    n, e = 9, 15
    static = CaseStatic(
        node_static=rng.standard_normal((n, 8)),
        edge_static=rng.standard_normal((e, 8)),
        edge_index=edge_index,
        substation=np.arange(n) // 2,
        region=np.array([0, 0, 0, 1, 1]),
        n_regions=2,
        edge_phys_base=phys,
        node_shunt=shunt,
    )
    state = np.stack((rng.uniform(-0.05, 0.05, (graphs, n)), rng.normal(0, 0.1, (graphs, n))), axis=2)
    power = np.stack([dense_injections(1 + s[:, 0], s[:, 1], edge_index, phys, shunt) for s in state])
    sigma = np.where(rng.random((graphs, n, 2)) < 0.7, 0.02, np.inf)
    declared = np.stack((phys[:, 5], phys[:, 3], np.ones(e)), axis=1)
    batch = from_arrays(
        static,
        node_BTNF=readings(rng, (graphs, scans, n, F_NODE)),
        edge_BTEF=readings(rng, (graphs, scans, e, F_EDGE)),
        xhat_BN2=state + rng.normal(0, 0.003, state.shape),
        meas_BN2=np.where(np.isinf(sigma), 0.0, power),
        sigma_BN2=sigma,
        param_BE3=np.tile(declared, (graphs, 1, 1)),
    )
    implausible = np.arange(graphs) % 2 == 0
    return dataclasses.replace(
        batch,
        y_impl=torch.tensor(implausible, dtype=torch.float32),
        y_dist=torch.tensor(~implausible, dtype=torch.float32),
        severity=torch.tensor(0.5 * implausible, dtype=torch.float32),
        y_type=torch.tensor(np.where(implausible, 1 + np.arange(graphs) % 12, 0)),
        y_node=torch.tensor((rng.random(graphs * n) < 0.2) & np.repeat(implausible, n), dtype=torch.float32),
        y_edge=torch.tensor((rng.random(graphs * e) < 0.2) & np.repeat(implausible, e), dtype=torch.float32),
        state=torch.tensor(state.reshape(-1, 2), dtype=torch.float32),
        pairs=torch.tensor([[0, 2], [1, 3]]),
        pair_d=torch.tensor([3.0, 8.0]),
        weight=torch.ones(graphs),
    )


def output_for(batch: GraphBatch, logit: float) -> VerifierOutput:
    """Perfect answers with the confidence of `logit` (negative: perfectly wrong ones)."""
    assert batch.y_impl is not None
    assert batch.y_dist is not None
    assert batch.y_node is not None
    assert batch.y_edge is not None
    assert batch.y_type is not None
    assert batch.state is not None
    assert batch.severity is not None
    return VerifierOutput(
        implausible=logit * (2 * batch.y_impl - 1),
        disturbance=logit * (2 * batch.y_dist - 1),
        severity=batch.severity,
        type=logit * torch.nn.functional.one_hot(batch.y_type, 13).float(),
        node=logit * (2 * batch.y_node - 1),
        edge=logit * (2 * batch.y_edge - 1),
        state_mu=batch.state,
        state_logvar=torch.full_like(batch.state, -logit),
    )


def test_true_state_balances_and_a_wrong_one_does_not() -> None:
    batch = labelled_batch()
    assert batch.state is not None
    assert float(power_mismatch(batch.state, batch)) < 1e-4
    assert float(power_mismatch(batch.state + 0.05 * torch.randn_like(batch.state), batch)) > 0.1


def test_unknown_impedance_and_missing_readings_are_left_out() -> None:
    batch = labelled_batch()
    assert batch.state is not None
    wrong = batch.state + 0.1
    nothing = dataclasses.replace(batch, sigma=torch.full_like(batch.sigma, torch.inf))
    assert float(power_mismatch(wrong, nothing)) == 0.0
    phys = batch.edge_phys.clone()
    phys[:, :2], phys[:, 5] = 0.0, 1.0
    state = wrong.clone().requires_grad_()
    loss = power_mismatch(state, dataclasses.replace(batch, edge_phys=phys))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert state.grad is not None
    assert bool(state.grad.isfinite().all())


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_certainty_keeps_losses_and_gradients_finite(logit: float) -> None:
    batch = labelled_batch()
    values = {
        f.name: getattr(output_for(batch, logit), f.name).clone().requires_grad_()
        for f in dataclasses.fields(VerifierOutput)
    }
    loss, terms = verifier_loss(VerifierOutput(**values), batch, LossConfig(), step=1000)
    loss.backward()
    assert all(bool(t.isfinite()) for t in terms.values())
    assert all(v.grad is not None and bool(v.grad.isfinite().all()) for v in values.values())
    certain = {name: float(terms[name]) for name in ("implausible", "disturbance", "type", "node", "edge", "twin")}
    assert all((value < 1e-6) == (logit > 0) for value in certain.values()), certain


def test_classes_weigh_one_half_each_whatever_their_numbers() -> None:
    batch = labelled_batch(graphs=8)
    logit = torch.zeros(8)
    for positives in (1, 4, 7):
        target = (torch.arange(8) < positives).float()
        case = dataclasses.replace(batch, y_impl=target)
        value = logit.clone().requires_grad_()
        verifier_loss(dataclasses.replace(output_for(batch, 1.0), implausible=value), case, LossConfig(twin=0.0), 0)[
            0
        ].backward()
        assert value.grad is not None
        assert float(value.grad[target > 0].sum()) == pytest.approx(-0.25, abs=1e-6)
        assert float(value.grad[target == 0].sum()) == pytest.approx(0.25, abs=1e-6)


def test_importance_weights_scale_their_window() -> None:
    batch = labelled_batch()
    value = torch.zeros(4, requires_grad=True)
    weighted = dataclasses.replace(batch, weight=torch.tensor([1.0, 0.0, 2.0, 1.0]))
    output = dataclasses.replace(output_for(batch, 1.0), implausible=value)
    verifier_loss(output, weighted, LossConfig(twin=0.0), 0)[0].backward()
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([-0.125, 0.0, -0.25, 0.125])


def test_one_class_and_no_pairs_are_accepted() -> None:
    batch = labelled_batch()
    none = torch.zeros(2, 0, dtype=torch.int64)
    benign = dataclasses.replace(batch, y_impl=torch.zeros(4), pairs=none, pair_d=torch.zeros(0))
    loss, terms = verifier_loss(output_for(batch, 1.0), benign, LossConfig(), 0)
    assert bool(loss.isfinite())
    assert float(terms["twin"]) == 0.0


def test_type_ignores_plausible_windows_of_another_type() -> None:
    batch = labelled_batch()
    assert batch.y_type is not None
    odd = dataclasses.replace(batch, y_type=torch.where(torch.arange(4) == 1, 5, batch.y_type))
    logits = torch.zeros(4, 13, requires_grad=True)
    verifier_loss(dataclasses.replace(output_for(batch, 1.0), type=logits), odd, LossConfig(), 0)[0].backward()
    assert logits.grad is not None
    assert [bool(row.any()) for row in logits.grad] == [True, False, True, True]


def test_focal_without_focus_is_cross_entropy_per_positive() -> None:
    logit, target = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="sum")
    torch.testing.assert_close(focal_bce(logit, target, torch.ones(3), 0.0, 1), plain / 2)
    assert float(focal_bce(logit, target, torch.ones(3), 2.0, 1)) < float(plain / 2)


def test_twin_hinge_counts_the_missing_margin() -> None:
    batch = labelled_batch()
    output = dataclasses.replace(output_for(batch, 1.0), implausible=torch.tensor([0.25, 0.0, 3.0, 1.0]))
    _, terms = verifier_loss(output, batch, LossConfig(), 0)
    assert float(terms["twin"]) == pytest.approx(0.75 / 2)


@pytest.mark.parametrize(
    ("d_eff", "missing"),
    [((3.0, 3.0), (1.5 - 0.25, 0.0)), ((10.0, 400.0), (5.0 - 0.25, 8.0 - 2.0)), ((0.0, 1.0), (1.0 - 0.25, 0.0))],
)
def test_the_margin_of_a_pair_rises_with_its_detectability(
    d_eff: tuple[float, float], missing: tuple[float, float]
) -> None:
    batch = dataclasses.replace(labelled_batch(), pair_d=torch.tensor(d_eff))
    output = dataclasses.replace(output_for(batch, 1.0), implausible=torch.tensor([0.25, 0.0, 3.0, 1.0]))
    _, terms = verifier_loss(output, batch, LossConfig(twin_slope=0.5, twin_limit=8.0), 0)
    assert float(terms["twin"]) == pytest.approx(sum(missing) / 2)


def test_margins_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="twin_limit"):
        LossConfig(twin_margin=2.0, twin_limit=1.0)
    with pytest.raises(ConfigError, match="twin_slope"):
        LossConfig(twin_slope=-0.1)


def test_physics_weight_warms_up() -> None:
    batch = labelled_batch()
    output = dataclasses.replace(output_for(batch, 1.0), state_mu=torch.zeros(36, 2))
    config = LossConfig(physics_warmup_steps=100)
    totals = [verifier_loss(output, batch, config, step)[0] for step in (0, 50, 100, 500)]
    physics = verifier_loss(output, batch, config, 0)[1]["physics"]
    for total, share in zip(totals[1:], (0.5, 1.0, 1.0), strict=True):
        torch.testing.assert_close(total - totals[0], config.physics * share * physics, rtol=1e-3, atol=1e-5)


def test_unlabelled_batch_is_refused() -> None:
    batch = labelled_batch()
    with pytest.raises(ValueError, match="labelled=True"):
        verifier_loss(output_for(batch, 1.0), dataclasses.replace(batch, y_impl=None), LossConfig(), 0)


def twenty_steps() -> list[float]:
    """Total loss before each of 20 AdamW steps on one fixed batch, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Verifier(VerifierConfig(hidden=32))
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
            batch, losses = labelled_batch(), []
            for step in range(20):
                loss, _ = verifier_loss(model(batch), batch, LossConfig(physics_warmup_steps=10), step)
                losses.append(float(loss.detach()))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            return losses
    finally:
        torch.set_num_threads(threads)


def test_twenty_training_steps_match_the_golden_file() -> None:
    losses = twenty_steps()
    assert losses[-1] < 0.8 * losses[0], "the batch is learnable"
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-4)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"torch": torch.__version__, "losses": twenty_steps()}, indent=1) + "\n")
