"""Replay table: books balance after any history, the newest survive, a saved table continues bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.replay.segments import ColumnStore, ObjectStore, SegmentError
from gg_ray.replay.selectors import Fifo, Lifo, Prioritized, Rank, Selector, Stratified, Uniform
from gg_ray.replay.table import ItemMeta, ReplayError, ReplayTable, shares_of, twins_of

MIX: list[tuple[Selector, float]] = [
    (Lifo(), 0.4), (Rank(), 0.2), (Uniform(), 0.2), (Prioritized(), 0.1), (Stratified(), 0.1),
]  # fmt: skip


@dataclass(frozen=True)
class Item:
    number: int
    nbytes: int = 10
    stratum: str = "a"
    priority: float = 1.0
    pair: int = -1


def describe(items: Sequence[Item]) -> ItemMeta:
    return ItemMeta(
        strata=[i.stratum for i in items],
        priorities=np.array([i.priority for i in items]),
        pairs=np.array([i.pair for i in items]),
    )


def table_of(capacity: int = 16, limit_bytes: int = 10_000, max_times_sampled: int = 0) -> ReplayTable[Sequence[Item]]:
    store: ObjectStore[Item] = ObjectStore(
        capacity,
        copy_item=lambda item: replace(item),
        encode=lambda items: json.dumps([vars(i) for i in items]).encode(),
        decode=lambda data, name: [Item(**fields) for fields in json.loads(data)],
    )
    return ReplayTable(store, limit_bytes=limit_bytes, describe=describe, max_times_sampled=max_times_sampled)


def held_items(table: ReplayTable[Sequence[Item]]) -> list[Item]:
    index = table.index
    return list(table._store.get(index.log.alive(index.count)))


ITEM = st.builds(
    Item,
    number=st.just(0),
    nbytes=st.integers(1, 60),
    stratum=st.sampled_from(["a", "b", "c"]),
    priority=st.floats(0, 10),
    pair=st.sampled_from([-1, -1, 0, 1]),
)
MOVE = st.one_of(
    st.tuples(st.just("insert"), st.lists(ITEM, min_size=0, max_size=9)),
    st.tuples(st.just("retry"), st.none()),
    st.tuples(st.just("sample"), st.integers(1, 12)),
    st.tuples(st.just("update"), st.integers(0, 100)),
    st.tuples(st.just("reload"), st.sampled_from([0, 3])),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(9, 14), st.integers(540, 700), st.sampled_from([0, 0, 3]), st.lists(MOVE, max_size=25))
def test_books_balance_after_any_history(
    capacity: int, limit_bytes: int, max_times: int, moves: list[tuple[str, Any]]
) -> None:
    table = table_of(capacity, limit_bytes, max_times)
    rng = np.random.default_rng(0)
    number, batch_id, drawn = 0, 0, []
    for step, (move, value) in enumerate(moves):
        if move == "insert":
            items = [replace(item, number=number + i) for i, item in enumerate(value)]
            number, batch_id = number + len(items), batch_id + 1
            keys = table.insert(items, step=step, batch_id=batch_id)
            assert len(keys) == len(items) == len(set(keys))
            survivors = {i.number for i in held_items(table)}
            assert {i.number for i in items} <= survivors  # the new always gets in
        elif move == "retry" and batch_id:
            before = (table.inserted, len(table), table.duplicates)
            assert table.insert([Item(-1)], step=step, batch_id=batch_id) == []
            assert (table.inserted, len(table), table.duplicates) == (before[0], before[1], before[2] + 1)
        elif move == "sample" and len(table):
            sample = table.sample(value, rng, MIX, with_twins=bool(value % 2))
            assert len(sample.items) == value == len(sample.sources) == sample.weights.size
            drawn.append(sample)
        elif move == "update" and drawn:
            sample = drawn[value % len(drawn)]
            late = table.stale_updates
            live = {int(k) for k in table.index.key[table.index.held]}
            applied = table.update_priorities(sample.keys, sample.generations, rng.random(sample.keys.size) * 5)
            assert applied == sum(int(k) in live for k in sample.keys)
            assert table.stale_updates - late == sample.keys.size - applied
        elif move == "reload":
            saved = table.state_dict(tail=value)
            table.load_state_dict(saved)
        check(table)


def check(table: ReplayTable[Sequence[Item]]) -> None:
    index, held = table.index, held_items(table)
    assert table.inserted == len(held) + table.evicted + table.expired
    assert table.used_bytes == sum(i.nbytes for i in held) <= table.limit_bytes
    assert len(table) == len(held) <= index.capacity
    assert sorted(index.held.tolist()) == sorted(np.flatnonzero(index.key).tolist())
    assert [i.number for i in held] == sorted(i.number for i in held)
    if held:
        assert index.tree(0.6).total == pytest.approx((index.priority[index.held] ** 0.6).sum(), rel=1e-12)
    for stratum, name in enumerate(index.strata):
        mine = [i for i in held if i.stratum == name]
        assert index.stratum_items[stratum] == len(mine)
        assert index.stratum_bytes[stratum] == sum(i.nbytes for i in mine)
    free = set(table._free[: table._free_count].tolist()) | set(range(table._fresh, index.capacity))
    assert free == set(range(index.capacity)) - set(index.held.tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3), min_size=4, max_size=40))
def test_the_newest_survive_and_twins_leave_together(blocks: list[list[int]]) -> None:
    """Guards the buffer trap: a full buffer that keeps the oldest serves an old tail for ever. And no orphans: an
    anomalous window without its benign twin teaches that its context is implausible."""
    table = table_of(capacity=8)
    model: list[Item] = []
    number = 0
    for block in blocks:
        items = [Item(number + 9 * i + k, pair=i if size == 2 else -1) for i, size in enumerate(block)
                 for k in range(size)]  # fmt: skip
        number += 100
        while len(model) + len(items) > 8:
            first = model.pop(0)
            model = [
                i for i in model if first.pair < 0 or i.pair != first.pair or i.number // 100 != first.number // 100
            ]
        model += items
        table.insert(items, step=0)
        assert held_items(table) == model


def test_byte_pressure_keeps_the_mix_of_what_came_in() -> None:
    """Strata of large grids have the most bytes: levelling them left twins and benign windows of gb29 out of replay."""
    table = table_of(capacity=10_000, limit_bytes=10_000)
    rng, number, came = np.random.default_rng(0), 0, {"anomalous/large": 0, "benign/large": 0, "benign/small": 0}
    for step in range(400):
        block = [Item(number + i, nbytes=60 if "large" in s else 10, stratum=s)
                 for i, s in enumerate(rng.choice(list(came), size=8, p=[0.2, 0.5, 0.3]))]  # fmt: skip
        number += 8
        table.insert(block, step=step)
    held = held_items(table)
    assert table.used_bytes > 9_400
    share = {s: sum(i.stratum == s for i in held) / len(held) for s in came}
    assert share == pytest.approx({"anomalous/large": 0.2, "benign/large": 0.5, "benign/small": 0.3}, abs=0.08)


def test_twins_are_drawn_together_while_both_are_held() -> None:
    table = table_of()
    table.insert([Item(0, pair=7), Item(1), Item(2, pair=7), Item(3, pair=9)], step=0)
    sample = table.sample(40, np.random.default_rng(0), [(Uniform(), 1.0)], with_twins=True)
    numbers = [i.number for i in sample.items]
    assert len(numbers) == 40
    at = 0
    while at < 39:
        if numbers[at] in (0, 2):
            assert {numbers[at], numbers[at + 1]} == {0, 2}
            assert sample.weights[at] == sample.weights[at + 1]
            at += 1
        at += 1
    table.insert([Item(10 + i) for i in range(13)], step=1)  # evicts item 0, and its twin with it
    assert [i.number for i in held_items(table)][:2] == [1, 3]
    sample = table.sample(60, np.random.default_rng(0), [(Uniform(), 1.0)], with_twins=True)
    assert not {0, 2} & {i.number for i in sample.items}


def test_a_pair_comes_as_often_as_a_single_item() -> None:
    """Either twin may bring the pair: unthinned, batches were 40 % anomalies and 20 % benign windows without a twin,
    where the scheduler's quotas make both a third."""
    table = table_of(capacity=60)
    table.insert([Item(i, pair=i // 2 if i < 40 else -1) for i in range(60)], step=0)  # 20 pairs, 20 singles
    sample = table.sample(9_000, np.random.default_rng(0), [(Uniform(), 1.0)], with_twins=True)
    counts = np.bincount([i.number for i in sample.items], minlength=60)
    assert counts[:40].sum() / 9_000 == pytest.approx(2 / 3, abs=0.02)
    np.testing.assert_allclose(counts, 150, rtol=0.3)


def test_late_update_of_a_reused_slot_is_counted_not_applied() -> None:
    table = table_of(capacity=2)
    table.insert([Item(0), Item(1)], step=0)
    old = table.sample(2, np.random.default_rng(0), [(Fifo(), 1.0)])
    table.insert([Item(2)], step=1)
    before = table.index.priority[table.index.log.newest(1)].item()
    assert table.update_priorities(old.keys, old.generations, np.array([50.0, 60.0])) == 1
    assert table.stale_updates == 1
    slot = table.index.log.newest(1)
    assert table.index.generation[slot].item() == old.generations[0] + 1  # the slot of item 0, one generation on
    assert table.index.priority[table.index.log.newest(1)].item() == before
    assert table.update_priorities(old.keys[1:], old.generations[1:] + 1, np.array([1.0])) == 0


def test_mix_shares_sources_and_top_up() -> None:
    table = table_of()
    table.insert([Item(i) for i in range(5)], step=0)
    sample = table.sample(10, np.random.default_rng(0), [(Lifo(), 0.8), (Stratified(prefix="none"), 0.2)])
    assert sample.sources == ["fresh"] * 5 + ["uniform"] * 5
    assert [i.number for i in sample.items[:5]] == [4, 3, 2, 1, 0]


def test_items_expire_after_max_times_sampled() -> None:
    table = table_of(max_times_sampled=1)
    table.insert([Item(i) for i in range(5)], step=0)
    rng = np.random.default_rng(0)
    queue: list[tuple[Selector, float]] = [(Fifo(), 1.0)]
    assert [i.number for i in table.sample(3, rng, queue).items] == [0, 1, 2]
    assert [i.number for i in table.sample(2, rng, queue).items] == [3, 4]
    assert len(table) == 0
    assert table.expired == 5
    with pytest.raises(ReplayError, match="empty"):
        table.sample(1, rng, queue)


def test_rejected_inserts_change_nothing() -> None:
    table = table_of(capacity=4, limit_bytes=100)
    table.insert([Item(0)], step=0, batch_id=1)
    for items, reason in (
        ([Item(i, nbytes=1) for i in range(5)], "exceeds the limits"),
        ([Item(1, nbytes=101)], "exceeds the limits"),
        ([Item(1, priority=float("nan"))], "priorities"),
        ([Item(1, priority=-1.0)], "priorities"),
    ):
        with pytest.raises(ReplayError, match=reason):
            table.insert(items, step=0, batch_id=2)
    assert held_items(table) == [Item(0)]
    assert table.duplicates == 0
    assert len(table.insert([Item(1)], step=0, batch_id=2)) == 1  # the failed id is free for the corrected call


def play(table: ReplayTable[Sequence[Item]], rng: np.random.Generator, start: int, steps: int) -> list[list[int]]:
    drawn = []
    for step in range(start, start + steps):
        block = [
            Item(step * 10 + i, nbytes=10 + step % 7, stratum="abc"[(step * i) % 3], priority=0.1 + i, pair=i // 2)
            for i in range(1 + step % 6)
        ]
        table.insert(block, step=step, batch_id=step)
        sample = table.sample(9, rng, MIX, with_twins=step % 2 == 0)
        table.update_priorities(sample.keys, sample.generations, rng.random(9))
        drawn.append([i.number for i in sample.items])
    return drawn


@pytest.mark.parametrize("max_times", [0, 6])
def test_saved_table_continues_bit_for_bit(max_times: int) -> None:
    straight = table_of(20, 300, max_times)
    play(straight, np.random.default_rng(1), 0, 40)
    resumed = table_of(20, 300, max_times)
    resumed.load_state_dict(straight.state_dict())
    assert play(straight, np.random.default_rng(2), 40, 40) == play(resumed, np.random.default_rng(2), 40, 40)
    assert straight.stats() == resumed.stats()
    assert resumed.insert([Item(1)], step=99, batch_id=5) == []  # remembered over the restart


def test_tail_keeps_the_newest_and_balances() -> None:
    table = table_of(20)
    play(table, np.random.default_rng(1), 0, 30)
    newest = [i.number for i in held_items(table)][-6:]
    other = table_of(20)
    other.load_state_dict(table.state_dict(tail=6))
    assert [i.number for i in held_items(other)] == newest
    check(other)
    assert len(table) == 20  # saving changes nothing


def test_column_table_round_trip_and_damage() -> None:
    def new() -> ReplayTable[Any]:
        store = ColumnStore(1000, {"x": ((4,), np.float32), "n": ((), np.int64)})
        return ReplayTable(store, limit_bytes=10**6, describe=lambda block: ItemMeta(strata="all"))

    table, rng = new(), np.random.default_rng(0)
    for i in range(30):
        numbers = np.arange(i * 64, (i + 1) * 64)
        table.insert({"x": np.repeat(numbers, 4).reshape(64, 4).astype(np.float32), "n": numbers}, step=i)
        sample = table.sample(32, rng, [(Prioritized(), 1.0)])
        assert (sample.items["x"] == sample.items["n"][:, None]).all()  # rows stay together
        table.update_priorities(sample.keys, sample.generations, rng.random(32) + 0.1)
    newest = table._store.get(table.index.log.newest(1000))["n"]
    assert newest.tolist() == list(range(1919, 919, -1))
    other, state = new(), table.state_dict()
    other.load_state_dict(state)
    a, b = (t.sample(64, np.random.default_rng(3), [(Prioritized(), 0.5), (Rank(), 0.5)]) for t in (table, other))
    np.testing.assert_array_equal(a.items["n"], b.items["n"])
    np.testing.assert_array_equal(a.keys, b.keys)
    bad = {**state, "payload": list(state["payload"])}
    last = bytearray(bad["payload"][-1])
    last[500] ^= 1
    bad["payload"][-1] = bytes(last)
    with pytest.raises(SegmentError, match="step-9"):
        other.load_state_dict(bad, "step-9")
    assert len(other) == 1000  # still usable
    small = ReplayTable(ColumnStore(10, {"n": ((), np.int64)}), limit_bytes=10, describe=lambda b: ItemMeta("all"))
    with pytest.raises(ReplayError, match="max_items"):
        small.load_state_dict(state)


def test_stats() -> None:
    table = table_of(4)
    table.insert([Item(i, stratum="ab"[i % 2]) for i in range(4)], step=10)
    table.insert([Item(9)], step=14)
    table.sample(10, np.random.default_rng(0), [(Uniform(), 1.0)])
    stats = table.stats()
    assert stats["items"] == 4
    assert stats["bytes"] == 40
    assert stats["evicted"] == 1
    assert stats["sampled"] == 10
    assert stats["samples_per_insert"] == 2.0
    assert stats["age_max_steps"] == 4.0
    assert stats["strata"] == {"a": 2, "b": 2}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda s: sum(s) > 1e-3))
def test_shares_add_up_and_stay_within_one(batch: int, shares: list[float]) -> None:
    counts = shares_of(batch, shares)
    assert sum(counts) == batch
    assert all(abs(c - batch * s / sum(shares)) < 1 + 1e-9 for c, s in zip(counts, shares, strict=True))


def test_twins_of_groups() -> None:
    assert twins_of(np.array([5, -1, 5, 2, -1, 8, 8, 8])).tolist() == [2, -1, 0, -1, -1, 6, 7, 5]
