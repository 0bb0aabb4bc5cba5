"""What the tests share: a ledger on SQLite and on PostgreSQL, fresh for every test, and a real Valkey.

FOREBAY_TEST_POSTGRES may name a server (postgresql://user@host:port) whose user may create databases; else one is
started from Debian's programs. Without either, tests that need one are skipped at home and fail where CI is set.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings as hypothesis_settings
from servers import PostgresServer, ServerFailed, ValkeyServer, create_with, find_postgres

from forebay.storage.jobs import JobStore
from forebay.storage.ledger import Ledger
from forebay.storage.migrate import upgrade
from forebay.storage.models import ModelRegistry

# A loaded machine is no reason to fail; a test that hangs meets pytest-timeout.
hypothesis_settings.register_profile("forebay", deadline=None)
hypothesis_settings.load_profile("forebay")


@pytest.fixture(scope="session")
def pg_url() -> Iterator[str]:
    """A PostgreSQL server, as postgresql://user@host:port without a database."""
    if given := os.environ.get("FOREBAY_TEST_POSTGRES"):
        yield urlsplit(given)._replace(path="", query="", fragment="").geturl()
        return
    programs = find_postgres()
    if programs is None:
        _do_without("no PostgreSQL: install Debian's package postgresql, or set FOREBAY_TEST_POSTGRES")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server.url
    except ServerFailed as error:
        _do_without(f"PostgreSQL in {programs} does not start: {error}")
    finally:
        server.remove()
