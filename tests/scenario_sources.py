"""Contexts of both origins, made once for all tests; the real one where the data folder is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from elexon_rows import DATA, with_data

from gg_ray.scenario.context import ClimatologySource, HistorySource


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


@cache
def artificial() -> ClimatologySource:
    return ClimatologySource()


@cache
def real() -> HistorySource:
    return HistorySource(DATA)


SOURCES = [artificial, pytest.param(real, marks=with_data)]
