"""/v1/files: uploads, streamed into the blob store and out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from forebay.api.context import Api, api_of, json_response, media_type, needs, read_query
from forebay.api.errors import BodyIncomplete, MalformedBody, NotFound, UnsupportedMediaType
from forebay.contract.errors import InvalidInput
from forebay.contract.job import new_ids
from forebay.contract.references import plain_text, shown
from forebay.storage.files import FileRecord, FileStore

MAX_FIELDS, MAX_FIELD_BYTES = 8, 1024
MAX_FILENAME = 255
MAX_LISTED = 10_000


class UploadForm(Struct, frozen=True):
    """The fields of an upload besides the file."""

    purpose: Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
    anchor: Literal["created_at"] | UnsetType = msgspec.field(default=UNSET, name="expires_after[anchor]")
    seconds: Annotated[int, Meta(ge=3600, le=30 * 86_400)] | UnsetType = msgspec.field(
        default=UNSET, name="expires_after[seconds]"
    )


class FileQuery(Struct, frozen=True):
    """Which files to list."""

    purpose: str = ""
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = MAX_LISTED
    order: Literal["asc", "desc"] = "desc"


class FileObject(Struct, frozen=True):
    """A file as OpenAI tells it."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    object: str = "file"
    status: str = "processed"

    @classmethod
    def of(cls, file: FileRecord) -> FileObject:
        expires_at = None if file.expires_at is None else int(file.expires_at)
        return cls(file.id, file.bytes, int(file.created_at), file.filename, file.purpose, expires_at)


@needs("submit")
async def create_file(request: Request) -> Response:
    """Store an upload; it is never whole in memory."""
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMediaType("an upload is multipart/form-data, with purpose and file")
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidInput("the form has no file - at `$.file`")
        asked = _read_form({name: value for name, value in form.multi_items() if name != "file"})
        file = await asyncio.to_thread(_store, api_of(request), upload, asked, request.scope["caller"].name)
    except MultiPartException as error:
        raise MalformedBody(f"the body is not multipart/form-data: {error.message}") from error
    except ClientDisconnect as error:
        raise BodyIncomplete from error
    finally:
        for spooled in parser._files_to_close_on_error:  # the form lacks that of a part without an end
            spooled.close()
    return json_response(FileObject.of(file))


@needs("read")
async def list_files(request: Request) -> Response:
    """The caller's files, the newest first unless asked otherwise."""
    query, store = read_query(request, FileQuery), _files(api_of(request))
    found = await api_of(request).client.call(
        store.list, request.scope["caller"].name, purpose=query.purpose, after=query.after, limit=query.limit + 1,
        ascending=query.order == "asc",
    )  # fmt: skip
    return json_response(page([FileObject.of(file) for file in found], query.limit))


@needs("read")
async def get_file(request: Request) -> Response:
    """One file."""
    return json_response(FileObject.of(await find_file(request, request.path_params["id"])))


@needs("read")
async def get_content(request: Request) -> Response:
    """What is in a file, streamed; the connection is cut before its end when the blob store does not give it whole."""
    file = await find_file(request, request.path_params["id"])
    chunks = api_of(request).client.sync.session.blobs.chunks(file.blob)
    first = await asyncio.to_thread(next, chunks, b"")  # an error of it is still an answer
    headers = {"Content-Length": str(file.bytes)}
    return StreamingResponse(chain([first], chunks), 200, headers, "application/octet-stream")


@needs("submit")
async def delete_file(request: Request) -> Response:
    """Delete a file."""
    api, id = api_of(request), request.path_params["id"]
    if not await api.client.call(_files(api).delete, id, request.scope["caller"].name):
        raise _not_found(id)
    return json_response({"id": id, "object": "file", "deleted": True})


async def find_file(request: Request, id: str, field: str = "id") -> FileRecord:
    """The caller's file of this id, which stands in `field`; NotFound when there is none."""
    api = api_of(request)
    file = await api.client.call(_files(api).get, id, request.scope["caller"].name)
    if file is None:
        raise _not_found(id, field)
    return file


def page(data: Sequence[Any], limit: int) -> dict[str, Any]:
    """A list as OpenAI pages it, of which one more than `limit` was asked for."""
    listed = data[:limit]
    ends = {"first_id": listed[0].id, "last_id": listed[-1].id} if listed else {"first_id": None, "last_id": None}
    return {"object": "list", "data": listed, **ends, "has_more": len(data) > limit}


def _store(api: Api, upload: UploadFile, asked: UploadForm, owner: str) -> FileRecord:
    """Called in a thread of its own: a store may take long."""
    session = api.client.sync.session
    blob, now = session.blobs.put_stream(upload.file), session.ledger.now()
    file = FileRecord(
        f"file-{new_ids(1)[0]}", owner, plain_text(upload.filename or "upload", MAX_FILENAME), asked.purpose,
        upload.size or 0, blob, now, None if asked.seconds is UNSET else now + asked.seconds,
    )  # fmt: skip
    _files(api).add(file)
    return file


def _read_form(fields: Mapping[str, Any]) -> UploadForm:
    try:
        form = msgspec.convert(fields, UploadForm, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error
    if (form.anchor is UNSET) != (form.seconds is UNSET):
        raise InvalidInput("expires_after has an anchor and seconds, or is left out - at `$.expires_after`")
    return form


def _files(api: Api) -> FileStore:
    return FileStore(api.client.sync.session.ledger)


def _not_found(id: str, field: str = "id") -> NotFound:
    return NotFound(f"no file has the id {shown(id)}; it never existed, was deleted or has expired - at `$.{field}`")
