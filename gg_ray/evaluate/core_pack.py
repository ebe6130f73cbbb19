"""Numbers of a cell as short text: a million scores in JSON files that may be committed.

Flow:    core_score (records) -> [core_pack] -> core_cells -> core_tables
Format:  a list of numbers longer than LEAST becomes {"f": TEXT}, {"i": TEXT} or {"q": TEXT, "m": LOWEST}: base 85 of
         zlib of its little-endian bytes in planes (all lowest bytes first), f float32, i int32 with NONE for null, q
         steps of LOGIT_STEP above LOWEST; a list of words becomes {"s": WORDS, "v": NUMBERS}, a list of records of
         one form its columns {"c": {NAME: COLUMN}, "n": ROWS}, a list of lists one long list {"l": LENGTHS, "v": LIST}

Half of a cell's text would be digits that no figure depends on: scores are rounded before (`rounded`,
`rounded_logits`), and what is packed comes back as it was.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 11
"""Significant bits of a score without a scale of its own: one part in four thousand."""
LOGIT_STEP = 1 / 64
"""Step of a logit: 1.6 % of the odds."""
LEAST = 8
"""Lists up to this length stay as they are: packing them saves nothing."""
NONE = -(1 << 31)


def rounded(values: NDArray[Any]) -> NDArray[np.float64]:
    """Values to BITS significant bits: the digits that a cell keeps."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.round(mantissa * (1 << BITS)) / (1 << BITS), exponent))


def rounded_logits(values: NDArray[Any]) -> NDArray[np.float64]:
    """Logits to whole steps of LOGIT_STEP."""
    return np.asarray(np.round(np.asarray(values, dtype=np.float64) / LOGIT_STEP) * LOGIT_STEP)


def pack(value: Any) -> Any:
    """A record with its numbers packed; other values stay.

    Raises: ValueError for a number that is not finite, which JSON has no word for.
    """
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(item, dict) and item.keys() == value[0].keys() for item in value):
        return {"c": {key: pack([item[key] for item in value]) for key in value[0]}, "n": len(value)}
    if all(isinstance(item, list | tuple) and all(map(_plain, item)) for item in value):
        return {"l": pack([len(item) for item in value]), "v": pack([one for item in value for one in item])}
    if len(value) > LEAST and all(isinstance(item, str) for item in value):
        words = sorted(set(value))
        return {"s": words, "v": pack([words.index(item) for item in value])}
    if len(value) <= LEAST or not all(item is None or _number(item) for item in value):
        return [pack(item) for item in value]
    if all(item is None or (isinstance(item, int) and abs(item) < -NONE) for item in value):
        return {"i": _text(np.array([NONE if item is None else item for item in value], dtype="<i4"))}
    if None in value:
        return value
    numbers = np.array(value, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a cell holds a score that is not finite")
    steps = numbers / LOGIT_STEP
    if np.array_equal(steps, np.round(steps)) and np.ptp(steps) < 1 << 16:
        return {"q": _text((steps - steps.min()).astype("<i4")), "m": float(numbers.min())}
    if not np.array_equal(numbers, numbers.astype("<f4")):
        return value
    return {"f": _text(numbers.astype("<f4"))}


def unpack(value: Any) -> Any:
    """The record that `pack` was given."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"f"}:
        return _numbers(value["f"], "<f4").astype(np.float64).tolist()
    if value.keys() == {"q", "m"}:
        return (_numbers(value["q"], "<i4") * LOGIT_STEP + value["m"]).tolist()
    if value.keys() == {"s", "v"}:
        return [value["s"][code] for code in unpack(value["v"])]
    if value.keys() == {"i"}:
        return [None if item == NONE else item for item in _numbers(value["i"], "<i4").tolist()]
    if value.keys() == {"c", "n"}:
        columns = {key: unpack(item) for key, item in value["c"].items()}
        return [{key: column[row] for key, column in columns.items()} for row in range(value["n"])]
    if value.keys() == {"l", "v"}:
        flat, ends = unpack(value["v"]), np.cumsum(unpack(value["l"])).tolist()
        return [flat[end - size : end] for size, end in zip(unpack(value["l"]), ends, strict=True)]
    return {key: unpack(item) for key, item in value.items()}


def _plain(value: Any) -> bool:
    return isinstance(value, str) or _number(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(numbers: NDArray[Any]) -> str:
    planes = numbers.view(np.uint8).reshape(-1, numbers.itemsize).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def _numbers(text: str, kind: str) -> NDArray[Any]:
    size = np.dtype(kind).itemsize
    planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=np.uint8)
    return np.ascontiguousarray(planes.reshape(size, -1).T).reshape(-1).view(kind)
