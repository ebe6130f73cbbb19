"""benchmarks/ablations: masks hide what they say and nothing else, variants share their start, intervals are honest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from benchmarks.ablation_bed import Bed, Scores, Sizes
from benchmarks.ablation_report import FIGURES, average_precision, differences, draws_of, replicates, report
from benchmarks.ablation_variants import RESIDUAL, VARIANTS, Ablated, network_of, newest, residual_only, without
from benchmarks.ablations import lines_of
from gg_ray.config import VerifierConfig
from gg_ray.evaluate import metrics
from gg_ray.grid.jacobian import F_JAC
from gg_ray.verifier.batch import F_EDGE, F_NODE, GraphBatch, from_arrays
from gg_ray.verifier.features import case_static


def batch_of(windows: int, seed: int = 0) -> GraphBatch:
    """Random windows of case14, all readings fresh."""
    static, rng = case_static("case14"), np.random.default_rng(seed)
    n, e = static.n_buses, static.n_branches
    node, edge = rng.normal(size=(windows, 16, n, F_NODE)), rng.normal(size=(windows, 16, e, F_EDGE))
    node[..., 4::5] = edge[..., 4:20:5] = edge[..., 20] = 1.0
    param = np.ones((windows, e, 3))
    param[:, 3, 0] = 0.0
    return from_arrays(
        static, node_BTNF=node, edge_BTEF=edge, xhat_BN2=0.1 * rng.normal(size=(windows, n, 2)),
        meas_BN2=np.zeros((windows, n, 2)), sigma_BN2=np.ones((windows, n, 2)), param_BE3=param,
        jac_BNJ=rng.normal(size=(windows, n, F_JAC)),
    )  # fmt: skip


def test_a_mask_zeroes_its_columns_and_leaves_the_batch() -> None:
    batch = batch_of(1)
    x, e = batch.x.clone(), batch.e.clone()
    masked = without([RESIDUAL])(batch)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.e, e)
    assert not masked.x[..., RESIDUAL::5].any()
    assert not masked.e[..., RESIDUAL:20:5].any()
    changed = (masked.x != x).any(dim=0).any(dim=0), (masked.e != e).any(dim=0).any(dim=0)
    assert [flags.nonzero()[:, 0].tolist() for flags in changed] == [[2, 7, 12, 17]] * 2
    assert newest(batch).x.shape[1] == 12
    assert torch.equal(newest(batch).e[:, -1], e[:, -1])


def test_residual_only_hides_the_readings_the_estimate_and_the_grid() -> None:
    """Outputs then depend on residuals, masks, declared status and which buses are joined; status stays."""
    network = network_of(VARIANTS["residual-only"], 0).eval()
    batch, other = batch_of(1), batch_of(1, seed=1)
    alike = replace(other, x=other.x.clone(), e=other.e.clone())
    alike.x[..., RESIDUAL::5], alike.e[..., RESIDUAL:20:5] = batch.x[..., RESIDUAL::5], batch.e[..., RESIDUAL:20:5]
    alike.edge_phys = torch.cat((other.edge_phys[:, :5] + 0.3, other.edge_phys[:, 5:]), dim=1)
    assert residual_only(batch).edge_phys[3].tolist() == [0, 0, 0, 1, 0, 0]
    with torch.inference_mode():
        one, two, three = network(batch), network(alike), network(other)
    assert torch.equal(one.node, two.node)
    assert not torch.allclose(one.node, three.node)
    assert torch.equal(two.state_mu, alike.xhat), "an untrained network still believes the estimate"


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.scans == 16])
def test_every_variant_runs_and_starts_from_the_full_model(name: str) -> None:
    network, full = network_of(VARIANTS[name], 3), network_of(VARIANTS["full"], 3)
    inner = network.inner if isinstance(network, Ablated) else network
    if inner.config == VerifierConfig():
        start, own = full.state_dict(), inner.state_dict()
        shared = [key for key in own if key in start]
        assert sum(torch.equal(own[key], start[key]) for key in shared) > 40
        # what a variant silences is zero; the rest starts where the full model starts
        assert all(torch.equal(own[key], torch.where(own[key] == 0, own[key], start[key])) for key in shared)
    with torch.inference_mode():
        both, alone = network.eval()(batch_of(2)), network(batch_of(1))
    assert torch.isfinite(both.implausible).all()
    assert alone.implausible.shape == (1,)


@pytest.mark.parametrize("name", ["full", "TopK U-Net"])
def test_windows_of_a_batch_do_not_hear_each_other(name: str) -> None:
    network, batch = network_of(VARIANTS[name], 0).eval(), batch_of(2)
    n = case_static("case14").n_buses
    louder = replace(batch, x=batch.x.clone())
    louder.x[n:] *= 3.0
    with torch.inference_mode():
        one, two = network(batch), network(louder)
    assert torch.allclose(one.node[:n], two.node[:n], atol=1e-5)
    assert not torch.allclose(one.node[n:], two.node[n:], atol=1e-2)


FAMILY = np.array([""] * 20 + ["S1"] * 8 + ["A1"] * 8)


def scored(seed: int, shift: float, node_shift: float = 1.0) -> Scores:
    rng = np.random.default_rng(seed)
    logit = np.round(rng.normal(size=FAMILY.size) + shift * (FAMILY != ""), 1)
    true = np.zeros((FAMILY.size, 5), dtype=bool)
    true[FAMILY != "", 1] = True
    return Scores(logit, np.round(rng.normal(size=true.shape) + node_shift * true, 1), 1.0, 2.0)


TRUE = np.zeros((FAMILY.size, 5), dtype=bool)
TRUE[FAMILY != "", 1] = True


def test_weights_of_one_give_the_plain_figures() -> None:
    scores = scored(0, 1.0)
    found = {name: float(rows[0]) for name, rows in replicates(scores, FAMILY, TRUE, np.ones((1, 36))).items()}
    benign = scores.logit_B[FAMILY == ""]
    own = [scores.logit_B[name == FAMILY] for name in ("A1", "S1")]
    assert found["auroc"] == pytest.approx(np.mean([metrics.auroc(benign, rows) for rows in own]))
    assert found["auprc"] == pytest.approx(np.mean([metrics.auprc(benign, rows) for rows in own]))
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([metrics.balanced_accuracy(benign, rows, 1.0) for rows in own])
    )
    node, true = scores.node_BN[FAMILY != ""], TRUE[FAMILY != ""]
    assert found["node_average_precision"] == pytest.approx(metrics.auprc(node[~true], node[true]))


def test_weighted_average_precision_is_that_of_repeated_windows() -> None:
    rng = np.random.default_rng(2)
    score, true, weight = np.round(rng.normal(size=60), 1), rng.random(60) < 0.3, rng.integers(0, 3, 60)
    repeated = average_precision_score(np.repeat(true, weight), np.repeat(score, weight))
    assert average_precision(score, true, weight[None].astype(float))[0] == pytest.approx(repeated)


def test_draws_keep_the_number_of_windows_of_each_family() -> None:
    weight = draws_of(FAMILY, np.random.default_rng(0), 50)
    assert (weight[0] == 1).all()
    for name in set(FAMILY):
        assert (weight[:, name == FAMILY].sum(axis=1) == (name == FAMILY).sum()).all()
    assert (weight[1:] == 0).any()


def a_bed() -> Bed:
    class Windows:
        family_B, affected_BN = FAMILY, TRUE

    return Bed([], [], [Windows()], "digest")  # type: ignore[list-item]


def test_differences_are_paired_and_tell_a_loss_from_noise() -> None:
    scores = {("full", s): scored(s, 2.5, 2.0) for s in (0, 1)}
    scores |= {("no residuals", s): scored(s, 0.0, 0.0) for s in (0, 1)}
    scores |= {("no U-Net", s): scored(s, 2.5, 2.0) for s in (0, 1)}
    found = differences(scores, {16: a_bed()})
    assert set(found) == {"no residuals", "no U-Net"}
    assert all(gap == 0.0 for gap in (found["no U-Net"]["auroc"].low, found["no U-Net"]["auroc"].high))
    assert not found["no U-Net"]["auroc"].clear
    lost = found["no residuals"]["auroc"]
    assert lost.clear
    assert lost.low < lost.mean < lost.high < 0
    assert len(lost.by_seed) == 2
    assert not replace(lost, by_seed=(0.1, -0.3)).clear, "seeds of different sign are no finding"
    assert not replace(lost, by_seed=(-0.3,)).clear, "nor is one seed"


def test_lines_of_other_sizes_are_not_taken_for_finished_and_the_report_shows_the_spread(tmp_path: Path) -> None:
    sizes, path = Sizes(), tmp_path / "results.jsonl"
    assert lines_of(path, sizes) == []
    made = []
    for seed, value in ((0, 0.8), (1, 0.9)):
        line = {"variant": "full", "seed": seed, "steps": 300, "rounds": 3, "windows": 30, "training_windows": 9}
        made.append(line | dict.fromkeys(FIGURES, value) | {"cpu_s": 30, "data_cpu_s": 0, "commit": "abc"})
    other = made[0] | {"steps": 3}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*made, other]))
    assert lines_of(path, sizes) == made
    assert "| full | the defaults | 2 | 0.850 (0.800 to 0.900) |" in report(made, {})
