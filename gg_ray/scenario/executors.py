"""Which executor runs the programs of a grid: power flow for networks, the balance laws for the national graph.

Flow:    selfplay.rollout, evaluate.suites -> [executors] -> Executor or BalanceExecutor
"""

from __future__ import annotations

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
    scans: int | None = None,
) -> AnyExecutor:  # fmt: skip
    """The executor of a grid.  Raises: ContextError, HistoryError for unusable inputs."""
    kind = BalanceExecutor if case.name == balance.NAME else Executor
    return kind(case, config, contexts, all_families=all_families, scans=scans)
