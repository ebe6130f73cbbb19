"""Which executor runs the programs of a grid: power flow for networks, the balance laws for the national graph.

Flow:    selfplay.rollout, evaluate.suites -> [executors] -> Executor or BalanceExecutor
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from gg_ray.config import ScenarioConfig
from gg_ray.grid import balance
from gg_ray.grid.cases import GridCase
from gg_ray.scenario.balance_executor import BalanceExecutor
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.executor import Executor

AnyExecutor: TypeAlias = Executor | BalanceExecutor


def executor_of(
    case: GridCase, config: ScenarioConfig, contexts: ContextSource, *, all_families: bool = False,
    scans: int | None = None, outages: Sequence[int] = (),
) -> AnyExecutor:  # fmt: skip
    """The executor of a grid.

    Args:   outages  branches of an electrical network that are out of service throughout
    Raises: ContextError, HistoryError for unusable inputs; CaseError for outages that the grid does not survive.
    """
    if case.name == balance.NAME:
        return BalanceExecutor(case, config, contexts, all_families=all_families, scans=scans)
    return Executor(case, config, contexts, all_families=all_families, scans=scans, outages=outages)
