"""GET /v1/models: every reference that a request's `model` may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from forebay.api.context import api_of, json_response, needs
from forebay.contract.model import ModelVersion


@needs("read")
async def list_models(request: Request) -> Response:
    """Each name, which means its newest version; each version; each alias."""
    versions = await api_of(request).client.models.list()
    newest = {version.name: version for version in versions}
    data = [_model(name, version) for name, version in newest.items()]
    data += [_model(ref, version) for version in versions for ref in _references(version)]
    return json_response({"object": "list", "data": data})


@needs("read")
async def get_model(request: Request) -> Response:
    """The version that a reference means now; `digits/3` comes as a path."""
    ref = request.path_params["model"]
    return json_response(_model(ref, await api_of(request).client.models.get(ref)))


def _references(version: ModelVersion) -> Sequence[str]:
    return [version.ref, *(f"{version.name}@{alias}" for alias in version.aliases)]


def _model(id: str, version: ModelVersion) -> dict[str, Any]:
    created = int(version.created_at.timestamp()) if version.created_at else 0
    return {"id": id, "object": "model", "created": created, "owned_by": "forebay"}
