"""The Open Inference Protocol, spoken by Triton's own clients to a real server with a real worker."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http.aio
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from forebay.contract.signature import ARRAY_DTYPES
from support.api import RunningApi, running_api
from support.waiting import wait_until
from support.worker_stack import WorkerStack

EVERY = {f"a_{dtype}": {"dtype": dtype, "shape": [2]} for dtype in ARRAY_DTYPES}
EVERY |= {"text": {"dtype": "str"}, "raw": {"dtype": "bytes"}, "more": {"dtype": "json"}}
PAIR = {
    "left": {"dtype": "float32", "shape": [-1]},
    "right": {"dtype": "float32", "shape": [-1]},
    "word": {"dtype": "str"},
}
PAIR_OUT = {"total": {"dtype": "float32", "shape": [-1]}, "text": {"dtype": "str"}}
QUEUES = json.dumps({"cpu": {}, "gpu": {"gpu": 1, "max_queue_size": 1}})


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker for the queue `cpu`; nobody serves `gpu`, which has room for one job."""
    stack = open_stack(QUEUES=QUEUES)
    stack.model("Echo", "every", inputs=EVERY, outputs=EVERY, max_batch_size=8)
    stack.model("TwoWays", "pair", inputs=PAIR, outputs=PAIR_OUT)
    stack.model("TwoWays", "pair", inputs=PAIR, outputs=PAIR_OUT, batch_wait_timeout_s=0.01)
    stack.client.models.set_alias("pair", "champion", 1)
    stack.model("Echo", "free")
    stack.model("Slowly", "numbers", inputs={"x": {"dtype": "float32", "shape": [1]}})
    stack.model("Echo", "large", resources={"gpu": 1})
    stack.worker().ready()
    return stack


@pytest.fixture(scope="module")
def server(stack: WorkerStack) -> Iterator[RunningApi]:
    with running_api(stack.settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningApi) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def every_kind(rows: int) -> dict[str, np.ndarray]:
    """An array for each input of the model `every`, with values at the ends of its range."""
    arrays: dict[str, np.ndarray] = {}
    for name, dtype in ARRAY_DTYPES.items():
        if dtype.kind in "iu":
            ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]
        else:
            ends = [False, True] if dtype.kind == "b" else [np.finfo(dtype).min, np.finfo(dtype).tiny]
        arrays[f"a_{name}"] = np.array([ends] * rows, dtype)
    arrays["text"] = np.array([f"zwölf {i}" for i in range(rows)], object)
    arrays["raw"] = np.array([bytes([i]) for i in range(rows)], object)
    arrays["more"] = np.array([json.dumps({"i": i}) for i in range(rows)], object)
    return arrays


def inputs_of(arrays: dict[str, np.ndarray], binary: bool = True) -> list[InferInput]:
    made = [InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)) for name, array in arrays.items()]
    return [
        one.set_data_from_numpy(array, binary_data=binary) for one, array in zip(made, arrays.values(), strict=True)
    ]


def pair(rows: int = 2) -> dict[str, np.ndarray]:
    left = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    return {"left": left, "right": left * 2, "word": np.array([f"w{i}" for i in range(rows)], object)}


def assert_equal(back: np.ndarray, sent: np.ndarray) -> None:
    """Bit by bit; texts come back as bytes, or from JSON as str."""
    if sent.dtype == object:
        elements = [item if isinstance(item, str) else item.decode("latin-1") for item in sent.tolist()]
        assert [item if isinstance(item, str) else item.decode() for item in back.tolist()] == elements
    else:
        assert (back.dtype, back.shape, back.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())


COMPRESSIONS = pytest.mark.parametrize("compression", [None, "gzip", "deflate"])


@COMPRESSIONS
def test_every_datatype_goes_there_and_back_as_binary_data(
    client: InferenceServerClient, compression: str | None
) -> None:
    arrays = every_kind(3)
    algorithms = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
    result = client.infer("every", inputs_of(arrays), **algorithms)
    for name, array in arrays.items():
        assert_equal(result.as_numpy(name), array)


@COMPRESSIONS
def test_every_datatype_but_half_floats_goes_there_and_back_as_json(
    client: InferenceServerClient, compression: str | None
) -> None:
    arrays = every_kind(2)
    halves = {"a_float16": arrays.pop("a_float16")}
    wanted = [InferRequestedOutput(name, binary_data=False) for name in arrays]
    algorithms = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
    inputs = inputs_of(arrays, binary=False) + inputs_of(halves)
    result = client.infer("every", inputs, outputs=wanted, request_id="r-1", **algorithms)
    for name, array in arrays.items():
        assert_equal(result.as_numpy(name), array)
    assert result.get_response()["id"] == "r-1"
    assert result.get_output("a_float16") is None


def test_a_request_of_many_rows_is_one_durable_job(client: InferenceServerClient, stack: WorkerStack) -> None:
    result = client.infer("pair", inputs_of(pair(50)), priority=2, timeout=60_000_000)
    assert_equal(result.as_numpy("total"), pair(50)["left"] * 3)
    info = stack.client.job(result.get_response()["parameters"]["job_id"]).info()
    assert (info.progress.total, info.priority, str(info.state)) == (50, 2, "succeeded")
    assert 0 < (info.deadline_at - info.created_at).total_seconds() <= 60


def test_outputs_may_be_chosen_and_come_each_in_the_form_asked_for(client: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("text", binary_data=False), InferRequestedOutput("total", binary_data=True)]
    result = client.infer("pair", inputs_of(pair()), outputs=outputs)
    assert result.as_numpy("text").tolist() == ["W0", "W1"]
    assert_equal(result.as_numpy("total"), pair()["left"] * 3)
    result = client.infer("pair", inputs_of(pair()), outputs=outputs[:1])
    assert [one["name"] for one in result.get_response()["outputs"]] == ["text"]


@pytest.mark.parametrize(
    ("name", "version", "answers"),
    [("pair", "", "2"), ("pair", "1", "1"), ("pair@champion", "", "1"), ("pair", "2", "2")],
)
def test_a_version_or_alias_answers_as_itself(
    client: InferenceServerClient, name: str, version: str, answers: str
) -> None:
    response = client.infer(name, inputs_of(pair()), model_version=version).get_response()
    assert (response["model_name"], response["model_version"]) == ("pair", answers)
    assert client.is_model_ready(name, version)
    described = client.get_model_metadata(name, version)
    assert described["versions"] == (["1", "2"] if (name, version) == ("pair", "") else [answers])
    assert client.get_model_config(name, version)["version_policy"] == {"specific": {"versions": [int(answers)]}}


@pytest.mark.parametrize(
    ("name", "version", "status", "text"),
    [
        ("nobody", "", "404", "no model is called 'nobody'; registered are: .*pair"),
        ("pair", "7", "404", "'pair' has no version 7; it has: 1, 2"),
        ("pair@other", "", "404", "'pair' has no alias 'other'; it has: champion"),
        ("pair", "x", "400", "'pair/x' is not a valid model reference"),
        ("..", "", "400", r"'\.\.' is not a valid model reference"),
    ],
)
def test_a_model_that_is_not_there_is_refused_by_name(
    client: InferenceServerClient, name: str, version: str, status: str, text: str
) -> None:
    for ask in (
        lambda: client.infer(name, inputs_of(pair()), model_version=version),
        lambda: client.get_model_metadata(name, version),
        lambda: client.get_model_config(name, version),
        lambda: client.get_inference_statistics(name, version),
    ):
        with pytest.raises(InferenceServerException, match=text) as error:
            ask()
        assert error.value.status() == status
    assert not client.is_model_ready(name, version)


def test_what_a_model_refuses_says_why(client: InferenceServerClient, stack: WorkerStack) -> None:
    before = len(stack.client.jobs(model="pair", limit=1000))
    for changed, text in (
        ({"left": np.zeros((2, 3))}, "input 'left': its datatype is FP32, got FP64"),
        ({"left": np.zeros((3, 3), np.float32)}, "same number of rows"),
        ({"more": np.zeros(2)}, r"unknown \['more'\]"),
        ({"word": np.array([[b"a"], [b"b"]], object)}, r"input 'word': expected BYTES of shape \[-1\]"),
        ({"word": np.array([b"a", b"\xff"], object)}, "input 'word': an element is not str"),
    ):
        with pytest.raises(InferenceServerException, match=text) as error:
            client.infer("pair", inputs_of(pair() | changed))
        assert error.value.status() == "400"
    assert len(stack.client.jobs(model="pair", limit=1000)) == before
    with pytest.raises(
        InferenceServerException, match=r"job [0-9a-f]{32} failed .*ValueError: a negative number"
    ) as error:
        client.infer("numbers", inputs_of({"x": np.full((1, 1), -1, np.float32)}))
    assert error.value.status() == "400"


def test_a_request_that_nobody_began_in_its_time_is_told_its_job(
    client: InferenceServerClient, stack: WorkerStack
) -> None:
    with pytest.raises(InferenceServerException, match=r"job [0-9a-f]{32} did not start before its deadline") as error:
        client.infer("large", inputs_of({"x": np.zeros(1)}), timeout=1000)
    assert error.value.status() == "504"


def test_a_full_queue_says_when_to_come_again(server: RunningApi, stack: WorkerStack) -> None:
    waiting = stack.client.predict("large", 1)
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}
    try:
        refused = server.ask("POST", "/v2/models/large/infer", body)
        assert refused.status == 429
        assert "queue 'gpu'" in refused.json["error"]
    finally:
        waiting.cancel()


def test_a_model_without_a_declaration_takes_and_gives_what_comes(client: InferenceServerClient) -> None:
    arrays = {"x": np.arange(6, dtype=np.uint16).reshape(2, 3), "word": np.array([b"a", b"\xff"], object)}
    result = client.infer("free", inputs_of(arrays))
    for name, array in arrays.items():
        assert_equal(result.as_numpy(name), array) if name == "x" else None
    assert result.as_numpy("word").tolist() == [b"a", b"\xff"]
    assert client.get_model_metadata("free")["inputs"] == []


def test_a_client_reads_what_a_model_takes_and_gives(client: InferenceServerClient) -> None:
    described = client.get_model_metadata("every")
    assert (described["name"], described["platform"]) == ("every", "forebay_python")
    tensors = {one["name"]: (one["datatype"], one["shape"]) for one in described["inputs"]}
    assert tensors["a_float16"] == ("FP16", [-1, 2])
    assert tensors["more"] == ("BYTES", [-1])
    arrays = {name: np.zeros([1, *shape[1:]], triton_to_np_dtype(kind)) for name, (kind, shape) in tensors.items()}
    arrays |= {"text": np.array(["a"], object), "raw": np.array([b"b"], object), "more": np.array(["{}"], object)}
    assert client.infer("every", inputs_of(arrays)).as_numpy("a_int64").tolist() == [[0, 0]]
    config = client.get_model_config("pair", "2")
    assert config["max_batch_size"] == 32
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 10_000}
    assert config["input"][0] == {"name": "left", "data_type": "TYPE_FP32", "dims": [-1]}
    assert config["input"][2] == {"name": "word", "data_type": "TYPE_STRING", "dims": []}


def test_statistics_count_what_workers_have_run(client: InferenceServerClient, stack: WorkerStack) -> None:
    stack.model("TwoWays", "counted", inputs=PAIR, outputs=PAIR_OUT, max_batch_size=8)
    client.infer("counted", inputs_of(pair(20)))

    def counted() -> dict[str, Any]:
        [found] = client.get_inference_statistics("counted")["model_stats"]
        return found

    wait_until(lambda: counted()["inference_count"], "the worker has told what it counted")
    found = counted()
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == (
        "counted",
        "1",
        20,
        3,
    )
    assert found["inference_stats"]["success"]["count"] == 1
    assert found["inference_stats"]["compute_infer"]["ns"] > 0
    everything = client.get_inference_statistics()["model_stats"]
    assert [one["version"] for one in everything if one["name"] == "pair"] == ["1", "2"]


def test_the_server_and_its_repository_tell_what_is_ready(client: InferenceServerClient, server: RunningApi) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "forebay"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    lines = {(line["name"], line["version"]): line for line in client.get_model_repository_index()}
    assert lines["pair", "2"] == {"name": "pair", "version": "2", "state": "READY", "reason": ""}
    assert lines["large", "1"]["state"] == "UNAVAILABLE"
    assert lines["large", "1"]["reason"] == "no worker serves queue 'gpu'"
    assert not client.is_model_ready("large")
    ready = server.ask("POST", "/v2/repository/index", {"ready": True}).json
    assert {line["state"] for line in ready} == {"READY"}


def test_a_load_warms_and_what_cannot_be_is_refused(client: InferenceServerClient, stack: WorkerStack) -> None:
    stack.model("Echo", "fresh")
    client.load_model("fresh")
    wait_until(lambda: "model_loaded" in stack.workers[0].said(), "the worker has loaded it")
    for ask, status, text in (
        (lambda: client.load_model("large"), "503", "no worker serves"),
        (lambda: client.load_model("nobody"), "404", "no model is called 'nobody'"),
        (lambda: client.load_model("fresh", config="{}"), "400", "neither config nor files"),
        (lambda: client.unload_model("fresh"), "400", "fresh/1 cannot be unloaded"),
        (lambda: client.unload_model("nobody"), "404", "no model is called 'nobody'"),
    ):
        with pytest.raises(InferenceServerException, match=text) as error:
            ask()
        assert error.value.status() == status


def test_what_is_not_supported_is_refused(client: InferenceServerClient) -> None:
    for ask in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException, match="nothing at this address") as error:
            ask()
        assert error.value.status() == "404"
    with pytest.raises(InferenceServerException, match="keep no state"):
        client.infer("pair", inputs_of(pair()), sequence_id=5, sequence_start=True)
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("pair", inputs_of(pair()), outputs=[InferRequestedOutput("total", class_count=3)])


@COMPRESSIONS
def test_the_asynchronous_client_gets_many_answers_at_once(server: RunningApi, compression: str | None) -> None:
    async def ask() -> None:
        async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_model_ready("pair", "1")
            assert (await client.get_model_metadata("pair@champion"))["versions"] == ["1"]
            algorithms = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
            calls = [client.infer("pair", inputs_of(pair(rows)), **algorithms) for rows in range(1, 21)]
            for rows, result in enumerate(await asyncio.gather(*calls), 1):
                assert_equal(result.as_numpy("total"), pair(rows)["left"] * 3)
            json_only = inputs_of(pair(), binary=False)
            result = await client.infer("pair", json_only, outputs=[InferRequestedOutput("text", binary_data=False)])
            assert result.as_numpy("text").tolist() == ["W0", "W1"]
            with pytest.raises(InferenceServerException, match="no model is called 'nobody'"):
                await client.infer("nobody", json_only)

    asyncio.run(ask())


def test_a_request_in_the_form_of_kserves_client_is_answered_so_that_it_understands(server: RunningApi) -> None:
    request = {
        "id": "5f7d1c0e-8f0c-4c44-93a3-0d7d6d5b3b0e", "model_name": "pair",
        "inputs": [
            {"name": "left", "shape": [1, 2], "datatype": "FP32", "data": [[1.5, 2]]},
            {"name": "right", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]], "parameters": {}},
            {"name": "word", "shape": [1], "datatype": "BYTES", "data": ["zwölf"]},
        ],
    }  # fmt: skip
    jobs = set()
    for _ in range(2):  # an id is never an idempotency key
        answer = server.ask("POST", "/v2/models/pair/infer", request)
        assert answer.headers["content-type"] == "application/json"
        body = answer.json
        jobs.add(body["parameters"].pop("job_id"))
        assert body == {
            "model_name": "pair", "model_version": "2", "id": request["id"], "parameters": {},
            "outputs": [
                {"name": "total", "datatype": "FP32", "shape": [1, 2], "data": [2.5, 4.0]},
                {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["ZWÖLF"]},
            ],
        }  # fmt: skip
    assert len(jobs) == 2
    refused = server.ask("POST", "/v2/models/pair/infer", {})
    assert (refused.status, refused.headers["content-type"]) == (400, "application/json")
    assert "inputs" in refused.json["error"]


def test_a_body_without_json_is_the_only_input(server: RunningApi) -> None:
    numbers = np.array([[1.5], [2]], np.float32)
    raw = {"Inference-Header-Content-Length": "0"}
    answer = server.ask("POST", "/v2/models/numbers/infer", numbers.tobytes(), raw)
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(answer.body[length:], np.float32).tolist() == [3, 4]


def test_the_example_does_what_it_says(server: RunningApi, stack: WorkerStack) -> None:
    takes, gives = {"dtype": "float32", "shape": [64]}, {"dtype": "float32", "shape": [10]}
    stack.model("NearestDigit", "digits", inputs={"input": takes}, outputs={"scores": gives})
    stack.client.models.set_alias("digits", "champion", 1)
    address, root = f"127.0.0.1:{server.port}", Path(__file__).parents[3]
    command = [sys.executable, str(root / "examples" / "quickstart_tritonclient.py"), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    first, shows, every, right = done.stdout.splitlines()
    assert (shows, right, done.returncode) == ("the first image shows a 0", "1626 of 1797 are right", 0), done.stderr
    rows = [stack.client.job(line.split()[-1]).info().progress.total for line in (first, every)]
    assert rows == [1, 1797]
