"""What stands in deploy/ and serve/config.yaml against what the code builds, reads and tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_containers_are_pinned_and_published_on_loopback_only() -> None:
    services = loaded("deploy/compose.yaml")["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "image" in service:
            assert re.search(r":v?\d+\.\d+", service["image"]), f"{name}: {service['image']} is not pinned"
    command = services["app"]["command"]
    assert "--keys-file" in command, "beyond loopback only with keys"
    assert set(services["app"]["environment"]) <= {"KAFKA_BOOTSTRAP", "REDIS_URL", "RAY_AUTH_MODE"}


def test_the_serve_config_names_the_deployments_that_are_built() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.edge import application
    from serve.settings import LiveSettings
    from serve.verifier import Wanted

    config = loaded("serve/config.yaml")
    schema = ServeDeploySchema.model_validate(config) if hasattr(ServeDeploySchema, "model_validate") else None
    assert schema is None or schema.applications[0].import_path == "serve.edge:from_environment"
    assert config["http_options"]["host"] == "127.0.0.1"
    named = {deployment["name"]: deployment for deployment in config["applications"][0]["deployments"]}
    built = application(LiveSettings())
    names = {built._bound_deployment.name}
    waiting = list(built._bound_deployment.init_args)
    while waiting:
        one = waiting.pop()
        if hasattr(one, "_bound_deployment"):
            names.add(one._bound_deployment.name)
            waiting += list(one._bound_deployment.init_args)
    assert names == set(named)
    Wanted.of(named["Verifier"]["user_config"])


def test_alerts_ask_for_metrics_that_exist() -> None:
    from serve.observe import Metrics, exposition

    status = {
        "lag": 1,
        "lag_s": 0.1,
        "in_flight": 0,
        "paused": 0,
        "commit_age_s": 0.1,
        "grids": 1,
        "counts": {"scans": 1},
    }
    statuses = {
        "consumer": [{"name": "c", **status}],
        "verifier": [{"name": "v", "windows": 3, "swaps": 1}],
        "feeds": [],
    }
    told = exposition(Metrics(), statuses)
    text = told.decode() if isinstance(told, bytes) else told
    rules = [rule for group in loaded("deploy/alerts.yaml")["groups"] for rule in group["rules"]]
    for rule in rules:
        for name in re.findall(r"\bgg_\w+", rule["expr"]):
            assert re.search(rf"^{name}\b", text, re.MULTILINE), f"{rule['alert']}: {name} is not exported"
    assert loaded("deploy/prometheus.yml")["rule_files"] == ["alerts.yaml"]


@pytest.mark.parametrize("module", ["loop", "origins", "scribe"])
def test_every_counter_is_in_the_runbook(module: str) -> None:
    source = (ROOT / "serve" / f"{module}.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in re.findall(r'counts\[f?"([^"]+)"\]', source):
        family = name.partition("{")[0]
        assert family.rstrip(".") in page, f"{name} is not in docs/operations.md"
