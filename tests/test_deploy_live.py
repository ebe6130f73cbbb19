"""What stands in deploy/, serve/config.yaml and the runbook against what the code builds, reads, tells and counts."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from serve.settings import HttpSettings, KafkaSettings, LiveSettings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
NOWHERE = "127.0.0.1:1"


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


SERVICES: dict[str, Any] = loaded("deploy/compose.yaml")["services"]
RULES = [rule for group in loaded("deploy/alerts.yaml")["groups"] for rule in group["rules"]]
PANELS = json.loads((DEPLOY / "grafana" / "gg-live.json").read_text(encoding="utf-8"))["panels"]


# --- containers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_pinned_watched_and_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "network_mode" not in service
    assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?$", service["image"]), f"{service['image']} is not pinned"
    assert "healthcheck" in service or name == "feed"


def read_by_the_code() -> set[str]:
    """Names of environment variables that serve/ reads, KAFKA_CONF_ among them."""
    text = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "serve").glob("*.py")))
    return set(re.findall(r'"((?:KAFKA|REDIS|GG|RAY)_[A-Z_]+)"', text))


def test_environment_names_are_those_that_the_code_reads() -> None:
    known = read_by_the_code()
    assert {"KAFKA_BOOTSTRAP", "KAFKA_GROUP", "REDIS_URL_FILE", "GG_STATE_DIR"} <= known, "the reader of names is blind"
    for name in ("app", "feed"):
        assert set(SERVICES[name]["environment"]) - known == set()
    told = set(re.findall(r"\b(?:KAFKA|REDIS|GG)_[A-Z_]+\b", (ROOT / "serve/config.yaml").read_text(encoding="utf-8")))
    assert told - known == set()


def test_every_value_that_compose_wants_is_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    given = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(given) == wanted


def test_commands_of_containers_parse() -> None:
    from gg_ray import cli
    from gg_ray.options import parse

    def words(name: str) -> list[str]:
        return [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(word)) for word in SERVICES[name]["command"]]

    program, command, *args = words("app")
    assert (program, command) == ("gg-ray", "serve")
    options = parse(cli.ServeOptions, args, prog="serve")
    assert options.keys_file is not None, "beyond loopback only with keys"
    program, command, *args = words("feed")
    assert (program, command) == ("gg-ray", "feed")
    parse(cli.FeedOptions, args, prog="feed")


def test_the_broker_takes_what_the_feed_and_the_dead_letters_send() -> None:
    from serve.dead_letters import MAX_LETTER

    kafka = SERVICES["kafka"]["environment"]
    assert int(kafka["KAFKA_MESSAGE_MAX_BYTES"]) >= MAX_LETTER
    [volume] = SERVICES["kafka"]["volumes"]
    assert volume == f"kafka:{kafka['KAFKA_LOG_DIRS']}", "the log must outlive its container"


def test_secrets_are_files_outside_of_the_repository(tmp_path: Path) -> None:
    """secrets.sh makes every file that compose names, with the modes that their readers need."""
    deploy = tmp_path / "deploy"
    deploy.mkdir()
    for name in ("secrets.sh", "redis-users.acl.example"):
        shutil.copy(DEPLOY / name, deploy / name)
    stub = tmp_path / "gg-ray"
    stub.write_text('#!/bin/sh\nwhile [ "$1" != --file ]; do shift; done; echo {} >> "$2"; echo a-key\n')
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([deploy / "secrets.sh"], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {name: deploy / secret["file"] for name, secret in loaded("deploy/compose.yaml")["secrets"].items()}
    assert [str(path) for path in wanted.values() if not path.is_file()] == []
    modes = {name: path.stat().st_mode & 0o777 for name, path in wanted.items()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {"keys", "redis-url"}, "serve refuses others"
    assert (deploy / "secrets").stat().st_mode & 0o777 == 0o700
    password = re.fullmatch(r"redis://gg:([\w-]{40,})@redis:6379/0\n", wanted["redis-url"].read_text())
    assert password is not None
    assert password[1] not in wanted["redis-users"].read_text()
    again = subprocess.run([deploy / "secrets.sh"], env=env, capture_output=True, timeout=30, check=False)
    assert again.returncode == 1, "secrets that are in use are never overwritten"
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    assert used == set(wanted)


def test_the_image_is_made_of_what_is_listed_and_runs_without_root() -> None:
    lines = (DEPLOY / "Dockerfile.live").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-\w+", next(line for line in lines if line.startswith("FROM")))
    assert "USER gg" in lines
    ignore = (DEPLOY / "Dockerfile.live.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    sources = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {f"!{source}" for source in sources} == {line for line in ignore if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []


# --- Ray Serve ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_the_serve_config_is_what_the_code_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.edge import from_environment
    from serve.verifier import Wanted

    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    config = ServeDeploySchema.model_validate(loaded("serve/config.yaml"))
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.port == HttpSettings().port
    [application] = config.applications
    assert application.import_path == f"{from_environment.__module__}:{from_environment.__name__}"
    built: dict[str, Any] = {}
    waiting = [from_environment({})]
    while waiting:
        deployment = waiting.pop()._bound_deployment
        built[deployment.name] = deployment
        waiting += [one for one in deployment.init_args if hasattr(one, "_bound_deployment")]
    named = {deployment.name: deployment for deployment in application.deployments}
    assert set(named) == set(built)
    for name, deployment in named.items():
        assert deployment.ray_actor_options.num_cpus == built[name].ray_actor_options["num_cpus"], name
        given = deployment.model_dump(exclude_unset=True)
        assert given.get("max_ongoing_requests", built[name].max_ongoing_requests) == built[name].max_ongoing_requests
    Wanted.of(named["Verifier"].user_config)
    assert not {"registries", "budget"} & set(named["Verifier"].user_config), "they would hide GG_RUNS and GG_BUDGET"


# --- what is watched ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of metrics of an edge that has answered, and of parts that tell of themselves."""
    from serve.feed import Feed
    from serve.loop import ScanLoop
    from serve.observe import Metrics, exposition
    from serve.scorers import NullScorer
    from serve.verifier import Replica

    kafka = KafkaSettings(bootstrap=NOWHERE, extra={"log_level": "0"})
    loop = ScanLoop(LiveSettings(kafka=kafka), NullScorer())
    loop.counts["scans"] += 1
    consumer = loop.status()
    loop.consumer.close()
    feed = Feed(kafka, "redis://127.0.0.1:1/0").status()
    metrics = Metrics()
    metrics.requests.labels("/readyz", "GET", "200").inc()
    metrics.seconds.labels("/readyz").observe(0.1)
    statuses = {"consumer": [consumer], "verifier": [Replica().about()], "feed": [feed]}
    text = exposition(metrics, json.loads(json.dumps(statuses)), True).decode()
    return set(re.findall(r"^(gg_\w+)", text, re.MULTILINE))


def names_of(query: str) -> set[str]:
    return set(re.findall(r"\bgg_\w+", query))


def test_alerts_and_panels_ask_for_metrics_that_exist(exported: set[str]) -> None:
    asked = {rule["alert"]: names_of(rule["expr"]) for rule in RULES}
    asked |= {panel["title"]: {n for t in panel["targets"] for n in names_of(t["expr"])} for panel in PANELS}
    assert {name: sorted(names - exported) for name, names in asked.items() if names - exported} == {}
    assert {name for name, names in asked.items() if not names} == {"EdgeMissing"}, "Prometheus' own `up`"
    assert loaded("deploy/prometheus.yml")["rule_files"] == ["alerts.yaml"]


def test_trouble_and_an_absent_store_are_numbers() -> None:
    from serve.observe import Metrics, exposition

    part = {"name": "v", "models": [{}, {}], "trouble": "no such folder", "since_ms": 1}
    text = exposition(Metrics(), {"verifier": [part, {**part, "name": "w", "trouble": ""}]}, False).decode()
    assert 'gg_verifier_models{name="v",of=""} 2.0' in text
    assert 'gg_verifier_trouble{name="v",of=""} 1.0' in text
    assert 'gg_verifier_trouble{name="w",of=""} 0.0' in text
    assert "gg_store_up 0.0" in text


def test_alerts_say_what_to_do_in_the_runbook() -> None:
    heads = set(re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["runbook"] in heads, rule["alert"]
        assert f"`{rule['alert']}`" in RUNBOOK, f"{rule['alert']} is not explained"
    cap = next(rule for rule in RULES if rule["alert"] == "StreamsAtCap")
    limit = int(cap["expr"].split()[-1])
    assert limit == round(0.9 * HttpSettings().max_streams)


def test_every_alert_has_a_test_of_its_rule() -> None:
    tested = {
        case["alertname"]
        for test in loaded("deploy/alerts.test.yaml")["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert {rule["alert"] for rule in RULES} == tested


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_rules_fire_as_promtool_says() -> None:
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_provisioned() -> None:
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    for source in mounts:
        assert not source.startswith("./") or (DEPLOY / source).is_file(), source
    assert mounts["./grafana/gg-live.json"].startswith(
        loaded("deploy/grafana/provisioning.yaml")["providers"][0]["options"]["path"]
    )
    [source] = loaded("deploy/grafana/datasource.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


# --- the runbook ----------------------------------------------------------------------------------------------------


def in_tables() -> set[str]:
    """Names in the first cells of the runbook's tables."""
    cells = [line.split("|")[1] for line in RUNBOOK.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def poison_kinds() -> set[str]:
    """First arguments of Poison wherever it is raised: texts, or one of two by a condition."""
    kinds = {"verifier"}
    for file in sorted((ROOT / "serve").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Poison":
                kind = node.args[0]
                for one in (kind.body, kind.orelse) if isinstance(kind, ast.IfExp) else (kind,):
                    assert isinstance(one, ast.Constant), f"{file.name}: {ast.unparse(node)}"
                    kinds.add(str(one.value))
    return kinds


def counters() -> set[str]:
    """Every name that serve/loop.py counts, families written out."""
    from serve.rings import Place
    from serve.store import Answer

    origins = (ROOT / "serve" / "origins.py").read_text(encoding="utf-8")
    families = {
        "dead.": poison_kinds(),
        "shed.": {*get_args(Place), "lag"} - {"newest"},
        "applied.": set(get_args(Answer)),
        "start.": set(re.findall(r'cause, [\w, ]+= "([\w-]+)"', origins)),
        "broker.": {"NAME"},
    }
    found: set[str] = set()
    for name in re.findall(r'counts\[f?"([^"]+)"\]', (ROOT / "serve" / "loop.py").read_text(encoding="utf-8")):
        family, _, rest = name.partition("{")
        found |= {f"{family}{member}" for member in families[family]} if rest else {name}
    return found


def test_every_counter_is_in_the_runbook_and_no_other() -> None:
    wanted = counters()
    assert {"scans", "dead.unit", "applied.gap", "start.log-lost", "shed.lag", "store-away"} <= wanted
    told = {name for name in in_tables() if name in wanted or re.match(r"(dead|shed|applied|start|broker)\.", name)}
    assert told == wanted


def test_options_of_dead_letters_name_every_kind() -> None:
    from gg_ray import live_options

    text = Path(live_options.__file__).read_text(encoding="utf-8")
    [listed] = re.findall(r"Only letters of this kind: ([^.]+)\.", text)
    assert set(re.findall(r"\w+", listed)) - {"or"} == poison_kinds()
