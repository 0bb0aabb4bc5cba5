"""References and served counts in the ledger, on both databases."""

import threading

import numpy as np
import pytest

from forebay.contract.drift.sketch import WIDTH, Reference, ReferenceBuilder, Served
from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.contract.signature import Field, Signature
from forebay.dashboard.flower.metrics import read_metrics
from forebay.dashboard.pages.version import read_version
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.jobs.records import LeaseLost, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.drift import HOUR_S, KEPT_HOURS, DriftStore
from forebay.storage.models.registry import ModelRegistry
from support.waiting import FakeClock

FIELDS = (Field("x", "float32", (2,)),)


def reference() -> Reference:
    builder = ReferenceBuilder("input", FIELDS)
    builder.add({"x": np.random.default_rng(0).normal(size=(500, 2))})
    return Reference(tuple(builder.columns()), "a test")


@pytest.fixture
def store(ledger: Ledger) -> DriftStore:
    return DriftStore(ledger)


@pytest.fixture
def model(ledger: Ledger, store: DriftStore) -> ModelVersion:
    version = ModelVersion("m", 0, "python", "", "none", 0, Signature(FIELDS))
    made = ModelRegistry(ledger).register(version)
    store.set_reference("m", made.version, reference())
    return made


def served(store: DriftStore, rows: int, *, revision: int = 1, ago: int = 0, version: int = 1) -> Served:
    counts = np.zeros((2, WIDTH), np.int64)
    counts[:, 5] = rows
    return Served("m", version, revision, store.now_hour() - ago, rows, counts)


def rows_of(store: DriftStore, model: ModelVersion, hours: int = 24) -> int:
    drift = store.drift((model.name, model.version), hours)
    assert drift is not None
    assert {column.rows for column in drift.columns} == {drift.rows}
    return drift.rows


def test_what_several_workers_have_served_is_added_up_by_hour(store: DriftStore, model: ModelVersion) -> None:
    adding = [threading.Thread(target=store.add, args=([served(store, n), served(store, 1, ago=1)],)) for n in range(8)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert rows_of(store, model, hours=1) == sum(range(8))
    assert rows_of(store, model) == sum(range(8)) + 8


def test_counts_in_the_cells_of_another_reference_are_not_kept(store: DriftStore, model: ModelVersion) -> None:
    store.add([served(store, 10)])
    store.set_reference("m", model.version, reference())
    assert (rows_of(store, model), store.revision("m", model.version)) == (0, 2)
    store.add([served(store, 20), served(store, 7, revision=2)])
    assert rows_of(store, model) == 7


def test_a_version_that_is_deleted_takes_its_counts_along(
    ledger: Ledger, store: DriftStore, model: ModelVersion
) -> None:
    store.add([served(store, 10)])
    ModelRegistry(ledger).delete(model.ref)
    store.add([served(store, 10)])
    assert store.served_last() == []
    assert store.drift(("m", 1)) is None
    with pytest.raises(ModelNotFound, match="m/1 has been deleted"):
        store.set_reference("m", 1, reference())


def test_hours_are_kept_for_14_days(store: DriftStore, model: ModelVersion, clock: FakeClock) -> None:
    store.add([served(store, 10)])
    assert store.served_last() == [("m", 1)]
    clock.forward((KEPT_HOURS - 1) * HOUR_S)
    assert store.forget() == 0
    clock.forward(HOUR_S)
    assert (store.forget(), rows_of(store, model, KEPT_HOURS)) == (1, 0)
    assert store.served_last() == []


@pytest.mark.parametrize("hours", [0, KEPT_HOURS + 1, 1.5])
def test_hours_that_are_not_kept_are_refused(store: DriftStore, model: ModelVersion, hours: int) -> None:
    with pytest.raises(InvalidInput, match="is not a whole number from 1 to 336"):
        store.drift(("m", 1), hours)


def test_drift_is_a_metric_and_on_the_version_s_page(ledger: Ledger, store: DriftStore, model: ModelVersion) -> None:
    queries = LedgerQueries(ledger)
    assert "model_drifted_columns{" not in read_metrics(queries, Settings.load({})).decode()
    store.add([served(store, 200)])
    drift = read_version(queries, model.ref).drift
    assert drift is not None
    assert {column.name for column in drift.drifted} == {"x[0]", "x[1]"}
    text = read_metrics(queries, Settings.load({})).decode()
    assert 'forebay_model_drifted_columns{model="m",version="1"} 2.0' in text
    assert drift.worst is not None
    assert f'forebay_model_drift_psi{{model="m",version="1"}} {drift.worst.psi}' in text


def test_an_attempt_that_has_lost_its_lease_changes_no_reference(
    ledger: Ledger, store: DriftStore, model: ModelVersion
) -> None:
    jobs = JobStore(ledger)
    [id] = new_ids(1)
    jobs.add([NewJob(id, JobKind.REFERENCE, "m", model.version, "cpu", max_attempts=5)])
    [first] = jobs.claim([id], "a", 60.0)
    jobs.release([id], "a", {id: first.attempt})
    [second] = jobs.claim([id], "b", 60.0)
    with pytest.raises(LeaseLost):
        store.finish(first, reference(), b"")
    assert store.revision("m", 1) == 1
    assert store.finish(second, reference(), b"").id == id
    assert (store.revision("m", 1), jobs.queries.get(id).state) == (2, JobState.SUCCEEDED)
