"""Access control: who is let in by Flower's login options, who is an operator, which host names are accepted."""

from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import create_signed_value

from forebay.dashboard.pages.access import AccessControl, Denial, Entry

SECRET = "a-secret-of-the-test"
TOKEN = "a-token-of-the-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def access(
    basic: tuple[str, ...] = (), oauth: str = "", prefix: str = "", host: str = "127.0.0.1", **more: Any
) -> AccessControl:
    options = SimpleNamespace(basic_auth=list(basic), auth=oauth, url_prefix=prefix)
    return AccessControl(options, {"cookie_secret": SECRET, "login_url": f"{prefix}/login"}, TOKEN, host=host, **more)


def request(uri: str = "/jobs", host: str = "127.0.0.1:5555", method: str = "GET", **headers: str) -> HTTPServerRequest:
    given = HTTPHeaders({"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}})
    line = RequestStartLine(method, uri, "HTTP/1.1")
    return HTTPServerRequest(start_line=line, headers=given, connection=SimpleNamespace())


def denied(answer: Denial | Entry | None) -> int:
    """The status with which a request was denied."""
    assert isinstance(answer, Denial)
    return answer.status


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


def cookie(user: str, secret: str = SECRET) -> str:
    return f"user={create_signed_value(secret, 'user', user).decode()}"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5555", "127.0.0.2", "localhost", "LocalHost:80", "[::1]:5555", "x.localhost"]
)
def test_without_a_login_this_machines_names_are_answered_with_the_token(host: str) -> None:
    assert access().check(request(host=host, **BEARER)) is None
    assert denied(access().check(request(host=host))) == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5555", "192.0.2.1", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_without_a_login_no_other_name_is(host: str) -> None:
    for uri in ("/workers", f"/workers?token={TOKEN}", "/healthz"):
        assert denied(access().check(request(host=host, uri=uri, **BEARER))) == 403


def test_without_a_login_and_a_token_nobody_starts() -> None:
    with pytest.raises(ValueError, match="there must be a token"):
        AccessControl(SimpleNamespace(basic_auth=[], auth="", url_prefix=""), {"cookie_secret": "", "login_url": ""})


@pytest.mark.parametrize(
    ("uri", "leads_to"),
    [
        (f"/?token={TOKEN}", "/"),
        (f"/jobs?state=failed&token={TOKEN}&model=a%26b", "/jobs?state=failed&model=a%26b"),
        (f"//evil.example/x?token={TOKEN}", "/evil.example/x"),
        (f"/\\evil.example?token={TOKEN}", "/%5Cevil.example"),
    ],
)
def test_the_token_in_an_address_gives_a_cookie_and_leads_to_this_dashboard_without_it(uri: str, leads_to: str) -> None:
    control = access()
    entry = control.check(request(uri))
    assert isinstance(entry, Entry)
    assert entry.address == leads_to
    assert TOKEN not in entry.value + entry.name
    assert control.check(request(Cookie=f"{entry.name}={entry.value}")) is None
    other = AccessControl(
        SimpleNamespace(basic_auth=[], auth="", url_prefix=""), {"cookie_secret": "", "login_url": ""}, "b"
    )
    assert denied(other.check(request(Cookie=f"{entry.name}={entry.value}"))) == 401


@pytest.mark.parametrize("uri", ["/?token=", "/?token=x", f"/?Token={TOKEN}", f"/?token={TOKEN}x", "/?token=%ff%c3%a4"])
def test_any_other_token_is_refused(uri: str) -> None:
    assert denied(access().check(request(uri))) == 401
    assert denied(access().check(request(f"/?token={TOKEN}", method="POST"))) == 401
    assert access().user(request(uri)) is None


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://127.0.0.1:9999"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "null"}]
)
def test_a_page_on_another_port_changes_nothing_with_the_cookie(headers: dict[str, str]) -> None:
    control = access()
    entry = control.check(request(f"/?token={TOKEN}"))
    assert isinstance(entry, Entry)
    cookie = {"Cookie": f"{entry.name}={entry.value}"}
    assert denied(control.check(request("/api/task/abort/1", method="POST", **cookie, **headers))) == 403
    assert control.check(request("/api/task/abort/1", method="POST", **cookie, Origin="http://127.0.0.1:5555")) is None


def test_the_name_that_was_given_to_listen_on_is_answered() -> None:
    assert access(host="my-laptop").check(request(host="my-laptop:5555", **BEARER)) is None


def test_with_a_login_any_name_is_answered_as_it_tells_nothing() -> None:
    assert access(("u:p",)).check(request(host="jobs.example", Authorization=basic("u:p"))) is None


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic !!!", basic("u:q"), basic("u"), basic("u:p:"), basic("ü:p"), "Bearer " + basic("u:p")[6:]],
)
def test_a_wrong_login_is_refused_with_a_question_for_one(header: str) -> None:
    denial = access(("u:p", "v:q")).check(request(Authorization=header))
    assert isinstance(denial, Denial)
    assert (denial.status, denial.basic) == (401, True)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/healthcheck",
        "/static/x.js",
        "/assets/x.js",
        "/api/tasks",
        "/login",
        "/healthz/x",
        "//healthz",
    ],
)
def test_nothing_but_healthz_is_open_beside_a_basic_login(path: str) -> None:
    assert denied(access(("u:p",)).check(request(path))) == 401
    assert access(("u:p",)).check(request("/healthz")) is None


def test_healthz_is_open_below_a_prefix_too() -> None:
    assert access(("u:p",), prefix="/forebay").check(request("/forebay/healthz?x=1")) is None


def test_only_who_is_named_is_an_operator() -> None:
    both = access(("ada:p", "bob:q"), operators=["ada"])
    ada, bob = (both.user(request(Authorization=basic(login))) for login in ("ada:p", "bob:q"))
    assert ada is not None
    assert bob is not None
    assert [(user.name, user.operator) for user in (ada, bob)] == [("ada", True), ("bob", False)]


def test_without_a_login_whoever_has_the_token_is_one() -> None:
    user = access(operators=["ada"]).user(request(**BEARER))
    assert user is not None
    assert (user.name, user.operator) == ("", True)


def test_an_oauth_user_is_known_by_the_signed_cookie() -> None:
    control = access(oauth=".*@team.example", operators=["ada@team.example"])
    ada = control.user(request(Cookie=cookie("ada@team.example")))
    assert ada is not None
    assert ada.operator
    assert control.check(request(Cookie=cookie("bob@team.example"))) is None


@pytest.mark.parametrize(
    "given", ["", "user=ada@team.example", cookie("ada@team.example", "another"), cookie("eve@evil.example")]
)
def test_any_other_cookie_leads_a_browser_to_the_login_and_refuses_the_rest(given: str) -> None:
    control = access(oauth=".*@team.example")
    browser = control.check(request("/jobs?state=failed", Cookie=given, Accept="text/html,*/*"))
    assert isinstance(browser, Denial)
    assert (browser.status, browser.login) == (302, "/login?next=%2Fjobs%3Fstate%3Dfailed")
    for other in (request(Cookie=given), request(Cookie=given, Accept="text/html", method="POST")):
        denial = control.check(other)
        assert isinstance(denial, Denial)
        assert (denial.status, denial.login, denial.basic) == (401, None, False)
    assert control.check(request("/login", Cookie=given)) is None
    assert control.check(request("/metrics", Cookie=given)) is not None
