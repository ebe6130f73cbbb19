"""gg_ray.evaluate.core_pack: what a cell keeps comes back as it was, in a fraction of the text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.evaluate.core_pack import LOGIT_STEP, pack, rounded, rounded_logits, unpack

NUMBERS = st.floats(-1e30, 1e30).filter(lambda v: v == 0 or abs(v) > 1e-30)
COLUMNS = st.one_of(
    st.lists(NUMBERS, max_size=30).map(lambda v: rounded(np.array(v)).tolist()),
    st.lists(st.floats(-40, 40), max_size=30).map(lambda v: rounded_logits(np.array(v)).tolist()),
    st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), max_size=30),
    st.lists(st.one_of(st.none(), NUMBERS), max_size=30),
    st.lists(st.sampled_from(["S1", "A2", ""]), max_size=30),
    st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=12),
    st.lists(st.lists(st.lists(st.sampled_from([1, 2, "T1"]), max_size=3), max_size=2), max_size=12),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["score", "prob", "type"]), COLUMNS))
def test_records_come_back(record: dict) -> None:
    through = json.loads(json.dumps(pack(record), allow_nan=False))
    assert unpack(through) == record


@settings(deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"score": st.lists(st.floats(-9, 9), max_size=5), "hit": st.none()}), max_size=12)
)
def test_lists_of_records_come_back(rows: list) -> None:
    rows = [row | {"score": rounded_logits(np.array(row["score"])).tolist()} for row in rows]
    assert unpack(json.loads(json.dumps(pack(rows)))) == rows


def test_a_logit_takes_less_than_two_bytes_of_text() -> None:
    score = rounded_logits(np.random.default_rng(0).normal(-2.0, 2.0, 50_000))
    assert len(json.dumps(pack(score.tolist()))) < 1.6 * score.size


def test_digits_that_are_kept() -> None:
    values = np.array([0.0, 1 / 3, -1234.5678, 2e-20])
    np.testing.assert_allclose(rounded(values), values, rtol=2.0**-11)
    assert np.abs(rounded_logits(values) - values).max() <= LOGIT_STEP / 2


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        pack({"score": [1.0] * 9 + [float("nan")]})
