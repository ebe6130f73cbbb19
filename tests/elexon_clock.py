"""A clock that only moves when told to, or when somebody sleeps on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """Seconds and UTC time that go together; sleep() moves both at once and takes no time."""

    def __init__(self, start: datetime = datetime(2026, 5, 6, 12, tzinfo=UTC)) -> None:
        self.start, self.seconds = start, 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds - 1_000.0)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
