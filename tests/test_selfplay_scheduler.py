"""Scheduler: quotas hold in every call, learning progress moves them, state survives a round trip."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.config import SelfplayConfig
from gg_ray.records import FAMILIES
from gg_ray.scenario.grammar import Stratum, training_families
from gg_ray.selfplay.scheduler import Assignment, Scheduler

FOLD_0 = training_families(0)
CASES = ("case14", "case30", "gb29")


def make(config: SelfplayConfig | None = None) -> Scheduler:
    return Scheduler(config or SelfplayConfig(), FOLD_0, CASES)


def sides(assignment: Assignment) -> Counter[str]:
    return Counter(stratum.side for stratum in assignment.strata)


@given(st.integers(1, 97), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_each_call_meets_its_quotas_within_one_program(count: int, anomalous: float, hard: float, seed: int) -> None:
    config = SelfplayConfig(anomalous_share=anomalous, hard_share=hard)
    assignment = make(config).draw(np.random.default_rng(seed), count)
    have = sides(assignment)
    want = {"anomalous": anomalous, "hard": (1 - anomalous) * hard, "ordinary": (1 - anomalous) * (1 - hard)}
    assert len(assignment.strata) == len(assignment.sources) == count
    for side, share in want.items():
        assert abs(have[side] - share * count) <= 1 + 1e-9
    sources = Counter(assignment.sources)
    assert sources["uniform"] == math.ceil(config.uniform_floor * count - 1e-9)
    assert abs(sources["mutation"] - config.mutation_share * count) <= 1 + 1e-9
    families = {stratum.family for stratum in assignment.strata}
    assert families <= {"", *FOLD_0}
    assert all(bool(s.family) == (s.side == "anomalous") for s in assignment.strata)


def test_grids_take_turns_and_every_stratum_names_the_grid_of_the_call() -> None:
    scheduler, rng = make(), np.random.default_rng(0)
    calls = [scheduler.draw(rng) for _ in range(7)]
    assert [call.case for call in calls] == [CASES[i % 3] for i in range(7)]
    assert all(s.case == call.case for call in calls for s in call.strata)


def test_sources_do_not_depend_on_strata() -> None:
    scheduler, rng = make(), np.random.default_rng(1)
    calls = [scheduler.draw(rng) for _ in range(300)]
    own = [
        s.side == "anomalous" for c in calls for s, name in zip(c.strata, c.sources, strict=True) if name == "proposer"
    ]
    assert np.mean(own) == pytest.approx(0.5, abs=0.03)


def test_families_are_even_without_progress_and_tilt_towards_it() -> None:
    scheduler = make()
    np.testing.assert_allclose(scheduler.family_shares("case30"), 1 / 9)
    learning = Stratum("anomalous", FOLD_0[2], "case30")
    for step in range(60):
        scheduler.observe(learning, step / 60, step)
        scheduler.observe(Stratum("anomalous", FOLD_0[3], "case30"), 0.5, step)
    assert scheduler.progress(learning) == 0.5
    shares = scheduler.family_shares("case30")
    assert shares.argmax() == 2
    assert shares.sum() == pytest.approx(1.0)
    # the even half never goes: 0.5 / 9 is the least any family can have
    assert shares.min() >= 0.5 / 9
    np.testing.assert_allclose(scheduler.family_shares("case14"), 1 / 9)
    drawn = Counter(s.family for _ in range(60) for s in draw_on(scheduler, "case30").strata)
    assert drawn[FOLD_0[2]] > 3 * drawn[FOLD_0[3]] > 0


def draw_on(scheduler: Scheduler, case: str) -> Assignment:
    rng = np.random.default_rng(scheduler.calls)
    while True:
        call = scheduler.draw(rng)
        if call.case == case:
            return call


def test_progress_forgets_what_lies_before_the_lag() -> None:
    scheduler, stratum = make(), Stratum("anomalous", FOLD_0[0], "case14")
    for step in range(scheduler.lag):
        scheduler.observe(stratum, step / scheduler.lag, step)
    assert scheduler.progress(stratum) > 0.4
    for step in range(scheduler.lag, 4 * scheduler.lag):
        scheduler.observe(stratum, 0.9, step)
    assert abs(scheduler.progress(stratum)) < 0.01
    kept = scheduler.state_dict()["tracks"][stratum.key()]["steps"]
    assert len(kept) <= 12


@pytest.mark.parametrize(("steps", "lag"), [(20, 40), (600, 60), (5_000, 500), (1_000_000, 2_000)])
def test_progress_looks_back_over_a_tenth_of_the_run(steps: int, lag: int) -> None:
    assert make(SelfplayConfig(steps=steps)).lag == lag


def test_a_family_that_was_learned_early_gives_its_programs_to_those_that_are_still_hard() -> None:
    """Counted from the start of a short run, it would hold them to the end."""
    scheduler = make()
    easy, hard = (Stratum("anomalous", family, "case30") for family in FOLD_0[:2])
    for step in range(600):
        scheduler.observe(easy, min(1.0, step / 100), step)
        scheduler.observe(hard, 0.0 if step < 300 else (step - 300) / 600, step)
    shares = scheduler.family_shares("case30")
    assert shares[1] > 1.3 * shares[0]
    assert shares[0] == pytest.approx(shares[2], rel=0.05)


def test_falling_skill_is_negative_progress() -> None:
    scheduler, stratum = make(), Stratum("hard", "", "case14")
    scheduler.observe(stratum, 0.9, 0)
    for step in range(1, scheduler.lag):
        scheduler.observe(stratum, 0.1, step)
    assert scheduler.progress(stratum) == -0.5
    for step in range(scheduler.lag, 100):
        scheduler.observe(stratum, 0.1, step)
    assert scheduler.skill_of(stratum) == pytest.approx(0.1, abs=0.01)


def test_skill_vector_averages_a_family_over_grids_and_leaves_unseen_ones_at_zero() -> None:
    scheduler = make()
    for step in range(200):
        scheduler.observe(Stratum("anomalous", FOLD_0[1], "case14"), 0.2, step)
        scheduler.observe(Stratum("anomalous", FOLD_0[1], "case30"), 0.8, step)
        scheduler.observe(Stratum("hard", "", "case30"), 0.9, step)
    vector = scheduler.skill_vector()
    assert vector.shape == (12,)
    assert vector[FAMILIES.index(FOLD_0[1])] == pytest.approx(0.5, abs=0.05)
    assert np.count_nonzero(vector) == 1


def test_policy_mode_leaves_the_family_open() -> None:
    call = make(SelfplayConfig(family_choice="policy")).draw(np.random.default_rng(0))
    assert {s.family for s in call.strata} == {""}
    assert sides(call)["anomalous"] == 16


def test_state_continues_exactly_through_json() -> None:
    scheduler, rng = make(), np.random.default_rng(5)
    for step in range(50):
        call = scheduler.draw(rng)
        for stratum in call.strata:
            scheduler.observe(stratum, float(rng.random()), 20 * step)
    copy = make()
    copy.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    one, two = np.random.default_rng(9), np.random.default_rng(9)
    for step in range(50, 80):
        first, second = scheduler.draw(one), copy.draw(two)
        assert first == second
        for side in (scheduler, copy):
            side.observe(first.strata[0], 0.3, 20 * step)
    assert scheduler.state_dict() == copy.state_dict()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="Z9"):
        Scheduler(SelfplayConfig(), ["Z9"], CASES)
    with pytest.raises(ValueError, match="no grid"):
        Scheduler(SelfplayConfig(), FOLD_0, [])
    with pytest.raises(ValueError, match=r"1\.2"):
        make().observe(Stratum("hard", "", "case14"), 1.2, 0)
    with pytest.raises(ValueError, match="0 programs"):
        make().draw(np.random.default_rng(0), 0)
