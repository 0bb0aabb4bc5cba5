"""What became of every job: ledger, writes of final states and the model's log, compared with what the client was promised.

Pure: it is given rows and counts, and gives findings. Where they come from is evidence.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.model import Effect
from forebay.contract.job import FINAL, JobState

MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that the client was promised, what it is to do, and whether it was asked to be canceled."""

    id: str
    number: int
    effect: Effect
    rows: int
    size: int
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as the ledger has it in the end; `attempt` counts claims, of which `uncounted` do not use up `max_attempts`."""

    state: JobState
    attempt: int
    uncounted: int
    max_attempts: int
    error_type: str | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known after a run: the ledger by job id, how often each was given or changed in a final state, and how often
    each row was run, by the client's number for its job and the row within it.
    """  # fmt: skip

    ledger: Mapping[str, Entry]
    final_writes: Mapping[str, int]
    executions: Mapping[tuple[int, int], int]


@dataclass(slots=True)
class Findings:
    """The counts, and a line about each of the first things that are not as they must be."""

    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    lost: int = 0  # accepted, and not in the ledger or in no final state
    written_twice: int = 0  # more than one write of a final state
    wrong: int = 0  # another outcome than the input asked for, or one that nobody ran
    over_max_attempts: int = 0  # jobs that were run more often than `max_attempts` allows
    unacknowledged: int = 0  # in the ledger although the client heard that nothing was stored
    executions: Counter[int] = field(default_factory=Counter)  # how many jobs were run how often
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.written_twice or self.wrong or self.over_max_attempts or self.unacknowledged)

    def note(self, job: Accepted, what: str) -> None:
        """Remember what is not as it must be."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"job {job.id} ({job.effect.name.lower()}): {what}")


def audit(accepted: Sequence[Accepted], evidence: Evidence, is_right: Callable[[Accepted, Any], bool]) -> Findings:
    """Compare every accepted job with the evidence; `is_right` says whether a result is that of the job's input."""
    found = Findings(accepted=len(accepted), unacknowledged=len(set(evidence.ledger) - {job.id for job in accepted}))
    for job in accepted:
        runs = _runs(job, evidence)
        found.executions[max(runs)] += 1
        entry = evidence.ledger.get(job.id)
        if entry is None or entry.state not in FINAL:
            found.lost += 1
            found.note(job, "is not in the ledger" if entry is None else f"is still {entry.state}")
            continue
        writes = evidence.final_writes.get(job.id, 0)
        if writes > 1:
            found.written_twice += 1
            found.note(job, f"was given a final state {writes} times")
        _count(found, entry.state)
        fault = _fault(job, entry, writes, min(runs), is_right)
        if fault:
            found.wrong += 1
            found.note(job, fault)
        if max(runs) > entry.max_attempts + entry.uncounted:
            found.over_max_attempts += 1
            found.note(job, f"was run {max(runs)} times, of {entry.max_attempts} allowed")
    return found


def _runs(job: Accepted, evidence: Evidence) -> list[int]:
    return [evidence.executions.get((job.number, row), 0) for row in range(max(1, job.rows))]


def _count(found: Findings, state: JobState) -> None:
    found.succeeded += state is JobState.SUCCEEDED
    found.failed += state is JobState.FAILED
    found.canceled += state is JobState.CANCELED


def _fault(
    job: Accepted, entry: Entry, writes: int, runs: int, is_right: Callable[[Accepted, Any], bool]
) -> str | None:
    """What is wrong with how a job ended; None when nothing is."""
    if writes == 0:
        return f"is {entry.state}, and nothing was seen to write that"
    if entry.state is JobState.SUCCEEDED:
        if job.effect is not Effect.FINE:
            return "succeeded"
        if runs == 0:
            return "succeeded without having been run"
        return None if is_right(job, entry.result) else "has the result of another input"
    if entry.state is JobState.CANCELED:
        return None if job.cancel else "was canceled, and nobody asked for that"
    if entry.state is JobState.FAILED:
        return _wrong_failure(job, entry)
    return f"is {entry.state}"


def _wrong_failure(job: Accepted, entry: Entry) -> str | None:
    if entry.error_type == "WorkerLost":
        used = entry.attempt - entry.uncounted
        return None if used >= entry.max_attempts else f"was given up after {used} of {entry.max_attempts} attempts"
    if job.effect is Effect.FAIL and entry.error_type == "Refused":
        return None
    return f"failed as {entry.error_type}"
