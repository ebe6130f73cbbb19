"""Named places at which a process can be made to die, for tests of what survives.

Flow:    GG_FAILPOINT in the environment -> [failpoints] -> serve.loop, serve.store
Source:  live.md, section 2, row 4

GG_FAILPOINT=after-poll:3 kills the process with signal 9 the third time that it passes `after-poll`. Unset, a place
costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

PLACES = (
    "after-poll", "after-decode", "in-scoring", "after-scoring",
    "half-pipeline", "after-redis", "in-commit", "in-revoke",
)  # fmt: skip
"""The eight at which a consumer can die without a word."""
VARIABLE = "GG_FAILPOINT"
_passed: Counter[str] = Counter()


def armed() -> tuple[str, int] | None:
    """The place that is armed and at which hit it kills.  Raises: ValueError for a place that there is not."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    place, _, hit = text.partition(":")
    if place not in PLACES:
        raise ValueError(f"{VARIABLE}={text}: places are {', '.join(PLACES)}")
    return place, int(hit or 1)


_ARMED = armed()


def is_armed(place: str) -> bool:
    """Whether a place is the armed one."""
    return _ARMED is not None and _ARMED[0] == place


def reach(place: str) -> None:
    """Pass a place; die there if it is the armed one and its hour has come."""
    if _ARMED is not None and _ARMED[0] == place:
        _passed[place] += 1
        if _passed[place] == _ARMED[1]:
            os.kill(os.getpid(), signal.SIGKILL)
