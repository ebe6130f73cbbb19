"""Where numbers come from: versions of what computes them, the commit of the code, the machine.

Flow:    [provenance] -> checkpoint and registry manifests, results.json, benchmarks
Rule:    nothing here names the host, its user or its paths
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DECIDING = (
    "gg-ray", "numpy", "scipy", "numba", "torch", "torch-geometric", "lightsim2grid", "power-grid-model",
    "scikit-learn", "safetensors", "ray",
)  # fmt: skip
"""Distributions that make, order or store the numbers of a run."""


def library_versions() -> dict[str, str]:
    """Versions that decide whether two machines give the same numbers: name -> version, absent ones left out."""
    out = {"python": platform.python_version()}
    for name in _DECIDING:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out | {"commit": commit_at_start()}


def version_differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One entry per name whose version differs, as `torch 2.10.0 -> 2.11.0`; what only one side knows is left out."""
    both = [name for name in then if name in now and "unknown" not in (then[name], now[name])]
    return [f"{name} {then[name]} -> {now[name]}" for name in both if then[name] != now[name]]


def machine_info() -> dict[str, str | int | float]:
    """Processor, usable cores, memory (GiB), Python and torch versions; nothing that names the host or its paths."""
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = "none"
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch_version,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def commit_at_start() -> str:
    """Commit of the code when it was first asked for: files may change under a process, what it runs does not."""
    return git_commit()


def git_commit(root: Path | None = None) -> str:
    """Short hash of the checkout, with "+dirty" when files differ from it; "unknown" outside one.

    root defaults to the folder above this package, which must be the top of the checkout: an installed copy inside
    some other repository's environment does not report that repository's commit.
    """
    folder = Path(__file__).resolve().parents[1] if root is None else root.resolve()
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != folder:
            return "unknown"
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        dirty = _git(folder, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+dirty" if dirty else commit


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(("git", *args), cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
