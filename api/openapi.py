"""/openapi.json, made from the Structs of the native API, and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.api.context import json_response
from forebay.api.native import bodies as b
from forebay.api.native import jobs, models, results
from forebay.api.native.results import WRITERS
from forebay.contract.drift.comparison import Drift

BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}
TEXT = {"type": "string"}


class Operation(NamedTuple):
    """What OpenAPI says of a route beside its method, its path and the docstring of its handler.

    `answers` are by status: a Struct, None for no body, or schemas by media type. `body` is a Struct, several, or schemas.
    """

    answers: Mapping[int, Any]
    query: type[msgspec.Struct] | None = None
    body: Any = None
    headers: Sequence[str] = ()


_SUBMIT = Operation(
    {200: b.Submitted, 202: b.Submitted},
    query=b.Form,
    body=tuple(jobs.KINDS.values()),
    headers=("Idempotency-Key", "Prefer"),
)
_MANY = {"application/x-ndjson": {"type": "array", "minItems": 1}, "application/msgpack": BINARY}
_CALL = Operation({200: b.Submitted}, query=b.Form, body=b.Submit, headers=("Idempotency-Key",))
_UPLOAD = {"type": "object", "properties": {"model": {"$ref": "#/components/schemas/Register"}, "artifact": BINARY}}
_REGISTER = Operation(
    {201: b.ModelBody},
    body={"application/json": {"$ref": "#/components/schemas/Register"}, "multipart/form-data": _UPLOAD},
)
OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/api/v1/jobs"): _SUBMIT,
    ("GET", "/api/v1/jobs"): Operation({200: b.JobList}, query=b.JobQuery),
    ("POST", "/api/v1/jobs:many"): Operation(
        {202: b.SubmittedMany}, query=b.SubmitMany, body=_MANY,
        headers=("Idempotency-Key",),
    ),
    ("GET", "/api/v1/jobs/{id}"): Operation({200: b.JobBody}, query=b.Wait),
    ("POST", "/api/v1/jobs/{id}/cancel"): Operation({200: b.StateBody, 202: b.StateBody}),
    ("POST", "/api/v1/jobs/{id}/retry"): Operation({202: b.StateBody}),
    ("GET", "/api/v1/jobs/{id}/result"): Operation(
        {200: {media: {} if media == "application/json" else BINARY for media in WRITERS}}, query=b.ResultQuery
    ),
    ("GET", "/api/v1/jobs/{id}/events"): Operation({200: {"text/event-stream": TEXT}}, headers=("Last-Event-ID",)),
    ("POST", "/call"): _CALL,
    ("POST", "/predict"): _CALL,
    ("POST", "/api/v1/models"): _REGISTER,
    ("POST", "/register"): _REGISTER,
    ("GET", "/api/v1/models"): Operation({200: b.ModelList}, query=b.ModelQuery),
    ("POST", "/api/v1/models:search"): Operation({200: b.ModelList}, body=b.Search),
    ("POST", "/discover"): Operation({200: b.ModelList}, body=b.Search),
    ("PUT", "/api/v1/models/{name}/aliases/{alias}"): Operation({200: b.ModelBody}, body=b.Alias),
    ("DELETE", "/api/v1/models/{name}/aliases/{alias}"): Operation({204: None}),
    ("GET", "/api/v1/models/{ref}/drift"): Operation({200: Drift}, query=b.DriftQuery),
    ("GET", "/api/v1/models/{name}/{version}/drift"): Operation({200: Drift}, query=b.DriftQuery),
    ("GET", "/api/v1/models/{ref}"): Operation({200: b.ModelBody}),
    ("DELETE", "/api/v1/models/{ref}"): Operation({204: None}),
    ("GET", "/api/v1/models/{name}/{version}"): Operation({200: b.ModelBody}),
    ("DELETE", "/api/v1/models/{name}/{version}"): Operation({204: None}),
    ("GET", "/api/v1/queues"): Operation({200: b.QueueList}),
}  # fmt: skip
NATIVE_ROUTES: Sequence[Route] = [*jobs.ROUTES, *results.ROUTES, *models.ROUTES]


def routes_by_operation() -> dict[tuple[str, str], Route]:
    """The native routes by method and path."""
    found = {}
    for route in NATIVE_ROUTES:
        [method] = (route.methods or set()) - {"HEAD"}
        found[method, route.path] = route
    return found


@cache
def document() -> bytes:
    """The OpenAPI document, as JSON."""
    used = [kind for operation in OPERATIONS.values() for kind in (operation.body, *operation.answers.values())]
    named = [kind for several in used for kind in (several if isinstance(several, tuple) else [several])]
    structs = {kind for kind in named if isinstance(kind, type)} | {b.Register}
    ordered = sorted(structs, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for (method, path), route in routes_by_operation().items():
        paths.setdefault(path, {})[method.lower()] = _operation(OPERATIONS[method, path], method, path, route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Forebay", "version": version("forebay")},
            "security": [{}, {"key": []}],
            "paths": paths,
            "components": {
                "schemas": components | {"Problem": PROBLEM},
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


PROBLEM: Mapping[str, Any] = {
    "type": "object",
    "description": "Why a request was refused, as RFC 9457 has it.",
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"},
        "field": {"type": "string"}, "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}  # fmt: skip


def _operation(operation: Operation, method: str, path: str, route: Route) -> dict[str, Any]:
    parameters = [_parameter("path", name, TEXT, required=True) for name in re.findall(r"\{(\w+)\}", path)]
    parameters += [_parameter("header", name, TEXT) for name in operation.headers]
    if operation.query is not None:
        parameters += _query(operation.query)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers = {str(status): _answer(status, kind) for status, kind in operation.answers.items()}
    made: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": " ".join((route.endpoint.__doc__ or "").split()),
        "parameters": parameters,
        "responses": answers | {"default": {"description": "What was wrong.", "content": problem}},
    }
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": _content(operation.body)}
    return made


def _answer(status: int, kind: Any) -> dict[str, Any]:
    described = {200: "Done.", 201: "Registered.", 202: "Accepted.", 204: "Done."}[status]
    links = {"links": _links()} if kind is b.Submitted else {}
    return {"description": described, **links} | ({} if kind is None else {"content": _content(kind)})


def _links() -> dict[str, Any]:
    """What can be done with a job that was submitted."""
    return {
        _operation_id(method, path): {
            "operationId": _operation_id(method, path),
            "parameters": {"id": "$response.body#/id"},
        }
        for method, path in OPERATIONS
        if "{id}" in path
    }


def _operation_id(method: str, path: str) -> str:
    return f"{method.lower()}{re.sub(r'[^a-z0-9]+', '_', path.lower())}".rstrip("_")


def _content(kind: Any) -> dict[str, Any]:
    if isinstance(kind, Mapping):
        return {media: {"schema": schema} for media, schema in kind.items()}
    refs = [{"$ref": f"#/components/schemas/{k.__name__}"} for k in (kind if isinstance(kind, tuple) else [kind])]
    return {"application/json": {"schema": {"anyOf": refs} if len(refs) > 1 else refs[0]}}


def _query(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    schema = components[kind.__name__]
    required = schema.get("required", [])
    return [
        _parameter("query", name, components["JobKind"] if "$ref" in about else about, required=name in required)
        for name, about in schema["properties"].items()
    ]


def _parameter(where: str, name: str, schema: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema}


async def openapi(_: Request) -> Response:
    """What the native API takes and gives."""
    return json_response(msgspec.Raw(document()))


async def docs(_: Request) -> Response:
    """The page of the native API."""
    page = (files("forebay.api") / "static" / "docs.html").read_bytes()
    policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'self'; frame-ancestors 'none'"
    return Response(page, headers={"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy})


async def script(_: Request) -> Response:
    """What the page runs."""
    data = (files("forebay.api") / "static" / "docs.js").read_bytes()
    return Response(data, headers={"Content-Type": "text/javascript; charset=utf-8"})


ROUTES = [Route("/openapi.json", openapi), Route("/docs", docs), Route("/docs.js", script)]
