"""The file of a batch: its lines, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from forebay.api.context import decode_json
from forebay.api.errors import answer_of
from forebay.api.openai.endpoints import ENDPOINTS, BatchedRequest, BatchEndpoint
from forebay.contract.errors import InvalidInput, ModelNotFound, NoQueueFits
from forebay.contract.job import JobKind
from forebay.contract.references import shown
from forebay.producer.options import ResolvedOptions
from forebay.producer.submit import Submitter
from forebay.storage.request_batches import LineError

MAX_ERRORS = 100  # are told; what comes behind them is not looked at
PRIORITY = 7  # as all batch work, behind what somebody waits for


class BatchLine(Struct, frozen=True):
    """A line of a batch: a request, under a name of the client's own."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: BatchEndpoint
    body: msgspec.Raw

    def request(self) -> BatchedRequest:
        """What its body asks for; the error names the field as the line has it."""
        try:
            return ENDPOINTS[self.url].read(bytes(self.body))
        except msgspec.ValidationError as error:
            text = str(error)
            raise msgspec.ValidationError(
                text.replace("`$", "`$.body") if "`$" in text else f"{text} - at `$.body`"
            ) from error


class LineTooLong(InvalidInput):
    """A line is longer than any request may be."""

    def __init__(self, number: int, limit: int) -> None:
        super().__init__(f"the line is longer than {limit} bytes")
        self.number = number


def lines(chunks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; LineTooLong for one of more than `limit` bytes."""
    number, rest = 0, b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            if len(line) > limit:
                raise LineTooLong(number, limit)
            if line.strip():
                yield number, line
        if len(rest) > limit:
            raise LineTooLong(number + 1, limit)
    if rest.strip():
        yield number + 1, rest


class LineCheck:
    """Looks at every line of a batch before any of them runs. All have one model, and its version is the one meant now."""

    def __init__(self, submitter: Submitter, endpoint: str, max_lines: int) -> None:
        self._submitter, self._endpoint = submitter, endpoint
        self._max_lines = max_lines
        self._seen: dict[bytes, int] = {}
        self._model: str | None = None
        self._options: ResolvedOptions | None = None
        self.total = 0
        self.errors: list[LineError] = []

    @property
    def over(self) -> bool:
        """Whether no more lines need be looked at."""
        return len(self.errors) >= MAX_ERRORS or self.total > self._max_lines

    @property
    def model(self) -> str:
        """The version that the batch is for; "" while there is none."""
        return self._options.model.ref if self._options is not None else ""

    def check(self, number: int, line: bytes) -> None:
        """Look at one line."""
        self.total += 1
        try:
            self._check(number, decode_json(line, BatchLine))
        except (
            msgspec.DecodeError,
            UnicodeError,
            RecursionError,
            InvalidInput,
            ModelNotFound,
            NoQueueFits,
        ) as error:
            self._add(number, error)

    def end(self) -> None:
        """All lines were seen."""
        if not self.total:
            self.errors.append(LineError("empty_file", "the file has no request"))
        if self.total > self._max_lines:
            words = f"the file has more than {self._max_lines} requests, which is the limit (api_max_batch_lines)"
            self.errors.append(LineError("too_many_requests", words))

    def _check(self, number: int, line: BatchLine) -> None:
        digest = blake2b(line.custom_id.encode(), digest_size=16).digest()
        first = self._seen.setdefault(digest, number)
        if first != number:
            words = f"custom_id {shown(line.custom_id)} stands in line {first} already"
            self.errors.append(LineError("duplicate_custom_id", words, number, "custom_id"))
            return
        if line.url != self._endpoint:
            words = f"the line's url is {line.url}, and the batch's endpoint {self._endpoint}"
            self.errors.append(LineError("invalid_url", words, number, "url"))
            return
        asked = line.request()
        if self._model is None:
            self._model = asked.model
            self._options = self._submitter.resolve(JobKind.PREDICT, self._model, batch_options(self._endpoint))
        if asked.model != self._model:
            words = f"the model is {shown(asked.model)}, and {shown(self._model)} before; a batch has one model"
            self.errors.append(LineError("mismatched_model", words, number, "body.model"))
        elif self._options is not None:
            self._submitter.pack(self._options, asked.inputs(self._options.model))

    def _add(self, number: int, error: Exception) -> None:
        if isinstance(error, ModelNotFound | NoQueueFits):
            code = answer_of(error).code.replace("-", "_")
            self.errors.append(LineError(code, str(error), number, "body.model"))
        elif isinstance(error, InvalidInput):
            param = answer_of(error).field
            self.errors.append(LineError("invalid_request", str(error), number, f"body.{param}" if param else None))
        elif isinstance(error, msgspec.ValidationError):
            text, param = str(error), answer_of(InvalidInput(str(error))).field
            code = {"method": "invalid_method", "url": "invalid_url"}.get(param or "", "invalid_request")
            missing = text.startswith("Object missing required field")
            self.errors.append(LineError("missing_required_parameter" if missing else code, text, number, param))
        else:
            self.errors.append(LineError("invalid_json_line", f"the line is not JSON: {error}", number))


def batch_options(endpoint: str) -> dict[str, Any]:
    """The options of the jobs of a batch for this endpoint."""
    return {"priority": PRIORITY, **ENDPOINTS[endpoint].options}


def parse_line(line: bytes) -> BatchLine:
    """A line that was found right."""
    return msgspec.json.decode(line, type=BatchLine)
