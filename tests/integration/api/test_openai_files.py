"""OpenAI's files as its own client uses them: up, listed page by page, down again, gone."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from forebay.contract.settings import Settings
from forebay.storage.api_keys import ApiKeys
from forebay.storage.ledger.connection import Ledger
from support.api import RunningApi, running_api

LINES = b'{"custom_id": "a"}\n' * 1000
MIB = 2**20
PART = b"--x\r\nContent-Disposition: form-data; %s\r\n\r\n"


@pytest.fixture
def settings(sqlite_ledger: Ledger, tmp_path: Path) -> Settings:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    return Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})


@pytest.fixture
def api(settings: Settings) -> Iterator[RunningApi]:
    with running_api(settings) as api:
        yield api


@pytest.fixture
def client(api: RunningApi) -> Iterator[openai.OpenAI]:
    with client_of(api) as client:
        yield client


def client_of(api: RunningApi, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key=key, max_retries=0)


def test_a_file_comes_back_as_it_was_sent_and_is_gone_once_deleted(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("in.jsonl", LINES), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(LINES), "in.jsonl", "batch")
    assert (made.status, made.expires_at) == ("processed", made.created_at + 3600)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == LINES
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"no file has the id '{made.id}'") as gone:
            ask(made.id)
        assert gone.value.code == "not_found"


def test_an_empty_file_is_a_file(client: openai.OpenAI) -> None:
    made = client.files.create(file=("empty", b""), purpose="user_data")
    assert (made.bytes, made.expires_at, client.files.content(made.id).read()) == (0, None, b"")


def test_lists_are_paged_newest_first_or_oldest_first_and_by_purpose(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=(f"{i}", b"x"), purpose="evals" if i == 3 else "batch").id for i in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]  # the client asks for page after page
    first = client.files.list(limit=2)
    assert ([file.id for file in first.data], first.has_more) == (ids[:2:-1], True)
    assert [file.id for file in client.files.list(order="asc", after=ids[1])] == ids[2:]
    assert [file.id for file in client.files.list(purpose="evals")] == [ids[3]]
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.files.list(limit=0)


def test_a_file_is_seen_by_the_key_that_uploaded_it_alone(api: RunningApi, sqlite_ledger: Ledger) -> None:
    keys = ApiKeys(sqlite_ledger)
    ada, bob = (client_of(api, keys.create(name, ["submit", "read"])) for name in ("ada", "bob"))
    with ada, bob:
        made = ada.files.create(file=("a", b"x"), purpose="batch")
        assert [file.id for file in ada.files.list()] == [made.id]
        assert bob.files.list().data == []
        for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        with client_of(api, "fb_other") as nobody, pytest.raises(openai.AuthenticationError):
            nobody.files.list()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"purpose": "fun"}, "Invalid enum value 'fun'"),
        ({}, "missing required field `purpose`"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "an anchor and seconds"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, ">= 3600"),
    ],
)
def test_an_upload_with_fields_that_will_not_do_is_refused(
    client: openai.OpenAI, fields: dict[str, str], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.post(
            "/files", body=fields, files={"file": ("a", b"x")}, cast_to=object,
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )  # fmt: skip
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x", 400),
        (b"--x--\r\n", "multipart/form-data", 400),
        (b"--x\r\n" + b"a" * 100_000 + b": b\r\n\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (PART % b'name="a"' * 20 + b"\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (PART % b'name="purpose"' + b"batch\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (PART % b'name="file"; filename="a"' + b"never en", "multipart/form-data; boundary=x", 400),
    ],
)
def test_what_is_no_upload_is_refused_and_stores_nothing(
    api: RunningApi, client: openai.OpenAI, body: bytes, media: str, status: int
) -> None:
    answer = api.ask("POST", "/v1/files", body, {"Content-Type": media})
    assert (answer.status, set(answer.json)) == (status, {"error"})
    assert client.files.list().data == []


def test_an_upload_above_the_limit_is_refused_by_its_length(settings: Settings) -> None:
    with (
        running_api(replace(settings, api_max_file_bytes=10_000, api_max_body_bytes=100)) as api,
        client_of(api) as client,
    ):
        assert client.files.create(file=("a", b"x" * 9000), purpose="batch").bytes == 9000
        with pytest.raises(openai.APIStatusError, match="the limit is") as refused:
            client.files.create(file=("a", b"x" * 10_000), purpose="batch")
        assert refused.value.status_code == 413


def test_a_file_is_never_whole_in_memory(api: RunningApi, tmp_path: Path) -> None:
    size = 24 * MIB
    head = PART % b'name="purpose"' + b"batch\r\n" + PART % b'name="file"; filename="a"'
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
        file.seek(0, 2)
        file.write(b"\r\n--x--\r\n")
    tracemalloc.start()
    try:
        with body.open("rb") as file:
            headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(body.stat().st_size)}
            made = api.ask("POST", "/v1/files", file, headers)
        assert made.json["bytes"] == size
        with client_of(api) as client, client.files.with_streaming_response.content(made.json["id"]) as content:
            assert sum(len(piece) for piece in content.iter_bytes()) == size
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()
