"""Windows of real scans of the national balance graph: what came, what is usual, and how old it is.

Flow:    elexon.scans (streams) or scenario.balance_record -> [balance_windows] -> verifier.features
Source:  docs/adr/0014-balance-graph.md
Shapes:  S scans of a record, T scans of a window, C streams in balance.CHANNELS order, M meters
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gg_ray.elexon.scans import CHANNELS as SCAN_CHANNELS
from gg_ray.elexon.scans import Scans
from gg_ray.grid import balance as b
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, I64, Bool, Window
from gg_ray.scenario.balance_record import in_service

CHUNK = 512
_MEAN_SCANS = 6


def streams_of(scans: Scans) -> F64:
    """[S, C] streams of scans; embedded plant is in no feed."""
    out = np.full((len(scans), len(b.CHANNELS)), np.nan)
    out[:, [b.CHANNELS.index(name) for name in SCAN_CHANNELS]] = scans.value_SC
    return out


def readings(stream_SC: F64, usual_SU: F64, step_s: float) -> F64:
    """[S, M] readings of a record. At five minutes the laws compare demand with the mean of the last six supplies; at
    15 s no demand is published and the laws are silent."""
    exists = in_service(stream_SC, step_s)
    if step_s != 300.0:
        return b.readings_of(stream_SC, usual_SU, None, exists)
    mean = stream_SC.copy()
    supply = np.concatenate([np.full((_MEAN_SCANS - 1, b.N_SUPPLY), np.nan), stream_SC[:, : b.N_SUPPLY]])
    never = np.isnan(stream_SC[:, : b.N_SUPPLY]).all(axis=0)
    mean[:, : b.N_SUPPLY] = np.lib.stride_tricks.sliding_window_view(supply, _MEAN_SCANS, axis=0).mean(axis=-1)
    mean[:, : b.N_SUPPLY][:, never] = np.nan
    return b.readings_of(stream_SC, usual_SU, mean, exists)


def windows(
    z_SM: F64, t0_ns: I64, scans: int, plan_id: int, least: int | None = None, wanted_S: Bool | None = None,
) -> Iterator[tuple[I64, list[Window]]]:  # fmt: skip
    """Chunks of (newest scans, windows that end there). A scan without any publication ends none: nothing is new.

    Args: least  publications that a window must hold; half its scans when not given
          wanted_S  newest scans that are asked for; all when not given
    """
    fed = np.concatenate([np.arange(b.M_SUPPLY.start, b.M_SUPPLY.stop), [b.M_FREQUENCY]])
    heard = np.isfinite(z_SM[:, fed]).any(axis=1)
    count = np.convolve(heard.astype(int), np.ones(scans, dtype=int))[: heard.size]
    ends = np.flatnonzero(
        heard & (np.arange(heard.size) >= scans - 1) & (count >= (least or scans // 2))
        & (True if wanted_S is None else wanted_S)
    )  # fmt: skip
    for start in range(0, ends.size, CHUNK):
        part = ends[start : start + CHUNK]
        first = (part - scans + 1).tolist()
        yield part, [window_at(z_SM[i : i + scans], int(t0_ns[i]), plan_id) for i in first]


def window_at(z_TM: F64, t0_ns: int, plan_id: int) -> Window:
    """A window of real readings: what did not come is NaN and ages."""
    case, scans = load_case(b.NAME), z_TM.shape[0]
    last = np.maximum.accumulate(np.where(np.isfinite(z_TM), np.arange(scans)[:, None], -1), axis=0)
    age = np.where(last < 0, 255, np.minimum(np.arange(scans)[:, None] - last, 254)).astype(np.uint8)
    return Window(
        case=b.NAME, plan_id=plan_id, t0_ns=t0_ns, step_s=b.cadence_of(plan_id), z_TM=z_TM, age_TM=age,
        status_TE=np.ones((scans, case.n_branch), dtype=np.uint8), tap_E=case.tap, x_scale_E=np.ones(case.n_branch),
    )  # fmt: skip
