"""Jobs whose model generates token by token: stopped between two tokens, their neighbours kept, and their text told meanwhile."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from forebay.contract.errors import TimedOut
from forebay.contract.job import JobState
from forebay.contract.wire.messages import TextPiece
from forebay.contract.wire.payload import pack_input
from forebay.storage.ledger.connection import Ledger
from forebay.worker.kinds import row_jobs
from forebay.worker.runtimes import Between, Interrupted, Piece
from forebay.worker.shared_page import SharedPage, TimeLimitedModel
from support.runner_bench import Bench
from support.waiting import FakeClock


class Generating(Bench):
    """Its model needs for each row as many tokens as the row says; `after` is called with the number of each."""

    after: Callable[[int], None] = staticmethod(lambda _: None)

    def generate(self, rows: Sequence[int], between: Between) -> list[Any]:
        made: list[Any] = [None] * len(rows)
        for token in range(1, max(rows) + 1):
            going = [i for i, row in enumerate(rows) if made[i] is None]
            if not going:
                break
            self.ran.append(len(going))
            for i in going:
                made[i] = rows[i] if rows[i] == token else None
            self.after(token)
            for i in between([Piece(i, 0, token - 1, "x") for i in going]):
                made[i] = Interrupted() if made[i] is None else made[i]
        return made

    def predict(self, rows: Sequence[int]) -> list[Any]:
        raise AssertionError("a model that generates is not asked to predict")


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
    assert (
        bench.ran == [4] * 3 + [3] * 2 + [2] * 15
    )  # the canceled row is given up after token 5, and 20 is the longest


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
    monkeypatch.setattr(bench, "generate", lambda rows, _: [TimedOut("too long") if row == 5 else row for row in rows])
    bench.runner.run(ids)
    assert bench.states(ids) == "sf"
    error = bench.info(ids[1]).error
    assert error is not None
    assert (error.type, error.message) == ("TimedOut", "too long")


def test_a_batch_that_breaks_is_halved_and_its_good_rows_run_again(bench: Generating) -> None:
    ids = bench.add(3, 5, 7, 9)
    generate = bench.generate

    def broken(rows: Sequence[int], between: Between) -> list[Any]:
        if 7 in rows:
            raise ValueError("cannot stand 7")
        return generate(rows, between)

    bench.generate = broken  # type: ignore[method-assign]
    bench.runner.run(ids)
    assert bench.states(ids) == "ssfs"


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

    class Model:
        def generate(self, rows: Sequence[int], between: Between) -> list[int]:
            for seconds in rows:
                clock.forward(seconds)
                overdue.append(page.overdue() is not None)
                between([])
            return list(rows)

    model = TimeLimitedModel(Model(), page, 10)
    assert model.generate([6, 6, 11, 6], lambda _: ()) == [6, 6, 11, 6]
    assert overdue == [False, False, True, False]
