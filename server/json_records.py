"""Records as JSON answers: arrays are lists, NaN is null, infinities are the strings "Infinity" and "-Infinity"."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

from root_dash.records.plain import plain, strict

_DEPTH = 64  # of a config, which the store cuts at 20 levels, inside records


class RecordResponse(JSONResponse):
    """A record, or several, as JSON."""

    def render(self, content: Any) -> bytes:
        """Return the content in ASCII: a lone surrogate in a user's config is not valid UTF-8."""
        content = plain(content, strict, _DEPTH)
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
