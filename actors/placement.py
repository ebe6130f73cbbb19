"""Which process gets how much of the machine: one answer for train, tune and the cluster test.

Flow:    config -> [bundles] -> session.start (need against have) -> [acquire] -> actors -> [release]
Source:  docs/adr/0008-pull-driven-actors.md (the laptop shape); an infeasible group waits for ever, ray #27287, #47792
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gg_ray.config import ActorsConfig, RunConfig

logger = logging.getLogger(__name__)

Resources: TypeAlias = Mapping[str, float]

SERVICE_CPU = 0.1
"""Share of the replay and of the evaluator actor: both mostly wait; the evaluator also lowers its own priority."""
MIN_ACTOR_CPU = 0.1
"""Least share of a proposer or solver; below it more actors only add processes."""


class ResourceError(RuntimeError):
    """The machine or cluster is too small; the message says need, have and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Resources of each role of one run.

    Invariant: on one machine total()["CPU"] <= its CPUs. The driver process trains (ADR 0011), so the GPU is its own;
    Ray does not count its share for a plain job but does for a Tune trial.
    """

    driver: Resources
    replay: Resources
    evaluator: Resources
    proposer: Resources
    proposers: int
    solver: Resources
    solvers: int

    def group(self) -> list[tuple[str, Resources]]:
        """Named bundles of the placement group: the one process that a run cannot go on without."""
        return [("replay", self.replay)]

    def trial(self) -> list[dict[str, float]]:
        """Every bundle, driver first, for ray.tune.PlacementGroupFactory: a trial's children live in its group."""
        rest = [self.evaluator] + [self.proposer] * self.proposers + [self.solver] * self.solvers
        return [dict(self.driver), *(dict(bundle) for _, bundle in self.group()), *(dict(bundle) for bundle in rest)]

    def total(self) -> dict[str, float]:
        """Sum over trial()."""
        total: dict[str, float] = {}
        for bundle in self.trial():
            for name, amount in bundle.items():
                total[name] = round(total.get(name, 0.0) + amount, 4)
        return total


def smallest_cpus(actors: ActorsConfig) -> float:
    """CPUs below which a run on one machine is refused: half for the learner, the least share for the others."""
    return round(2 * (2 * SERVICE_CPU + MIN_ACTOR_CPU * (actors.proposers + actors.solvers)), 4)


def bundles(config: RunConfig, *, cpus: float | None = None, gpus: float = 0.0) -> Bundles:
    """The shape of a run.

    Args:    cpus  CPUs of the one machine the run may use (a laptop, or a Tune trial's share): proposers and solvers
                   share what learner, replay and evaluator leave. None: a cluster that may grow, 1 CPU for each
             gpus  GPUs to be had. A learner with device "auto" takes one when there is one; on a cluster whose GPU
                   node is not up yet say learner.device=cuda
    Raises:  ResourceError when `cpus` cannot hold the actors, or a GPU is asked for on a machine without one.
    """
    device, actors = config.learner.device, config.actors
    gpu = device.startswith("cuda") or (device == "auto" and gpus >= 1)
    if gpu and cpus is not None and gpus < 1:
        raise ResourceError(f"placement: learner.device={device} needs 1 GPU, have {gpus:g}; set learner.device=cpu")
    if cpus is None:
        learner_cpu = actor_cpu = 1.0
    else:
        if cpus < smallest_cpus(actors):
            raise ResourceError(
                f"placement: need {smallest_cpus(actors):g} CPUs for {actors.proposers} proposers and {actors.solvers}"
                f" solvers, have {cpus:g}; lower actors.proposers and actors.solvers, or use mode=serial"
            )
        learner_cpu = min(1.0, cpus / 2)  # with a single CPU half of it: the actors must still fit
        rest = cpus - learner_cpu - 2 * SERVICE_CPU
        # rounded down to 0.01: Ray counts in 1/10000 and a sum above the machine would wait for ever
        actor_cpu = min(1.0, math.floor(100 * rest / (actors.proposers + actors.solvers) + 1e-6) / 100)
    return Bundles(
        driver={"CPU": learner_cpu, "GPU": 1.0} if gpu else {"CPU": learner_cpu},
        replay={"CPU": SERVICE_CPU},
        evaluator={"CPU": SERVICE_CPU},
        proposer={"CPU": actor_cpu},
        proposers=actors.proposers,
        solver={"CPU": actor_cpu},
        solvers=actors.solvers,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """A granted shape. group is None inside a Tune trial, whose own group already holds all children."""

    bundles: Bundles
    group: PlacementGroup | None

    def options(self, role: str) -> dict[str, Any]:
        """Arguments for `Actor.options(...)` of replay, evaluator, proposer or solver.

        Replay goes into the group. The others are spread and stay outside, so that an autoscaler can add and remove
        their nodes; inside a trial they are captured by its group.
        """
        needs = {"evaluator": self.bundles.evaluator, "proposer": self.bundles.proposer, "solver": self.bundles.solver}
        grouped = dict(self.bundles.group())
        need = {**needs, **grouped}.get(role)
        if need is None:
            raise ValueError(f"placement: no bundle for {role!r}; have {', '.join([*grouped, *needs])}")
        options: dict[str, Any] = {"num_cpus": need["CPU"]}
        if self.group is not None:
            index = list(grouped).index(role) if role in grouped else None
            options["scheduling_strategy"] = (
                "SPREAD" if index is None else PlacementGroupSchedulingStrategy(self.group, index)
            )
        return options


def acquire(
    bundles: Bundles,
    timeout_s: float,
    *,
    poll_s: float = 5.0,
    on_wait: Callable[[str], None] = logger.info,
    clock: Callable[[], float] = time.monotonic,
) -> Placement:
    """Reserve the group and wait until granted, telling need against have at every poll.

    Args:    timeout_s  actors.start_timeout_s; an autoscaled node needs minutes, so raise it for a cold cluster
             on_wait    gets one line per poll
    Returns: the placement; give it to `release` in a finally.
    Raises:  ResourceError with the bundle that does not fit. The group is removed first.
    """
    if get_current_placement_group() is not None:
        return Placement(bundles, None)
    group = placement_group([dict(bundle) for _, bundle in bundles.group()], strategy="PACK")
    placement = Placement(bundles, group)
    start = clock()
    granted = False
    try:
        while not granted:
            left_s = timeout_s - (clock() - start)
            if left_s <= 0:
                raise ResourceError(
                    f"placement: {shortage(bundles.group())} after {timeout_s:g} s; add a node, lower the need, or"
                    " raise actors.start_timeout_s"
                )
            granted = bool(group.wait(min(poll_s, left_s)))
            if not granted:
                on_wait(f"placement: {shortage(bundles.group())}; waited {clock() - start:.0f} s of {timeout_s:g} s")
    finally:
        if not granted:
            release(placement)
    return placement


def release(placement: Placement) -> None:
    """Give the group back, with the actors in it. Safe to call twice, and after Ray has been shut down."""
    if placement.group is not None and ray.is_initialized():
        remove_placement_group(placement.group)


def text(resources: Resources) -> str:
    """{"CPU": 1.0, "GPU": 1.0} -> "1 CPU + 1 GPU", for messages."""
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()) if amount) or "nothing"


def shortage(needs: Sequence[tuple[str, Resources]]) -> str:
    """Need against have, naming the first of the named bundles that no living node could ever hold."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [{name: float(node.get(name, 0.0)) for name in ("CPU", "GPU")} for node in alive]
    need = ", ".join(f"{role} {text(bundle)}" for role, bundle in needs)
    have = ", ".join(text(node) for node in nodes) or "no living node"
    for role, bundle in needs:
        if not any(all(node.get(name, 0.0) >= amount for name, amount in bundle.items()) for node in nodes):
            return f"need {need}; have nodes with {have}; the {role} bundle ({text(bundle)}) fits none of them"
    available = ray.available_resources()  # type: ignore[no-untyped-call]
    free = {name: amount for name, amount in available.items() if name in ("CPU", "GPU")}
    return f"need {need}; have nodes with {have}, but only {text(free)} free: other work holds the rest"
