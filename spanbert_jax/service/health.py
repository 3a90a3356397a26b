"""Whether the server lives and is ready, its metrics, and its OpenAPI document.

Invariant: these routes answer without a key, and never wait for the engine.
"""

from typing import Any

from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import Call, Nothing, Reply, Route


async def live(call: Call, _: Nothing) -> Reply:
    """That the process answers."""
    return Reply({"live": True})


async def ready(call: Call, _: Nothing) -> Reply:
    """That requests are taken: the smallest program of every length is compiled, and the server is not draining."""
    if not call.service.engine.is_ready:
        raise Problem("not_serving", "the programs are being compiled, or the server is shutting down", retry_after=1.0)
    return Reply({"ready": True})


async def metrics(call: Call, _: Nothing) -> Reply:
    """Metrics in Prometheus's text format."""
    text = call.service.engine.metrics()
    return Reply(text.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = (
    Route("GET", "/health/live", "Whether the process answers", live, response=dict[str, bool], is_public=True),
    Route(
        "GET",
        "/health/ready",
        "Whether requests are taken",
        ready,
        response=dict[str, bool],
        problems=("not_serving",),
        is_public=True,
    ),
    Route(
        "GET",
        "/health",
        "TEI: the same as /health/ready",
        ready,
        response=dict[str, bool],
        problems=("not_serving",),
        is_public=True,
    ),
    Route("GET", "/metrics", "Metrics for Prometheus, as text", metrics, response=Any, is_public=True),
)
