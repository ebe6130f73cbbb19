"""The core benchmark in several processes: one grid each, then one attack each; cells meet in the folder.

Flow:    core_commands -> [core_work: processes] -> evaluate.core_job (cells), manifest of the folder

A process writes the manifest of its grid beside the folder's; what it says of a part is taken over when all are done,
or by the next run where this one was killed.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from gg_ray.core_runs import Benchmark, Run
from gg_ray.evaluate.core_plan import CoreSizes
from gg_ray.grid.cases import load_case

_found: list[Benchmark] = []
"""What this process scores with: given once, when it starts."""


def in_processes(found: Benchmark, workers: int) -> None:
    """Score every grid, then every attack, on so many processes; the largest grids first."""
    grids = sorted(found.sizes.cases, key=lambda case: -load_case(case).n_branch)
    with ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start,
        initargs=(found.runs, found.sizes, found.folder),
    ) as pool:  # fmt: skip
        _each(pool, _grid, grids)
        job = found.job(_say)
        job.manifest.adopt(found.sizes.cases)
        _each(pool, _attack, [f"{scorer.key}:{method}" for scorer, method in job.attacks()])


def _each(pool: ProcessPoolExecutor, work: Callable[[str], None], names: Sequence[str]) -> None:
    """All of them; the first failure ends what has not begun."""
    futures = [pool.submit(work, name) for name in names]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _start(runs: list[Run], sizes: CoreSizes, folder: Path) -> None:
    torch.set_num_threads(1)
    _found.append(Benchmark(runs, sizes, folder))


def _grid(case: str) -> None:
    """One grid in a process of its own."""
    job = _found[0].job(_say)
    job.manifest.shard(case)
    job.grid(case)


def _attack(name: str) -> None:
    """One attack in a process of its own."""
    job = _found[0].job(_say)
    for scorer, method in job.attacks():
        if name == f"{scorer.key}:{method}":
            job.attack(scorer, method)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
