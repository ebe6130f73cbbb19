"""Which slots are held, and the rules that pick among them.

Flow:    table -> [selectors: SlotIndex, Selector] -> slots and importance weights -> table.sample
Source:  Prioritized: 1511.05952, eq. 1 and section 3.4; Rank: Prioritized Level Replay, 2010.03934, section 3;
         Uniform, Fifo, Lifo: Reverb's selectors (2102.04736). ADR 0005
Shapes:  C capacity, N held items, K slots written or drawn
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gg_ray.replay.sumtree import F64, I64, SumTree, Where

U64 = NDArray[np.uint64]
SLOT_BITS = 24
"""A key is `sequence << 24 | slot`: unique for ever, ordered by insertion, and its slot is found without a lookup."""
_MAX_TREES = 4


def as_where(slots_K: I64) -> Where:
    """The same slots as a slice if they ascend by one, else unchanged: slices are written without gathers."""
    n = slots_K.size
    if n and slots_K[-1] - slots_K[0] == n - 1 and (n == 1 or bool((slots_K[1:] - slots_K[:-1] == 1).all())):
        return slice(int(slots_K[0]), int(slots_K[0]) + n)
    return slots_K


class AgeLog:
    """Slots in order of insertion. An entry is alive while its slot still carries the key it was logged with.

    Invariant: keys ascend from head to tail; dead entries are skipped, and dropped when they lead or the log is full.
    """

    def __init__(self, key_C: U64) -> None:
        self._key_C = key_C
        self._key = np.zeros(64, dtype=np.uint64)
        self._slot = np.zeros(64, dtype=np.int64)
        self._head = self._tail = 0

    def append(self, keys_K: U64, slots_K: I64) -> None:
        """Log K new items, oldest first."""
        if self._tail + keys_K.size > self._key.size:
            self._compact(keys_K.size)
        end = self._tail + keys_K.size
        self._key[self._tail : end] = keys_K
        self._slot[self._tail : end] = slots_K
        self._tail = end

    def alive(self, expected: int) -> I64:
        """All live slots, oldest first; `expected` is their number, known to the caller. Do not keep or write it."""
        self._trim()
        if self._tail - self._head != expected:
            self._compact(0)
        return self._slot[self._head : self._tail]

    def oldest(self, n: int) -> I64:
        """Up to n live slots, oldest first."""
        self._trim()
        found: list[I64] = []
        at = self._head
        while n > 0 and at < self._tail:
            stop = min(at + max(n, 64), self._tail)
            slots = self._living(at, stop)[:n]
            found.append(slots)
            n, at = n - slots.size, stop
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def newest(self, n: int) -> I64:
        """Up to n live slots, newest first."""
        found: list[I64] = []
        at = self._tail
        while n > 0 and at > self._head:
            start = max(at - max(n, 64), self._head)
            slots = self._living(start, at)[::-1][:n]
            found.append(slots)
            n, at = n - slots.size, start
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _living(self, start: int, stop: int) -> I64:
        slots: I64 = self._slot[start:stop]
        living: I64 = slots[self._key_C[slots] == self._key[start:stop]]
        return living

    def _trim(self) -> None:
        while self._head < self._tail:
            stop = min(self._head + 256, self._tail)
            alive = self._key_C[self._slot[self._head : stop]] == self._key[self._head : stop]
            first = int(alive.argmax())
            if alive[first]:
                self._head += first
                return
            self._head = stop

    def _compact(self, extra: int) -> None:
        window = slice(self._head, self._tail)
        alive = self._key_C[self._slot[window]] == self._key[window]
        keys, slots = self._key[window][alive], self._slot[window][alive]
        size = self._key.size
        while size < 2 * (keys.size + extra):  # at least half free afterwards, so appends stay cheap on average
            size *= 2
        self._key, self._slot = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.int64)
        self._head, self._tail = 0, keys.size
        self._key[: self._tail], self._slot[: self._tail] = keys, slots


class SlotIndex:
    """Everything known about the held items except their payload, in one array per fact.

    Invariant: key[s] != 0 exactly for the N held slots; held lists each of them once; the counts and bytes per
    stratum are those of the held slots; each tree holds priority**alpha of held slots and 0 elsewhere.
    """

    COLUMNS = (
        "key", "priority", "times_sampled", "last_drawn", "step", "version", "stratum", "nbytes", "twin", "twin_key",
    )  # fmt: skip

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity < 1 << SLOT_BITS:
            raise ValueError(f"replay: capacity {capacity}; need 1 to {(1 << SLOT_BITS) - 1} items")
        self.capacity = capacity
        self.key = np.zeros(capacity, dtype=np.uint64)
        self.generation = np.zeros(capacity, dtype=np.uint32)
        self.priority = np.zeros(capacity, dtype=np.float64)
        self.times_sampled = np.zeros(capacity, dtype=np.int64)
        self.last_drawn = np.zeros(capacity, dtype=np.int64)
        self.step = np.zeros(capacity, dtype=np.int64)
        self.version = np.zeros(capacity, dtype=np.int64)
        self.stratum = np.zeros(capacity, dtype=np.int32)
        self.nbytes = np.zeros(capacity, dtype=np.int64)
        self.twin = np.zeros(capacity, dtype=np.int64)
        self.twin_key = np.zeros(capacity, dtype=np.uint64)
        self.clock = 0
        """Number of draws made; PLR staleness is measured in it."""
        self.strata: list[str] = []
        self._stratum_id: dict[str, int] = {}
        self.stratum_items = np.zeros(0, dtype=np.int64)
        self.stratum_bytes = np.zeros(0, dtype=np.int64)
        self.count = 0
        self._held = np.zeros(capacity, dtype=np.int64)
        self._place = np.zeros(capacity, dtype=np.int64)
        self.log = AgeLog(self.key)
        self.queues: list[AgeLog] = []
        self._trees: dict[float, SumTree] = {}
        self._unweighed: list[I64] = []
        """Removed slots whose weight is still in the trees: an insert that evicts writes most of them again at once."""

    @property
    def held(self) -> I64:
        """The N held slots in a fixed but arbitrary order (a view: do not keep it over a change)."""
        return self._held[: self.count]

    def stratum_id(self, name: str) -> int:
        """Number of a stratum; a new name gets the next number."""
        found = self._stratum_id.get(name)
        if found is None:
            found = self._stratum_id[name] = len(self.strata)
            self.strata.append(name)
            self.queues.append(AgeLog(self.key))
            self.stratum_items = np.append(self.stratum_items, 0)
            self.stratum_bytes = np.append(self.stratum_bytes, 0)
        return found

    def add(self, slots_K: I64) -> None:
        """Take K slots, whose columns have been written, into the books; oldest first."""
        n, where = slots_K.size, as_where(slots_K)
        keys = self.key[where]
        self._held[self.count : self.count + n] = slots_K
        self._place[where] = np.arange(self.count, self.count + n)
        self.count += n
        self.log.append(keys, slots_K)
        strata = self.stratum[where]
        if n and bool((strata == strata[0]).all()):
            self._add_to(int(strata[0]), keys, slots_K)
        else:
            for stratum in np.unique(strata).tolist():
                mine = strata == stratum
                self._add_to(stratum, keys[mine], slots_K[mine])
        self._weigh(where)
        self._settle()

    def _add_to(self, stratum: int, keys_K: U64, slots_K: I64) -> None:
        self.queues[stratum].append(keys_K, slots_K)
        self.stratum_items[stratum] += slots_K.size
        self.stratum_bytes[stratum] += self.nbytes[slots_K].sum()

    def remove(self, slots_K: I64) -> None:
        """Take K distinct held slots out of the books; their generation moves on, so that late updates miss them."""
        where = as_where(slots_K)
        count = self.count - slots_K.size
        self.key[where] = 0
        self.generation[where] += np.uint32(1)
        places = self._place[where]
        holes = places[places < count]
        tail = self._held[count : self.count]
        movers = tail[self.key[tail] != 0]
        self._held[holes] = movers
        self._place[movers] = holes
        self.count = count
        strata = self.stratum[where]
        size = len(self.strata)
        self.stratum_items -= np.bincount(strata, minlength=size)
        # float64 sums of whole numbers below 2**53 are exact
        self.stratum_bytes -= np.bincount(strata, weights=self.nbytes[where], minlength=size).astype(np.int64)
        self._unweighed.append(slots_K)

    def set_priorities(self, slots_K: I64, priorities_K: F64) -> None:
        """Write priorities of held slots; of a slot named twice the last one holds."""
        self.priority[slots_K] = priorities_K
        self._weigh(slots_K)

    def tree(self, alpha: float) -> SumTree:
        """Sum-tree of priority**alpha, built on first use and kept up to date from then on."""
        self._settle()
        tree = self._trees.get(alpha)
        if tree is None:
            if len(self._trees) >= _MAX_TREES:
                raise ValueError(f"replay: alpha {alpha} after {sorted(self._trees)}; anneal beta, not alpha")
            tree = self._trees[alpha] = SumTree(self.capacity)
            tree.update(self.held, self.priority[self.held] ** alpha)
        return tree

    def in_stratum(self, stratum: int) -> I64:
        """Held slots of one stratum, oldest first."""
        return self.queues[stratum].alive(int(self.stratum_items[stratum]))

    def twins(self, slots_K: I64) -> I64:
        """Slot of each item's twin, -1 where it has none or the twin is no longer held."""
        twin = self.twin[slots_K]
        return np.where((twin >= 0) & (self.key[twin] == self.twin_key[slots_K]), twin, -1)

    def restore(self, held_N: I64) -> None:
        """Rebuild the books of an empty index from columns that were filled in, with the given order of `held`."""
        self.add(held_N[np.argsort(self.key[held_N])])
        self._held[: self.count] = held_N
        self._place[held_N] = np.arange(self.count)

    def _settle(self) -> None:
        for slots in self._unweighed:
            empty = slots[self.key[slots] == 0]
            if empty.size:
                for tree in self._trees.values():
                    tree.update(as_where(empty), 0.0)
        self._unweighed.clear()

    def _weigh(self, where: Where) -> None:
        for alpha, tree in self._trees.items():
            tree.update(where, self.priority[where] ** alpha)


class Picks(NamedTuple):
    """K slots and their importance weights, at most 1."""

    slots: I64
    weights: F64


class Selector(Protocol):
    """A rule that picks slots. Same index, same generator state: same picks."""

    @property
    def name(self) -> str:
        """Source name given to the items it picks."""

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """Up to n slots of a non-empty index; fewer only where the rule runs out of items."""


def _importance(probability_K: F64, held: int, beta: float) -> F64:
    """(1 / (N P))**beta, scaled to a maximum of 1 within the picks so that updates only shrink (1511.05952, 3.4)."""
    if not probability_K.size:
        return np.empty(0)
    weights: F64 = (held * probability_K) ** -beta
    weights /= weights.max()
    return weights


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every held item alike, with replacement."""

    name: str = "uniform"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """n slots, weight 1."""
        return Picks(index.held[rng.integers(index.count, size=n)], np.ones(n))


@dataclass(frozen=True, slots=True)
class Prioritized:
    """P(i) = p_i**alpha / sum, with replacement; weights (1 / (N P))**beta."""

    alpha: float = 0.6
    beta: float = 0.4
    name: str = "prioritized"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """n slots by prefix sums."""
        tree = index.tree(self.alpha)
        slots = tree.sample(rng.random(n))
        return Picks(slots, _importance(tree.weights(slots) / tree.total, index.count, self.beta))


@dataclass(frozen=True, slots=True)
class Fifo:
    """The oldest items, each once. With `max_times_sampled=1` on the table this is a queue."""

    name: str = "fifo"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """Up to n slots, oldest first; no randomness."""
        slots = index.log.oldest(n)
        return Picks(slots, np.ones(slots.size))


@dataclass(frozen=True, slots=True)
class Lifo:
    """The newest items, each once: the fresh share of a batch."""

    name: str = "fresh"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """Up to n slots, newest first; no randomness."""
        slots = index.log.newest(n)
        return Picks(slots, np.ones(slots.size))


@dataclass(frozen=True, slots=True)
class Rank:
    """PLR: P(i) = (1 - rho) rank_i**(-1/temperature) + rho staleness_i, both normalised to 1; with replacement.

    rank 1 is the highest priority; staleness is the number of draws since the item was last picked (or inserted).
    Sorts all held items on each pick, about 0.1 ms per 1,000: meant for buffers of some 10,000 windows.
    """

    temperature: float = 1.0
    staleness: float = 0.1
    beta: float = 0.4
    name: str = "rank"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """n slots by one cumulative sum."""
        held = index.held
        probability = self.probabilities(index)
        cumulative = np.cumsum(probability)
        mass = np.minimum(rng.random(n) * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
        chosen = np.searchsorted(cumulative, mass, side="right")
        return Picks(held[chosen], _importance(probability[chosen], held.size, self.beta))

    def probabilities(self, index: SlotIndex) -> F64:
        """P of each held slot in the order of `index.held`, [N]."""
        held = index.held
        by_rank = np.arange(1, held.size + 1, dtype=np.float64) ** (-1.0 / self.temperature)
        probability = np.empty(held.size)
        probability[np.argsort(-index.priority[held], kind="stable")] = by_rank * ((1 - self.staleness) / by_rank.sum())
        age = (index.clock - index.last_drawn[held]).astype(np.float64)
        total = age.sum()
        return probability + (self.staleness * age / total if total > 0 else self.staleness / held.size)


@dataclass(frozen=True, slots=True)
class Stratified:
    """An equal share for every non-empty stratum whose name starts with `prefix`; uniform inside, with replacement."""

    prefix: str = ""
    name: str = "stratified"

    def pick(self, index: SlotIndex, n: int, rng: Generator) -> Picks:
        """n slots; shares differ by at most one, which strata get the rest is drawn. None if no stratum matches."""
        matching = [i for i, s in enumerate(index.strata) if index.stratum_items[i] and s.startswith(self.prefix)]
        if not matching:
            return Picks(np.empty(0, dtype=np.int64), np.empty(0))
        share, rest = divmod(n, len(matching))
        quota = np.full(len(matching), share)
        quota[rng.permutation(len(matching))[:rest]] += 1
        parts = []
        for stratum, k in zip(matching, quota.tolist(), strict=True):
            if k:
                slots = index.in_stratum(stratum)
                parts.append(slots[rng.integers(slots.size, size=k)])
        return Picks(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64), np.ones(n))
