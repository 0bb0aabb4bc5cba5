"""Rows on their way to an endpoint: as many at once as it takes, tried again where that may help, each given as it ends.

A request that was not taken waits its turn again; it costs nothing. One that was taken and failed counts as a try. What is said
of a row then depends on whether the endpoint has answered others meanwhile: else the fault is the endpoint's, and passes.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import EndpointError, EndpointUnavailable
from forebay.contract.signature import Row
from forebay.worker.runtimes import Progress
from forebay.worker.runtimes.remote.endpoint import CONNECT_S, Endpoint, NotAnswered, NotTaken, loop
from forebay.worker.runtimes.remote.forms import Form, WrongAnswer

TRIES = 5  # of a row for which nobody else tries again
LONG_WAIT_S, SHORT_WAIT_S = 600.0, 15.0  # for an endpoint that takes nothing: where nobody else tries again, and else
FIRST_S = 0.5  # before a row is tried again; then twice as long, and so on
MAX_REFUSALS = 30  # of one row while others are taken: then it is not the endpoint that is busy, it is the row
MAX_WRONG = 2
TAKEN_S = CONNECT_S + 1  # after which a request that is on its way has been taken
LOOK_S = 0.25  # between two looks at an endpoint that others use too
CLOSE_S = 5.0
MAY_BE_ONE_ROW = (400, 413, 422)


@dataclass(slots=True, eq=False)
class Call:
    """One request: its rows by number, and what became of it so far."""

    rows: list[int]
    due: float = 0.0
    sent_at: float = 0.0
    tries: int = 0
    refusals: int = 0
    wrong: int = 0
    answered: list[int] = field(default_factory=list)  # how many the endpoint had answered, each time that it failed


@dataclass(frozen=True, slots=True)
class Route:
    """How the rows of a version are asked for: so many to a request, so many requests at once at most."""

    endpoint: Endpoint
    form: Form
    model: str
    rows_at_once: int
    concurrency: int


class RunningRows:
    """Rows of one version; one thread waits for them, and may cancel some or close the whole.

    With `insist` a row is asked for again and again here; else it fails at once, with EndpointUnavailable where that may pass.
    """

    def __init__(self, route: Route, rows: Sequence[Row], insist: bool) -> None:
        self._route, self._rows, self._insist = route, rows, insist
        size = route.rows_at_once
        self._waiting = deque(Call(list(range(at, min(at + size, len(rows))))) for at in range(0, len(rows), size))
        self._sent: dict[asyncio.Task[None], Call] = {}
        self._progress, self._lock = Progress(), threading.Lock()
        self._news, self._changed = threading.Event(), asyncio.Event()
        self._window = route.endpoint.window
        self._successes = self._window.successes
        self._refusal: str | None = None  # what the endpoint last said when it took nothing
        self._refused_at = 0.0  # the first time since it last answered
        self._future = asyncio.run_coroutine_threadsafe(self._run(), loop())

    def wait(self, seconds: float) -> Progress:
        """What has ended since this was last called; after so many seconds, if need be, that nothing has."""
        self._news.wait(seconds)
        if self._future.done():
            self._future.result()  # a fault of ours is raised
        with self._lock:
            progress, self._progress = self._progress, Progress()
            self._news.clear()
        return progress

    def cancel(self, row: int) -> None:
        """Ask no more for a row: its request is cut off, unless it holds other rows too."""
        loop().call_soon_threadsafe(self._cancel, row)

    def close(self) -> None:
        """Cut off what runs."""
        asyncio.run_coroutine_threadsafe(self._stop(), loop()).result(CLOSE_S)

    # On the loop's thread.

    async def _run(self) -> None:
        while self._waiting or self._sent:
            self._changed.clear()
            self._send_due()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._next_s())
            self._give_up()

    async def _stop(self) -> None:
        self._waiting.clear()
        running = list(self._sent)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._changed.set()

    def _cancel(self, row: int) -> None:
        for call in [*self._waiting, *self._sent.values()]:
            if row in call.rows and len(call.rows) > 1 and call in self._waiting:
                call.rows.remove(row)
            elif call.rows == [row]:
                self._waiting = deque(other for other in self._waiting if other is not call)
                for task in [task for task, sent in self._sent.items() if sent is call]:
                    task.cancel()
        self._changed.set()

    def _send_due(self) -> None:
        now = time.monotonic()
        for _ in range(len(self._waiting)):
            if not self._window.free(self._route.concurrency):
                return
            call = self._waiting.popleft()
            if call.due > now:
                self._waiting.append(call)
                continue
            self._window.running, call.sent_at = self._window.running + 1, now
            task = asyncio.create_task(self._ask(call))
            self._sent[task] = call
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        call = self._sent.pop(task)
        self._window.running -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._settle(call, error)
        self._changed.set()

    def _next_s(self) -> float | None:
        """In how many seconds something may be sent, if nothing else happens."""
        if not self._waiting:
            return None
        due = min(call.due for call in self._waiting) - time.monotonic()
        return min(LOOK_S, max(due, self._window.pause_s(), 0.001))

    def _give_up(self) -> None:
        """On an endpoint that has taken nothing for long, or says that it will not."""
        if self._window.successes != self._successes:
            self._successes, self._refusal = self._window.successes, None
        longest, pause = LONG_WAIT_S if self._insist else SHORT_WAIT_S, self._window.pause_s()
        now = time.monotonic()
        at_work = any(now - call.sent_at > TAKEN_S for call in self._sent.values())
        if self._refusal and not at_work and max(pause, now - self._refused_at) > longest:
            error = EndpointUnavailable(self._refusal, wait_s=max(0.0, pause), counted=False)
            while self._waiting:
                self._settle(self._waiting.popleft(), error)

    async def _ask(self, call: Call) -> None:
        rows, started = [self._rows[i] for i in call.rows], time.monotonic()
        try:
            body = self._route.form.body(rows)
            answer = await self._route.endpoint.ask({"model": self._route.model} | body)
            try:
                outputs, usage = self._route.form.read(rows, answer)
            except WrongAnswer as error:
                endpoint = self._route.endpoint
                words = f"{endpoint.url}: not an answer to the request: {error}: {endpoint.words(answer)}"
                raise WrongAnswer(words) from error
        except NotTaken as error:
            self._count("refused")
            self._refused(call, str(error))
        except NotAnswered as error:
            self._count("failed")
            self._failed(call, str(error))
        except WrongAnswer as error:
            self._count("wrong")
            call.wrong += 1
            if call.wrong < MAX_WRONG:
                self._waiting.appendleft(call)
            else:
                self._settle(call, EndpointError(str(error)))
        except EndpointError as error:
            self._count("rejected")
            if error.status in MAY_BE_ONE_ROW and len(call.rows) > 1:
                middle = len(call.rows) // 2
                self._waiting.extendleft((Call(call.rows[middle:]), Call(call.rows[:middle])))
            else:
                self._settle(call, error)
        except Exception as error:  # noqa: BLE001 - a row that cannot be asked for
            self._settle(call, error)
        else:
            self._count("answered")
            with self._lock:
                self._progress.prompt_tokens += usage["prompt_tokens"]
                self._progress.completion_tokens += usage["completion_tokens"]
                self._progress.seconds.append(time.monotonic() - started)
            self._settle(call, *outputs)

    def _refused(self, call: Call, words: str) -> None:
        self._refused_at = time.monotonic() if self._refusal is None else self._refused_at
        call.refusals, self._refusal = call.refusals + 1, words
        if call.refusals < MAX_REFUSALS or not self._is_to_blame(call):
            self._again(call)
        else:
            self._settle(call, EndpointError(f"{words} (so {call.refusals} times, while other requests were taken)"))

    def _failed(self, call: Call, words: str) -> None:
        call.tries += 1
        if not self._insist:
            self._settle(call, EndpointUnavailable(words, wait_s=max(0.0, self._window.pause_s())))
        elif call.tries < TRIES:
            self._again(call, FIRST_S * 2.0 ** (call.tries - 1) * (0.5 + random.random() / 2))
        elif self._is_to_blame(call):
            self._settle(call, EndpointError(f"{words} (the last of {call.tries} tries)"))
        else:
            self._settle(call, EndpointUnavailable(words))

    def _is_to_blame(self, call: Call) -> bool:
        """Whether the endpoint answers others: lately, or since the first time, when no row is left that has not failed."""
        fresh = any(not other.answered for other in [*self._waiting, *self._sent.values()])
        return self._window.successes > call.answered[-1 if fresh else 0]

    def _again(self, call: Call, wait_s: float = 0.0) -> None:
        call.due = time.monotonic() + wait_s
        call.answered.append(self._window.successes)
        self._waiting.append(call)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._progress.requests[outcome] += 1

    def _settle(self, call: Call, *outputs: Any) -> None:
        """An output for each row, or one error for all."""
        with self._lock:
            self._progress.outputs |= zip(
                call.rows, outputs * len(call.rows) if len(outputs) == 1 else outputs, strict=True
            )
            self._news.set()
