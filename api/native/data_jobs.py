"""Jobs over data sets: batches, trainings, tunes, evaluations. Their files lie where the operator allows it, or were uploaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict
from starlette.requests import Request

from forebay.api.context import api_of, check_scope, client_of
from forebay.api.native.bodies import Metadata, Options, Ref
from forebay.api.places import find_place
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.training import TrainRequest
from forebay.contract.requests.tuning import TuneRequest
from forebay.datasets.formats.source import guess_format
from forebay.producer.async_client import AsyncJob
from forebay.producer.options import PredictOptions
from forebay.storage.files import FileRecord

WHERE = "below what the operator allows by the setting api_paths"
Name = Annotated[str, Meta(min_length=1)]
Dataset = Annotated[
    Name | Annotated[list[Name], Meta(min_length=1)],
    Meta(description=f"paths, globs, folders or URLs {WHERE}, or ids of uploaded files"),
]
Names = str | list[str]
Columns = Annotated[
    str | list[str] | dict[str, Names],
    Meta(description="what goes into the model: a column, several that make a vector, or {input: column}"),
]


class SubmitBatch(Options, kw_only=True, forbid_unknown_fields=True):
    """A model over a data set; docs/how-to/run-a-batch.md says what each field is. The result is the manifest of the output."""

    kind: Literal["batch"]
    model: Ref
    input: Dataset
    output: Annotated[str, Meta(min_length=1, description=f"a folder or URL {WHERE}")]
    columns: Columns | UnsetType = UNSET
    keep: Names | UnsetType = UNSET
    format: str | UnsetType = UNSET
    output_format: Literal["parquet", "jsonl", "csv"] | UnsetType = UNSET
    shard_rows: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    max_errors: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    max_error_share: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    explain: (
        Annotated[str | dict[str, Any], Meta(description="write explanations: a method, or the fields of kind explain")]
        | UnsetType
    ) = UNSET
    metadata: Metadata | UnsetType = UNSET


class SubmitEvaluate(Options, kw_only=True, forbid_unknown_fields=True):
    """A version against what is true of a data set; docs/how-to/evaluate.md has the fields. The result is the evaluation."""

    kind: Literal["evaluate"]
    model: Ref
    dataset: Dataset
    target: str
    columns: Columns | UnsetType = UNSET
    output: Annotated[str, Meta(description="the model's output that is held against the target")] | UnsetType = UNSET
    format: str | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class SubmitReference(Options, kw_only=True, forbid_unknown_fields=True):
    """Hold what a version serves from then on against a data set, for drift. Needs the scope `models` too."""

    kind: Literal["reference"]
    model: Ref
    dataset: Dataset
    columns: Columns | UnsetType = UNSET
    format: str | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


def _asked(kind: type[msgspec.Struct], *others: str) -> list[Any]:
    """The fields of a request but these, of which none need be given that has a default."""
    return [
        (field.name, field.type, *(() if field.required else (UNSET,)))
        for field in msgspec.structs.fields(kind)
        if field.name not in others
    ]


_TRAINED_BY = _asked(TrainRequest, "files", "format", "metadata")
SubmitTrain = msgspec.defstruct(
    "SubmitTrain",
    [
        ("kind", Literal["train"]), ("model", Ref), ("dataset", Dataset), ("format", str, UNSET),
        ("metadata", Metadata, UNSET), *_TRAINED_BY,
    ],
    bases=(Options,), kw_only=True, forbid_unknown_fields=True,
    namespace={
        "__doc__": "The next version of a name, learnt from a data set; docs/how-to/train.md has the fields. The result is "
        "the version. Needs the scope `models` too."
    },
)  # fmt: skip


SubmitTune = msgspec.defstruct(
    "SubmitTune",
    [
        ("kind", Literal["tune"]), ("model", Ref), ("dataset", Dataset), ("format", str, UNSET),
        ("metadata", Metadata, UNSET), *_TRAINED_BY, *_asked(TuneRequest, "train"),
    ],
    bases=(Options,), kw_only=True, forbid_unknown_fields=True,
    namespace={
        "__doc__": "The next version of a name, with the parameters that are found best; docs/how-to/tune.md has the "
        "fields. The result is the version. Needs the scope `models` too."
    },
)  # fmt: skip


class SubmitConvert(Options, kw_only=True, forbid_unknown_fields=True):
    """A version in another form; docs/how-to/convert-and-compress.md has the fields. The result is the version, and how
    far its outputs are apart from the original's. Needs the scope `models` too.
    """  # fmt: skip

    kind: Literal["convert"]
    model: Ref
    to: Literal["onnx", "torch-export"] = "onnx"
    tolerance: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    rows: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType = UNSET
    alias: str | UnsetType = UNSET
    dataset: Dataset | UnsetType = UNSET
    columns: Columns | UnsetType = UNSET
    format: str | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class SubmitBenchmark(Options, kw_only=True, forbid_unknown_fields=True):
    """How fast a version is by the rows of a batch; docs/how-to/convert-and-compress.md. Needs the scope `models`
    where it is to apply it."""

    kind: Literal["benchmark"]
    model: Ref
    dataset: Dataset | UnsetType = UNSET
    columns: Columns | UnsetType = UNSET
    format: str | UnsetType = UNSET
    max_rows: int | UnsetType = UNSET
    seconds: float | UnsetType = UNSET
    max_latency_ms: float | UnsetType = UNSET
    threads: list[int] | UnsetType = UNSET
    dtypes: list[str] | UnsetType = UNSET
    apply: bool | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class SubmitCompress(Options, kw_only=True, forbid_unknown_fields=True):
    """A version with smaller weights; see docs/how-to/convert-and-compress.md. The result is the version. Needs the
    scope `models` too."""

    kind: Literal["compress"]
    model: Ref
    method: str | UnsetType = UNSET
    dataset: Dataset | UnsetType = UNSET
    target: str | UnsetType = UNSET
    columns: Columns | UnsetType = UNSET
    format: str | UnsetType = UNSET
    max_loss: float | UnsetType = UNSET
    alias: str | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


async def submit_data_job(request: Request, body: Any, options: PredictOptions) -> AsyncJob:
    """The job that one of these bodies asks for, durable."""
    client = client_of(request)
    given: dict[str, Any] = {n: v for n, v in asdict(body).items() if v is not UNSET and n not in ("kind", "model")}
    field = "input" if body.kind == "batch" else "dataset"
    paths = await _paths(request, given, field) if field in given else {}
    given |= ({field: list(paths.values())} if paths else {}) | options
    try:
        if body.kind == "batch":
            given["output"] = await find_place(request, body.output, "output")
            if isinstance(given["output"], FileRecord):
                raise InvalidInput("a batch writes a folder, not an uploaded file - at `$.output`")
            return await client.batch(body.model, **given)
        if body.kind != "evaluate" and (body.kind != "benchmark" or body.apply is True):
            check_scope(request, "models")
        models = client.models
        submits: dict[str, Callable[..., Awaitable[AsyncJob]]] = {
            "train": client.train, "tune": client.tune, "evaluate": client.evaluate, "reference": models.reference,
            "convert": models.convert, "benchmark": models.benchmark, "compress": models.compress,
        }  # fmt: skip
        return await submits[body.kind](body.model, **given)
    except InvalidInput as error:
        text = str(error)
        for name, path in paths.items():  # where an upload lies is the server's own business
            text = text.replace(path, name).replace(shown(path)[1:-1], name)
        raise type(error)(text) from error


async def _paths(request: Request, given: dict[str, Any], field: str) -> dict[str, str]:
    """What is to be read, by the names that the client gave; an upload's format is told by its name."""
    names = [given[field]] if isinstance(given[field], str) else given[field]
    paths, formats = dict[str, str](), set[str]()
    for name in names:
        place = await find_place(request, name, field)
        if isinstance(place, FileRecord):
            if place.filename.lower().endswith(".gz"):
                raise InvalidInput(
                    f"the file {shown(place.filename)} is compressed: upload it as it is - at `$.{field}`"
                )
            if "format" not in given:
                formats.add(guess_format(place.filename))
            place = api_of(request).client.sync.session.blobs.location(place.blob)
        paths[name] = place
    if len(formats) > 1:
        raise InvalidInput(f"the input mixes formats: {', '.join(sorted(formats))} - at `$.{field}`")
    if formats:
        given["format"] = formats.pop()
    return paths
