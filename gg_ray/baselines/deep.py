"""Networks that learn one grid's benign windows: training with a held-back share, per-channel errors, and places.

Flow:    baselines.series -> [deep] <- autoencoder, gdn, mtad_gat -> catalogue
Source:  docs/adr/0010-baselines.md; thresholds come from the evaluation, never from a best F1; no point adjustment
Shapes:  B windows, T scans, C channels, L scans of a piece, K channels of a region, n pieces

A window is cut into pieces of L scans that end at its second, third, ... last scan; before its first scan it is
continued with that scan, so that an anomaly is seen wherever in the window it lies. A network sees at most REGION
channels: attention between all pairs of 10,000 meters would be 1e8 weights per head.
"""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gg_ray.baselines.base import GroupDetector, meter_bus
from gg_ray.baselines.series import Channels, View, channels, enough
from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, I64
from gg_ray.verifier.features import Prepared

REGION = 128
"""Most channels that one network attends over (verifier.md, 5.2)."""
HELD_SHARE = 0.25
"""Benign windows kept back: they end the training and give the errors that are usual."""
LIMIT = 50.0
"""Channels are clipped to this many deviations: float32 networks must not overflow on a gross error."""
_ROWS = 256
"""Pieces that a network judges at a time: their pairs of channels stay in cache."""
_SPREAD_FLOOR = 1e-2
"""Added to an interquartile range, as in the code of GDN's authors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long one fit of a group may train.

    seconds  CPU time over all regions: a fit that ends by it depends on the machine, one that ends by patience or
             epochs on the seed alone (Part.timed_out tells);  patience  epochs without a better held-back loss
    """

    seconds: float = 30.0
    epochs: int = 200
    patience: int = 10
    batch: int = 64


@dataclass(slots=True)
class Part:
    """Network of one region: the channels it reads and the median and interquartile range of its benign errors."""

    channels_K: I64
    network: nn.Module
    median_K: F64
    spread_K: F64
    epochs: int
    timed_out: bool


@dataclass(slots=True)
class Trained:
    """Everything a deep detector knows of one group."""

    channels: Channels
    parts: list[Part]


class DeepDetector(GroupDetector[Trained]):
    """A network per region of a group, trained on benign pieces; a subclass says which network, loss and error."""

    def __init__(self, view: View, span: int, lr: float, effort: Effort | None) -> None:
        """Args: view what it reads;  span scans of a piece;  lr of Adam;  effort (default Effort())."""
        super().__init__()
        self.view, self.span, self.lr = view, span, lr
        self.effort = effort or Effort()
        self._last: tuple[Trained, Prepared, tuple[F64, F64, F64]] | None = None

    @abc.abstractmethod
    def _network(self, channels: int) -> nn.Module:
        """A new network for so many channels."""

    @abc.abstractmethod
    def _loss(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        """Scalar training loss."""

    @abc.abstractmethod
    def _errors(self, network: nn.Module, pieces_nLK: Tensor) -> Tensor:
        """[n, K] deviation of each channel at the end of each piece, >= 0."""

    @abc.abstractmethod
    def _joined(self, errors_BTC: F64, median_C: F64, spread_C: F64) -> F64:
        """[B] the window's score from all errors of it."""

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Trained:
        count = enough(self.name, members)
        known = channels(members, self.view)
        x = np.concatenate([self._read(known, prepared) for prepared in members])[rng.permutation(count)]
        regions = regions_of_channels(members[0].case, members[0].plan, known.meter_C)
        held = max(1, round(HELD_SHARE * count))
        parts = []
        for index, own in enumerate(regions):
            pieces = pieces_of(x[:, :, own], self.span)
            share = self.effort.seconds / len(regions)
            parts.append(self._part(own, pieces[held:], pieces[:held], int(rng.integers(2**31)) + index, share))
        return Trained(known, parts)

    def _part(self, own: I64, train_BPLK: Tensor, held_BPLK: Tensor, seed: int, seconds: float) -> Part:
        train, held = train_BPLK.flatten(0, 1), held_BPLK.flatten(0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(own.size)
            epochs, timed_out = self._train(network, train, held, seconds)
            network.eval()
            errors = self._all_errors(network, held)
        low, middle, high = np.quantile(errors, (0.25, 0.5, 0.75), axis=0)
        return Part(own, network, middle, high - low + _SPREAD_FLOOR, epochs, timed_out)

    def _train(self, network: nn.Module, train: Tensor, held: Tensor, seconds: float) -> tuple[int, bool]:
        """Adam until the held-back loss stands or the effort is spent; the best weights stay.

        Returns: epochs, and whether time ended it
        """
        effort, until = self.effort, time.process_time() + seconds
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        best, kept, waited = float("inf"), copy.deepcopy(network.state_dict()), 0
        epoch, timed_out = 0, False
        while epoch < effort.epochs and waited < effort.patience and not timed_out:
            network.train()
            for rows in torch.randperm(len(train)).split(effort.batch):
                optimizer.zero_grad(set_to_none=True)
                self._loss(network, train[rows]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                if time.process_time() > until:
                    timed_out = True
                    break
            epoch += 1
            network.eval()
            with torch.no_grad():
                loss = float(torch.stack([self._loss(network, rows) for rows in held.split(_ROWS)]).mean())
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, kept = loss, copy.deepcopy(network.state_dict())
        network.load_state_dict(kept)
        return epoch, timed_out

    def _score(self, model: Trained, prepared: Prepared) -> F64:
        errors, median, spread = self._window_errors(model, prepared)
        return self._joined(errors, median, spread)

    def _nodes(self, model: Trained, prepared: Prepared) -> F64:
        errors, median, spread = self._window_errors(model, prepared)
        away = np.maximum((errors - median) / spread, 0.0).max(axis=1)
        return model.channels.nodes(prepared, away)

    def _window_errors(self, model: Trained, prepared: Prepared) -> tuple[F64, F64, F64]:
        """[B, T - 1, C] errors, and the median and interquartile range [C] of benign ones; the last ones are kept.

        The score and the places of a window are asked for one after the other.
        """
        if self._last is not None and self._last[0] is model and self._last[1] is prepared:
            return self._last[2]
        x = self._read(model.channels, prepared)
        errors = np.empty((x.shape[0], x.shape[1] - 1, x.shape[2]))
        median, spread = np.empty(x.shape[2]), np.empty(x.shape[2])
        for part in model.parts:
            own = part.channels_K
            pieces = pieces_of(x[:, :, own], self.span)
            found = self._all_errors(part.network, pieces.flatten(0, 1))
            errors[:, :, own] = found.reshape(*pieces.shape[:2], own.size)
            median[own], spread[own] = part.median_K, part.spread_K
        self._last = model, prepared, (errors, median, spread)
        return errors, median, spread

    @torch.no_grad()
    def _all_errors(self, network: nn.Module, pieces_nLK: Tensor) -> F64:
        found = [self._errors(network, rows) for rows in pieces_nLK.split(_ROWS)]
        return np.asarray(torch.cat(found).double().numpy())

    def _read(self, known: Channels, prepared: Prepared) -> F64:
        return np.clip(known.of(prepared), -LIMIT, LIMIT)


def pieces_of(x_BTC: F64, span: int) -> Tensor:
    """float32 [B, T - 1, span, C] the last `span` scans up to scans 1 ... T - 1, the first scan repeated before it."""
    before = np.repeat(x_BTC[:, :1], max(span - 2, 0), axis=1)
    whole = torch.from_numpy(np.concatenate([before, x_BTC], axis=1).astype(np.float32))
    return whole.unfold(1, span, 1)[:, -(x_BTC.shape[1] - 1) :].transpose(2, 3).contiguous()


def regions_of_channels(case: GridCase, plan: MeterPlan, meter_C: I64) -> list[I64]:
    """Channels in pieces of at most REGION: meters ordered by region, substation and bus; one meter stays together."""
    bus = meter_bus(case, plan)
    order = np.lexsort((bus, case.substation[bus], case.region[case.substation[bus]]))
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    channel = np.argsort(rank[meter_C], kind="stable")
    per_meter = meter_C.size // order.size
    count = -(-order.size // (REGION // per_meter))
    return [np.concatenate(part) for part in np.array_split(channel.reshape(-1, per_meter), count)]


def smooth_maximum(score_BT: F64, width: int) -> F64:
    """[B] largest moving average of `width` scans: a lasting deviation beats one noisy scan."""
    width = min(width, score_BT.shape[1])
    runs = np.lib.stride_tricks.sliding_window_view(score_BT, width, axis=1)
    return np.asarray(runs.mean(axis=2).max(axis=1))
