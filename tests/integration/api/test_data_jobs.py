"""Batches, trainings and evaluations over HTTP: what they may read and write, uploads, results, events; artifacts by name."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from forebay.api import access
from forebay.contract.job import JobKind
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest
from forebay.contract.requests.versions.benchmark import BenchmarkRequest
from forebay.contract.requests.versions.compress import CompressRequest
from forebay.contract.requests.versions.convert import ConvertRequest
from forebay.storage.api_keys import ApiKeys
from forebay.storage.jobs.views import JobViews
from support.api import RunningApi, running_api
from support.file_server import FileServer
from support.training_data import MadeRun
from support.worker_stack import WorkerStack

ROWS = "x,truth\n1,2\n2,4\n3,7\n"
NUMBER = {"dtype": "float64", "shape": []}
REGISTER = {"name": "weights", "options": {"factory": "shop:make"}, "inputs": {"x": {"dtype": "float32", "shape": [4]}}}


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allowed")
    (folder / "rows.csv").write_text(ROWS)
    (folder / "w.safetensors").write_bytes(save({"w": np.zeros(4, np.float32)}))
    return folder


@pytest.fixture(scope="module")
def files(allowed: Path) -> Iterator[FileServer]:
    server = FileServer(allowed)
    yield server
    server.close()


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack], allowed: Path, files: FileServer) -> WorkerStack:
    stack = open_stack(API_PATHS=f"{allowed}/,{files.url}/,s3://ours/in", ALLOWED_HOSTS="127.0.0.1")
    stack.model("Echo", inputs={"x": NUMBER}, outputs={"x": NUMBER})
    stack.worker()
    return stack


def upload(api: RunningApi, name: str, data: bytes, **headers: str) -> str:
    head = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    head += f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    sent = {"Content-Type": "multipart/form-data; boundary=b"} | headers
    made = api.ask("POST", "/v1/files", head.encode() + data + b"\r\n--b--\r\n", sent)
    assert made.status == 200, made.body
    return str(made.json["id"])


def ended(api: RunningApi, **body: Any) -> dict[str, Any]:
    """A job with its result."""
    answer = api.ask("POST", "/api/v1/jobs", body, {"Prefer": "wait=60"})
    assert (answer.status, answer.json.get("state")) == (200, "succeeded"), answer.body
    found: dict[str, Any] = answer.json
    return found


def test_a_batch_reads_an_allowed_file_or_an_upload_and_gives_its_manifest(
    api: RunningApi, stack: WorkerStack, allowed: Path
) -> None:
    uploaded = upload(api, "../../rows.CSV", ROWS.encode())
    for source, output in ((f"{allowed}/./rows.csv", "a"), (uploaded, "b"), ([f"{allowed}/rows.csv", uploaded], "c")):
        made = ended(
            api,
            kind="batch",
            model="echo",
            input=source,
            output=f"{allowed}/{output}",
            keep="truth",
            output_format="csv",
        )
        files = 2 if output == "c" else 1
        assert made["result"]["counts"] == {"total": 3 * files, "completed": 3 * files, "failed": 0}
        [part, *_] = made["result"]["parts"]
        with (allowed / output / part["name"]).open() as file:
            assert [(row["x"], row["truth"]) for row in csv.DictReader(file)] == [
                ("1", "2"),
                ("2", "4"),
                ("3", "7"),
            ] * files
        shown = api.ask("GET", made["url"]).json
        assert (shown["kind"], shown["submitted_by"], shown["progress"]["done"]) == ("batch", "native", 3 * files)
        assert api.ask("GET", f"{made['url']}/result").json == made["result"]
        assert b"event: succeeded" in api.ask("GET", f"{made['url']}/events").body
    body = {"kind": "batch", "model": "echo", "input": uploaded, "output": f"{allowed}/d"}
    first = api.ask("POST", "/api/v1/jobs", body, {"Idempotency-Key": "d", "Prefer": "wait=60"}).json
    assert first["state"] == "succeeded"
    assert api.ask("POST", "/api/v1/jobs", body, {"Idempotency-Key": "d"}).json["id"] == first["id"]
    assert "name another folder" in api.ask("POST", "/api/v1/jobs", body).json["detail"]


def test_an_evaluation_gives_what_was_found(api: RunningApi, allowed: Path) -> None:
    asked = {
        "kind": "evaluate",
        "model": "echo",
        "dataset": f"{allowed}/rows.csv",
        "target": "truth",
        "columns": "x",
    }
    made = ended(api, **asked)
    assert (made["result"]["rows"], made["result"]["metrics"]["mae"]) == (3, pytest.approx(7 / 3))


def test_a_training_job_is_stored_as_asked_and_its_result_is_the_version(
    api: RunningApi, stack: WorkerStack, allowed: Path
) -> None:
    asked = {
        "kind": "train",
        "model": "line",
        "recipe": "regressor",
        "dataset": f"{allowed}/rows.csv",
        "target": "truth",
    }
    more = {"split": {"validation": 0, "test": 0.5}, "params": {"epochs": 2}, "features": ["x"], "metadata": {"a": 1}}
    made = api.ask("POST", "/api/v1/jobs", asked | more | {"max_attempts": 4})
    assert made.status == 202, made.body
    details = JobViews(stack.ledger).details(made.json["id"], 1 << 20)
    assert details.input is not None
    request = decode(details.input, TrainRequest)
    assert (details.info.kind, details.info.max_attempts, details.info.submitted_by) == (JobKind.TRAIN, 4, "native")
    assert (request.recipe, request.features, request.split.test, request.params["epochs"]) == (
        "regressor",
        ("x",),
        0.5,
        2,
    )
    assert [file.path for file in request.files] == [f"{allowed}/rows.csv"]
    space = {"lr": {"low": 0.001, "high": 0.1, "log": True}, "hidden": [[8], [16]]}
    tune = api.ask(
        "POST", "/api/v1/jobs", asked | {"kind": "tune", "space": space, "trials": 3, "split": {"validation": 0.3}}
    )
    assert tune.status == 202, tune.body
    details_of_tune = JobViews(stack.ledger).details(tune.json["id"], 1 << 20)
    tuned = decode(details_of_tune.input or b"", TuneRequest)
    assert (details_of_tune.info.kind, tuned.trials, tuned.space["hidden"]) == (JobKind.TUNE, 3, ([8], [16]))
    refused = api.ask("POST", "/api/v1/jobs", asked | {"kind": "tune", "space": {"nope": [1]}})
    assert (refused.status, "has no parameter 'nope'" in refused.json["detail"]) == (422, True), refused.body
    assert api.ask("POST", f"{tune.json['url']}/cancel").status == 200
    assert api.ask("POST", f"{made.json['url']}/cancel").status == 200
    run = MadeRun(stack.ledger, {})
    run.train(3)
    version = run.finish(0.9)
    result = api.ask("GET", f"/api/v1/jobs/{run.id}/result").json
    assert (result["ref"], result["url"]) == (version.ref, f"/api/v1/models/{version.ref}")


def test_a_conversion_is_stored_as_asked_and_refused_with_the_reason(
    api: RunningApi, stack: WorkerStack, allowed: Path
) -> None:
    weights = api.ask("POST", "/api/v1/models", REGISTER | {"artifact": f"{allowed}/w.safetensors"}).json["ref"]
    asked = {"kind": "convert", "model": weights, "to": "torch-export", "tolerance": 0.01, "alias": "fast"}
    made = api.ask("POST", "/api/v1/jobs", asked | {"queue": "gpu"})
    assert made.status == 202, made.body
    details = JobViews(stack.ledger).details(made.json["id"], 1 << 20)
    assert decode(details.input or b"", ConvertRequest) == ConvertRequest(
        "torch-export", 0.01, alias="fast", replaces=0
    )
    assert api.ask("POST", f"{made.json['url']}/cancel").status == 200
    for body, words in (
        (asked | {"model": "echo"}, "a class of your own has no graph"),
        (asked | {"dataset": "/etc/passwd"}, "is not below"),
        (asked | {"to": "tflite"}, "tflite"),
        (asked | {"columns": "x"}, "those of a data set"),
    ):
        refused = api.ask("POST", "/api/v1/jobs", body)
        assert (refused.status, words in refused.json["detail"]) == (422, True), refused.body


def test_a_benchmark_and_a_compression_are_stored_as_asked(api: RunningApi, stack: WorkerStack, allowed: Path) -> None:
    weights = api.ask("POST", "/api/v1/models", REGISTER | {"artifact": f"{allowed}/w.safetensors"}).json["ref"]
    for asked, kind, stored in (
        ({"kind": "benchmark", "max_rows": 8, "threads": [1], "apply": True}, BenchmarkRequest,
         BenchmarkRequest(max_rows=8, threads=(1,), apply=True)),
        ({"kind": "compress", "method": "prune:0.5", "alias": "small"}, CompressRequest,
         CompressRequest("prune:0.5", alias="small", replaces=0)),
    ):  # fmt: skip
        made = api.ask("POST", "/api/v1/jobs", asked | {"model": weights, "queue": "gpu"})
        assert made.status == 202, made.body
        details = JobViews(stack.ledger).details(made.json["id"], 1 << 20)
        assert decode(details.input or b"", kind) == stored
        assert api.ask("POST", f"{made.json['url']}/cancel").status == 200
    for body, words in (
        ({"kind": "compress", "model": "echo"}, "not compressed"),
        ({"kind": "benchmark", "max_rows": 0}, "max_rows"),
    ):
        refused = api.ask("POST", "/api/v1/jobs", {"model": weights} | body)
        assert (refused.status, words in refused.json["detail"]) == (422, True), refused.body


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/etc/passwd", "is not below what api_paths"), ("ALLOWED/../secret.csv", "is not below"),
        ("ALLOWEDx/a.csv", "is not below"), ("s3://ours/inner/a.csv", "is not below"),
        ("rows.csv", "give a path from /"), ("~/rows.csv", "give a path from /"), ("file:///etc/passwd", "may be named"),
        ("local:///etc/passwd", "may be named"), ("simplecache::file:///etc/passwd", "may be named"),
        ("s3://ours/in/../a.csv", "`..`"), ("s3://ours/in/%2e%2E/a.csv", "`..`"), ("http://example.com/a.csv", "is not below"),
        ("URL\\@evil/a.csv", "may be named"), ("URL@evil/a.csv", "is not below"), ("", "Expected `str` of length >= 1"),
        ("file-" + 32 * "0", "no file has the id"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_neither_read_nor_written_and_the_answer_names_the_field(
    api: RunningApi, stack: WorkerStack, allowed: Path, files: FileServer, place: str, words: str
) -> None:
    (allowed.parent / "secret.csv").write_text(ROWS)
    place = place.replace("ALLOWED", str(allowed)).replace("URL", files.url)
    batch = {"kind": "batch", "model": "echo", "input": f"{allowed}/rows.csv", "output": f"{allowed}/never"}
    before = sum(stack.states().values())
    for body, field in (
        (batch | {"input": place}, "input"),
        (batch | {"input": [f"{allowed}/rows.csv", place]}, "input"),
        (batch | {"output": place}, "output"),
        ({"kind": "evaluate", "model": "echo", "dataset": place, "target": "truth"}, "dataset"),
        ({"kind": "train", "model": "line", "recipe": "regressor", "dataset": place, "target": "truth"}, "dataset"),
    ):
        if place or body.get("input") != [f"{allowed}/rows.csv", place]:
            refused = api.ask("POST", "/api/v1/jobs", body)
            assert refused.status in (404, 422), refused.body
            assert (words in refused.json["detail"], refused.json["field"]) == (True, field), refused.body
    if place:
        refused = api.ask("POST", "/register", REGISTER | {"artifact": place})
        assert (words in refused.json["detail"], refused.json["field"]) == (True, "artifact"), refused.body
    assert sum(stack.states().values()) == before


def test_a_version_is_registered_by_path_url_or_upload(api: RunningApi, allowed: Path, files: FileServer) -> None:
    data = (allowed / "w.safetensors").read_bytes()
    uploaded = upload(api, "x.safetensors", data)
    for artifact in (f"{allowed}/w.safetensors", f"{files.url}/w.safetensors", uploaded):
        made = api.ask("POST", "/api/v1/models", REGISTER | {"artifact": artifact})
        assert (made.status, made.json.get("artifact_bytes"), made.json.get("runtime")) == (
            201,
            len(data),
            "safetensors",
        ), made.body
    missing = api.ask("POST", "/api/v1/models", REGISTER | {"artifact": f"{files.url}/no.safetensors"})
    assert (missing.status, "no.safetensors" in missing.json["detail"]) == (422, True), missing.body
    head = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + json.dumps(REGISTER | {"artifact": uploaded})
    head += '\r\n--b\r\nContent-Disposition: form-data; name="artifact"; filename="w.safetensors"\r\n\r\n'
    both = api.ask(
        "POST",
        "/register",
        head.encode() + data + b"\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert (both.status, both.json["field"]) == (422, "artifact")


def test_what_is_wrong_with_a_file_names_it_as_the_client_did(
    api: RunningApi, stack: WorkerStack, allowed: Path
) -> None:
    bad = upload(api, "a.csv", b"\xff\xfe\x00")
    asked = {"kind": "batch", "model": "echo", "input": bad, "output": f"{allowed}/bad"}
    refused = api.ask("POST", "/api/v1/jobs", asked)
    assert (refused.status, bad in refused.json["detail"]) == (422, True), refused.body
    assert "blobs" not in refused.json["detail"]
    for name, words in (("a.csv.gz", "compressed"), ("a.xyz", "format")):
        refused = api.ask("POST", "/api/v1/jobs", asked | {"input": upload(api, name, b"1")})
        assert (refused.status, words in refused.json["detail"]) == (422, True), refused.body
    for body, words in (
        (asked | {"kind": "echo"}, "there are predict, "),
        (asked | {"x": 1}, "unknown field"),
    ):
        refused = api.ask("POST", "/api/v1/jobs", body)
        assert (refused.status, words in refused.json["detail"]) == (422, True), refused.body
    assert api.ask("POST", "/predict", asked).status == 422
    assert not (allowed / "bad").exists() or not [*(allowed / "bad").iterdir()]


def test_without_the_setting_only_uploads_are_read(
    own: WorkerStack, allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "KEEP_S", 0.0)
    own.model("Echo")
    with running_api(own.settings) as api:
        body = {"kind": "batch", "model": "echo", "input": f"{allowed}/rows.csv", "output": f"{allowed}/never"}
        assert "allows over HTTP: nothing yet" in api.ask("POST", "/api/v1/jobs", body).json["detail"]
        asked = {"kind": "evaluate", "model": "echo", "dataset": upload(api, "a.csv", ROWS.encode()), "target": "truth"}
        assert api.ask("POST", "/api/v1/jobs", asked).status == 202
        keys = ApiKeys(own.ledger)
        submit, other = (keys.create(name, ["submit", "read"]) for name in ("ada", "bob"))
        file = upload(api, "a.csv", ROWS.encode(), Authorization=f"Bearer {submit}")
        train = {"kind": "train", "model": "m", "recipe": "regressor", "dataset": file, "target": "truth"}
        for key, body, status in (
            (submit, train, 403),
            (other, asked | {"dataset": file}, 404),
            (submit, asked | {"dataset": file}, 202),
        ):
            assert api.ask("POST", "/api/v1/jobs", body, {"Authorization": f"Bearer {key}"}).status == status


def test_a_prediction_is_explained_over_http(api: RunningApi) -> None:
    asked = {"kind": "explain", "model": "echo", "inputs": 3.5, "baseline": 1}
    made = ended(api, **asked)
    assert made["result"] == {"x": 2.5, "explanation": {"method": "feature-ablation", "output": "x", "score": 3.5}}
    refused = api.ask("POST", "/api/v1/jobs", asked | {"method": "saliency"})
    assert (refused.status, "use feature-ablation" in refused.json["detail"]) == (422, True)
