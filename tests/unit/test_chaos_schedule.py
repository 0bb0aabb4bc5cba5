"""What chaos does is drawn from its seed and nothing else, every kind of fault comes, and all is over in time."""

from hypothesis import given
from hypothesis import strategies as st

from chaos import data, plan, schedule
from chaos.model import Effect
from chaos.plan import KINDS
from chaos.schedule import ON_POSTGRES, ON_WORKERS, FaultKind, lease_for
from forebay.contract.job import JobKind

SEEDS = st.integers(-(2**31), 2**31)
SECONDS = st.floats(5, 600)
WORKERS = st.integers(1, 8)


@given(SEEDS, SECONDS, WORKERS, st.booleans())
def test_the_same_seed_gives_the_same_schedule(seed, seconds, workers, postgres):
    assert schedule.draw(seed, seconds, workers, postgres=postgres) == schedule.draw(
        seed, seconds, workers, postgres=postgres
    )


def test_other_seeds_give_other_schedules():
    drawn = {tuple(schedule.draw(seed, 60, 2, postgres=True)) for seed in range(50)}
    assert len(drawn) == 50


@given(SEEDS, SECONDS, WORKERS, st.booleans(), st.booleans())
def test_every_kind_of_fault_comes_and_the_last_is_over_in_time(seed, seconds, workers, postgres, trains):
    faults = schedule.draw(seed, seconds, workers, postgres=postgres, trains=trains)
    expected = set(FaultKind) if postgres else set(FaultKind) - ON_POSTGRES
    assert {fault.kind for fault in faults} == expected - ({FaultKind.KILL_TRAINER} if not trains else set())
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(fault.at > 0 and fault.at + fault.lasts_s <= seconds for fault in faults)
    assert all((fault.worker is not None) == (fault.kind in ON_WORKERS) for fault in faults)
    assert all(fault.worker in range(workers) for fault in faults if fault.worker is not None)
    assert {fault.worker for fault in faults if fault.kind is FaultKind.KILL_TRAINER} <= {workers - 1}


@given(SEEDS, SECONDS)
def test_a_frozen_worker_outlives_its_leases(seed, seconds):
    frozen = [f for f in schedule.draw(seed, seconds, 2, postgres=False) if f.kind is FaultKind.FREEZE_WORKER]
    assert frozen
    assert all(lease_for(seconds) < fault.lasts_s <= schedule.LONGEST_FREEZE_S for fault in frozen)


@given(SEEDS, st.integers(20, 600), SECONDS)
def test_the_load_has_as_many_jobs_as_asked_for_and_some_of_each_fate(seed, jobs, seconds):
    drawn = plan.draw(seed, jobs, seconds, [JobKind.PREDICT])
    specs = [spec for submission in drawn for spec in submission.specs]
    assert len(specs) == jobs
    assert {spec.effect for spec in specs} == set(Effect)
    assert drawn == plan.draw(seed, jobs, seconds, [JobKind.PREDICT])
    assert [s.at for s in drawn] == sorted(s.at for s in drawn)
    assert all(0 <= s.at < seconds for s in drawn)
    assert all(s.many or len(s.specs) == 1 for s in drawn)
    keys = [s.key for s in drawn if s.key is not None]
    assert len(keys) == len(set(keys))


@given(SEEDS)
def test_all_kinds_come_together_and_some_of_each_are_canceled_and_retried(seed):
    drawn = plan.draw(seed, 100, 90, KINDS)
    assert {submission.kind for submission in drawn} == set(KINDS)
    for kind in set(KINDS) - {JobKind.PREDICT}:
        assert any(s.retry and s.cancel_after_s is not None for s in drawn if s.kind is kind)
    assert plan.draw(seed, 100, 90, [JobKind.BATCH]) != []


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 16), st.sampled_from([data.SMALL, data.LARGE]))
def test_no_job_has_the_result_of_another(one, other, rows, size):
    same = (data.truth(one, rows, size) == data.truth(other, rows, size)).all()
    assert same == (one == other)
