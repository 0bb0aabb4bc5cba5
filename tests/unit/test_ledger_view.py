"""How pages ask the ledger: one question for many, old answers with their age, never a wait without end."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.contract.errors import JobNotFound, LedgerUnavailable
from forebay.contract.settings import Settings
from forebay.dashboard.reads import ledger_view
from forebay.dashboard.reads.ledger_view import LedgerView
from support.ledgers import upgrade_once

Check = Callable[[LedgerView], Awaitable[None]]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Check], None]:
    """Runs a check with a view of a ledger that is there."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade_once(url)

    def run(check: Check) -> None:
        async def inside() -> None:
            view = LedgerView(Settings.load({"FOREBAY_DATABASE": url, "FOREBAY_HOME": str(tmp_path)}))
            try:
                await check(view)
            finally:
                view.close()

        asyncio.run(inside())

    return run


class Counting:
    """A question that counts how often it was put."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _: Any) -> int:
        self.times += 1
        return self.times


def away(_: Any) -> Any:
    raise LedgerUnavailable("the ledger is away")


def test_many_viewers_put_one_question(ask: Callable[[Check], None]) -> None:
    async def check(view: LedgerView) -> None:
        question = Counting()
        answers = await asyncio.gather(*(view.ask("k", question) for _ in range(20)))
        assert {answer.value for answer in answers} == {1}
        assert (await view.ask("k", question, fresh_s=0)).value == 2

    ask(check)


def test_an_old_answer_is_given_with_its_age_and_the_reason(ask: Callable[[Check], None]) -> None:
    async def check(view: LedgerView) -> None:
        never = await view.ask("k", away)
        assert (never.value, never.trouble) == (None, "the ledger is away")
        await view.ask("j", Counting())
        old = await view.ask("j", away, fresh_s=0)
        assert (old.value, old.trouble) == (1, "the ledger is away")
        assert old.age_s > 0
        assert (await view.ask("j", Counting(), fresh_s=0)).trouble is None

    ask(check)


def test_a_page_does_not_wait_for_a_slow_ledger(ask: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_view, "PATIENCE_S", 0.05)
    go_on = threading.Event()

    async def check(view: LedgerView) -> None:
        try:
            late = await view.ask("k", lambda _: go_on.wait(20))
            assert late.value is None
            assert "has not answered within" in str(late.trouble)
        finally:
            go_on.set()
        monkeypatch.setattr(ledger_view, "PATIENCE_S", 20)
        assert (await view.ask("k", lambda _: True)).value is True

    ask(check)


def test_a_ledger_that_is_slow_already_is_not_asked_ever_more(
    ask: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_view, "PATIENCE_S", 0.05)
    monkeypatch.setattr(ledger_view, "MAX_ASKED", 2)
    go_on = threading.Event()

    async def check(view: LedgerView) -> None:
        try:
            await asyncio.gather(*(view.ask(i, lambda _: go_on.wait(20)) for i in range(2)))
            assert "busy" in str((await view.ask("more", Counting())).trouble)
        finally:
            go_on.set()

    ask(check)


def test_what_a_user_got_wrong_is_raised(ask: Callable[[Check], None]) -> None:
    def nobody(_: Any) -> Any:
        raise JobNotFound("no such job")

    async def check(view: LedgerView) -> None:
        with pytest.raises(JobNotFound):
            await view.ask("k", nobody)

    ask(check)


def test_a_deed_makes_what_was_known_old(ask: Callable[[Check], None]) -> None:
    async def check(view: LedgerView) -> None:
        question = Counting()
        await view.ask("k", question, fresh_s=60)
        assert await view.act(lambda _: "done") == "done"
        assert (await view.ask("k", question, fresh_s=60)).value == 2

    ask(check)


def test_a_ledger_that_comes_later_is_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"

    async def check() -> None:
        view = LedgerView(Settings.load({"FOREBAY_DATABASE": url, "FOREBAY_HOME": str(tmp_path)}))
        try:
            answer = await view.ask("k", lambda ears: ears.overview.now(), fresh_s=0)
            assert "there is no ledger" in str(answer.trouble)
            upgrade_once(url)
            answer = await view.ask("k", lambda ears: ears.overview.now(), fresh_s=0)
            assert answer.trouble is None
            assert answer.value is not None
        finally:
            view.close()

    asyncio.run(check())


def test_no_more_answers_are_kept_than_allowed(ask: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_view, "MAX_KNOWN", 3)

    async def check(view: LedgerView) -> None:
        for i in range(5):
            await view.ask(i, Counting())
        assert list(view._known) == [2, 3, 4]

    ask(check)
