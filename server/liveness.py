"""The route that says that the server is alive."""

from __future__ import annotations

from fastapi import APIRouter

from .responses import HealthJson

router = APIRouter()


@router.get("/healthz", tags=["liveness"], response_model=HealthJson)
def healthz() -> dict[str, str]:
    """Say that the process serves requests. This route needs no token."""
    return {"status": "ok"}
