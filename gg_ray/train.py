"""The main job: self-play training, held-out evaluation, report, registration, promotion.

Flow:    cli -> [train] -> selfplay.loop or actors.selfplay -> evaluate -> registry
Source:  design.md, sections 2 and 6
Run:     gg-ray train --config laptop
"""

from __future__ import annotations

import copy
import errno
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gg_ray.baselines import catalogue
from gg_ray.config import RunConfig
from gg_ray.console import Display, make_console
from gg_ray.evaluate import results
from gg_ray.evaluate.job import Spread, Weights, evaluate
from gg_ray.evaluate.look import QuickLook
from gg_ray.evaluate.report import text_table
from gg_ray.files import CheckpointError
from gg_ray.grid.cases import load_case
from gg_ray.learner import Learner, new_verifier, to_numpy
from gg_ray.pretrain import warm_start
from gg_ray.publish import publish
from gg_ray.run_state import RunFolder
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.tracking import JsonlTracker, MultiTracker, TensorBoardTracker, read_jsonl

LOG = logging.getLogger(__name__)
OnStep = Callable[[Game, Any], None]
_CARRIED = ("loss/", "learner/", "solver/", "policy/", "pretrain/")


class Play(Protocol):
    """Either loop: gg_ray.selfplay.loop.play or actors.selfplay.play."""

    def __call__(
        self, config: RunConfig, contexts: ContextSource, game: Game, buffer: Buffer, on_step: OnStep, /
    ) -> None: ...


def run(config: RunConfig, out: Path, resume: str | None, play: Play, spread: Spread | None = None) -> int:
    """One whole run; returns the exit code.

    Args: out  run directory;  resume  None, "auto" or a checkpoint;  play  the loop
          spread  runs the jobs of the evaluation (job.evaluate); one after the other here when not given
    Raises: ConfigError, CheckpointError, ResourceError with the thing named; nothing is left half-written.
    """
    for case in config.evaluate.held_out_cases:
        load_case(case)
    try:
        return _run(config, out, resume, play, spread)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{out}: the disk is full ({error}); free space and go on with --resume auto. Checkpoints are untouched"
        ) from error


def _run(config: RunConfig, out: Path, resume: str | None, play: Play, spread: Spread | None) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    with make_console(sys.stdout) as display:
        game, trained_s = _trained(config, RunFolder(out, config), resume, play, display)
        display.note(f"trained {game.step} steps in {trained_s:.0f} s")
        control = _control(config, game, play, display)
        networks = networks_for(config, game.learner.weights(), None if control is None else control.learner.weights())
        rivals = {} if control is None else control.pupils
        networks |= {name: pupil.weights() for name, pupil in rivals.items()}
        verifiers = {name: pupil.network.config for name, pupil in rivals.items()}
        display.note("evaluating on held-out families, days and grids")
        evaluation = evaluate(
            config, networks, learner_steps=game.step, executor_calls=game.solves, model=config.name,
            note=display.note, spread=spread, verifiers=verifiers,
        )  # fmt: skip
        if control is not None:
            evaluation.results = with_control_budget(evaluation.results, control)
        beside = {name: networks[name] for name in (results.UNIFORM, *rivals) if name in networks}
        version = publish(out, config, game, evaluation, trained_s, beside, verifiers)
    for block in evaluation.results.results:
        sys.stdout.write(f"\n{block.suite} on {block.case}\n{text_table(block.rows)}\n")
    sys.stdout.write(f"\nreport {out}/report/report.md\n{version}\n")
    return 0


def _trained(
    config: RunConfig, folder: RunFolder, resume: str | None, play: Play, display: Display
) -> tuple[Game, float]:
    """The game after its last step, and the seconds spent. The replay contents go when this returns."""
    start_from = folder.open(resume)
    contexts = context_source(config.scenario.data_dir or None)
    game, buffer = Game(config), Buffer(config)
    spent = folder.restore(start_from, game, buffer) if start_from is not None else 0.0
    began = time.monotonic() - spent
    if start_from is None:
        warm_start(config, contexts, game, display.note)
    with ExitStack() as stack:
        jsonl = JsonlTracker(folder.metrics)
        if start_from is not None:
            jsonl.truncate_after(game.step)
            display.note(f"resumed from {start_from.name} at step {game.step}")
        tracker = MultiTracker(jsonl, TensorBoardTracker(folder.root / "tensorboard", purge_step=game.step + 1))
        stack.callback(tracker.close)
        watcher = _Watcher(config, folder, contexts, display, tracker, began)
        if start_from is not None:
            watcher.carry_over(game, read_jsonl(folder.metrics))
        if game.step < config.selfplay.steps:
            play(config, contexts, game, buffer, watcher)
    return game, time.monotonic() - began


class _Watcher:
    """What happens after each learner step: log, show, look, save."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, contexts: ContextSource, display: Display, tracker: MultiTracker,
        began: float,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.contexts = config, folder, contexts
        self.display, self.tracker, self.began = display, tracker, began
        self._look: QuickLook | None = None
        self._last: dict[str, float] = {}
        self._shown = 0.0

    def carry_over(self, game: Game, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take up the figures that a resumed run goes on showing until they are measured again."""
        row = rows[-1] if rows else {}
        self._last = {name: value for name, value in row.items() if name.startswith("eval/")}
        game.note({name: value for name, value in row.items() if name.startswith(_CARRIED) and value is not None})

    def __call__(self, game: Game, buffer: Any) -> None:
        step, config = game.step, self.config
        every = config.evaluate.every_steps
        # In async mode the evaluator actor looks; here it would stop the learner.
        if config.mode != "async" and every and step % every == 0:
            self._last = self._look_now(game) | {"eval/step": float(step)}
        replay = {f"replay/{k}": float(v) for k, v in buffer.stats().items() if isinstance(v, int | float)}
        metrics = {_timed(name): value for name, value in (game.metrics() | replay | self._last).items()}
        metrics["time/elapsed_s"] = time.monotonic() - self.began
        metrics["time/scenarios_per_s"] = game.programs / max(1e-9, time.monotonic() - self.began)
        self.tracker.log(step, metrics)
        now = time.monotonic()
        if now - self._shown > 1.0 or step == config.selfplay.steps:
            self._shown = now
            self.display.update(table_fields(step, config, metrics, game.families))
        if step % config.checkpoint.every_steps == 0 or step == config.selfplay.steps:
            path = self.folder.save(game, buffer, time.monotonic() - self.began)
            self.display.note(f"checkpoint {path.name}")

    def _look_now(self, game: Game) -> dict[str, float]:
        if self._look is None:
            self._look = QuickLook(self.config, self.contexts)
        # a copy on the CPU: the look's windows are there
        return self._look.look(copy.deepcopy(game.learner.average).cpu())


def _timed(name: str) -> str:
    """Clock-dependent figures carry the time/ prefix, so that two runs can be compared without them."""
    return f"time/{name}" if name.endswith("blocked_insert_s") or name.endswith("blocked_sample_s") else name


def table_fields(step: int, config: RunConfig, metrics: Mapping[str, float], families: Sequence[str]) -> dict[str, Any]:
    """The fields of the live table (console.py) from what is logged (docs/metrics.md)."""

    def group(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}

    p_bar, learnability, rates = group("p_bar/"), group("learnability/"), group("solver_rate/")
    return {
        "step": step, "steps": config.selfplay.steps, "actors": _actors(config, metrics),
        "scenarios_per_s": metrics["time/scenarios_per_s"],
        "gates": group("gate/"),
        "families": {
            name: {"solve": p_bar.get(name), "learnability": learnability.get(name)} for name in families
        },
        "replay_fill": metrics.get("replay/fill_bytes_share", 0.0),
        "samples_per_insert": metrics.get("replay/samples_per_insert", 0.0),
        "learner_wait_share": metrics.get("time/learner_wait_share", 0.0),
        "policy_lag": metrics.get("time/policy_lag_p95", 0.0),
        "losses": group("loss/"), "evaluation": group("eval/"),
        "solver_success": float(np.mean(list(rates.values()))) if rates else 0.0,
    }  # fmt: skip


def _actors(config: RunConfig, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Per kind (alive, wanted); in serial mode there are none, the players live in this process."""
    if config.mode == "serial":
        return {"players": "in process"}
    wanted = {"proposers": config.actors.proposers, "solvers": config.actors.solvers}
    return {
        kind: (int(metrics[f"actors/{kind}"]), count) for kind, count in wanted.items() if f"actors/{kind}" in metrics
    }  # fmt: skip


def networks_for(config: RunConfig, trained: Weights, control: Weights | None) -> dict[str, Weights]:
    """Networks of every table: ours, the same on uniform scenarios where it was trained, untrained."""
    out = {results.VERIFIER: trained}
    if control is not None:
        out[results.UNIFORM] = control
    return out | {results.UNTRAINED: to_numpy(new_verifier(config.verifier, config.seed + 1).state_dict())}


def _control(config: RunConfig, game: Game, play: Play, display: Display) -> Game | None:
    if not config.evaluate.uniform_control or config.selfplay.arm != "selfplay":
        return None
    display.note("training the control: same network, uniform scenarios, same learner steps and power-flow solves")
    control = train_control(config, play, game, display.note)
    display.note(f"power-flow solves: {game.solves} of the run, {control.solves} of its control")
    return control


def train_control(
    config: RunConfig, play: Play, rival: Game, note: Callable[[str], None] = lambda _line: None
) -> Game:  # fmt: skip
    """The same Verifier on uniform + gate + twins: equal learner steps, and power-flow solves as near as calls allow.

    Args:    rival  the finished self-play game whose budget it gets, pre-training included
             note   takes lines of progress
    """
    arm = replace(
        config, selfplay=replace(config.selfplay, arm="uniform"), actors=replace(config.actors, solvers=0),
        evaluate=replace(config.evaluate, every_steps=0, supervised_baselines=False),
        replay=replace(config.replay, samples_per_insert=equal_price(config, rival)),
    )  # fmt: skip
    game = Game(arm)
    if config.evaluate.supervised_baselines:
        game.pupils = pupils_of(arm)
    contexts = context_source(config.scenario.data_dir or None)
    warm_start(config, contexts, game, note)  # the same windows, whatever its own price is
    play(arm, contexts, game, Buffer(arm), lambda _game, _buffer: None)
    return game


def pupils_of(config: RunConfig) -> dict[str, Learner]:
    """The supervised baselines as untrained learners, initialised from the run's seed."""
    out = {}
    for name, choice in catalogue.SUPERVISED.items():
        network, learner = choice.settings(config)
        out[name] = Learner(new_verifier(network, config.seed), learner, config.selfplay.steps)
    return out


def equal_price(config: RunConfig, rival: Game) -> float:
    """Samples per insert at which the control spends its rival's power-flow solves on windows of its own.

    The rival also pays for its Solver's answers; with the plain setting the control would get as many windows and
    fewer solves. What a window of the grammar costs is known from the rival's own uniform programs; without any the
    setting stays as it is.
    """
    replay = config.replay
    if not rival.uniform_windows:
        return replay.samples_per_insert
    price = (1.0 + config.scenario.recheck_share) * rival.uniform_solves / rival.uniform_windows
    windows = (rival.solves - rival.solves_pretrain) / price
    spare = max(windows - replay.min_size, 1.0)  # the first filling is drawn from by no step
    return replay.samples_per_insert * max(rival.inserted - replay.min_size, 1) / spare


def with_control_budget(found: results.Results, control: Game) -> results.Results:
    """The results with what the control's rows were bought with beside the model's own budget."""
    spent = {"control_executor_calls": float(control.solves), "control_learner_steps": float(control.step)}
    return replace(
        found, results=tuple(replace(block, budget={**block.budget, **spent}) for block in found.results)
    )  # fmt: skip
