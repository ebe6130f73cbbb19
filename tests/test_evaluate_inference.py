"""gg_ray.evaluate.inference: paired bootstrap over seeds and episodes, Holm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.evaluate.inference import Paired, Unpaired, difference, holm, mean_of
from gg_ray.evaluate.metrics import MetricError


def paired(ours: np.ndarray, theirs: np.ndarray) -> Paired:
    return Paired(np.atleast_2d(ours), np.atleast_2d(theirs), mean_of)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
    assert all(a <= min(1.0, len(p) * b) + 1e-12 for a, b in zip(adjusted, p, strict=True))


def test_what_two_methods_share_cancels() -> None:
    """Hard and easy episodes of both: the paired interval is far narrower than either mean's."""
    rng = np.random.default_rng(0)
    hard = (rng.random(400) < 0.5).astype(float)
    found = difference([paired(hard, hard)], rng, 200)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    better = hard.copy()
    better[:40] = 1.0
    gain = difference([paired(better, hard)], rng, 500)
    assert gain.low > 0
    assert gain.high - gain.low < 0.06
    assert gain.p <= 0.01


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_the_interval_is_that_of_the_normal_theory(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.normal(0.1, 1.0, 300)
    found = difference([paired(d, np.zeros(300))], rng, 1_000)
    width = 2 * 1.96 * d.std() / np.sqrt(300)
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert found.mean == pytest.approx(d.mean())


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random(2_000) < 0.5).astype(float)
    same = Paired(np.stack([base] * 4), np.stack([0 * base] * 4), mean_of)
    spread = Paired(np.stack([base * w for w in (0.2, 0.6, 1.4, 1.8)]), np.stack([0 * base] * 4), mean_of)
    narrow, wide = (difference([s], np.random.default_rng(2), 400) for s in (same, spread))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_strata_count_alike_whatever_their_size() -> None:
    small, large = paired(np.ones(10), np.zeros(10)), paired(np.zeros(1000), np.zeros(1000))
    assert difference([small, large], np.random.default_rng(0), 50).mean == 0.5


def test_episodes_of_ones_own_are_drawn_apart() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = (rng.random(300) < 0.5).astype(float), (rng.random(200) < 0.5).astype(float)
    found = difference([Unpaired(ours, theirs)], rng, 800)
    width = 2 * 1.96 * np.sqrt(0.25 / 300 + 0.25 / 200)
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_unequal_episodes_and_nothing_are_refused() -> None:
    with pytest.raises(MetricError, match="one row per seed and the same episodes"):
        paired(np.ones(3), np.ones(4))
    with pytest.raises(MetricError, match="no stratum"):
        difference([], np.random.default_rng(0))


def test_strata_that_share_episodes_or_networks_are_not_independent_evidence() -> None:
    """Four folds of one pool are no more certain than one fold; four grids of their own are."""
    rng = np.random.default_rng(2)
    ours = (rng.random((3, 200)) < np.array([[0.4], [0.6], [0.8]])).astype(float)

    def width(**names: object) -> float:
        strata = [
            Paired(ours, 0 * ours, mean_of, **{k: v(i) if callable(v) else v for k, v in names.items()})
            for i in range(4)
        ]
        found = difference(strata, np.random.default_rng(0), 400)
        return found.high - found.low

    alone = difference([Paired(ours, 0 * ours, mean_of)], np.random.default_rng(0), 400)
    shared = width(networks="fold 0", blocks=(("pool", 200),))
    assert shared == pytest.approx(alone.high - alone.low, rel=0.2)
    assert width() < 0.65 * shared
    networks = width(networks="fold 0", blocks=lambda i: ((f"pool {i}", 200),))
    assert width() < networks < shared + 1e-9


def test_blocks_must_make_up_the_episodes() -> None:
    with pytest.raises(MetricError, match="sizes must add up"):
        Paired(np.ones((1, 5)), np.ones((1, 5)), mean_of, "", (("a", 2), ("b", 2)))
