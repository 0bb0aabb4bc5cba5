"""Access control: who may use the dashboard, and who may change jobs. Checked before any handler, Flower's own included.

Flower leaves some addresses open (`/metrics`, `/healthcheck`, static files) and, without a login, accepts any Host header.
Here only `/healthz` is open once a login is set; without one only this machine's own host names are accepted, so that a
website cannot reach the dashboard through a name that it resolves to 127.0.0.1 (DNS rebinding).
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

PUBLIC = ("/healthz",)
PUBLIC_FOR_OAUTH = ("/login", "/logout", "/static/", "/assets/")  # the login form must be reachable
COOKIE_DAYS = 31


@dataclass(frozen=True, slots=True)
class User:
    """The name, empty where there is no login, and whether the user may cancel and retry jobs."""

    name: str
    operator: bool


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is denied: the status, the reason, and where to log in."""

    status: int
    reason: str
    login: str | None = None
    basic: bool = False


class AccessControl:
    """Checks requests against Flower's login options."""

    def __init__(
        self, options: Any, settings: dict[str, Any], *, operators: Sequence[str] = (), host: str = "127.0.0.1"
    ) -> None:
        self._basic = [entry.encode() for entry in options.basic_auth or ()]
        self._oauth: str | None = options.auth or None
        self._has_login = bool(self._basic or self._oauth)
        self._secret = settings["cookie_secret"]
        self._login_url = settings["login_url"]
        self._prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self._operators = frozenset(operators)
        self._host = host

    def check(self, request: HTTPServerRequest) -> Denial | None:
        """Why the request is denied, None if it is allowed."""
        if not self._has_login:
            name = split_host_and_port(request.host)[0]
            if self._is_local(name):
                return None
            return Denial(403, f"{name!r} is not a name of this machine; without a login no other is accepted")
        path = request.path.removeprefix(self._prefix)
        if path in PUBLIC or self.user(request) is not None or (self._oauth and path.startswith(PUBLIC_FOR_OAUTH)):
            return None
        if self._oauth and request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            return Denial(302, "log in first", login=f"{self._login_url}?next={quote(request.uri or '/', safe='')}")
        return Denial(401, "access denied: log in first", basic=bool(self._basic))

    def user(self, request: HTTPServerRequest) -> User | None:
        """The user, None without a valid login. As in Flower, where both kinds of login are set, both are needed."""
        if not self._has_login:
            return User("", operator=True)
        name = self._basic_user(request.headers.get("Authorization", "")) if self._basic else ""
        if self._oauth and (name or not self._basic):
            name = self._oauth_user(request)
        return User(name, name in self._operators) if name else None

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

    def _is_local(self, name: str) -> bool:
        name = name.strip("[]").rstrip(".").lower()
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return name in ("localhost", self._host.lower()) or name.endswith(".localhost")


class DeniedHandler(RequestHandler):  # type: ignore[misc] # tornado ships types, which mypy is told not to follow
    """Answers a denied request, whatever its method."""

    def initialize(self, denial: Denial) -> None:
        self._denial = denial

    def prepare(self) -> None:
        denial = self._denial
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        if denial.login is not None:
            self.redirect(denial.login)
            return
        if denial.basic:
            self.set_header("WWW-Authenticate", 'Basic realm="forebay"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_status(denial.status)
        self.finish(denial.reason + "\n")
