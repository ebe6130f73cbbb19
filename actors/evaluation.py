"""Evaluation in parallel: one process per grid.

Flow:    gg_ray.evaluate.job (GridJob) -> [evaluation] -> GridResult, as they come
Source:  grids share nothing, so this is a map; docs/adr/0011-distributed-loop.md
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors import session
from actors.placement import ResourceError, Resources, shortage
from actors.pool import FETCH_TIMEOUT_S
from gg_ray.evaluate.job import GridJob, GridResult, run_grid
from gg_ray.grid.cases import GridCase, adopt, load_case
from gg_ray.scenario.context import context_source

logger = logging.getLogger(__name__)

NEED: Resources = {"CPU": 1.0}
"""Of one grid; a bundle of its own for each says which ones have it."""
RETRIES = 1
"""Times a job is done again when its process dies; the next death has the same cause."""


class EvaluationLost(RuntimeError):
    """A process that evaluated a grid died and died again; the message says which way is left."""


def evaluate_grid(job: GridJob, grid: GridCase) -> GridResult:
    """One job in a process of its own."""
    torch.set_num_threads(1)
    adopt([grid])
    contexts: Any = context_source(job.config.scenario.data_dir or None)
    return run_grid(job, contexts)


def spread(
    jobs: Sequence[GridJob],
    work: Callable[[GridJob, GridCase], GridResult] = evaluate_grid,
    *,
    poll_s: float = 5.0,
    on_wait: Callable[[str], None] = logger.info,
) -> Iterator[GridResult]:
    """Results of the jobs in the order in which they finish, one CPU each, on the Ray that runs or on one of its own.

    A job that has its CPU takes as long as it takes. While none has one, the wait is told at every poll and ends after
    actors.start_timeout_s: Ray itself would leave the jobs pending for ever (ray #27287).
    Raises:  CaseError for an unknown grid, before anything starts; what a job raised; ResourceError; EvaluationLost.
    """
    grids = [load_case(job.case) for job in jobs]
    task: Any = ray.remote(work)
    limit_s = jobs[0].config.actors.start_timeout_s
    running: dict[Any, PlacementGroup] = {}
    with session.start(jobs[0].config.actors):
        try:
            for job, grid in zip(jobs, grids, strict=True):
                group = placement_group([dict(NEED)])
                own = task.options(
                    num_cpus=NEED["CPU"], max_retries=RETRIES, runtime_env=session.ONE_THREAD,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
                )  # fmt: skip
                running[own.remote(replace(job, config=session.absolute(job.config)), grid)] = group
            idle_since = time.monotonic()
            while running:
                ready, _ = ray.wait(list(running), num_returns=1, timeout=poll_s)
                waited_s = time.monotonic() - idle_since
                if ready:
                    result = _result(ready[0])
                    remove_placement_group(running.pop(ready[0]))  # its CPU goes to the next job
                    yield result
                    idle_since = time.monotonic()
                elif any(map(_granted, running.values())):
                    idle_since = time.monotonic()
                elif waited_s >= limit_s:
                    raise ResourceError(
                        f"evaluation: {shortage([('evaluation of a grid', NEED)])} after {limit_s:g} s; free a CPU,"
                        " raise actors.start_timeout_s, or use gg-ray evaluate --no-parallel. Training is saved"
                    )
                else:
                    text = shortage([("evaluation of a grid", NEED)])
                    on_wait(f"evaluation: {text}; waited {waited_s:.0f} s of {limit_s:g} s")
        finally:
            for group in running.values():  # the tasks in them end as well
                remove_placement_group(group)


def _granted(group: PlacementGroup) -> bool:
    return str(placement_group_table(group)["state"]) == "CREATED"


def _result(ref: Any) -> GridResult:
    """What a finished task gave."""
    try:
        result: GridResult = ray.get(ref, timeout=FETCH_TIMEOUT_S)
    except RayTaskError as error:
        raise error.cause from None  # the error itself: callers know it by its class
    except GetTimeoutError as error:
        raise EvaluationLost(f"evaluation: the result of a grid did not arrive within {FETCH_TIMEOUT_S:g} s") from error
    except RayError as error:
        raise EvaluationLost(
            f"evaluation: the process of a grid died twice ({type(error).__name__}), most often for want of"
            " memory. Training is saved: gg-ray train --resume auto repeats the evaluation alone, also with"
            " fewer evaluate.held_out_cases; gg-ray evaluate takes --no-parallel"
        ) from error
    return result
