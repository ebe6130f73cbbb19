"""What a benchmark found, for a reader and for a file of results.

Flow:    cli bench -> [bench.report] -> standard output
"""

from __future__ import annotations

import json
from typing import Any

from gg_ray.provenance import git_commit, machine_info


def text(name: str, found: dict[str, Any], seed: int) -> str:
    """A table, then one JSON line with the machine and the commit."""
    width = max(map(len, found))
    rows = [f"{key:<{width}}  {value:.4g}" if isinstance(value, float) else f"{key:<{width}}  {value}"
            for key, value in found.items()]  # fmt: skip
    line = json.dumps(found | {"bench": name, "machine": machine_info(), "commit": git_commit(), "seed": seed})
    return "\n".join([*rows, line, ""])
