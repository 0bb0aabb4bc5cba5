"""Models and queues over HTTP: registered with and without an upload, found, aliased, deleted."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from forebay.contract.drift.sketch import Reference, ReferenceBuilder
from forebay.contract.settings import Settings
from forebay.contract.signature import Field
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.drift import DriftStore
from support.api import Answer, RunningApi, running_api

PLAIN = {"name": "plain", "runtime": "python", "options": {"class": "support.models:Echo"}}
WEIGHTS = {"name": "weights", "options": {"factory": "shop:make"}, "inputs": {"x": {"dtype": "float32", "shape": [4]}}}


@pytest.fixture
def api(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[RunningApi]:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    given["API_MAX_BODY_BYTES"] = "100KB"
    with running_api(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as api:
        yield api


def upload(api: RunningApi, described: object, name: str, data: bytes, path: str = "/api/v1/models") -> Answer:
    head = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + json.dumps(described)
    head += f'\r\n--b\r\nContent-Disposition: form-data; name="artifact"; filename="{name}"\r\n\r\n'
    return api.ask(
        "POST", path, head.encode() + data + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
    )


def test_a_version_is_registered_with_its_artifact_and_without(api: RunningApi) -> None:
    made = api.ask("POST", "/api/v1/models", PLAIN)
    assert (made.status, made.headers["location"]) == (201, "/api/v1/models/plain/1")
    data = save({"w": np.zeros(4, np.float32)})
    uploaded = upload(api, WEIGHTS, "../../w.safetensors", data, "/register")
    assert uploaded.status == 201, uploaded.body
    assert (uploaded.json["runtime"], uploaded.json["artifact_bytes"]) == ("safetensors", len(data))
    assert uploaded.json["inputs"] == [{"name": "x", "dtype": "float32", "shape": [4]}]
    for described, name, status in (
        (WEIGHTS | {"name": "../x"}, "w.safetensors", 422), (WEIGHTS | {"z": 1}, "w.safetensors", 422),
        (WEIGHTS | {"max_batch_size": 0}, "w.safetensors", 422),
    ):  # fmt: skip
        assert upload(api, described, name, data).status == status
    assert upload(api, WEIGHTS, "w.safetensors", b"a" * 200_000).status == 413
    assert api.ask("POST", "/register", b"--b", {"Content-Type": "multipart/form-data; boundary=b"}).status in (
        400,
        422,
    )
    assert api.ask("POST", "/register", b"x", {"Content-Type": "multipart/form-data"}).status == 400
    assert len(api.ask("GET", "/api/v1/models").json["models"]) == 2


def test_versions_are_listed_found_aliased_and_deleted(api: RunningApi) -> None:
    for _ in range(3):
        api.ask("POST", "/api/v1/models", PLAIN)
    first = api.ask("GET", "/api/v1/models?name=plain&limit=2").json
    assert [model["ref"] for model in first["models"]] == ["plain/1", "plain/2"]
    rest = api.ask("GET", f"/api/v1/models?limit=2&after={first['next']}").json
    assert ([model["ref"] for model in rest["models"]], rest["next"]) == (["plain/3"], None)
    assert api.ask("PUT", "/api/v1/models/plain/aliases/champion", {"version": 2}).json["aliases"] == ["champion"]
    for ref, found in (
        ("plain", "plain/3"),
        ("plain/1", "plain/1"),
        ("plain@champion", "plain/2"),
        ("plain%40champion", "plain/2"),
    ):
        assert api.ask("GET", f"/api/v1/models/{ref}").json["ref"] == found
    assert api.ask("DELETE", "/api/v1/models/plain@champion").status == 422
    assert api.ask("DELETE", "/api/v1/models/plain/aliases/champion").status == 204
    assert api.ask("DELETE", "/api/v1/models/plain/2").status == 204
    assert api.ask("GET", "/api/v1/models/plain/2").status == 404
    assert api.ask("PUT", "/api/v1/models/plain/aliases/champion", {"version": 9}).status == 404
    assert api.ask("GET", "/api/v1/models?name=other").status == 404


def test_a_search_is_by_signature_and_metadata(api: RunningApi) -> None:
    api.ask("POST", "/api/v1/models", PLAIN | {"metadata": {"team": "a"}})
    api.ask("POST", "/api/v1/models", PLAIN | {"name": "other", "inputs": {"x": {"dtype": "str"}}})
    for path in ("/api/v1/models:search", "/discover"):
        found = api.ask("POST", path, {"metadata": {"team": "a"}}).json["models"]
        assert [model["ref"] for model in found] == ["plain/1"]
        found = api.ask("POST", path, {"inputs": {"x": {"dtype": "str"}}}).json["models"]
        assert [model["ref"] for model in found] == ["other/1"]
        assert api.ask("POST", path, {"inputs": {"x": 1}}).status == 422


def test_queues_say_what_waits_in_them(api: RunningApi) -> None:
    api.ask("POST", "/api/v1/models", PLAIN)
    api.ask("POST", "/api/v1/jobs", {"model": "plain", "inputs": 1})
    queues = {queue["name"]: queue for queue in api.ask("GET", "/api/v1/queues").json["queues"]}
    assert (queues["cpu"]["depth"], queues["cpu"]["workers"], queues["gpu"]["depth"]) == (1, [], 0)


def test_a_chunked_body_ends_at_the_limit(api: RunningApi) -> None:
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", api.port), 60) as client:
        client.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + 4 * chunk
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_example_is_kept_in_the_form_of_a_jobs_inputs_or_refused_and_a_version_tells_whether_it_has_one(
    api: RunningApi,
) -> None:
    described = PLAIN | {"inputs": {"x": {"dtype": "float64", "shape": [2]}, "b": {"dtype": "bytes"}}}
    given = {"x": [1, "NaN"], "b": {"base64": "AAA="}}
    assert api.ask("POST", "/register", described).json["has_example"] is False
    assert api.ask("POST", "/register", described | {"example": given}).json["has_example"] is True
    for example, words in (({"x": [1], "b": {"base64": ""}}, "of shape [2]"), ({"x": [1, 2], "b": "A"}, "base64")):
        refused = api.ask("POST", "/register", described | {"example": example})
        assert (refused.status, refused.json["detail"][:8]) == (422, "example:"), refused.body
        assert words in refused.json["detail"]
    data = save({"w": np.zeros(4, np.float32)})
    assert upload(api, WEIGHTS | {"example": [1, 2, 3, 4]}, "w.safetensors", data).json["has_example"] is True
    models = api.api.client.sync.models
    kept = models.example("plain/2")
    assert (kept["x"].tolist()[0], np.isnan(kept["x"][1]), kept["b"]) == (1, True, b"\x00\x00")
    assert models.example("weights")["x"].tolist() == [1, 2, 3, 4]
    assert [m["has_example"] for m in api.ask("GET", "/api/v1/models?name=plain").json["models"]] == [False, True]


def test_drift_is_told_by_column_and_a_version_without_a_reference_is_refused(
    api: RunningApi, sqlite_ledger: Ledger
) -> None:
    numbers = {"name": "numbers", "runtime": "python", "options": {"class": "support.models:Echo"}}
    numbers["inputs"] = {"x": {"dtype": "float32", "shape": [2]}}
    api.ask("POST", "/api/v1/models", numbers)
    assert api.ask("GET", "/api/v1/models/numbers/1/drift").status == 422
    builder = ReferenceBuilder("input", (Field("x", "float32", (2,)),))
    builder.add({"x": np.random.default_rng(0).normal(size=(200, 2))})
    DriftStore(sqlite_ledger).set_reference("numbers", 1, Reference(tuple(builder.columns()), "a test"))
    found = api.ask("GET", "/api/v1/models/numbers/drift?hours=48")
    assert (found.status, found.json["model"], found.json["hours"], found.json["rows"]) == (200, "numbers/1", 48, 0)
    assert [column["name"] for column in found.json["columns"]] == ["x[0]", "x[1]"]
    assert api.ask("GET", "/api/v1/models/numbers/drift?hours=337").status == 422
