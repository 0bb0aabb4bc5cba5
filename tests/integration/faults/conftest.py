"""Ledgers whose commits a test may lose, once of each kind."""

from collections.abc import Iterator

import pytest

from forebay.storage.ledger.connection import Ledger
from support.commit_faults import FaultyDatabase, faulty_database
from support.ledgers import new_ledger


@pytest.fixture
def faulty(database: str) -> Iterator[FaultyDatabase]:
    with faulty_database(database) as faulty:
        yield faulty


@pytest.fixture
def far_ledger(faulty: FaultyDatabase) -> Iterator[Ledger]:
    with new_ledger(faulty.url, settle_s=2.0) as ledger:
        yield faulty.watch(ledger)
