"""The OpenAPI document of the service.

Invariant: the document is made from the tables of routes and of problems alone, so that it cannot say what the code
does not do.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from spanbert_jax.service.problems import PROBLEMS
from spanbert_jax.service.routes import Nothing, Route
from spanbert_jax.version import VERSION

_FORMS: dict[str, dict[str, Any]] = {
    "openai": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string", "enum": list(PROBLEMS)},
                },
            }
        },
    },
    "tei": {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "error_type": {"type": "string", "enum": sorted({kind.tei for kind in PROBLEMS.values()})},
        },
    },
    "inference": {"type": "object", "properties": {"error": {"type": "string"}}},
}


def problems_of(route: Route) -> list[str]:
    """The names of the problems that a route may have, beside those of a path or method that is not there."""
    return [*([] if route.is_public else ["unauthorized"]), *route.problems]


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, as JSON."""
    types = [kind for route in routes for kind in (route.request, route.response)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for number, route in enumerate(routes):
        request, response = schemas[2 * number], schemas[2 * number + 1]
        responses: dict[str, Any] = {"200": _content("The answer.", response)}
        for name in problems_of(route):
            kind = PROBLEMS[name]
            status, known = str(kind.status), responses.get(str(kind.status))
            text = f"{name}: {kind.meaning}"
            responses[status] = _content(f"{known['description']} {text}" if known else text, _FORMS[route.form])
        operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
        if route.request is not Nothing:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
        if "{" in route.path:
            names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        if route.is_public:
            operation["security"] = []
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "spanbert_jax", "version": VERSION},
        "security": [{"key": []}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
