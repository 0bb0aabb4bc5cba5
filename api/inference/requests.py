"""A request of the protocol: its JSON, its binary data behind it, and what it asks for as the options of a job."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from forebay.api.context import decode_json, parse_json
from forebay.api.inference.tensors import (
    BF16,
    BYTES,
    DATATYPES,
    NUMERIC,
    Array,
    check_kind,
    from_binary,
    from_json,
    objects,
)
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.producer.options import PredictOptions

_HEADER = re.compile(r"[0-9]{1,15}")
_Size = Annotated[int, Meta(ge=0, le=2**53)]


class TensorParameters(Struct):
    """What a client may say about an input or output, other than its own."""

    binary_data_size: _Size | None = None
    binary_data: bool | None = None
    shared_memory_region: str | None = None
    classification: int = 0


class RequestParameters(Struct):
    """What a client may say about a request."""

    binary_data_output: bool = False
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    timeout: Annotated[int, Meta(ge=0, le=2**62)] = 0  # µs
    sequence_id: int | str = 0


class InputTensor(Struct):
    """One input."""

    name: str
    datatype: str
    shape: list[int]
    parameters: TensorParameters | None = None
    data: list[Any] | None = None


class OutputRequest(Struct):
    """One output that is asked for."""

    name: str
    parameters: TensorParameters | None = None


class InferenceRequest(Struct):
    """A request as its JSON says it. Without `outputs` all are asked for."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[OutputRequest] | None = None


class Tensor(NamedTuple):
    """A named input's values, with the datatype that they were sent as."""

    datatype: str
    array: Array


class Wanted(NamedTuple):
    """The form that the answer is asked for in. Without `outputs` all of them come, as `binary` says."""

    id: str
    outputs: Mapping[str, bool]  # whether as binary data
    binary: bool


class Asked(NamedTuple):
    """A request, checked as far as it can be without its model."""

    tensors: Mapping[str, Tensor]
    wanted: Wanted
    options: PredictOptions
    raw: bytes | None = None  # the data of the model's only input, in the place of tensors


_READ: Mapping[str, Callable[[bytes], Any]] = {
    "str": bytes.decode,
    "json": lambda text: decode_json(text, object),
    "bytes": bytes,
}


def parse(body: bytes, header_length: str | None) -> Asked:
    """The request in a body, of which the first `header_length` bytes are JSON: all of it when that is None.

    With a header length of "0" there is no JSON. InvalidInput says what is wrong.
    """
    if header_length is None:
        return _checked(parse_json(body, InferenceRequest), memoryview(b""))
    if not _HEADER.fullmatch(header_length) or int(header_length) > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length {shown(header_length)} is not a length within the body's {len(body)} bytes"
        )
    length = int(header_length)
    if not length:
        return Asked({}, Wanted("", {}, binary=True), {"batched": True}, body)
    return _checked(parse_json(body[:length], InferenceRequest), memoryview(body)[length:])


def job_input(asked: Asked, signature: Signature) -> dict[str, Any]:
    """The tensors as what `Client.predict` takes with batched=True; InvalidInput for a datatype that is not the input's.

    Each str, bytes or json is an element of a tensor of BYTES with one dimension: UTF-8, as it is, or a JSON text.
    """
    tensors = asked.tensors if asked.raw is None else _raw(asked.raw, signature)
    if not tensors:
        raise InvalidInput("a request needs at least one input")
    fields = {field.name: field for field in signature.inputs or ()}
    return {
        name: _declared(fields[name], tensor, _where(name)) if name in fields else _undeclared(tensor)
        for name, tensor in tensors.items()
    }


def _checked(request: InferenceRequest, binary: memoryview) -> Asked:
    parameters, outputs = request.parameters or RequestParameters(), request.outputs or []
    if parameters.sequence_id not in (0, ""):
        raise InvalidInput("sequence_id: models here keep no state from one request to the next")
    options: PredictOptions = {"batched": True}
    if parameters.priority:  # 0 stands for the default
        options["priority"] = parameters.priority
    if parameters.timeout:
        options["deadline"] = parameters.timeout / 1e6
    tensors = _tensors(request.inputs, binary)
    wanted = {one.name: _as_binary(one, parameters.binary_data_output) for one in outputs}
    if len(wanted) != len(outputs):
        raise InvalidInput("outputs: an output is asked for twice")
    return Asked(tensors, Wanted(request.id or "", wanted, parameters.binary_data_output), options)


def _tensors(inputs: Sequence[InputTensor], binary: memoryview) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    at = 0
    for one in inputs:
        where, parameters = _where(one.name), one.parameters or TensorParameters()
        size = parameters.binary_data_size
        if one.name in tensors:
            raise InvalidInput(f"{where}: it is there twice")
        if parameters.shared_memory_region is not None:
            raise InvalidInput(f"{where}: shared memory is not supported; send its data")
        check_kind(one.datatype, one.shape, where)
        if one.data is not None and size is None:
            array = from_json(one.data, one.datatype, one.shape, where)
        elif size is None or one.data is not None:
            raise InvalidInput(f"{where}: give its values in data, or as binary data of binary_data_size bytes")
        elif size > len(binary) - at:
            left = f"{len(binary) - at} bytes are left behind the JSON"
            raise InvalidInput(f"{where}: binary_data_size is {size}, {left}; see Inference-Header-Content-Length")
        else:
            array = from_binary(binary[at : at + size], one.datatype, one.shape, where)
            at += size
        tensors[one.name] = Tensor(one.datatype, array)
    if at != len(binary):
        raise InvalidInput(f"{len(binary) - at} bytes of binary data belong to no input")
    return tensors


def _as_binary(one: OutputRequest, default: bool) -> bool:
    parameters = one.parameters or TensorParameters()
    if parameters.shared_memory_region is not None or parameters.classification:
        raise InvalidInput(f"output {one.name!a}: neither shared memory nor classification is supported")
    return default if parameters.binary_data is None else parameters.binary_data


def _raw(body: bytes, signature: Signature) -> dict[str, Tensor]:
    """The body as the model's only input, with as many rows as it holds; one row of str, bytes or json."""
    if signature.inputs is None or len(signature.inputs) != 1 or -1 in signature.inputs[0].shape:
        raise InvalidInput("only a model with one declared input of fixed shape takes a body without JSON")
    (field,) = signature.inputs
    if field.dtype not in ARRAY_DTYPES:
        return {field.name: Tensor(BYTES, objects([body]))}
    datatype = DATATYPES[field.dtype]
    row = math.prod(field.shape) * NUMERIC[datatype].itemsize
    shape = [len(body) // row, *field.shape]
    return {field.name: Tensor(datatype, from_binary(memoryview(body), datatype, shape, _where(field.name)))}


def _declared(field: Field, tensor: Tensor, where: str) -> Any:
    expected = DATATYPES.get(field.dtype, BYTES)
    if tensor.datatype != expected and (tensor.datatype, expected) != (BF16, "FP32"):  # of which each is a float32
        raise InvalidInput(f"{where}: its datatype is {expected}, got {tensor.datatype}")
    if expected != BYTES:
        return tensor.array
    if tensor.array.ndim != 1:
        raise InvalidInput(
            f"{where}: expected BYTES of shape [-1], an element for each row, got {list(tensor.array.shape)}"
        )
    try:
        return [_READ[field.dtype](element) for element in tensor.array]
    except RecursionError as error:
        raise InvalidInput(f"{where}: an element is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidInput(f"{where}: an element is not {field.dtype}: {shown(str(error))[1:-1]}") from error


def _undeclared(tensor: Tensor) -> Any:
    return tensor.array.tolist() if tensor.datatype == BYTES else tensor.array


def _where(name: str) -> str:
    return f"input {shown(name)}"
