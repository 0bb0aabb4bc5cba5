"""Conversions from a client to a worker's runner, on a real ledger: what is refused, and that what comes out gives the same."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from forebay import Client
from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.producer.handles.job import Job
from forebay.storage.ledger.connection import Ledger
from forebay.worker.child.process import make_context
from forebay.worker.child.runner import Runner
from forebay.worker.shared_page import SharedPage
from support.networks import Net


@dataclass
class Place:
    """A client, and a runner that runs what it is told to."""

    client: Client
    runner: Runner

    def run(self, job: Job) -> Any:
        self.runner.run([job.id])
        return job.result(5)


@pytest.fixture
def place(tmp_path: Path, sqlite_ledger: Ledger, sqlite_database: str, broker: str) -> Iterator[Place]:
    told = {"HOME": str(tmp_path), "DATABASE": sqlite_database, "BROKER": broker, "WORKER_NAME": "w"}
    told["ALLOWED_PYTHON_MODELS"] = "support.*"
    settings = Settings.load({f"FOREBAY_{name}": value for name, value in told.items()})
    context = make_context(settings, SharedPage())
    with closing(context.ledger), Client(settings) as client:
        yield Place(client, Runner(context))


def registered(place: Place, folder: Path, **more: Any) -> ModelVersion:
    save_file(Net().state_dict(), folder / "net.safetensors")
    return place.client.models.register(
        "net", folder / "net.safetensors", options={"factory": "support.networks:Net"},
        inputs={"x": {"dtype": "float32", "shape": [4]}}, outputs={"y": {"dtype": "float32", "shape": [3]}}, **more,
    )  # fmt: skip


def test_a_module_becomes_onnx_and_a_program_and_a_program_onnx(place: Place, tmp_path: Path) -> None:
    models, x = place.client.models, np.arange(4, dtype=np.float32)
    parent = registered(place, tmp_path, example=x, metadata={"team": "a"}, alias="champion", max_batch_size=8)
    program = place.run(models.convert(parent, to="torch-export"))
    assert (program.ref, program.runtime, program.signature) == ("net/2", "torch-export", parent.signature)
    assert program.aliases == ()
    of_module = place.run(models.convert(parent, alias="champion"))
    of_program = place.run(models.convert(program, rows=10))
    expected = place.run(place.client.predict(parent, x))
    for made, source in ((program, parent), (of_module, parent), (of_program, program)):
        np.testing.assert_allclose(place.run(place.client.predict(made, x)), expected, atol=1e-5)
        lineage = made.metadata["lineage"]
        assert (lineage["parent"], lineage["made_by"], lineage["to"]) == (source.ref, "convert", made.runtime)
        assert lineage["difference"]["absolute"] < 1e-5
        assert lineage["difference"]["same_argmax"] == 1
        assert made.metadata["team"] == "a"
        assert made.max_batch_size == 8
        assert made.has_example
    assert (of_program.metadata["lineage"]["difference"]["rows"], of_program.runtime) == (11, "onnx")
    assert models.get("net@champion") == of_module
