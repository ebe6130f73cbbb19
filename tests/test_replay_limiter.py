"""Samples-per-insert limiter never deadlocks; the staleness manager counts every exit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.replay.limiter import LimiterError, SampleToInsertLimiter, StalenessManager, smallest_buffer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@st.composite
def limiters(draw: st.DrawFn) -> SampleToInsertLimiter:
    spi = draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.7, 8.0]))
    inserts, samples = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    return SampleToInsertLimiter(
        samples_per_insert=spi,
        min_size=draw(st.integers(1, 50)),
        error_buffer=smallest_buffer(spi, inserts, samples) + draw(st.sampled_from([0.0, 0.3, 5.0])),
        clock=Clock(),
        insert_block=inserts,
        sample_block=samples,
    )


@settings(max_examples=200, deadline=None)
@given(limiters(), st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=120))
def test_one_side_may_always_proceed_and_the_cursor_keeps_its_bounds(
    limiter: SampleToInsertLimiter, moves: list[tuple[bool, float]]
) -> None:
    for wants_insert, size in moves:
        # Both sides offer their largest block: if neither may go, the run has stopped for ever.
        assert limiter.may_insert(limiter.insert_block) or limiter.may_sample(limiter.sample_block)
        n = 1 + int(size * ((limiter.insert_block if wants_insert else limiter.sample_block) - 1))
        if wants_insert and limiter.may_insert(n):
            limiter.inserted(n)
        elif not wants_insert and limiter.may_sample(n):
            assert limiter.started
            limiter.sampled(n)
        assert limiter.cursor == pytest.approx(limiter.inserts * limiter.samples_per_insert - limiter.samples)
        if limiter.started:
            low, high = limiter.bounds
            assert low - 1e-9 <= limiter.cursor <= high + 1e-9


def test_buffer_smaller_than_a_block_is_refused_because_it_can_deadlock() -> None:
    with pytest.raises(LimiterError, match="wait for each other"):
        SampleToInsertLimiter(
            samples_per_insert=8, min_size=256, error_buffer=204.8, clock=Clock(), insert_block=64, sample_block=64
        )
    widened = SampleToInsertLimiter.with_share(
        samples_per_insert=8, min_size=256, share=0.1, clock=Clock(), insert_block=64, sample_block=64
    )
    assert widened.error_buffer == 512
    with pytest.raises(LimiterError, match="raise insert_block"):
        widened.may_insert(65)


def test_blocked_time_is_charged_to_the_side_that_waits() -> None:
    clock = Clock()
    limiter = SampleToInsertLimiter(samples_per_insert=1, min_size=4, error_buffer=2, clock=clock)
    assert not limiter.may_sample()
    clock.now = 3.0
    assert limiter.blocked_s("sample") == 3.0
    for _ in range(6):
        assert limiter.may_insert()
        limiter.inserted()
    assert not limiter.may_insert()
    clock.now = 5.0
    assert limiter.may_sample()
    assert limiter.blocked_s("sample") == 5.0
    limiter.sampled()
    clock.now = 9.0
    assert limiter.may_insert()
    clock.now = 20.0
    assert limiter.blocked_s("insert") == 6.0
    assert limiter.blocked_s("sample") == 5.0


def test_limiter_state_round_trip() -> None:
    limiter = SampleToInsertLimiter(samples_per_insert=2, min_size=3, error_buffer=4, clock=Clock())
    limiter.inserted(5)
    limiter.sampled(4)
    other = SampleToInsertLimiter(samples_per_insert=1, min_size=3, error_buffer=1, clock=Clock())
    other.load_state_dict(limiter.state_dict())
    assert other.state_dict() == limiter.state_dict()
    assert (other.cursor, other.bounds) == (limiter.cursor, limiter.bounds)


EXIT = st.sampled_from(["accepted", "filtered", "lost"])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(["submit", "settle", "train"]), st.integers(1, 10), EXIT), max_size=80),
)
def test_every_window_is_counted_once_and_lag_is_bounded(
    batch: int, max_running: int, max_lag: int, moves: list[tuple[str, int, str]]
) -> None:
    manager = StalenessManager(batch=batch, max_running=max_running, max_lag=max_lag)
    version = 0
    flying: list[int] = []  # version at submission of each running window
    ready: list[int] = []  # accepted, not yet trained on
    for move, n, exit_kind in moves:
        if move == "submit":
            k = min(n, manager.capacity(version))
            manager.submit(k, version)
            flying += [version] * k
        elif move == "settle" and flying:
            k = min(n, len(flying))
            ended, flying = flying[:k], flying[k:]
            manager.settle(**{exit_kind: k})
            if exit_kind == "accepted":
                ready += ended
        elif move == "train" and len(ready) >= batch:
            used, ready = ready[:batch], ready[batch:]
            version += 1
            if max_lag == 0:
                assert all(version - 1 == submitted_at for submitted_at in used)  # synchronous
        assert manager.submitted == manager.running + manager.accepted + manager.filtered + manager.lost
        assert 0 <= manager.running <= max_running
        assert manager.accepted + manager.running <= (max_lag + version + 1) * batch
        if not flying and len(ready) < batch:
            assert manager.capacity(version) > 0  # the learner can never starve, whatever was lost


def test_staleness_refuses_double_settling_and_oversubmission() -> None:
    manager = StalenessManager(batch=4, max_running=8, max_lag=0)
    assert manager.capacity(0) == 4
    with pytest.raises(LimiterError, match="capacity is 4"):
        manager.submit(5, 0)
    manager.submit(4, 0)
    assert manager.capacity(0) == 0
    assert manager.capacity(1) == 4
    manager.settle(accepted=3, lost=1)
    with pytest.raises(LimiterError, match="settled once"):
        manager.settle(accepted=1)
    assert manager.capacity(0) == 1  # the lost one is replaced


def test_staleness_restart_counts_running_work_as_lost() -> None:
    manager = StalenessManager(batch=4, max_running=8, max_lag=1)
    manager.submit(6, 0)
    manager.settle(accepted=2, filtered=1)
    other = StalenessManager(batch=4, max_running=8, max_lag=1)
    other.load_state_dict(manager.state_dict())
    assert (other.running, other.accepted, other.filtered, other.lost, other.submitted) == (0, 2, 1, 3, 6)
