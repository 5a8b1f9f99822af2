"""Whether the server answers."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()


@router.get("/healthz", tags=["health"])
def healthz() -> dict[str, str]:
    """That the process serves requests; open to all, and says nothing else."""
    return {"status": "ok"}
