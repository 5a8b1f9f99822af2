"""The scripts and styles of the page, which a browser keeps for a year: their addresses change with their content."""

from __future__ import annotations

import gzip
import mimetypes
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

ASSETS = Path(__file__).parent / "assets"
PLOTLY = Path(__file__).parent / "vendor" / "plotly-cartesian-4.1.1.min.js.gz"
"""plotly.js without the traces that no panel draws: a third of the full bundle, as npm's `plotly.js-cartesian-dist-min`
has it."""
TRACES = frozenset(
    "bar box contour heatmap histogram histogram2d histogram2dcontour image pie scatter scatterternary violin".split()
)
"""The types of traces that `PLOTLY` draws."""

_PREFIX = "/assets/"
_KEPT = {"cache-control": "private, max-age=31536000, immutable"}


class StaticFiles:
    """The files of a folder and the bundle of plotly.js, read once.

    Other than data, the files hold nothing secret, and no answer repeats what a request says.
    """

    def __init__(self, folder: Path = ASSETS, bundle: Path = PLOTLY) -> None:
        self._bundle = bundle.name.removesuffix(".gz")
        self._compressed = bundle.read_bytes()
        self._files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        self._hashes = {name: sha256(content).hexdigest()[:16] for name, content in self._files.items()}
        self._hashes[self._bundle] = sha256(self._compressed).hexdigest()[:16]

    @property
    def plotly(self) -> str:
        """The address of plotly.js."""
        return self.address(self._bundle)

    def names(self, suffix: str) -> list[str]:
        """Return the names of the folder's files with a suffix, in alphabetical order."""
        return [name for name in self._files if name.endswith(suffix)]

    def address(self, name: str) -> str:
        """Return the address of a file, with the hash of its content."""
        return f"{_PREFIX}{name}?v={self._hashes[name]}"

    def serve(self, api: FastAPI) -> None:
        """Answer the addresses of the files."""
        api.add_route(f"{_PREFIX}{{name}}", self._answer, methods=["GET", "HEAD"], include_in_schema=False)

    async def _answer(self, request: Request) -> Response:
        from starlette.exceptions import HTTPException
        from starlette.responses import Response

        name = request.path_params["name"]
        if name not in self._hashes:
            raise HTTPException(404, "there is nothing at this path")
        # An address without the hash may get other content after an upgrade.
        same = request.query_params.get("v") == self._hashes[name]
        headers = dict(_KEPT) if same else {"cache-control": "no-cache"}
        kind = mimetypes.guess_type(name)[0]
        if name != self._bundle:
            return Response(self._files[name], headers=headers, media_type=kind)
        headers["vary"] = "Accept-Encoding"
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self._compressed, headers=headers | {"content-encoding": "gzip"}, media_type=kind)
        return Response(gzip.decompress(self._compressed), headers=headers, media_type=kind)
