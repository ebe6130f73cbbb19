"""Weights board: one ray.put of numpy weights per version, the same ref for every actor.

Flow:    learner.weights -> [WeightBoard.publish] -> ref(kind) in the arguments of each call -> [fetch] in the actor
Source:  docs/adr/0008-pull-driven-actors.md
Shapes:  weights are {parameter name: array of any shape}; tensors are converted before, see publish
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import ray
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Weights: TypeAlias = Mapping[str, NDArray[Any]]
Posted: TypeAlias = tuple[int, list[Any]]
"""(version, [ref]): the ref sits in a list so that Ray hands it over unfetched."""


class WeightBoard:
    """The newest versions of each kind of weights ("verifier", "proposer", ...), owned by the driver.

    Invariant: at most `keep` versions of a kind are held, and their numbers rise. The driver owns the objects, so
    they outlive the learner; a call in flight keeps the version in its arguments alive by itself.
    """

    def __init__(self, *, keep: int = 3, put: Callable[[Any], Any] = ray.put) -> None:
        if keep < 1:
            raise ValueError(f"WeightBoard: keep {keep}; at least 1")
        self._keep, self._put = keep, put
        self._posted: dict[str, OrderedDict[int, Any]] = {}

    def publish(self, kind: str, version: int, weights: Weights) -> None:
        """Put a version in the object store, once, and drop the oldest beyond `keep`.

        Args:    weights  numpy arrays; torch tensors are copied on every get (27 times slower for 4 MB), so
                          `tensor.detach().cpu().numpy()` comes first
        Raises:  TypeError for a value that is not an array; ValueError when the version is not newer than the last.
        """
        for name, value in weights.items():
            if not isinstance(value, np.ndarray):
                raise TypeError(f"weights {kind}[{name!r}] is a {type(value).__name__}; convert it with .cpu().numpy()")
        posted = self._posted.setdefault(kind, OrderedDict())
        newest = next(reversed(posted), None)
        if newest is not None and version <= newest:
            raise ValueError(
                f"weights {kind}: version {version} is not newer than {newest}; a restored run needs a new board"
            )
        posted[version] = self._put(dict(weights))
        while len(posted) > self._keep:
            posted.popitem(last=False)
        size = sum(value.nbytes for value in weights.values())
        logger.info("weights %s: version %d, %d arrays, %d bytes", kind, version, len(weights), size)

    def ref(self, kind: str) -> Posted:
        """Newest version and its ref, to pass to an actor as it is. Raises KeyError before the first publish."""
        posted = self._posted.get(kind)
        if not posted:
            raise KeyError(f"weights {kind}: nothing published yet; publish version 0 before the first call")
        version = next(reversed(posted))
        return version, [posted[version]]


def fetch(posted: Posted, have_version: int | None, *, timeout_s: float = 60.0) -> tuple[int, Weights] | None:
    """In an actor: the posted weights, or None when the actor already has that version.

    The arrays are read-only views of the object store: copy them into the network (load_state_dict does), and keep
    no reference, or they pin the store (ray #8227).
    Raises:  ray.exceptions.GetTimeoutError when they do not arrive in timeout_s.
    """
    version, refs = posted
    if have_version == version:
        return None
    weights: Weights = ray.get(refs[0], timeout=timeout_s)  # type: ignore[assignment]  # Ray types a get as a list
    return version, weights
