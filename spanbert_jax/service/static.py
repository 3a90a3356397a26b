"""The page in a browser: files of the package, at / and /page/NAME.

Invariant: the page may load nothing but these files and ask nobody but this server, and the browser refuses to make
markup of a text.
"""

from importlib.resources import files
from typing import Any

from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import Call, Nothing, Reply, Route

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the server has new files under the old names
}


_FILES = {one.name: one.read_bytes() for one in (files("spanbert_jax.service") / "page").iterdir()}


def _file(name: str) -> Reply:
    if name not in _FILES:
        raise Problem("no_route", "there is no such path; see /openapi.json")
    return Reply(_FILES[name], media_type=_TYPES[name.rpartition(".")[2]], headers=dict(_HEADERS))


async def page(call: Call, _: Nothing) -> Reply:
    """The page."""
    return _file("index.html")


async def part(call: Call, _: Nothing) -> Reply:
    """A file that the page loads."""
    return _file(call.path["name"])


ROUTES = (
    Route("GET", "/", "A page to use the service in a browser, as HTML", page, response=Any, is_public=True),
    Route(
        "GET",
        "/page/{name}",
        "A file that the page loads",
        part,
        response=Any,
        problems=("no_route",),
        is_public=True,
    ),
)
