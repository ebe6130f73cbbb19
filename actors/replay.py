"""Replay actor: the Buffer in a process of its own, and the driver's side of it.

Flow:    proposer, solver -> windows by reference -> [replay] -> one batch ahead of the learner
Source:  docs/adr/0011-distributed-loop.md; calls and not bytes are the limit, so every call moves a block
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from actors.session import ONE_THREAD
from gg_ray.config import RunConfig
from gg_ray.grid.cases import GridCase, adopt
from gg_ray.selfplay.buffer import Buffer, Draw

logger = logging.getLogger(__name__)

SEGMENTS_AHEAD = 4
"""Payload segments made before the first of them has been taken."""


Update: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.float64]]
"""Keys, generations and new priorities of a trained batch."""


class ReplayLost(RuntimeError):
    """The replay actor died or does not answer; its windows are gone and the run has to be resumed."""


class ReplayActor:
    """Owns every window of the run. One thread changes the buffer; `stats` reads in a thread of its own, so that it
    does not queue behind inserts, and takes the lock for one method's time at most.
    """

    def __init__(self, config: RunConfig, grids: Sequence[GridCase] = ()) -> None:
        torch.set_num_threads(1)
        adopt(grids)
        self.buffer = Buffer(config)
        self._lock = threading.Lock()

    def call(self, method: str, *args: Any) -> Any:
        """A method of the buffer. References among the arguments have arrived as their values."""
        with self._lock:
            return getattr(self.buffer, method)(*args)

    def offer(self, windows: Any, keep: Sequence[int] | None, step: int, batch_id: int) -> bool:
        """Insert the kept programs' windows (keep None: the windows themselves) unless the limiter refuses."""
        with self._lock:
            if not self.buffer.may_insert():
                return False
            if keep is None:
                self.buffer.insert(windows, step, batch_id)
            else:
                self.buffer.insert_kept(windows, keep, step, batch_id)
            return True

    def draw(self, update: Update | None = None) -> dict[str, Any] | None:
        """The next batch as numpy arrays, None when the limiter refuses; new priorities go in first."""
        with self._lock:
            if update is not None:
                self.buffer.reprioritise(*update)
            return pack(self.buffer.draw()) if self.buffer.may_draw() else None

    @ray.method(num_returns="streaming")
    def snapshot(self, tail: int) -> Iterator[Any]:
        """The buffer's state without its payload, then the payload segment by segment."""
        with self._lock:
            state, segments = self.buffer.snapshot(tail)
            yield state
            yield from segments

    @ray.method(concurrency_group="watch")
    def stats(self) -> dict[str, Any]:
        with self._lock:
            return self.buffer.stats()


class RemoteBuffer:
    """The driver's side: a buffer for `selfplay.loop.turns`, and the same in calls that overlap.

    Invariant: at most one insert and one draw are under way; offers are inserted in the order they were made. Either
    the next draw or the oldest offer can always be sent, because the limiter never refuses both sides.
    """

    def __init__(
        self, config: RunConfig, options: Mapping[str, Any], grids: Sequence[GridCase] = (), *, stats_age_s: float = 0.0
    ) -> None:
        """
        Args:    options  resources of the actor;  grids  the training grids
                 stats_age_s  how old `stats` may be, 0 asks at every call
        """
        self._timeout_s, self._stats_age_s = config.actors.call_timeout_s, stats_age_s
        # no overload of ray.remote knows concurrency_groups
        remote: Any = ray.remote(concurrency_groups={"watch": 1})(ReplayActor)  # type: ignore[call-overload]
        self.actor: Any = remote.options(max_restarts=0, runtime_env=ONE_THREAD, **options).remote(config, grids)
        self._stats: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._offers: deque[tuple[Any, Sequence[int] | None, int, int]] = deque()
        self._sent: Any = None
        self._drawing: Any = None
        self._update: Update | None = None
        self._updating: Any = None
        self._full = self._dry = False
        self.dropped = 0
        """Offers whose windows were lost with the node that held them."""

    # --- one call at a time -----------------------------------------------------------------------------------------

    def may_insert(self) -> bool:
        return bool(self._call("may_insert"))

    def may_draw(self) -> bool:
        return bool(self._call("may_draw"))

    def insert(self, items: Any, step: int, batch_id: int) -> int:
        return int(self._call("insert", items, step, batch_id))

    def insert_kept(self, windows: Any, keep: Sequence[int], step: int, batch_id: int) -> int:
        return int(self._call("insert_kept", windows, keep, step, batch_id))

    def draw(self) -> Draw:
        packed = self._get(self._ask_draw())
        if packed is None:
            raise RuntimeError("replay: a draw was asked for while the limiter refuses it; ask may_draw first")
        return unpack(packed)

    def reprioritise(
        self, draw_keys: NDArray[np.uint64], generations: NDArray[np.uint32], priorities: NDArray[np.float64]
    ) -> None:
        """Kept for the next call to the actor, most often the next draw, which then sees it."""
        self._send_update()
        self._update = draw_keys, generations, priorities

    def stats(self) -> dict[str, Any]:
        if time.monotonic() - self._stats[0] > self._stats_age_s or not self._stats[1]:
            self._send_update()
            self._stats = time.monotonic(), self._get(self.actor.stats.remote())
        return self._stats[1]

    def state_dict(self, tail: int) -> dict[str, Any]:
        """As Buffer.state_dict. Segments cross the object store a few at a time, so it need not hold them all."""
        self._send_update()
        stream = self.actor.snapshot.options(_generator_backpressure_num_objects=SEGMENTS_AHEAD).remote(tail)
        # its arrays are views that pin the object store (ray #8227)
        state: dict[str, Any] = copy.deepcopy(self._get(next(stream)))
        state["table"]["payload"] = [self._get(ref) for ref in stream]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict", state)

    def close(self) -> None:
        """End the actor. Safe to call twice, and after Ray has been shut down."""
        if ray.is_initialized():
            ray.kill(self.actor, no_restart=True)

    # --- calls that overlap -----------------------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Offers wait: more work would only grow old in the queue."""
        return bool(self._offers)

    @property
    def dry(self) -> bool:
        """The limiter refused the last draw and nothing has been inserted since: only new windows help."""
        return self._dry and not self._offers

    def offer(self, windows_ref: Any, keep: Sequence[int] | None, step: int, batch_id: int) -> None:
        """Queue windows for insertion; nothing is sent before `flush`."""
        self._offers.append((windows_ref, keep, step, batch_id))

    def flush(self) -> None:
        """Book the insert under way when it is done, and send the oldest offer unless it has to wait for a draw."""
        if self._sent is not None:
            if not self._ready(self._sent, 0.0):
                return
            try:
                taken = bool(self._get(self._sent))
            except ObjectLostError as error:
                self.dropped += 1
                taken = True
                logger.warning("replay: windows of batch %d are lost: %s", self._offers[0][3], type(error).__name__)
            self._sent = None
            if taken:
                self._offers.popleft()
            self._full = not taken
        # full and dry at once are views of different moments: sending again finds out which one holds
        if self._offers and (self._dry or not self._full):
            self._send_update()
            self._sent = self.actor.offer.remote(*self._offers[0])
            self._dry = False

    def take(self, wait_s: float) -> Draw | None:
        """The batch that was asked for while the last one trained; asks for the next before it returns."""
        if self._drawing is None and not self._dry:
            self._drawing = self._ask_draw()
        if self._drawing is None or not self._ready(self._drawing, wait_s):
            return None
        packed = self._get(self._drawing)
        self._drawing = None
        if packed is None:
            self._dry = self._sent is None  # an insert sent behind the draw may have changed its answer
            return None
        self._full = False
        self._drawing = self._ask_draw()
        return unpack(packed)

    # --- Ray --------------------------------------------------------------------------------------------------------

    def _ask_draw(self) -> Any:
        update, self._update = self._update, None
        return self.actor.draw.remote(update)

    def _send_update(self) -> None:
        """New priorities as a call of their own, where something else than a draw comes next.

        Sent without waiting, as the actor serves in order; the one before is checked.
        """
        if self._update is not None:
            if self._updating is not None:
                self._get(self._updating)
            update, self._update = self._update, None
            self._updating = self.actor.call.remote("reprioritise", *update)

    def _call(self, method: str, *args: Any) -> Any:
        self._send_update()
        return self._get(self.actor.call.remote(method, *args))

    def _ready(self, ref: Any, timeout_s: float) -> bool:
        return bool(ray.wait([ref], timeout=timeout_s, fetch_local=False)[0])

    def _get(self, ref: Any) -> Any:
        """Raises: ReplayLost when the actor died or does not answer; what the method raised otherwise."""
        try:
            return ray.get(ref, timeout=self._timeout_s)
        except RayTaskError:
            raise
        except (RayActorError, GetTimeoutError) as error:
            raise ReplayLost(
                f"replay actor: {type(error).__name__} (a call may take {self._timeout_s:g} s, actors.call_timeout_s);"
                " its windows are gone, continue from the newest checkpoint with --resume auto"
            ) from error


def pack(draw: Draw) -> dict[str, Any]:
    """A draw with numpy arrays for tensors: Ray moves them without a copy, tensors it pickles."""
    batch = {f.name: getattr(draw.batch, f.name) for f in dataclasses.fields(draw.batch)}
    plain = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()}
    return {f.name: getattr(draw, f.name) for f in dataclasses.fields(Draw)} | {"batch": (type(draw.batch), plain)}


def unpack(packed: Mapping[str, Any]) -> Draw:
    """Inverse of pack. Copies, so that no view keeps the block in the object store."""
    kind, plain = packed["batch"]
    batch = kind(**{n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in plain.items()})
    rest: dict[str, Any] = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in packed.items() if n != "batch"}
    return Draw(batch=batch, **rest)
