"""ActorPool: every call leaves by exactly one exit, lost actors come back, and a broken pool ends the run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from actors.pool import ActorPool, Done, Lost, PoolError, Result

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests folder


class _Worker:
    """A small actor whose faults are asked for."""

    def __init__(self, index: int) -> None:
        self.index, self.calls = index, 0

    def add(self, a: int, b: int) -> int:
        self.calls += 1
        return a + b

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError("bad scenario 17\nbecause of bus 3")

    def fail_by_another(self) -> None:
        raise ActorDiedError

    def hang(self) -> None:
        time.sleep(120)

    def pair(self, n: int) -> tuple[int, np.ndarray[Any, Any]]:
        return n, np.full(n, 7.0)

    def remember(self, value: int) -> None:
        self.index = value

    def recall(self) -> int:
        return self.index


_Remote = ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=0)(_Worker)


@ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=0)
class _Broken:
    """Cannot be constructed, as when its data is missing."""

    def __init__(self, index: int) -> None:
        raise FileNotFoundError("case14.json is missing")

    def work(self) -> None:
        """Never reached."""


@pytest.fixture
def make_pool(ray_cluster: None) -> Iterator[Callable[..., ActorPool]]:
    pools: list[ActorPool] = []

    def make(size: int = 1, **settings: Any) -> ActorPool:
        settings = {"rng": np.random.default_rng(0), "backoff_s": 0.05, "backoff_cap_s": 0.5, **settings}
        pools.append(ActorPool(_Remote.remote, size=size, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def _until(pool: ActorPool, method: str, args: tuple[Any, ...] = (), *, deadline_s: float = 20.0) -> Done:
    """Ask again and again, one call at a time, until one is Done; nothing is left in flight."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if pool.running == 0:
            pool.ask(1, method, lambda _: args)
        for result in pool.collect(1.0):
            if isinstance(result, Done):
                return result
    raise AssertionError(f"no {method} was done within {deadline_s} s: {pool.stats()}")


@pytest.mark.ray
def test_calls_return_in_order_with_tags_and_args(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(2)
    assert pool.ask(4, "add", lambda call_id: (call_id, 10), tag="batch-1") == 0
    results = pool.collect_all(30.0)
    assert [(r.call_id, r.tag, r.value) for r in results if isinstance(r, Done)] == [
        (i, "batch-1", i + 10) for i in range(4)
    ]


@pytest.mark.ray
def test_bound_on_calls_in_flight_and_the_count_not_taken(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(2, in_flight=2)
    assert pool.ask(7, "add", lambda _: (1, 1)) == 3
    assert pool.running == 4
    assert pool.ask(1, "add", lambda _: (1, 1)) == 1
    pool.collect_all(30.0)
    assert pool.ask(3, "add", lambda _: (1, 1)) == 0
    assert pool.stats().submitted == 7


@pytest.mark.ray
def test_killed_process_gives_lost_then_the_actor_works_again(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(1)
    first = _until(pool, "pid").value
    pool.ask(1, "hang", tag="window-3")
    os.kill(first, signal.SIGKILL)
    results = pool.drain(20.0)
    assert [(type(r), r.tag) for r in results] == [(Lost, "window-3")]
    assert isinstance(results[0], Lost)
    assert "Actor" in results[0].error
    assert _until(pool, "pid").value != first
    stats = pool.stats()
    assert stats.healthy == 1
    assert stats.submitted == stats.running + stats.done + stats.lost


@pytest.mark.ray
def test_actor_killed_for_good_is_replaced_by_the_factory(make_pool: Callable[..., ActorPool]) -> None:
    handles: list[Any] = []

    def keep(index: int) -> Any:
        handles.append(_Remote.remote(index))
        return handles[-1]

    pool = make_pool(1)
    pool.close()
    with ActorPool(keep, size=1, rng=np.random.default_rng(0), backoff_s=0.05) as pool:
        _until(pool, "pid")
        ray.kill(handles[0], no_restart=True)
        end = time.monotonic() + 20
        while len(handles) < 2 and time.monotonic() < end:  # ray.kill returns before the actor is gone
            _until(pool, "add", (1, 2))
        assert len(handles) == 2
        assert pool.stats().recreated == 1
        assert pool.stats().lost >= 1


@pytest.mark.ray
def test_exception_in_the_method_is_lost_and_logged_once(
    make_pool: Callable[..., ActorPool], caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1)
    errors = []
    end = time.monotonic() + 20
    while len(errors) < 3 and time.monotonic() < end:
        if pool.running == 0:
            pool.ask(1, "fail")
        errors += [r.error for r in pool.collect(1.0) if isinstance(r, Lost)]
    assert len(errors) == 3
    assert set(errors) == {"ValueError: bad scenario 17 because of bus 3"}
    assert pool.stats().strikes == 3
    assert sum("bad scenario 17" in record.message for record in caplog.records) == 1
    assert _until(pool, "add", (2, 2)).value == 4
    assert pool.stats().recreated == 0, "an exception does not cost the actor its process"


@pytest.mark.ray
def test_death_of_another_actor_inside_a_call_does_not_cost_this_one(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(1)
    pid = _until(pool, "pid").value
    pool.ask(1, "fail_by_another")
    assert [type(r) for r in pool.drain(20.0)] == [Lost]
    assert _until(pool, "pid").value == pid
    assert pool.stats().recreated == 0


@pytest.mark.ray
def test_actors_that_cannot_be_constructed_end_the_run_and_name_the_cause(ray_cluster: None) -> None:
    def play(pool: ActorPool) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pool.ask(2, "work")
            list(pool.collect(1.0))

    with (
        ActorPool(_Broken.remote, size=2, grace_s=1.0, rng=np.random.default_rng(0), name="proposers") as pool,
        pytest.raises(PoolError, match=r"proposers: need 1 healthy, have 0 of 2 .*case14\.json is missing"),
    ):
        play(pool)


@pytest.mark.ray
def test_overdue_call_is_lost_and_the_actor_replaced(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(1, call_timeout_s=3.0, grace_s=60.0)
    pool.ask(2, "hang", tag="slow")
    started = time.monotonic()
    results = pool.drain(20.0)
    assert time.monotonic() - started < 10
    assert [type(r) for r in results] == [Lost, Lost]
    assert isinstance(results[0], Lost)
    assert "overdue" in results[0].error
    assert "3 s" in results[0].error
    assert isinstance(results[1], Lost)
    assert "call 0 was overdue" in results[1].error
    assert pool.stats().strikes == 1, "one incident is one strike, whatever was queued behind it"
    assert _until(pool, "add", (3, 4)).value == 7


@pytest.mark.ray
def test_payload_refs_stay_out_of_the_driver_with_more_returns(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(1, returns=2)
    pool.ask(1, "pair", lambda _: (5,))
    (result,) = pool.collect_all(30.0)
    assert isinstance(result, Done)
    summary, payload_ref = result.value
    assert summary == 5
    assert isinstance(payload_ref, ray.ObjectRef)
    pool.close()  # a returned value outlives the actor
    assert ray.get(payload_ref, timeout=10).tolist() == [7.0] * 5


# ---- the accounting alone, with actors and time made up


class _FakeBackend:
    """Calls end as `script` says, one word per call, in the order they are sent; waiting moves the clock."""

    def __init__(self, script: list[str]) -> None:
        self.now, self.script, self.sent = 0.0, script, 0
        self.outcomes: dict[int, str] = {}
        self.actor_of: dict[int, Any] = {}
        self.dead: set[int] = set()
        self.most_in_flight = 0

    def clock(self) -> float:
        return self.now

    def submit(self, actor: Any, method: str, args: tuple[Any, ...], returns: int) -> list[Any]:
        ref, self.sent = self.sent, self.sent + 1
        outcome = self.script[ref % len(self.script)]
        if outcome == "full":
            raise RayError("pending calls limit")
        self.outcomes[ref], self.actor_of[ref] = outcome, actor
        return [ref]

    def wait(self, refs: list[Any], num_returns: int, timeout_s: float) -> list[Any]:
        per_actor: dict[Any, int] = {}
        for ref in refs:
            per_actor[self.actor_of[ref]] = per_actor.get(self.actor_of[ref], 0) + 1
        self.most_in_flight = max(self.most_in_flight, *per_actor.values())
        ready = [ref for ref in refs if self.outcomes[ref] != "hang" or self.actor_of[ref] in self.dead]
        self.now += 0.01 if ready else timeout_s
        return ready

    def get(self, ref: Any, timeout_s: float) -> Any:
        outcome = "dead" if self.actor_of[ref] in self.dead else self.outcomes[ref]
        if outcome == "done":
            return ref
        raise {"dead": ActorDiedError, "away": ActorUnavailableError, "error": RayError}[outcome](*_ERROR_ARGS[outcome])

    def kill(self, actor: Any) -> None:
        self.dead.add(actor)

    def pause(self, seconds: float) -> None:
        self.now += seconds


_ERROR_ARGS: dict[str, tuple[Any, ...]] = {"dead": (), "away": ("unavailable", None), "error": ("boom",)}


def _fake_pool(backend: _FakeBackend, **settings: Any) -> ActorPool:
    made = iter(range(10**6))
    defaults: dict[str, Any] = {"size": 3, "grace_s": 1e9, "call_timeout_s": 10.0, "rng": np.random.default_rng(1)}
    return ActorPool(lambda _: next(made), backend=backend, clock=backend.clock, **{**defaults, **settings})


@given(
    script=st.lists(
        st.sampled_from(["done", "done", "dead", "away", "error", "hang", "full"]), min_size=1, max_size=12
    ),
    asks=st.lists(st.integers(0, 8), min_size=1, max_size=15),
    timeout_s=st.sampled_from([0.0, 0.5, 30.0]),
)
def test_every_call_leaves_by_exactly_one_exit(script: list[str], asks: list[int], timeout_s: float) -> None:
    backend = _FakeBackend(script)
    pool = _fake_pool(backend)
    results: list[Result] = []
    taken = 0
    for n in asks:
        taken += n - pool.ask(n, "work")
        results += pool.collect(timeout_s)
        stats = pool.stats()
        assert stats.submitted == taken == stats.running + stats.done + stats.lost
        assert len(results) == stats.done + stats.lost
    results += pool.drain(1e6)
    assert sorted(r.call_id for r in results) == list(range(taken)), "each call exactly once"
    assert pool.running == 0
    assert backend.most_in_flight <= 2
    assert sum(isinstance(r, Done) for r in results) == pool.stats().done


def test_too_few_healthy_for_the_grace_ends_the_run_with_the_last_error() -> None:
    backend = _FakeBackend(["dead"])
    pool = _fake_pool(backend, size=2, min_healthy=1, grace_s=20.0, name="proposers")

    def play() -> None:
        while backend.now < 200:
            pool.ask(2, "work")
            list(pool.collect(1.0))

    with pytest.raises(PoolError, match=r"need 1 healthy, have 0 of 2 for 2\d s; last error: actor \d: ActorDied"):
        play()
    assert 20 <= backend.now < 60
    assert pool.stats().submitted == pool.stats().lost
    with pytest.raises(PoolError):
        pool.ask(1, "work")


def test_an_idle_pool_with_a_struck_actor_does_not_end_the_run() -> None:
    backend = _FakeBackend(["error", "done"])
    pool = _fake_pool(backend, size=1, grace_s=5.0)
    pool.ask(1, "work")
    assert [type(r) for r in pool.collect(1.0)] == [Lost]
    backend.now += 1000.0  # the learner was busy; nobody asked
    assert list(pool.collect(1.0)) == []
    pool.ask(1, "work")
    assert [type(r) for r in pool.collect(1.0)] == [Done]
    assert pool.stats().healthy == 1


def test_a_recovery_restarts_the_grace() -> None:
    backend = _FakeBackend(["error", "done", "error"])
    pool = _fake_pool(backend, size=1, grace_s=5.0)
    kinds = []
    for _ in range(3):
        backend.now += 100.0
        pool.ask(1, "work")
        kinds += [type(r) for r in pool.collect(1.0)]
    assert kinds == [Lost, Done, Lost]


def test_time_of_a_queued_call_starts_when_the_one_before_it_ended() -> None:
    backend = _FakeBackend(["done", "hang"])
    pool = _fake_pool(backend, size=1, call_timeout_s=10.0)
    pool.ask(2, "work")
    backend.now = 8.0
    assert [r.call_id for r in pool.collect(0.0)] == [0]
    assert list(pool.collect(5.0)) == []
    assert [type(r) for r in pool.collect(60.0)] == [Lost]
    assert 18.0 <= backend.now < 19.0


def test_back_off_grows_and_a_struck_actor_gets_one_call_on_trial() -> None:
    backend = _FakeBackend(["error"])
    pool = _fake_pool(backend, size=1, backoff_s=1.0, backoff_cap_s=8.0)
    waits = []
    for _ in range(6):
        before = backend.now
        while pool.ask(2, "work") == 2:
            list(pool.collect(100.0))
        waits.append(backend.now - before)
        assert pool.running == (2 if len(waits) == 1 else 1)
        list(pool.collect(1.0))
    assert waits[0] == 0.0
    assert all(
        0.5 * expected <= wait <= 1.6 * expected for wait, expected in zip(waits[1:], [1, 2, 4, 8, 8], strict=True)
    )


def test_slow_driver_does_not_take_finished_calls_for_overdue_ones() -> None:
    backend = _FakeBackend(["done"])
    pool = _fake_pool(backend, size=1, call_timeout_s=10.0)
    pool.ask(2, "work")
    backend.now += 500.0  # an evaluation in the driver
    assert [type(r) for r in pool.collect(1.0)] == [Done, Done]


def test_results_left_by_a_broken_off_loop_come_next_time() -> None:
    pool = _fake_pool(_FakeBackend(["done"]), size=2)
    pool.ask(4, "work")
    first = next(pool.collect(1.0))
    assert [first.call_id, *(r.call_id for r in pool.collect(1.0))] == [0, 1, 2, 3]


def test_collect_all_that_cannot_end_says_how_many_still_run_and_keeps_the_rest() -> None:
    backend = _FakeBackend(["done", "hang"])
    pool = _fake_pool(backend, size=2, call_timeout_s=50.0)
    pool.ask(2, "work")
    with pytest.raises(PoolError, match="1 of 2 calls still run after 5 s"):
        pool.collect_all(5.0)
    assert [r.call_id for r in pool.collect(0.0)] == [0]
    assert [type(r) for r in pool.collect_all(100.0)] == [Lost]


def test_factory_that_fails_is_tried_again() -> None:
    backend = _FakeBackend(["done"])
    tries: list[int] = []

    def make(index: int) -> int:
        tries.append(index)
        if len(tries) < 3:
            raise RayError("name is taken")
        return 0

    pool = ActorPool(make, size=1, rng=np.random.default_rng(0), backend=backend, clock=backend.clock, grace_s=1e9)
    while pool.ask(1, "work"):
        assert list(pool.collect(10.0)) == []
    assert [type(r) for r in pool.collect(1.0)] == [Done]
    assert len(tries) == 3


@pytest.mark.parametrize("settings", [{"size": 0}, {"in_flight": 3}, {"min_healthy": 4}])
def test_impossible_settings_are_refused_by_name(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="pool: "):
        _fake_pool(_FakeBackend(["done"]), **settings)
