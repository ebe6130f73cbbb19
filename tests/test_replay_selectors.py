"""Selectors follow their laws, and depend on nothing but the index and the generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.replay.selectors import (
    AgeLog,
    Fifo,
    Lifo,
    Prioritized,
    Rank,
    Selector,
    SlotIndex,
    Stratified,
    Uniform,
    as_where,
)


def filled(priorities: list[float], strata: list[str] | None = None) -> SlotIndex:
    n = len(priorities)
    index = SlotIndex(n + 3)
    slots = np.arange(n)[::-1].copy() + 2  # age order and slot order differ
    index.key[slots] = np.arange(1, n + 1, dtype=np.uint64) << np.uint64(24) | slots.astype(np.uint64)
    index.priority[slots] = priorities
    index.nbytes[slots] = 10
    index.stratum[slots] = [index.stratum_id(s) for s in strata or ["a"] * n]
    index.add(slots)
    return index


def frequencies(selector: Selector, index: SlotIndex, draws: int = 200_000) -> np.ndarray:
    picks = selector.pick(index, draws, np.random.default_rng(0))
    return np.bincount(picks.slots, minlength=index.capacity) / draws


def test_prioritized_law_and_importance_weights() -> None:
    priorities = np.array([0.1, 0.5, 1.0, 4.0])
    index = filled(priorities.tolist())
    selector = Prioritized(alpha=0.7, beta=0.5)
    law = np.zeros(index.capacity)
    law[index.held] = index.priority[index.held] ** 0.7
    law /= law.sum()
    np.testing.assert_allclose(frequencies(selector, index), law, atol=5e-3)
    picks = selector.pick(index, 500, np.random.default_rng(1))
    raw = (4 * law[picks.slots]) ** -0.5
    np.testing.assert_allclose(picks.weights, raw / raw.max())
    # unbiased at beta = 1: the weighted law is flat
    full = Prioritized(alpha=0.7, beta=1.0).pick(index, 200_000, np.random.default_rng(2))
    mass = np.bincount(full.slots, weights=full.weights, minlength=index.capacity)[index.held]
    np.testing.assert_allclose(mass / mass.sum(), 0.25, atol=5e-3)


def test_prioritized_follows_updates_and_removals() -> None:
    index = filled([1.0, 1.0, 1.0])
    selector = Prioritized(alpha=1.0)
    selector.pick(index, 1, np.random.default_rng(0))
    oldest, middle, newest = index.log.oldest(3).tolist()
    index.set_priorities(np.array([oldest, oldest]), np.array([9.0, 3.0]))
    index.remove(np.array([newest]))
    assert index.tree(1.0).total == pytest.approx(4.0)
    seen = frequencies(selector, index)
    assert seen[newest] == 0
    assert seen[oldest] == pytest.approx(0.75, abs=5e-3)
    assert seen[middle] > 0


def test_rank_law_is_plr() -> None:
    index = filled([0.2, 5.0, 0.1, 1.0])
    index.clock = 10
    index.last_drawn[index.held] = [10, 8, 4, 10]
    order = index.held[np.argsort(-index.priority[index.held])]
    rank = np.zeros(index.capacity)
    rank[order] = [1, 2, 3, 4]
    w = rank[index.held] ** -2.0
    stale = np.array([0, 2, 6, 0]) / 8
    expected = 0.9 * w / w.sum() + 0.1 * stale
    selector = Rank(temperature=0.5, staleness=0.1)
    np.testing.assert_allclose(selector.probabilities(index), expected)
    np.testing.assert_allclose(frequencies(selector, index)[index.held], expected, atol=5e-3)
    index.clock = 0
    index.last_drawn[:] = 0
    assert selector.probabilities(index).sum() == pytest.approx(1.0)  # no staleness yet: its share is spread evenly


def test_uniform_fifo_lifo() -> None:
    index = filled([1.0, 100.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(frequencies(Uniform(), index)[index.held], 0.2, atol=5e-3)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert Fifo().pick(index, 3, rng).slots.tolist() == [6, 5, 4]
    assert Lifo().pick(index, 9, rng).slots.tolist() == [2, 3, 4, 5, 6]
    assert rng.bit_generator.state == before


def test_stratified_gives_equal_shares_and_respects_the_prefix() -> None:
    index = filled([1.0] * 12, ["p/x"] * 9 + ["p/y"] + ["q/z"] * 2)
    picks = Stratified().pick(index, 31, np.random.default_rng(0))
    counts = np.bincount(index.stratum[picks.slots], minlength=3)
    assert counts.sum() == 31
    assert set(counts.tolist()) == {10, 11}
    only = Stratified(prefix="p/").pick(index, 10, np.random.default_rng(0))
    assert np.bincount(index.stratum[only.slots], minlength=3).tolist() == [5, 5, 0]
    assert Stratified(prefix="none").pick(index, 10, np.random.default_rng(0)).slots.size == 0


@pytest.mark.parametrize("selector", [Uniform(), Prioritized(), Fifo(), Lifo(), Rank(), Stratified()])
def test_same_generator_state_gives_the_same_picks(selector: Selector) -> None:
    index = filled(np.linspace(0.1, 2, 20).tolist(), ["a", "b"] * 10)
    first = selector.pick(index, 7, np.random.default_rng(5))
    again = selector.pick(index, 7, np.random.default_rng(5))
    np.testing.assert_array_equal(first.slots, again.slots)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.weights.max() <= 1.0
    assert np.isin(first.slots, index.held).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "oldest", "newest", "alive"]), st.integers(1, 90)), max_size=40
    )
)
def test_age_log_equals_a_list(moves: list[tuple[str, int]]) -> None:
    key = np.zeros(4096, dtype=np.uint64)
    log, model, sequence = AgeLog(key), [], 1
    rng = np.random.default_rng(0)
    for move, n in moves:
        if move == "add":
            slots = np.flatnonzero(key == 0)[:n]
            keys = np.arange(sequence, sequence + n, dtype=np.uint64)
            key[slots], sequence = keys, sequence + n
            log.append(keys, slots)
            model += slots.tolist()
        elif move == "remove" and model:
            gone = set(rng.choice(model, size=min(n, len(model)), replace=False).tolist())
            key[list(gone)] = 0
            model = [s for s in model if s not in gone]
        elif move == "oldest":
            assert log.oldest(n).tolist() == model[:n]
        elif move == "newest":
            assert log.newest(n).tolist() == model[::-1][:n]
        else:
            assert log.alive(len(model)).tolist() == model


def test_as_where_keeps_the_meaning() -> None:
    assert as_where(np.array([4, 5, 6])) == slice(4, 7)
    assert as_where(np.array([3])) == slice(3, 4)
    for slots in ([4, 6, 5, 7], [2, 2, 4], [5, 4, 3], []):
        assert not isinstance(as_where(np.array(slots, dtype=np.int64)), slice)


def test_too_many_exponents_are_refused() -> None:
    index = filled([1.0])
    for alpha in (0.1, 0.2, 0.3, 0.4):
        index.tree(alpha)
    with pytest.raises(ValueError, match="anneal beta"):
        index.tree(0.5)
