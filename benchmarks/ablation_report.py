"""Table and figure of the ablations."""

from __future__ import annotations

from typing import Any


def write_report(*arguments: Any) -> None:
    """Nothing yet."""
