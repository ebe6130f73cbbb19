"""How far inserts and draws may run apart, and how far actors may run ahead of the learner.

Flow:    actors.pool -> [StalenessManager] -> replay.table -> [SampleToInsertLimiter] -> learner
Source:  Reverb's SampleToInsertRatio (2102.04736, section 3.4); SkyRL's capacity formula (max_staleness_steps),
         with every exit counted; docs/adr/0005-own-replay.md
Units:   one insert or draw is one window; blocks of n are admitted or refused as a whole; times in s of the given clock
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal


class LimiterError(ValueError):
    """A limiter was set up or used in a way that could stop the run for ever, or would break its books."""


class SampleToInsertLimiter:
    """Keeps draws per insert near `samples_per_insert` by refusing the side that runs ahead.

    cursor = inserts * samples_per_insert - samples, and once `min_size` inserts are in,
    `min_size * samples_per_insert - error_buffer <= cursor <= min_size * samples_per_insert + error_buffer`.

    Invariant: the cursor stays in that interval and one side may always proceed, because the buffer holds at least one
    insert block and one sample block. "Started" counts inserts ever made, not items held: evictions cannot undo it.
    """

    def __init__(
        self,
        *,
        samples_per_insert: float,
        min_size: int,
        error_buffer: float,
        clock: Callable[[], float],
        insert_block: int = 1,
        sample_block: int = 1,
    ) -> None:
        if min_size < 1:
            raise LimiterError(f"limiter: min_size {min_size}; need at least 1")
        if insert_block < 1 or sample_block < 1:
            raise LimiterError(f"limiter: blocks of {insert_block} inserts and {sample_block} draws; need at least 1")
        self.min_size = min_size
        self.insert_block = insert_block
        self.sample_block = sample_block
        self.inserts = 0
        self.samples = 0
        self._clock = clock
        self._blocked_since: dict[str, float | None] = {"insert": None, "sample": None}
        self._blocked_s = {"insert": 0.0, "sample": 0.0}
        self._set(samples_per_insert, error_buffer)

    @classmethod
    def with_share(
        cls,
        *,
        samples_per_insert: float,
        min_size: int,
        share: float,
        clock: Callable[[], float],
        insert_block: int,
        sample_block: int,
    ) -> SampleToInsertLimiter:
        """Limiter whose buffer is `share` of samples_per_insert * min_size, widened where a block would not fit."""
        buffer = max(
            share * samples_per_insert * min_size, smallest_buffer(samples_per_insert, insert_block, sample_block)
        )
        return cls(
            samples_per_insert=samples_per_insert,
            min_size=min_size,
            error_buffer=buffer,
            clock=clock,
            insert_block=insert_block,
            sample_block=sample_block,
        )

    def _set(self, samples_per_insert: float, error_buffer: float) -> None:
        if not 0 < samples_per_insert < float("inf"):
            raise LimiterError(f"limiter: samples_per_insert {samples_per_insert}; need a positive number")
        least = smallest_buffer(samples_per_insert, self.insert_block, self.sample_block)
        if not least <= error_buffer < float("inf"):
            raise LimiterError(
                f"limiter: error_buffer {error_buffer} is below {least}, the larger of one insert block "
                f"({self.insert_block} x {samples_per_insert}) and one sample block ({self.sample_block}): both sides "
                "could wait for each other; widen it or use smaller blocks"
            )
        self.samples_per_insert = samples_per_insert
        self.error_buffer = error_buffer

    @property
    def started(self) -> bool:
        """True once `min_size` items have been inserted, whatever was evicted since."""
        return self.inserts >= self.min_size

    @property
    def cursor(self) -> float:
        """inserts * samples_per_insert - samples."""
        return self.inserts * self.samples_per_insert - self.samples

    @property
    def bounds(self) -> tuple[float, float]:
        """Interval the cursor keeps to once started."""
        centre = self.min_size * self.samples_per_insert
        return centre - self.error_buffer, centre + self.error_buffer

    def may_insert(self, n: int = 1) -> bool:
        """True if a block of n inserts may go ahead now; a refusal starts the insert side's waiting time."""
        self._check_block(n, self.insert_block, "insert")
        ok = not self.started or self.cursor + n * self.samples_per_insert <= self.bounds[1]
        return self._note("insert", ok)

    def may_sample(self, n: int = 1) -> bool:
        """True if a block of n draws may go ahead now; a refusal starts the sample side's waiting time."""
        self._check_block(n, self.sample_block, "sample")
        return self._note("sample", self.started and self.cursor - n >= self.bounds[0])

    def inserted(self, n: int = 1) -> None:
        """Record n inserts that were made (a dropped duplicate is none)."""
        self.inserts += n

    def sampled(self, n: int = 1) -> None:
        """Record n draws that were made."""
        self.samples += n

    def blocked_s(self, side: Literal["insert", "sample"]) -> float:
        """Seconds for which this side has been refused, the running refusal included."""
        since = self._blocked_since[side]
        return self._blocked_s[side] + (0.0 if since is None else self._clock() - since)

    def state_dict(self) -> dict[str, float]:
        """Counters and settings as plain numbers; the clock and a running refusal are not part of it."""
        return {
            "inserts": self.inserts,
            "samples": self.samples,
            "samples_per_insert": self.samples_per_insert,
            "error_buffer": self.error_buffer,
            "blocked_insert_s": self._blocked_s["insert"],
            "blocked_sample_s": self._blocked_s["sample"],
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict`; both sides start unblocked."""
        self._set(float(state["samples_per_insert"]), float(state["error_buffer"]))
        self.inserts, self.samples = int(state["inserts"]), int(state["samples"])
        self._blocked_s = {"insert": float(state["blocked_insert_s"]), "sample": float(state["blocked_sample_s"])}
        self._blocked_since = {"insert": None, "sample": None}

    @staticmethod
    def _check_block(n: int, block: int, side: str) -> None:
        if not 1 <= n <= block:
            raise LimiterError(
                f"limiter: {side} block of {n}, but the buffer was sized for 1 to {block}; raise {side}_block"
            )

    def _note(self, side: str, ok: bool) -> bool:
        since = self._blocked_since[side]
        if ok and since is not None:
            self._blocked_s[side] += self._clock() - since
            self._blocked_since[side] = None
        elif not ok and since is None:
            self._blocked_since[side] = self._clock()
        return ok


def smallest_buffer(samples_per_insert: float, insert_block: int, sample_block: int) -> float:
    """Least error buffer with which neither side can wait for ever.

    Both sides are refused only if max - spi * insert_block < cursor < min + sample_block, which needs a width
    2 * buffer < spi * insert_block + sample_block. The larger of the two blocks rules that out, and also keeps the
    block that crosses min_size inside the interval.
    """
    return max(samples_per_insert * insert_block, float(sample_block), 1.0)


class StalenessManager:
    """How much new work actors may start so that no accepted window lags more than `max_lag` learner versions.

    capacity(version) = min(max_running - running, (max_lag + version + 1) * batch - (accepted + running)),
    where `version` counts finished learner versions from 0 and each consumes `batch` accepted windows. With max_lag = 0
    exactly the windows of the version under way may exist: the synchronous algorithm.

    Invariant: submitted == running + accepted + filtered + lost; every number is >= 0. A lost or filtered window gives
    its place back, so a dead actor or a strict gate cannot starve the learner.
    """

    def __init__(self, *, batch: int, max_running: int, max_lag: int) -> None:
        if batch < 1 or max_running < 1 or max_lag < 0:
            raise LimiterError(
                f"staleness: batch {batch}, max_running {max_running} (both at least 1), max_lag {max_lag} (at least 0)"
            )
        self.batch = batch
        self.max_running = max_running
        self.max_lag = max_lag
        self.submitted = 0
        self.running = 0
        self.accepted = 0
        self.filtered = 0
        self.lost = 0

    def capacity(self, version: int) -> int:
        """Windows that may be submitted now, at least 0; version = learner versions finished so far."""
        room = (self.max_lag + version + 1) * self.batch - (self.accepted + self.running)
        return max(0, min(self.max_running - self.running, room))

    def submit(self, n: int, version: int) -> None:
        """Record n windows handed to actors.

        Raises:  LimiterError if n exceeds `capacity(version)`; ask for the capacity first.
        """
        room = self.capacity(version)
        if not 0 <= n <= room:
            raise LimiterError(f"staleness: {n} windows submitted at version {version}, but the capacity is {room}")
        self.submitted += n
        self.running += n

    def settle(self, *, accepted: int = 0, filtered: int = 0, lost: int = 0) -> None:
        """Record how running windows ended: into replay, refused by a gate, or lost with their actor.

        Raises:  LimiterError if more windows end than are running, or a count is negative.
        """
        ended = accepted + filtered + lost
        if min(accepted, filtered, lost) < 0 or ended > self.running:
            raise LimiterError(
                f"staleness: settling {accepted} accepted, {filtered} filtered, {lost} lost with {self.running} "
                "running; each submitted window must be settled once"
            )
        self.running -= ended
        self.accepted += accepted
        self.filtered += filtered
        self.lost += lost

    def state_dict(self) -> dict[str, int]:
        """Counters for a checkpoint."""
        return {
            "submitted": self.submitted,
            "running": self.running,
            "accepted": self.accepted,
            "filtered": self.filtered,
            "lost": self.lost,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict`; what was running when it was written died with its process: it counts as lost."""
        self.submitted = int(state["submitted"])
        self.accepted = int(state["accepted"])
        self.filtered = int(state["filtered"])
        self.lost = int(state["lost"]) + int(state["running"])
        self.running = 0
