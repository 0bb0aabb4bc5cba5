"""Who may come in, and who may do more than look. Asked before any handler, Flower's own included.

Flower leaves some addresses open (`/metrics`, `/healthcheck`, static files) and, without a login, answers whatever name a
browser used for it. Here nothing but `/healthz` is open where a login is set, and without one only this machine's own
names are answered, so that a website cannot reach the dashboard through a name it points at 127.0.0.1.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

from flower.utils.authentication import authenticate
from tornado.httputil import HTTPServerRequest, split_host_and_port
from tornado.web import RequestHandler, decode_signed_value

OPEN = ("/healthz",)
OPEN_FOR_OAUTH = ("/login", "/logout", "/static/", "/assets/")  # who has no login yet must reach the form
COOKIE_DAYS = 31


@dataclass(frozen=True, slots=True)
class User:
    """Who asks: a name, empty where there is no login, and whether they may cancel and retry."""

    name: str
    operator: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in: the status, a word about it, and where to log in."""

    status: int
    reason: str
    login: str | None = None
    basic: bool = False


class Guard:
    """Flower's login options, held against every request."""

    def __init__(
        self, options: Any, settings: dict[str, Any], *, operators: Sequence[str] = (), host: str = "127.0.0.1"
    ) -> None:
        self._basic = [entry.encode() for entry in options.basic_auth or ()]
        self._oauth: str | None = options.auth or None
        self._secret = settings["cookie_secret"]
        self._login_url = settings["login_url"]
        self._prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self._operators = frozenset(operators)
        self._host = host

    @property
    def has_login(self) -> bool:
        """Whether one must log in at all."""
        return bool(self._basic or self._oauth)

    def refusal(self, request: HTTPServerRequest) -> Refusal | None:
        """Why the request is not let in, or None."""
        if not self.has_login:
            name = split_host_and_port(request.host)[0]
            if self._is_ours(name):
                return None
            return Refusal(
                403, f"{name!r} is no name of this machine; without a login the dashboard answers only these"
            )
        path = request.path.removeprefix(self._prefix)
        if path in OPEN or self.user(request) is not None or (self._oauth and path.startswith(OPEN_FOR_OAUTH)):
            return None
        if self._oauth and request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            return Refusal(302, "log in first", login=f"{self._login_url}?next={quote(request.uri or '/', safe='')}")
        return Refusal(401, "access denied: log in first", basic=bool(self._basic))

    def user(self, request: HTTPServerRequest) -> User | None:
        """Who asks; None for nobody we know. As in Flower, where both kinds of login are set, both are needed."""
        if not self.has_login:
            return User("", operator=True)
        name = ""
        if self._basic:
            name = self._basic_user(request.headers.get("Authorization", ""))
            if not name:
                return None
        if self._oauth:
            name = self._oauth_user(request)
            if not name:
                return None
        return User(name, name in self._operators)

    def _basic_user(self, header: str) -> str:
        kind, _, encoded = header.partition(" ")
        try:
            given = b64decode(encoded.strip(), validate=True)
        except ValueError:
            return ""
        known = [entry for entry in self._basic if hmac.compare_digest(entry, given)]
        if kind.lower() != "basic" or not known:
            return ""
        user: str = known[0].decode().partition(":")[0]
        return user

    def _oauth_user(self, request: HTTPServerRequest) -> str:
        cookie = request.cookies.get("user")
        value = decode_signed_value(self._secret, "user", cookie.value, COOKIE_DAYS) if cookie else None
        name = value.decode(errors="replace") if value else ""
        return name if name and authenticate(self._oauth, name) else ""

    def _is_ours(self, name: str) -> bool:
        name = name.strip("[]").rstrip(".").lower()
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return name in ("localhost", self._host.lower()) or name.endswith(".localhost")


class Refused(RequestHandler):  # type: ignore[misc] # tornado ships types, which mypy is told not to follow
    """Answers a request that is not let in, whatever its method."""

    def initialize(self, refusal: Refusal) -> None:
        """Called by tornado with the arguments of the route."""
        self._refusal = refusal

    def prepare(self) -> None:
        """Called by tornado before the method; the answer ends here."""
        refusal = self._refusal
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        if refusal.login is not None:
            self.redirect(refusal.login)
            return
        if refusal.basic:
            self.set_header("WWW-Authenticate", 'Basic realm="forebay"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_status(refusal.status)
        self.finish(refusal.reason + "\n")
