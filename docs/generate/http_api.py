"""The page of HTTP: every route that `forebay serve` has, by its OpenAPI document or by the Structs that its handler reads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import msgspec
from docs.generate.text import sentence
from msgspec import Struct
from starlette.routing import Route

from forebay.api import errors, openapi
from forebay.api.app import GROUPS
from forebay.api.inference.repository import IndexRequest, LoadRequest
from forebay.api.inference.requests import InferenceRequest
from forebay.api.inference.responses import InferenceResponse
from forebay.api.openai import batches, files
from forebay.api.openai.embeddings import EmbeddingRequest
from forebay.contract.generation.openai import Envelope

HEAD = """
# HTTP

Every route of `forebay serve`, for whoever writes a client without Python. [HTTP](../how-to/http.md) shows how the routes under
`/api/v1` are used, [OpenAI's API](../how-to/openai.md) those under `/v1`, and
[The Open Inference Protocol](../how-to/open-inference.md) those under `/v2`. A running server has its OpenAPI document, with the
schemas of all bodies of its own API, at `/openapi.json`. A scope is what the API key must have; without keys nobody needs one.
"""
ERRORS = """
## Errors

An error of Forebay's own API is a problem of RFC 9457: `application/problem+json`, with `type` (`urn:forebay:error:` and the code
below), `title`, `status`, `detail` and `request_id`. 429 and 503 have `Retry-After`. [Errors](errors.md) has the status and the
code of each error that Python knows as well; these are of HTTP alone:
"""
DOCUMENT = json.loads(openapi.document())
# Of the routes that are not in the document: the Structs of the body, the query and the answer.
OTHERS: dict[str, tuple[type[Struct] | None, type[Struct] | None, type[Struct] | None]] = {
    "POST /v1/embeddings": (EmbeddingRequest, None, None),
    "POST /v1/files": (files.UploadForm, None, files.FileObject),
    "GET /v1/files": (None, files.FileQuery, None),
    "GET /v1/files/{id}": (None, None, files.FileObject),
    "POST /v1/batches": (batches.CreateBatch, None, batches.BatchObject),
    "GET /v1/batches": (None, batches.BatchQuery, None),
    "GET /v1/batches/{id}": (None, None, batches.BatchObject),
    "POST /v1/batches/{id}/cancel": (None, None, batches.BatchObject),
    "POST /v2/models/{name}/infer": (InferenceRequest, None, InferenceResponse),
    "POST /v2/models/{name}/versions/{version}/infer": (InferenceRequest, None, InferenceResponse),
    "POST /v2/repository/index": (IndexRequest, None, None),
    "POST /v2/repository/models/{name}/load": (LoadRequest, None, None),
}
TEXT = {"POST /v1/chat/completions": "`messages`", "POST /v1/completions": "`prompt`"}
_STRUCTS = sorted(
    {kind for kinds in OTHERS.values() for kind in kinds if kind} | {Envelope}, key=lambda kind: kind.__name__
)
SCHEMAS = DOCUMENT["components"]["schemas"] | msgspec.json.schema_components(_STRUCTS, ref_template="#/{name}")[1]


def http() -> str:
    """The page of HTTP."""
    sections = [_section(method, path, route) for method, path, route in routes()]
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.HttpError)]
    table = [f"- `{kind.status} {kind.code}`: {sentence(inspect.getdoc(kind) or '')}" for kind in kinds[1:]]
    schemas = [_schema(name) for name in SCHEMAS]
    return "\n\n".join([HEAD.strip(), *sections, ERRORS.strip(), "\n".join(table), "## Bodies", *schemas])


def routes() -> Iterator[tuple[str, str, Route]]:
    """Each method and path, as the server has them."""
    for group in GROUPS:
        for route in group.routes:
            assert isinstance(route, Route)  # noqa: S101 - there are no mounts
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, _path(route), route


def _path(route: Route) -> str:
    return route.path.replace(":path}", "}").replace(":int}", "}")


def _section(method: str, path: str, route: Route) -> str:
    lines = [f"## {method} {path}", "", _doc(route), ""]
    lines += [f"- Scope: `{route.endpoint.scope}`"] if hasattr(route.endpoint, "scope") else []
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower(), {})
    for one in operation.get("parameters", ()):
        help = one["schema"].get("description", "")
        lines.append(f"- `{one['name']}` ({one['in']}): {_type(one['schema'])}{f'; {help}' if help else ''}")
    body = operation.get("requestBody", {}).get("content", {})
    lines += [f"- Body, `{media}`: {_type(content['schema'])}" for media, content in body.items()]
    for status, answer in operation.get("responses", {}).items():
        contents = answer.get("content") or {"": {}}
        told = [f"{f'`{media}`: ' if media else ''}{_type(one.get('schema', {}))}" for media, one in contents.items()]
        lines.append(f"- {'Error' if status == 'default' else f'Status {status}'}: {'; '.join(told) or 'no body'}")
    if text := TEXT.get(f"{method} {path}"):
        more = "[how to generate](../how-to/openai.md#completions)"
        lines.append(f"- Body: {text}, the fields of [`Envelope`](#envelope), and {more}")
    for what, kind in zip(("Body", "Query", "Answer"), OTHERS.get(f"{method} {path}", ()), strict=False):
        lines += [f"- {what}: [`{kind.__name__}`](#{kind.__name__.lower()})"] if kind else []
    return "\n".join(lines).strip()


def _doc(route: Route) -> str:
    """What a handler says of itself."""
    text = " ".join((inspect.getdoc(route.endpoint) or "").split())
    return sentence(text) if text else ""


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[`{name}`](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items') or {})}"
    kind = schema.get("type", "anything")
    default = f", default `{json.dumps(schema['default'])}`" if "default" in schema else ""
    return (" or ".join(kind) if isinstance(kind, list) else str(kind)) + default


def _schema(name: str) -> str:
    schema = SCHEMAS[name]
    lines = [f"### {name}", "", " ".join(schema.get("description", "").split()), ""]
    for field, one in schema.get("properties", {}).items():
        needed = ", required" if field in schema.get("required", ()) else ""
        help = f"; {one['description']}" if one.get("description") else ""
        lines.append(f"- `{field}`: {_type(one)}{needed}{help}")
    if "properties" not in schema:
        lines.append(f"- {_type(schema)}")
    return "\n".join(lines).strip()
