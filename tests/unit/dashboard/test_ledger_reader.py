"""How pages read the ledger: one query for many viewers, old data with its age, no endless waits."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import JobNotFound, LedgerUnavailable
from forebay.contract.settings import Settings
from forebay.dashboard.reads import ledger as ledger_reads
from forebay.dashboard.reads.ledger import LedgerReader
from support.ledgers import upgrade_once

Check = Callable[[LedgerReader], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Check], None]:
    """Runs a check with a reader of a ledger that is there."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade_once(url)

    def run_check(check: Check) -> None:
        async def inside() -> None:
            reader = LedgerReader(Settings.load({"FOREBAY_DATABASE": url, "FOREBAY_HOME": str(tmp_path)}))
            try:
                await check(reader)
            finally:
                reader.close()

        asyncio.run(inside())

    return run_check


class Counting:
    """A query that counts how often it was run."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _: Any) -> int:
        self.times += 1
        return self.times


def away(_: Any) -> Any:
    raise LedgerUnavailable("the ledger is away")


def test_many_viewers_share_one_query(run: Callable[[Check], None]) -> None:
    async def check(reader: LedgerReader) -> None:
        query = Counting()
        answers = await asyncio.gather(*(reader.read("k", query) for _ in range(20)))
        assert {answer.value for answer in answers} == {1}
        assert (await reader.read("k", query, max_age_s=0)).value == 2

    run(check)


def test_old_data_comes_with_its_age_and_the_reason(run: Callable[[Check], None]) -> None:
    async def check(reader: LedgerReader) -> None:
        never = await reader.read("k", away)
        assert (never.value, never.problem) == (None, "the ledger is away")
        await reader.read("j", Counting())
        old = await reader.read("j", away, max_age_s=0)
        assert (old.value, old.problem) == (1, "the ledger is away")
        assert old.age_s > 0
        assert (await reader.read("j", Counting(), max_age_s=0)).problem is None

    run(check)


def test_a_page_does_not_wait_for_a_slow_ledger(run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reads, "WAIT_S", 0.05)
    go_on = threading.Event()

    async def check(reader: LedgerReader) -> None:
        try:
            late = await reader.read("k", lambda _: go_on.wait(120))
            assert late.value is None
            assert "has not answered within" in str(late.problem)
        finally:
            go_on.set()
        monkeypatch.setattr(ledger_reads, "WAIT_S", 20)
        assert (await reader.read("k", lambda _: True)).value is True

    run(check)


def test_a_ledger_that_is_slow_already_gets_no_more_queries(
    run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_reads, "WAIT_S", 0.05)
    monkeypatch.setattr(ledger_reads, "MAX_PENDING", 2)
    go_on = threading.Event()

    async def check(reader: LedgerReader) -> None:
        try:
            await asyncio.gather(*(reader.read(i, lambda _: go_on.wait(120)) for i in range(2)))
            assert "busy" in str((await reader.read("more", Counting())).problem)
        finally:
            go_on.set()

    run(check)


def test_a_users_mistake_is_raised(run: Callable[[Check], None]) -> None:
    def nobody(_: Any) -> Any:
        raise JobNotFound("no such job")

    async def check(reader: LedgerReader) -> None:
        with pytest.raises(JobNotFound):
            await reader.read("k", nobody)

    run(check)


def test_a_change_drops_what_was_cached(run: Callable[[Check], None]) -> None:
    async def check(reader: LedgerReader) -> None:
        query = Counting()
        await reader.read("k", query, max_age_s=60)
        assert await reader.write(lambda _: "done") == "done"
        assert (await reader.read("k", query, max_age_s=60)).value == 2

    run(check)


def test_a_ledger_that_is_created_later_is_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"

    async def check() -> None:
        reader = LedgerReader(Settings.load({"FOREBAY_DATABASE": url, "FOREBAY_HOME": str(tmp_path)}))
        try:
            answer = await reader.read("k", lambda queries: queries.overview.load(), max_age_s=0)
            assert "there is no ledger" in str(answer.problem)
            upgrade_once(url)
            answer = await reader.read("k", lambda queries: queries.overview.load(), max_age_s=0)
            assert answer.problem is None
            assert answer.value is not None
        finally:
            reader.close()

    asyncio.run(check())


def test_no_more_results_are_cached_than_allowed(run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reads, "MAX_CACHED", 3)

    async def check(reader: LedgerReader) -> None:
        for i in range(5):
            await reader.read(i, Counting())
        assert list(reader._cache) == [2, 3, 4]

    run(check)
