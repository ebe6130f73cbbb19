"""Options of the commands of the live path: live, serve, keys, dead-letters.

Flow:    argv -> options.parse -> [live_options] -> cli -> serve.live, serve.keys_command, serve.dead_letters_command
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """The live path on this machine; ends with Ctrl-C."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """replay: history files, such as the frequency trace of 9 August 2019."""
    source: Literal["simulate", "replay", "insights", "elexondataportal", "iris", "none"] = "simulate"
    """Where scans come from; none waits for somebody else's."""
    engine: Literal["serve", "plain"] = "serve"
    """serve: on Ray Serve; plain: all in this process."""
    case: str = "gb29"
    """simulate: which grid."""
    incidents: int = 5
    """simulate: anomalies a day."""
    disturbances: int = 2
    """simulate: real disturbances a day."""
    speed: float = 60.0
    """simulate, replay: recorded seconds per second."""
    seed: int = 0
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """replay: first day (UTC) or time."""
    step: int | None = None
    """replay: length of a scan, s: 1800, 300 or 15."""
    run: tuple[str, ...] = ()
    """Run folders whose champions judge, before the models of the package."""
    budget: float = 1.0
    """Incidents a day and grid that thresholds are set for, where the model knows its benign days; 0: as registered."""
    port: int = 8000
    """Of the page, on the loopback interface."""
    open: bool = False
    """Open the page in a browser."""
    folder: Path | None = None
    """For logs of the broker and the store's files; a temporary one when not given."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Consumer, Verifier and page against a broker and a Redis that run: KAFKA_BOOTSTRAP and REDIS_URL say where."""

    bootstrap: str | None = None
    """Broker; KAFKA_BOOTSTRAP when not given. KAFKA_CONF_* are settings of its client (SASL, TLS)."""
    engine: Literal["serve", "plain"] = "serve"
    """serve: on Ray Serve; plain: all in this process."""
    host: str = "127.0.0.1"
    """Beyond loopback a --keys-file is needed."""
    port: int = 8000
    keys_file: Path | None = None
    """API keys (gg-ray keys add); with one every route asks for a key."""
    run: tuple[str, ...] = ()
    """Run folders whose champions judge, before the models of the package."""
    budget: float = 1.0
    """Incidents a day and grid that thresholds are set for, where the model knows its benign days; 0: as registered."""


@dataclass(frozen=True, kw_only=True)
class KeysOptions:
    """API keys: add prints a new one once, list shows names and scopes, revoke ends one."""

    action: tyro.conf.Positional[Literal["add", "list", "revoke"]]
    name: tyro.conf.Positional[str | None] = None
    file: Path = Path("keys.json")
    """Where their salted hashes are kept; only its owner may read it."""
    scope: tuple[str, ...] = ("read",)
    """score, read, operate, admin."""


@dataclass(frozen=True, kw_only=True)
class DeadLettersOptions:
    """Messages that could not be read, kept with their bytes and the reason.

    list: one JSON line each. replay: send them to the topic of readings again, oldest first.
    """

    action: tyro.conf.Positional[Literal["list", "replay"]]
    bootstrap: str | None = None
    """Broker; KAFKA_BOOTSTRAP when not given."""
    error: str | None = None
    """Only letters of this kind: schema, encoding, shape, value, grid, unit, time, size or verifier."""
    limit: int = 1_000
    """At most so many."""
