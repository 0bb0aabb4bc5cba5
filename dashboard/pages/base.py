"""What all our pages share: who asks, the headers, XSRF, live fragments, and saying so when the ledger or Redis is away.

A page is rendered whole once; with `?fragment=1` the same handler renders the part that changes, which pages.js puts in
place. So every text is escaped in one place, the templates.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from forebay.contract.settings import Settings
from forebay.dashboard.pages import formatting as words
from forebay.dashboard.pages.guard import User
from forebay.dashboard.reads.ledger_view import Answer, LedgerView

STATIC = Path(__file__).parents[1] / "static"

# Scripts and styles come from files of Flower's and ours; Bootstrap's style sheet holds its icons as data: images.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page(BaseHandler):  # type: ignore[misc] # Flower ships no types
    """One of our pages."""

    tab = ""

    def set_default_headers(self) -> None:
        """Ours only: Flower would let other origins read where FLOWER_UNAUTHENTICATED_API is set."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Called by tornado before the method. The guard has let the request in; this holds were it ever left out."""
        if self.application.guard.user(self.request) is None:
            raise HTTPError(401)

    def options(self, *_: Any, **__: Any) -> None:
        """Nobody of another origin has business here."""
        raise HTTPError(405)

    def get_current_user(self) -> Any:
        """The user's name, True where there is no login; what Flower's navigation asks for."""
        user = self.application.guard.user(self.request)
        return None if user is None else user.name or True

    def check_xsrf_cookie(self) -> None:
        """Called by tornado before a POST: it must come from a page of ours, and hold its token. Flower asks less."""
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc != self.request.host):
            raise HTTPError(403, "this request comes from another site")
        RequestHandler.check_xsrf_cookie(self)

    @property
    def user(self) -> User:
        """Who asks."""
        user: User = self.application.guard.user(self.request)
        return user

    @property
    def ledger(self) -> LedgerView:
        """What answers questions."""
        view: LedgerView = self.application.ledger
        return view

    @property
    def forebay(self) -> Settings:
        """Forebay's settings; tornado's own are called `settings`."""
        settings: Settings = self.application.forebay
        return settings

    @property
    def is_fragment(self) -> bool:
        """Whether only the part that changes is asked for."""
        return bool(self.get_query_argument("fragment", ""))

    def get_template_namespace(self) -> dict[str, Any]:
        """Called by tornado: what every template, Flower's too, may use."""
        namespace: dict[str, Any] = super().get_template_namespace()
        return namespace | {"words": words}

    def now(self) -> datetime:
        """The time by this machine's clock: for ages on pages only, where a second does not matter."""
        return datetime.now(UTC)

    def show(self, template: str, *answers: Answer[Any], **values: Any) -> None:
        """Render the page, or the part of it that changes, which is the template `<name>_live.html`."""
        name = f"{template}_live.html" if self.is_fragment else f"{template}.html"
        self.render(name, troubles=self._troubles(answers), operator=self.user.operator, **values)

    def _troubles(self, answers: tuple[Answer[Any], ...]) -> list[str]:
        """In words, what keeps the page from being up to date."""
        found = {answer.trouble: answer for answer in answers if answer.trouble}
        words_of = [f"{_sentence(reason)} {_seen(answer)}" for reason, answer in found.items()]
        if not self.application.events.connected:
            words_of.append(
                "Redis does not answer. Jobs wait in the ledger and are sent once it is back; Flower's own pages stand still."
            )
        return words_of


class FrontDoor(Page):
    """`/`: leads to the Overview."""

    def get(self) -> None:
        """Flower's own first page is `/workers`."""
        self.redirect(self.reverse_url("overview"))


class Assets(StaticFileHandler):  # type: ignore[misc] # tornado's types are not followed
    """Our style sheet and scripts."""

    def set_default_headers(self) -> None:
        """Nothing here may be taken for something else."""
        self.set_header("X-Content-Type-Options", "nosniff")


def asset(handler: Any, name: str) -> str:
    """The address of a file in static/ for a page of this handler."""
    return f"{handler.reverse_url('assets', name)}?v={_digest(name)}"


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _sentence(reason: str) -> str:
    text = reason.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _seen(answer: Answer[Any]) -> str:
    if answer.value is None:
        return "There is nothing to show until it does."
    return f"What you see was read {words.duration(answer.age_s)} ago."
