"""The routes whose requests a batch may hold: how each reads a request's body, whose keys were checked, and submits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from forebay.api.openai.embeddings import EmbeddingRequest
from forebay.contract.errors import InvalidInput
from forebay.contract.generation.openai import TextRequest
from forebay.contract.model import ModelVersion

BatchEndpoint = Literal["/v1/embeddings", "/v1/chat/completions", "/v1/completions"]


class BatchedRequest(Protocol):
    """A request of a batch."""

    @property
    def model(self) -> str: ...
    def inputs(self, version: ModelVersion) -> Any:
        """The job's input for this version; InvalidInput when it does not take it."""

    def answer(self, ref: str, result: Any, job_id: str) -> dict[str, Any]:
        """The body of the answer, of the job's result."""


class Endpoint(NamedTuple):
    """`read` gives the request of a body, or raises InvalidInput or msgspec's ValidationError; `options` are its submit's."""

    read: Callable[[bytes], BatchedRequest]
    options: Mapping[str, Any]


def _embedding(body: bytes) -> EmbeddingRequest:
    return msgspec.json.decode(body, type=EmbeddingRequest)


def _text(body: bytes, chat: bool) -> TextRequest:
    asked = TextRequest.read(msgspec.json.decode(body, type=dict[str, Any]), chat)
    if asked.about.stream:
        raise InvalidInput("the answers of a batch are not streamed - at `$.stream`")
    return asked


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint(_embedding, {"batched": True, "usage": True}),
    "/v1/chat/completions": Endpoint(lambda body: _text(body, chat=True), {}),
    "/v1/completions": Endpoint(lambda body: _text(body, chat=False), {"batched": True}),
}
