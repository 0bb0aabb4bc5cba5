"""`forebay models`: registering artifacts, finding versions, moving aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.queues import format_bytes
from forebay.contract.references import shown
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.producer.cli.commands import ResourceOptions, command, request_options
from forebay.producer.cli.inputs import read_inputs
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import (
    Connect,
    Metadata,
    Model,
    Yes,
    argument,
    confirm,
    json_option,
    option,
    pairs,
)
from forebay.producer.cli.output import (
    age,
    json_data,
    moment,
    pairs_text,
    print_fields,
    print_json,
    print_line,
    print_note,
    print_table,
)
from forebay.producer.cli.views.benchmarks import print_benchmarks
from forebay.producer.cli.views.training import print_evaluations, several, version_fields
from forebay.producer.inputs import InputsFor
from forebay.producer.options import ServingOptions
from forebay.storage.health import Failures, failures_by_model

EXAMPLE_HELP = (
    "A sample as predict takes INPUT, or @file (.npy, .npz, .json) with one: workers warm up with it. "
    "A version that fails on it is not served."
)
FailuresByModel = Mapping[tuple[str, int], Sequence[Failures]]

Name = Annotated[str, argument("NAME", "The model's name.")]
InputsOption = Annotated[str | None, option("JSON", "One sample's inputs, as JSON or @file.", "--inputs")]
OutputsOption = Annotated[str | None, option("JSON", "One sample's outputs, as JSON or @file.", "--outputs")]


@command(
    models_app,
    "forebay models register digits digits.pt2 --gpu-memory 2GiB",
    "forebay models register minilm ./all-MiniLM-L6-v2 --alias champion --example 'How warm is the sea?'",
    "forebay models register double --runtime python --option class=shop.models:Double",
    "forebay models register qwen --runtime openai --option base_url=http://gpu7:8000/v1 --option model=Qwen3",
)
@request_options("serving", ServingOptions, without=("timeout_s",))
@request_options("resources", ResourceOptions)
def register(
    connect: Connect,
    as_json: bool,
    name: Name,
    serving: dict[str, Any],
    resources: dict[str, Any],
    artifact: Annotated[
        str | None,
        argument("ARTIFACT", "A .pt2, .onnx or .safetensors file, or a Hugging Face folder; a path or URL."),
    ] = None,
    example: Annotated[str | None, option("INPUT", EXAMPLE_HELP, default="zeros are made up")] = None,
    runtime: Annotated[str | None, option("RUNTIME", "How it is run.", default="the artifact tells")] = None,
    inputs: InputsOption = None,
    outputs: OutputsOption = None,
    timeout: Annotated[float | None, option("SECONDS", "Kill a forward pass that takes longer.")] = None,
    options: Annotated[
        list[str] | None,
        option("KEY=VALUE", "For the runtime: factory=package.module:make. May be repeated.", "--option"),
    ] = None,
    metadata: Metadata = None,
    alias: Annotated[str | None, option("ALIAS", "Point this alias at the new version.")] = None,
) -> None:
    """Register an artifact as the next version of a model."""
    described = json_option(inputs, "--inputs"), json_option(outputs, "--outputs")
    model = connect().models.register(
        name, artifact, runtime=runtime, inputs=described[0], outputs=described[1],
        example=None if example is None else InputsFor(lambda model: _example(example, model.signature)),
        timeout_s=timeout, resources=resources, options=pairs(options, "--option"), metadata=pairs(metadata, "--metadata"),
        alias=alias, **serving,
    )  # fmt: skip
    print_json(_as_json(model)) if as_json else _show(model)


def _example(text: str, signature: Signature) -> Any:
    file = Path(text[1:]) if text.startswith("@") else None
    inputs = read_inputs(signature, None if file else text, file, each=False, batched=False, what="--example")
    if inputs.many:
        raise InvalidInput(f"--example {shown(text)}: a file of many rows; give .npy, .npz or .json with one sample")
    return inputs.values[0]


@command(models_app, "forebay models list", "forebay models list digits --json", name="list")
def list_(
    connect: Connect, as_json: bool, name: Annotated[str | None, argument("NAME", "Only this model's versions.")] = None
) -> None:
    """List the registered versions, oldest first."""
    client = connect()
    failures = failures_by_model(client.session.ledger)
    _print_models(client.models.list(name), as_json, "no model is registered yet: forebay models register", failures)


@command(models_app, "forebay models show digits@champion")
def show(connect: Connect, as_json: bool, ref: Model) -> None:
    """Show one version: its signature, resources and aliases, its lineage and its evaluations."""
    client = connect()
    model = client.models.get(ref)
    evaluations = client.models.evaluations(model.ref)
    benchmarks = client.models.benchmarks(model.ref)
    failures = failures_by_model(client.session.ledger).get((model.name, model.version), ())
    if as_json:
        print_json(_as_json(model) | {"evaluations": evaluations, "benchmarks": benchmarks, "failures": failures})
    else:
        _show(model)
        print_evaluations(evaluations)
        print_benchmarks(benchmarks)
        _print_failures(failures)


@command(models_app, "forebay models alias digits champion 2", "forebay models alias digits champion --delete")
def alias(
    connect: Connect,
    as_json: bool,
    name: Name,
    alias: Annotated[str, argument("ALIAS", "Such as champion.")],
    version: Annotated[int | None, argument("VERSION", "A version's number.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias.")] = False,
) -> None:
    """Point an alias at a version, for every job submitted from now on."""
    if delete == (version is not None):
        raise InvalidInput("give the VERSION to point the alias at, or --delete" + (", not both" if delete else ""))
    if version is None:
        connect().models.drop_alias(name, alias)
    else:
        connect().models.set_alias(name, alias, version)
    if as_json:
        print_json({"name": name, "alias": alias, "version": version})
    else:
        print_line(f"{name}@{alias} is removed" if version is None else f"{name}@{alias} is {name}/{version}")


@command(
    models_app,
    """forebay models search --inputs '{"text": {"dtype": "str"}}'""",
    "forebay models search --metadata owner=vision",
)
def search(
    connect: Connect,
    as_json: bool,
    inputs: InputsOption = None,
    outputs: OutputsOption = None,
    resources: Annotated[str | None, option("JSON", 'Only those that fit: {"gpu": 1, "gpu_memory": "24GiB"}.')] = None,
    metadata: Metadata = None,
) -> None:
    """Find the versions with given inputs, outputs, resources or metadata."""
    wanted = {"inputs": inputs, "outputs": outputs, "resources": resources}
    parsed = {name: json_option(text, f"--{name}") for name, text in wanted.items()}
    found = connect().models.search(**parsed, metadata=pairs(metadata, "--metadata"))
    _print_models(found, as_json, "no version matches")


@command(models_app, "forebay models warm digits@champion")
def warm(connect: Connect, as_json: bool, ref: Model) -> None:
    """Have the workers load a version now, so that its first job need not wait for it."""
    asked = connect().models.warm(ref)
    if as_json:
        print_json({"workers": asked})
    else:
        print_line(
            f"asked {', '.join(asked)} to load {ref}"
            if asked
            else "no worker serves its queue now; it loads with its first job"
        )


@command(models_app, "forebay models delete digits/1", "forebay models delete digits/1 --yes")
def delete(connect: Connect, as_json: bool, ref: Model, yes: Yes = False) -> None:
    """Delete one version that no alias points at and no job needs."""
    models = connect().models
    model = models.get(ref)
    question = f"Delete {model.ref} ({model.runtime}, {_size(model) or 'no artifact'}) for good?"
    if not confirm(question, f"deleting {model.ref} cannot be undone", yes):
        print_note(f"{model.ref} is kept")
        raise typer.Exit(1)
    models.delete(ref)
    print_json(_as_json(model)) if as_json else print_line(f"{model.ref} is deleted")


def _as_json(model: ModelVersion) -> dict[str, Any]:
    return {"ref": model.ref, **json_data(model)}


def _print_models(
    models: Sequence[ModelVersion], as_json: bool, none: str, failures: FailuresByModel | None = None
) -> None:
    """With why jobs of the last day failed, where some did."""
    failed = {m.ref: (failures or {}).get((m.name, m.version), ()) for m in models}
    if as_json:
        print_json([_as_json(m) | ({"failures": failed[m.ref]} if failed[m.ref] else {}) for m in models])
    elif not models:
        print_note(none)
    else:
        rows = [
            (
                m.ref, _aliases(m), m.runtime, _size(m), m.max_batch_size, _fields(m.signature.inputs),
                age(m.created_at), ", ".join(f"{each.count:,} {each.type}" for each in failed[m.ref]),
            )
            for m in models
        ]  # fmt: skip
        titles = ("MODEL", "ALIASES", "RUNTIME", "SIZE", "BATCH", "INPUTS", "AGE", "FAILED, 24 H")
        shown = len(titles) if any(failed.values()) else len(titles) - 1
        print_table(titles[:shown], [row[:shown] for row in rows], right=("SIZE", "BATCH", "AGE"))


def _print_failures(failures: Sequence[Failures]) -> None:
    if failures:
        print_line("")
        rows = [(each.type, f"{each.count:,}", each.message, each.latest) for each in failures]
        print_table(("FAILED, 24 H", "JOBS", "THE LATEST SAYS", "ID"), rows, right=("JOBS",))


def _show(model: ModelVersion) -> None:
    print_fields(
        {
            "model": model.ref,
            "aliases": _aliases(model),
            "runtime": model.runtime,
            "artifact": f"{model.artifact} ({model.artifact_form}, {_size(model)})" if model.artifact else None,
            "inputs": _fields(model.signature.inputs) or "unchecked",
            "outputs": _fields(model.signature.outputs) or "unchecked",
            "classes": several(model.classes),
            "example": "kept, for workers to warm up with" if model.has_example else None,
            "max batch size": model.max_batch_size,
            "max batch tokens": model.max_batch_tokens,
            "computes in": model.dtype,
            "compiled": "at load" if model.compile else None,
            "time limit": f"{model.timeout_s:g} s per forward pass" if model.timeout_s else None,
            "batch wait": f"{model.batch_wait_timeout_s:g} s" if model.batch_wait_timeout_s else None,
            "resources": resources_text(model.resources),
            "options": pairs_text(model.options),
            **version_fields(model),
            "registered": moment(model.created_at),
        }
    )


def resources_text(resources: Mapping[str, float]) -> str | None:
    """Resources for people: `8 cpu, 32 GiB memory, 1 gpu, 24 GiB gpu memory`; None when there are none."""
    texts = {
        name: format_bytes(int(amount)) if name.endswith("memory") else f"{amount:g}"
        for name, amount in resources.items()
    }
    return ", ".join(f"{text} {name.replace('_', ' ')}" for name, text in texts.items() if resources[name]) or None


def _aliases(model: ModelVersion) -> str | None:
    return " ".join(f"@{alias}" for alias in model.aliases) or None


def _size(model: ModelVersion) -> str | None:
    return format_bytes(model.artifact_bytes) if model.artifact else None


def _fields(fields: Sequence[Field] | None) -> str | None:
    return None if fields is None else ", ".join(f"{field.name}: {_type(field)}" for field in fields)


def _type(field: Field) -> str:
    return f"{field.dtype}{list(field.shape)}" if field.dtype in ARRAY_DTYPES else field.dtype
