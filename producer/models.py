"""`client.models`: registering artifacts, finding versions, moving aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from msgspec.structs import asdict

from forebay.contract.drift.comparison import Drift
from forebay.contract.errors import InvalidInput, NoQueueFits
from forebay.contract.job import JobKind
from forebay.contract.model import TEXT_GENERATION, Model, ModelVersion, parse_model
from forebay.contract.queues import Resources, route
from forebay.contract.references import check_alias, check_name
from forebay.contract.requests.fields import check
from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.contract.requests.versions.compress import INT8_WEIGHTS
from forebay.contract.runtimes.endpoints import REMOTE
from forebay.contract.wire import codec
from forebay.contract.wire.messages import JobMessage, TaskArgs
from forebay.datasets import require_pyarrow
from forebay.producer.artifacts import (
    adaptable,
    artifact_signature,
    check_options,
    check_served,
    checked_example,
    local_artifact,
    runtime_of,
    storable,
    store,
)
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import BenchmarkJob, VersionJob
from forebay.producer.objects import Described
from forebay.producer.options import (
    BenchmarkOptions,
    CompressOptions,
    ConvertOptions,
    ServingOptions,
    SubmitOptions,
    check_metadata,
    split_options,
)
from forebay.producer.requests import benchmark, compress, convert
from forebay.producer.session import Session
from forebay.producer.submit import Submitter
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.storage.models.drift import DAY, DriftStore
from forebay.storage.training.records import Evaluation

Versions = list[ModelVersion]
Names = list[str]
Evaluations = list[Evaluation]
Benchmarks = list[Benchmark]

NO_REFERENCE = "a data set is made one by `forebay models reference`, and a trained version has one"


class Models:
    """The registry as a client sees it."""

    def __init__(self, session: Session, submitted_by: str | None = None) -> None:
        self._session = session
        self._registry = session.registry
        self._submitter = Submitter(session, submitted_by)

    def register(
        self,
        name: str,
        artifact: Any = None,
        *,
        example: Any = None,
        runtime: str | None = None,
        inputs: Described | None = None,
        outputs: Described | None = None,
        max_batch_size: int = 32,
        batch_wait_timeout_s: float = 0.0,
        max_batch_tokens: int | None = None,
        dtype: Literal["bfloat16", "float16"] | None = None,
        compile: bool = False,
        timeout_s: float | None = None,
        resources: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
    ) -> ModelVersion:
        """Register an artifact as the next version of `name`, point `alias` at it if given, and give that version.

        `artifact` is the path or URL of a .pt2, .onnx or .safetensors file, or of a folder: Hugging Face's, or of an .onnx file
        with its data files; None for an `openai` model, and a `python` one without any. Or it is a torch.nn.Module in eval mode
        with an `example`, exported here with a free batch dimension, those that `inputs` declares as -1 free too, and compared;
        an ExportedProgram; or a state dict, for `safetensors`. docs/how-to/bring-your-model.md has all.
        `runtime` is found by the artifact unless given. `inputs` and `outputs` describe one sample, such as
        `{"x": {"dtype": "float32", "shape": [64]}}`; a .pt2 has its own, otherwise they are unchecked when left out. An output
        may name its `classes`: `{"scores": {"classes": ["cat", "dog"]}}`, beside dtype and shape where the artifact has none.
        `example` is one sample as `predict` takes it, or a dict of them by input. It is kept with the version, and workers warm
        up with it in the place of zeros; a version that fails on it is not served. `options` go to the runtime:
        `{"factory": "package.module:make"}` for safetensors, `{"class": "package.module:Class"}` for python,
        `{"base_url": "http://gpu7:8000/v1", "model": "Qwen3"}` for openai: see contract.runtimes.endpoints.RemoteOptions.
        `max_batch_tokens` bounds a batch by its padded length in tokens beside `max_batch_size` rows, `dtype` computes under
        autocast, and `compile` compiles the forward pass at load. `timeout_s` bounds one forward pass (and one call of preprocess
        or postprocess): a child that takes longer is killed, which counts as an attempt for its jobs. Of openai it bounds one
        request.

        Raises InvalidInput or ModelRefused before anything is stored.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        with local_artifact(artifact, example, inputs, runtime) as path:
            runtime = runtime_of(path, runtime)
            checked_options = check_metadata(options, "options")
            check_options(runtime, checked_options, self._session.settings.allowed_endpoints)
            if runtime == TEXT_GENERATION and "base" in checked_options:
                checked_options = checked_options | {"base": adaptable(checked_options["base"], self.get).ref}
            signature = artifact_signature(runtime, path, checked_options, inputs, outputs)
            serving = check(
                {
                    "max_batch_size": max_batch_size, "batch_wait_timeout_s": batch_wait_timeout_s,
                    "max_batch_tokens": max_batch_tokens, "dtype": dtype, "compile": compile, "timeout_s": timeout_s,
                },
                ServingOptions,
            )  # fmt: skip
            if runtime == REMOTE and (serving.dtype or serving.compile or serving.max_batch_tokens):
                raise InvalidInput(
                    "dtype, compile and max_batch_tokens are for the server that runs the model: leave them out"
                )
            draft = ModelVersion(
                name, 0, runtime, "", "none", 0, signature, resources=Resources.parse(resources).as_dict(),
                options=checked_options, metadata=check_metadata(metadata), **asdict(serving),
            )  # fmt: skip
            if runtime == "onnx" and (serving.dtype or serving.compile):
                raise InvalidInput(
                    "dtype and compile are for models that torch runs: an ONNX file says what it computes in"
                )
            with suppress(NoQueueFits):  # declared later, perhaps: a submit says so
                check_served(runtime, self._queue(draft), self._session.live_workers())
            row = checked_example(draft, path, example)
            with storable(runtime, path) as stored:
                ref, form, size = store(self._session.blobs, stored)
            draft = replace(draft, artifact=ref, artifact_form=form, artifact_bytes=size)
            return self._registry.register(draft, row, alias)

    def get(self, ref: Model) -> ModelVersion:
        """The version that `name`, `name/3` or `name@alias` means now; ModelNotFound says what there is instead."""
        return self._registry.get(parse_model(ref))

    def example(self, ref: Model) -> Any:
        """The sample that a version was registered with, as its signature has it; None when it has none."""
        model = self._registry.resolve(parse_model(ref))
        data = self._registry.example(model.name, model.version)
        return None if data is None else codec.decode(data)

    def list(self, name: str | None = None) -> Versions:
        """All versions, or those of one name, oldest first."""
        return self._registry.versions(None if name is None else check_name(name))

    def search(
        self,
        *,
        inputs: Described | None = None,
        outputs: Described | None = None,
        resources: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Versions:
        """The versions that have these inputs and outputs, fit into these resources, and carry this metadata."""
        return self._registry.search(
            inputs=inputs, outputs=outputs, resources=resources, metadata=check_metadata(metadata)
        )

    def evaluations(self, ref: Model, limit: int = 100) -> Evaluations:
        """What evaluations of a version found, the newest first."""
        model = self._registry.get(parse_model(ref))
        return self._session.training.evaluations(model.name, model.version, limit)

    def reference(
        self,
        ref: Model,
        dataset: str | Path | Sequence[str | Path],
        *,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        format: str | None = None,
        **submit_options: Unpack[SubmitOptions],
    ) -> Job:
        """Have a worker run rows of a data set, and hold what the version serves from then on against them: see `drift`.

        A trained version has a reference already. `dataset` and `columns` are what `batch` takes. Up to 20,000 rows count, of
        more a sample. `result()` tells of how many rows and columns it is made, and which fields are not watched.
        """
        require_pyarrow()
        from forebay.producer.requests import drift

        resolved = self._submitter.resolve(JobKind.REFERENCE, ref, submit_options)
        learnt_from = self._session.training.data_of(resolved.model)
        request = drift.make_request(resolved.model, dataset, columns=columns, format=format, learnt_from=learnt_from)
        return self._submitter.submit_request(Job, resolved, request)

    def drift(self, ref: Model, hours: int = DAY) -> Drift:
        """How far what a version has served in the last `hours` is from what its reference held, by column; InvalidInput when
        it has no reference.
        """  # fmt: skip
        model = self._registry.get(parse_model(ref))
        found = DriftStore(self._session.ledger).drift((model.name, model.version), hours)
        if found is None:
            raise InvalidInput(f"{model.ref} has no reference: {NO_REFERENCE}")
        return found

    def set_alias(self, name: str, alias: str, version: int) -> ModelVersion:
        """Point `name@alias` at a version, at once for every job submitted from now on."""
        return self._registry.set_alias(name, alias, version)

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove `name@alias`."""
        self._registry.drop_alias(name, alias)

    def delete(self, ref: Model) -> ModelVersion:
        """Delete one version, named by number or alias; InvalidInput while an alias points at it or its jobs wait or run."""
        return self._registry.delete(parse_model(ref))

    def warm(self, ref: Model) -> Names:
        """Ask the workers that serve the version's queue to load it now; their names, [] when there is none.

        Each takes one of as many messages as there are workers, between its batches: a busy one may leave its to another.
        """
        model = self._registry.get(parse_model(ref))
        queue = self._queue(model)
        workers = [worker.name for worker in self._session.live_workers() if queue in worker.queues]
        # Without ids there is nothing to run: the model is only loaded.
        message = JobMessage(queue, 0, TaskArgs(model.name, model.version, [], exclusive=False))
        self._session.dispatcher.send([message] * len(workers))
        return workers

    def benchmark(
        self,
        ref: Model,
        *,
        dataset: str | Path | Sequence[str | Path] | None = None,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        format: str | None = None,
        **options: Unpack[BenchmarkOptions],
    ) -> BenchmarkJob:
        """Measure batches of 1, 2, 4, … rows of a version on a worker of its queue; `result()` gives a Benchmark.

        `dataset` has rows to run, and `columns` and `format` are what `batch` takes; without it rows are made after the version's
        example, or from its signature. At most `max_rows` rows (1024) are in a batch, it takes about `seconds` (60), and the best
        size takes at most `max_latency_ms`. With `threads` (on a CPU) and `dtypes` ("bfloat16", "float16") more curves are
        measured. With `apply` the best size becomes the version's `max_batch_size`. Raises what `evaluate` raises.
        """
        submit, asked = split_options(options)
        resolved = self._submitter.resolve(JobKind.BENCHMARK, ref, submit)
        request = benchmark.make_request(self._session, resolved.model, asked, dataset, columns, format)
        return self._submitter.submit_request(BenchmarkJob, resolved, request)

    def compress(
        self,
        ref: Model,
        method: str = INT8_WEIGHTS,
        *,
        dataset: str | Path | Sequence[str | Path] | None = None,
        **options: Unpack[CompressOptions],
    ) -> VersionJob:
        """Make a version of which the weights take less room; `result()` gives it, and its lineage has what was measured.

        `method` is int8-weights, int8-dynamic (onnx only), bfloat16 or prune:SHARE. With a `dataset` and its `target` both are
        evaluated, and the job fails, with the figures, when the metric is worse by more than `max_loss` (0.01). `alias` moves to
        the new version. Raises what `evaluate` raises.
        """
        submit, asked = split_options(options)
        resolved = self._submitter.resolve(JobKind.COMPRESS, ref, submit)
        request = compress.make_request(self._session, resolved.model, {"method": method, **asked}, dataset)
        return self._submitter.submit_request(VersionJob, resolved, request)

    def benchmarks(self, ref: Model, limit: int = 20) -> Benchmarks:
        """What benchmarks of a version found, the newest first."""
        model = self._registry.get(parse_model(ref))
        return BenchmarkStore(self._session.ledger).of_version(model.name, model.version, limit)

    def convert(
        self,
        ref: Model,
        to: Literal["onnx", "torch-export"] = "onnx",
        *,
        dataset: str | Path | Sequence[str | Path] | None = None,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        format: str | None = None,
        **options: Unpack[ConvertOptions],
    ) -> VersionJob:
        """Make the next version of a name from one of its versions, in another form; `result()` gives it.

        The same `rows` (100) go through both: those of `dataset`, read as by `benchmark`, or made ones. The job fails, and
        registers nothing, if outputs are more than `tolerance` (1e-4) apart: relative to the largest value of an output if that
        is above 1, else absolutely; of an output that is below 1 in all rows, relative to the largest of these. What was found
        is in the version's metadata, below "lineage". `alias` is pointed at the version, unless it has been moved meanwhile or
        callers would meet another form of result.
        Raises InvalidInput, with the reason, for one that cannot be converted, and what `benchmark` raises.
        """
        submit, asked = split_options(options)
        resolved = self._submitter.resolve(JobKind.CONVERT, ref, submit)
        request = convert.make_request(self._session, resolved.model, {"to": to, **asked}, dataset, columns, format)
        return self._submitter.submit_request(VersionJob, resolved, request)

    def _queue(self, model: ModelVersion) -> str:
        queues = self._session.settings.queues
        return route(queues, Resources.parse(model.resources), JobKind.PREDICT, remote=model.remote)
