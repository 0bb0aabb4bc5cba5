"""Waiting for jobs and showing how they ended: on stdout, or in a .npy, .npz, .json or .jsonl file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import numpy as np
import typer

from forebay.contract.errors import ForebayError, InvalidInput, JobFailed, ResultTimeout
from forebay.contract.job import JobInfo, JobState
from forebay.contract.references import shown
from forebay.contract.wire.payload import join_rows
from forebay.producer.cli.options import cannot, option
from forebay.producer.cli.output import (
    INTERRUPTED,
    json_data,
    print_json,
    print_json_line,
    print_line,
    print_note,
)
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.waiting.progress import watch

Output = Annotated[Path | None, option("FILE", "Save as .npy, .npz, .json or .jsonl.", "--output", "-o")]
ARRAYS = (".npy", ".npz")
OUTPUTS = (*ARRAYS, ".json", ".jsonl", ".ndjson")
ARRIVES_S = 10.0  # between a final state in the ledger and its delivery to the handle lies one poll
J = TypeVar("J", bound=Job)
Show = Callable[[J, JobInfo], None]  # prints how a job is
Named = Callable[[Any], Any]  # a result with the names of classes in it


def as_it_is(result: Any) -> Any:
    return result


def wait_for(client: Client, jobs: Sequence[Job], timeout: float | None) -> None:
    """Wait for all jobs, at most `timeout` seconds, behind a bar on a terminal.

    Ctrl-C ends the command with status 130, and says that the jobs go on.
    """
    try:
        info = jobs[0].info()
        if not info.state.final:
            note_unserved(client, info.queue)
        if len(jobs) > 1:
            watch(jobs, timeout)
        else:
            jobs[0].wait(timeout, progress=not info.kind.of_rows)
    except KeyboardInterrupt:
        which = f"the job goes on: forebay jobs wait {jobs[0].id}"
        print_note(f"interrupted; {which if len(jobs) == 1 else f'the {len(jobs)} jobs go on: forebay jobs list'}")
        raise typer.Exit(INTERRUPTED) from None


def note_unserved(client: Client, queue: str) -> None:
    if any(q.name == queue and not q.workers for q in client.queues()):
        print_note(
            f"note: no worker serves queue {queue!r} now; start one with `forebay worker --queues {queue}`. The job waits for it"
        )


def print_ids(jobs: Sequence[Job], as_json: bool) -> None:
    """What `--no-wait` prints: an id, or an object with it, per line."""
    for job in jobs:
        print_json_line({"id": job.id}) if as_json else print_line(job.id)


def wait_and_show(
    client: Client, job: J, timeout: float | None, show: Show[J], *, no_wait: bool, as_json: bool
) -> None:
    """What a command for one long job does after its submit: print the id, or wait, `show` how the job is, and raise unless
    it has succeeded: ResultTimeout when it goes on, or what the job raises.
    """  # fmt: skip
    if no_wait:
        note_unserved(client, job.info().queue)
        print_ids([job], as_json)
        return
    wait_for(client, [job], timeout)
    info = job.info()
    show(job, info)
    if not info.state.final:
        raise_unless_succeeded([info.state], [job])
    if info.state is not JobState.SUCCEEDED:
        raise job.exception(ARRIVES_S) or JobFailed(f"job {job.id} {info.state}")


def print_outcome(job: Job, _info: JobInfo) -> None:
    print_json_line(outcome(job))


def outcome(job: Job, named: Named = as_it_is) -> dict[str, Any]:
    if not job.done():
        return {"id": job.id, "state": job.state}
    error = job.exception(ARRIVES_S)
    if error is None:
        return {"id": job.id, "state": JobState.SUCCEEDED, "result": named(job.result(ARRIVES_S))}
    return {"id": job.id, "state": job.state, "error": _error(error)}


def _error(error: ForebayError) -> dict[str, str]:
    if isinstance(error, JobFailed):
        return {"type": error.type, "message": error.reason}
    return {"type": type(error).__name__, "message": str(error)}


def show_one(job: Job, output: Path | None, as_json: bool, named: Named = as_it_is) -> None:
    """Print or save a job's result; ResultTimeout, or what the job raises, when it has none.

    `named` says how values are called in JSON; arrays are saved as they are.
    """
    named = named if output is None or output.suffix.lower() not in ARRAYS else as_it_is
    if as_json and output is None:
        print_json_line(outcome(job, named))
    if not job.done():
        raise_unless_succeeded([job.state], [job])
    result = named(job.result(ARRIVES_S))
    if output is not None:
        save(result, output)
        _report(output, 1, as_json)
    elif not as_json:
        text = _text_of(result)
        print_json_line(result) if text is None else print_line(text)


def _text_of(result: Any) -> str | None:
    """A result that is text, or that a model which generates text has made, as it is read."""
    if isinstance(result, dict) and isinstance(result.get("choices"), list) and "usage" in result:
        texts = [_text_of(choice) for choice in result["choices"]]
        return None if None in texts else "\n\n".join(f"[{i}] {text}" for i, text in enumerate(texts, start=1))
    if isinstance(result, dict) and "finish_reason" in result:
        result = result.get("text")
    return result if isinstance(result, str) else None


def show_many(jobs: Sequence[Job], output: Path | None, as_json: bool, named: Named) -> None:
    """Print one JSON line per job, in order, or save them; JobFailed or ResultTimeout when not all have succeeded.

    Arrays are saved only when all are there: a missing row would move those behind it.
    """
    if output is None:
        states = [_print_outcome(job, named) for job in jobs]
    else:
        named = as_it_is if output.suffix.lower() in ARRAYS else named
        outcomes = [outcome(job, named) for job in jobs]
        states = [one["state"] for one in outcomes]
        _save_many(outcomes, output, as_json)
    raise_unless_succeeded(states, jobs)


def _print_outcome(job: Job, named: Named) -> JobState:
    ended = outcome(job, named)
    print_json_line(ended)
    return JobState(ended["state"])


def _save_many(outcomes: Sequence[dict[str, Any]], output: Path, as_json: bool) -> None:
    if output.suffix.lower() not in ARRAYS:
        save(list(outcomes), output)
    elif all("result" in one for one in outcomes):
        save(join_rows([one["result"] for one in outcomes]), output)
    else:
        print_note(f"{output} was not written, for it holds all rows or none; a .jsonl file takes what there is")
        return
    _report(output, len(outcomes), as_json)


def raise_unless_succeeded(states: Sequence[JobState], jobs: Sequence[Job]) -> None:
    """ResultTimeout when jobs still go on, JobFailed when one has ended otherwise than `succeeded`."""
    late = sum(not state.final for state in states)
    bad = sum(state.final and state is not JobState.SUCCEEDED for state in states)
    if late and len(jobs) == 1:
        raise ResultTimeout(f"job {jobs[0].id} is {states[0]} and goes on: forebay jobs wait {jobs[0].id}")
    if late:
        raise ResultTimeout(f"{late} of {len(jobs)} jobs have not ended in time; they go on: forebay jobs wait")
    if bad:
        raise JobFailed(f"{bad} of {len(jobs)} jobs did not succeed")


def check_output(output: Path | None) -> None:
    """InvalidInput when results cannot be saved there; asked before anything is submitted."""
    if output is None:
        return
    if output.suffix.lower() not in OUTPUTS:
        raise InvalidInput(f"--output {shown(str(output))}: a result is saved as {', '.join(OUTPUTS)}")
    folder = output.expanduser().parent
    if not folder.is_dir():
        raise InvalidInput(f"--output {shown(str(output))}: there is no folder {shown(str(folder))}")
    if output.expanduser().is_dir():
        raise InvalidInput(f"--output {shown(str(output))} is a folder; name a file")


def save(value: Any, output: Path) -> None:
    """Write a result, or the outcomes of many jobs, to a file in the format its name ends in; whole or not at all."""
    path = output.expanduser()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            _write_as(path.suffix.lower(), value, file)
        temporary.replace(path)
    except OSError as error:
        raise cannot("write", output, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_as(suffix: str, value: Any, file: BinaryIO) -> None:
    if suffix == ".npy":
        np.save(file, _array(value), allow_pickle=False)
    elif suffix == ".npz":
        named = value if isinstance(value, dict) else {"result": value}
        np.savez(file, **{name: _array(item) for name, item in named.items()})  # type: ignore[arg-type]
    elif suffix == ".json":
        file.write(json.dumps(json_data(value), ensure_ascii=False).encode() + b"\n")
    else:
        for item in value if isinstance(value, list) else [value]:
            file.write(json.dumps(json_data(item), ensure_ascii=False).encode() + b"\n")


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, dict):
        raise InvalidInput(
            f"the model has several outputs ({', '.join(map(shown, value))}); save them as .npz or .jsonl"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput("the results differ in shape and cannot be one array; save them as .jsonl") from error
    if array.dtype.hasobject:
        raise InvalidInput("the results are not arrays; save them as .jsonl")
    return array


def _report(output: Path, count: int, as_json: bool) -> None:
    if as_json:
        print_json({"output": str(output), "jobs": count})
    else:
        print_note(f"wrote {count} result{'' if count == 1 else 's'} to {output}")
