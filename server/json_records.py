"""Records as JSON: arrays as lists, NaN as null, infinities as the strings "Infinity" and "-Infinity"."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.responses import JSONResponse


def plain(value: Any) -> Any:
    """The value in JSON's own types; bytes in base64."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _special(value)
    if isinstance(value, np.ndarray):
        return _numbers(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class RecordResponse(JSONResponse):
    """A record, or several, as JSON."""

    def render(self, content: Any) -> bytes:
        """The content in ASCII: a lone surrogate in a user's config is no valid UTF-8."""
        return json.dumps(plain(content), allow_nan=False, separators=(",", ":")).encode("ascii")


def _numbers(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    found = array.astype(object)
    for place in zip(*np.nonzero(~np.isfinite(array)), strict=True):
        found[place] = _special(float(array[place]))
    return found.tolist()


def _special(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "Infinity" if value > 0 else "-Infinity"
