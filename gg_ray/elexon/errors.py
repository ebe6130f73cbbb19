"""What can go wrong between Elexon and us: typed, each message names the stream, the thing and the way out.

Flow:    every source of elexon -> [errors] -> data_commands
"""

from __future__ import annotations


class ElexonError(Exception):
    """Base of every error of this package."""


class UnknownStream(ElexonError):
    """A stream name that no source carries."""


class BadRequest(ElexonError):
    """The service refused the question (400, 404); asking again would not help."""


class RateLimited(ElexonError):
    """429 after every retry. Carries what `Retry-After` said, in seconds, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ElexonError):
    """No usable answer after every retry: 5xx, time-out, broken connection, or the circuit is open."""


class BadAnswer(ElexonError):
    """200 with something that is no answer: HTML, torn JSON, too large, or another window than was asked for."""


class NotCarried(ElexonError):
    """This source cannot give this stream; the message names the one that can."""


class NothingStored(Unavailable):
    """The live source failed, and neither the cache nor the store holds a row of the window."""
