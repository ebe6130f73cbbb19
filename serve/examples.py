"""A window small enough to be typed, for OpenAPI and curl: sixteen scans of the voltages of IEEE 14.

Flow:    [examples] -> /openapi.json, /docs, docs/live.md
Source:  voltages of the published base state (pandapower case14), rounded to 0.001 p.u.
"""

from __future__ import annotations

from typing import Any

_V_PU = (1.06, 1.045, 1.01, 1.018, 1.02, 1.07, 1.062, 1.09, 1.056, 1.051, 1.057, 1.055, 1.05, 1.036)
SCORE_EXAMPLE: dict[str, Any] = {
    "case": "case14",
    "t0_ns": 1_700_000_000_000_000_000,
    "step_s": 60.0,
    "channels": list(range(14)),
    "sigma": [0.004] * 14,
    "z": list(_V_PU) * 16,
}
WINDOW_SCHEMA: dict[str, Any] = {
    "title": "Window",
    "description": "One telemetry window; fields as in gg_ray.windows_io. p.u. on the grid's base, radians, UTC ns.",
    "type": "object",
    "required": ["case", "channels", "sigma", "z"],
    "properties": {
        "case": {"type": "string", "description": "Grid, such as case118 or gb29"},
        "t0_ns": {"type": "integer", "description": "UTC of the first scan, ns"},
        "step_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
        "channels": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1,
                     "description": "[M] ascending positions in the full layout of meters"},
        "sigma": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 1,
                  "description": "[M] standard deviations"},
        "z": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1,
              "description": "[T*M] readings scan by scan; null where nothing arrived"},
        "age": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0, "maximum": 255}},
        "status": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0, "maximum": 1}},
        "tap": {"type": ["array", "null"], "items": {"type": "number"}},
        "x_scale": {"type": ["array", "null"], "items": {"type": "number"}},
        "moves": {"type": ["array", "string", "null"]},
        "buses": {"type": ["array", "null"], "items": {"type": "string"}},
        "topology": {"type": ["string", "null"]},
    },
}  # fmt: skip
WINDOWS_SCHEMA: dict[str, Any] = {
    "title": "Windows",
    "oneOf": [
        {"$ref": "#/components/schemas/Window"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Window"}, "minItems": 1},
    ],
}
