"""Asks a process of its own about files that can end a process: pyarrow aborts on some that are damaged.

One process is started when it is first needed, and ends when it has been idle for a while. When it dies of a file, or takes too
long or too much memory for it, that is InvalidInput, which names the file. Run as a program this module is that process.
"""

from __future__ import annotations

import atexit
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from forebay.contract.errors import ForebayError, InvalidInput, StoreUnavailable
from forebay.contract.references import shown
from forebay.contract.requests.batch import InputFile
from forebay.contract.settings import inherited
from forebay.datasets.formats.addresses import allow_hosts, allowed_hosts
from forebay.datasets.formats.source import Block, Chunk, Sample, own_source

ANSWER_S = 120.0
IDLE_S = 60.0
MEMORY_BYTES = 2 << 30
LENGTH = 8  # bytes before each message, which tell its length


class Question(msgspec.Struct, frozen=True):
    """What is asked: a sample, the layout, or the first rows up to unit `last`."""

    what: str
    format: str
    file: InputFile
    columns: list[str] = []
    row_bytes: int = 0
    last: int = 0
    rows: int = 0
    allowed_hosts: list[str] = []


class Answer(msgspec.Struct, frozen=True):
    """What came of it; `error` names a kind of error, and `text` is its message."""

    error: str = ""
    text: str = ""
    number: int = 0
    schema: bytes = b""
    empty: bool = False
    row_bytes: int = 0
    blocks: list[Block] = []
    table: bytes | None = None
    where: list[int] = []


class Isolated:
    """A source whose samples and layouts come from the other process. Rows are read in this one: shards are cut when it dies."""

    locator = "row"

    def __init__(self, format: str) -> None:
        self._format = format

    def sample(self, file: InputFile) -> Sample:
        answer = _ask(Question("sample", self._format, file))
        schema = pa.ipc.read_schema(pa.py_buffer(answer.schema))
        return Sample({field.name: field.type for field in schema}, answer.empty, answer.row_bytes)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        return _ask(Question("layout", self._format, file, list(columns), row_bytes)).blocks

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        return own_source(self._format).read(file, first, last, columns)

    def head(self, file: InputFile, last: int, columns: Sequence[str], rows: int) -> Chunk | None:
        """The first rows, read in the other process too."""
        answer = _ask(Question("head", self._format, file, list(columns), last=last, rows=rows))
        if answer.table is None:
            return None
        with pa.ipc.open_stream(answer.table) as stream:
            batch = stream.read_next_batch()
        return Chunk({name: batch.column(name) for name in columns}, np.array(answer.where, np.int64))


class _Process:
    """The other process, as this one sees it."""

    def __init__(self) -> None:
        self._environment = inherited()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "forebay.datasets.formats.isolated"], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def ask(self, question: Question) -> Answer | int | None:
        """The answer; or the exit status of the process, which has ended; or None when it took too long."""
        process, words = self._process, msgspec.msgpack.encode(replace(question, allowed_hosts=allowed_hosts()))
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
        with suppress(BrokenPipeError):
            process.stdin.write(len(words).to_bytes(LENGTH) + words)
            found = _read(process.stdout, ANSWER_S)
            if found is None:
                self.end()
                return None
            if found:
                return msgspec.msgpack.decode(found, type=Answer)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self.end()
        return process.returncode

    def up_to_date(self) -> bool:
        """Whether it knows this process's environment, where stores find their credentials."""
        return self._environment == inherited()

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.communicate()

    def forget(self) -> None:
        """It is the child of the process that this one was forked from."""
        self._process.returncode = 0
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()  # type: ignore[union-attr]


_lock = threading.Lock()
_process: _Process | None = None


def _forget() -> None:
    global _lock, _process
    if _process is not None:
        _process.forget()
    _lock, _process = threading.Lock(), None


@atexit.register
def _end() -> None:
    if _process is not None:
        _process.end()


os.register_at_fork(after_in_child=_forget)


def _ask(question: Question) -> Answer:
    global _process
    with _lock:
        if _process is not None and not _process.up_to_date():
            _process.end()
            _process = None
        for _ in range(3):  # one that was idle for long may end at the very moment it is asked
            _process = _process or _Process()
            answer = _process.ask(question)
            if isinstance(answer, Answer):
                return _raised(answer)
            _process, status = None, answer
            if status != 0:
                break
    how = f"takes more than {ANSWER_S:g} s" if status is None else f"ends the process that reads it ({_named(status)})"
    raise InvalidInput(f"{shown(question.file.path)} cannot be read as {question.format}: it {how}")


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _raised(answer: Answer) -> Answer:
    match answer.error:
        case "":
            return answer
        case "InvalidInput":
            raise InvalidInput(answer.text)
        case "StoreUnavailable":
            raise StoreUnavailable(answer.text)
        case "OSError":
            raise OSError(answer.number, answer.text)
    raise ForebayError(answer.text)


def _read(pipe: Any, limit_s: float) -> bytes | None:
    """One message; empty when the other end has closed the pipe, None when nothing more comes in time."""
    data, wanted, begun = bytearray(), LENGTH, False
    while len(data) < wanted:
        if not select.select([pipe], [], [], limit_s)[0]:
            return None
        piece = os.read(pipe.fileno(), min(wanted - len(data), 1 << 20))
        if not piece:
            return b""
        data += piece
        if len(data) == wanted and not begun:
            data, wanted, begun = bytearray(), int.from_bytes(data), True
    return bytes(data)


def main() -> None:
    """Answer until nobody asks."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while words := _read(sys.stdin.buffer, IDLE_S):
        answer = msgspec.msgpack.encode(_answer(msgspec.msgpack.decode(words, type=Question)))
        out.write(len(answer).to_bytes(LENGTH) + answer)
        out.flush()


def _answer(question: Question) -> Answer:
    try:
        return _found(question)
    except (InvalidInput, StoreUnavailable) as error:
        return Answer(type(error).__name__, str(error))
    except ForebayError as error:
        return Answer("ForebayError", str(error))
    except MemoryError:
        what = f"takes more than {MEMORY_BYTES >> 20} MiB of memory to read"
    except OSError as error:
        if error.errno:
            return Answer("OSError", str(error), error.errno)
        what = f"cannot be read: {error}"
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises for a damaged file
        what = f"cannot be read: {type(error).__name__}: {error}"
    return Answer("InvalidInput", f"{shown(question.file.path)} {what}")


def _found(question: Question) -> Answer:
    allow_hosts(question.allowed_hosts)
    source, file = own_source(question.format), question.file
    if question.what == "sample":
        sample = source.sample(file)
        schema = pa.schema([pa.field(name, kind) for name, kind in sample.types.items() if kind is not None])
        return Answer(schema=schema.serialize().to_pybytes(), empty=sample.empty, row_bytes=sample.row_bytes)
    if question.what == "layout":
        return Answer(blocks=list(source.layout(file, question.columns, question.row_bytes)))
    chunk = next(iter(source.read(file, 0, question.last, question.columns)), None)
    if chunk is None:
        return Answer()
    head = chunk.part(0, question.rows)
    batch = pa.RecordBatch.from_arrays(list(head.columns.values()), names=list(head.columns))
    batch.validate(full=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Answer(table=sink.getvalue().to_pybytes(), where=head.where.tolist())


if __name__ == "__main__":
    main()
