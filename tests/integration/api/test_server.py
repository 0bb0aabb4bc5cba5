"""The HTTP server itself, whatever its routes: limits, slow clients, unknown addresses, strangers, and a stop in good order."""

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.api import server
from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.settings import Settings
from forebay.storage.ledger.connection import Ledger
from support.api import RunningApi, running_api, serve_command


@pytest.fixture
def settings(sqlite_ledger: Ledger, tmp_path: Path) -> Settings:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    return Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})


@pytest.fixture
def api(settings: Settings) -> Iterator[RunningApi]:
    with running_api(settings) as api:
        yield api


def test_it_is_alive_and_ready_while_redis_is_away(api: RunningApi) -> None:
    assert (api.ask("GET", "/healthz").body, api.ask("GET", "/readyz").body) == (b"ok\n", b"ready\n")


def test_every_answer_has_a_request_id_the_clients_own_where_it_gives_one(api: RunningApi) -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", api.ask("GET", "/healthz").headers["x-request-id"])
    assert api.ask("GET", "/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert api.ask("GET", "/healthz", headers={"X-Request-Id": "a b\u00e9"}).headers["x-request-id"] != "a b\u00e9"


def test_unknown_addresses_and_methods_are_problems(api: RunningApi) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("POST", "/healthz", 405),
    ):
        answer = api.ask(method, path)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.json["status"] == status
        assert answer.json["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/api/v1/models/net", "DELETE, GET, HEAD"), ("/api/v1/models/net/3", "DELETE, GET, HEAD"),
        ("/api/v1/models/net/drift", "GET, HEAD"), ("/api/v1/jobs", "GET, HEAD, POST"),
    ],
)  # fmt: skip
def test_a_method_that_an_address_does_not_take_is_told_those_that_it_does(
    api: RunningApi, path: str, methods: str
) -> None:
    answer = api.ask("PATCH", path)
    assert (answer.status, answer.headers["allow"]) == (405, methods)


def test_a_body_over_the_limit_is_refused_by_its_length_alone(settings: Settings) -> None:
    with running_api(replace(settings, api_max_body_bytes=1000)) as api:
        with socket.create_connection(("127.0.0.1", api.port), 60) as client:
            client.sendall(b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1001\r\n\r\n")
            answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:forebay:error:payload-too-large"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200), ({"Host": "[::1]"}, 200), ({"Host": "a.localhost"}, 200),
    ],
)  # fmt: skip
def test_without_keys_no_website_gets_in_through_a_browser(
    api: RunningApi, headers: dict[str, str], status: int
) -> None:
    assert api.ask("GET", "/healthz", headers=headers).status == status


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"), pytest.param(b"GET /healthz HT", id="half a head"),
        pytest.param(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12", id="half a body"),
    ],
)  # fmt: skip
def test_a_client_that_does_not_go_on_is_cut_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "WATCH_S", 0.05)
    with running_api(settings) as api, socket.create_connection(("127.0.0.1", api.port), 60) as client:
        client.sendall(sent)
        try:
            while client.recv(4096):  # an answer may come before the end
                pass
        except ConnectionResetError:
            pass


def test_headers_without_end_are_refused(api: RunningApi) -> None:
    with socket.create_connection(("127.0.0.1", api.port), 60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        answer = b""
        try:
            for n in range(100):
                client.sendall(b"X-%d: %s\r\n" % (n, b"a" * 2000))
            answer = client.recv(4096)
        except OSError:
            return
        assert answer.startswith(b"HTTP/1.1 400 ")


def test_hostile_requests_crash_nothing(api: RunningApi) -> None:
    for sent in (
        b"\x00\xff\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nzzz",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ):  # fmt: skip
        with socket.create_connection(("127.0.0.1", api.port), 60) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            try:
                answer = client.recv(65536)
            except ConnectionResetError:
                answer = b""
            assert b"Traceback" not in answer
            assert not answer or answer.split()[1] in (b"400", b"403", b"404"), answer
    assert api.ask("GET", "/healthz").status == 200


def test_the_command_serves_on_a_free_port_and_ends_with_0(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with serve_command(settings, log) as served, socket.create_connection(("127.0.0.1", served.port), 60) as idle:
        idle.sendall(b"GET /healthz?x=%0A HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert 'key="f' not in log.read_text()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_without_keys_it_listens_on_loopback_only(settings: Settings, host: str) -> None:
    with pytest.raises(InvalidInput, match="everyone who can reach this machine could submit jobs"):
        server.serve(settings, host, 0)


def test_a_port_that_is_taken_is_named(settings: Settings, api: RunningApi) -> None:
    others = threading.active_count()
    with pytest.raises(ForebayError, match=rf"the API cannot listen on 127.0.0.1:{api.port}: "):
        server.serve(settings, "127.0.0.1", api.port)
    assert threading.active_count() <= others + 1


def test_metrics_count_requests_by_route_and_dialect(api: RunningApi) -> None:
    api.ask("GET", "/api/v1/jobs")
    api.ask("GET", "/v2/models/none")
    api.ask("GET", "/nothing")
    answer = api.ask("GET", "/metrics")
    lines = answer.body.decode().splitlines()
    assert 'forebay_http_requests_total{dialect="native",route="/api/v1/jobs",status="2xx"} 1.0' in lines
    assert 'forebay_http_requests_total{dialect="inference",route="/v2/models/{name}",status="4xx"} 1.0' in lines
    assert 'forebay_http_requests_total{dialect="native",route="none",status="4xx"} 1.0' in lines
    assert 'forebay_http_request_seconds_count{dialect="native",route="/api/v1/jobs"} 1.0' in lines
    assert 'forebay_http_requests_in_flight{dialect="native"} 1.0' in lines
