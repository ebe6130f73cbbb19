"""Rows of the Elexon streams as typed records: what the service sends, checked field by field, units in the names.

Flow:    JSON of a source -> parse -> [rows] -> store, check, scans
Source:  Insights API schema of June 2026; docs/gb-data.md
Units:   MW (means over the period unless said), MWh a day for INDOD, Hz; times are aware UTC

One reader for every origin: the pull API, the push queue and the legacy shim all send these fields.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from gg_ray.elexon.times import midnight

INTERCONNECTOR_MW = {
    "INTFR": 2000, "INTIFA2": 1000, "INTELEC": 1000, "INTNED": 1000, "INTNEM": 1000, "INTNSL": 1400, "INTVKL": 1400,
    "INTEW": 500, "INTIRL": 500, "INTGRNL": 500,
}  # fmt: skip
"""Nominal capacity of each interconnector, MW."""
FUELS = ("BIOMASS", "CCGT", "COAL", "NPSHYD", "NUCLEAR", "OCGT", "OIL", "OTHER", "PS", "WIND")
"""Generation codes; PS (pumped storage) is negative while pumping."""
FUEL_TYPES = (*FUELS, *sorted(INTERCONNECTOR_MW))
"""Codes that FUELHH and FUELINST are known to carry. Another code is kept, counted and warned about, never dropped."""


_AWARE: TypeAdapter[datetime] = TypeAdapter(Annotated[AwareDatetime, Strict()])


@lru_cache(maxsize=2048)
def _utc_of(text: str) -> datetime:
    """Cached: the twenty rows of a batch share two times, and every row then holds the same object."""
    return _utc(_AWARE.validate_json(json.dumps(text)))


def _utc(value: Any) -> datetime:
    try:
        if type(value) is str:
            return _utc_of(value)
        return _AWARE.validate_python(value).astimezone(UTC)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from None
    except OverflowError as error:  # year 1 or 9999 with an offset; pydantic makes a reject of a ValueError only
        raise ValueError("a time outside the calendar") from error


LARGEST = 10_000_000
"""Bound of a whole number, MW or MWh, ten times a large day; beyond it a field has changed its meaning."""

Utc = Annotated[AwareDatetime, BeforeValidator(_utc)]
"""Text with Z or an offset. Without either it is refused (the feed's zone is not known), and so is a number."""
Whole = Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST)]
"""Whole numbers only: a service that starts to send 1e3, true or "12" has changed its fields."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Row(BaseModel):
    """One published value. Fields the schema may add later are ignored; fields that change type are refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @property
    def at(self) -> datetime:
        """The row's own time, UTC: start of its period, instant of the sample, or publication of a warning."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a row the same row; of two with one key the later publication wins."""
        return (self.at,)


class PeriodRow(Row):
    """A row about one period, which begins at `start`; its settlement label is derived from that, never believed."""

    start: Utc = Field(alias="startTime")
    published: Utc | None = Field(alias="publishTime", default=None)
    settlement_date: date | None = Field(alias="settlementDate", default=None)
    settlement_period: Whole | None = Field(alias="settlementPeriod", default=None)

    @property
    def at(self) -> datetime:
        return self.start


class FuelRow(PeriodRow):
    """FUELHH (30-min mean) and FUELINST (5-min mean): generation of one fuel or interconnector, MW, import positive."""

    fuel: str = Field(alias="fuelType", min_length=1, max_length=32)
    generation_mw: Whole | None = Field(alias="generation", default=None)

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.start, self.fuel)


class FrequencyRow(Row):
    """FREQ: one sample of system frequency, Hz."""

    time: Utc = Field(alias="measurementTime")
    frequency_hz: Number = Field(alias="frequency")

    @property
    def at(self) -> datetime:
        return self.time


class DemandRow(PeriodRow):
    """Demand outturn of one half-hour, MW: INDO (national) and ITSDO (transmission system)."""

    indo_mw: Whole | None = Field(alias="initialDemandOutturn", default=None)
    itsdo_mw: Whole | None = Field(alias="initialTransmissionSystemDemandOutturn", default=None)


class OneDemandRow(PeriodRow):
    """INDO or ITSDO as a dataset of its own, or the 5-min rolling demand: one demand, MW."""

    demand_mw: Whole | None = Field(alias="demand", default=None)


class DailyDemandRow(Row):
    """INDOD: national demand of one settlement day, MWh (half the sum of INDO)."""

    settlement_date: date = Field(alias="settlementDate")
    demand_mwh: Whole | None = Field(alias="demand", default=None)
    published: Utc | None = Field(alias="publishTime", default=None)

    @property
    def at(self) -> datetime:
        return midnight(self.settlement_date)  # as it is filed, not London's midnight


class WarningRow(Row):
    """A system warning as issued."""

    published: Utc = Field(alias="publishTime")
    kind: str = Field(validation_alias=AliasChoices("warningType", "kind"), max_length=200)
    text: str = Field(validation_alias=AliasChoices("warningText", "text"), max_length=20_000)

    @property
    def at(self) -> datetime:
        return self.published

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.published, self.kind, self.text)
