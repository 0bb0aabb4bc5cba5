"""Flower with our Celery app, run inside this process until it is told to stop.

It registers no task and imports neither worker nor torch. Flower's own pages show the events in Redis, where a message's
arguments are the summary that contract/wire/dispatch.py wrote; our pages read the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import structlog
from celery import Celery

from forebay.contract.errors import ForebayError, MissingExtra
from forebay.contract.logs import configure_logs
from forebay.contract.places import DASHBOARD_TOKEN, keep_token
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import TRANSPORT_OPTIONS, make_app

try:
    from flower.app import Flower, rewrite_handler
    from flower.urls import settings as flower_settings
except ImportError as error:
    raise MissingExtra("the dashboard needs Flower", "dashboard") from error

from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.options import options

from forebay.contract.wire.dispatch import Dispatcher
from forebay.dashboard.flower.feed import EventFeed
from forebay.dashboard.flower.navigation import TemplateLoader
from forebay.dashboard.flower.options import read_options
from forebay.dashboard.flower.routes import ROUTES
from forebay.dashboard.pages.access import AccessControl, DeniedHandler, Entry, EntryHandler
from forebay.dashboard.pages.base import asset
from forebay.dashboard.pages.headers import SecurityHeaders, script_nonce
from forebay.dashboard.reads.ledger import LedgerReader
from forebay.dashboard.reads.redis import RedisProbe
from forebay.dashboard.reads.trends import Trends

log = structlog.get_logger()

REDIS_TIMEOUT_S = 3


class Dashboard(Flower):  # type: ignore[misc] # Flower ships no types
    """Flower with our pages and our access control.

    It queries the workers whenever Redis comes (back), and never while Redis is away.
    """

    def __init__(self, capp: Celery, io_loop: IOLoop, settings: Settings, host: str, token: str) -> None:
        feed = EventFeed(
            capp,
            io_loop,
            enable_events=options.enable_events,
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        tornado_settings = flower_settings | {
            "template_loader": TemplateLoader(flower_settings["template_path"]),
            "ui_methods": {"asset": asset, "script_nonce": script_nonce},  # for Flower's pages too
            "transforms": [SecurityHeaders],
            "xsrf_cookie_kwargs": {"samesite": "Strict"},
        }
        super().__init__(options=options, capp=capp, events=feed, io_loop=io_loop, **tornado_settings)
        feed.on_connected = self.update_workers
        self.forebay = settings
        self.access = AccessControl(options, tornado_settings, token, operators=settings.operators, host=host)
        self.ledger = LedgerReader(settings)
        self.redis = RedisProbe(settings)
        self.trends = Trends()
        self.dispatcher = Dispatcher(capp)
        self.add_handlers(".*", [rewrite_handler(r, options.url_prefix) if options.url_prefix else r for r in ROUTES])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Called by tornado for every request: one that is denied reaches no other handler."""
        answer = self.access.check(request)
        if isinstance(answer, Entry):
            return self.get_handler_delegate(request, EntryHandler, {"entry": answer})
        if answer is not None:
            return self.get_handler_delegate(request, DeniedHandler, {"denial": answer})
        return super().find_handler(request, **kwargs)

    def log_request(self, handler: Any) -> None:
        """As tornado does, but never a token in an address."""
        if "token=" not in handler.request.uri:
            super().log_request(handler)

    def update_workers(self, workername: str | None = None) -> asyncio.Future[None]:
        """Query all workers, or one; done when they have answered."""
        if self.events.connected:
            answered: asyncio.Future[None] = super().update_workers(workername)
            return answered
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    def start(self) -> None:
        """Run until `stop`. Unlike Flower's, it does not query the workers yet: the feed does so once Redis answers."""
        self.events.start()
        self.started = True
        self.io_loop.start()

    def stop(self) -> None:
        """Stop cleanly; queries that still wait for Redis are dropped, so that the process can exit."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.ledger.close()
        self.redis.close()
        self.dispatcher.close()
        super().stop()


def serve(settings: Settings, host: str, port: int) -> int:
    """Run the dashboard until SIGTERM or Ctrl-C; the exit status. Port 0 is any free one.

    Raises ForebayError when no broker is configured, when it cannot listen there, and when other machines could get in
    without a login.
    """
    configure_logs(settings)
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)  # it warns, in four lines, when no worker runs yet
    capp = dashboard_app(settings)
    read_options(host, port)
    io_loop = IOLoop(make_current=True)
    token = _token(settings)
    dashboard = Dashboard(capp, io_loop, settings, host, token)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            io_loop.asyncio_loop.add_signal_handler(number, dashboard.stop)
        url = _url(host, _listen(dashboard, host, port))
        log.info("dashboard_ready", url=f"{url}/?token={token}" if token else url)
        dashboard.start()
    finally:
        io_loop.close(all_fds=True)
    log.info("dashboard_stopped")
    return 0


def dashboard_app(settings: Settings) -> Celery:
    """The Celery app as Flower uses it: a few queries now and then, none of which may delay a page or the exit for long."""
    app = make_app(settings)
    app.conf.update(
        broker_transport_options=TRANSPORT_OPTIONS
        | {"socket_timeout": REDIS_TIMEOUT_S, "socket_connect_timeout": REDIS_TIMEOUT_S},
        broker_pool_limit=0,  # after an outage a pooled connection is dead, and fails whoever takes it next
    )
    return app


def _token(settings: Settings) -> str:
    """What lets into a dashboard without a login; "" with one, and then `forebay status` knows of none either."""
    file = settings.home / DASHBOARD_TOKEN
    if options.basic_auth or options.auth:
        with suppress(OSError):
            file.unlink()
        return ""
    try:
        return keep_token(file)
    except OSError as error:
        raise ForebayError(
            f"the dashboard needs a login, or a token in {file}, which cannot be made: {error}"
        ) from error


def _listen(dashboard: Dashboard, host: str, port: int) -> int:
    try:
        return int(dashboard.start_http_server())
    except (OSError, ValueError) as error:  # taken, or not permitted; ValueError: a certificate that does not exist
        raise ForebayError(f"the dashboard cannot listen on {host or '*'}:{port}: {error}") from error


def _url(host: str, port: int) -> str:
    """The address for a browser on this machine."""
    scheme = "https" if "ssl_options" in flower_settings else "http"
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    return f"{scheme}://{_browser_host(host)}:{port}{prefix}"


def _browser_host(host: str) -> str:
    try:
        address: Any = ip_address(host or "0.0.0.0")  # noqa: S104 - compared with, not bound to
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{address}]" if address.version == 6 else str(address)
