"""What a user asks of benchmarks and compressions: refused at submit, or kept as it was meant. Nothing runs here."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay import Client, InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.versions.benchmark import Benchmark, BenchmarkRequest, Curve, Point
from forebay.contract.requests.versions.compress import CompressRequest
from forebay.contract.wire import codec
from forebay.storage.models.benchmarks import BenchmarkStore
from support.commands import Shell


@pytest.fixture
def client(shell: Shell) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def data(shell: Shell) -> str:
    pq.write_table(
        pa.table({"x": np.arange(10.0), "y": np.arange(10), "label": ["a", "b"] * 5}), shell.home / "data.parquet"
    )
    return str(shell.home / "data.parquet")


def of_runtime(client: Client, runtime: str, **more: Any) -> str:
    """A version of that runtime, which nobody loads here."""
    from dataclasses import replace

    model = client.models.get("pair")
    return client.session.registry.register(replace(model, runtime=runtime, **more)).ref


def asked(shell: Shell, id: str, kind: type) -> Any:
    [job] = shell.store.claim([id], "w@host", 30)
    return decode(job.input or b"", kind)


def test_a_benchmark_is_asked_of_one_version_and_reads_the_rows_it_is_given(
    shell: Shell, client: Client, data: str
) -> None:
    shell.register("pair")
    id = shell.out(
        "models", "benchmark", "pair", "--data", data, "--columns", "x,y", "--max-rows", "64", "--seconds", "5", "--apply",
        "--no-wait",
    ).strip()  # fmt: skip
    info = client.job(id).info()
    assert (info.kind, info.ref, info.queue, info.priority) == (JobKind.BENCHMARK, "pair/1", "cpu", 7)
    request = asked(shell, id, BenchmarkRequest)
    assert (request.max_rows, request.seconds, request.apply) == (64, 5.0, True)
    assert request.data.columns == {"x": ("x", "y")}


def test_a_benchmark_is_shown_by_its_job_and_with_its_version(shell: Shell, client: Client) -> None:
    shell.register("pair")
    job = client.models.benchmark("pair")
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    points = (Point(1, 2.0, 2.5, 500.0), Point(2, 2.5, 3.0, 800.0))
    found = Benchmark(
        job.id, "pair", 1, "cpu", "random values", (Curve(2, None, points, 2, "larger batches are no faster"),)
    )
    store = BenchmarkStore(shell.store.ledger)
    store.finish(claimed, found, codec.encode({"id": job.id} | decode(encode(found), dict)))
    assert job.result(120).best == 2
    text = shell.out("models", "show", "pair")
    for word in ("BENCHMARK", "cpu", "800"):
        assert word in text
    assert shell.json("models", "show", "pair", "--json")["benchmarks"][0]["curves"][0]["best"] == 2
    assert "larger batches are no faster" in shell.out("jobs", "show", job.id)
    client.models.delete("pair/1")
    assert store.of_version("pair", 1) == []


def test_what_cannot_be_measured_or_compressed_is_refused_with_what_can(
    shell: Shell, client: Client, data: str
) -> None:
    shell.register("pair")
    refs = {runtime: of_runtime(client, runtime) for runtime in ("torch-export", "onnx", "openai")}
    adapter = of_runtime(client, "text-generation", options={"base": "pair/1"})
    measure, compress = client.models.benchmark, client.models.compress
    refusals: list[tuple[Any, str]] = [
        (lambda: measure(refs["openai"], queue="remote"), "run by another server"),
        (lambda: measure(refs["onnx"], threads=[2]), "threads and dtypes are for models that torch runs"),
        (lambda: measure("pair/1", max_rows=0), "max_rows: expected a whole number, from 1 to 65,536, got 0"),
        (lambda: measure("pair/1", dataset="none.csv"), "no such file"),
        (lambda: compress("pair/1"), "has runtime 'python', which is not compressed"),
        (lambda: compress(adapter), "is an adapter of pair/1, and small already: compress that one"),
        (
            lambda: compress(refs["onnx"], "bfloat16"),
            "for runtime 'onnx' there are int8-weights, int8-dynamic, prune:0.5",
        ),
        (lambda: compress(refs["torch-export"], "int8-dynamic"), "what that makes: forebay models compress "),
        (lambda: compress(refs["torch-export"], "prune"), "there are int8-weights, bfloat16, prune:0.5"),
        (lambda: compress(refs["torch-export"], "prune:1.5"), "a number between 0 and 1"),
        (lambda: compress(refs["torch-export"], "int8-weights:3"), "there are int8-weights, bfloat16, prune:0.5"),
        (lambda: compress(refs["onnx"], max_loss=0.1), "max_loss is of a metric: give a dataset and its target"),
        (lambda: compress(refs["onnx"], dataset=data), "give a dataset and its target, or neither"),
        (
            lambda: compress(refs["onnx"], dataset=data, target="digit", columns="x"),
            "target: there is no column 'digit'",
        ),
        (lambda: compress(refs["onnx"], alias="a b"), "alias"),
    ]
    for submit, words in refusals:
        with pytest.raises(InvalidInput) as refusal:
            submit()
        assert words in str(refusal.value)
    assert client.jobs() == []


def test_a_compression_keeps_what_both_versions_are_to_be_evaluated_on(shell: Shell, client: Client, data: str) -> None:
    shell.register("pair")
    ref = of_runtime(client, "torch-export")
    id = shell.out(
        "models", "compress", ref, "--method", "prune:0.25", "--data", data, "--target", "label", "--max-loss", "0.5", "--alias",
        "small", "--columns", "x,y", "--no-wait",
    ).strip()  # fmt: skip
    request = asked(shell, id, CompressRequest)
    assert (request.method, request.max_loss, request.alias) == ("prune:0.25", 0.5, "small")
    assert request.evaluation is not None
    assert request.evaluation.target == "label"
