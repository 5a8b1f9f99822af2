"""Ask a server's callbacks as a browser does, and panels as their callbacks do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2

from root_dash.cli.serving import compose
from root_dash.frontend.panels import PANELS
from root_dash.frontend.panels.panel import Drawing, Selection
from root_dash.frontend.theme import theme
from root_dash.settings import Settings
from root_dash.store import Store

SECONDS = 60
"""How long a request may take before the test counts it as never answered."""

PANEL = {panel.id: panel for page in PANELS.values() for panel in page}


def draw(
    store: Store, panel_id: str, layer: int = 0, step: int | None = None, on: str = "light", **values: str
) -> Drawing:
    """Read and draw one panel of run 1; `values` are the values of controls, by default their first."""
    panel = PANEL[panel_id]
    chosen = {control.id: values.get(control.id, control.value({})) for control in panel.controls}
    answer = panel.answer(Selection(store, 1, layer, step, chosen), theme(on))
    return Drawing(answer["body"], answer.get("title"), answer.get("hint"))


def request_body(dependency: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body with which a browser calls a callback; `values` maps `id.property` to a value."""
    outputs = [
        dict(zip(("id", "property"), output.rsplit(".", 1), strict=True))
        for output in dependency["output"].strip(".").split("...")
    ]

    def given(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**part, "value": values.get(f"{part['id']}.{part['property']}")} for part in parts]

    return {
        "output": dependency["output"],
        "outputs": outputs if dependency["output"].startswith("..") else outputs[0],
        "inputs": given(dependency["inputs"]),
        "state": given(dependency["state"]),
        "changedPropIds": ["{id}.{property}".format(**part) for part in dependency["inputs"][:1]],
    }


def answers(server: Any, values: Mapping[str, Any]) -> dict[str, httpx2.Response]:
    """Return a server's answer to each of its callbacks, by output; no answer may take longer than `SECONDS`."""

    async def ask() -> dict[str, httpx2.Response]:
        transport = httpx2.ASGITransport(server, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            listed = (await client.get("/_dash-dependencies")).json()
            own = [entry for entry in listed if not entry["clientside_function"]]
            return {
                entry["output"]: await asyncio.wait_for(
                    client.post("/_dash-update-component", json=request_body(entry, values)), SECONDS
                )
                for entry in own
            }

    return asyncio.run(ask())


def server(store: Store) -> Any:
    """Return the whole server of a store, without a token."""
    return compose(Settings(token=None), store)
