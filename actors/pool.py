"""Fault-tolerant pool of like actors: bounded calls in flight, one place that waits, every exit counted.

Flow:    limiter.capacity -> [pool.ask] -> actors -> [pool.collect] -> Done or Lost -> limiter.settle, replay
Source:  RLlib's fault-tolerant actor manager (state per actor, calls by tag), docs/adr/0008-pull-driven-actors.md
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import ray
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 30.0
"""A ready answer that cannot be moved to the driver within this time counts as lost."""


class PoolError(RuntimeError):
    """The pool cannot go on: too few healthy actors for too long, closed, or a synchronous turn that did not end."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished call; value is the method's answer, or (answer, ref, ...) in a pool with returns > 1."""

    actor_index: int
    call_id: int
    tag: Hashable
    value: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """A call without an answer. It may have run on the actor, so whatever it inserted needs an id of its own."""

    actor_index: int
    call_id: int
    tag: Hashable
    error: str


Result: TypeAlias = Done | Lost


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters since the start. Invariant: submitted == running + done + lost."""

    submitted: int
    running: int
    done: int
    lost: int
    strikes: int
    recreated: int
    healthy: int


class Backend(Protocol):
    """The five things that the pool asks of Ray; tests of the accounting bring their own."""

    def submit(self, actor: Any, method: str, args: tuple[Any, ...], returns: int) -> list[Any]: ...
    def wait(self, refs: list[Any], num_returns: int, timeout_s: float) -> list[Any]: ...
    def get(self, ref: Any, timeout_s: float) -> Any: ...
    def kill(self, actor: Any) -> None: ...
    def pause(self, seconds: float) -> None: ...


class RayBackend:
    """Ray itself."""

    def submit(self, actor: Any, method: str, args: tuple[Any, ...], returns: int) -> list[Any]:
        """Send one call; the first of the `returns` refs is the answer the pool waits for."""
        refs = getattr(actor, method).options(num_returns=returns).remote(*args)
        return [refs] if returns == 1 else list(refs)

    def wait(self, refs: list[Any], num_returns: int, timeout_s: float) -> list[Any]:
        """Ready refs: waits for num_returns of them, then also takes every other one that is ready."""
        ready, pending = ray.wait(refs, num_returns=num_returns, timeout=timeout_s, fetch_local=False)
        if ready and pending:
            more, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
            return [*ready, *more]
        return list(ready)

    def get(self, ref: Any, timeout_s: float) -> Any:
        return ray.get(ref, timeout=timeout_s)

    def kill(self, actor: Any) -> None:
        if ray.is_initialized():  # after a shutdown ray.kill would start a new Ray
            ray.kill(actor, no_restart=True)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(slots=True, eq=False)
class _Call:
    call_id: int
    slot: _Slot
    generation: int
    tag: Hashable
    refs: list[Any]
    submitted_at: float


@dataclass(slots=True, eq=False)
class _Slot:
    """One seat of the pool. `generation` grows with each strike, so calls sent before it neither strike nor heal."""

    index: int
    actor: Any = None
    calls: dict[int, _Call] = field(default_factory=dict)
    """In flight, in the order the actor serves them: its methods run one at a time."""
    generation: int = 0
    strikes: int = 0
    """Failures since the last success."""
    retry_at: float = 0.0
    settled_at: float = float("-inf")
    logged: set[str] = field(default_factory=set)
    """Kinds of error already in the log: one broken actor must not fill it."""


def _no_args(call_id: int) -> tuple[Any, ...]:
    return ()


class ActorPool:
    """N actors of one kind behind `ask` and `collect`.

    Invariant: submitted == running + done + lost; no actor ever has more than in_flight calls, nor more than one
    between a strike and its next success. Actors come from `make(index)` and want `max_restarts=-1,
    max_task_retries=0`: Ray restarts a crashed process, the pool replaces an actor that is dead or overdue. A new
    actor is empty, so weights travel with each call (board.WeightBoard.ref).
    Health is judged when a call fails, never while nobody asks: an idle pool does not end a run.
    Caveat: an actor that is asked with state of its own gives answers that depend on the assignment of calls; for
    equal numbers in synchronous mode seed the work by call_id.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        *,
        size: int,
        rng: np.random.Generator,
        in_flight: int = 2,
        min_healthy: int = 1,
        grace_s: float = 60.0,
        call_timeout_s: float = 120.0,
        returns: int = 1,
        backoff_s: float = 0.5,
        backoff_cap_s: float = 15.0,
        name: str = "pool",
        clock: Callable[[], float] = time.monotonic,
        backend: Backend | None = None,
    ) -> None:
        """Create the actors; returns before they are up.

        Args:    make           index -> actor handle, also used for replacements, so a fixed actor name is fine
                 in_flight      calls per actor, 1 or 2; more only adds policy lag
                 min_healthy    fewer than this for grace_s seconds ends the run
                 call_timeout_s longest time for one call, counted from when the actor could start on it and
                                including its construction; an overdue actor is killed and replaced
                 returns        values per call; with k > 1 Done.value is (first, ref, ..., ref): only the first
                                comes to the driver, the refs go on to replay
                 rng            jitter of the exponential back-off: backoff_s doubling up to backoff_cap_s, and to
                                a quarter of grace_s at most
        Raises:  ValueError naming the setting that is out of range.
        """
        if size < 1 or not 1 <= in_flight <= 2 or returns < 1:
            raise ValueError(
                f"{name}: need size >= 1, in_flight 1 or 2, returns >= 1; have {size}, {in_flight}, {returns}"
            )
        if not 0 <= min_healthy <= size:
            raise ValueError(f"{name}: min_healthy {min_healthy} of {size}; lower actors.min_healthy or add actors")
        self._make, self._rng, self._clock, self._name = make, rng, clock, name
        self._backend: Backend = backend if backend is not None else RayBackend()
        self._in_flight, self._min_healthy, self._grace_s = in_flight, min_healthy, grace_s
        self._call_timeout_s, self._returns = call_timeout_s, returns
        self._backoff_s = backoff_s
        # health is judged at failures, so several of them must fall into the grace
        self._backoff_cap_s = max(backoff_s, min(backoff_cap_s, grace_s / 4))
        self._calls: dict[Any, _Call] = {}
        self._settled: deque[Result] = deque()
        self._refused = False
        self._short_since: float | None = None
        self._fatal: PoolError | None = None
        self._submitted = self._done = self._lost = 0
        self._strikes = self._recreated = 0
        self._slots = [_Slot(index) for index in range(size)]
        for slot in self._slots:
            self._create(slot)

    @property
    def running(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    def stats(self) -> PoolStats:
        """Counters; see PoolStats for the invariant."""
        return PoolStats(
            submitted=self._submitted,
            running=len(self._calls),
            done=self._done,
            lost=self._lost,
            strikes=self._strikes,
            recreated=self._recreated,
            healthy=self._healthy(),
        )

    def ask(
        self, n: int, method: str, args: Callable[[int], tuple[Any, ...]] = _no_args, *, tag: Hashable = None
    ) -> int:
        """Submit up to n calls of `method(*args(call_id))`, least busy actor first; returns how many were NOT taken.

        args is evaluated once for each call that is taken. Refs inside a list in it arrive as refs.
        Raises:  PoolError when the run has to end (see collect).
        """
        if self._fatal is not None:
            raise self._fatal
        for taken in range(n):
            slot = self._free_slot()
            if slot is None:
                self._refused = True
                return n - taken
            call_id, now = self._submitted, self._clock()
            values = args(call_id)
            self._submitted += 1
            call = _Call(call_id, slot, slot.generation, tag, [], now)
            try:
                call.refs = self._backend.submit(slot.actor, method, values, self._returns)
            except RayError as error:  # taken all the same: the driver gets the tag back and with it the work
                self._lose(call, error)
                continue
            slot.calls[call_id] = self._calls[call.refs[0]] = call
        return 0

    def collect(self, timeout_s: float) -> Iterator[Result]:
        """Wait up to timeout_s for at least one result, then yield all that are ready, in the order of the calls.

        The one place that waits. Returns at once when nothing runs, unless the last ask was refused only because
        actors are backing off: then it waits for the first of them. Results not consumed stay for the next call.
        Raises:  PoolError after the last result when fewer than min_healthy actors were healthy for grace_s.
        """
        self._wait(timeout_s)
        while self._settled:
            yield self._settled.popleft()
        if self._fatal is not None:
            raise self._fatal

    def collect_all(self, timeout_s: float) -> list[Result]:
        """All outstanding results, sorted by call_id: the end of a turn in synchronous mode.

        Raises:  PoolError when calls still run after timeout_s, or as collect; the results stay for collect.
        """
        results = self.drain(timeout_s)
        error = self._fatal
        if error is None and self._calls:
            error = PoolError(
                f"{self._name}: {len(self._calls)} of {len(self._calls) + len(results)} calls still run after"
                f" {timeout_s:g} s; raise the timeout above actors.call_timeout_s ({self._call_timeout_s:g} s)"
            )
        if error is not None:
            self._settled.extendleft(reversed(results))
            raise error
        return results

    def drain(self, timeout_s: float) -> list[Result]:
        """Results until nothing runs or timeout_s is over, sorted by call_id. Never raises: for shutdown."""
        end = self._clock() + timeout_s
        self._refused = False
        results: list[Result] = []
        while True:
            self._wait(max(0.0, end - self._clock()))
            results.extend(self._settled)
            self._settled.clear()
            if not self._calls or self._clock() >= end:
                return sorted(results, key=lambda result: result.call_id)

    def close(self) -> None:
        """Kill all actors; calls in flight count as lost. Safe to call twice."""
        self._fatal = self._fatal or PoolError(f"{self._name}: is closed; make a new pool")
        self._lost += len(self._calls)
        self._calls.clear()
        for slot in self._slots:
            slot.calls.clear()
            self._remove(slot)

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- waiting

    def _wait(self, timeout_s: float) -> None:
        """Fill _settled with at least one result, or return when timeout_s is over or nothing can come."""
        end = self._clock() + timeout_s
        wait_s = 0.0  # first look without waiting: a slow driver must not take finished calls for overdue ones
        while True:
            if self._calls:
                ready = self._backend.wait(list(self._calls), 1, wait_s)
                for call in sorted((self._calls[ref] for ref in ready), key=lambda call: call.call_id):
                    self._settle(call)
                self._lose_overdue()
            now = self._clock()
            if self._settled or now >= end:
                return
            if self._calls:
                wait_s = max(0.0, min(end, min(self._due(slot) for slot in self._slots)) - now)
                continue
            if self._refused:
                wake = min(slot.retry_at for slot in self._slots)
                self._refused = False
                if wake > now:
                    self._backend.pause(min(end, wake) - now)
            return

    def _due(self, slot: _Slot) -> float:
        """When the oldest call of the actor is overdue; a queued call's time starts when the one before it ended."""
        oldest = next(iter(slot.calls.values()), None)
        if oldest is None:
            return float("inf")
        return max(oldest.submitted_at, slot.settled_at) + self._call_timeout_s

    def _lose_overdue(self) -> None:
        for slot in self._slots:
            if self._clock() < self._due(slot):
                continue
            overdue, *behind = list(slot.calls.values())
            reason = f"overdue: no answer within actors.call_timeout_s = {self._call_timeout_s:g} s; actor replaced"
            self._strike(slot, reason, kind="overdue", dead=True)
            for call in (overdue, *behind):
                self._lose(call, reason if call is overdue else f"actor replaced: call {overdue.call_id} was overdue")

    # ---- settling

    def _settle(self, call: _Call) -> None:
        try:
            value = self._backend.get(call.refs[0], FETCH_TIMEOUT_S)
        except RayError as error:
            self._lose(call, error)
            return
        self._forget(call)
        self._done += 1
        self._settled.append(
            Done(call.slot.index, call.call_id, call.tag, value if self._returns == 1 else (value, *call.refs[1:]))
        )
        if call.generation == call.slot.generation:
            call.slot.strikes = 0
            if self._healthy() >= self._min_healthy:
                self._short_since = None

    def _lose(self, call: _Call, error: RayError | str) -> None:
        self._forget(call)
        self._lost += 1
        reason = error if isinstance(error, str) else _reason(error)
        self._settled.append(Lost(call.slot.index, call.call_id, call.tag, reason))
        if isinstance(error, RayError) and call.generation == call.slot.generation:
            self._strike(call.slot, reason, kind=type(error).__name__, dead=_is_gone(error))

    def _forget(self, call: _Call) -> None:
        if call.slot.calls.pop(call.call_id, None) is not None:
            call.slot.settled_at = self._clock()
        if call.refs:
            self._calls.pop(call.refs[0], None)

    # ---- health

    def _healthy(self) -> int:
        """Actors without a strike since their last success."""
        return sum(slot.strikes == 0 and slot.actor is not None for slot in self._slots)

    def _free_slot(self) -> _Slot | None:
        now = self._clock()
        best: _Slot | None = None
        for slot in self._slots:
            room = self._in_flight if slot.strikes == 0 else 1  # after a strike one call at a time, on trial
            if len(slot.calls) >= room or now < slot.retry_at:
                continue
            if slot.actor is None and not self._create(slot):
                continue
            if best is None or len(slot.calls) < len(best.calls):
                best = slot
        return best

    def _create(self, slot: _Slot) -> bool:
        try:
            slot.actor = self._make(slot.index)
        except RayError as error:  # for example its name is still held by the actor that was killed just now
            self._strike(slot, f"cannot be created: {_reason(error)}", kind=type(error).__name__, dead=False)
            return False
        self._recreated += slot.generation > 0
        return True

    def _remove(self, slot: _Slot) -> None:
        actor, slot.actor = slot.actor, None
        if actor is not None:
            try:
                self._backend.kill(actor)
            except (RayError, ValueError) as error:  # already gone
                logger.debug("%s: actor %d could not be killed: %s", self._name, slot.index, error)

    def _strike(self, slot: _Slot, reason: str, *, kind: str, dead: bool) -> None:
        now = self._clock()
        slot.strikes += 1
        slot.generation += 1
        self._strikes += 1
        backoff_s = min(self._backoff_cap_s, self._backoff_s * 2.0 ** min(slot.strikes - 1, 16))
        slot.retry_at = now + backoff_s * float(self._rng.uniform(0.5, 1.5))
        if dead:
            self._remove(slot)
        if kind not in slot.logged:
            slot.logged.add(kind)
            logger.warning("%s: actor %d: %s (more of this kind is only counted)", self._name, slot.index, reason)
        healthy = self._healthy()
        if healthy >= self._min_healthy:
            return
        if self._short_since is None:
            self._short_since = now
        if now - self._short_since >= self._grace_s and self._fatal is None:
            self._fatal = PoolError(
                f"{self._name}: need {self._min_healthy} healthy, have {healthy} of {len(self._slots)} for"
                f" {now - self._short_since:.0f} s; last error: actor {slot.index}: {reason}"
            )


def _is_gone(error: RayError) -> bool:
    """Whether only a new actor helps. Unavailable: Ray is restarting it. A task error: the method raised, be it an
    ActorDiedError about some other actor that it had called, which Ray makes an instance of both.
    """
    if isinstance(error, RayTaskError | ActorUnavailableError):
        return False
    return isinstance(
        error, RayActorError | ActorUnschedulableError | ActorPlacementGroupRemoved | RuntimeEnvSetupError
    )


def _reason(error: BaseException) -> str:
    """One line: what the method raised, or Ray's error with the last line of its text, where Ray puts the cause."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"[:400]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no text'}"[:400]
