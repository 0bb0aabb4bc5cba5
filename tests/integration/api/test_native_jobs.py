"""Jobs over HTTP, with a real worker: submitted, waited for, listed, canceled, and their results in every form."""

import base64
import http.client
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.job import JobState
from forebay.contract.wire import codec
from forebay.producer.waiting import watcher
from forebay.storage.jobs.records import Finished
from support.api import RunningApi, running_api
from support.waiting import wait_until
from support.worker_stack import WorkerStack

DEEP = b'{"model": "echo", "inputs": ' + b"[" * 100_000
NUMBER = {"x": {"dtype": "float64", "shape": [-1]}}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack()
    stack.model("Doubler")
    stack.model("Echo")
    stack.model("Echo", "floats", inputs=NUMBER)
    stack.model("Echo", "big", inputs={"n": {"dtype": "int64", "shape": []}, "b": {"dtype": "bytes"}})
    stack.model("NearestDigit", "digits", inputs={"input": {"dtype": "float32", "shape": [64]}})
    stack.client.models.set_alias("digits", "champion", 1)
    pet = {"dtype": "float64", "shape": [2], "classes": ["cat", "dog"]}
    stack.model("Echo", "pets", inputs={"pet": {"dtype": "float64", "shape": [2]}}, outputs={"pet": pet})
    sound = {"dtype": "float32", "shape": [-1], "sample_rate": 8000}
    photo = {"dtype": "uint8", "shape": [-1, -1, 3]}
    stack.model("Echo", "mixed", inputs={"photo": photo, "sound": sound, "title": {"dtype": "str"}})
    stack.worker().ready()
    return stack


def waited(api: RunningApi, model: str, inputs: Any, **options: Any) -> Any:
    answer = api.ask("POST", "/api/v1/jobs", {"model": model, "inputs": inputs, **options}, {"Prefer": "wait=60"})
    assert answer.status == 200, answer.body
    return answer.json


def test_a_job_is_accepted_and_its_result_fetched(api: RunningApi) -> None:
    accepted = api.ask(
        "POST", "/api/v1/jobs", {"model": "doubler", "inputs": 21, "priority": 0, "metadata": {"run": 7}}
    )
    assert accepted.status == 202
    assert accepted.headers["location"] == accepted.json["url"] == f"/api/v1/jobs/{accepted.json['id']}"
    shown = api.ask("GET", f"{accepted.headers['location']}?wait=60").json
    assert (shown["state"], shown["model"], shown["priority"], shown["metadata"]) == (
        "succeeded",
        "doubler/1",
        0,
        {"run": 7},
    )
    assert api.ask("GET", f"{accepted.headers['location']}/result").json == 42


def test_images_and_sound_go_in_as_base64_beside_text_and_one_that_cannot_be_read_fails_by_name(
    api: RunningApi,
) -> None:
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(picture, "png")
    soundfile.write(sound, np.full(160, 0.5, np.float32), 16_000, "FLOAT", format="WAV")
    photo, tone = ({"base64": base64.b64encode(file.getvalue()).decode()} for file in (picture, sound))
    made = waited(api, "mixed", {"photo": photo, "sound": tone, "title": "cat"})["result"]
    assert (made["photo"], made["title"]) == ([[[1, 2, 3]] * 3] * 2, "cat")
    assert len(made["sound"]) == 80
    failed = waited(api, "mixed", {"photo": tone, "sound": tone, "title": "cat"})
    assert failed["state"] == "failed"
    assert "input 'photo': Pillow cannot read the image" in json.dumps(failed["error"], ensure_ascii=False)


def test_prefer_wait_gives_the_result_at_once_and_says_so(api: RunningApi) -> None:
    answer = api.ask("POST", "/api/v1/jobs", {"model": "doubler", "inputs": 2}, {"Prefer": "respond-async, wait=60"})
    assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=60")
    assert (answer.json["state"], answer.json["result"]) == ("succeeded", 4)
    failed = waited(api, "doubler", -1)
    assert (failed["state"], failed["error"]) == ("failed", {"type": "ValueError", "message": "cannot double -1"})
    assert api.ask("POST", "/predict", {"model": "doubler", "inputs": 4}).json["result"] == 8
    refused = api.ask("POST", "/call", {"model": "doubler", "inputs": -4})
    assert (refused.status, refused.json["error"]["type"]) == (422, "ValueError")


def test_numbers_bytes_and_what_json_lacks_come_back_exactly(api: RunningApi) -> None:
    values = [0.1, "NaN", "Infinity", "-Infinity", 1e-320, 5]
    assert waited(api, "floats", values)["result"] == {"x": values}
    assert waited(api, "floats", {"x": [1.5]})["result"] == {"x": [1.5]}
    big = {"n": 9007199254740993, "b": {"base64": base64.b64encode(b"\x00\xff").decode()}}
    assert waited(api, "big", big)["result"] == big
    assert waited(api, "echo", {"base64": "AAA="})["result"] == {
        "base64": "AAA="
    }  # nothing is declared, nothing is guessed
    assert waited(api, "doubler", 9007199254740993)["result"] == 18014398509481986


def test_a_result_comes_with_the_names_of_its_classes_and_by_them_where_that_is_asked(api: RunningApi) -> None:
    named, body = {"cat": 0.25, "dog": 0.75}, {"model": "pets", "inputs": [0.25, 0.75]}
    told = waited(api, "pets", body["inputs"])
    assert (told["result"], told["classes"]) == ([0.25, 0.75], {"pet": ["cat", "dog"]})
    assert "classes" not in waited(api, "floats", [1.0])
    url = f"/api/v1/jobs/{told['id']}/result"
    assert api.ask("GET", f"{url}?by_class=true").json == named
    assert codec.decode(api.ask("GET", f"{url}?by_class=true", None, {"Accept": "application/msgpack"}).body).shape == (
        2,
    )
    for path in ("/api/v1/jobs", "/predict", "/call"):
        assert api.ask("POST", f"{path}?by_class=true", body, {"Prefer": "wait=60"}).json["result"] == named
    several = api.ask("POST", "/call?by_class=1", {"model": "pets", "inputs": [[0.25, 0.75]] * 2, "batched": True})
    assert several.json["result"] == [named, named]
    assert api.ask("POST", "/call?by_class=perhaps", body).status == 422


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("floats", ["nan"], "str 'nan' among the values"), ("big", {"n": 1.5, "b": {"base64": ""}}, "1.5 does not fit int64"),
        ("big", {"n": 2**63, "b": {"base64": ""}}, "does not fit int64"), ("big", {"n": 1, "b": "AAA="}, '{"base64": "…"}'),
        ("big", {"n": 1, "b": {"base64": "A"}}, "is not base64"), ("big", {"n": 1}, "missing ['b']"),
        ("floats", {"y": [1.0]}, "unknown"), ("floats", [[1.0]], "float64 of shape [-1]"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_take_is_422_and_nothing_is_stored(
    api: RunningApi, stack: WorkerStack, model: str, inputs: Any, words: str
) -> None:
    before = sum(stack.states().values())
    answer = api.ask("POST", "/api/v1/jobs", {"model": model, "inputs": inputs})
    assert answer.status == 422
    assert words in answer.json["detail"]
    assert sum(stack.states().values()) == before


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None), (b"", 400, None), (b"\xff", 400, None), (DEEP, 400, None), (b'{"model": NaN}', 400, None),
        (b'{"model": "echo", "inputs": {"a": 1, "\\u0061": 2}}', 422, None),
        (b'{"model": "no", "model": "echo", "inputs": 1}', 422, None),
        ({"inputs": 1}, 422, None), ({"model": "echo", "inputs": 1, "priority": 10}, 422, "priority"),
        ({"model": "echo", "inputs": 1, "priority": "1"}, 422, "priority"), ({"model": "echo", "inputs": 1, "x": 1}, 422, None),
        ({"model": "echo", "inputs": 1, "kind": "shard"}, 422, "kind"), ({"model": "no", "inputs": 1}, 404, None),
        ({"model": "a/b/c", "inputs": 1}, 422, None), ({"model": "echo", "inputs": 1, "queue": "x"}, 422, None),
    ],
)  # fmt: skip
def test_a_bad_request_says_what_is_wrong_with_it(api: RunningApi, body: Any, status: int, field: str | None) -> None:
    answer = api.ask("POST", "/api/v1/jobs", body)
    assert (answer.status, answer.json.get("field")) == (status, field), answer.body


def test_the_same_key_gives_the_same_job_and_another_request_is_refused(api: RunningApi) -> None:
    body, key = {"model": "echo", "inputs": [1]}, {"Idempotency-Key": '"k-1"'}
    first = api.ask("POST", "/api/v1/jobs", body, key).json["id"]
    assert api.ask("POST", "/api/v1/jobs", body, {"Idempotency-Key": "k-1"}).json["id"] == first
    assert api.ask("POST", "/api/v1/jobs", {"model": "echo", "inputs": [2]}, key).status == 422
    assert api.ask("POST", "/api/v1/jobs", body | {"idempotency_key": "other"}, key).status == 422


def test_many_jobs_come_as_json_lines_or_messagepack_all_or_none(api: RunningApi, stack: WorkerStack) -> None:
    lines = b"".join(json.dumps(n).encode() + b"\n" for n in range(100)) + b"\n"
    answer = api.ask("POST", "/api/v1/jobs:many?model=doubler&priority=7&metadata=%7B%22many%22%3A1%7D", lines)
    assert answer.status == 202, answer.body
    assert [api.ask("GET", f"/api/v1/jobs/{id}/result?wait=60").json for id in answer.json["ids"][::33]] == [
        0,
        66,
        132,
        198,
    ]
    packed = codec.encode([np.arange(3.0), np.arange(2.0)])
    made = api.ask("POST", "/api/v1/jobs:many?model=floats", packed, {"Content-Type": "application/msgpack"}).json[
        "ids"
    ]
    assert api.ask("GET", f"/api/v1/jobs/{made[1]}/result?wait=60").json == {"x": [0.0, 1.0]}
    before = sum(stack.states().values())
    refused = api.ask("POST", "/api/v1/jobs:many?model=floats", b"[1.0]\n[2.0]\n{")
    assert (refused.status, refused.json["detail"][:7]) == (400, "line 3:")
    assert api.ask("POST", "/api/v1/jobs:many?model=floats", b'[1.0]\n"x"').status == 422
    assert sum(stack.states().values()) == before


def test_jobs_are_listed_by_filters_page_by_page(api: RunningApi) -> None:
    ids = [waited(api, "echo", n, metadata={"page": "yes"})["id"] for n in range(5)]
    first = api.ask("GET", "/api/v1/jobs?limit=3&metadata=%7B%22page%22%3A%22yes%22%7D&state=succeeded,failed").json
    rest = api.ask("GET", f"/api/v1/jobs?limit=3&metadata=%7B%22page%22%3A%22yes%22%7D&after={first['next']}").json
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next"] is None
    for query in ("state=x", "limit=0", "limit=a", "after=x", "unknown=1", "limit=1&limit=2", "metadata=1"):
        assert api.ask("GET", f"/api/v1/jobs?{query}").status == 422, query


def test_a_result_has_the_form_that_is_asked_for(api: RunningApi) -> None:
    def of(inputs: Any, accept: str, model: str = "echo") -> tuple[int, str, bytes]:
        body = codec.encode({"model": model, "inputs": inputs})
        id = api.ask("POST", "/predict", body, {"Content-Type": "application/msgpack"}).json["id"]
        answer = api.ask("GET", f"/api/v1/jobs/{id}/result", headers={"Accept": accept})
        return answer.status, answer.headers["content-type"], answer.body

    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    status, media, data = of(array, "application/msgpack")
    assert (status, media) == (200, "application/msgpack")
    assert np.array_equal(codec.decode(data), array)
    assert json.loads(of(array, "text/html, application/json;q=0.5")[2]) == array.tolist()
    status, media, data = of({"a": array, "b": array[:, 0]}, "application/vnd.apache.arrow.stream")
    assert (status, media) == (200, "application/vnd.apache.arrow.stream")
    table = pa.ipc.open_stream(data).read_all()
    assert (table.column_names, table.num_rows, table["b"].to_pylist()) == (["a", "b"], 3, [0.0, 2.0, 4.0])
    assert of(b"\x00\x01", "application/octet-stream")[2] == b"\x00\x01"
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(of(image, "image/png")[2]))), image)
    for value, accept in (
        (1, "image/png"),
        (1, "application/octet-stream"),
        (1, "application/vnd.apache.arrow.stream"),
        (1, "text/html"),
    ):
        assert of(value, accept)[0] == 406


def test_cancel_retry_and_what_a_job_that_has_not_ended_answers(stack: WorkerStack, api: RunningApi) -> None:
    stack.model("Echo", "unserved", resources={"gpu": 1})
    url = api.ask("POST", "/api/v1/jobs", {"model": "unserved", "inputs": 1}).headers["location"]
    assert (early := api.ask("GET", f"{url}/result")).status == 409
    assert early.json["type"] == "urn:forebay:error:job-not-ended"
    late = api.ask("GET", f"{url}/result?wait=0.05")
    assert (late.status, late.json["job_id"]) == (504, url.rpartition("/")[2])
    assert api.ask("POST", f"{url}/retry").status == 409
    assert api.ask("POST", f"{url}/cancel").json["state"] == "canceled"
    assert api.ask("GET", f"{url}/result").status == 409
    assert api.ask("POST", f"{url}/retry").json["state"] == "queued"
    assert api.ask("POST", f"{url}/cancel").json["state"] == "canceled"
    assert api.ask("GET", f"/api/v1/jobs/{'9' * 32}").status == 404
    assert api.ask("GET", "/api/v1/jobs/x").status == 404
    assert api.ask("GET", f"/api/v1/jobs/{'0' * 11}1{'0' * 20}/result").status == 410


def test_a_job_of_another_server_is_announced_to_whoever_waits_for_it_here(
    api: RunningApi, stack: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_POLL_S", "LAST_POLL_S"):  # the ledger is not asked again: an announcement tells, or nothing
        monkeypatch.setattr(watcher, name, 3600.0)
    stack.model("Slowly", "held", inputs={"x": {"dtype": "float32", "shape": [1]}})
    stack.hold()
    with running_api(stack.settings) as other, ThreadPoolExecutor(2) as threads:
        url = api.ask("POST", "/api/v1/jobs", {"model": "held", "inputs": [2.0]}).headers["location"]
        waits = [threads.submit(other.ask, "GET", f"{url}{path}?wait=60") for path in ("", "/result")]
        stack.wait_until_held()
        session = other.api.client.sync.session
        wait_until(lambda: session.watcher.followed(), "the other server listens to this one's channel")
        stack.go_on()
        assert [waits[0].result().json["state"], waits[1].result().json] == ["succeeded", {"y": 4.0}]
        wait_until(lambda: not session.watcher.followed(), "it has stopped to listen")


def test_streams_of_events_share_their_reads_of_the_ledger(
    api: RunningApi, stack: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = api.api.client.sync.session.jobs.queries
    infos, past, asked, histories = queries.infos, queries.past_attempts, list[int](), list[str]()
    monkeypatch.setattr(queries, "infos", lambda ids: asked.append(len(ids)) or infos(ids))
    monkeypatch.setattr(queries, "past_attempts", lambda id: histories.append(id) or past(id))
    stack.model("Slowly", "followed", inputs={"x": {"dtype": "float32", "shape": [1]}})
    stack.hold()
    ids = [api.ask("POST", "/api/v1/jobs", {"model": "followed", "inputs": [n]}).json["id"] for n in range(8)]
    stack.wait_until_held()
    with ThreadPoolExecutor(16) as threads:
        streams = [threads.submit(api.ask, "GET", f"/api/v1/jobs/{id}/events") for id in ids * 2]
        wait_until(
            lambda: len(asked) > 4 and max(asked) == 8, "each read is of all eight jobs that sixteen streams follow"
        )
        stack.go_on()
        assert all(b"event: succeeded" in stream.result().body for stream in streams)
    assert len(histories) <= 3 * len(streams), "a job's attempts are read when it has changed"


def test_events_tell_the_jobs_life_and_go_on_where_a_client_stopped(api: RunningApi) -> None:
    id = waited(api, "echo", 1)["id"]

    def events(**headers: str) -> list[tuple[str, str]]:
        body = api.ask("GET", f"/api/v1/jobs/{id}/events", headers=headers).body.decode()
        parts = [
            dict(line.split(": ", 1) for line in part.splitlines()) for part in body.split("\n\n") if "event: " in part
        ]
        return [(part["id"], part["event"]) for part in parts]

    every = events()
    assert [event for _, event in every] == ["queued", "claimed", "succeeded", "progress"]
    assert events(**{"Last-Event-ID": every[1][0]}) == every[2:]
    assert events(**{"Last-Event-ID": every[-1][0]}) == []
    assert api.ask("GET", f"/api/v1/jobs/{id}/events", headers={"Last-Event-ID": "x"}).status == 422


def test_a_full_queue_is_429_with_when_to_come_back_and_a_ledger_that_is_away_503(
    stack: WorkerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.model("Echo", "gpu", resources={"gpu": 1})
    queues = {name: replace(queue, max_queue_size=1) for name, queue in stack.settings.queues.items()}
    with running_api(replace(stack.settings, queues=queues)) as api:
        body = {"model": "gpu", "inputs": 1}
        assert api.ask("POST", "/api/v1/jobs", body).status == 202
        full = api.ask("POST", "/api/v1/jobs", body)
        assert (full.status, full.json["queue"], full.json["maximum"]) == (429, "gpu", 1)
        jobs = api.api.client.sync.session.jobs

        def away(*_: object, **__: object) -> None:
            raise LedgerUnavailable("the ledger at /secret does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(jobs, "add", away)
            answer = api.ask("POST", "/api/v1/jobs", {"model": "echo", "inputs": 1})
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert b"secret" not in answer.body
        assert api.ask("POST", "/api/v1/jobs", {"model": "echo", "inputs": 1}).status == 202


def test_a_stop_answers_those_who_wait_with_503_and_the_job(stack: WorkerStack) -> None:
    with running_api(stack.settings) as api, closing(http.client.HTTPConnection("127.0.0.1", api.port)) as connection:
        connection.request("POST", "/predict", json.dumps({"model": "unserved", "inputs": 1}))
        wait_until(lambda: api.api.client.sync.session.watcher._awaited, "it waits")
        api.stop()
        response = connection.getresponse()
        told = json.loads(response.read())
    assert (response.status, told["type"]) == (503, "urn:forebay:error:server-stopping")
    assert stack.store.queries.get(told["job_id"]).state is JobState.QUEUED
    stack.store.claim([told["job_id"]], "w", 30)
    stack.store.finish([Finished(told["job_id"], 1, result=codec.encode(1))])


@pytest.mark.parametrize(("program", "example"), [("curl", "quickstart_curl.sh"), ("node", "quickstart_fetch.mjs")])
def test_the_examples_of_other_clients_work(api: RunningApi, stack: WorkerStack, program: str, example: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    path = Path(__file__).parents[3] / "examples" / example
    command = ["sh" if program == "curl" else program, str(path), f"127.0.0.1:{api.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, *jobs = done.stdout.splitlines()
    assert first == "the first image shows a 0"
    assert [line.partition(": ")[2] for line in jobs] == ["a 0", "a 1"]
    assert all(stack.client.job(line[4:36]).info().model == "digits" for line in jobs)
