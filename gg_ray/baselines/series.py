"""What learned baselines read: readings and normalised residuals of a window as channels without gaps or units.

Flow:    verifier.features (Prepared) -> [series] -> baselines.{statistical,distances,pyod,deep}
Source:  verifier.md, section 3, rule 8: every learned baseline is offered the physics residuals, or none is
Shapes:  B windows, T scans, M installed meters, C channels (M, or 2 M with readings and residuals)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gg_ray.baselines.base import DetectorError, bus_maximum
from gg_ray.records import F64, I64
from gg_ray.verifier.features import Prepared

View = Literal["readings", "residuals", "both"]
"""readings: distance from the benign mean in benign deviations; residuals: normalised estimation residuals."""
MIN_WINDOWS = 20
"""Fewest benign windows per grid and plan: below it means and variances of a window are guesswork."""


@dataclass(frozen=True, slots=True)
class Usual:
    """[M] mean reading of each meter over benign windows, the stand-in for a meter never heard in a window."""

    mean_M: F64

    def filled(self, z_BTM: F64) -> F64:
        """[B, T, M] readings without gaps: the last one seen in the window, before the first one the benign mean."""
        present = np.isfinite(z_BTM)
        scans = z_BTM.shape[1]
        last = np.maximum.accumulate(np.where(present, np.arange(scans)[None, :, None], -1), axis=1)
        held = np.take_along_axis(np.where(present, z_BTM, 0.0), np.maximum(last, 0), axis=1)
        return np.where(last >= 0, held, self.mean_M)


def usual(members: Sequence[Prepared]) -> Usual:
    """Benign means of one group; a meter that never reported gets 0."""
    total, count = np.zeros(members[0].plan.size), np.zeros(members[0].plan.size)
    for prepared in members:
        present = np.isfinite(prepared.z_BTM)
        total += np.where(present, prepared.z_BTM, 0.0).sum(axis=(0, 1))
        count += present.sum(axis=(0, 1))
    return Usual(total / np.maximum(count, 1))


def enough(name: str, members: Sequence[Prepared]) -> int:
    """Number of benign windows of a group.  Raises: DetectorError below MIN_WINDOWS."""
    count = sum(len(prepared.windows) for prepared in members)
    if count < MIN_WINDOWS:
        first = members[0]
        raise DetectorError(
            f"{name}: {count} benign windows of {first.case.name} plan {first.plan.plan_id}; need {MIN_WINDOWS}"
        )
    return count


@dataclass(frozen=True, slots=True)
class Channels:
    """Windows of one group as channels; the scaling comes from benign windows.

    scale_M  benign standard deviation of each meter, at least its sigma
    """

    view: View
    usual: Usual
    scale_M: F64

    def of(self, prepared: Prepared) -> F64:
        """[B, T, C] channels: the readings' ones first; those of readings are 0 at the benign mean."""
        parts = []
        if self.view != "residuals":
            parts.append((self.usual.filled(prepared.z_BTM) - self.usual.mean_M) / self.scale_M)
        if self.view != "readings":
            parts.append(prepared.r_BTM)
        return np.concatenate(parts, axis=2)

    @property
    def meter_C(self) -> I64:
        """[C] meter of each channel."""
        return np.tile(np.arange(self.scale_M.size), 2 if self.view == "both" else 1)

    def nodes(self, prepared: Prepared, value_BC: F64) -> F64:
        """[B, N] largest value among the channels of each bus; values must be >= 0."""
        per_meter = value_BC.reshape(len(value_BC), -1, self.scale_M.size).max(axis=1)
        return bus_maximum(prepared.case, prepared.plan, per_meter)


def channels(members: Sequence[Prepared], view: View) -> Channels:
    """Channels of one group, scaled on its benign windows.  Raises: DetectorError for an unknown view."""
    if view not in ("readings", "residuals", "both"):
        raise DetectorError(f"view {view!r}: choose readings, residuals or both")
    known = usual(members)
    square, count = np.zeros(known.mean_M.size), 0
    for prepared in members:
        away = known.filled(prepared.z_BTM) - known.mean_M
        square += (away * away).sum(axis=(0, 1))
        count += away.shape[0] * away.shape[1]
    return Channels(view, known, np.maximum(np.sqrt(square / count), members[0].plan.sigma))


def segment_means(x_BTC: F64, segments: int) -> F64:
    """[B, segments C] means over equal parts of the window, part by part: the same width for every window length."""
    return np.concatenate([part.mean(axis=1) for part in np.array_split(x_BTC, segments, axis=1)], axis=1)
