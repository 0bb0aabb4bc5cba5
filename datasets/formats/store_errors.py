"""What a remote store answers: errors after which the same may succeed later become StoreUnavailable, which is Transient.

fsspec's drivers pass on what their libraries raise: errors with an HTTP status, broken connections, OSErrors without a number.
They are told apart by what they carry, for none of those libraries need be installed here. What an OSError's number says is
left to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forebay.contract.errors import ForebayError, StoreUnavailable
from forebay.contract.references import shown

BUSY = (408, 425, 429)  # HTTP statuses below 500 that ask to try again
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
# Of aiohttp, botocore and requests: a connection that broke or was never there.
_BROKEN = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError", "Timeout"}


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Calls to the store of this URL; StoreUnavailable, naming it, for an error that may pass."""
    try:
        yield
    except ForebayError:
        raise
    except Exception as error:
        if not _may_pass(error):
            raise
        reason = " ".join(str(error).split()) or "no reason was given"
        raise StoreUnavailable(f"{shown(url)}: the store does not answer: {type(error).__name__}: {reason}") from error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _FINAL):
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in BUSY
    if isinstance(error, OSError) and error.errno is None:
        return True
    return any(kind.__name__ in _BROKEN for kind in type(error).__mro__)


def _status(error: Any) -> int | None:
    """The HTTP status that an error of aiohttp, gcsfs, botocore or requests carries."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    own = getattr(error, "status" if hasattr(error, "status") else "code", None)  # aiohttp's `code` warns
    found = (own, getattr(response, "status_code", None), metadata.get("HTTPStatusCode"))
    numbers = [int(str(status)) for status in found if str(status).isdecimal()]
    return next((number for number in numbers if 100 <= number < 600), None)
