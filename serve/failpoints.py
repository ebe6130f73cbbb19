"""Named places at which a process can be made to die, for tests of what survives.

Flow:    GG_FAILPOINT in the environment -> [failpoints] -> serve.loop, serve.store
Source:  live.md, section 2, row 4

GG_FAILPOINT=after-poll:3 kills the process with signal 9 the third time that it passes `after-poll`. Unset, a place
costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

PLACES = (
    "after-poll", "after-decode", "in-scoring", "after-scoring",
    "half-pipeline", "after-redis", "in-commit", "in-revoke",
)  # fmt: skip
"""The eight at which a consumer can die without a word."""
VARIABLE = "GG_FAILPOINT"
_left: dict[str, int] = {}
"""Armed places and how often they may still be passed."""


def arm(text: str) -> None:
    """Arm a place, such as in-scoring:2; an empty text disarms.  Raises: ValueError for a place that there is not."""
    _left.clear()
    place, _, hit = text.partition(":")
    if text and place not in PLACES:
        raise ValueError(f"{VARIABLE}={text}: places are {', '.join(PLACES)}")
    if text:
        _left[place] = int(hit or 1)


def is_armed(place: str) -> bool:
    """Whether a place is the armed one."""
    return place in _left


def reach(place: str) -> None:
    """Pass a place; die there if it is the armed one and its hour has come."""
    if place in _left:
        _left[place] -= 1
        if _left[place] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE, ""))
