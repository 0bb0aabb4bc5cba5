"""The migrations bring a database to what storage.tables declares, on both kinds of database."""

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.ledger import tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import current, upgrade
from support.servers import new_database


@pytest.fixture
def twin_database(database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A second empty database of the same kind."""
    if database.startswith("sqlite"):
        yield database.replace("ledger.db", "twin.db")
        return
    with new_database(request.getfixturevalue("pg_url")) as name:
        yield f"{database.rpartition('/')[0]}/{name}"


def differences(ledger: Ledger) -> list[Any]:
    with ledger.read() as connection:
        context = MigrationContext.configure(
            connection.alchemy, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, tables.metadata))


def indexes(ledger: Ledger) -> dict[str, tuple[Any, ...]]:
    """Name → table, columns, uniqueness, and the condition in the one form both databases' inspectors give it."""
    found = {}
    inspector = inspect(ledger.engine)
    for table in inspector.get_table_names():
        for index in inspector.get_indexes(table):
            where = index["dialect_options"].get(f"{ledger.engine.dialect.name}_where")
            found[index["name"]] = (table, index["column_names"], bool(index["unique"]), str(where))
    return found


def from_tables(url: str) -> Ledger:
    ledger = Ledger(url, create=True)
    with ledger.write() as connection:
        tables.metadata.create_all(connection.alchemy)
    return ledger


def test_a_migrated_ledger_is_what_the_tables_declare(ledger: Ledger) -> None:
    assert differences(ledger) == []


def test_a_difference_would_be_seen(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(text("ALTER TABLE jobs DROP COLUMN client"))
        connection.execute(text("DROP INDEX ix_jobs_parent"))
    assert sorted(difference[0] for difference in differences(ledger)) == ["add_column", "add_index"]


def test_indexes_have_the_names_columns_and_conditions_of_the_tables(ledger: Ledger, twin_database: str) -> None:
    twin = from_tables(twin_database)
    try:
        declared = indexes(twin)
    finally:
        twin.close()
    assert indexes(ledger) == declared
    assert set(declared) == {index.name for table in tables.metadata.tables.values() for index in table.indexes}
    whole = {name for name, (*_, where) in declared.items() if where in ("", "None")}
    files = ("ix_files_owner", "ix_files_blob", "ix_request_batches_owner", "ix_request_batches_hash")
    assert whole == {
        "ix_jobs_model",
        "ix_shards_batch",
        "ix_training_runs_model",
        "ix_evaluations_version",
        "ix_benchmarks_version",
        "ix_drift_counts_hour",
        "ux_trials_number",
        *files,
    }, "every other index is partial: what it does not hold costs nothing"


def test_primary_and_foreign_keys_are_those_of_the_tables(ledger: Ledger, twin_database: str) -> None:
    twin = from_tables(twin_database)
    try:
        for name in tables.metadata.tables:
            ours, theirs = inspect(ledger.engine), inspect(twin.engine)
            assert ours.get_pk_constraint(name) == theirs.get_pk_constraint(name)
            assert ours.get_foreign_keys(name) == theirs.get_foreign_keys(name)
    finally:
        twin.close()


def test_an_upgrade_gives_the_revision_and_a_second_one_changes_nothing(ledger: Ledger) -> None:
    assert current(ledger) == upgrade(ledger) == "0001"
    assert differences(ledger) == []


def test_a_ledger_that_was_never_upgraded_has_no_revision(empty_database: str) -> None:
    ledger = Ledger(empty_database, create=True)
    try:
        assert current(ledger) is None
        assert upgrade(ledger) == current(ledger)
    finally:
        ledger.close()


def test_an_upgrade_that_fails_leaves_nothing_behind(empty_database: str) -> None:
    ledger = Ledger(empty_database, create=True)
    try:
        with ledger.write() as connection:
            connection.execute(text("CREATE TABLE workers (name INTEGER)"))  # in the way of the last table
        with pytest.raises(LedgerUnavailable, match="workers"):
            upgrade(ledger)
        assert current(ledger) is None
        assert inspect(ledger.engine).get_table_names() == ["workers"]
    finally:
        ledger.close()
