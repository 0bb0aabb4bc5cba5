"""What the dashboard reads of training runs, on SQLite and PostgreSQL: runs by their ids, curves thinned for charts."""

import math
from itertools import pairwise

import pytest

from forebay.contract.requests.training import Point
from forebay.contract.settings import Settings
from forebay.dashboard.flower.metrics import read_metrics
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.queries import MEASURED_EVENLY, TrainingQueries
from support.query_plan import query_plan
from support.training_data import MadeRun
from support.waiting import FakeClock


def test_runs_are_found_by_their_ids_and_those_that_have_not_begun_are_left_out(ledger: Ledger) -> None:
    one, two = MadeRun(ledger, {"lr": 0.1}), MadeRun(ledger, {"lr": 0.2})
    found = TrainingQueries(ledger).runs_by_id([one.id, two.id, "0" * 32])
    assert {id: run.request["params"]["lr"] for id, run in found.items()} == {one.id: 0.1, two.id: 0.2}


@pytest.mark.parametrize("most", [1, 3, 7, 100, 1000])
def test_a_thinned_curve_keeps_first_and_last_and_goes_evenly_over_the_steps(ledger: Ledger, most: int) -> None:
    run, other = MadeRun(ledger, {}), MadeRun(ledger, {})
    train = [Point(step, 0, "train", {"loss": 1 / step}, 5.0) for step in range(1, 101)]
    run.store.add_metrics(run.job, [*train, *(Point(s, 0, "validation", {"loss": 1.0}) for s in (50, 100))], "")
    other.store.add_metrics(other.job, [Point(7, 0, "train", {"loss": 9.0})], "")
    curve = TrainingQueries(ledger).sampled_curve(run.id, most)
    steps = [point.step for point in curve if point.split == "train"]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert len(steps) <= most + 1
    assert most < 100 or steps == list(range(1, 101))
    gaps = {after - before for before, after in pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert all(point.values == {"loss": 1 / point.step} for point in curve if point.split == "train")
    assert [point.step for point in curve] == sorted(point.step for point in curve)
    assert most < 2 or [point.step for point in curve if point.split == "validation"] == [50, 100]


def test_a_run_without_points_has_an_empty_curve(ledger: Ledger) -> None:
    assert TrainingQueries(ledger).sampled_curve(MadeRun(ledger, {}).id) == []


def test_what_a_version_was_worth_is_told(ledger: Ledger) -> None:
    run = MadeRun(ledger, {})
    run.train(20)
    made = run.finish(0.9)
    assert TrainingQueries(ledger).evaluations("iris", made.version) == []
    assert TrainingQueries(ledger).runs_by_id([run.id])[run.id].version == made.version


def test_on_sqlite_a_curve_is_thinned_by_its_index(sqlite_ledger: Ledger) -> None:
    told = query_plan(sqlite_ledger, MEASURED_EVENLY, id="a", most=5)
    assert "COVERING INDEX sqlite_autoindex_job_metrics_1" in told
    assert "SCAN job_metrics" not in told


def test_how_far_running_jobs_are_is_told_and_ended_ones_are_left_out(ledger: Ledger, clock: FakeClock) -> None:
    begun, going, ended = MadeRun(ledger, {}), MadeRun(ledger, {}, model="wine"), MadeRun(ledger, {})
    ended.train(20)
    ended.finish(0.9)
    going.store.add_metrics(going.job, [Point(1, 1, "train", {"loss": 0.5}, 7.0)], "")
    going.store.add_metrics(going.job, [Point(2, 2, "train", {"loss": None}), Point(2, 2, "validation", {})], "")
    clock.forward(40)
    first, second = TrainingQueries(ledger).running()
    assert first == (begun.id, "iris", None, None, None, 40)
    assert second[:3] == (going.id, "wine", 2)
    assert math.isnan(second.loss or 0)
    text = read_metrics(LedgerQueries(ledger), Settings.load({})).decode()
    silent = 'forebay_training_silence_seconds{{job="{}",model="{}"}} 40.0'
    assert silent.format(begun.id, "iris") in text
    assert silent.format(going.id, "wine") in text
    assert f'forebay_training_loss{{job="{going.id}",model="wine"}} NaN' in text
    assert "training_epoch" in text
    assert ended.id not in text
