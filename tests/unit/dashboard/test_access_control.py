"""Access control: who is let in by Flower's login options, who is an operator, which host names are accepted."""

from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import create_signed_value

from forebay.dashboard.pages.access import AccessControl

SECRET = "a-secret-of-the-test"


def access(
    basic: tuple[str, ...] = (), oauth: str = "", prefix: str = "", host: str = "127.0.0.1", **more: Any
) -> AccessControl:
    options = SimpleNamespace(basic_auth=list(basic), auth=oauth, url_prefix=prefix)
    return AccessControl(options, {"cookie_secret": SECRET, "login_url": f"{prefix}/login"}, host=host, **more)


def request(uri: str = "/jobs", host: str = "127.0.0.1:5555", method: str = "GET", **headers: str) -> HTTPServerRequest:
    given = HTTPHeaders({"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}})
    line = RequestStartLine(method, uri, "HTTP/1.1")
    return HTTPServerRequest(start_line=line, headers=given, connection=SimpleNamespace())


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


def cookie(user: str, secret: str = SECRET) -> str:
    return f"user={create_signed_value(secret, 'user', user).decode()}"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5555", "127.0.0.2", "localhost", "LocalHost:80", "[::1]:5555", "x.localhost"]
)
def test_without_a_login_this_machines_names_are_answered(host: str) -> None:
    assert access().check(request(host=host)) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5555", "192.0.2.1", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_without_a_login_no_other_name_is(host: str) -> None:
    denial = access().check(request(host=host, uri="/workers"))
    assert denial is not None
    assert denial.status == 403


def test_the_name_that_was_given_to_listen_on_is_answered() -> None:
    assert access(host="my-laptop").check(request(host="my-laptop:5555")) is None


def test_with_a_login_any_name_is_answered_as_it_tells_nothing() -> None:
    assert access(("u:p",)).check(request(host="jobs.example", Authorization=basic("u:p"))) is None


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic !!!", basic("u:q"), basic("u"), basic("u:p:"), basic("ü:p"), "Bearer " + basic("u:p")[6:]],
)
def test_a_wrong_login_is_refused_with_a_question_for_one(header: str) -> None:
    denial = access(("u:p", "v:q")).check(request(Authorization=header))
    assert denial is not None
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
    denial = access(("u:p",)).check(request(path))
    assert denial is not None
    assert denial.status == 401
    assert access(("u:p",)).check(request("/healthz")) is None


def test_healthz_is_open_below_a_prefix_too() -> None:
    assert access(("u:p",), prefix="/forebay").check(request("/forebay/healthz?x=1")) is None


def test_only_who_is_named_is_an_operator() -> None:
    both = access(("ada:p", "bob:q"), operators=["ada"])
    ada, bob = (both.user(request(Authorization=basic(login))) for login in ("ada:p", "bob:q"))
    assert ada is not None
    assert bob is not None
    assert [(user.name, user.operator) for user in (ada, bob)] == [("ada", True), ("bob", False)]


def test_without_a_login_everybody_on_this_machine_is_one() -> None:
    user = access(operators=["ada"]).user(request())
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
    assert browser is not None
    assert (browser.status, browser.login) == (302, "/login?next=%2Fjobs%3Fstate%3Dfailed")
    for other in (request(Cookie=given), request(Cookie=given, Accept="text/html", method="POST")):
        denial = control.check(other)
        assert denial is not None
        assert (denial.status, denial.login, denial.basic) == (401, None, False)
    assert control.check(request("/login", Cookie=given)) is None
    assert control.check(request("/metrics", Cookie=given)) is not None
