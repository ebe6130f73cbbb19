"""Sum-tree against naive sums, and its sampling law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.replay.sumtree import SumTree

WEIGHT = st.one_of(st.just(0.0), st.floats(1e-9, 1e9))


@st.composite
def writes(draw: st.DrawFn) -> tuple[int, list[tuple[bool, int, list[tuple[int, float]]]]]:
    capacity = draw(st.integers(1, 70))
    slot = st.integers(0, capacity - 1)
    pairs = st.lists(st.tuples(slot, WEIGHT), min_size=1, max_size=90)
    return capacity, draw(st.lists(st.tuples(st.booleans(), slot, pairs), max_size=8))


@settings(max_examples=150, deadline=None)
@given(writes())
def test_tree_equals_naive_sums_after_any_writes(
    case: tuple[int, list[tuple[bool, int, list[tuple[int, float]]]]],
) -> None:
    capacity, steps = case
    tree, naive = SumTree(capacity), np.zeros(capacity)
    for as_range, start, pairs in steps:
        values = np.array([w for _, w in pairs])
        if as_range:
            stop = min(start + len(values), capacity)
            tree.update(slice(start, stop), values[: stop - start])
            naive[start:stop] = values[: stop - start]
        else:
            slots = np.array([s for s, _ in pairs])
            tree.update(slots, values)
            for s, w in pairs:  # duplicates: the last one holds
                naive[s] = w
        np.testing.assert_array_equal(tree.weights(slice(0, capacity)), naive)
        assert tree.total == pytest.approx(naive.sum(), rel=1e-12, abs=0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(WEIGHT, min_size=1, max_size=50).filter(any), st.integers(0, 2**32))
def test_draws_follow_prefix_sums_and_never_hit_zero_weight(weights: list[float], seed: int) -> None:
    tree = SumTree(len(weights))
    tree.update(np.arange(len(weights)), np.array(weights))
    u = np.concatenate([np.random.default_rng(seed).random(200), [0.0, np.nextafter(1.0, 0.0)]])
    slots = tree.sample(u)
    assert (np.array(weights)[slots] > 0).all()
    high = np.cumsum(weights)
    slack = 1e-9 * high[-1]
    assert (u * high[-1] <= high[slots] + slack).all()
    assert (u * high[-1] >= high[slots] - np.array(weights)[slots] - slack).all()


def test_sampling_law_chi_squared_over_a_million_draws() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random(3000)
    weights[rng.random(3000) < 0.2] = 0.0
    tree = SumTree(3000)
    tree.update(rng.permutation(3000), 0.5)
    tree.update(np.arange(3000), weights)
    counts = np.bincount(tree.sample(rng.random(1_000_000)), minlength=3000)
    expected = 1e6 * weights / weights.sum()
    live = expected > 0
    assert counts[~live].sum() == 0
    keep = expected > 5
    chi = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    freedom = keep.sum() - 1
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))  # Wilson-Hilferty
    assert z < 3.09, f"chi-squared z = {z:.2f}, p < 1e-3"


def test_no_drift_after_many_writes() -> None:
    rng = np.random.default_rng(1)
    tree = SumTree(512)
    for _ in range(2000):
        tree.update(rng.integers(0, 512, 64), rng.random(64) * 10.0 ** rng.integers(-6, 6))
    tree.update(slice(0, 512), 0.0)
    assert tree.total == 0.0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_refuses_weights_that_are_not_finite_and_non_negative(bad: float) -> None:
    tree = SumTree(4)
    with pytest.raises(ValueError, match="finite"):
        tree.update(np.array([0, 1]), np.array([1.0, bad]))
    assert tree.total == 0.0


def test_refuses_slots_outside_and_empty_draws() -> None:
    tree = SumTree(5)
    for where in (np.array([5]), np.array([-1]), slice(3, 6)):
        with pytest.raises(ValueError, match="slots"):
            tree.update(where, 1.0)
    with pytest.raises(ValueError, match="nothing to draw"):
        tree.sample(np.array([0.5]))
