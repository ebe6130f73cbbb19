"""Evaluation in parallel: one process per grid.

Flow:    gg_ray.evaluate.job (GridJob) -> [evaluation] -> GridResult, as they come
Source:  grids share nothing, so this is a map; docs/adr/0011-distributed-loop.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from actors import session
from gg_ray.evaluate.job import GridJob, GridResult, run_grid
from gg_ray.grid.cases import GridCase, adopt, load_case
from gg_ray.scenario.context import context_source

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
    jobs: Sequence[GridJob], work: Callable[[GridJob, GridCase], GridResult] = evaluate_grid
) -> Iterator[GridResult]:
    """Results of the jobs in the order in which they finish, one CPU each, on the Ray that runs or on one of its own.

    Raises:  CaseError for an unknown grid, before anything starts; what a job raised; EvaluationLost.
    """
    grids = [load_case(job.case) for job in jobs]
    task = ray.remote(work).options(num_cpus=1, max_retries=RETRIES, runtime_env=session.ONE_THREAD)
    with session.start(jobs[0].config.actors):
        running = [
            task.remote(replace(job, config=session.absolute(job.config)), grid)
            for job, grid in zip(jobs, grids, strict=True)
        ]
        while running:
            ready, running = ray.wait(running, num_returns=1)
            try:
                result: GridResult = ray.get(ready[0])
            except RayTaskError as error:
                raise error.cause from None  # the error itself: callers know it by its class
            except RayError as error:
                raise EvaluationLost(
                    f"evaluation: the process of a grid died twice ({type(error).__name__}), most often for want of"
                    " memory. Training is saved: gg-ray train --resume auto repeats the evaluation alone, also with"
                    " fewer evaluate.held_out_cases; gg-ray evaluate takes --no-parallel"
                ) from error
            yield result
