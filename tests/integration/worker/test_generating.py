"""Jobs whose model generates token by token: stopped between two tokens, their neighbours kept, and their text told meanwhile."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from forebay.contract.errors import TimedOut
from forebay.contract.job import JobState
from forebay.contract.wire.messages import TextPiece
from forebay.contract.wire.payload import pack_input
from forebay.storage.ledger.connection import Ledger
from forebay.worker.kinds import predict, row_jobs
from forebay.worker.runtimes import Piece, Progress
from forebay.worker.shared_page import SharedPage, TimeLimitedModel
from support.runner_bench import Bench
from support.waiting import FakeClock


class Generating(Bench):
    """Its model needs for each row as many tokens as the row says; `after` is called with the number of each."""

    after: Callable[[int], None] = staticmethod(lambda _: None)

    joins = False

    def run_each(self, rows: Sequence[int], insist: bool, at_once: Callable[[], int]) -> "Running":
        del insist
        self.limit = at_once()
        return (RunningJoined if self.joins else Running)(self, rows)

    ended: Callable[[int], Any] = staticmethod(lambda row: row)

    def predict(self, rows: Sequence[int]) -> list[Any]:
        raise AssertionError("a model that generates is not asked to predict")


class Running:
    """All rows at once, a token at a time."""

    def __init__(self, bench: Generating, rows: Sequence[int]) -> None:
        self.bench, self.rows, self.token, self.going = bench, rows, 0, set(range(len(rows)))

    def wait(self, _: float) -> Progress:
        self.token += 1
        self.bench.ran.append(len(self.going))
        pieces = [Piece(i, 0, self.token - 1, "x") for i in sorted(self.going)]
        outputs = {i: self.bench.ended(self.rows[i]) for i in self.going if self.rows[i] == self.token}
        self.going -= {*outputs}
        self.bench.after(self.token)
        return Progress(outputs, pieces=pieces, rows=len(pieces))

    def cancel(self, row: int) -> None:
        self.going.discard(row)

    def close(self) -> None:
        self.going.clear()


class RunningJoined(Running):
    """There are 16 places, and a row that joins ends so many tokens later."""

    def places(self) -> int:
        return 16 - len(self.going)

    def add(self, rows: Sequence[int]) -> None:
        first = len(self.rows)
        self.rows = [*self.rows, *(row + self.token for row in rows)]
        self.going |= {*range(first, len(self.rows))}


@pytest.fixture
def ledger(sqlite_ledger: Ledger) -> Ledger:
    """What the statements do on PostgreSQL, JobStore's own tests say."""
    return sqlite_ledger


@pytest.fixture
def bench(ledger: Ledger, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generating:
    monkeypatch.setattr(row_jobs, "CANCEL_CHECK_S", 0.0)
    return Generating(ledger, tmp_path)


def at(token: int, action: Callable[[], object]) -> Callable[[int], None]:
    """`action` after this token."""
    return lambda reached: (action() and None) if reached == token else None


def test_a_canceled_job_ends_between_two_tokens_and_its_neighbours_are_finished(bench: Generating) -> None:
    ids = bench.add(3, 50, 20, 20)
    bench.after = at(5, lambda: bench.store.cancel(ids[1:2]))
    summary = bench.runner.run(ids)
    assert (summary.succeeded, summary.stopped) == (3, 1)
    assert bench.states(ids) == "scss"
    assert bench.ran == [4] * 3 + [3] * 2 + [2] * 15  # the canceled row is given up after token 5; 20 is the longest


def test_a_canceled_job_is_told_while_its_neighbours_go_on(bench: Generating) -> None:
    ids = bench.add(30, 30)
    seen: list[str] = []

    def act(token: int) -> None:
        if token == 2:
            bench.store.cancel(ids[:1])
        if token == 3:
            bench.handler._writer.submit(lambda: None).result()  # what was to be written before is written
            seen.append(str(bench.info(ids[0]).state))

    bench.after = act
    bench.runner.run(ids)
    assert seen == ["canceled"]


def test_a_deadline_ends_a_generation_that_has_begun(bench: Generating, clock: FakeClock) -> None:
    ids = bench.add(50, deadline_at=clock() + 5) + bench.add(4)
    bench.after = at(4, lambda: clock.forward(6))
    assert bench.runner.run(ids).stopped == 1
    assert bench.states(ids) == "es"
    assert len(bench.ran) == 4


def test_a_process_that_has_to_stop_keeps_what_is_finished_and_gives_the_rest_back(bench: Generating) -> None:
    ids = bench.add(2, 50, 3, 60, 7, 8)
    bench.after = at(5, bench.context.page.stop)
    summary = bench.runner.run(ids)
    assert (summary.succeeded, set(summary.released)) == (2, {ids[i] for i in (1, 3, 4, 5)})
    assert bench.states(ids) == "sqsqqq"
    assert len(bench.ran) == 5
    assert {bench.info(id).attempt for id in ids[3:]} == {0}


def test_a_job_that_another_worker_was_given_is_given_up(bench: Generating, clock: FakeClock) -> None:
    ids = bench.add(50, 4)

    def lose() -> None:
        with bench.store.ledger.write() as connection:
            connection.execute(text("UPDATE jobs SET attempt = attempt + 1 WHERE id = :id"), {"id": ids[0]})
        bench.context.page.doubt()

    bench.after = at(3, lose)
    bench.runner.run(ids)
    assert bench.info(ids[0]).state is JobState.RUNNING
    assert bench.info(ids[1]).state is JobState.SUCCEEDED
    assert len(bench.ran) == 4


def test_a_row_that_the_model_gives_up_fails_alone(bench: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = bench.add(3, 5)
    monkeypatch.setattr(bench, "ended", lambda row: TimedOut("too long") if row == 5 else row)
    bench.runner.run(ids)
    assert bench.states(ids) == "sf"
    error = bench.info(ids[1]).error
    assert error is not None
    assert (error.type, error.message) == ("TimedOut", "too long")


def test_a_job_is_finished_when_its_own_text_has_ended(bench: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "COMMIT_EVERY_S", 0.0)
    ids = bench.add(60, 2, 40)
    seen: list[str] = []

    def act(token: int) -> None:
        if token in (4, 42):
            bench.handler._writer.submit(lambda: None).result()  # what was to be written before is written
            seen.append(bench.states(ids))

    bench.after = act
    bench.runner.run(ids)
    assert seen == ["rsr", "rss"]


def test_a_job_under_which_a_process_has_died_generates_by_itself(bench: Generating) -> None:
    ids = bench.add(3, 4, 5)
    with bench.store.ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET crashes = 1 WHERE id = :id"), {"id": ids[1]})
    bench.runner.run(ids)
    assert bench.states(ids) == "sss"
    assert sorted(bench.ran) == sorted([1] * 4 + [2] * 3 + [1] * 2)


def test_rows_that_do_not_fit_together_lower_the_ceiling(bench: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    full, limits = MemoryError("no room"), []
    failures: list[list[tuple[int, Exception]]] = [[(4, full), (1, full)], [(4, full), (2, ValueError())], []]
    wait = Running.wait

    def failing(self: Running, seconds: float) -> Progress:
        progress = wait(self, seconds)
        progress.failures = failures.pop(0) if self.token == 1 else []
        return progress

    monkeypatch.setattr(Running, "wait", failing)
    for _ in range(3):
        bench.runner.run(bench.add(2))
        limits.append(bench.limit)
    assert limits == [4, 4, 2]  # a row that does not fit alone is its own fault


def test_text_goes_to_the_clients_that_asked_for_it(bench: Generating) -> None:
    told: list[tuple[str, list[TextPiece]]] = []
    bench.context.announcer.announce_text = lambda client, pieces: told.append((client, list(pieces)))  # type: ignore[method-assign]
    [quiet] = bench.add(3)
    [loud] = bench.add(2)
    with bench.store.ledger.write() as connection:
        given = {"id": loud, "input": pack_input([2], False, stream=True)}
        connection.execute(text("UPDATE jobs SET input = :input WHERE id = :id"), given)
    bench.runner.run([quiet, loud])
    assert told == [("c", [TextPiece(loud, 0, 0, start, "x")]) for start in (0, 1)]
    assert msgspec.json.encode(told[0][1])


def test_only_the_steps_of_a_generation_are_limited_in_time(clock: FakeClock) -> None:
    page, overdue = SharedPage(clock=clock), []

    class Steps:
        cancel = close = None

        def wait(self, seconds: float) -> None:
            clock.forward(seconds)
            overdue.append(page.overdue() is not None)

    model: Any = TimeLimitedModel(SimpleNamespace(run_each=lambda *_: Steps()), page, 10)
    running = model.run_each([], False, None)
    for seconds in (6, 6, 11, 6):
        running.wait(seconds)
    assert overdue == [False, False, True, False]
