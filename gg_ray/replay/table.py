"""The replay table: labelled windows under a byte and an item limit, drawn by a mix of rules.

Flow:    scenario.gates -> limiter -> [table] -> learner.step -> update_priorities -> [table]
Source:  Reverb's table (2102.04736), TorchRL's generation stamps, the buffer trap of Absolute Zero; ADR 0005
Shapes:  K items of one call. Payload lives in a Store (segments), everything else in a SlotIndex (selectors)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gg_ray.records import TYPES, Experience
from gg_ray.replay.segments import BatchT, Store
from gg_ray.replay.selectors import SLOT_BITS, Selector, SlotIndex, Uniform, as_where
from gg_ray.replay.sumtree import F64, I64

PRIORITY_FLOOR = 1e-6
"""Smallest priority held: an item of learnability 0 must stay reachable (1511.05952, section 3.3)."""
BATCH_MEMORY = 65_536
"""Batch ids remembered. A retried insert comes back within seconds, thousands of batches at most."""
SEGMENT_ITEMS = 256
"""Items of one segment of a saved table: what is held twice while a table is saved."""
_SLOT_MASK = (1 << SLOT_BITS) - 1
_COUNTERS = ("inserted", "evicted", "expired", "duplicates", "stale_updates", "sampled")


class ReplayError(ValueError):
    """A call the table cannot serve; the message names the value and the way out."""


@dataclass(frozen=True, slots=True)
class ItemMeta:
    """What the index needs to know of K items."""

    strata: Sequence[str] | str
    """Stratum of each item, or one for all."""
    priorities: F64 | None = None
    """Initial priorities, [K]; None: the highest priority ever seen, so that new items are drawn soon."""
    pairs: I64 | None = None
    """Equal non-negative numbers mark twins inserted together; -1 none, [K]."""
    versions: I64 | None = None
    """Verifier version that scored each item, [K]."""


Describe = Callable[[Any], ItemMeta]


def describe_experiences(items: Sequence[Experience]) -> ItemMeta:
    """Stratum source/case/family (or disturbance, normal), priority = learnability, pair and version of experiences."""
    return ItemMeta(
        strata=[f"{i.source}/{i.case}/{_kind(i)}" for i in items],
        priorities=np.array([i.learnability for i in items], dtype=np.float64),
        pairs=np.array([i.pair for i in items], dtype=np.int64),
        versions=np.array([i.version for i in items], dtype=np.int64),
    )


def _kind(item: Experience) -> str:
    if item.labels.type:
        return TYPES[item.labels.type]
    return "disturbance" if item.labels.disturbance else "normal"


@dataclass(frozen=True, slots=True)
class Sample(Generic[BatchT]):
    """One drawn batch: keys and generations go back to `update_priorities`; sources name the rule of each item."""

    items: BatchT
    keys: NDArray[np.uint64]
    generations: NDArray[np.uint32]
    weights: F64
    sources: list[str]


class ReplayTable(Generic[BatchT]):
    """Items under a byte limit and an item limit (the store's capacity), drawn by any mix of selectors.

    Invariant: inserted == held + evicted + expired; used_bytes <= limit_bytes and held <= capacity after every call;
    the root of each sum-tree == sum of held priority**alpha; a repeated batch id changes nothing.
    Eviction takes the oldest items, and the twin of each with it: a full table always takes in the new, never keeps the
    oldest (the buffer trap of Absolute Zero's code), and what it holds is mixed as what came in. The mix is the
    scheduler's to choose: a table that levels its strata turns quotas upside down (docs/adr/0005-own-replay.md).
    One thread at a time: the actor around it serialises calls. No call holds random state.
    """

    def __init__(
        self, store: Store[BatchT], *, limit_bytes: int, describe: Describe, max_times_sampled: int = 0
    ) -> None:
        """
        Args:    store  payload slots, its capacity is the item limit;  limit_bytes  payload bytes held at most;
                 describe  items -> ItemMeta;  max_times_sampled  draws after which an item expires, 0 for never
        """
        if limit_bytes < 1 or max_times_sampled < 0:
            raise ReplayError(
                f"replay: limit_bytes {limit_bytes} must be positive, max_times_sampled {max_times_sampled} at least 0"
            )
        self.limit_bytes = limit_bytes
        self.max_times_sampled = max_times_sampled
        self.used_bytes = 0
        self.inserted = self.evicted = self.expired = self.duplicates = self.stale_updates = self.sampled = 0
        self._store = store
        self._describe = describe
        self._index = SlotIndex(store.capacity)
        self._free = np.zeros(store.capacity, dtype=np.int64)
        self._free_count = 0
        self._fresh = 0
        """First slot that was never used: slots from here on are free too."""
        self._sequence = 1
        self._last_step = 0
        self._top_priority = 1.0
        self._batch_ids: dict[int, None] = {}

    def __len__(self) -> int:
        return self._index.count

    @property
    def index(self) -> SlotIndex:
        """Books of the held items, for selectors, checks and plots: read only."""
        return self._index

    # -------------------------------------------------------------------------------------------- writing

    def insert(self, items: BatchT, *, step: int, batch_id: int | None = None) -> list[int]:
        """Take K items in, evicting as needed; all of them or, on an error, none.

        Args:    items  what the store holds (experiences, or a dict of columns);  step  learner step, the age is
                 measured from it;  batch_id  non-negative id of the call: a retry with the same id is dropped
        Returns: keys of the new items; empty for a dropped retry.
        Raises:  ReplayError if the block alone exceeds a limit or a priority is negative or not finite.
        """
        sizes = self._store.sizes(items)
        n, total = sizes.size, int(sizes.sum())
        if batch_id is not None:
            if not 0 <= batch_id < 1 << 63:
                raise ReplayError(f"replay: batch_id {batch_id}; need 0 <= batch_id < 2**63")
            if batch_id in self._batch_ids:
                self.duplicates += n
                return []
        if n > self._index.capacity or total > self.limit_bytes:
            raise ReplayError(
                f"replay: a block of {n} items, {total} bytes exceeds the limits of {self._index.capacity} items, "
                f"{self.limit_bytes} bytes; insert smaller blocks or raise replay.limit_bytes and replay.max_items"
            )
        keys: list[int] = []
        if n:
            meta = self._describe(items)
            given = np.full(n, self._top_priority) if meta.priorities is None else meta.priorities
            priorities = self._checked(given, n)
            owned = self._store.own(items)
            self._make_room(n, total)
            keys = self._write(owned, sizes, meta, priorities, step)
        if batch_id is not None:
            self._batch_ids[batch_id] = None
            if len(self._batch_ids) > BATCH_MEMORY:
                del self._batch_ids[next(iter(self._batch_ids))]
        return keys

    def _write(self, items: BatchT, sizes: I64, meta: ItemMeta, priorities: F64, step: int) -> list[int]:
        n, index = sizes.size, self._index
        slots = self._allocate(n)
        where = as_where(slots)
        sequence = np.arange(self._sequence, self._sequence + n, dtype=np.uint64)
        keys = (sequence << np.uint64(SLOT_BITS)) | slots.astype(np.uint64)
        self._store.put(where, items)
        index.key[where] = keys
        index.priority[where] = priorities
        index.times_sampled[where] = 0
        index.last_drawn[where] = index.clock
        index.step[where] = step
        index.version[where] = 0 if meta.versions is None else meta.versions
        index.nbytes[where] = sizes
        if isinstance(meta.strata, str):
            index.stratum[where] = index.stratum_id(meta.strata)
        else:
            index.stratum[where] = np.fromiter(map(index.stratum_id, meta.strata), dtype=np.int32, count=n)
        twin = np.full(n, -1) if meta.pairs is None else twins_of(meta.pairs)
        index.twin[where] = np.where(twin >= 0, slots[twin], -1)
        index.twin_key[where] = np.where(twin >= 0, keys[twin], 0)
        index.add(slots)
        self.used_bytes += int(sizes.sum())
        self.inserted += n
        self._sequence += n
        self._last_step = max(self._last_step, step)
        self._top_priority = max(self._top_priority, float(priorities.max()))
        result: list[int] = keys.tolist()
        return result

    def update_priorities(self, keys: NDArray[np.uint64], generations: NDArray[np.uint32], priorities: F64) -> int:
        """Overwrite priorities after a learner step; updates of items no longer held are counted and skipped.

        Returns: number of updates applied.        Raises:  ReplayError for negative or non-finite priorities.
        """
        keys = np.asarray(keys, dtype=np.uint64)
        values = self._checked(priorities, keys.size)
        slots = (keys & np.uint64(_SLOT_MASK)).astype(np.int64)
        inside = slots < self._index.capacity
        at = np.where(inside, slots, 0)
        valid = inside & (self._index.key[at] == keys) & (self._index.generation[at] == generations)
        applied = int(valid.sum())
        self.stale_updates += keys.size - applied
        if applied:
            self._index.set_priorities(slots[valid], values[valid])
            self._top_priority = max(self._top_priority, float(values[valid].max()))
        return applied

    @staticmethod
    def _checked(priorities: F64, n: int) -> F64:
        values = np.asarray(priorities, dtype=np.float64)
        if values.shape != (n,) or not (n == 0 or (values.min() >= 0.0 and values.max() < np.inf)):
            raise ReplayError(f"replay: priorities {values.shape} for {n} items; need one finite number >= 0 for each")
        return np.maximum(values, PRIORITY_FLOOR)

    # -------------------------------------------------------------------------------------------- reading

    def sample(
        self, batch: int, rng: Generator, mix: Sequence[tuple[Selector, float]], *, with_twins: bool = False
    ) -> Sample[BatchT]:
        """Draw `batch` items: each selector its share, in the order of the mix.

        A selector that runs out of items (Fifo, Lifo, Stratified without a matching stratum) is topped up uniformly,
        and those items carry the source "uniform". With `with_twins` each drawn item is followed by its twin if that
        is held; twins count towards the share and carry the weight and the source of the item that brought them. Either
        of the two may bring the pair, so half of such draws are skipped: a pair comes as often as a single item.

        Raises:  ReplayError if the table is empty or the shares are not positive.
        """
        if not self._index.count:
            raise ReplayError("replay: nothing to sample, the table is empty; wait for limiter.may_sample")
        slot_parts, weight_parts, sources = [], [], []
        top_up = Uniform()
        for (selector, _), n in zip(mix, shares_of(batch, [share for _, share in mix]), strict=True):
            rule: Selector = selector
            while n > 0:
                if with_twins:
                    slots, weights = self._join_twins(*rule.pick(self._index, 2 * n, rng), n, rng)
                else:
                    slots, weights = rule.pick(self._index, n, rng)
                slot_parts.append(slots)
                weight_parts.append(weights)
                sources += [rule.name] * slots.size
                n -= slots.size
                rule = top_up
        slots = np.concatenate(slot_parts)
        keys, generations = self._index.key[slots], self._index.generation[slots]
        items = self._store.get(slots)
        self._note_drawn(slots)
        return Sample(items, keys, generations, np.concatenate(weight_parts), sources)

    def _join_twins(self, slots: I64, weights: F64, n: int, rng: Generator) -> tuple[I64, F64]:
        """The first n of these slots and their twins, without every second draw of a pair."""
        twins = self._index.twins(slots)
        taken = (twins < 0) | (rng.random(slots.size) < 0.5)
        both = np.stack([slots[taken], twins[taken]], axis=1).ravel()
        keep = np.flatnonzero(both >= 0)[:n]
        return both[keep], np.repeat(weights[taken], 2)[keep]

    def _note_drawn(self, slots: I64) -> None:
        index = self._index
        index.clock += 1
        np.add.at(index.times_sampled, slots, 1)
        index.last_drawn[slots] = index.clock
        self.sampled += slots.size
        if self.max_times_sampled:
            worn = np.unique(slots[index.times_sampled[slots] >= self.max_times_sampled])
            if worn.size:
                self._remove(worn)
                self.expired += worn.size

    def stats(self) -> dict[str, Any]:
        """Counters and gauges for metrics; ages in learner steps, see docs/metrics.md."""
        index = self._index
        held = index.held
        ages = self._last_step - index.step[held]
        quantiles = np.quantile(ages, (0.5, 0.95, 1.0)).tolist() if held.size else [0.0, 0.0, 0.0]
        return {
            "items": index.count,
            "bytes": self.used_bytes,
            **{name: getattr(self, name) for name in _COUNTERS},
            "samples_per_insert": self.sampled / self.inserted if self.inserted else 0.0,
            "age_p50_steps": quantiles[0],
            "age_p95_steps": quantiles[1],
            "age_max_steps": quantiles[2],
            "strata": {s: int(k) for s, k in zip(index.strata, index.stratum_items, strict=True) if k},
        }

    # -------------------------------------------------------------------------------------------- slots

    def _allocate(self, n: int) -> I64:
        """n free slots: freed ones first, in the order they were freed, so blocks stay contiguous in a full table."""
        reused = min(n, self._free_count)
        fresh = n - reused
        slots = np.concatenate(
            [self._free[self._free_count - reused : self._free_count], np.arange(self._fresh, self._fresh + fresh)]
        )
        self._free_count -= reused
        self._fresh += fresh
        return slots

    def _make_room(self, n: int, total: int) -> None:
        short = self._index.count + n - self._index.capacity
        if short > 0:
            self._evict(self._with_twins(self._index.log.oldest(short)))
        while (need := self.used_bytes + total - self.limit_bytes) > 0:
            slots = self._index.log.oldest(256)
            reach = np.searchsorted(np.cumsum(self._index.nbytes[slots]), need) + 1
            self._evict(self._with_twins(slots[:reach]))

    def _with_twins(self, slots: I64) -> I64:
        """The slots and those of their twins that are held."""
        twins = self._index.twins(slots)
        return np.unique(np.concatenate([slots, twins[twins >= 0]]))

    def clear(self) -> None:
        """Evict every item; counters and keys go on."""
        self._evict(self._index.held.copy())

    def _evict(self, slots: I64) -> None:
        self._remove(slots)
        self.evicted += slots.size

    def _remove(self, slots: I64) -> None:
        self.used_bytes -= int(self._index.nbytes[slots].sum())
        self._index.remove(slots)
        self._store.drop(slots)
        self._free[self._free_count : self._free_count + slots.size] = slots
        self._free_count += slots.size

    # -------------------------------------------------------------------------------------------- checkpoint

    def state_dict(self, tail: int = 0) -> dict[str, Any]:
        """Everything needed to continue: the books of `snapshot` and, under "payload", the list of its segments."""
        books, segments = self.snapshot(tail)
        return {**books, "payload": list(segments)}

    def snapshot(self, tail: int = 0) -> tuple[dict[str, NDArray[Any]], Iterator[bytes]]:
        """The books as plain arrays, and the payload as checked Arrow segments that are made one at a time.

        Whoever takes segment after segment never holds the contents a second time; the table must not change meanwhile.

        Args:    tail  save only the newest `tail` items, the rest counts as evicted in the saved state; 0 saves all and
                 continues bit for bit (same slots, same order, so the same draws from the same generator)
        """
        index = self._index
        held = index.held.copy()
        free = self._free[: self._free_count]
        evicted = self.evicted
        if 0 < tail < held.size:
            keep = np.zeros(index.capacity, dtype=bool)
            keep[index.log.newest(tail)] = True
            free = np.concatenate([free, held[~keep[held]]])
            evicted += held.size - tail
            held = held[keep[held]]
        counters = {**{name: getattr(self, name) for name in _COUNTERS}, "evicted": evicted}
        cursors = [self._fresh, self._sequence, self._last_step, index.clock, index.capacity]
        books = {
            **{f"index.{name}": getattr(index, name)[held] for name in SlotIndex.COLUMNS},
            "held": held,
            "generation": index.generation[: self._fresh].copy(),
            "free": free.copy(),
            "strata": np.frombuffer(json.dumps(index.strata).encode(), dtype=np.uint8).copy(),
            "counters": np.array([*counters.values(), *cursors], dtype=np.int64),
            "top_priority": np.array([self._top_priority]),
            "batch_ids": np.fromiter(self._batch_ids, dtype=np.int64, count=len(self._batch_ids)),
        }
        return books, (self._store.dump(part) for part in _parts(held))

    def load_state_dict(self, state: dict[str, Any], name: str = "replay state") -> None:
        """Replace the contents by a saved state. The table is left as it was if the state does not fit.

        Raises:  SegmentError for a damaged payload; ReplayError for another capacity or a state over the byte limit.
        """
        *counters, fresh, sequence, last_step, clock, capacity = state["counters"].tolist()
        held, size = state["held"], int(state["index.nbytes"].sum())
        if capacity != self._index.capacity or size > self.limit_bytes:
            raise ReplayError(
                f"{name}: {size} bytes in a table of {capacity} items; this one holds {self.limit_bytes} bytes, "
                f"{self._index.capacity} items; set replay.max_items and replay.limit_bytes as in the saved run"
            )
        parts, items = _parts(held), [self._store.parse(segment, name) for segment in state["payload"]]
        if [self._store.sizes(part).size for part in items] != [part.size for part in parts]:
            raise ReplayError(f"{name}: payload and index differ in length; restore an older checkpoint")
        self._store.drop(self._index.held.copy())
        index = self._index = SlotIndex(capacity)
        for stratum in json.loads(state["strata"].tobytes()):
            index.stratum_id(stratum)
        for column in SlotIndex.COLUMNS:
            getattr(index, column)[held] = state[f"index.{column}"]
        index.generation[:fresh] = state["generation"]
        index.clock = clock
        index.restore(held)
        for slots, part in zip(parts, items, strict=True):
            self._store.put(slots, part)
        for counter, value in zip(_COUNTERS, counters, strict=True):
            setattr(self, counter, value)
        self._fresh, self._sequence, self._last_step = fresh, sequence, last_step
        self._free_count = state["free"].size
        self._free[: self._free_count] = state["free"]
        self._top_priority = float(state["top_priority"][0])
        self._batch_ids = dict.fromkeys(state["batch_ids"].tolist())
        self.used_bytes = size


def _parts(slots: I64) -> list[I64]:
    """Slots in the portions that one segment holds."""
    return [slots[start : start + SEGMENT_ITEMS] for start in range(0, slots.size, SEGMENT_ITEMS)]


def twins_of(pairs_K: I64) -> I64:
    """Position of each item's twin: the next item with the same non-negative pair number, round in a ring; -1 alone."""
    n = pairs_K.size
    twin = np.full(n, -1, dtype=np.int64)
    order = np.argsort(pairs_K, kind="stable")
    ranked = pairs_K[order]
    same = (ranked[1:] == ranked[:-1]) & (ranked[1:] >= 0)
    twin[order[:-1][same]] = order[1:][same]
    first = np.append(True, ~same)
    start = np.maximum.accumulate(np.where(first, np.arange(n), 0))
    closing = np.append(~same, True) & ~first
    twin[order[closing]] = order[start[closing]]
    return twin


def shares_of(batch: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `batch` in proportion to the shares (largest remainder, ties: the first)."""
    total = sum(shares)
    if not shares or min(shares) < 0 or not 0 < total < float("inf"):
        raise ReplayError(f"replay: shares {list(shares)}; need at least one selector with a positive share")
    exact = np.array(shares, dtype=np.float64) * (batch / total)
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: batch - int(counts.sum())]] += 1
    result: list[int] = counts.tolist()
    return result
