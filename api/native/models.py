"""Models: register by upload, list, look at, search, alias, delete; and the queues that their jobs wait in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.api.context import api_of, json_response, media_type, needs, parse_json, read_json, read_query
from forebay.api.errors import MalformedBody
from forebay.api.native.bodies import (
    Alias,
    DriftQuery,
    ModelBody,
    ModelList,
    ModelQuery,
    QueueBody,
    QueueList,
    Register,
    Search,
)
from forebay.api.native.values import inputs_from_json
from forebay.api.places import find_place, local_copy, local_name
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.producer.inputs import InputsFor
from forebay.storage.files import FileRecord

CHUNK = 1 << 20


@needs("models")
async def register(request: Request) -> Response:
    """Register the next version of a name. An artifact comes as multipart/form-data: the part `model` is the JSON that is
    otherwise the whole body, the part `artifact` a .pt2, .onnx or .safetensors file. Or the JSON names one that lies elsewhere.
    """  # fmt: skip
    models = api_of(request).client.models
    if media_type(request) != "multipart/form-data":
        fields = _fields(await read_json(request, Register))
        place = None if fields["artifact"] is None else await find_place(request, fields["artifact"], "artifact")
        if not isinstance(place, FileRecord):
            return _registered(await models.register(**fields | {"artifact": place}))
        return _registered(await api_of(request).client.call(_register_upload, request, place, fields))
    try:
        async with request.form(max_files=1, max_fields=1) as form:
            described, artifact = form.get("model"), form.get("artifact")
            if not isinstance(artifact, UploadFile) or not isinstance(described, str | UploadFile):
                raise InvalidInput("the form needs the parts `model`, which is JSON, and `artifact`, which is a file")
            text = described if isinstance(described, str) else await described.read()
            fields = _fields(parse_json(text, Register))
            if fields["artifact"] is not None:
                raise InvalidInput("the artifact is there twice: as a part, and named - at `$.artifact`")
            with tempfile.TemporaryDirectory(prefix="forebay-api-") as folder:
                path = Path(folder) / local_name(artifact.filename)
                await api_of(request).client.call(_write, artifact, path)
                return _registered(await models.register(**fields | {"artifact": path}))
    except HTTPException as error:  # Starlette's, of a form that is none
        raise MalformedBody(f"the body is not multipart/form-data: {error.detail}") from error


@needs("read")
async def list_models(request: Request) -> Response:
    """Every version, or those of one name."""
    query = read_query(request, ModelQuery)
    found = await api_of(request).client.models.list(None if query.name is UNSET else query.name)
    start = 0
    if query.after is not UNSET:
        start = next((i for i, model in enumerate(found, start=1) if model.ref == query.after), len(found))
    page = found[start : start + query.limit]
    more = page[-1].ref if start + query.limit < len(found) else None
    return json_response(ModelList([ModelBody.of(model) for model in page], more))


@needs("read")
async def show(request: Request) -> Response:
    """The version that `name`, `name/3` or `name@alias` means now."""
    return json_response(ModelBody.of(await api_of(request).client.models.get(_ref(request))))


@needs("read")
async def drift(request: Request) -> Response:
    """How far what the version has served is from its reference, by column."""
    query = read_query(request, DriftQuery)
    return json_response(await api_of(request).client.models.drift(_ref(request), query.hours))


@needs("models")
async def delete(request: Request) -> Response:
    """Delete one version, named by number or alias."""
    await api_of(request).client.models.delete(_ref(request))
    return Response(status_code=204)


@needs("models")
async def set_alias(request: Request) -> Response:
    """Point an alias at a version, at once for every job submitted from now on."""
    path, body = request.path_params, await read_json(request, Alias)
    made = await api_of(request).client.models.set_alias(path["name"], path["alias"], body.version)
    return json_response(ModelBody.of(made))


@needs("models")
async def drop_alias(request: Request) -> Response:
    """Remove an alias."""
    await api_of(request).client.models.drop_alias(request.path_params["name"], request.path_params["alias"])
    return Response(status_code=204)


@needs("read")
async def search(request: Request) -> Response:
    """The versions that have these inputs and outputs, fit into these resources, and carry this metadata."""
    asked = await read_json(request, Search)
    found = await api_of(request).client.models.search(**asdict(asked))
    return json_response(ModelList([ModelBody.of(model) for model in found], None))


@needs("read")
async def queues(request: Request) -> Response:
    """Every queue, with its jobs and workers."""
    found = await api_of(request).client.queues()
    bodies = [
        QueueBody(q.name, q.depth, q.oldest_age_s, q.running, list(q.workers), q.capacity, q.max_queue_size)
        for q in found
    ]
    return json_response(QueueList(bodies))


def _ref(request: Request) -> str:
    """The reference that the path is: `name/3` has two parts."""
    path = request.path_params
    return f"{path['name']}/{path['version']}" if "version" in path else str(path["ref"])


def _fields(body: Register) -> dict[str, Any]:
    """What `models.register` takes; the example is read by the signature that the version gets."""
    fields = asdict(body)
    if body.example is not None:
        fields["example"] = InputsFor(lambda model: inputs_from_json(model.signature, body.example, batched=False))
    return fields


def _registered(model: ModelVersion) -> Response:
    return json_response(body := ModelBody.of(model), 201, {"Location": body.url})


def _register_upload(request: Request, file: FileRecord, fields: dict[str, Any]) -> ModelVersion:
    with local_copy(request, file) as path:
        return api_of(request).client.sync.models.register(**fields | {"artifact": path})


def _write(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        while chunk := upload.file.read(CHUNK):
            file.write(chunk)


ROUTES = [
    Route("/api/v1/models", register, methods=["POST"]),
    Route("/api/v1/models", list_models, methods=["GET"]),
    Route("/api/v1/models:search", search, methods=["POST"]),
    Route("/api/v1/models/{name}/aliases/{alias}", set_alias, methods=["PUT"]),
    Route("/api/v1/models/{name}/aliases/{alias}", drop_alias, methods=["DELETE"]),
    Route("/api/v1/models/{ref}/drift", drift, methods=["GET"]),
    Route("/api/v1/models/{name}/{version}/drift", drift, methods=["GET"]),
    Route("/api/v1/models/{ref}", show, methods=["GET"]),
    Route("/api/v1/models/{ref}", delete, methods=["DELETE"]),
    Route("/api/v1/models/{name}/{version}", show, methods=["GET"]),
    Route("/api/v1/models/{name}/{version}", delete, methods=["DELETE"]),
    Route("/api/v1/queues", queues, methods=["GET"]),
    Route("/register", register, methods=["POST"]),
    Route("/discover", search, methods=["POST"]),
]
