"""The folder of a run: config, metrics, checkpoints; how it starts, how it resumes.

Flow:    cli -> train -> [run_state] -> runs/NAME/{config.yaml, metrics.jsonl, tensorboard/, checkpoints/, report/,
         registry/}
Source:  ray.md, section 2 (resume means everything)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gg_ray import checkpoint
from gg_ray.config import ConfigError, RunConfig, as_dict
from gg_ray.config_io import dump
from gg_ray.files import verify_file, write_atomic
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game

PARTS = ("game", "replay", "random", "elapsed")
MAY_CHANGE = (
    "selfplay.steps", "name", "actors.proposers", "actors.solvers", "actors.in_flight", "actors.call_timeout_s",
    "checkpoint", "evaluate", "scenario.data_dir",
)  # fmt: skip
"""Settings that a resumed run may change: they do not alter what has been learned so far."""


class RunFolder:
    """One run directory.

    Invariant: a fresh run never mixes with an older one of the same name (it is moved aside); config.yaml is written
    before anything else.
    """

    def __init__(self, root: Path, config: RunConfig) -> None:
        self.root, self.config = root, config
        self.checkpoints = root / "checkpoints"
        self.metrics = root / "metrics.jsonl"

    def open(self, resume: str | None) -> Path | None:
        """Prepare the folder. Returns: the checkpoint to continue from, None for a fresh start.

        Raises: ConfigError for a --resume that names nothing or a run directory that is a file; CheckpointError for
                another configuration or a damaged file. The folder is then as it was.
        """
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{self.root} is a file, not a run directory; use another --name or --out")
        found = self._find(resume)
        if found is not None:
            manifest = checkpoint.read_manifest(found)
            now = as_dict(self.config)
            checkpoint.require_config(
                found, checkpoint.config_hash(now, MAY_CHANGE), checkpoint.config_diff(manifest.config, now, MAY_CHANGE)
            )
            if resume != "auto":  # before the old run moves aside; auto takes only what it has verified
                for name, entry in manifest.files.items():
                    verify_file(found, name, entry)
        # a checkpoint of another run starts a folder of its own: its steps must not join this one's metrics
        if found is None or self.root.resolve() not in found.resolve().parents:
            self._move_aside()
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / "config.yaml", dump(self.config))
        return found

    def _find(self, resume: str | None) -> Path | None:
        if resume is None:
            return None
        if resume == "auto":
            return checkpoint.latest(self.checkpoints) if self.checkpoints.is_dir() else None
        path = Path(resume)
        if not path.is_dir():
            raise ConfigError(f"--resume {resume}: no such checkpoint; use auto or one of {self.checkpoints}/step-*")
        return path

    def _move_aside(self) -> None:
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        number = 1
        while (old := self.root.with_name(f"{self.root.name}.{number}")).exists():
            number += 1
        self.root.rename(old)

    def save(self, game: Game, buffer: Any, elapsed_s: float) -> Path:
        """Write a checkpoint of everything.

        Raises: CheckpointError when the disk refuses; older checkpoints stay valid.
        """
        config = self.config
        state = {
            "game": game.state_dict(), "replay": buffer.state_dict(config.checkpoint.replay_tail),
            "random": checkpoint.random_states({}), "elapsed": {"seconds": elapsed_s, "saved_unix": time.time()},
        }  # fmt: skip
        return checkpoint.save(
            self.checkpoints, game.step, state, config_hash=checkpoint.config_hash(as_dict(config), MAY_CHANGE),
            keep=config.checkpoint.keep, config=as_dict(config),
        )  # fmt: skip

    def restore(self, path: Path, game: Game, buffer: Buffer) -> float:
        """Load a checkpoint into a game and a buffer. Returns: seconds already spent."""
        state = checkpoint.load(path, require=PARTS)
        game.load_state_dict(state["game"])
        buffer.load_state_dict(state["replay"])
        checkpoint.restore_random_states(state["random"], {})
        return float(state["elapsed"]["seconds"])
