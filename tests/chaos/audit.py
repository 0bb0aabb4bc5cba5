"""What became of every job: ledger, writes of final states and the model's log, compared with what the client was promised.

Pure: it is given rows and counts, and gives findings. Where they come from is evidence.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chaos.data import JobSpec, confusion, truth
from chaos.model import Effect
from chaos.outputs import Output
from forebay.contract.job import FINAL, JobKind, JobState

MAX_PROBLEMS = 20
SAME = 1e-6  # trainings on the same data with the same seed differ by no more in any metric


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that the client was promised, what it is to do, and whether it was asked to be canceled."""

    id: str
    number: int
    spec: JobSpec
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as the ledger has it in the end; `attempt` counts claims, of which `uncounted` do not use up `max_attempts`.

    `retried` are the outcomes that retries took back: the state, and of a failure the type of its error.
    """

    state: JobState
    attempt: int
    uncounted: int
    max_attempts: int
    error_type: str | None = None
    result: Any = None
    retried: tuple[tuple[JobState, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known after a run: the ledger by job id, how often each was given or changed in a final state, and how often
    each row was run, by the client's number for its job and the row within it. Of a batch that has succeeded what it wrote,
    and what `forebay jobs audit` finds; of trainings and evaluations the versions and the records that are there, by job.
    """  # fmt: skip

    ledger: Mapping[str, Entry]
    final_writes: Mapping[str, int]
    executions: Mapping[tuple[int, int], int]
    outputs: Mapping[str, Output] = field(default_factory=dict)
    audits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    evaluations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often the client has retried each job; of those in `doubtful` once more, or not."""

    known: Mapping[str, int] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()


@dataclass(slots=True)
class Findings:
    """The counts, and a line about each of the first things that are not as they must be."""

    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    retried: int = 0  # jobs whose end was taken back by a retry
    lost: int = 0  # accepted, and not in the ledger
    hung: int = 0  # in no final state when the time for that was up
    written_twice: int = 0  # more than one write of a final state
    wrong: int = 0  # another outcome than the input asked for, or one that nobody ran
    over_max_attempts: int = 0  # jobs that were run more often than `max_attempts` allows
    unacknowledged: int = 0  # in the ledger although the client heard that nothing was stored
    rows: Counter[str] = field(default_factory=Counter)  # of batches: read, lost, doubled, wrong
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # states by kind
    executions: Counter[int] = field(default_factory=Counter)  # how many jobs were run how often
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        broken = self.lost or self.hung or self.written_twice or self.wrong or self.over_max_attempts
        return not (broken or self.unacknowledged)

    def note(self, job: Accepted, what: str) -> None:
        """Remember what is not as it must be."""
        if len(self.problems) < MAX_PROBLEMS:
            about = job.spec.kind if job.spec.kind is not JobKind.PREDICT else job.spec.effect.name.lower()
            self.problems.append(f"job {job.id} ({about}): {what}")


def audit(accepted: Sequence[Accepted], evidence: Evidence, retries: Retries | None = None) -> Findings:
    """Compare every accepted job with the evidence."""
    retries = retries or Retries()
    found = Findings(accepted=len(accepted), unacknowledged=len(set(evidence.ledger) - {job.id for job in accepted}))
    for job in accepted:
        runs = _runs(job, evidence)
        found.executions[max(runs, default=0)] += 1
        entry = evidence.ledger.get(job.id)
        if entry is None:
            found.lost += 1
            found.note(job, "is not in the ledger")
            continue
        if entry.state not in FINAL:
            found.hung += 1
            found.note(job, f"is still {entry.state}")
            continue
        _count(found, job, entry, evidence)
        writes = evidence.final_writes.get(job.id, 0) - 2 * len(entry.retried)  # to take one back is a write, too
        if writes > 1:
            found.written_twice += 1
            found.note(job, f"was given a final state {writes} times")
        fault = _fault(job, entry, writes, runs, evidence) or _wrong_retries(job, entry, retries)
        if fault:
            found.wrong += 1
            found.note(job, fault)
        if job.spec.kind is JobKind.PREDICT and max(runs) > entry.max_attempts + entry.uncounted:
            found.over_max_attempts += 1
            found.note(job, f"was run {max(runs)} times, of {entry.max_attempts} allowed")
    _compare_trainings(accepted, evidence, found)
    return found


def _runs(job: Accepted, evidence: Evidence) -> list[int]:
    if job.spec.kind is JobKind.TRAIN:
        return []
    return [evidence.executions.get((job.number, row), 0) for row in range(max(1, job.spec.rows))]


def _count(found: Findings, job: Accepted, entry: Entry, evidence: Evidence) -> None:
    found.succeeded += entry.state is JobState.SUCCEEDED
    found.failed += entry.state is JobState.FAILED
    found.canceled += entry.state is JobState.CANCELED
    found.retried += bool(entry.retried)
    found.kinds.setdefault(str(job.spec.kind), Counter())[str(entry.state)] += 1
    output = evidence.outputs.get(job.id)
    if output is not None:
        found.rows.update(
            {"read": job.spec.rows, "lost": output.lost, "doubled": output.doubled, "wrong": output.wrong}
        )


def _fault(job: Accepted, entry: Entry, writes: int, runs: Sequence[int], evidence: Evidence) -> str | None:
    """What is wrong with how a job ended; None when nothing is."""
    if writes <= 0:
        return f"is {entry.state}, and nothing was seen to write that"
    if audited := evidence.audits.get(job.id):
        return f"its audit finds: {'; '.join(audited)}"
    if entry.state is JobState.SUCCEEDED:
        if min(runs, default=1) == 0:
            return "succeeded without having been run"
        return _RIGHT[job.spec.kind](job, entry.result, evidence)
    if evidence.versions.get(job.id) or evidence.evaluations.get(job.id):
        return f"is {entry.state}, and yet what it made is there"
    if entry.state is JobState.CANCELED:
        return None if job.cancel and not entry.retried else "was canceled, and nobody asked for that"
    if entry.state is JobState.FAILED:
        return _wrong_failure(job, entry)
    return f"is {entry.state}"


def _wrong_failure(job: Accepted, entry: Entry) -> str | None:
    if entry.error_type == "WorkerLost":
        used = entry.attempt - entry.uncounted
        return None if used >= entry.max_attempts else f"was given up after {used} of {entry.max_attempts} attempts"
    if _may_fail(job, entry.error_type):
        return None
    return f"failed as {entry.error_type}"


def _may_fail(job: Accepted, error_type: str | None) -> bool:
    return job.spec.kind is JobKind.PREDICT and job.spec.effect is Effect.FAIL and error_type == "Refused"


def _wrong_retries(job: Accepted, entry: Entry, retries: Retries) -> str | None:
    """What is wrong with the outcomes that were taken back."""
    known, there = retries.known.get(job.id, 0), len(entry.retried)
    if not known <= there <= known + (job.id in retries.doubtful):
        return f"was retried {there} times, and the client did so {known} times"
    for state, error in entry.retried:
        if state is JobState.FAILED and not (error == "WorkerLost" or _may_fail(job, error)):
            return f"had failed as {error}"
        if state is JobState.CANCELED and not job.cancel:
            return "had been canceled, and nobody asked for that"
    return None


def _wrong_prediction(job: Accepted, result: Any, _: Evidence) -> str | None:
    if job.spec.effect is not Effect.FINE:
        return "succeeded"
    try:
        numbers, y = result["job"], result["y"]
    except (TypeError, KeyError, IndexError):
        return "has no result that can be read"
    right = np.all(np.asarray(numbers) == job.number) and np.array_equal(
        y, truth(job.number, job.spec.rows, job.spec.size)
    )
    return None if right else "has the result of another input"


def _wrong_batch(job: Accepted, _: Any, evidence: Evidence) -> str | None:
    output = evidence.outputs.get(job.id)
    return None if output is not None and output.sound else f"succeeded, and {output}"


def _wrong_training(job: Accepted, result: Any, evidence: Evidence) -> str | None:
    there, told = list(evidence.versions.get(job.id, [])), _field(result, "version")
    return None if there == [told] else f"made version {told}, and the registry has {there}"


def _wrong_evaluation(job: Accepted, result: Any, evidence: Evidence) -> str | None:
    counts, failed = confusion(job.spec)
    if (_field(result, "confusion"), _field(result, "failed")) != (counts, failed):
        return (
            f"counted {_field(result, 'confusion')} and {_field(result, 'failed')} that fail, not {counts} and {failed}"
        )
    there = evidence.evaluations.get(job.id, 0)
    return None if there == 1 else f"has {there} records"


_RIGHT = {
    JobKind.PREDICT: _wrong_prediction,
    JobKind.BATCH: _wrong_batch,
    JobKind.TRAIN: _wrong_training,
    JobKind.EVALUATE: _wrong_evaluation,
}


def _field(result: Any, name: str) -> Any:
    return result.get(name) if isinstance(result, Mapping) else None


def _compare_trainings(accepted: Sequence[Accepted], evidence: Evidence, found: Findings) -> None:
    """All trainings have learned the same, however often each was interrupted."""
    first: Mapping[str, float] | None = None
    for job in accepted:
        entry = evidence.ledger.get(job.id)
        if job.spec.kind is not JobKind.TRAIN or entry is None or entry.state is not JobState.SUCCEEDED:
            continue
        metrics = _field(entry.result, "metrics") or {}
        first = first or metrics
        if metrics.keys() != first.keys() or any(abs(value - first[name]) > SAME for name, value in metrics.items()):
            found.wrong += 1
            found.note(job, f"learned {metrics}, and another from the same data and seed {first}")
