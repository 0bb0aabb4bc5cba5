"""An audit that is given a lost, doubled or wrong job says so, and one that is given a sound run finds nothing."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chaos import data as made
from chaos.audit import MAX_PROBLEMS, Accepted, Entry, Evidence, Findings, Retries, audit
from chaos.data import JobSpec
from chaos.model import Effect
from chaos.outputs import Output
from forebay.contract.job import JobKind, JobState

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
    job = Accepted(f"{number:032x}", number, JobSpec(effect, rows), cancel=ending == "canceled")
    most, uncounted = draw(st.integers(1, 10)), draw(st.integers(0, 3))
    attempt = uncounted + (most if ending == "WorkerLost" else draw(st.integers(1, most)))
    least = 1 if ending == "succeeded" else 0
    runs = {row: draw(st.integers(least, attempt)) for row in range(max(1, rows))}
    if ending == "succeeded":
        result = {"job": number, "y": made.truth(number, rows, made.SMALL)}
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
    return audit([job for job, _, _ in cases], seen)


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
def test_a_job_that_has_not_ended_has_hung(cases, state, data):
    job, entry, _ = data.draw(st.sampled_from(cases))
    seen = evidence(cases)
    found = audited(cases, replace(seen, ledger={**seen.ledger, job.id: replace(entry, state=state)}))
    assert (found.lost, found.hung) == (0, 1)
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
    case = (Accepted("a" * 32, 7, JobSpec(effect, rows), cancel), entry, dict.fromkeys(range(max(1, rows)), runs))
    return audited([case], evidence([case]))


def succeeded(result: object) -> Entry:
    return Entry(JobState.SUCCEEDED, 1, 0, 10, result=result)


def test_the_result_of_another_input_is_wrong():
    assert one(Effect.FINE, succeeded({"job": 7, "y": made.truth(7, 0, made.SMALL)})).sound
    assert one(Effect.FINE, succeeded({"job": 8, "y": made.truth(7, 0, made.SMALL)})).wrong == 1
    assert one(Effect.FINE, succeeded({"job": 7, "y": made.truth(8, 0, made.SMALL)})).wrong == 1
    assert one(Effect.FINE, succeeded({"job": 7, "y": made.truth(7, 0, made.SMALL)[:-1]})).wrong == 1
    assert one(Effect.FINE, succeeded(None)).wrong == 1


def test_the_rows_of_a_batch_must_come_in_order():
    y = made.truth(7, 3, made.SMALL)
    assert one(Effect.FINE, succeeded({"job": [7, 7, 7], "y": y}), rows=3).sound
    assert one(Effect.FINE, succeeded({"job": [7, 7, 7], "y": y[::-1]}), rows=3).wrong == 1


def test_a_result_that_was_never_computed_is_wrong():
    assert one(Effect.FINE, succeeded({"job": 7, "y": made.truth(7, 0, made.SMALL)}), runs=0).wrong == 1


def test_a_job_that_ends_otherwise_than_it_may_is_wrong():
    right = {"job": 7, "y": made.truth(7, 0, made.SMALL)}
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
    case = (Accepted("a" * 32, 7, JobSpec(Effect.FAIL)), Entry(JobState.FAILED, 1, 0, 10, "Refused"), {0: 1})
    seen = evidence([case])
    seen = replace(seen, ledger={**seen.ledger, "b" * 32: case[1]})
    found = audited([case], seen)
    assert (found.accepted, found.unacknowledged, found.sound) == (1, 1, False)


def test_problems_are_told_only_up_to_a_point():
    cases = [(Accepted(f"{n:032x}", n, JobSpec()), succeeded(None), {0: 1}) for n in range(MAX_PROBLEMS + 5)]
    found = audited(cases, evidence(cases))
    assert found.wrong == MAX_PROBLEMS + 5
    assert len(found.problems) == MAX_PROBLEMS


ID = "a" * 32
RETRIED_ONCE = Retries({ID: 1})


def other(
    kind: JobKind, entry: Entry, *, cancel: bool = False, retries: Retries | None = None, **more: object
) -> Findings:
    """The findings about one job of another kind than a prediction, of ten rows."""
    job = Accepted(ID, 7, JobSpec(rows=0 if kind is JobKind.TRAIN else 10, kind=kind), cancel)
    runs = {(7, row): 1 for row in range(10)}
    seen = Evidence({ID: entry}, {ID: 1 + 2 * len(entry.retried)}, runs)
    return audit([job], replace(seen, **{name: {ID: value} for name, value in more.items()}), retries)


def test_a_batch_is_right_when_each_of_its_rows_is_there_once():
    done = Entry(JobState.SUCCEEDED, 1, 0, 10)
    assert other(JobKind.BATCH, done, outputs=Output()).sound
    assert other(JobKind.BATCH, done, outputs=Output(lost=1)).wrong == 1
    assert other(JobKind.BATCH, done, outputs=Output(doubled=1)).wrong == 1
    assert other(JobKind.BATCH, done, outputs=Output(wrong=1)).wrong == 1
    assert other(JobKind.BATCH, done).wrong == 1, "it has no output"
    assert other(JobKind.BATCH, done, outputs=Output(), audits=["a part is missing"]).wrong == 1
    assert other(JobKind.BATCH, Entry(JobState.FAILED, 1, 0, 10, "PartMissing")).wrong == 1


def test_a_training_is_right_when_it_made_the_one_version_that_it_tells_of():
    done = Entry(JobState.SUCCEEDED, 1, 0, 10, result={"version": 3, "metrics": {"accuracy": 0.9}})
    assert other(JobKind.TRAIN, done, versions=[3]).sound
    assert other(JobKind.TRAIN, done, versions=[3, 4]).wrong == 1
    assert other(JobKind.TRAIN, done, versions=[2]).wrong == 1
    assert other(JobKind.TRAIN, done).wrong == 1
    assert other(JobKind.TRAIN, Entry(JobState.CANCELED, 1, 0, 10), cancel=True, versions=[3]).wrong == 1


def test_trainings_on_the_same_data_must_learn_the_same():
    jobs = [Accepted(f"{n:032x}", n, JobSpec(kind=JobKind.TRAIN)) for n in (1, 2)]
    entries = [Entry(JobState.SUCCEEDED, 1, 0, 10, result={"version": 1, "metrics": {"f1": f1}}) for f1 in (0.5, 0.6)]
    ledger = {job.id: entry for job, entry in zip(jobs, entries, strict=True)}
    seen = Evidence(ledger, dict.fromkeys(ledger, 1), {}, versions={id: [1] for id in ledger})
    assert audit(jobs, seen).wrong == 1


def test_an_evaluation_is_right_when_it_has_counted_what_is_there_and_is_recorded_once():
    counts, failed = made.confusion(JobSpec(rows=10, kind=JobKind.EVALUATE))
    assert (sum(map(sum, counts)), failed) == (10, 0)
    done = Entry(JobState.SUCCEEDED, 1, 0, 10, result={"confusion": counts, "failed": 0})
    assert other(JobKind.EVALUATE, done, evaluations=1).sound
    assert other(JobKind.EVALUATE, done).wrong == 1
    assert other(JobKind.EVALUATE, replace(done, result={"confusion": counts, "failed": 1}), evaluations=1).wrong == 1


def test_a_job_that_was_retried_ends_once_more():
    again = Entry(JobState.FAILED, 2, 1, 10, "Refused", retried=((JobState.FAILED, "Refused"),))
    job = Accepted(ID, 7, JobSpec(Effect.FAIL))
    seen = Evidence({ID: again}, {ID: 3}, {(7, 0): 2})
    assert audit([job], seen, RETRIED_ONCE).sound
    assert audit([job], seen, Retries({}, frozenset({ID}))).sound, "nobody knew whether it was retried"
    assert audit([job], seen).wrong == 1, "nobody retried it"
    assert audit([job], seen, Retries({ID: 2})).wrong == 1, "a retry is lost"
    assert audit([job], replace(seen, final_writes={ID: 4}), RETRIED_ONCE).written_twice == 1
    wrong = replace(again, retried=((JobState.FAILED, "LedgerUnavailable"),))
    assert audit([job], replace(seen, ledger={ID: wrong}), RETRIED_ONCE).wrong == 1


def test_a_canceled_job_that_was_retried_is_not_canceled_once_more():
    canceled = Entry(JobState.CANCELED, 1, 1, 10, retried=((JobState.CANCELED, ""),))
    assert other(JobKind.BATCH, canceled, cancel=True, retries=RETRIED_ONCE).wrong == 1
    done = replace(canceled, state=JobState.SUCCEEDED)
    assert other(JobKind.BATCH, done, cancel=True, retries=RETRIED_ONCE, outputs=Output()).sound
