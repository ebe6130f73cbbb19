"""What this machine has against what a run needs: versions, devices, imports, space.

Flow:    pyproject.toml or installed metadata + this machine -> [doctor] -> table of `gg-ray doctor`
Source:  design.md, section 6; a foreign distribution called `actors` exists, so its place is checked (ADR 0002)
Run:     gg-ray doctor
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "gg-ray"
SHELLS = ("actors",)
"""Top-level packages of this distribution beside gg_ray; each must resolve to the folder beside it."""
PYTHON_MIN = (3, 11)
MEMORY_MIN_GIB = 4.0
"""The laptop run with Ray and its evaluation stays below this."""
DISK_MIN_GIB = 1.0
"""A laptop run with checkpoints, figures and Ray's session folder."""
_GIB = 2**30
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report. Only a check that is required and not ok makes the command fail."""

    name: str
    ok: bool
    detail: str
    required: bool = True


def report(*, cwd: Path, env: Mapping[str, str]) -> list[Check]:
    """Every check of this machine, most basic first; never raises for what it checks.

    Args:    cwd  the folder a run would write into;  env  the process environment
    Returns: checks in the order of the table.
    """
    return [
        _python(),
        *versions(requirements()),
        _sweep(),
        *(_ours(name) for name in SHELLS),
        *_torch(),
        _cpus(),
        _memory(),
        *_folder(cwd),
        _temporal(),
        _ray_auth(env),
    ]


def requirements() -> list[Requirement]:
    """Our requirements with those of the extras (marker `extra == ...`), of the source tree if there is one.

    Returns an empty list where neither pyproject.toml nor installed metadata exist (a bare Ray working_dir).
    """
    pyproject = _HERE.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        if project["name"] == DISTRIBUTION:
            extras = project.get("optional-dependencies", {})
            found = [Requirement(line) for line in project["dependencies"]]
            found += [Requirement(f'{line}; extra == "{extra}"') for extra, lines in extras.items() for line in lines]
            return found
    try:
        return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return []


def versions(needs: list[Requirement]) -> list[Check]:
    """One check per base requirement and one, not required, per extra.

    Versions come from installed metadata: the core may not import Ray, not even to ask its version.
    """
    if not needs:
        return [
            Check(
                name="versions", ok=False, required=False, detail="neither pyproject.toml nor installed metadata found"
            )
        ]
    checks: list[Check] = []
    extras: dict[str, list[tuple[bool, str]]] = {}
    for need in needs:
        ok, detail = _installed(need)
        extra = _extra(need)
        if extra:
            extras.setdefault(extra, []).append((ok, f"{need.name} {detail}"))
        elif need.marker is None or need.marker.evaluate():
            checks.append(Check(name=canonicalize_name(need.name), ok=ok, detail=detail))
    for extra, rows in extras.items():
        missing = [detail for ok, detail in rows if not ok]
        detail = f"{'; '.join(missing)}. Optional: pip install -e '.[{extra}]'" if missing else "complete"
        checks.append(Check(name=f"extra {extra}", ok=not missing, required=False, detail=detail))
    return checks


def _installed(need: Requirement) -> tuple[bool, str]:
    wanted = str(need.specifier) or "any version"
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return False, f"not installed (need {wanted})"
    ok = need.specifier.contains(version, prereleases=True)
    return ok, version if ok else f"{version} is outside {wanted}"


def _extra(need: Requirement) -> str:
    """Extra that a requirement belongs to, or an empty string for a base requirement."""
    marker = str(need.marker or "")
    return marker.split("extra ==")[1].strip(" \"'()") if "extra ==" in marker else ""


def _python() -> Check:
    wanted = ".".join(map(str, PYTHON_MIN))
    ok = tuple(map(int, platform.python_version_tuple()[:2])) >= PYTHON_MIN
    return Check(name="python", ok=ok, detail=f"{platform.python_version()}{'' if ok else f'; need {wanted} or newer'}")


def _sweep() -> Check:
    name = "lightsim2grid sweep"
    try:
        found = hasattr(importlib.import_module("lightsim2grid.scenarioSweep"), "ScenarioSweepCPP")
    except ImportError as error:
        return Check(name=name, ok=False, detail=f"{error}; need lightsim2grid 1.2 or newer")
    detail = "ScenarioSweepCPP found" if found else "ScenarioSweepCPP is missing; need lightsim2grid 1.2 or newer"
    return Check(name=name, ok=found, detail=detail)


def _ours(package: str) -> Check:
    """Whether `import package` finds the folder beside gg_ray and not another distribution of that name."""
    name = f"package {package}"
    spec = importlib.util.find_spec(package)
    if spec is None:
        return Check(name=name, ok=False, detail="not importable; run pip install -e . again")
    places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or "built-in"]]
    expected = _HERE.parent / package
    if places == [expected]:
        return Check(name=name, ok=True, detail="ours")
    return Check(
        name=name,
        ok=False,
        detail=f"resolves to {places[0]}, not to {expected}; uninstall the other distribution or start from its folder",
    )


def _torch() -> list[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA build whose shared libraries are absent
        return [Check(name="torch import", ok=False, detail=str(error))]
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        detail = f"{len(gpus)} x {gpus[0]}, CUDA {torch.version.cuda}"
    else:
        build = f"CUDA {torch.version.cuda} build, but no usable device" if torch.version.cuda else "CPU build of torch"
        detail = f"none ({build}); runs use the CPU"
    return [
        Check(name="gpu", ok=torch.cuda.is_available(), required=False, detail=detail),
        Check(name="torch threads", ok=True, required=False, detail=f"{torch.get_num_threads()} (OMP_NUM_THREADS)"),
    ]


def _cpus() -> Check:
    # the affinity mask, not the machine: a container may own two cores of sixty-four
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"{cpus}" if cpus >= 2 else f"{cpus}; async mode wants 2 or more, use --mode serial"
    return Check(name="cpus", ok=cpus >= 2, required=False, detail=detail)


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one without these names
        return Check(name="memory", ok=True, required=False, detail="unknown on this platform")
    ok = total >= MEMORY_MIN_GIB
    detail = f"{total:.1f} GiB" + ("" if ok else f"; the laptop run wants {MEMORY_MIN_GIB:.0f}")
    return Check(name="memory", ok=ok, required=False, detail=detail)


def _folder(cwd: Path) -> list[Check]:
    try:
        free = shutil.disk_usage(cwd).free / _GIB
    except OSError as error:
        return [Check(name="folder", ok=False, detail=f"{cwd}: {error.strerror}")]
    roomy = free >= DISK_MIN_GIB
    space = f"{free:.1f} GiB free" + ("" if roomy else f"; a run wants {DISK_MIN_GIB:.0f}")
    try:
        with tempfile.TemporaryFile(dir=cwd):
            writable = Check(name="write permission", ok=True, detail="this folder")
    except OSError as error:
        writable = Check(
            name="write permission", ok=False, detail=f"{cwd}: {error.strerror}; start elsewhere or use --out"
        )
    return [Check(name="disk", ok=roomy, detail=space), writable]


def _temporal() -> Check:
    name = "torch-geometric-temporal"
    try:
        return Check(name=name, ok=True, required=False, detail=metadata.version(name))
    except metadata.PackageNotFoundError:
        detail = f"absent: only the encoder pygt_tgcn needs it. pip install --no-deps {name}==0.56.2"
        return Check(name=name, ok=False, required=False, detail=detail)


def _ray_auth(env: Mapping[str, str]) -> Check:
    value = env.get("RAY_AUTH_MODE")
    detail = value if value else "not set: Ray 2.60 turns token authentication on; its dashboard then wants the token"
    return Check(name="RAY_AUTH_MODE", ok=True, required=False, detail=detail)
