"""gg_ray.evaluate.ranking: the numbers of scikit-learn, with ties and weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gg_ray.evaluate import metrics
from gg_ray.evaluate.ranking import average_precisions

TIED = st.lists(st.integers(-4, 8).map(lambda v: v / 4.0), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(TIED, TIED)
def test_one_sample_is_that_of_scikit_learn(positive: list[float], negative: list[float]) -> None:
    label, score = np.r_[np.ones(len(positive)), np.zeros(len(negative))], np.r_[positive, negative]
    assert metrics.auroc(negative, positive) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert metrics.auprc(negative, positive) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    weight = np.where(label == 1, 0.01 / len(positive), 0.99 / len(negative))
    known = average_precision_score(label, score, sample_weight=weight)
    assert metrics.auprc(negative, positive, 0.01) == pytest.approx(known, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_are_repeats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(0, 9, 12) / 4.0, rng.integers(-4, 6, 30) / 4.0
    own, other = rng.integers(0, 3, (3, 12)), rng.integers(0, 3, (3, 30))
    own[:, 0] = other[:, 0] = 1
    found = average_precisions(positive, own.astype(float), negative, other.astype(float), 0.5)
    for row in range(3):
        expected = metrics.auprc(np.repeat(negative, other[row]), np.repeat(positive, own[row]), 0.5)
        assert found[row] == pytest.approx(expected, abs=1e-9)
