"""Grids that the driver has loaded, for actors that need not load them again.

Flow:    driver: load_case -> [share] -> object store -> [take] in an actor's constructor -> load_case there
Source:  loading needs pandapower: two seconds of CPU and 160 MiB in every process
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import ray

from gg_ray.grid.cases import adopt, load_case

SharedGrids: TypeAlias = Sequence[Any]
"""References inside a tuple. Ray resolves a bare reference in an actor's arguments, but warns that a restart then hangs
on it (ray #53727); these are fetched by the actor itself and live as long as the driver holds the tuple."""


def share(names: Iterable[str]) -> SharedGrids:
    """Load grids and put each into the object store.  Raises: CaseError for an unknown one."""
    return tuple(ray.put(load_case(name)) for name in names)


def take(grids: SharedGrids) -> None:
    """In an actor: `load_case` gives copies of these from now on."""
    if grids:
        adopt(ray.get(list(grids)))
