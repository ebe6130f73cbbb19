"""gg_ray.selfplay.buffer: draws by number, twins, round trip bit for bit, and a limiter that never locks up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.grid.cases import load_case
from gg_ray.grid.jacobian import F_JAC
from gg_ray.nested import flatten, unflatten
from gg_ray.records import Experience, Labels, Program
from gg_ray.selfplay.buffer import Buffer, Draw, priorities_after
from gg_ray.verifier.batch import F_EDGE, F_NODE


def small(**changes: Any) -> RunConfig:
    base = {"scenario.cases": ["case14"], "replay.min_size": 8, "learner.batch": 12, "selfplay.programs": 4}
    return load("smoke", base | changes)


def experience(number: int, *, pair: int = -1, source: str = "proposer", implausible: bool = False) -> Experience:
    """A window whose every value is its number, so that it is recognised in a batch."""
    case = load_case("case14")
    n, e = case.n_bus, case.n_branch
    labels = Labels(
        implausible=implausible, disturbance=False, severity=0.0, type=2 if implausible else 0,
        node_N=np.zeros(n, dtype=bool), edge_E=np.zeros(e, dtype=bool), onset=-1, end=-1,
    )  # fmt: skip
    param = np.ones((e, 3), dtype=np.float32)
    return Experience(
        case="case14", plan_id=0, node_TNF=np.full((16, n, F_NODE), number, dtype=np.float16),
        edge_TEF=np.full((16, e, F_EDGE), number, dtype=np.float16), xhat_N2=np.zeros((n, 2), dtype=np.float32),
        states_SN2=np.zeros((4, n, 2), dtype=np.float32), meas_N2=np.zeros((n, 2), dtype=np.float32),
        sigma_N2=np.full((n, 2), np.inf, dtype=np.float32), param_E3=param,
        jac_NJ=np.full((n, F_JAC), number, dtype=np.float16), labels=labels,
        program=Program(case="case14", context_id=0, plan_id=0, events=(), scans=16, seed=number), pair=pair,
        source=source, d_eff=4.0, p_star=0.9, p_bar=0.5, learnability=0.3 + 0.01 * (number % 7), version=0,
    )  # fmt: skip


def pairs(first: int, count: int) -> list[Experience]:
    """Anomalous windows and their twins; a twin's number is 500 above."""
    out = []
    for number in range(first, first + count):
        out += [experience(number, pair=number, implausible=True), experience(500 + number, pair=number)]
    return out


def filled(config: RunConfig) -> Buffer:
    buffer = Buffer(config)
    buffer.insert(pairs(1, 10), 0, batch_id=0)
    buffer.insert([experience(100 + i, source="solver") for i in range(4)], 0, batch_id=1)
    return buffer


def numbers(draw: Draw) -> list[int]:
    """Which windows a batch holds."""
    first = torch.searchsorted(draw.batch.graph, torch.arange(draw.batch.n_graphs))
    return [int(value) for value in draw.batch.x[first, 0, 0]]


def test_the_nth_draw_depends_on_the_contents_and_on_n_alone() -> None:
    one, two = filled(small()), filled(small())
    assert [numbers(one.draw()) for _ in range(3)] == [numbers(two.draw()) for _ in range(3)]
    np.random.default_rng(0).random(10)
    torch.manual_seed(99)
    assert numbers(one.draw()) == numbers(two.draw())
    other = filled(small(seed=1))
    assert [numbers(other.draw()) for _ in range(3)] != [numbers(filled(small()).draw()) for _ in range(3)]
    assert one.draws == two.draws == 4


def test_twins_come_along_and_are_paired_in_the_batch() -> None:
    buffer = filled(small(**{"actors.solvers": 0}))
    met = 0
    for _ in range(20):
        draw = buffer.draw()
        got = numbers(draw)
        for main, twin in draw.batch.pairs.T.tolist():
            assert got[twin] == got[main] + 500
            assert draw.implausible[main]
            assert not draw.implausible[twin]
            met += 1
    # windows are drawn two by two; only a share's odd last place can be without its twin
    assert met >= 20 * (12 // 2 - 3)


def test_solver_windows_keep_to_their_share_and_only_where_a_solver_plays() -> None:
    buffer = filled(small(**{"solver.share": 0.25}))
    shares = [buffer.draw().solver_share for _ in range(40)]
    assert min(shares) >= 0.25  # the stratum holds them, so its quarter is always met
    none = filled(small(**{"selfplay.arm": "uniform", "actors.solvers": 0}))
    assert np.mean([none.draw().solver_share for _ in range(40)]) < np.mean(shares)


def test_a_retried_insert_changes_nothing() -> None:
    buffer = filled(small())
    before = (len(buffer.table), buffer.limiter.inserts)
    assert buffer.insert(pairs(1, 10), 0, batch_id=0) == 0
    assert (len(buffer.table), buffer.limiter.inserts) == before
    assert buffer.insert([], 0, batch_id=7) == 0
    kept = buffer.insert_kept([pairs(40, 1), pairs(41, 1), pairs(42, 1)], [0, 2], 0, batch_id=8)
    assert kept == 4


def test_inserted_views_become_copies() -> None:
    """A view would keep the array of a whole message alive, and change with it."""
    buffer = Buffer(small())
    items = pairs(1, 8)
    whole = np.stack([item.node_TNF for item in items])
    for item, view in zip(items, whole, strict=True):
        item.node_TNF = view
    buffer.insert(items, 0, batch_id=0)
    whole[:] = -1
    assert min(numbers(buffer.draw())) >= 1


def test_round_trip_continues_bit_for_bit() -> None:
    straight = filled(small())
    straight.draw()
    saved = unflatten(flatten(straight.state_dict(0)))
    back = Buffer(small())
    back.load_state_dict(saved)
    for turn in range(4):
        one, two = straight.draw(), back.draw()
        assert numbers(one) == numbers(two)
        np.testing.assert_array_equal(one.keys, two.keys)
        for buffer, draw in ((straight, one), (back, two)):
            buffer.reprioritise(draw.keys, draw.generations, np.linspace(0.1, 0.9, len(draw.keys)))
            buffer.insert(pairs(60 + turn, 1), turn, batch_id=10 + turn)
    for name, value in straight.table.state_dict().items():
        np.testing.assert_array_equal(value, back.table.state_dict()[name], err_msg=name)


def test_a_tail_keeps_the_newest() -> None:
    buffer = filled(small())
    back = Buffer(small())
    back.load_state_dict(buffer.state_dict(4))
    assert len(back.table) == 4
    assert {number for _ in range(5) for number in numbers(back.draw())} == {100, 101, 102, 103}


def turns_without_work(config: RunConfig, steps: int, yields: list[int]) -> tuple[Buffer, int, int]:
    """The loop's order of events with the limiter alone. Returns: buffer, inserts and the longest idle stretch."""
    buffer = Buffer(config)
    limiter, batch = buffer.limiter, config.learner.batch
    step = calls = idle = worst = 0
    while step < steps:
        moved = False
        if buffer.may_insert():
            made = min(yields[calls % len(yields)], buffer.insert_block)
            limiter.inserted(made)
            calls += 1
            moved = made > 0
        while buffer.may_draw() and step < steps:
            limiter.sampled(batch)
            step += 1
            moved = True
        idle = 0 if moved else idle + 1
        worst = max(worst, idle)
        assert idle <= len(yields), f"neither side may move at step {step}, cursor {limiter.cursor}"
    return buffer, calls, worst


@pytest.mark.parametrize("name", ["smoke", "laptop"])
def test_packaged_settings_never_lock_up_and_keep_the_ratio(name: str) -> None:
    config = load(name)
    block = 2 * config.scenario.realisations * config.selfplay.programs
    buffer, calls, _ = turns_without_work(config, config.selfplay.steps, [block, block // 2, 3, 0])
    assert calls > 2
    low, high = buffer.limiter.bounds
    assert low <= buffer.limiter.cursor <= high
    buffer, _, worst = turns_without_work(config, config.selfplay.steps, [block])
    assert worst == 0


@settings(max_examples=40)
@given(
    programs=st.integers(1, 40), realisations=st.integers(1, 3), batch=st.integers(2, 96),
    ratio=st.floats(0.25, 16.0), least=st.integers(1, 300), made=st.lists(st.integers(0, 60), min_size=1, max_size=4),
)  # fmt: skip
def test_no_settings_lock_up(
    programs: int, realisations: int, batch: int, ratio: float, least: int, made: list[int]
) -> None:
    config = small(
        **{
            "selfplay.programs": programs,
            "scenario.realisations": realisations,
            "learner.batch": batch,
            "replay.samples_per_insert": ratio,
            "replay.min_size": least,
            "replay.max_items": 64,
        }
    )
    turns_without_work(config, 20, [*made, 1])


def test_priorities_are_one_minus_skill_of_the_single_window() -> None:
    draw = filled(small()).draw()
    draw.p_star[:] = 0.9
    right = np.where(draw.implausible, 1.0, 0.0).astype(np.float32)
    np.testing.assert_allclose(priorities_after(right, draw, 0.93), 0.0, atol=1e-6)
    np.testing.assert_allclose(priorities_after(1 - right, draw, 0.93), 1.0)
    np.testing.assert_allclose(priorities_after(np.full_like(right, 0.5), draw, 0.93), 1.0)
    half = priorities_after(np.where(draw.implausible, 0.7, 0.5).astype(np.float32), draw, 0.93)
    np.testing.assert_allclose(half[draw.implausible], 0.5, atol=1e-5)
