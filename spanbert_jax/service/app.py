"""The web application: from a request's bytes to a handler, and from its reply to a response.

Invariant: every request gets one response, with an id, within the deadline, and no exception reaches the client but as
a row of `PROBLEMS`. What a request says is never logged.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Path

from spanbert_jax.service import filling, health, inference, openai, own, static, tei
from spanbert_jax.service.binary_tensors import HEADER, split_body
from spanbert_jax.service.keys import check_key
from spanbert_jax.service.openapi import document
from spanbert_jax.service.problems import Form, Problem, problem_of, retry_after, where
from spanbert_jax.service.routes import TRUNCATED, Body, Call, Nothing, Reply, Route
from spanbert_jax.service.service import Service

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LOG = logging.getLogger("spanbert_jax.service")


async def _openapi(call: Call, _: Nothing) -> Reply:
    """The document that describes the routes."""
    return Reply(document(ROUTES))


ROUTES: tuple[Route, ...] = (
    *openai.ROUTES,
    *own.ROUTES,
    *filling.ROUTES,
    *tei.ROUTES,
    *inference.ROUTES,
    *health.ROUTES,
    *static.ROUTES,
    Route("GET", "/openapi.json", "This document", _openapi, is_public=True),
)


def application(service: Service) -> Starlette:
    """The application for a service, which the caller warms up and closes."""
    paths = [Path(route.path, _endpoint(service, route), methods=[route.method]) for route in ROUTES]

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            problem = Problem("wrong_method", f"{request.method} is not for this path; see /openapi.json")
        else:
            problem = Problem("no_route", "there is no such path; see /openapi.json")
        service.counters.add("spanbert_requests_total", route="", code=str(problem.status))
        return _response(_id(request), problem, "openai", dict(error.headers or {}))

    return Starlette(routes=paths, exception_handlers={HTTPException: unknown})


def _endpoint(service: Service, route: Route) -> Callable[[Request], Awaitable[Response]]:
    decode = msgspec.json.Decoder(route.request).decode

    async def endpoint(request: Request) -> Response:
        begun = time.monotonic()
        result: Reply | Problem
        headers: dict[str, str] = {}
        try:
            async with asyncio.timeout(service.settings.deadline):
                if not route.is_public:
                    check_key(service.settings.keys, request.headers.get("authorization", ""))
                body: Body = Nothing()
                binary = b""
                if route.request is not Nothing:
                    whole = await _body(request, service.settings.max_body_bytes)
                    text, binary = split_body(whole, request.headers.get(HEADER))
                    body = decode(text)
                call = Call(service, request.path_params, begun + service.settings.deadline, binary)
                result = await _while_there(request, route.handler(call, body))
                result.value = result.content()
        except (Exception, asyncio.CancelledError) as error:
            result = _problem(error, request, route)
        if isinstance(result, Reply):
            headers |= _of_engine(result, time.monotonic() - begun)
        response = _response(_id(request), result, route.form, headers)
        service.counters.add("spanbert_requests_total", route=route.path, code=str(response.status_code))
        return response

    return endpoint


def _problem(error: BaseException, request: Request, route: Route) -> Problem:
    if isinstance(error, ClientDisconnect):  # nobody reads the response
        return Problem("late", "the client went away")
    if isinstance(error, asyncio.CancelledError):
        return Problem("not_serving", "the server is shutting down")
    problem = problem_of(error)
    if problem.name == "failed":
        _LOG.error("%s %s %s failed\n%s", _id(request), route.method, route.path, where(error))
    return problem


async def _body(request: Request, most: int) -> bytes:
    """The body; raises Problem as soon as it is larger than `most` bytes, whatever its headers say."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Problem("too_large", f"the body has more than {most:,} bytes; send less at once")
        parts.append(part)
    return b"".join(parts)


async def _while_there(request: Request, work: Any) -> Reply:
    """The result of the handler, which is cancelled when the client goes away or the time is over."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _id(request: Request) -> str:
    """The request's id, the client's own where it sent one that can stand in a header."""
    if not hasattr(request.state, "id"):
        given = request.headers.get("x-request-id", "")
        request.state.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
    return str(request.state.id)


def _of_engine(reply: Reply, total: float) -> dict[str, str]:
    """Headers that tell how long each phase took, and which inputs were cut."""
    phases = reply.answered.seconds if reply.answered else {}
    timing = ", ".join(f"{phase};dur={1000 * seconds:.3f}" for phase, seconds in (*phases.items(), ("total", total)))
    cut = ",".join(map(str, reply.answered.cut)) if reply.answered else ""
    return {"Server-Timing": timing} | ({TRUNCATED: cut} if cut else {})


def _response(id: str, result: Reply | Problem, form: Form, headers: dict[str, str]) -> Response:
    headers = {"X-Request-Id": id, "X-Content-Type-Options": "nosniff", **headers}
    if isinstance(result, Reply):
        return Response(result.content(), 200, {**headers, **result.headers}, result.media_type)
    if result.retry_after is not None:
        headers["Retry-After"] = retry_after(result.retry_after)
    if result.name == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(result.body(form)), result.status, headers, "application/json")
