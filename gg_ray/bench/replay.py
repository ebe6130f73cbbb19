"""Replay benchmark: the table as training uses it, beside memcpy and cpprb, on the same items in the same process.

Flow:    cli bench replay -> [bench.replay] -> one dict of numbers
Source:  live.md, section 3 (targets). Blocks of 256 items of 1 KiB, one thread, tables full (every insert evicts);
         rates are items per wall second, cpu_ rates per CPU second of this process, both the median of RUNS runs;
         ratios compare CPU rates, because other work on the machine hits the two sides of a ratio at different times
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gg_ray.replay.segments import ColumnStore
from gg_ray.replay.selectors import Prioritized, Selector
from gg_ray.replay.table import ItemMeta, ReplayTable

BLOCK = 256
CAPACITY = 65_536
RUNS = 5
REPEATS = 200
"""Blocks per run."""
_COLUMNS: dict[str, tuple[tuple[int, ...], type]] = {
    "x": ((240,), np.float32),
    "y": ((15,), np.float32),
    "label": ((1,), np.int32),
}
"""960 + 60 + 4 bytes = 1 KiB."""
_LARGE: dict[str, tuple[tuple[int, ...], type]] = {"x": ((16_384,), np.float32)}
"""64 KiB."""
Block = dict[str, NDArray[Any]]


def run(seed: int = 0) -> dict[str, Any]:
    """Rates per second, times in CPU ms; about 5 s. `notes` says which rival could not be imported."""
    rng = np.random.default_rng(seed)
    blocks = [_block(_COLUMNS, rng) for _ in range(8)]
    priorities = [rng.random(BLOCK) for _ in blocks]
    table = _table(_COLUMNS, CAPACITY)
    mix: list[tuple[Selector, float]] = [(Prioritized(), 1.0)]
    table.insert(blocks[0], step=0)
    table.sample(BLOCK, rng, mix)  # first use builds the sum-tree: inserts must pay for keeping it
    for i in range(CAPACITY // BLOCK):
        table.insert(blocks[i % 8], step=i)
    calls: dict[str, Callable[[int], object]] = {
        "insert": lambda i: table.insert(blocks[i % 8], step=i),
        "sample": lambda i: table.sample(BLOCK, rng, mix),
    }
    out = _rates(calls)
    drawn = table.sample(BLOCK, rng, mix)  # after the inserts, or every update would be stale
    out |= _rates({"update": lambda i: table.update_priorities(drawn.keys, drawn.generations, priorities[i % 8])})
    out["sample256_p99_ms"] = _p99_ms(calls["sample"])
    out["memcpy_per_s"], cpu_memcpy = _rate(_memcpy(_COLUMNS, CAPACITY, blocks))
    out["ratio_insert_to_memcpy"] = out["cpu_insert_per_s"] / cpu_memcpy
    out["ratio_insert_to_memcpy_64k"] = _large_ratio(rng)
    out["checkpoint_ms"], out["restore_ms"] = _checkpoint_ms(table)
    out["rivals"], out["notes"] = _rivals(blocks, priorities)
    for rival, rates in out["rivals"].items():
        for name in ("insert", "sample"):
            out[f"ratio_{name}_to_{rival}"] = out[f"cpu_{name}_per_s"] / rates[f"cpu_{name}_per_s"]
    return out | {"item_bytes": table.used_bytes // len(table), "block": BLOCK, "items": len(table), "seed": seed}


def _describe(block: Mapping[str, NDArray[Any]]) -> ItemMeta:
    return ItemMeta(strata="bench", priorities=np.abs(block[next(iter(block))][:, 0]).astype(np.float64))


def _block(columns: Mapping[str, tuple[tuple[int, ...], type]], rng: Generator) -> Block:
    return {n: rng.standard_normal((BLOCK, *shape)).astype(kind) for n, (shape, kind) in columns.items()}


def _table(
    columns: Mapping[str, tuple[tuple[int, ...], type]], capacity: int
) -> ReplayTable[Mapping[str, NDArray[Any]]]:
    store = ColumnStore(capacity, columns)
    return ReplayTable(store, limit_bytes=capacity * store.item_bytes, describe=_describe)


def _rate(call: Callable[[int], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Items per wall second and per CPU second of `call`, which handles one block; the first run warms up."""
    rates = np.empty((RUNS + 1, 2))
    for run_number in range(RUNS + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        for i in range(repeats):
            call(i)
        rates[run_number] = time.perf_counter() - wall, time.process_time() - cpu
    wall_per_s, cpu_per_s = np.median(BLOCK * repeats / rates[1:], axis=0)
    return float(wall_per_s), float(cpu_per_s)


def _rates(calls: Mapping[str, Callable[[int], object]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, call in calls.items():
        out[f"{name}_per_s"], out[f"cpu_{name}_per_s"] = _rate(call)
    return out


def _p99_ms(call: Callable[[int], object], repeats: int = 2_000) -> float:
    times = np.empty(repeats)
    for i in range(repeats):
        start = time.thread_time_ns()
        call(i)
        times[i] = time.thread_time_ns() - start
    return float(np.quantile(times, 0.99)) / 1e6


def _memcpy(
    columns: Mapping[str, tuple[tuple[int, ...], type]], capacity: int, blocks: list[Block]
) -> Callable[[int], None]:
    """The bound: the same blocks copied into the same kind of memory, without any index."""
    ring: Block = {n: np.zeros((capacity, *shape), dtype=kind) for n, (shape, kind) in columns.items()}

    def copy(i: int) -> None:
        at = i % (capacity // BLOCK) * BLOCK
        for name, column in ring.items():
            column[at : at + BLOCK] = blocks[i % len(blocks)][name]

    return copy


def _large_ratio(rng: Generator) -> float:
    capacity = 4 * BLOCK
    blocks = [_block(_LARGE, rng)]
    table = _table(_LARGE, capacity)
    for i in range(capacity // BLOCK):
        table.insert(blocks[0], step=i)
    _, ours = _rate(lambda i: table.insert(blocks[0], step=i), repeats=8)
    _, bound = _rate(_memcpy(_LARGE, capacity, blocks), repeats=8)
    return ours / bound


def _checkpoint_ms(table: ReplayTable[Mapping[str, NDArray[Any]]]) -> tuple[float, float]:
    """CPU ms to save and to restore the full table, digest and compression included."""
    start = time.process_time()
    state = table.state_dict()
    saved = time.process_time()
    table.load_state_dict(state)
    return (saved - start) * 1e3, (time.process_time() - saved) * 1e3


def _rivals(
    blocks: list[Block], priorities: list[NDArray[np.float64]]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    if importlib.util.find_spec("cpprb") is None:
        return {}, ["cpprb is not installed: pip install 'gg-ray[bench]' to run it beside ours"]
    cpprb = importlib.import_module("cpprb")
    fields = {n: {"shape": shape, "dtype": kind} for n, (shape, kind) in _COLUMNS.items()}
    buffer = cpprb.PrioritizedReplayBuffer(CAPACITY, fields, alpha=0.6)
    for i in range(CAPACITY // BLOCK):
        buffer.add(**blocks[i % 8], priorities=priorities[i % 8])
    drawn = buffer.sample(BLOCK, beta=0.4)
    rates = _rates(
        {
            "insert": lambda i: buffer.add(**blocks[i % 8], priorities=priorities[i % 8]),
            "sample": lambda i: buffer.sample(BLOCK, beta=0.4),
            "update": lambda i: buffer.update_priorities(drawn["indexes"], priorities[i % 8]),
        }
    )
    return {"cpprb": rates}, [f"cpprb {importlib.metadata.version('cpprb')}"]
