"""Shapes of the answers for OpenAPI, made from the records themselves so that there is one place that says them.

Flow:    serve.records -> [answers] -> serve.routes (responses=), /openapi.json

Answers are not passed through these models: most are text from Redis that goes out as it is. Tests compare them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from gg_ray.records import Verdict
from serve import records
from serve.scoring import ModelRecord


def model_of(record: type, **more: Any) -> type[BaseModel]:
    """A pydantic model with the fields of a TypedDict or dataclass and some more."""
    hints = get_type_hints(record)
    own = {name: (hints[name], ...) for name in ([f.name for f in fields(record)] if record is Verdict else hints)}
    made: type[BaseModel] = create_model(record.__name__, **{**own, **more})
    return made


VerdictModel = model_of(records.VerdictRecord)
MarkModel = model_of(records.OperatorMark)
MapModel = model_of(records.MapRecord)
ModelModel = model_of(ModelRecord)
AlarmModel = model_of(records.AlarmRecord, ack=(MarkModel | None, ...), shelve=(MarkModel | None, ...))
ScoredModel = create_model(
    "Scored", __base__=model_of(Verdict), time=(str, ...), time_ms=(int, Field(description="of the last scan"))
)


class Grid(BaseModel):
    """A grid that reports."""

    grid: str
    case: str
    step_s: float
    origin: str
    since: str
    buses: int | None
    branches: int | None
    verdict: VerdictModel | None  # type: ignore[valid-type]
    open_alarms: int


class Grids(BaseModel):
    grids: list[Grid]


class Bus(BaseModel):
    """One bus of a layout; x and y run from 0 to 1, y downwards."""

    name: str
    x: float
    y: float
    kv: float
    kind: str
    region: str | int


class Branch(BaseModel):
    """One branch; from and to are positions in buses."""

    model_config = ConfigDict(populate_by_name=True)
    name: str
    from_: int = Field(alias="from")
    to: int
    transformer: bool
    rate_mva: float | None


class Layout(BaseModel):
    """Where to draw what."""

    grid: str
    case: str
    base_mva: float
    f0_hz: float
    geographic: bool
    buses: list[Bus]
    branches: list[Branch]


class History(BaseModel):
    verdicts: list[VerdictModel]  # type: ignore[valid-type]
    ids: list[str]
    """Stream id of each; the first one is `before` of the page before."""


class Alarms(BaseModel):
    alarms: list[AlarmModel]  # type: ignore[valid-type]


class Scores(BaseModel):
    verdicts: list[ScoredModel]  # type: ignore[valid-type]


class Models(BaseModel):
    models: list[ModelModel]  # type: ignore[valid-type]


class Status(BaseModel):
    """What the parts say of themselves; an entry has a name and whatever else its part tells."""

    consumers: list[dict[str, Any]]
    verifiers: list[dict[str, Any]]
    feeds: list[dict[str, Any]]
    redis: bool


class SessionAnswer(BaseModel):
    """Who the page is for the server; an empty name when nobody is signed in."""

    auth: bool
    """Whether keys are needed here at all."""
    name: str
    scopes: list[str]
    csrf: str
    """To be sent as X-CSRF-Token with every POST of the page."""


class Login(BaseModel):
    """Body of POST /login."""

    key: str = Field(max_length=200)


class Act(BaseModel):
    """Body of the operators' actions; minutes is the length of a shelf."""

    model_config = ConfigDict(extra="forbid")
    note: str = Field("", max_length=500)
    minutes: int = Field(60, ge=1, le=7 * 24 * 60)


class Health(BaseModel):
    ok: bool
