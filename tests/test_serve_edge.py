"""The whole live path on a real Ray Serve: scans are judged, HTTP answers, a killed Verifier loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
import redis
from fault_rig import scan, until

from serve import keys, topics
from serve.embedded import Broker, RedisServer
from serve.examples import SCORE_EXAMPLE
from serve.feed import Feed
from serve.settings import HttpSettings, KafkaSettings, LiveSettings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
PORT = 8_471


@pytest.fixture(scope="module")
def live(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSettings]:
    from ray import serve

    from serve.edge import application

    folder = tmp_path_factory.mktemp("live")
    with Broker(folder) as broker, RedisServer(folder) as store:
        settings = LiveSettings(
            kafka=KafkaSettings(bootstrap=broker.bootstrap, partitions=1), redis_url=store.url,
            http=HttpSettings(port=PORT),
        )  # fmt: skip
        topics.ensure(settings.kafka)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(application(settings, str(folder / "models")), name="gg")
        yield settings
        serve.shutdown()


def versions(settings: LiveSettings) -> list[str]:
    client = redis.Redis.from_url(settings.redis_url)
    return [json.loads(fields[b"json"])["version"] for _, fields in client.xrange(keys.verdicts("north"))]


def send(settings: LiveSettings, numbers: range) -> int:
    with Feed(settings.kafka, settings.redis_url, "test") as feed:
        for number in numbers:
            feed.send(scan("north", number, epoch=1))
        return feed.epoch


def test_scans_are_judged_http_answers_and_a_killed_verifier_loses_nothing(live: LiveSettings) -> None:
    first = send(live, range(20))
    until(lambda: len(versions(live)) == 20, "twenty verdicts", 120)
    url = f"http://127.0.0.1:{PORT}"
    assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    [grid] = httpx.get(f"{url}/v1/grids", timeout=30).json()["grids"]
    assert (grid["grid"], grid["verdict"]["version"]) == ("north", f"{first}.20")
    scored = httpx.post(f"{url}/v1/score", json=SCORE_EXAMPLE, timeout=60)
    assert scored.status_code == 200, scored.text
    names = [n for n in ray.util.list_named_actors(all_namespaces=True) if "#Verifier#" in n["name"]]
    for name in names:
        ray.kill(ray.get_actor(**name))
    second = send(live, range(20, 40))
    until(lambda: len(versions(live)) == 40, "twenty more", 180)
    wanted = [f"{first}.{n}" for n in range(1, 21)] + [f"{second}.{n}" for n in range(1, 21)]
    assert names
    assert versions(live) == wanted


def test_settings_of_a_deployment_come_from_its_environment(tmp_path: Path) -> None:
    from serve.edge import settings_from

    env = {
        "KAFKA_BOOTSTRAP": "k:9",
        "REDIS_URL": "redis://r:1/0",
        "GG_RUNS": "a,b",
        "GG_BUDGET": "2",
        "GG_HTTP_KEYS": "f",
    }
    settings = settings_from(env)
    assert (settings.kafka.bootstrap, settings.redis_url, settings.registries) == ("k:9", "redis://r:1/0", ("a", "b"))
    assert (settings.budget, settings.http.keys_file) == (2.0, Path("f"))
