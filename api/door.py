"""The outermost layer: a request's id, dialect, limits and caller before any handler; its errors, log line and count after."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from forebay.api.access import Access
from forebay.api.context import Api, RouteGroup
from forebay.api.errors import BodyTooLarge, Dialect, HttpError, error_response
from forebay.contract.errors import ForebayError
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.queues import format_bytes
from forebay.contract.references import plain_text

log = structlog.get_logger()

REQUEST_ID = b"x-request-id"
_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)
QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds by machines
PATH_SHOWN = 200


class Door:
    """The application that uvicorn runs: every request passes here, and no error leaves it but as its dialect's answer."""

    def __init__(self, api: Api, groups: Sequence[RouteGroup], access: Access) -> None:
        self._api = api
        self._access = access
        self.statistics = Statistics()
        self._in_flight: dict[str, int] = dict.fromkeys(Dialect, 0)
        self._router = Router([route for group in groups for route in group.routes], redirect_slashes=False)
        self._groups = sorted(groups, key=lambda group: -len(group.prefix))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise HttpError(f"{scope['type']} is not served")
        started = time.perf_counter()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = headers.get(REQUEST_ID, b"")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8).encode()
        group = next((g for g in self._groups if scope["path"].startswith(g.prefix)), None)
        dialect = group.dialect if group is not None else Dialect.NATIVE
        status = 0
        self._in_flight[dialect] += 1

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (REQUEST_ID, request_id),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            limit = getattr(self._api.settings, group.limit if group is not None else "api_max_body_bytes")
            scope.update({"app": self, "forebay": self._api, "dialect": dialect})
            scope.update({"max_body_bytes": limit, "request_id": request_id.decode()})
            _check_length(headers, limit)
            if b"transfer-encoding" in headers:  # a body whose length is not known before
                receive = _limited(receive, limit)
            scope["caller"] = await self._access.caller(headers)
            await self._router(scope, receive, answer)
        except Exception as error:
            self._report(error, request_id)
            if status:  # the answer has begun: all that is left is to cut it off
                raise
            response = error_response(error, dialect, request_id.decode())
            if isinstance(error, HTTPException) and error.status_code == 405:
                response.headers["allow"] = self._methods(scope)
            if response.status_code in (408, 413):  # the rest of the body is not read
                response.headers["connection"] = "close"
            await response(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            self._in_flight[dialect] -= 1
            route = getattr(scope.get("route"), "path", "none")
            self.statistics.count("http_requests_total", dialect, route, f"{status // 100}xx")
            self.statistics.observe("http_request_seconds", seconds, dialect, route)
            write = log.debug if scope["path"] in QUIET else log.info
            write(
                "http_request",
                method=scope["method"],
                path=plain_text(scope["raw_path"].decode("ascii", "replace"), PATH_SHOWN),
                status=status,
                ms=round(seconds * 1000, 1),
                id=request_id.decode(),
                **({"key": caller.name} if (caller := scope.get("caller")) and caller.name else {}),
            )

    def counted(self) -> Statistics:
        """What this server has counted since it started."""
        for dialect, requests in self._in_flight.items():
            self.statistics.set("http_requests_in_flight", requests, dialect)
        return self.statistics

    def _methods(self, scope: Scope) -> str:
        """The methods that an address takes: each route has one of its own, and knows of no other.

        The first route that fits says which address it is: `/models/net/drift` is not the version `drift` of `net`.
        """
        routes = [route for route in self._router.routes if isinstance(route, Route)]
        fitting = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
        taken = [route.methods or set() for route in fitting if route.path == fitting[0].path]
        return ", ".join(sorted(set().union(*taken)))

    def _report(self, error: Exception, request_id: bytes) -> None:
        if isinstance(error, HttpError | HTTPException):
            return
        if not isinstance(error, ForebayError):
            log.error("http_request_failed", id=request_id.decode(), exc_info=error)
        elif error_response(error, Dialect.NATIVE, "").status_code >= 500:
            log.warning("http_request_failed", id=request_id.decode(), error=f"{type(error).__name__}: {error}")


def _limited(receive: Receive, limit: int) -> Receive:
    """The same, until more than `limit` bytes have come."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge(f"the body is larger than {format_bytes(limit)}, the limit")
        return message

    return limited


def _check_length(headers: Mapping[bytes, bytes], limit: int) -> None:
    """Refuse a body by its announced length, before any of it is read."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > limit:
        raise BodyTooLarge(
            f"the body has {plain_text(length.decode('latin-1'), 40)} bytes, the limit is {format_bytes(limit)}"
        )
