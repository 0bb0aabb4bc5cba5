"""An audit that is given a lost, doubled or wrong job says so, and one that is given a sound run finds nothing."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chaos import load
from chaos.audit import MAX_PROBLEMS, Accepted, Entry, Evidence, Findings, audit
from chaos.model import Effect
from chaos.run import is_right
from forebay.contract.job import JobState

ENDINGS = {
    Effect.FINE: ["succeeded", "canceled", "WorkerLost"],
    Effect.FAIL: ["Refused", "canceled", "WorkerLost"],
    Effect.KILL: ["canceled", "WorkerLost"],
}
Case = tuple[Accepted, Entry, dict[int, int]]  # the job, its end, and how often each of its rows was run


@st.composite
def sound_jobs(draw: st.DrawFn, number: int) -> Case:
    """A job that ended as it may, with what the ledger and the log know of it."""
    effect, rows = draw(st.sampled_from(Effect)), draw(st.integers(0, 4))
    ending = draw(st.sampled_from(ENDINGS[effect]))
    job = Accepted(f"{number:032x}", number, effect, rows, load.SMALL, cancel=ending == "canceled")
    most, uncounted = draw(st.integers(1, 10)), draw(st.integers(0, 3))
    attempt = uncounted + (most if ending == "WorkerLost" else draw(st.integers(1, most)))
    least = 1 if ending == "succeeded" else 0
    runs = {row: draw(st.integers(least, attempt)) for row in range(max(1, rows))}
    if ending == "succeeded":
        result = {"job": number, "y": load.truth(number, rows, load.SMALL)}
        return job, Entry(JobState.SUCCEEDED, attempt, uncounted, most, result=result), runs
    if ending == "canceled":
        return job, Entry(JobState.CANCELED, attempt, uncounted, most), runs
    return job, Entry(JobState.FAILED, attempt, uncounted, most, ending), runs


@st.composite
def sound_runs(draw: st.DrawFn) -> list[Case]:
    return [draw(sound_jobs(number)) for number in range(1, draw(st.integers(1, 8)) + 1)]


def evidence(cases: list[Case], writes: dict[str, int] | None = None) -> Evidence:
    return Evidence(
        {job.id: entry for job, entry, _ in cases},
        {job.id: 1 for job, _, _ in cases} | (writes or {}),
        {(job.number, row): count for job, _, runs in cases for row, count in runs.items()},
    )


def audited(cases: list[Case], seen: Evidence) -> Findings:
    return audit([job for job, _, _ in cases], seen, is_right)


@given(sound_runs())
def test_a_sound_run_has_no_findings(cases):
    found = audited(cases, evidence(cases))
    assert found.sound, found.problems
    assert found.problems == []
    assert found.accepted == len(cases) == found.succeeded + found.failed + found.canceled
    assert sum(found.executions.values()) == len(cases)


@given(sound_runs(), st.data())
def test_a_job_that_is_not_in_the_ledger_is_lost(cases, data):
    job, _, _ = data.draw(st.sampled_from(cases))
    seen = evidence(cases)
    found = audited(cases, replace(seen, ledger={id: e for id, e in seen.ledger.items() if id != job.id}))
    assert (found.lost, found.written_twice, found.wrong) == (1, 0, 0)
    assert not found.sound
    assert job.id in found.problems[0]


@given(sound_runs(), st.sampled_from([JobState.QUEUED, JobState.RUNNING]), st.data())
def test_a_job_that_has_not_ended_is_lost(cases, state, data):
    job, entry, _ = data.draw(st.sampled_from(cases))
    seen = evidence(cases)
    found = audited(cases, replace(seen, ledger={**seen.ledger, job.id: replace(entry, state=state)}))
    assert found.lost == 1
    assert not found.sound


@given(sound_runs(), st.integers(2, 5), st.data())
def test_a_second_write_of_a_final_state_is_seen(cases, writes, data):
    job, _, _ = data.draw(st.sampled_from(cases))
    found = audited(cases, evidence(cases, {job.id: writes}))
    assert (found.lost, found.written_twice, found.wrong) == (0, 1, 0)
    assert not found.sound


@given(sound_runs(), st.data())
def test_a_final_state_that_nobody_was_seen_to_write_is_wrong(cases, data):
    job, _, _ = data.draw(st.sampled_from(cases))
    found = audited(cases, evidence(cases, {job.id: 0}))
    assert found.wrong == 1
    assert not found.sound


@given(sound_runs(), st.data())
def test_more_executions_than_attempts_allow_are_seen(cases, data):
    _, entry, runs = data.draw(st.sampled_from(cases))
    runs[0] = entry.max_attempts + entry.uncounted + 1
    found = audited(cases, evidence(cases))
    assert found.over_max_attempts == 1
    assert not found.sound


def one(effect: Effect, entry: Entry, runs: int = 1, *, rows: int = 0, cancel: bool = False) -> Findings:
    case = (Accepted("a" * 32, 7, effect, rows, load.SMALL, cancel), entry, dict.fromkeys(range(max(1, rows)), runs))
    return audited([case], evidence([case]))


def succeeded(result: object) -> Entry:
    return Entry(JobState.SUCCEEDED, 1, 0, 10, result=result)


def test_the_result_of_another_input_is_wrong():
    assert one(Effect.FINE, succeeded({"job": 7, "y": load.truth(7, 0, load.SMALL)})).sound
    assert one(Effect.FINE, succeeded({"job": 8, "y": load.truth(7, 0, load.SMALL)})).wrong == 1
    assert one(Effect.FINE, succeeded({"job": 7, "y": load.truth(8, 0, load.SMALL)})).wrong == 1
    assert one(Effect.FINE, succeeded({"job": 7, "y": load.truth(7, 0, load.SMALL)[:-1]})).wrong == 1
    assert one(Effect.FINE, succeeded(None)).wrong == 1


def test_the_rows_of_a_batch_must_come_in_order():
    y = load.truth(7, 3, load.SMALL)
    assert one(Effect.FINE, succeeded({"job": [7, 7, 7], "y": y}), rows=3).sound
    assert one(Effect.FINE, succeeded({"job": [7, 7, 7], "y": y[::-1]}), rows=3).wrong == 1


def test_a_result_that_was_never_computed_is_wrong():
    assert one(Effect.FINE, succeeded({"job": 7, "y": load.truth(7, 0, load.SMALL)}), runs=0).wrong == 1


def test_a_job_that_ends_otherwise_than_it_may_is_wrong():
    right = {"job": 7, "y": load.truth(7, 0, load.SMALL)}
    assert one(Effect.FAIL, succeeded(right)).wrong == 1
    assert one(Effect.KILL, succeeded(right)).wrong == 1
    assert one(Effect.FINE, Entry(JobState.FAILED, 1, 0, 10, "Refused")).wrong == 1, "its neighbour's error"
    assert one(Effect.FINE, Entry(JobState.FAILED, 1, 0, 10, "LedgerUnavailable")).wrong == 1
    assert one(Effect.KILL, Entry(JobState.FAILED, 1, 0, 2, "WorkerLost")).wrong == 1, "an attempt was left"
    assert one(Effect.KILL, Entry(JobState.FAILED, 2, 1, 2, "WorkerLost")).wrong == 1, "one of the two does not count"
    assert one(Effect.FINE, Entry(JobState.EXPIRED, 0, 0, 10), runs=0).wrong == 1
    assert one(Effect.FINE, Entry(JobState.CANCELED, 0, 0, 10), runs=0).wrong == 1
    assert one(Effect.FINE, Entry(JobState.CANCELED, 0, 0, 10), runs=0, cancel=True).sound


def test_jobs_that_the_client_took_for_refused_are_counted_apart():
    case = (Accepted("a" * 32, 7, Effect.FAIL, 0, load.SMALL), Entry(JobState.FAILED, 1, 0, 10, "Refused"), {0: 1})
    seen = evidence([case])
    seen = replace(seen, ledger={**seen.ledger, "b" * 32: case[1]})
    found = audited([case], seen)
    assert (found.accepted, found.unacknowledged, found.sound) == (1, 1, False)


def test_problems_are_told_only_up_to_a_point():
    cases = [(Accepted(f"{n:032x}", n, Effect.FINE, 0, 8), succeeded(None), {0: 1}) for n in range(MAX_PROBLEMS + 5)]
    found = audited(cases, evidence(cases))
    assert found.wrong == MAX_PROBLEMS + 5
    assert len(found.problems) == MAX_PROBLEMS
