"""serve.live: in one process nobody but the command itself sees that the scan loop is ill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gg_ray.live_options import LiveOptions, ServeOptions
from serve import live
from serve.live import LiveError
from serve.settings import KafkaSettings, LiveSettings


def ill() -> None:
    raise LiveError("the scan loop ended")


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was left in order; the engine is ill from its start."""
    done: list[str] = []

    @contextmanager
    def engine(settings: LiveSettings, folder: Path) -> Iterator[Any]:
        try:
            yield ill
        finally:
            done.append("engine")

    def servers(*_: Any) -> LiveSettings:
        return LiveSettings()

    monkeypatch.setattr(live, "_engine", lambda _: engine)
    monkeypatch.setattr(live, "_servers", servers)

    def ensured(_: KafkaSettings) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(live.topics, "ensure", ensured)
    return done


def test_serve_ends_with_an_ill_loop(left: list[str]) -> None:
    with pytest.raises(LiveError, match="the scan loop ended"):
        live.serve_command(ServeOptions(engine="plain"), {})
    assert left == ["engine"]


def test_live_ends_with_an_ill_loop(left: list[str]) -> None:
    with pytest.raises(LiveError, match="the scan loop ended"):
        live.live_command(LiveOptions(engine="plain", source="none"), {})
    assert left == ["engine"]
