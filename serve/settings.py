"""Settings of the live path: addresses, topics, budgets of time and memory, limits at the edge.

Flow:    environment, options of `gg-ray serve|live|feed` -> [settings] -> every part of the live path
Source:  design.md, section 6 (topics); live.md, sections 1, 4, 5

Secrets (passwords, keys) come from the environment or from files of mode 0600, are kept out of `repr` and are never
written to a log.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gg_ray.config import BALANCE_CASE, ConfigError

READINGS, VERDICTS, ALARMS, DEAD_LETTERS = "gg.readings.v1", "gg.verdicts.v1", "gg.alarms.v1", "gg.dead-letters.v1"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Topic names; a message of `readings` is one scan, keyed by its grid."""

    readings: str = READINGS
    verdicts: str = VERDICTS
    alarms: str = ALARMS
    dead_letters: str = DEAD_LETTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """How the broker is reached. `extra` holds librdkafka settings such as security.protocol and sasl.mechanism."""

    bootstrap: str = "127.0.0.1:9092"
    group: str = "gg-scorer"
    partitions: int = 4
    """Of topics that are made where they are missing."""
    session_timeout_ms: int = 6_000
    max_poll_interval_ms: int = 60_000
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)
    topics: Topics = field(default_factory=Topics)

    def client(self) -> dict[str, Any]:
        """Settings that every librdkafka client of ours has."""
        return {"bootstrap.servers": self.bootstrap, "log_level": 3, **self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """Bounds of the scan loop: what is in hand at most, how long a batch waits, when scans are shed."""

    scans: int = 16
    """Length of a window of a network; it is judged from its 16th scan on."""
    balance_scans: int = 24
    """The same of the national balance graph."""
    max_batch: int = 32
    """Windows of one call to the Verifier."""
    linger_ms: float = 2.0
    """How long the loop waits for an answer before it looks for new scans while calls are under way."""
    in_flight: int = 2
    """Calls to the Verifier under way at once."""
    high_mark: int = 512
    low_mark: int = 128
    """Scans in hand per partition at which it is paused and resumed."""
    max_bytes: int = 64 * 2**20
    """Bytes in hand of all partitions at which all are paused."""
    max_lag_s: float = 120.0
    """Beyond this lag only the newest scan of each grid is judged; the others are counted as shed."""
    commit_every_s: float = 1.0
    state_rebuild_window_s: float = 900.0
    """How far back reading starts where the broker has a commit and the store has no position."""
    static_member: str = ""
    """group.instance.id, one per replica slot; empty for a dynamic member."""

    def scans_of(self, case: str) -> int:
        """Length of a window of a grid."""
        return self.balance_scans if case == BALANCE_CASE else self.scans

    def __post_init__(self) -> None:
        shortest = min(self.scans, self.balance_scans)
        if shortest < 16 or min(self.max_batch, self.in_flight) < 1 or not 0 < self.low_mark < self.high_mark:
            raise ConfigError(
                f"consumer: {asdict(self)}: scans from 16, max_batch and in_flight from 1, low_mark below high_mark"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The HTTP edge. Keys are salted hashes by name (serve.auth); without any only a loopback bind is allowed."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None
    max_body: int = 2**20
    max_arrow_body: int = 16 * 2**20
    max_buses: int = 100_000
    max_branches: int = 200_000
    max_windows: int = 256
    max_cells: int = 20_000_000
    """Scans times places (buses and branches) of all windows of one request: a short body can name a large grid."""
    max_depth: int = 32
    rate_per_s: float = 50.0
    burst: int = 100
    timeout_s: float = 30.0
    max_running: int = 64
    """Requests that are answered at once, pages' streams not counted."""
    max_streams: int = 64
    """Pages that may be connected at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """All settings of a live deployment."""

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    consumer: ConsumerSettings = field(default_factory=ConsumerSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    registries: tuple[str, ...] = ()
    """Run folders whose champions judge; the shipped models where none is named. Later ones come first for a grid."""
    budget: float = 0.0
    """Incidents a day and grid that the threshold is set for; 0 keeps the threshold of the model."""

    def preflight(self) -> None:
        """Refuse what must not run.

        Raises: ConfigError for a bind beyond loopback without keys, or a keys file that others may read.
        """
        if self.http.host not in LOOPBACK and self.http.keys_file is None:
            raise ConfigError(
                f"http.host {self.http.host}: beyond loopback every route needs a key; give --keys-file"
                " (gg-ray keys add NAME --scope read), or keep 127.0.0.1"
            )
        if self.http.keys_file is not None:
            secret_file(self.http.keys_file)


def secret_file(path: Path) -> str:
    """Text of a file that only its owner may read.

    Raises: ConfigError for a missing file, or one that group or others may read.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: others may read it (mode {stat.S_IMODE(mode):o}); chmod 600 {path}")
    return text


def kafka_from(env: Mapping[str, str], bootstrap: str | None = None) -> KafkaSettings:
    """Broker settings of the environment: KAFKA_BOOTSTRAP, KAFKA_GROUP and KAFKA_CONF_* for librdkafka.

    KAFKA_CONF_SASL_PASSWORD=… becomes sasl.password; KAFKA_CONF_SASL_PASSWORD_FILE names a file of mode 0600.
    Raises: ConfigError as secret_file.
    """
    extra: dict[str, str] = {}
    for name, value in env.items():
        if not name.startswith("KAFKA_CONF_"):
            continue
        key = name.removeprefix("KAFKA_CONF_").lower().replace("_", ".")
        if key.endswith(".file"):
            extra[key.removesuffix(".file")] = secret_file(Path(value)).strip()
        else:
            extra[key] = value
    default = KafkaSettings()
    return KafkaSettings(
        bootstrap=bootstrap or env.get("KAFKA_BOOTSTRAP", default.bootstrap),
        group=env.get("KAFKA_GROUP", default.group), extra=extra,
    )  # fmt: skip


def redis_url_from(env: Mapping[str, str] = os.environ) -> str:
    """REDIS_URL, or the text of REDIS_URL_FILE, or this machine's own."""
    if file := env.get("REDIS_URL_FILE"):
        return secret_file(Path(file)).strip()
    return env.get("REDIS_URL", "redis://127.0.0.1:6379/0")
