"""Token buckets by name, bounded in number.

Flow:    serve.access (wrong keys of an address), serve.limits (requests of a caller) -> [buckets]
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MOST = 10_000
"""Names that are remembered; the one that was longest unused leaves, and its bucket is full when it comes back."""


class Buckets:
    """rate_per_s tokens a second flow into each bucket, which holds `burst`; clock gives seconds and never goes back.

    Invariant: within any t seconds a name takes at most burst + rate_per_s * t tokens.
    """

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Name -> (tokens, when they were counted)."""

    def wait_s(self, name: str) -> float:
        """0.0 when there is a token, else seconds until there is one."""
        missing = 1.0 - self._tokens(name)
        return 0.0 if missing <= 1e-9 else missing / self._rate

    def take(self, name: str) -> float:
        """Take a token and give 0.0, or take none and give the seconds until there is one."""
        wait_s = self.wait_s(name)
        if wait_s == 0.0:
            self._set(name, self._tokens(name) - 1.0)
        return wait_s

    def give_back(self, name: str) -> None:
        """Undo one take."""
        self._set(name, min(float(self._burst), self._tokens(name) + 1.0))

    def _tokens(self, name: str) -> float:
        tokens, then = self._held.get(name, (float(self._burst), 0.0))
        return min(float(self._burst), tokens + (self._clock() - then) * self._rate)

    def _set(self, name: str, tokens: float) -> None:
        self._held[name] = (tokens, self._clock())
        self._held.move_to_end(name)
        if len(self._held) > MOST:
            self._held.popitem(last=False)
