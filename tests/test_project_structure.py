"""The repository itself: import direction, pinned versions, set-up files, and a README tree that tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_CORE = ("ray", "confluent_kafka", "redis", "fastapi", "actors", "tune", "serve")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in named}


def core_modules() -> list[str]:
    """Dotted names of every module of the core but the composition root, found on disk, not by importing."""
    files = sorted((ROOT / "gg_ray").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return [name for name in names if name != "gg_ray.cli"]


def test_import_contracts_hold() -> None:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_imports_without_ray() -> None:
    """A fresh interpreter imports each core module; whichever first pulls in something from above is named."""
    program = (
        "import importlib, sys\n"
        f"outside = {OUTSIDE_CORE!r}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    found = [top for top in outside if top in sys.modules]\n"
        "    if found: sys.exit(f'{name} imports {found}')\n"
    )
    modules = core_modules()
    assert len(modules) > 5
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_core_prints_nothing() -> None:
    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    command = [sys.executable, "-W", "ignore", "-c", program, "gg_ray.config_io", "gg_ray.cli"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("need", REQUIREMENTS, ids=lambda need: need.name)
def test_constraints_pin_every_requirement_within_its_range(need: Requirement) -> None:
    pinned = pins().get(canonicalize_name(need.name))
    assert pinned is not None, f"constraints.txt does not pin {need.name}"
    assert need.specifier.contains(pinned), f"{need.name}=={pinned} is outside {need.specifier}"


def test_constraints_are_plain_versions() -> None:
    """No host, hash or local build: a `+cpu` pin would not install from a plain index."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert odd == []
    assert len(pins()) == sum(not line.startswith("#") for line in lines), "a package is pinned twice"


def test_temporal_has_one_version_everywhere() -> None:
    places = [ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "gg_ray" / "doctor.py"]
    found = {place.name: set(re.findall(r"==(0\.56\.\d+)", place.read_text(encoding="utf-8"))) for place in places}
    assert found == {place.name: {"0.56.2"} for place in places}


def test_packages_and_their_data_ship() -> None:
    """Every package folder has an __init__.py, and each data file beside the code has a package-data pattern."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = setuptools["package-data"]["gg_ray"]
    shipped = {file for pattern in patterns for file in (ROOT / "gg_ray").glob(pattern)}
    data = {file for ext in ("yaml", "json") for file in (ROOT / "gg_ray").rglob(f"*.{ext}")}
    assert data - shipped == set()
    assert (ROOT / "gg_ray" / "configs" / "laptop.yaml") in shipped
    bare = {file.parent for file in (ROOT / "gg_ray").rglob("*.py") if not (file.parent / "__init__.py").exists()}
    assert bare == set()


def test_tests_is_not_a_package() -> None:
    """A tests/serve/__init__.py would hide the real package `serve`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert "make test" in lines
    assert os.access(script, os.X_OK)


def test_make_targets_exist_and_test_runs_all_checks() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert {"setup", "train", "test", "bench", "lint", "types", "docs", "clean"} <= targets
    recipe = text.split("\ntest:")[1].split("\n\n")[0]
    assert [tool for tool in ("ruff check", "mypy", "lint-imports", "pytest") if tool not in recipe] == []


Make = Callable[..., tuple[list[str], subprocess.CompletedProcess[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make on a copy with a stand-in Python: gives what ran, in which order, and how it ended.

    Keywords are environment variables; FIRST and SECOND are the exit codes of the two parts of the tests.
    """
    log = tmp_path / "log"
    stub = tmp_path / "python-stub"
    stub.write_text(
        f"""#!/bin/sh
printf '%s\\n' "VENV=$VIRTUAL_ENV $*" >> '{log}'
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin
    for name in python gg-ray ruff codespell lint-imports mypy; do cp "$0" ".venv/bin/$name"; done ;;
  *torch-geometric-temporal*) exit 1 ;;
  "-m pytest"*"-m not ray"*) exit "$FIRST" ;;
  "-m pytest"*) exit "$SECOND" ;;
esac
"""
    )
    stub.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    outer = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "ARGS", "PYTEST"))
    }

    def run(*args: str, **env: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
        log.write_text("")
        command = ["make", f"PYTHON={stub}", *args]
        env = {**outer, "VIRTUAL_ENV": "/other", **env}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        return log.read_text().splitlines(), done

    return run


def test_make_sets_up_once_and_again_when_versions_change(tmp_path: Path, make: Make) -> None:
    first, done = make("train", "ARGS=--config smoke")
    assert done.returncode == 0, done.stderr
    assert [line for line in first if not line.startswith("VENV= ")] == [], "another environment leaked in"
    assert any("pip install" in line and "-c constraints.txt -e ." in line for line in first)
    assert any("--no-deps torch-geometric-temporal==" in line for line in first)
    assert "warning: torch-geometric-temporal" in done.stderr, (
        "an optional package that fails is a warning, not the end"
    )
    assert first[-1] == "VENV= train --config smoke"

    again, _ = make("train")
    assert again == ["VENV= train"], "a second run installs nothing"

    newer = (tmp_path / ".venv" / ".installed-run").stat().st_mtime + 5
    os.utime(tmp_path / "constraints.txt", (newer, newer))
    changed, _ = make("setup")
    assert any("-e ." in line for line in changed)
    assert not any("-m venv" in line for line in changed), "the environment itself is kept"


def test_make_test_fails_when_no_part_holds_a_chosen_test(make: Make) -> None:
    """pytest ends with 5 where nothing is chosen: fine for one part, a mistake for both."""
    make("setup")
    ends = {("0", "0"): 0, ("5", "0"): 0, ("0", "5"): 0, ("5", "5"): 2, ("1", "0"): 2, ("5", "1"): 2, ("0", "1"): 2}
    for (first, second), code in ends.items():
        ran, done = make("test", "PYTEST_ARGS=-k 'two words'", FIRST=first, SECOND=second)
        assert done.returncode == code, (first, second, done.stderr)
        parts = [line for line in ran if "-m pytest" in line]
        assert len(parts) == (1 if first == "1" else 2)
        assert all("-k two words" in line for line in parts)
        said = "make test: no test is chosen by PYTEST_ARGS=-k 'two words'\n"
        assert (said in done.stderr) == (first == second == "5")


def readme_tree(text: str) -> list[str]:
    """Paths of the tree in a README: the first fenced block that has a line starting with `gg_ray/`.

    A line is `indent name [· name …]  purpose`: two spaces or more end the names, a deeper indent is inside the nearest
    shallower folder, and names end in `/` for folders. Box-drawing characters count as indent.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = next(block for block in blocks if re.search(r"^[│├└─ ]*gg_ray/", block, re.MULTILINE))
    paths: list[str] = []
    above: list[tuple[int, str]] = []
    for raw in block.splitlines():
        line = re.sub(r"[│├└─]", " ", raw)
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        while above and above[-1][0] >= indent:
            above.pop()
        parent = above[-1][1] if above else ""
        names = re.split(r"\s+·\s+", re.split(r"\s{2,}|\s#", line.strip())[0])
        if not all(re.fullmatch(r"[\w./-]+", name) for name in names):
            continue  # a purpose that runs on to the next line
        paths += [f"{parent}{name}" for name in names]
        if names[-1].endswith("/"):
            above.append((indent, f"{parent}{names[-1]}"))
    return paths


def test_readme_tree_reader_follows_indent_and_shared_lines() -> None:
    text = """```
make train
```
```text
Makefile · runs/   pipeline
gg_ray/            the core
├── grid/          cases
│   └── ybus.py    admittance, and a purpose
│                  that runs on
└── a.py · b.py    two files
tests/
```
"""
    assert readme_tree(text) == [
        *("Makefile", "runs/", "gg_ray/", "gg_ray/grid/", "gg_ray/grid/ybus.py"),
        *("gg_ray/a.py", "gg_ray/b.py", "tests/"),
    ]


def test_readme_tree_names_only_what_exists() -> None:
    tree = readme_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [path for path in tree if not (ROOT / path).exists()] == []


def test_readme_tree_names_every_package_and_core_module() -> None:
    tree = {path.rstrip("/") for path in readme_tree((ROOT / "README.md").read_text(encoding="utf-8"))}
    packages = {str(file.parent.relative_to(ROOT)) for file in (ROOT / "gg_ray").rglob("__init__.py")}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "gg_ray").glob("*.py") if file.name != "__init__.py"}
    assert (packages | modules | {"actors"}) - tree == set()
