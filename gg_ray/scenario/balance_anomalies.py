"""Bad publications: what a feed says although the country did something else.

Flow:    scenario.balance_executor (published truth) -> [balance_anomalies] -> corrupted publication
Source:  docs/gb-data.md (real events in the files); selfplay.md, section 5 (families)
Shapes:  A + T scans, C streams; only scans of the window are corrupted
Units:   MW, Hz

A corruption is written for unit size where its family is sized; the executor scales the difference it makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gg_ray.grid.balance import CHANNELS, FREQ, LINKS, N_SUPPLY, RATING_MW
from gg_ray.records import F64, Event
from gg_ray.scenario.balance_worlds import Frame, active

FLEET = np.array([i for i in range(N_SUPPLY) if i not in LINKS])
"""Generation codes, pumped storage among them."""
_PS = CHANNELS.index("PS")
SIZED = ("stream_bias", "stream_drift", "stream_scale", "stream_spike")
_WRONG_UNITS = (0.5, 2.0, 0.001)
"""MWh of a half-hour read as MW, MW read as MWh, MW read as GW."""
_DEAD_SHARE = (1 / 6, 2 / 6)
"""One or two dead five-minute records in the mean of a half-hour."""
SWAP_SHARE = (0.2, 0.9)


class NoEffect(Exception):
    """The corruption changes nothing here (a stream at zero, no earlier value): gate G4 counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """The corrupted publication [A + T, C] and the channels that lie in it."""

    value_TC: F64
    channels: tuple[int, ...]


def corrupt(frame: Frame, published_TC: F64, event: Event, channel: int, rng: np.random.Generator) -> Corruption:
    """Apply one anomaly at unit size (sized families: one usual move of the stream).

    Raises: NoEffect where nothing would change.
    """
    when = active(event, frame.scans)
    inside = slice(frame.before + when.start, frame.before + when.stop)
    out, name = published_TC.copy(), event.primitive
    touched: tuple[int, ...] = (channel,)
    if name == "stream_unit_error":
        out[inside, channel] *= _WRONG_UNITS[event.support]
    elif name == "stream_sign_flip":
        out[inside, channel] *= -1.0
    elif name == "shifted_period":
        touched = _group(event.support, channel)
        _shift(out, published_TC, inside, touched, late=rng.random() < 0.5, block=frame.block)
    elif name in ("stream_bias", "stream_scale"):
        size = published_TC[inside, channel] / 100.0 if name == "stream_scale" else 1.0
        out[inside, channel] += size
    elif name == "stream_drift":
        out[inside, channel] += (np.arange(inside.stop - inside.start) + 1) / (inside.stop - inside.start)
    elif name == "stream_spike":
        length = 1 if channel == FREQ else frame.block
        out[inside.start : inside.start + length, channel] += 1.0
    elif name == "zeroed_publication":
        touched = _group(event.support, channel)
        for column in touched:
            out[inside, column] = np.where(np.isfinite(out[inside, column]), 0.0, np.nan)
    elif name == "dead_record":
        touched = _group(event.support, channel)
        keep = 1.0 - float(rng.choice(_DEAD_SHARE))
        for column in touched:
            out[inside, column] = np.round(out[inside, column] * keep)
    elif name == "stream_freeze":
        touched = _group(event.support, channel)
        for column in touched:
            _hold(out, published_TC, inside, column)
    elif name == "stream_replay":
        touched = _group(event.support, channel)
        _replay(out, published_TC, frame, inside, touched, rng)
    elif name == "code_swap":
        touched = _swap(out, frame, inside, channel, event.support, rng)
    else:
        raise ValueError(f"{name!r} is not an anomaly of this grid")
    changed = np.nan_to_num(np.abs(out - published_TC))[inside].max(axis=0, initial=0.0) > 0
    touched = tuple(c for c in touched if changed[c])
    if not touched:
        raise NoEffect(f"{name}: nothing changes")
    return Corruption(value_TC=out, channels=touched)


def _group(support: int, channel: int) -> tuple[int, ...]:
    """The stream itself, all generation codes, or everything that one publication carries."""
    if channel >= N_SUPPLY or support == 0:
        return (channel,)
    return tuple(FLEET.tolist()) if support == 1 else tuple(range(N_SUPPLY))


def _seen(published_TC: F64, column: int, upto: int) -> F64:
    values = published_TC[:upto, column]
    return values[np.isfinite(values)]


def _hold(out: F64, published_TC: F64, inside: slice, column: int) -> None:
    before = _seen(published_TC, column, inside.start)
    if before.size:
        out[inside, column] = np.where(np.isfinite(out[inside, column]), before[-1], np.nan)


def _shift(out: F64, published_TC: F64, inside: slice, columns: tuple[int, ...], *, late: bool, block: int) -> None:
    """Values one period late (a period went missing and the next took its label) or one early."""
    for column in columns:
        if late:
            source = published_TC[inside.start - block : inside.stop - block, column]
        else:
            source = published_TC[inside.start + block : inside.stop + block, column]
        new = out[inside, column].copy()
        there = np.isfinite(new[: source.size]) & np.isfinite(source)
        new[: source.size][there] = source[there]
        out[inside, column] = new


def _replay(
    out: F64, published_TC: F64, frame: Frame, inside: slice, columns: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Values of an earlier stretch of the window once more."""
    length = inside.stop - inside.start
    if frame.block > 1:
        raise NoEffect("a window of the 15-s clock holds no second publication to replay")
    if inside.start - frame.before < 2:
        raise NoEffect("nothing came before")
    start = int(rng.integers(frame.before, inside.start))
    source = start + np.arange(length) % (inside.start - start)
    for column in columns:
        then, now = published_TC[source, column], out[inside, column]
        out[inside, column] = np.where(np.isfinite(now) & np.isfinite(then), then, now)


def _swap(out: F64, frame: Frame, inside: slice, channel: int, rank: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Output booked under other codes, the total kept: no balance law sees it, only moves that no plant can make."""
    others = [int(c) for c in FLEET if c not in (channel, _PS) and np.isfinite(out[inside, c]).any()]
    if not others:
        raise NoEffect("no other code is published")
    share = float(rng.uniform(*SWAP_SHARE))
    receivers = [others[int(i)] for i in rng.permutation(len(others))[: 1 + rank]]
    moved = share * np.maximum(np.nan_to_num(out[inside, channel]), 0.0)
    room = np.array([1.2 * RATING_MW[c] for c in receivers])
    parts = moved[:, None] * (room / room.sum())
    parts = np.minimum(parts, room)
    out[inside, channel] -= np.where(np.isfinite(out[inside, channel]), parts.sum(axis=1), 0.0)
    for column, part in zip(receivers, parts.T, strict=True):
        out[inside, column] += part
    return (channel, *receivers)


LIMIT_MW = np.concatenate([np.maximum(100.0, 0.02 * RATING_MW), [250.0, 250.0]])
"""What matters (gate G3): MW of each supply stream, of INDO and of ITSDO."""
LIMIT_HZ, LIMIT_EMBEDDED_MW = 0.05, 250.0
LIMITS = np.concatenate([LIMIT_MW, [LIMIT_HZ, LIMIT_EMBEDDED_MW, LIMIT_EMBEDDED_MW]])
