"""Extremes: the loudest meter of a bus, its standing among neighbours, and a surprise that no grid size changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from gg_ray.verifier.evidence import EVIDENCE, SPANS, level, unlevel
from gg_ray.verifier.extremes import BEST, STATISTICS, SURPRISE, _log_chance, bus_extremes, standing, surprise
from gg_ray.verifier.gat import max_by


def proofs(z_MS: np.ndarray) -> Tensor:
    """[M, EVIDENCE] statistics whose span sums are z in the first channel and nothing elsewhere."""
    out = torch.zeros(z_MS.shape[0], STATISTICS, 4)
    out[:, : len(SPANS), 0] = level(torch.from_numpy(z_MS).float())
    return out.reshape(-1, EVIDENCE)


def surprise_of(z_MS: np.ndarray, scans: int = 16) -> Tensor:
    node = proofs(z_MS)
    edge = torch.zeros(1, EVIDENCE)
    graph, edge_graph = torch.zeros(len(node), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    tops = max_by(node, graph, 1), max_by(edge, edge_graph, 1)
    return surprise(node, edge, *tops, graph, edge_graph, torch.tensor(float(scans)))[0]


@given(st.floats(0, 29))
def test_the_chance_of_a_tail_is_the_normal_one(z: float) -> None:
    exact = -(np.log(2) + norm.logsf(z))
    assert float(_log_chance(torch.tensor(z, dtype=torch.float64))) == pytest.approx(exact, abs=4e-3)


@given(st.floats(0, 500))
def test_unlevel_is_the_inverse_of_level(z: float) -> None:
    back = float(unlevel(level(torch.tensor(z, dtype=torch.float64))))
    assert back == pytest.approx(z, rel=1e-9, abs=1e-9)


def test_extremes_hear_the_meters_of_a_bus_and_of_its_branch_ends_only() -> None:
    node, edge = torch.zeros(4, STATISTICS, 4), torch.zeros(3, STATISTICS, 4)
    index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    node[0, 3, 2] = -2.0  # a size: signs are dropped
    edge[1, 5, 1] = 1.5  # q at the from end of branch 1-2
    edge[1, 5, 2] = 2.5  # p at its to end
    found = bus_extremes(node.reshape(-1, EVIDENCE), edge.reshape(-1, EVIDENCE), index)
    assert found.shape == (4, STATISTICS)
    assert (float(found[0, 3]), float(found[1, 5]), float(found[2, 5])) == (2.0, 1.5, 2.5)
    assert float(found.sum()) == 6.0


def test_standing_compares_with_live_neighbours() -> None:
    extremes = torch.tensor([[3.0], [1.0], [2.0], [5.0]])
    index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    found = standing(extremes, index, torch.tensor([1.0, 1.0, 0.0]))
    assert found[:, 0].tolist() == [3.0, 1.0, 2.0, 5.0]
    assert found[:, 1].tolist() == [0.0, -2.0, 0.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9), e=st.integers(0, 12), seed=st.integers(0, 99))
def test_compiled_passes_equal_the_tensor_code(n: int, e: int, seed: int) -> None:
    """Isolated buses, parallel branches and branches out of service included."""
    rng = torch.Generator().manual_seed(seed)
    node, edge = (torch.randn(rows, EVIDENCE, generator=rng) for rows in (n, e))
    index = torch.randint(n, (2, e), generator=rng)
    status = torch.randint(2, (e,), generator=rng).float()
    wanted = bus_extremes(node, edge, index)
    place = standing(wanted, index, status)
    with torch.inference_mode():
        assert torch.equal(bus_extremes(node, edge, index), wanted)
        assert torch.equal(standing(wanted, index, status), place)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1_000))
def test_the_surprise_of_noise_does_not_grow_with_the_grid(seed: int) -> None:
    """Median of many grids: the largest of 20 meters and of 2,000 surprise alike, though their sizes differ by 1.5."""
    rng = np.random.default_rng(seed)
    medians, sizes = [], []
    for meters in (20, 2_000):
        draws = np.abs(rng.standard_normal((60, meters, len(SPANS))))
        medians.append(np.median([float(surprise_of(z, scans=1)[0]) for z in draws]))
        sizes.append(np.median(draws[:, :, 0].max(axis=1)))
    assert abs(medians[0] - medians[1]) < 0.35
    assert sizes[1] - sizes[0] > 1.0


def test_a_gross_error_surprises_and_the_best_column_holds_the_largest() -> None:
    rng = np.random.default_rng(0)
    calm = np.abs(rng.standard_normal((50, len(SPANS))))
    loud = calm.copy()
    loud[7, 2] = 9.0
    before, after = surprise_of(calm), surprise_of(loud)
    assert before.shape == (SURPRISE,)
    assert float(after[2] - before[2]) > 3
    assert float(after[BEST]) == float(after[:BEST].max())
    assert float(after[BEST + 1] - before[BEST + 1]) == 0  # the chi-square of the longest span is not concerned


def test_the_chi_square_of_noise_is_near_zero_and_of_a_common_shift_large() -> None:
    z = np.abs(np.random.default_rng(1).standard_normal((2_000, len(SPANS))))
    assert abs(float(surprise_of(z)[BEST + 1])) < 2.0
    assert float(surprise_of(z + 1.0)[BEST + 1]) > 3.0


def test_no_meters_and_no_branches_surprise_nobody() -> None:
    found = surprise(
        torch.zeros(3, EVIDENCE), torch.zeros(0, EVIDENCE), torch.zeros(2, EVIDENCE), torch.zeros(2, EVIDENCE),
        torch.tensor([0, 0, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor(16.0),
    )  # fmt: skip
    assert bool(torch.isfinite(found).all())
    assert float(found.max()) <= 0.01
