"""What chaos does is drawn from its seed and nothing else, every kind of fault comes, and all is over in time."""

from hypothesis import given
from hypothesis import strategies as st

from chaos import load, schedule
from chaos.model import Effect
from chaos.schedule import ON_POSTGRES, ON_WORKERS, FaultKind, lease_for

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


@given(SEEDS, SECONDS, WORKERS, st.booleans())
def test_every_kind_of_fault_comes_and_the_last_is_over_in_time(seed, seconds, workers, postgres):
    faults = schedule.draw(seed, seconds, workers, postgres=postgres)
    expected = set(FaultKind) if postgres else set(FaultKind) - ON_POSTGRES
    assert {fault.kind for fault in faults} == expected
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(fault.at > 0 and fault.at + fault.lasts_s <= seconds for fault in faults)
    assert all((fault.worker is not None) == (fault.kind in ON_WORKERS) for fault in faults)
    assert all(fault.worker in range(workers) for fault in faults if fault.worker is not None)


@given(SEEDS, SECONDS)
def test_a_frozen_worker_outlives_its_leases(seed, seconds):
    frozen = [f for f in schedule.draw(seed, seconds, 2, postgres=False) if f.kind is FaultKind.FREEZE_WORKER]
    assert frozen
    assert all(lease_for(seconds) < fault.lasts_s <= schedule.LONGEST_FREEZE_S for fault in frozen)


@given(SEEDS, st.integers(20, 600), SECONDS)
def test_the_load_has_as_many_jobs_as_asked_for_and_some_of_each_fate(seed, jobs, seconds):
    plan = load.draw(seed, jobs, seconds)
    specs = [spec for submission in plan for spec in submission.specs]
    assert len(specs) == jobs
    assert {spec.effect for spec in specs} == set(Effect)
    assert plan == load.draw(seed, jobs, seconds)
    assert [s.at for s in plan] == sorted(s.at for s in plan)
    assert all(0 <= s.at < seconds for s in plan)
    assert all(s.many or len(s.specs) == 1 for s in plan)
    keys = [s.key for s in plan if s.key is not None]
    assert len(keys) == len(set(keys))


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 16), st.sampled_from([load.SMALL, load.LARGE]))
def test_no_job_has_the_result_of_another(one, other, rows, size):
    same = (load.truth(one, rows, size) == load.truth(other, rows, size)).all()
    assert same == (one == other)
