"""The documents tell the truth: every logged metric is explained, links resolve, commands and settings exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gg_ray import cli
from gg_ray.config_io import load, setting_paths
from gg_ray.options import options_of, parse
from gg_ray.pretrain import warm_start
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play
from gg_ray.train import _Watcher

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
LINE = {"step", "kind", "nonfinite"}
"""Written by the tracker, not by the run."""


def documented() -> dict[str, list[str]]:
    """Name -> the other cells of its row in docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line[:3] == "| `"]
    names = [row[0].strip("`") for row in rows]
    assert len(names) == len(set(names)), "a metric has two rows"
    return dict(zip(names, [row[1:] for row in rows], strict=True))


def covers(row: str, name: str) -> bool:
    """Whether a documented name, with placeholders such as <family>, stands for a logged one."""
    return (
        re.fullmatch(re.sub(r"<\w+>", r"[^/]+", re.escape(row).replace(r"\<", "<").replace(r"\>", ">")), name)
        is not None
    )


def missing(names: set[str]) -> list[str]:
    rows = documented()
    return sorted(name for name in names if not any(covers(row, name) for row in rows))


def options_class(command: str) -> str:
    """dead-letters has DeadLettersOptions."""
    return "".join(part.capitalize() for part in command.split("-")) + "Options"


@pytest.fixture(scope="module")
def logged() -> set[str]:
    """Names that the real watcher of `gg-ray train` hands to its tracker in a game of a few steps."""
    smoke = load("smoke")
    config = replace(
        smoke,
        scenario=replace(smoke.scenario, cases=("case14",), plans=1),
        learner=replace(smoke.learner, batch=8, solver_every=1, publish_every=3, pretrain_steps=2),
        proposer=replace(smoke.proposer, batch=4),
        selfplay=replace(smoke.selfplay, steps=12),
        replay=replace(smoke.replay, min_size=8, samples_per_insert=0.5),
        evaluate=replace(smoke.evaluate, every_steps=10, held_out_cases=()),
    )
    contexts = context_source(None)
    names: set[str] = set()
    tracker: Any = SimpleNamespace(log=lambda _step, metrics: names.update(metrics))
    display: Any = SimpleNamespace(update=lambda _: None, note=lambda _: None)
    folder: Any = SimpleNamespace(save=lambda *_: Path("step"))
    game = Game(config)
    warm_start(config, contexts, game, lambda _: None)
    play(config, contexts, game, Buffer(config), _Watcher(config, folder, contexts, display, tracker, 0.0))
    return names


def test_every_logged_metric_is_documented(logged: set[str]) -> None:
    assert {"loss/total", "policy/loss", "solver/loss", "eval/auroc", "skill/A2"} <= logged, "the game was too short"
    assert missing(logged) == []


def actor_metrics() -> set[str]:
    """Metric names in the source of actors/: plain strings, and f-strings with `x` for what varies."""
    found = set()
    for file in sorted((ROOT / "actors").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values))
    return {name for name in found if re.fullmatch(r"(time|actors|eval|replay|policy)/[a-z_0-9/]*[a-z0-9]", name)}


def test_metrics_of_the_actors_are_documented() -> None:
    from gg_ray.replay.limiter import StalenessManager

    states = StalenessManager(batch=1, max_running=1, max_lag=0).state_dict()
    names = actor_metrics()
    assert {"actors/proposers", "actors/solvers"} <= names
    plain = {name for name in names if name != "actors/windows_x"} | {f"actors/windows_{state}" for state in states}
    assert missing(plain) == []


def test_no_documented_metric_is_a_relic(logged: set[str]) -> None:
    from gg_ray.replay.limiter import StalenessManager

    states = StalenessManager(batch=1, max_running=1, max_lag=0).state_dict()
    alive = logged | actor_metrics() | LINE | {f"actors/windows_{state}" for state in states}
    assert sorted(row for row in documented() if not any(covers(row, name) for name in alive)) == []


def test_rows_of_the_metrics_page_are_whole() -> None:
    assert {name: cells for name, cells in documented().items() if len(cells) != 4 or not cells[1]} == {}


def test_placeholders_cover_one_word_only() -> None:
    assert covers("skill/<family>", "skill/A2")
    assert not covers("skill/<family>", "skill/A2/case14")
    assert not covers("skill", "skill/A2")


# --- links ----------------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


# --- commands and settings ------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `gg-ray` of each command in a page's shell blocks or in a script; those in make's ARGS too."""
    text = page.read_text(encoding="utf-8")
    blocks = (
        [text] if page.suffix == ".sh" else re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
    for line in "\n".join(blocks).splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "$@"]
        if words[:1] == ["gg-ray"]:
            yield words[1:]
        elif words[:1] == ["make"]:
            yield from ([words[1], *shlex.split(word[5:])] for word in words if word.startswith("ARGS="))


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    for name, *args in commands(page):
        assert name in cli.COMMANDS, f"gg-ray {name} does not exist"
        options = getattr(cli, options_class(name))
        known = {*options_of(options), *(cli.TRAIN_ALIASES if name == "train" else ())}
        given = [arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")]
        assert [option for option in given if option not in known] == []
        aliases = cli.TRAIN_ALIASES if name == "train" else None
        parse(options, args, prog=name, default=options() if name == "train" else None, aliases=aliases)


def test_the_readme_shows_every_command() -> None:
    assert set(cli.COMMANDS) - {words[0] for words in commands(ROOT / "README.md")} == set()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("page", PAGES[:2] + sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_settings_and_options_in_text_exist(page: Path) -> None:
    """`replay.min_size` and `--learner.lr` in running text are settings of a run."""
    paths = set(setting_paths())
    sections = {path.partition(".")[0] for path in paths if "." in path}
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    dotted = {span.partition("=")[0] for span in spans if re.fullmatch(r"[a-z]+(\.[a-z_]+)+(=\S*)?", span)}
    unknown = {s for s in dotted if s.split(".")[0] in sections and s not in paths and not s.endswith(".py")}
    options = {word.partition("=")[0] for span in spans for word in span.split() if re.match(r"--[a-z]", word)}
    known = {"--help", *cli.TRAIN_ALIASES}
    for name in cli.COMMANDS:
        known |= set(options_of(getattr(cli, options_class(name))))
    assert unknown | {option for option in options if option.replace("_", "-") not in known} == set()


def test_scripts_stop_at_the_first_error() -> None:
    assert [script.name for script in SCRIPTS] != []
    for script in SCRIPTS:
        lines = script.read_text(encoding="utf-8").splitlines()
        assert "set -eu" in lines, script.name
        assert any("Expected time" in line for line in lines), script.name
