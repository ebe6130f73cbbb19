"""The Verifier deployment: models that judge, swapped without a pause.

Flow:    serve.consumer, serve.app (handles) -> [verifier] -> serve.models
Source:  ray.md, section 6 (hot swap, batching); docs/adr/0024-models-at-work.md

`user_config` names what should be served; `reconfigure` only notes it. A thread loads, verifies by hash, tries on a
quiet window and exchanges one reference; what fails leaves everything as it was and is told in `about`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import serve

from gg_ray.config import ConfigError, did_you_mean
from gg_ray.files import write_atomic
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window
from gg_ray.registry import Registry, RegistryError
from serve.asks import Ask, Scored
from serve.models import Challenger, Models, load, shipped, trial
from serve.store import Store, StoreDown

LOG = logging.getLogger(__name__)
WATCH_S = 2.0
"""How often aliases are looked at, and how often a replica tells of itself."""
GOOD = "last-good.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What should be served.

    registries  run folders whose champions judge, before the shipped ones;  version  an alias or a version of them
    budget      incidents a day and grid;  challenger  run folder of a second model (its challenger alias)
    canary, shadow  shares as in models.Challenger;  follow  take a new champion when the alias moves
    """

    registries: tuple[str, ...] = ()
    version: str = "champion"
    budget: float = 0.0
    challenger: str = ""
    canary: float = 0.0
    shadow: float = 0.0
    follow: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wanted:
        """Settings from a Serve config.  Raises: ConfigError for an unknown name or an impossible share."""
        names = list(cls.__dataclass_fields__)
        for name in given:
            if name not in names:
                raise ConfigError(
                    f"user_config {name!r}{did_you_mean(name, names) or ';'} known are {', '.join(names)}"
                )
        for name, value in given.items():
            if not _fits(value, getattr(cls(), name)):
                raise ConfigError(f"user_config {name}: {value!r}; such as {getattr(cls(), name)!r}")
        wanted = cls(**{**given, "registries": tuple(given.get("registries", ()))})
        if not (0.0 <= wanted.canary <= 1.0 and 0.0 <= wanted.shadow <= 1.0 and wanted.budget >= 0.0):
            raise ConfigError(
                f"canary {wanted.canary:g} and shadow {wanted.shadow:g}: shares 0 to 1; budget not below 0"
            )
        return wanted

    def load(self) -> Models:
        """The models.  Raises: RegistryError"""
        models = Models.load(self.registries, self.budget, self.version)
        if self.challenger:
            model = load(Registry(Path(self.challenger) / "registry"), "challenger", self.budget)
            models.challenger = Challenger(model, self.canary, self.shadow)
        return models

    def aliases(self) -> tuple[tuple[str, int], ...]:
        """When the aliases that are followed were moved last."""
        roots = [Path(run) / "registry" for run in self.registries] + [path / "registry" for path in shipped()]
        return tuple((str(p), p.stat().st_mtime_ns) for root in roots for p in sorted(root.glob("models/*/aliases/*")))


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type(default))


class Replica:
    """Models at work in one process, with a watcher that exchanges them. Plain Python: Serve wraps it below.

    Invariant: there are always models, from the first successful load on; every answer comes from one set.
    """

    def __init__(self, name: str = "verifier", redis_url: str = "", state_dir: str = "") -> None:
        torch.set_num_threads(1)
        self.name = f"{name}-{os.getpid()}"
        self.models: Models | None = None
        self._wanted = Wanted()
        self._loaded_for: tuple[Wanted, tuple[tuple[str, int], ...]] = (Wanted(), ())
        self._refused, self._trouble, self._swaps, self._answered = "", "", 0, 0
        self._since = time.time()
        self._good = Path(state_dir) / GOOD if state_dir else None
        self._store = Store.connect(redis_url, "verifier") if redis_url else None
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)

    def want(self, given: Mapping[str, Any]) -> None:
        """Note what should be served; the first time load it, afterwards in the background.

        Never raises: a bad configuration is told in `about` and the models at work stay.
        """
        try:
            self._wanted, self._refused = Wanted.of(given), ""
        except (ConfigError, TypeError) as error:
            self._refused = str(error)
            LOG.error("%s", self._refused)
        if self.models is None:
            self._exchange()
        if not self._thread.is_alive():
            self._thread.start()
        self._changed.set()

    def close(self) -> None:
        """End the watcher."""
        self._closed.set()
        self._changed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._changed.wait(WATCH_S)
            self._changed.clear()
            try:
                aliases: tuple[tuple[str, int], ...] = self._wanted.aliases() if self._wanted.follow else ()
                if (self._wanted, aliases) != self._loaded_for:
                    self._exchange()
                self._tell()
            except Exception:  # the watcher must outlive whatever a disk or a store does
                LOG.exception("watching models")

    def _exchange(self) -> None:
        """Load what is wanted and put it to work; on failure keep what there is, or what last worked."""
        wanted = self._wanted
        aliases: tuple[tuple[str, int], ...] = ()
        try:
            aliases = wanted.aliases() if wanted.follow else ()
            models = wanted.load()
        except Exception as error:  # whatever a push holds: it changes nothing
            self._trouble = " ".join(str(error).split()) or type(error).__name__
            LOG.error("not served: %s", self._trouble)
            self._loaded_for = (wanted, aliases)
            if self.models is None:
                self.models = self._last_good().load()
            return
        self.models = models
        self._loaded_for, self._trouble = (wanted, aliases), ""
        self._swaps += 1
        self._keep(wanted)
        LOG.info("serving %s", ", ".join(model.name for model in models.models))

    def _keep(self, wanted: Wanted) -> None:
        """Note what works for the next process; a disk that does not take it is no reason to stop."""
        if self._good is None:
            return
        good = {"registries": wanted.registries, "version": wanted.version, "budget": wanted.budget}
        try:
            self._good.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._good, json.dumps(good))
        except OSError as error:
            LOG.warning("%s: %s", self._good, error)

    def _last_good(self) -> Wanted:
        """What worked before this process began, else the models of the package."""
        try:
            kept = json.loads(self._good.read_text()) if self._good is not None else {}
            wanted = Wanted.of(kept)
            wanted.load()
            return wanted
        except (OSError, ValueError, RegistryError, ConfigError, TypeError):
            return Wanted()

    def answer(self, asks: Sequence[Ask]) -> list[list[Scored]]:
        """Judge windows of the scan loop, all by the same models."""
        models = self.models
        if models is None:
            raise RegistryError("no models yet")
        self._answered += sum(len(ask.end_ns) for ask in asks)
        return models.answer(asks)

    def verdicts(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict | str]:
        """Verdicts of windows from HTTP; a text for a window that cannot be judged."""
        models = self.models
        if models is None:
            raise RegistryError("no models yet")
        self._answered += len(windows)
        try:
            return list(models.verdicts(windows))
        except (ValueError, RegistryError):  # one of them; which one, each says by itself
            pass
        out: list[Verdict | str] = []
        for one in windows:
            try:
                out += models.verdicts([one])
            except (ValueError, RegistryError) as error:
                out.append(str(error))
        return out

    def check(self) -> None:
        """A quiet window through every model.  Raises: RegistryError"""
        if self.models is None:
            raise RegistryError("no models yet")
        for model in self.models.models:
            trial(model)

    def about(self) -> dict[str, Any]:
        """What is served, since when, and what went wrong with what was wanted."""
        models = self.models.about() if self.models else []
        return {
            "name": self.name, "models": models, "trouble": self._refused or self._trouble, "swaps": self._swaps,
            "windows": self._answered, "since_ms": int(self._since * 1e3), "time_ms": int(time.time() * 1e3),
        }  # fmt: skip

    def _tell(self) -> None:
        if self._store is not None:
            try:
                self._store.say("verifier", self.name, self.about())
            except StoreDown as error:
                LOG.info("status: %s", error)


@serve.deployment(
    name="Verifier", max_ongoing_requests=64, graceful_shutdown_timeout_s=20, health_check_period_s=10,
    health_check_timeout_s=60, ray_actor_options={"num_cpus": 1},
)  # fmt: skip
class VerifierDeployment:
    """Serve's shell around a Replica."""

    def __init__(self, redis_url: str = "", state_dir: str = "", budget: float = 0.0) -> None:
        self._replica = Replica(redis_url=redis_url, state_dir=state_dir)
        self._budget = budget
        self._checked_at = 0.0

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Note what should be served; returns at once after the first time and never raises."""
        self._replica.want({"budget": self._budget, **(user_config or {})})

    async def answer(self, asks: list[Ask]) -> list[list[Scored]]:
        """Windows of the scan loop."""
        return await asyncio.to_thread(self._replica.answer, asks)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002, max_concurrent_batches=1)
    async def verdict(self, windows: list[tuple[Window, MeterPlan]]) -> list[Verdict | str]:
        """One window of HTTP; those that come together are judged together."""
        return await asyncio.to_thread(self._replica.verdicts, windows)

    async def about(self) -> dict[str, Any]:
        """What this replica serves."""
        return self._replica.about()

    async def check_health(self) -> None:
        """A quiet window once a minute; raises what makes Serve replace the replica."""
        if time.monotonic() - self._checked_at > 60.0:
            await asyncio.to_thread(self._replica.check)
            self._checked_at = time.monotonic()

    def __del__(self) -> None:
        if (replica := getattr(self, "_replica", None)) is not None:
            replica.close()
