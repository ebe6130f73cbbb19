"""The twelve anomaly families: which primitive is made by whom, and how it takes a size.

Flow:    scenario.alteration (Scene) -> [anomalies] -> scenario.sizing (d_eff units), scenario.telemetry
Source:  selfplay.md, section 5 (families), section 3 (anomaly vector); docs/physics.md (recipes)

The makers stand by what is wrong: a reading (`anomalies_data`), the declared model (`anomalies_model`), or a world
that somebody hides (`anomalies_hidden`).
"""

from __future__ import annotations

from dataclasses import replace

from gg_ray.records import Event
from gg_ray.scenario import anomalies_data, anomalies_hidden, anomalies_model
from gg_ray.scenario.alteration import PROBE, Alteration, Maker, Scene
from gg_ray.scenario.attacks import MAX_LOAD_SHARE

SCALE_LIMIT = (-0.9, 3.0)
NONLINEAR = (*anomalies_data.PROBED, *anomalies_model.PROBED, *anomalies_hidden.PROBED)
"""Sized primitives for which `resize` is exact only at the size that was asked for."""
_MAKERS: dict[str, Maker] = {**anomalies_data.MAKERS, **anomalies_model.MAKERS, **anomalies_hidden.MAKERS}


def build(scene: Scene, event: Event) -> Alteration:
    """Alteration of an anomaly event at unit (or natural) size.  Raises: Unreachable."""
    maker = _MAKERS.get(event.primitive)
    if maker is None:
        raise ValueError(f"{event.primitive!r} is not an anomaly primitive")
    return maker(scene, event)


def resize(scene: Scene, event: Event, unit: Alteration, factor: float) -> Alteration:
    """The alteration at `factor` times its unit size, exact where the family is nonlinear in its size."""
    if event.primitive in anomalies_data.PROBED:
        return anomalies_data.fault_residue(scene, event, PROBE * factor)
    if event.primitive in anomalies_model.PROBED:
        return anomalies_model.redeclare(scene, event, factor)
    if event.primitive in anomalies_hidden.PROBED:
        return anomalies_hidden.injection(scene, event, PROBE * factor)
    bounded = unit.scaled(factor)
    if event.primitive == "scale":
        m = scene.sign * factor
        return replace(bounded, in_bounds=SCALE_LIMIT[0] <= m <= SCALE_LIMIT[1])
    if event.primitive == "load_redistribution":
        return replace(bounded, in_bounds=abs(factor) <= MAX_LOAD_SHARE)
    return bounded
