"""POST /v1/embeddings: the texts of one request are one job, whose result has a vector for each."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from forebay.api.context import api_of, client_of, header_key, json_response, needs, own_key, read_json
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.producer.inputs import InputsFor

MAX_INPUTS = 2048


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """What a request for embeddings says; what OpenAI's has besides is not looked at."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None

    def inputs(self, version: ModelVersion) -> list[Any]:
        """The samples for this version; InvalidInput when it does not take them, or makes no embeddings."""
        given: list[Any] = [self.input] if isinstance(self.input, str) else self.input
        if given and isinstance(given[0], int):
            given = [given]  # one sample of tokens
        if not 1 <= len(given) <= MAX_INPUTS:
            raise InvalidInput(f"input has {len(given)} texts; give 1 to {MAX_INPUTS} - at `$.input`")
        if len({type(one) for one in given}) > 1:
            raise InvalidInput("input mixes texts and tokens; give a list of one kind - at `$.input`")
        fields = version.signature.inputs
        if not isinstance(given[0], str) and (fields is None or fields[0].dtype in ("str", "bytes", "json")):
            raise InvalidInput(f"model {version.ref} takes texts, not lists of tokens - at `$.input`")
        self._check_output(version)
        return given

    def _check_output(self, version: ModelVersion) -> None:
        outputs = version.signature.outputs
        if outputs is None:
            return  # its result will tell
        if len(outputs) != 1 or not outputs[0].dtype.startswith("float") or len(outputs[0].shape) != 1:
            raise InvalidInput(
                f"model {version.ref} makes no embeddings: an output of floats of one dimension - at `$.model`"
            )
        if outputs[0].shape != (-1,):
            self._check_size(version.ref, outputs[0].shape[0])

    def _check_size(self, ref: str, size: int) -> None:
        """To cut a vector is right for few models, and which these are is not known."""
        if self.dimensions not in (None, size):
            words = f"model {ref} makes embeddings of {size} dimensions; leave dimensions out"
            raise InvalidInput(f"{words} - at `$.dimensions`")

    def answer(self, ref: str, result: Any, job_id: str = "") -> dict[str, Any]:  # noqa: ARG002 - see BatchedRequest
        """The body of the response, of the job's result."""
        vectors, tokens = result["output"], result["usage"]["tokens"]
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise InvalidInput(f"model {ref} made no embeddings: vectors of floats of one length - at `$.model`")
        self._check_size(ref, vectors.shape[1])
        encoded = _base64(vectors) if self.encoding_format == "base64" else _floats(vectors)
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(encoded)],
            "model": ref,
            # null where the runtime does not count: 0 would be a lie
            "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
        }


@needs("submit")
async def create_embeddings(request: Request) -> Response:
    """Embed texts: one job, whose result is waited for."""
    api = api_of(request)
    asked = await read_json(request, EmbeddingRequest)
    meant: list[ModelVersion] = []

    def read(version: ModelVersion) -> list[Any]:
        meant.append(version)
        return asked.inputs(version)

    key = header_key(request)
    job = await client_of(request).predict(
        asked.model, InputsFor(read), batched=True, usage=True, idempotency_key=key and own_key(request, key)
    )
    result = await api.result(job)
    return json_response(await asyncio.to_thread(asked.answer, meant[0].ref, result))


def _base64(vectors: NDArray[Any]) -> list[str]:
    try:
        with np.errstate(over="raise"):
            narrow = vectors.astype("<f4")
    except FloatingPointError as error:
        raise InvalidInput("the vector has a number too large for float32, which base64 stands for") from error
    return [base64.b64encode(vector.tobytes()).decode() for vector in narrow]


def _floats(vectors: NDArray[Any]) -> list[Any]:
    if not np.isfinite(vectors).all():
        raise InvalidInput("the model made NaN or infinity, which JSON does not have - at `$.encoding_format`")
    return list(vectors.tolist())
