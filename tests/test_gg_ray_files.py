"""gg_ray.files.write_atomic and its users on a disk that is full: the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gg_ray import checkpoint
from gg_ray.config import as_dict
from gg_ray.config_io import load
from gg_ray.evaluate import figures, report, results
from gg_ray.files import write_atomic
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan
from gg_ray.records import Window
from gg_ray.run_state import MAY_CHANGE, RunFolder
from gg_ray.windows_io import write_windows

CONFIG = load("smoke", {"scenario.cases": ["case14"]})
FULL = (errno.ENOSPC, errno.EFBIG)


@dataclass
class Disk:
    """A folder, and a stretch in which its disk is full."""

    root: Path
    full: Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["tmpfs", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A real file system of 256 KiB where one may be mounted; a limit on the size of files does the same anywhere."""
    if request.param == "tmpfs":
        root = tmp_path / "disk"
        root.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount")

        @contextmanager
        def full() -> Iterator[None]:
            with (root / "filler").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"x" * 512):
                    pass
            yield

        try:
            yield Disk(root, full)
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)
        return
    yield Disk(tmp_path, _small_files)


@contextmanager
def _small_files() -> Iterator[None]:
    """The limit holds for the whole process, so for pytest's own output as well: lifted before the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "filler")


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    assert write_atomic(path, "one µ") == path
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.txt"]


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".a.txt.{os.getpid()}").write_bytes(b"half")
    write_atomic(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == ["a.txt"]


def test_an_error_names_the_file_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError) as refused:
        write_atomic(tmp_path / "file" / "a.txt", "y")
    assert refused.value.filename == str(tmp_path / "file" / "a.txt")


def draw(path: Path, mark: int) -> None:
    figures.coverage([[mark]], ["S1"], [3, np.inf], path)


def tell(path: Path, mark: int) -> None:
    row = results.Row(method="m", family="S1", auroc=1 / mark)
    block = results.Block(
        suite="windows", fold=0, case="case14", model="m", seed=0, commit="c", budget={}, rows=(row,)
    )  # fmt: skip
    found = results.Results(suite="windows", results=(block,), machine={}, command="")
    assert path.name in ("report.md", "results.json")
    report.write_report(path.parent, found, None, {}, report.ReportMeta(name="r"))


def sample(path: Path, mark: int) -> None:
    plan = draw_plan(load_case("case14"), 0, (0.35, 0.7), 0.01)
    scans = 16
    window = Window(
        case="case14", plan_id=0, t0_ns=mark, step_s=60.0, z_TM=np.ones((scans, plan.channels.size)),
        age_TM=np.zeros((scans, plan.channels.size), np.uint8), status_TE=np.ones((scans, plan.n_branch), np.uint8),
        tap_E=np.ones(plan.n_branch), x_scale_E=np.ones(plan.n_branch),
    )  # fmt: skip
    write_windows(path, [(window, plan)])


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "figure.png": draw, "report.md": tell, "results.json": tell, "w.parquet": sample, "w.arrow": sample,
    "w.json": sample,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_that_was_there(disk: Disk, name: str) -> None:
    folder = disk.root / "out"
    WRITERS[name](folder / name, 1)
    before, held = (folder / name).read_bytes(), names(folder)
    with disk.full(), pytest.raises(OSError, match=str(folder)) as refused:
        WRITERS[name](folder / name, 2)
    assert refused.value.errno in FULL
    assert (folder / name).read_bytes() == before
    assert names(folder) == held, "nothing half-written lies about"


def test_a_resume_on_a_full_disk_keeps_the_settings_of_the_run(disk: Disk) -> None:
    folder = RunFolder(disk.root / "run", CONFIG)
    folder.open(None)
    settings = as_dict(CONFIG)
    checkpoint.save(
        folder.checkpoints, 1, {"game": {}}, config_hash=checkpoint.config_hash(settings, MAY_CHANGE), keep=1,
        config=settings,
    )  # fmt: skip
    before = (folder.root / "config.yaml").read_bytes()
    longer = load("smoke", {"scenario.cases": ["case14"], "selfplay.steps": 60})
    with disk.full(), pytest.raises(OSError, match=r"config\.yaml") as refused:
        RunFolder(folder.root, longer).open("auto")
    assert refused.value.errno in FULL
    assert (folder.root / "config.yaml").read_bytes() == before
    assert names(folder.root) == ["checkpoints", "config.yaml"]
