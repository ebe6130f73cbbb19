"""serve.rings against a slow reference that keeps every scan: disorder, gaps, corrections, meters, epochs, blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import STEP, T0, scan

from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from serve import rings
from serve.rings import Block, Ring, Version, plan_of_message
from serve.wire import Poison, ScanMessage

T = 6
FEW = np.array([0, 3, 15, 40])
ARRAYS = ("z", "age", "status", "tap", "x_scale")
Rows = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "SPARE", 3)


def made(time_ns: int, number: int = 0, meters: int = 4, **changes: Any) -> ScanMessage:
    """A scan whose every number is its own."""
    rng, grid = np.random.default_rng(number), load_case("case14")
    return scan(
        time_ns=time_ns, channels=FEW[:meters], sigma=np.full(meters, 0.01), z_M=rng.random(meters),
        age_M=rng.integers(0, 3, meters).astype(np.uint8), status_E=rng.integers(0, 2, grid.n_branch).astype(np.uint8),
        tap_E=1 + rng.random(grid.n_branch), x_scale_E=1 + rng.random(grid.n_branch), **changes,
    )  # fmt: skip


def window(ring: Ring) -> Rows:
    rows = slice(ring.rows - ring.filled, ring.rows)
    return {name: getattr(ring.block, name)[rows] for name in ARRAYS}


def assert_same(one: Rows, other: Rows) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Slow:
    """Every scan since the grid began, by its place in time; windows are made from them anew each time."""

    def __init__(self) -> None:
        self.said: dict[int, ScanMessage] = {}
        self.newest, self.time_ns, self.version, self.restarts = 0, 0, (-1, -1), 0

    def push(self, m: ScanMessage, version: Version) -> str:
        if version <= self.version:
            return "duplicate"
        new_epoch, self.version = version[0] != self.version[0], version
        last = self.said.get(self.newest)
        apart = round((m.time_ns - self.time_ns) / STEP) if last is not None else 0
        other_meters = last is not None and last.channels.size != m.channels.size
        if last is None or other_meters or apart > T // 2 or (apart < 0 and new_epoch):
            self.restarts += last is not None
            self.said, self.newest, self.time_ns = {0: m}, 0, m.time_ns
            return "newest"
        place = self.newest + apart
        if apart > 0:
            self.newest, self.time_ns = place, m.time_ns
        elif place <= self.newest - min(self.newest + 1, T):
            return "late"
        self.said[place] = m
        return "newest" if apart >= 0 else "late"

    def window(self) -> Rows:
        rows: list[tuple[Any, ...]] = []
        for place in range(self.newest + 1):
            m = self.said.get(place)
            if m is not None:
                rows.append((m.z_M, m.age_M, m.status_E, m.tap_E, m.x_scale_E))
            else:
                z, age, *declared = rows[-1]
                rows.append((np.full(z.size, np.nan), np.where(age < 254, age + 1, age), *declared))
        return {name: np.array([row[i] for row in rows[-T:]]) for i, name in enumerate(ARRAYS)}

    @property
    def gap(self) -> int:
        return next(k for k in range(self.newest + 1) if k == self.newest or self.newest - 1 - k in self.said)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 1, 1, 1, 0, 0, -1, -2, -3, -T, 2, 2, 3, T // 2 + 1, 40]),
        st.floats(-0.45, 0.45),
        st.sampled_from(["next"] * 12 + ["again", "epoch", "epoch", "meters"]),
    ),
    min_size=1, max_size=70,
)  # fmt: skip


def log_of(steps: Sequence[tuple[int, float, str]]) -> list[tuple[ScanMessage, Version]]:
    out: list[tuple[ScanMessage, Version]] = []
    slot, epoch, seq, meters = 100, 1, 0, 4
    for number, (move, jitter, what) in enumerate(steps):
        if what == "again" and out:
            out.append(out[-1 - number % min(3, len(out))])
            continue
        seq += 1
        if what == "epoch":
            epoch, seq = epoch + 1, 0
        if what == "meters":
            meters = 7 - meters
        slot = max(slot + move, 50) if move > 0 else slot
        at = slot + min(move, 0)
        out.append((made(T0 + at * STEP + int(0.2 * jitter * STEP), number, meters), (epoch, seq)))
    return out


@settings(max_examples=40)
@given(STEPS, st.integers(0, 69))
def test_windows_are_those_of_a_reference_that_keeps_every_scan(steps: list[tuple[int, float, str]], stop: int) -> None:
    log, ring, slow = log_of(steps), Ring(T), Slow()
    flying: list[tuple[Rows, Rows]] = []
    for offset, (message, version) in enumerate(log):
        assert ring.push(message, offset, version) == slow.push(message, version)
        assert (ring.restarts, ring.gap, ring.time_ns) == (slow.restarts, slow.gap, slow.time_ns)
        seen = window(ring)
        assert_same(seen, slow.window())
        flying.append((seen, {name: rows.copy() for name, rows in seen.items()}))
        if offset in (stop % len(log), len(log) - 1):
            again = Ring(T)
            for back in range(ring.start, offset + 1):
                again.push(log[back][0], back, log[back][1])
            assert_same(window(again), seen)
            assert (again.gap, again.time_ns, again.start) == (ring.gap, ring.time_ns, ring.start)
    for seen, then in flying:
        assert_same(seen, then)  # what is being judged is never altered


def follow(*messages: ScanMessage) -> Ring:
    ring = Ring(T)
    for k, message in enumerate(messages):
        ring.push(message, k, (1, k))
    return ring


def test_a_correction_and_a_late_scan_bring_what_they_declare() -> None:
    """Their ratios and lengths were left out once, and scans that never came kept what stood before the late one."""
    late, newest, right = made(T0 + STEP, 2), made(T0 + 3 * STEP, 3), made(T0 + 3 * STEP, 4)
    ring = follow(made(T0, 1), newest, late, right)
    seen = window(ring)
    for row, message in ((1, late), (2, late), (3, right)):
        for name, said in (("status", message.status_E), ("tap", message.tap_E), ("x_scale", message.x_scale_E)):
            np.testing.assert_array_equal(seen[name][row], said)
    np.testing.assert_array_equal(seen["age"][2], late.age_M + 1)
    assert np.isnan(seen["z"][2]).all()


def test_a_gap_is_what_has_not_come_until_now() -> None:
    ring = follow(made(T0, 1), made(T0 + 3 * STEP, 2))
    assert ring.gap == 2
    ring.push(made(T0 + 2 * STEP, 3), 2, (1, 2))
    assert ring.gap == 0
    assert follow(made(T0, 1)).gap == 0


def test_an_age_never_comes_round_to_fresh() -> None:
    old = dataclasses.replace(made(T0, 1), age_M=np.array([0, 253, 254, 255], np.uint8))
    ring = follow(old, made(T0 + 3 * STEP, 2))
    assert window(ring)["age"][:3].tolist() == [[0, 253, 254, 255], [1, 254, 254, 255], [2, 254, 254, 255]]


def test_equal_meters_are_the_same_meters_whatever_the_cache_still_holds() -> None:
    """With more meterings at work than the cache holds, every scan began its grid anew: never a verdict."""
    ring = Ring(T)
    for k in range(T):
        ring.push(made(T0 + k * STEP, k), k, (1, k))
        rings._plan.cache_clear()
    assert (ring.filled, ring.restarts) == (T, 0)
    finer = dataclasses.replace(made(T0 + T * STEP, T), sigma=np.full(4, 0.001))
    ring.push(finer, T, (1, T))
    assert (ring.filled, ring.restarts) == (1, 1)


def test_another_step_or_grid_begins_anew() -> None:
    for other in ({"step_s": 30.0}, {"case": "case30"}):
        ring = follow(made(T0, 1), made(T0 + STEP, 2))
        grid = load_case(str(other.get("case", "case14")))
        ones = np.ones(grid.n_branch)
        sizes = {"status_E": ones.astype(np.uint8), "tap_E": ones, "x_scale_E": ones}
        ring.push(dataclasses.replace(made(T0 + 2 * STEP, 3), **sizes, **other), 2, (1, 2))
        assert (ring.filled, ring.restarts, ring.start) == (1, 1, 2)


def test_blocks_do_not_grow() -> None:
    ring, blocks = Ring(T), set[int]()
    kept: list[Block] = []
    for k in range(40):
        ring.push(made(T0 + k * STEP, k), k, (1, k))
        if id(ring.block) not in blocks:
            blocks.add(id(ring.block))
            kept.append(ring.block)
    assert {block.z.shape[0] for block in kept} == {T + rings.SPARE}
    assert 10 <= len(kept) <= 14


def test_the_national_grid_takes_its_own_meters_and_steps() -> None:
    plan = balance.balance_plan(next(iter(balance.CADENCE_PLANS)))
    grid, step = load_case(balance.NAME), balance.cadence_of(plan.plan_id)
    ones = np.ones(grid.n_branch)
    message = scan(
        grid="gb", channels=plan.channels, sigma=plan.sigma, z_M=np.ones(plan.size),
        age_M=np.zeros(plan.size, np.uint8), status_E=ones.astype(np.uint8), tap_E=ones, x_scale_E=ones, step_s=step,
    )  # fmt: skip
    message = dataclasses.replace(message, case=balance.NAME)
    assert plan_of_message(message) is plan
    ring = Ring(T)
    for strange, said in (({"step_s": 61.0}, "step_s 61"), ({"channels": plan.channels[1:]}, "the same")):
        with pytest.raises(Poison, match=said):
            ring.push(dataclasses.replace(message, **strange), 0, (1, 0))
    assert (ring.rows, ring.version) == (0, None), "what is refused leaves no trace"
