"""GET /health, /health/ready and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from longmem.adapters.server.context import Context
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.routing import new_router
from longmem.adapters.server.traffic import shutting_down


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = new_router(tags=["status"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives. The only route that needs no key."""
        return {"status": "ok"}

    @routes.get("/health/ready")
    async def ready() -> dict[str, str]:
        """Whether requests are taken; 503 from SIGTERM on."""
        if context.traffic.draining:
            raise shutting_down()
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response)
    def metrics(request: Request) -> Response:
        """Figures for Prometheus, of all owners together."""
        owner = context.owner(request)
        if owner is not None and owner not in context.settings.metrics_owners:
            raise ApiError(
                403,
                "operators_only",
                "the figures show all owners together; start the server with --operator NAME for "
                "the owner that may see them",
            )
        return Response(context.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
