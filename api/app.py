"""The application: which groups of routes there are, and what watches over all of them."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from forebay.api import openapi
from forebay.api.access import Access
from forebay.api.context import Api, RouteGroup, api_of, needs
from forebay.api.door import Door
from forebay.api.errors import Dialect
from forebay.api.inference.routes import INFERENCE
from forebay.api.openai.routes import FILES, OPENAI
from forebay.contract.errors import ForebayError
from forebay.contract.metrics.exposition import CONTENT_TYPE, api_families, expose


async def healthz(_: Request) -> Response:
    """200 while this process answers."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 when jobs are accepted: the ledger answers, and this server is not being stopped. Redis may be away."""
    api = api_of(request)
    if api.stopping:
        return PlainTextResponse("stopping\n", 503)
    try:
        await api.client.call(api.client.sync.session.ledger.ping)
    except ForebayError:
        return PlainTextResponse("ledger: it does not answer\n", 503)
    return PlainTextResponse("ready\n")


@needs("read")
async def metrics(request: Request) -> Response:
    """This server's requests, in Prometheus' text format."""
    door: Door = request.scope["app"]
    return Response(expose(api_families(door.counted())), headers={"Content-Type": CONTENT_TYPE})


# What another website's page may send and see, where its origin is named in the settings.
CORS_TAKEN = [
    "authorization", "content-type", "idempotency-key", "inference-header-content-length", "last-event-id", "prefer",
    "x-request-id",
]  # fmt: skip
CORS_GIVEN = ["inference-header-content-length", "location", "preference-applied", "retry-after", "x-request-id"]
OPERATIONS = RouteGroup(
    Dialect.NATIVE,
    "/",
    [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), *openapi.ROUTES],
)
NATIVE = RouteGroup(Dialect.NATIVE, "/", openapi.NATIVE_ROUTES)
GROUPS: tuple[RouteGroup, ...] = (NATIVE, OPERATIONS, INFERENCE, FILES, OPENAI)


def make_app(api: Api) -> ASGIApp:
    """The application over one client."""
    origins = api.settings.api_origins
    door = Door(api, GROUPS, Access(api.client, origins))
    if not origins:
        return door
    return CORSMiddleware(
        door, allow_origins=origins, allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=CORS_TAKEN,
        expose_headers=CORS_GIVEN,
    )  # fmt: skip
