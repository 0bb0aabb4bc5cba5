"""Batch sizes after memory has run out: halved at once, remembered for every worker, tried again now and then."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.execution.ceilings import LOOK_AGAIN_S, TRY_MORE_AFTER_S, MemoryCeilings
from support.ledgers import new_ledger


class Clock:
    """A clock that the test moves; the ledger's and the limits'."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with new_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock=clock) as ledger:
        yield ledger


@pytest.fixture
def model(ledger: Ledger) -> ModelVersion:
    return ModelRegistry(ledger).register(
        ModelVersion("big", 0, "python", "", "none", 0, Signature(), max_batch_size=64)
    )


def test_without_a_ceiling_a_batch_is_as_large_as_was_registered(ledger: Ledger, model: ModelVersion) -> None:
    assert MemoryCeilings(CeilingStore(ledger, "cpu")).rows(model) == 64


def test_what_did_not_fit_is_halved_at_once_and_holds_for_a_second_worker(
    ledger: Ledger, model: ModelVersion, clock: Clock
) -> None:
    first = MemoryCeilings(CeilingStore(ledger, "cpu"), clock)
    assert first.rows(model) == 64
    first.too_large(model, 64)
    first.too_large(model, 32)
    assert first.rows(model) == 16
    assert MemoryCeilings(CeilingStore(ledger, "cpu"), clock).rows(model) == 16


def test_another_kind_of_device_has_its_own_ceiling(ledger: Ledger, model: ModelVersion) -> None:
    MemoryCeilings(CeilingStore(ledger, "cpu")).too_large(model, 64)
    assert MemoryCeilings(CeilingStore(ledger, "NVIDIA H200")).rows(model) == 64


def test_a_ceiling_is_never_raised_by_a_larger_failure(ledger: Ledger, model: ModelVersion) -> None:
    ceilings = CeilingStore(ledger, "cpu")
    MemoryCeilings(ceilings).too_large(model, 16)
    MemoryCeilings(ceilings).too_large(model, 64)
    assert MemoryCeilings(ceilings).rows(model) == 8


def test_after_a_long_time_one_worker_tries_more_and_what_fits_is_remembered(
    ledger: Ledger, model: ModelVersion, clock: Clock
) -> None:
    ceilings = CeilingStore(ledger, "cpu")
    MemoryCeilings(ceilings, clock).too_large(model, 16)
    clock.now += TRY_MORE_AFTER_S + 1
    bold, other = MemoryCeilings(ceilings, clock), MemoryCeilings(ceilings, clock)
    assert bold.rows(model) == 16
    assert other.rows(model) == 8
    bold.fitted(model, 16)
    clock.now += LOOK_AGAIN_S + 1
    assert other.rows(model) == 16


def test_a_try_that_fails_leaves_the_ceiling_where_it_was(ledger: Ledger, model: ModelVersion, clock: Clock) -> None:
    ceilings = CeilingStore(ledger, "cpu")
    MemoryCeilings(ceilings, clock).too_large(model, 16)
    clock.now += TRY_MORE_AFTER_S + 1
    bold = MemoryCeilings(ceilings, clock)
    assert bold.rows(model) == 16
    bold.too_large(model, 16)
    bold.fitted(model, 8)
    assert bold.rows(model) == MemoryCeilings(ceilings, clock).rows(model) == 8


def test_a_deleted_version_takes_its_ceilings_along(ledger: Ledger, model: ModelVersion) -> None:
    ceilings = CeilingStore(ledger, "cpu")
    ceilings.lower("big", 1, 4)
    ModelRegistry(ledger).delete("big/1")
    assert ceilings.get("big", 1) is None
    ceilings.lower("big", 1, 4)  # a worker that had it loaded still
    assert ceilings.get("big", 1) is None
