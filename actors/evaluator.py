"""Evaluator actor: looks at published weights on held-out windows while the learner goes on.

Flow:    learner.weights -> [look] -> metrics eval/..., eval/step
Source:  gg_ray/evaluate/look.py does the work; os.nice because Ray's CPU shares admit work and do not limit it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from actors.session import ONE_THREAD
from gg_ray.config import RunConfig
from gg_ray.evaluate.look import QuickLook
from gg_ray.grid.cases import GridCase, adopt
from gg_ray.learner import load_numpy, new_verifier
from gg_ray.scenario.context import context_source

logger = logging.getLogger(__name__)

NICENESS = 10


class EvaluatorActor:
    """One Verifier and the fixed windows it is looked at with."""

    def __init__(self, config: RunConfig, grids: Sequence[GridCase] = ()) -> None:
        os.nice(NICENESS)
        torch.set_num_threads(1)
        adopt(grids)
        self.quick = QuickLook(config, context_source(config.scenario.data_dir or None))
        self.network = new_verifier(config.verifier, config.seed).eval()

    def look(self, weights: Mapping[str, NDArray[Any]], step: int) -> dict[str, float]:
        """eval/... of these weights, with the step they are from as eval/step."""
        load_numpy(self.network, weights)
        return self.quick.look(self.network) | {"eval/step": float(step)}


class Looks:
    """The driver's side: at most one look under way, never waited for.

    A look that comes due while another runs is left out; one that fails is counted and logged, and the run goes on.
    """

    def __init__(self, config: RunConfig, options: Mapping[str, Any], grids: Sequence[GridCase] = ()) -> None:
        self._config, self._options, self._grids = config, dict(options), grids
        self._actor: Any = None
        self._ref: Any = None
        self.failures = 0

    def due(self, step: int) -> bool:
        every = self._config.evaluate.every_steps
        return bool(every) and step % every == 0 and self._ref is None

    def ask(self, weights: Mapping[str, NDArray[Any]], step: int) -> None:
        """Send weights to be looked at. The actor starts with the first: start-up belongs to the players."""
        if self._actor is None:
            remote = ray.remote(EvaluatorActor)
            options = {"max_restarts": -1, "max_task_retries": 0, "runtime_env": ONE_THREAD, **self._options}
            self._actor = remote.options(**options).remote(self._config, self._grids)
        self._ref = self._actor.look.remote(dict(weights), step)

    def arrived(self) -> dict[str, float]:
        """The look's figures once, {} while there are none."""
        if self._ref is None or not ray.wait([self._ref], timeout=0)[0]:
            return {}
        ref, self._ref = self._ref, None
        try:
            figures: dict[str, float] = ray.get(ref, timeout=self._config.actors.call_timeout_s)
        except RayError as error:
            self.failures += 1
            self._actor = None
            logger.warning("evaluator: a look failed (%s); the next one starts a new actor", type(error).__name__)
            return {}
        return figures

    def close(self) -> None:
        """End the actor. Safe to call twice, and after Ray has been shut down."""
        if self._actor is not None and ray.is_initialized():
            ray.kill(self._actor, no_restart=True)
        self._actor = self._ref = None
