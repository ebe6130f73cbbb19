"""The learner: batches in, better Verifier weights out; complete state for checkpoints.

Flow:    replay -> collate -> [learner] -> weights (live and averaged) -> actors, evaluation, registry
Source:  AdamW, cosine decay, gradient clip, averaged weights (selfplay.md, section 11); EMA weights score and serve
Shapes:  B windows
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gg_ray.config import LearnerConfig, LossConfig, VerifierConfig
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.losses import verifier_loss
from gg_ray.verifier.model import Verifier, VerifierOutput

Loss: TypeAlias = Callable[[VerifierOutput, GraphBatch, LossConfig, int], tuple[Tensor, dict[str, Tensor]]]
"""Scalar to descend, and its terms by name."""


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU when there is one.  Raises: RuntimeError naming the device that is asked for but absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"learner.device {name!r} asked for, but no GPU is visible; use auto or cpu")
    return device


class Learner:
    """One Verifier under optimisation and its exponential average.

    Invariant: `version` counts published weights, `step` finished updates; a non-finite gradient skips the update and
    is counted, never applied.
    """

    def __init__(
        self, network: Verifier, config: LearnerConfig, total_steps: int, loss: Loss = verifier_loss
    ) -> None:  # fmt: skip
        self.config, self.total_steps, self.loss = config, total_steps, loss
        self.device = pick_device(config.device)
        self.network = network.to(self.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.step_count = 0
        self.skipped = 0

    @property
    def lr(self) -> float:
        """Cosine from lr to lr_end over the run, after a warm-up of 20 steps."""
        c, t = self.config, self.step_count
        warm = min(1.0, (t + 1) / 20)
        share = min(1.0, t / max(1, self.total_steps))
        return warm * (c.lr_end + 0.5 * (c.lr - c.lr_end) * (1 + math.cos(math.pi * share)))

    def step(self, batch: GraphBatch) -> tuple[dict[str, float], NDArray[np.float32]]:
        """One update.

        Returns: metrics, and P(implausible) of each window under the live weights [B] for new priorities.
        """
        batch = batch.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.network.train()
        output: VerifierOutput = self.network(batch)
        loss, terms = self.loss(output, batch, self.config.loss, self.step_count)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._average()
        else:
            self.skipped += 1
        self.step_count += 1
        metrics = {f"loss/{name}": float(value) for name, value in terms.items()}
        metrics |= {"learner/grad_norm": float(norm), "learner/lr": self.lr, "learner/skipped": float(self.skipped)}
        return metrics, torch.sigmoid(output.implausible.detach()).cpu().numpy().astype(np.float32)

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets its random start faster: the usual (1 + t) / (10 + t) ramp.
        decay = min(self.config.ema, (1 + self.step_count) / (10 + self.step_count))
        for mean, live in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(live, 1 - decay)
        for kept, fresh in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(fresh)

    def start_from(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Take weights trained elsewhere, live and averaged, before the first step; the optimiser stays fresh."""
        if self.step_count:
            raise ValueError(f"start_from after {self.step_count} steps would throw away what was learned")
        load_numpy(self.network, weights)
        load_numpy(self.average, weights)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Averaged weights as numpy arrays: what actors score with and what is served."""
        return to_numpy(self.average.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step_count, "skipped": self.skipped,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count, self.skipped = int(state["step"]), int(state["skipped"])


def to_numpy(state: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """A state dictionary as numpy copies: torch tensors are copied on every get by Ray, numpy arrays are not."""
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


def load_numpy(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Load numpy weights into a module, copying (arrays from Ray are read-only views)."""
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def new_verifier(config: VerifierConfig, seed: int) -> Verifier:
    """A freshly initialised Verifier whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Verifier(config)
