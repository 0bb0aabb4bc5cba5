"""Access control: who may use the dashboard, and who may change jobs. Checked before any handler, Flower's own included.

Flower leaves some addresses open (`/metrics`, `/healthcheck`, static files) and, without a login, accepts any Host header.
Here only `/healthz` is open once a login is set. Without one a token lets in, which only the owner of the home can read: in the
address that is printed, then as a cookie, or as `Authorization: Bearer`; probes and metrics are open. And only this machine's
own host names are accepted, so that a website cannot reach it through a name resolved to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from flower.utils.authentication import authenticate
from tornado.escape import xhtml_escape
from tornado.httputil import HTTPServerRequest, split_host_and_port
from tornado.web import RequestHandler, decode_signed_value

PUBLIC = ("/healthz",)
PUBLIC_ON_LOOPBACK = (*PUBLIC, "/readyz", "/metrics", "/healthcheck")  # where no login is set
PUBLIC_FOR_OAUTH = ("/login", "/logout", "/static/", "/assets/")  # the login form must be reachable
COOKIE_DAYS = 31
FOREIGN = "this request comes from another site"


@dataclass(frozen=True, slots=True)
class User:
    """The name, empty where there is no login, and whether the user may cancel and retry jobs."""

    name: str
    operator: bool


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is denied: the status, the reason, and where to log in; with `by_token` the token would let in."""

    status: int
    reason: str
    login: str | None = None
    basic: bool = False
    by_token: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """The token was in the address: the cookie to come in with, where it holds, and the address without the token."""

    name: str
    value: str
    path: str
    address: str


class AccessControl:
    """Checks requests against Flower's login options, or where there are none against `token`."""

    def __init__(
        self,
        options: Any,
        settings: dict[str, Any],
        token: str = "",
        *,
        operators: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._basic = [entry.encode() for entry in options.basic_auth or ()]
        self._oauth: str | None = options.auth or None
        self._has_login = bool(self._basic or self._oauth)
        if not (self._has_login or token):
            raise ValueError("without a login there must be a token")
        self._token = token.encode()
        # Of no use to whoever sees it but here. Its name tells dashboards apart, for browsers keep cookies of all ports together.
        self._cookie = hmac.digest(self._token, b"cookie", "sha256").hex().encode()
        self._cookie_name = f"forebay_{hashlib.sha256(self._cookie).hexdigest()[:12]}"
        self._secret = settings["cookie_secret"]
        self._login_url = settings["login_url"]
        self._prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self._operators = frozenset(operators)
        self._host = host

    def check(self, request: HTTPServerRequest) -> Denial | Entry | None:
        """Why the request is denied, or that it brought the token; None if it may go on."""
        path = request.path.removeprefix(self._prefix)
        if not self._has_login:
            return self._check_token(request, path)
        if path in PUBLIC or self.user(request) is not None or (self._oauth and path.startswith(PUBLIC_FOR_OAUTH)):
            return None
        if self._oauth and request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            return Denial(302, "log in first", login=f"{self._login_url}?next={quote(request.uri or '/', safe='')}")
        return Denial(401, "access denied: log in first", basic=bool(self._basic))

    def user(self, request: HTTPServerRequest) -> User | None:
        """The user, None without a valid login. As in Flower, where both kinds of login are set, both are needed."""
        if not self._has_login:
            return User("", operator=True) if self._has_token(request) else None
        name = self._basic_user(request.headers.get("Authorization", "")) if self._basic else ""
        if self._oauth and (name or not self._basic):
            name = self._oauth_user(request)
        return User(name, name in self._operators) if name else None

    def _check_token(self, request: HTTPServerRequest, path: str) -> Denial | Entry | None:
        name = split_host_and_port(request.host)[0]
        if not self._is_local(name):
            return Denial(403, f"{name!r} is not a name of this machine; without a login no other is accepted")
        if request.method == "GET":
            query = parse_qsl(request.query, keep_blank_values=True)
            if any(field == "token" and self._is_token(value) for field, value in query):
                rest = urlencode([(field, value) for field, value in query if field != "token"])
                address = f"/{quote(request.path.lstrip('/'), safe='/%')}" + (f"?{rest}" if rest else "")
                return Entry(self._cookie_name, self._cookie.decode(), self._prefix or "/", address)
        if path in PUBLIC_ON_LOOPBACK or self._has_token(request):
            changes = request.method not in ("GET", "HEAD", "OPTIONS")
            return Denial(403, FOREIGN) if changes and is_foreign(request) else None
        reason = "open the address with ?token=… that `forebay up` printed and `forebay status` prints again"
        return Denial(401, reason, by_token=True)

    def _has_token(self, request: HTTPServerRequest) -> bool:
        cookie = request.cookies.get(self._cookie_name)
        if cookie is not None and hmac.compare_digest(cookie.value.encode(), self._cookie):
            return True
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._is_token(given.strip())

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

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


def is_foreign(request: HTTPServerRequest) -> bool:
    """Whether a browser sent the request for a page that is not one of the dashboard's; another port is another site."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    return site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc != request.host)


class EntryHandler(RequestHandler):  # type: ignore[misc] # tornado ships types, which mypy is told not to follow
    """Gives whoever brought the token a cookie, and leads on to the address without it."""

    def initialize(self, entry: Entry) -> None:
        self._entry = entry

    def prepare(self) -> None:
        """A page that leads on, no redirect: a strict cookie is not sent on after a link from elsewhere, in a mail say."""
        entry = self._entry
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_cookie(
            entry.name, entry.value, path=entry.path, expires_days=COOKIE_DAYS, httponly=True, samesite="Strict"
        )
        address = xhtml_escape(entry.address)
        self.finish(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><title>Forebay</title>'
            f'<a href="{address}">Go on</a>\n'
        )


class DeniedHandler(RequestHandler):  # type: ignore[misc]
    """Answers a denied request, whatever its method: a browser gets a page that needs nothing else of this server."""

    def initialize(self, denial: Denial) -> None:
        self._denial = denial

    def prepare(self) -> None:
        denial = self._denial
        self.set_header("Cache-Control", "no-store")
        if denial.login is not None:
            self.redirect(denial.login)
            return
        if denial.basic:
            self.set_header("WWW-Authenticate", 'Basic realm="forebay"')
        self.set_status(denial.status)
        if "text/html" in self.request.headers.get("Accept", ""):
            self.render("denied.html", denial=denial)
            return
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(denial.reason + "\n")
