"""API keys: who gets in, to do what, and how a job tells who submitted it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from forebay.api import access
from forebay.api.access import check_address
from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.storage.api_keys import ApiKeys, hash_of
from forebay.storage.jobs.queries import JobQueries
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from support.api import RunningApi, running_api
from support.commands import Shell

DAY_S = 86_400.0
BODY = {"model": "m", "inputs": 1}
EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture
def settings(sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(access, "KEEP_S", 0.0)
    ModelRegistry(sqlite_ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature()))
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    return Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})


@pytest.fixture
def api(settings: Settings) -> Iterator[RunningApi]:
    with running_api(settings) as api:
        yield api


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def test_from_the_first_key_on_every_request_needs_one_with_the_scope(api: RunningApi, sqlite_ledger: Ledger) -> None:
    keys = ApiKeys(sqlite_ledger)
    assert api.ask("POST", "/api/v1/jobs", BODY).status == 202
    submit, read = keys.create("ada", ["submit"]), keys.create("bob", ["read"])
    for headers in (
        {},
        bearer("fb_wrong"),
        bearer(""),
        {"Authorization": f"Basic {submit}"},
        bearer(submit[:-1]),
        bearer(submit[3:]),
    ):
        refused = api.ask("POST", "/api/v1/jobs", BODY, headers)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert api.ask("POST", "/api/v1/jobs", BODY, bearer(submit)).status == 202
    assert api.ask("POST", "/api/v1/jobs", BODY, bearer(read)).status == 403
    assert (api.ask("GET", "/api/v1/jobs", headers=bearer(read)).status, api.ask("GET", "/healthz").status) == (
        200,
        200,
    )
    assert api.ask("POST", "/api/v1/models", {"name": "x"}, bearer(submit)).status == 403
    assert api.ask("POST", "/api/v1/models", {"name": "x"}, bearer(keys.create("eve", ["admin"]))).status == 422
    refused = api.ask("GET", "/v2/models", headers=bearer("no"))
    assert (refused.status, list(refused.json)) == (401, ["error"])


def test_tritons_client_sends_a_key_in_its_headers(api: RunningApi, sqlite_ledger: Ledger) -> None:
    read = bearer(ApiKeys(sqlite_ledger).create("bob", ["read"]))
    with InferenceServerClient(f"127.0.0.1:{api.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata(headers=read)["name"] == "forebay"
        for headers, status in (({}, "401"), (read, "403")):
            with pytest.raises(InferenceServerException) as error:
                client.load_model("m", headers=headers)
            assert error.value.status() == status


def test_a_key_that_was_revoked_or_has_expired_lets_nobody_in(api: RunningApi, sqlite_ledger: Ledger) -> None:
    keys = ApiKeys(sqlite_ledger)
    brief, revoked = keys.create("brief", ["read"], 1e-6), keys.create("revoked", ["read"])
    assert api.ask("GET", "/api/v1/jobs", headers=bearer(revoked)).status == 200
    keys.revoke("revoked")
    assert [api.ask("GET", "/api/v1/jobs", headers=bearer(key)).status for key in (brief, revoked, "")] == [
        401,
        401,
        401,
    ]
    for again in ("revoked", "nobody"):
        with pytest.raises(InvalidInput, match="no key in use is called"):
            keys.revoke(again)
    with pytest.raises(InvalidInput, match="there is or was a key called 'revoked'"):
        keys.create("revoked", ["read"])


@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
def test_a_keys_time_is_the_ledgers_whatever_becomes_of_the_servers_clock(
    api: RunningApi, sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    keys, true = ApiKeys(sqlite_ledger), time.time
    over, good = keys.create("over", ["read"], 1e-6), keys.create("good", ["read"], DAY_S / 2)
    monkeypatch.setattr(time, "time", lambda: true() + step_s)
    assert [api.ask("GET", "/api/v1/jobs", headers=bearer(key)).status for key in (over, good)] == [401, 200]


def test_a_job_keeps_who_submitted_it_and_keys_of_idempotency_are_each_callers_own(
    api: RunningApi, sqlite_ledger: Ledger
) -> None:
    keys, queries = ApiKeys(sqlite_ledger), JobQueries(sqlite_ledger)
    open_id = api.ask("POST", "/api/v1/jobs", BODY).json["id"]
    ada, bob = keys.create("ada", ["submit", "read"]), keys.create("bob", ["submit"])
    ids = [
        api.ask("POST", "/api/v1/jobs", BODY, bearer(key, **{"Idempotency-Key": "k"})).json["id"]
        for key in (ada, ada, bob)
    ]
    assert ids[0] == ids[1] != ids[2]
    assert [queries.get(id).submitted_by for id in (open_id, ids[0], ids[2])] == ["native", "native:ada", "native:bob"]
    assert api.ask("GET", f"/api/v1/jobs/{ids[0]}", headers=bearer(ada)).json["submitted_by"] == "native:ada"


def test_only_a_keys_hash_is_kept(sqlite_ledger: Ledger) -> None:
    key = ApiKeys(sqlite_ledger).create("ada", ["read", "submit"], 60)
    [kept] = ApiKeys(sqlite_ledger).list()
    assert (kept.sha256, kept.scopes) == (hash_of(key), ("submit", "read"))
    assert key not in repr(kept)


def test_with_a_key_it_may_listen_anywhere_and_take_any_name_and_proxy(api: RunningApi, sqlite_ledger: Ledger) -> None:
    proxied: dict[str, Any] = {"Host": "api.example", "X-Forwarded-For": "10.0.0.1"}
    assert api.ask("GET", "/api/v1/jobs", headers={"X-Forwarded-For": "10.0.0.1"}).status == 403
    key = ApiKeys(sqlite_ledger).create("ada", ["read"])
    assert api.ask("GET", "/api/v1/jobs", headers=bearer(key, **proxied)).status == 200
    check_address(EVERYWHERE, ApiKeys(sqlite_ledger).list())
    with pytest.raises(InvalidInput, match="make an API key with `forebay keys create NAME`"):
        check_address(EVERYWHERE, [])


def test_keys_hold_while_the_ledger_is_away(
    api: RunningApi, sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ApiKeys(sqlite_ledger).create("ada", ["read"])
    assert api.ask("GET", "/api/v1/jobs", headers=bearer(key)).status == 200

    def away(*_: object, **__: object) -> Any:
        raise LedgerUnavailable

    monkeypatch.setattr(api.api.client.sync.session.ledger, "rows", away)
    assert api.ask("GET", "/healthz").status == 200
    assert api.ask("GET", "/api/v1/jobs").status == 401
    assert api.ask("GET", "/api/v1/jobs", headers=bearer(key)).status == 503


def test_a_website_is_answered_only_where_its_origin_is_named(settings: Settings) -> None:
    page = {"Origin": "https://app.example"}
    asks = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with running_api(replace(settings, api_origins=("https://app.example",))) as api:
        assert (
            api.ask("OPTIONS", "/api/v1/jobs", headers=asks).headers["access-control-allow-origin"]
            == "https://app.example"
        )
        answer = api.ask("POST", "/api/v1/jobs", BODY, page)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (202, "https://app.example")
        assert api.ask("POST", "/api/v1/jobs", BODY, {"Origin": "https://evil.example"}).status == 403


def test_keys_are_made_shown_once_listed_and_revoked_from_the_shell(shell: Shell) -> None:
    key = shell.out("keys", "create", "ada", "--scope", "submit,models", "--expires", "90d").strip()
    assert key.startswith("fb_")
    [listed] = shell.json("keys", "list", "--json")
    assert (listed["name"], listed["scopes"], listed["revoked_at"]) == ("ada", ["submit", "models"], None)
    assert key not in shell.out("keys", "list")
    shell.out("keys", "revoke", "ada")
    assert "revoked" in shell.out("keys", "list")
