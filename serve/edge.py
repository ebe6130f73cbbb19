"""The live path as a Serve application: HTTP edge, scan consumer and Verifier.

Flow:    settings -> [edge: application] -> serve.run, or `serve deploy serve/config.yaml` through `from_environment`
Source:  ray.md, section 6; docs/adr/0024-models-at-work.md

The edge's app is built inside its replica; the handle that it asks arrives in the constructor, so the app is given a
scorer that learns of it later.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from redis.asyncio import Redis

from serve.app import make_app
from serve.consumer import ConsumerDeployment
from serve.judges import JUDGE
from serve.layouts import layout_of
from serve.settings import HttpSettings, LiveSettings, kafka_from, redis_url_from
from serve.verifier import VerifierDeployment


def application(settings: LiveSettings, state_dir: str = "", replicas: int = 1) -> Any:
    """The Serve application of some settings.

    Args:    state_dir  where a Verifier replica remembers what worked last;  replicas  of the Verifier
    Raises:  ConfigError as LiveSettings.preflight
    """
    settings.preflight()
    wanted = {"registries": list(settings.registries), "budget": settings.budget}
    verifier = VerifierDeployment.options(  # type: ignore[attr-defined]
        num_replicas=replicas, user_config=wanted
    ).bind(settings.redis_url, state_dir, settings.budget)

    def build() -> Any:
        return make_app(settings, Redis.from_url(settings.redis_url), JUDGE, layout_of)

    @serve.deployment(name="Edge", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.25})
    @serve.ingress(build)
    class Edge:
        def __init__(self, verifier: Any, consumer: Any) -> None:
            JUDGE.handle = verifier
            self._consumer = consumer

    consumer = ConsumerDeployment.bind(settings, verifier)  # type: ignore[attr-defined]
    return Edge.bind(verifier, consumer)  # type: ignore[attr-defined]


def settings_from(env: dict[str, str]) -> LiveSettings:
    """Settings of the environment: KAFKA_*, REDIS_URL, GG_RUNS (run folders, comma), GG_BUDGET, GG_HTTP_KEYS.

    GG_RUNS and GG_BUDGET are what the Verifier is told where the `user_config` of a Serve config says nothing else.
    """
    http = HttpSettings()
    if keys := env.get("GG_HTTP_KEYS"):
        http = replace(http, keys_file=Path(keys))
    runs = tuple(name for name in env.get("GG_RUNS", "").split(",") if name)
    return LiveSettings(
        kafka=kafka_from(env), redis_url=redis_url_from(env), http=http, registries=runs,
        budget=float(env.get("GG_BUDGET", "0")),
    )  # fmt: skip


def from_environment(_: dict[str, Any] | None = None) -> Any:
    """What serve/config.yaml imports. GG_STATE_DIR is where a Verifier replica remembers what worked last."""
    return application(settings_from(dict(os.environ)), os.environ.get("GG_STATE_DIR", ""))
