"""OpenAI's batches as its own client uses them, from the upload to the files that come out."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch
from sqlalchemy import text

from forebay.api.openai import batch_loop, batches
from forebay.contract.errors import BlobUnavailable, ModelNotFound
from forebay.contract.generation import INPUTS, OUTPUTS
from forebay.contract.job import JobState
from forebay.contract.model import ModelRef, ModelVersion
from forebay.storage.api_keys import ApiKeys
from forebay.storage.blobs import store
from forebay.storage.blobs.store import BlobStore
from forebay.storage.models.registry import ModelRegistry
from support.api import running_api
from support.models import number_of
from support.waiting import wait_until
from support.worker_stack import WorkerStack

ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack()
    stack.worker()
    stack.model("Vectors")
    stack.model("Echo")
    stack.model("Writer", inputs=INPUTS, outputs=OUTPUTS)
    return stack


def client_of(port: int, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)


def line(custom_id: str, text: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "vectors", "input": text} | more
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    data = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
    return client.files.create(file=("in.jsonl", data), purpose="batch").id


def create(client: openai.OpenAI, lines: list[Any], **more: Any) -> Batch:
    id = upload(client, lines)
    return client.batches.create(input_file_id=id, endpoint="/v1/embeddings", completion_window="24h", **more)


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    return wait_until(look, f"the batch has ended: {client.batches.retrieve(batch.id)}", 120)


def answers(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    """What a file says, by custom_id, each of which comes once."""
    if file is None:
        return {}
    told = [json.loads(one) for one in client.files.content(file).text.splitlines()]
    found = {one["custom_id"]: one for one in told}
    assert len(found) == len(told)
    return found


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_a_batch_answers_each_line_as_the_route_does(client: openai.OpenAI, stack: WorkerStack) -> None:
    asked = [line(f"a{i}", f"text {i}") for i in range(20)]
    asked += [line("several", ["a b", "c"]), line("base64", "d", encoding_format="base64"), line("\u00fc\n", "e")]
    made = create(client, [*asked[:5], b"  ", *asked[5:]], metadata={"for": "test"}, output_expires_after={
        "anchor": "created_at", "seconds": 3600})  # fmt: skip
    assert (made.object, made.status, made.metadata) == ("batch", "validating", {"for": "test"})
    assert made.expires_at == made.created_at + 86_400
    batch = ended(client, made)
    assert (batch.status, counts(batch), batch.error_file_id, batch.errors) == ("completed", (23, 23, 0), None, None)
    assert (batch.model, batch.usage) == ("vectors/1", None)  # its runtime does not count
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(at for at in times if at is not None)
    assert batch.output_file_id is not None
    file = client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.expires_at) == ("batch_output", file.created_at + 3600)
    found = answers(client, file.id)
    assert list(found) == [one["custom_id"] for one in asked]
    for one in asked:
        direct = client.post("/embeddings", body=one["body"] | {"model": "vectors/1"}, cast_to=object)
        told = found[one["custom_id"]]
        assert (told["response"]["status_code"], told["error"]) == (200, None)
        assert told["response"]["body"] == direct
    jobs = stack.client.jobs(model="vectors", limit=1000)
    of_batch = [job for job in jobs if job.parent_id == made.id.removeprefix("batch_")]
    assert {(job.submitted_by, job.priority) for job in of_batch} == {("openai", 7)}
    assert {f"batch_req_{job.id}" for job in of_batch} == {one["id"] for one in found.values()}


def test_lines_that_fail_are_told_as_the_route_tells_them(client: openai.OpenAI) -> None:
    batch = ended(client, create(client, [line("good", "x"), line("bad", "bad"), line("size", "y", dimensions=7)]))
    assert (batch.status, counts(batch)) == ("completed", (3, 1, 2))
    assert set(answers(client, batch.output_file_id)) == {"good"}
    found = answers(client, batch.error_file_id)
    assert set(found) == {"bad", "size"}
    for name, said, status, code in (("bad", "bad", 400, "job_failed"), ("size", "y", 400, "invalid_input")):
        with pytest.raises(openai.APIStatusError) as direct:
            client.embeddings.create(model="vectors", input=said, dimensions=7 if name == "size" else openai.omit)
        told = found[name]["response"]
        assert told["status_code"] == direct.value.status_code == status
        assert told["body"]["error"]["code"] == direct.value.code == code
    assert "ValueError: a bad text" in found["bad"]["response"]["body"]["error"]["message"]


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat_line(custom_id: str, content: str, url: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"model": "writer", "messages": [{"role": "user", "content": content}]} | more
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def text_line(custom_id: str, prompt: Any, **more: Any) -> dict[str, Any]:
    return line(custom_id, None) | {"url": TEXT, "body": {"model": "writer", "prompt": prompt} | more}


def create_text(client: openai.OpenAI, lines: list[Any], endpoint: Any) -> Batch:
    return client.batches.create(input_file_id=upload(client, lines), endpoint=endpoint, completion_window="24h")


@pytest.mark.parametrize(
    ("endpoint", "lines", "tokens"),
    [
        (CHAT, [chat_line("a", "a dam"), chat_line("b", "x y z", n=2, max_tokens=2), chat_line("bad", "bad")], (5, 6)),
        (TEXT, [text_line("a", "a dam"), text_line("b", ["x y", "z"], n=2), text_line("bad", "bad")], (5, 8)),
    ],
)  # fmt: skip
def test_a_batch_of_text_answers_as_its_route_does_and_tells_both_kinds_of_tokens(
    client: openai.OpenAI, endpoint: str, lines: list[Any], tokens: tuple[int, int]
) -> None:
    batch = ended(client, create_text(client, lines, endpoint))
    assert (batch.status, counts(batch), batch.model) == ("completed", (3, 2, 1), "writer/1")
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (*tokens, sum(tokens))
    found = answers(client, batch.output_file_id)
    for one in lines[:2]:
        direct: Any = client.post(endpoint.removeprefix("/v1"), body=one["body"], cast_to=object)
        told = found[one["custom_id"]]["response"]["body"]
        assert told | {"id": "", "created": 0} == direct | {"id": "", "created": 0}
    [bad] = answers(client, batch.error_file_id).values()
    assert bad["response"]["status_code"] == 400
    assert "ValueError: a bad text" in bad["response"]["body"]["error"]["message"]


def test_lines_of_text_that_will_not_do_are_named_by_their_field_before_any_runs(
    client: openai.OpenAI, stack: WorkerStack
) -> None:
    before = stack.states()
    wrong = [
        chat_line("a", "a dam"), chat_line("b", "x", tools=[]), chat_line("c", "x", stream=True), chat_line("d", "x", TEXT),
        chat_line("e", "x", temperature="hot"), chat_line("f", "x", model="echo"), chat_line("g", "x") | {"body": []},
        line("h", "x") | {"url": CHAT},
    ]  # fmt: skip
    batch = ended(client, create_text(client, wrong, CHAT))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(one.line, one.code, one.param) for one in batch.errors.data] == [
        (2, "invalid_request", "body.tools"), (3, "invalid_request", "body.stream"), (4, "invalid_url", "url"),
        (5, "invalid_request", "body.temperature"), (6, "mismatched_model", "body.model"), (7, "invalid_request", "body"),
        (8, "invalid_request", "body.messages"),
    ]  # fmt: skip
    batch = ended(client, create_text(client, [chat_line("a", "x", model="echo")], CHAT))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert "model echo/1 (runtime python) does not generate text" in str(batch.errors.data[0].message)
    assert stack.states() == before


def test_a_file_with_wrong_lines_fails_and_names_them_and_stores_no_job(
    client: openai.OpenAI, stack: WorkerStack
) -> None:
    before = stack.states()
    wrong = [
        line("a", "x"), b"{not json", line("a", "y"), line("b", "x") | {"method": "GET"}, line("c", "x") | {"url": "/v1/x"},
        {"method": "POST"}, line("d", "x", model="other"), line("e", []), line("f", 5), b"\xff", line("", "x"),
        json.dumps(line("g", "x")).replace('"input"', '"input": "y", "input"').encode(), line("h", "\ud800"),
    ]  # fmt: skip
    batch = ended(client, create(client, wrong))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    told = [(one.line, one.code, one.param) for one in batch.errors.data]
    assert told == [
        (2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id"), (4, "invalid_method", "method"),
        (5, "invalid_url", "url"), (6, "missing_required_parameter", None), (7, "mismatched_model", "body.model"),
        (8, "invalid_request", "body.input"), (9, "invalid_request", "body.input"), (10, "invalid_json_line", None),
        (11, "invalid_request", "custom_id"), (12, "invalid_request", None), (13, "invalid_json_line", None),
    ]  # fmt: skip
    assert batch.errors.data[1].message == "custom_id 'a' stands in line 1 already"
    assert stack.states() == before


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ([], "empty_file", "no request"),
        ([line("a", "x", model="nobody")], "model_not_found", "no model is called 'nobody'"),
        ([b"x" * 200_000], "invalid_file", "longer than 100000 bytes"),
        ([line(f"{i}", "x") for i in range(41)], "too_many_requests", "more than 40 requests"),
        ([b"{"] * 300, "invalid_json_line", "not JSON"),
    ],
)
def test_a_file_that_will_not_do_at_all_fails(own: WorkerStack, lines: list[Any], code: str, words: str) -> None:
    own.model("Vectors")
    settings = replace(own.settings, api_max_batch_lines=40, api_max_body_bytes=100_000)
    with running_api(settings) as api, client_of(api.port) as client:
        batch = ended(client, create(client, lines))
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert (batch.status, batch.errors.data[0].code) == ("failed", code)
        assert words in str(batch.errors.data[0].message)
        assert len(batch.errors.data) <= 101


@pytest.fixture
def held(stack: WorkerStack) -> Iterator[WorkerStack]:
    """Models wait until `go_on`."""
    stack.hold()
    yield stack
    stack.go_on()


def jobs_of(stack: WorkerStack, batch: Batch) -> dict[str, JobState]:
    found = stack.client.jobs(model="vectors", limit=10_000)
    return {job.id: job.state for job in found if job.parent_id == batch.id.removeprefix("batch_")}


def test_a_canceled_batch_gives_what_was_done_and_says_what_was_not(client: openai.OpenAI, held: WorkerStack) -> None:
    made = create(client, [line(f"{i}", f"cancel {i}") for i in range(700)])
    wait_until(lambda: len(jobs_of(held, made)) == 700, "all lines have jobs")
    assert client.batches.retrieve(made.id).status == "in_progress"
    assert client.batches.cancel(made.id).status == "cancelling"
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    held.go_on()
    batch = ended(client, made)
    good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert batch.cancelled_at is not None
    assert (batch.status, counts(batch)) == ("cancelled", (700, len(good), len(bad)))
    assert set(good) | set(bad) == {f"{i}" for i in range(700)}
    assert len(bad) > 300
    assert {(one["response"], one["error"]["code"]) for one in bad.values()} == {(None, "batch_cancelled")}
    assert all(state.final for state in jobs_of(held, made).values())
    with pytest.raises(openai.ConflictError, match="the batch is cancelled") as refused:
        client.batches.cancel(made.id)
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_batch_whose_time_is_over_ends_as_expired(
    client: openai.OpenAI, held: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_S", 1.0)
    made = create(client, [line(f"{i}", f"expire {i}") for i in range(100)])
    wait_until(lambda: made.expires_at is not None and held.ledger.now() > made.expires_at + 1, "its time is over")
    held.go_on()
    batch = ended(client, made)
    good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert (batch.status, counts(batch)) == ("expired", (100, len(good), len(bad)))
    assert batch.expired_at is not None
    assert {one["error"]["code"] for one in bad.values()} == {"batch_expired"}


def test_a_job_that_is_gone_is_told_and_its_file_may_be_deleted_meanwhile(
    client: openai.OpenAI, held: WorkerStack
) -> None:
    made = create(client, [line(f"{i}", f"gone {i}") for i in range(3)])
    wait_until(lambda: len(jobs_of(held, made)) == 3, "there are jobs")
    client.files.delete(made.input_file_id)
    with held.ledger.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": min(jobs_of(held, made))})
    held.go_on()
    batch = ended(client, made)
    assert (batch.status, counts(batch)) == ("completed", (3, 2, 1))
    assert [one["error"]["code"] for one in answers(client, batch.error_file_id).values()] == ["job_deleted"]


def test_the_same_create_is_the_same_batch_and_a_key_stands_for_one(client: openai.OpenAI) -> None:
    file = upload(client, [line("a", "same")])

    def again(**more: Any) -> str:
        given = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"} | more
        return client.batches.create(**given).id

    first = again()
    assert again() == first
    keyed = again(extra_headers={"Idempotency-Key": "k"})
    assert again(extra_headers={"Idempotency-Key": "k"}) == keyed
    assert len({first, keyed, again(metadata={"a": "b"})}) == 3
    with pytest.raises(openai.BadRequestError, match="asks for something else"):
        again(metadata={"c": "d"}, extra_headers={"Idempotency-Key": "k"})


def test_batches_are_listed_by_pages_to_the_key_that_made_them(own: WorkerStack) -> None:
    own.model("Vectors")
    keys = ApiKeys(own.ledger)
    with running_api(own.settings) as api:
        ada, bob = (client_of(api.port, keys.create(name, ["submit", "read"])) for name in ("ada", "bob"))
        with ada, bob:
            wait_until(lambda: _answers(ada), "the keys are known")
            made = [create(ada, [line("a", f"{i}")]) for i in range(5)]
            ids = [batch.id for batch in made][::-1]
            assert [batch.id for batch in ada.batches.list(limit=2)] == ids
            assert ([b.id for b in ada.batches.list(limit=2).data], ada.batches.list(limit=2).has_more) == (
                ids[:2],
                True,
            )
            assert bob.batches.list().data == []
            for ask in (bob.batches.retrieve, bob.batches.cancel):
                with pytest.raises(openai.NotFoundError, match="no batch has the id"):
                    ask(ids[0])
            with pytest.raises(openai.NotFoundError, match="no file has the id") as unknown:
                bob.batches.create(
                    input_file_id=made[0].input_file_id, endpoint="/v1/embeddings", completion_window="24h"
                )
            assert unknown.value.param == "input_file_id"
            wait_until(lambda: own.states().get("queued") == 5, "there are jobs")
            assert {job.submitted_by for job in own.client.jobs()} == {"openai:ada"}


def _answers(client: openai.OpenAI) -> bool:
    try:
        return client.batches.list().data == []
    except openai.APIStatusError:
        return False


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"endpoint": "/v1/responses"}, "Invalid enum value '/v1/responses'"),
        ({"completion_window": "1h"}, "Invalid enum value '1h'"),
        ({"metadata": {"a" * 65: "b"}}, "64"), ({"metadata": {f"{i}": "b" for i in range(17)}}, "16"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "3600"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(client: openai.OpenAI, more: dict[str, Any], words: str) -> None:
    before = len(client.batches.list(limit=100).data)
    file = upload(client, [line("a", "x")])
    with pytest.raises(openai.BadRequestError, match=words):
        client.batches.create(
            **{"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"} | more
        )
    other = client.files.create(file=("a", b"{}"), purpose="user_data").id
    with pytest.raises(openai.BadRequestError, match="purpose is user_data"):
        client.batches.create(input_file_id=other, endpoint="/v1/embeddings", completion_window="24h")
    assert len(client.batches.list(limit=100).data) == before


def test_a_blob_store_that_is_away_for_moments_costs_no_line(
    client: openai.OpenAI, stack: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    whole = BlobStore.chunks

    def chunks(blobs: BlobStore, ref: str) -> Iterator[bytes]:
        opened.append(ref)
        away = len(opened) in (1, 3, 5)  # as it is checked, submitted and answered
        for i, chunk in enumerate(whole(blobs, ref)):
            if away and i == 2:
                raise BlobUnavailable("the blob store is away")
            yield chunk

    monkeypatch.setattr(store, "CHUNK", 1000)
    monkeypatch.setattr(BlobStore, "chunks", chunks)
    monkeypatch.setattr(batch_loop, "RETRY_S", 0.01)
    batch = ended(client, create(client, [line(f"{i}", f"away {i}") for i in range(100)]))
    assert (batch.status, counts(batch), len(opened)) == ("completed", (100, 100, 0), 6)
    assert list(answers(client, batch.output_file_id)) == [f"{i}" for i in range(100)]


def test_a_version_that_is_gone_once_the_file_was_checked_is_told_on_each_line(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    whole = ModelRegistry.resolve

    def resolve(registry: ModelRegistry, ref: ModelRef) -> ModelVersion:
        asked.append(ref)
        if len(asked) > 1:
            raise ModelNotFound("vectors/1 was deleted")
        return whole(registry, ref)

    monkeypatch.setattr(ModelRegistry, "resolve", resolve)
    batch = ended(client, create(client, [line("a", "x"), line("b", "y")]))
    assert (batch.status, counts(batch), batch.output_file_id) == ("completed", (2, 0, 2), None)
    told = {name: one["error"] for name, one in answers(client, batch.error_file_id).items()}
    gone = {"code": "model_not_found", "message": "vectors/1 was deleted"}
    assert told == {"a": gone, "b": gone}


@contextmanager
def server(stack: WorkerStack) -> Iterator[int]:
    """`forebay serve`, which is killed in the end; the port."""
    log = stack.folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay", "serve", "--port", "0"], env=stack.settings.child_environment(),
            cwd=stack.folder, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield int(wait_until(lambda: re.search(r"api_ready.*127.0.0.1:(\d+)", log.read_text()), "it is ready")[1])
    finally:
        process.kill()
        process.wait(60)


def test_a_batch_survives_servers_that_are_killed_and_answers_each_line_once(tmp_path: Path, broker: str) -> None:
    texts = [f"killed {i}" for i in range(1200)]
    queues = json.dumps({"cpu": {"max_queue_size": 700}})  # so that not all lines are submitted at once
    with closing(WorkerStack(tmp_path, broker, QUEUES=queues)) as stack:
        stack.worker()
        stack.model("Vectors")
        stack.hold()
        with server(stack) as port, client_of(port) as client:
            made = create(client, [line(one, one) for one in texts])
            wait_until(lambda: jobs_of(stack, made), "some lines have jobs")
        assert 500 <= len(jobs_of(stack, made)) < 1200
        stack.go_on()
        with server(stack) as port, client_of(port) as client:
            wait_until(lambda: counts(client.batches.retrieve(made.id))[1] > 500, "a part is done")
        with running_api(stack.settings) as api, client_of(api.port) as client:
            batch = ended(client, made)
            found = answers(client, batch.output_file_id)
            assert [file.id for file in client.files.list(purpose="batch_output")] == [batch.output_file_id]
        assert (batch.status, counts(batch), list(found)) == ("completed", (1200, 1200, 0), texts)
        assert len(jobs_of(stack, made)) == 1200
        runs = stack.runs()
        assert all(runs.count(number_of(one)) == 1 for one in texts)
