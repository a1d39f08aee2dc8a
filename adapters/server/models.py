"""GET /v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from longmem.adapters.server.chat_input import check_model
from longmem.adapters.server.context import Context
from longmem.adapters.server.routing import new_router


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = new_router(tags=["models"])
    model = {
        "id": context.settings.model,
        "object": "model",
        "created": context.started_at,
        "owned_by": "longmem",
    }

    @routes.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{id:path}")
    async def retrieve_model(id: str) -> dict[str, Any]:
        """One model; its name may hold slashes, as on the Hugging Face hub."""
        check_model(id, context.settings)
        return model

    return routes
