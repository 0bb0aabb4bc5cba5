"""What all our pages share: the user, headers, XSRF, live fragments, and warnings while the ledger or Redis is unavailable.

A page is `NAME.html` around its live part, `NAME_live.html`. With `?fragment=1` only the live part is rendered, which
pages.js swaps in. Every text is escaped in one place, the templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from forebay.contract.errors import InvalidInput, JobNotFound, ModelNotFound
from forebay.contract.settings import Settings
from forebay.dashboard.pages import formatting
from forebay.dashboard.pages.access import FOREIGN, User, is_foreign
from forebay.dashboard.reads.ledger import LedgerReader, Snapshot
from forebay.dashboard.reads.trends import Trend, Trends, Window
from forebay.storage.health import Problem, redis_problems
from forebay.storage.jobs.overview import CurrentLoad

T = TypeVar("T")

STATIC = Path(__file__).parents[1] / "static"
CHARTS = ("uPlot.iife.min.js", "curves.js", "pages.js")


class Page(BaseHandler):  # type: ignore[misc] # Flower ships no types
    """One of our pages: its tab, the name of its templates, its heading, its scripts, and how often its live part is read."""

    tab: ClassVar[str]
    template: ClassVar[str]
    heading: ClassVar[str] = ""
    about: ClassVar[str] = ""
    scripts: ClassVar[tuple[str, ...]] = ("pages.js",)
    poll_s: ClassVar[int] = 3

    def set_default_headers(self) -> None:
        """Not Flower's, which would let other origins read where FLOWER_UNAUTHENTICATED_API is set."""
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        """The server has checked access already; this holds should that check ever be left out."""
        if self.application.access.user(self.request) is None:
            raise HTTPError(401)
        self.redis_problem = await self.application.redis.problem()

    def options(self, *_: Any, **__: Any) -> None:
        """No other origin may use these pages."""
        raise HTTPError(405)

    def get_current_user(self) -> Any:
        """The user's name, True where there is no login: what Flower's navigation bar shows."""
        user = self.application.access.user(self.request)
        return None if user is None else user.name or True

    def check_xsrf_cookie(self) -> None:
        """A POST must come from one of our pages and carry its token; Flower checks less."""
        if is_foreign(self.request):
            raise HTTPError(403, FOREIGN)
        RequestHandler.check_xsrf_cookie(self)

    @property
    def user(self) -> User:
        user: User = self.application.access.user(self.request)
        return user

    @property
    def ledger(self) -> LedgerReader:
        reader: LedgerReader = self.application.ledger
        return reader

    @property
    def forebay(self) -> Settings:
        """Forebay's settings; tornado's own are called `settings`."""
        settings: Settings = self.application.forebay
        return settings

    def get_template_namespace(self) -> dict[str, Any]:
        """What every template may use, Flower's included."""
        namespace: dict[str, Any] = super().get_template_namespace()
        return namespace | {"fmt": formatting}

    def now(self) -> datetime:
        """The time by this machine's clock: for ages on pages only, where a second does not matter."""
        return datetime.now(UTC)

    def read_load(self) -> Awaitable[Snapshot[CurrentLoad]]:
        return self.ledger.read("load", lambda queries: queries.overview.load())

    def read_trend(self, window: Window) -> Awaitable[Snapshot[Trend]]:
        trends: Trends = self.application.trends
        key = ("trend", window.name)
        return self.ledger.read(key, lambda queries: trends.read(queries.overview, window), window.max_age_s)

    async def or_404(self, read: Awaitable[Snapshot[T]]) -> Snapshot[T]:
        """What was read; 404 for a job or model that does not exist."""
        try:
            return await read
        except (InvalidInput, JobNotFound, ModelNotFound) as error:
            raise HTTPError(404, "%s", str(error)) from error

    def show(self, *snapshots: Snapshot[Any], **values: Any) -> None:
        """Render the page, or only its live part. `problems` among the values come after those that each page has."""
        problems = [*self._problems(snapshots), *values.pop("problems", ())]
        values |= {"operator": self.user.operator, "problems": problems}
        live = f"{self.template}_live.html"
        if self.get_query_argument("fragment", ""):
            self.render(live, **values)
            return
        head = {"title": self.heading, "heading": self.heading, "about": self.about, "notice": ""}
        self.render(f"{self.template}.html", live=self.render_string(live, **values), **(head | values))

    def _problems(self, snapshots: tuple[Snapshot[Any], ...]) -> list[Problem]:
        """Why the page is not up to date."""
        found = {snapshot.problem: snapshot for snapshot in snapshots if snapshot.problem}
        problems = [Problem(f"{_sentence(reason)} {_staleness(snapshot)}") for reason, snapshot in found.items()]
        return [*problems, *redis_problems(self.redis_problem, self.forebay)]


class HomePage(Page):
    """`/`, which leads to the Overview; Flower's own home page is `/workers`."""

    def get(self) -> None:
        self.redirect(self.reverse_url("overview"))


class Assets(StaticFileHandler):  # type: ignore[misc] # tornado's types are not followed
    """Our style sheet and scripts."""


def asset(handler: Any, name: str) -> str:
    """The address of a file in static/ for a page of this handler."""
    return f"{handler.reverse_url('assets', name)}?v={_digest(name)}"


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _sentence(reason: str) -> str:
    text = reason.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _staleness(snapshot: Snapshot[Any]) -> str:
    if snapshot.value is None:
        return "There is nothing to show until it answers."
    return f"This page shows data read {formatting.duration(snapshot.age_s)} ago."
