"""Rows of one version on their way: some generate together, and others take the places of those that have ended.

When a forward pass fails, half of its rows go on without the others, and so on, until the guilty ones stand alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from forebay.contract.errors import TimedOut, without_frames
from forebay.contract.generation import Choice, completion, tokens_told
from forebay.worker.runtimes import Interrupted, Piece, Progress
from forebay.worker.runtimes.generation.decoding import LEAST_SHARED, Decoder, Generating, RunningBatch

STEP_S = 0.05  # between two looks at what was made


class RunningTexts:
    """`texts` gives those of a row: several where it asks for several. At most `at_once()` texts generate at once, and no
    more than have `budget` tokens when all are padded to what the longest may become. One thread waits for them, and adds rows.
    """  # fmt: skip

    def __init__(
        self,
        decoder: Decoder,
        rows: Sequence[Any],
        texts: Callable[[Any], Sequence[Generating]],
        at_once: Callable[[], int],
        budget: int,
        timeout_s: float | None,
    ) -> None:
        self._decoder, self._at_once, self._budget, self._timeout_s = decoder, at_once, budget, timeout_s
        self._texts = texts
        self._rows: list[Sequence[Generating]] = []
        self._open: set[int] = set()
        self._waiting: deque[deque[Generating]] = deque()
        self._batch: RunningBatch | None = None
        self._apart: list[list[Generating]] = []  # of which one may be guilty: they run by themselves
        self._by_itself = False
        self._failures: list[tuple[int, Exception]] = []
        self._idle = 0.0  # places that stood empty since rows last joined, in forward passes
        self._progress = Progress()
        self.add(rows)

    def places(self) -> int:
        """How many further texts may join those that run, if they are no longer than these."""
        if not self._decoder.joins or self._by_itself or self._apart:
            return 0
        going = [
            *(self._batch.rows if self._batch is not None else ()),
            *(text for group in self._waiting for text in group),
        ]
        longest = max((text.length for text in going), default=1)
        return max(0, min(self._at_once(), self._budget // longest) - len(going))

    def add(self, rows: Sequence[Any]) -> None:
        """Further rows, which are counted on: their texts join those that run as soon as there are places for them."""
        made = [self._texts(row) for row in rows]
        self._open.update(range(len(self._rows), len(self._rows) + len(made)))
        self._rows += made
        self._waiting += self._ordered([text for texts in made for text in texts])

    def wait(self, seconds: float) -> Progress:
        """What was made since this was last called, after some tokens."""
        until = time.monotonic() + min(seconds, STEP_S)
        while self._step() and time.monotonic() < until:
            pass
        progress, self._progress = self._progress, Progress()
        for i in list(self._open):
            self._tell(i, progress)
        progress.prompt_tokens, progress.completion_tokens = tokens_told(list(progress.outputs.values()))
        return progress

    def cancel(self, row: int) -> None:
        """Generate no more for a row."""
        self._open.discard(row)
        for text in self._rows[row]:
            if not text.over:
                text.error = Interrupted()

    def close(self) -> None:
        self._batch = None
        self._waiting.clear()
        self._decoder.forget_prefix()

    def _step(self) -> bool:
        """One forward pass: of texts that join, else of those that run; whether any is left."""
        if self._batch is not None:
            self._batch.let_go()
        if not self._admit() and self._batch is not None and self._batch.rows:
            rows = self._batch.rows
            self._count(len(rows), len(rows), len(rows))
            try:
                self._decoder.step(self._batch)
            except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its rows
                self._part(rows, error)
                self._batch = None
            self._end_late(rows)
        if self._batch is None or not self._batch.rows:
            self._batch, self._by_itself = None, False
            if not self._apart:
                self._progress.failures, self._failures = self._progress.failures + self._failures, []
        return self._batch is not None or bool(self._apart or self._waiting)

    def _admit(self) -> bool:
        """Have texts join those that run, and whether any did. That costs a forward pass: they do once as much was lost by places
        left empty.
        """  # fmt: skip
        running = len(self._batch.rows) if self._batch is not None else 0
        if self._apart and not running:
            self._by_itself = True
            self._begin(self._apart.pop())
            return True
        while self._waiting and (not self._waiting[0] or self._waiting[0][0].over):
            if self._waiting[0]:
                self._waiting[0].popleft()
            else:
                self._waiting.popleft()
        if not self._waiting or self._by_itself or self._apart or (running and not self._decoder.joins):
            return False
        room = self._room(running)
        self._idle += room / (running + room) if room else 0.0
        if not room or (running and self._idle < 1):
            return False
        self._idle = 0.0
        self._begin([self._waiting[0].popleft() for _ in range(room)])
        return True

    def _room(self, running: int) -> int:
        """How many of those that wait may join; one may be more than the budget by itself."""
        longest = max(text.length for text in (self._waiting[0][0], *(self._batch.rows if self._batch else ())))
        most: int = min(self._at_once(), self._budget // longest) - running
        return min(len(self._waiting[0]), max(most, 0 if running else 1))

    def _begin(self, texts: list[Generating]) -> None:
        texts = [text for text in texts if not text.over]
        if not texts:
            return
        now = time.monotonic()
        for text in texts:
            text.began = now if text.began is None else text.began
        read = [len(text.prompt) + len(text.tokens) for text in texts]
        self._count(len(texts), sum(read), max(read) * len(read))
        try:
            begun = self._decoder.begin(texts)
        except Exception as error:  # noqa: BLE001 - as above
            self._part(texts, error)
            return
        if self._batch is None or not self._batch.rows or not begun.rows:
            self._batch = begun if begun.rows else self._batch
            return
        try:
            self._batch.join(begun)
        except Exception as error:  # noqa: BLE001 - no memory for both, say
            self._part([*self._batch.rows, *begun.rows], error)
            self._batch = None

    def _part(self, texts: Sequence[Generating], error: Exception) -> None:
        """What these caused together, each half of them may cause again."""
        left = [text for text in texts if not text.over]
        self._failures.append((len(left), without_frames(error)))
        if len(left) == 1:
            left[0].error = without_frames(error)
        else:
            middle = len(left) // 2
            self._apart += [half for half in (left[:middle], left[middle:]) if half]

    def _end_late(self, texts: Sequence[Generating]) -> None:
        if self._timeout_s is None:
            return
        now = time.monotonic()
        for text in texts:
            if not text.over and text.began is not None and now - text.began > self._timeout_s:
                text.error = TimedOut(
                    f"not finished within timeout_s={self._timeout_s:g}: {len(text.tokens)} of up to {text.max_tokens} "
                    "tokens; ask for fewer, or register the version with more time"
                )

    def _tell(self, row: int, progress: Progress) -> None:
        texts = self._rows[row]
        error = next((text.error for text in texts if text.error is not None), None)
        if error is not None:
            self.cancel(row)  # its other texts are of no use
            progress.outputs[row] = error
            return
        for i, text in enumerate(texts):
            text.text.read(text.tokens, final=text.over)
            start, told = text.text.untold(final=text.over)
            if told:
                progress.pieces.append(Piece(row, i, start, told))
                if start == i == 0:
                    progress.first_texts.append(time.monotonic() - (text.began or 0.0))
        if all(text.over for text in texts):
            self._open.discard(row)
            told_all = [_choice(text) for text in texts]
            progress.outputs[row] = completion(told_all, len(texts[0].prompt), sum(len(text.tokens) for text in texts))

    def _count(self, rows: int, tokens: int, padded: int) -> None:
        progress = self._progress
        progress.rows = max(progress.rows, rows)
        progress.tokens, progress.padded = progress.tokens + tokens, progress.padded + padded

    def _ordered(self, texts: list[Generating]) -> deque[deque[Generating]]:
        """Groups that begin alike, as far as they fill the places that there are, and one of the rest; the longest first."""
        texts.sort(key=lambda text: -text.length)
        alike: dict[Sequence[int], list[Generating]] = {}
        for text in texts:
            alike.setdefault(tuple(text.prompt[:LEAST_SHARED]), []).append(text)
        groups: list[deque[Generating]] = []
        rest: list[Generating] = []
        for group in alike.values():
            whole = len(group) - len(group) % max(1, min(self._at_once(), self._budget // group[0].length))
            groups.append(deque(group[:whole]))
            rest += group[whole:]
        return deque([*groups, deque(sorted(rest, key=lambda text: -text.length))])


def _choice(text: Generating) -> Choice:
    told = Choice(text=text.text.text, finish_reason=text.finish_reason or "length")
    if text.sampling.logprobs is not None:
        told["logprobs"] = text.logprobs
    return told
