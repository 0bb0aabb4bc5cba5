"""What a client over HTTP may name: places that the setting `api_paths` lists, and files that it has uploaded.

A process of the server, or a worker, reads what is named here with rights that the client does not have.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from starlette.requests import Request

from forebay.api.context import api_of
from forebay.api.openai.files import find_file
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.storage.files import FileRecord

_FILE_ID = re.compile("file-[0-9a-f]{32}")
_LOCAL = ("file:", "local:")
Place = str | FileRecord


async def find_place(request: Request, given: str, field: str) -> Place:
    """What `given`, which stands in `field`, names: a place as it is to be used, or an uploaded file of the caller's.

    InvalidInput when it is neither within `api_paths` nor the id of a file; NotFound when there is no such file.
    """
    if _FILE_ID.fullmatch(given):
        return await find_file(request, given, field)
    try:
        return allowed(given, api_of(request).settings.api_paths)
    except InvalidInput as error:
        raise InvalidInput(f"{error} - at `$.{field}`") from None


def allowed(place: str, listed: Sequence[str]) -> str:
    """The path or URL, without steps that lead out of it; InvalidInput when it is below none of those listed.

    Symbolic links in a listed folder lead where its owner has them lead.
    """
    if not place.isprintable() or "\\" in place or "::" in place or place.startswith(_LOCAL):
        raise InvalidInput(f"{shown(place)} is not a path or URL that may be named over HTTP")
    if "://" in place:
        if {".", ".."} & {unquote(part) for part in re.split("[/?#]", place)}:
            raise InvalidInput(f"{shown(place)}: a URL has no `..` over HTTP")
    elif place.startswith("/"):
        place = os.path.normpath("/" + place.lstrip("/"))
    else:
        raise InvalidInput(f"{shown(place)}: give a path from /, a URL, or the id of an uploaded file")
    if not any(f"{place}/".startswith(f"{start.rstrip('/')}/") for start in listed):
        there = ", ".join(map(shown, listed)) or "nothing yet"
        raise InvalidInput(f"{shown(place)} is not below what api_paths (FOREBAY_API_PATHS) allows over HTTP: {there}")
    return place


@contextmanager
def local_copy(request: Request, file: FileRecord) -> Iterator[Path]:
    """An uploaded file as a local one, meanwhile."""
    with tempfile.TemporaryDirectory(prefix="forebay-api-") as folder:
        yield api_of(request).client.sync.session.blobs.fetch(file.blob, Path(folder) / local_name(file.filename))


def local_name(given: str | None) -> str:
    """What to call a client's file here: as it calls it, without the folders, if that is a plain name."""
    name = PurePosixPath(given or "").name
    ending = re.search(r"\.\w{1,20}\Z", name)
    return name if re.fullmatch(r"\w[\w.+ -]{0,60}", name) else f"artifact{ending[0] if ending else ''}"
