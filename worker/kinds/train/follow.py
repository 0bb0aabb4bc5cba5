"""Following one trainer from its start to its end: what it tells is recorded, and it is ended when it must not go on.

Knows the trainer's process and its events. What the end means for the job is the handler's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from forebay.contract.requests.training import DataSummary, Event, Point, Refused, Saved, Trained, decode_event
from forebay.worker.kinds.train.launch import Trainer
from forebay.worker.kinds.train.record import RunRecorder
from forebay.worker.kinds.train.stop_check import StopCheck, StopReason

log = structlog.get_logger()

TICK_S = 0.1
LINGER_S = 60.0  # from the last event to the end of the process
FROZEN_S = 5.0  # between two ticks: this process was stopped, and the trainer perhaps too


@dataclass(frozen=True, slots=True)
class TrainerEnd:
    """How a trainer ended: with `trained` or `refused`, for a `reason` of its worker's, or of itself with none of these."""

    trained: Trained | None = None
    refused: Refused | None = None
    reason: StopReason | None = None


class EventReader:
    """The events of a growing file, each once. A line that is not whole yet waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._partial = b""

    def read(self) -> list[Event]:
        """Those that came since this was last called; none while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        events = []
        for line in filter(None, lines):
            event = decode_event(line)
            if event is not None:
                events.append(event)
            else:
                log.warning("trainer_event_invalid", line=line[:200].decode("utf-8", "replace"))
        return events


class Follower:
    """Follows one trainer. `run` it once."""

    def __init__(
        self, trainer: Trainer, events: EventReader, recorder: RunRecorder, stop_check: StopCheck, *, timeout_s: float,
        grace_s: float, judge: Callable[[Point], bool] | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Without an event for `timeout_s` seconds the trainer counts as hung. It has `grace_s` for its last checkpoint. A run of
        which `judge` says at some point that it is to end is ended there.
        """  # fmt: skip
        self._trainer, self._events, self._recorder, self._stop_check = trainer, events, recorder, stop_check
        self._timeout_s, self._grace_s, self._judge, self._clock = timeout_s, grace_s, judge, clock
        self._heard_at = clock()
        self._trained: Trained | None = None
        self._refused: Refused | None = None
        self._pruned = False

    def run(self) -> TrainerEnd:
        """Until the trainer has ended. LeaseLost when a write finds that the job is another's."""
        reason = None
        while reason is None and self._trainer.status is None and not self._lingers():
            began = self._clock()
            self._read_events()
            self._recorder.write_due()
            reason = self._stop_check.reason() or (StopReason.PRUNED if self._pruned else self._silent())
            time.sleep(TICK_S)
            if self._clock() - began > FROZEN_S:
                self._heard_at = self._clock()
        if reason is StopReason.WORKER_STOPS:
            self._stop_gracefully()
        elif self._trainer.status is None:
            self._trainer.kill(self._why(reason))
        self._read_events()
        return TrainerEnd(self._trained, self._refused, reason)

    def _read_events(self) -> None:
        for event in self._events.read():
            self._heard_at = self._clock()
            match event:
                case DataSummary():
                    self._recorder.data_found(event)
                case Point():
                    self._recorder.measured(event)
                    self._pruned = self._pruned or (self._judge is not None and self._judge(event))
                case Saved():
                    self._recorder.checkpoint_saved(event)
                case Trained():
                    self._trained = event
                case Refused():
                    self._refused = event

    def _stop_gracefully(self) -> None:
        """Have it write a checkpoint, which is stored while it ends."""
        self._trainer.stop()
        until = self._clock() + self._grace_s
        while self._trainer.status is None and self._clock() < until:
            self._read_events()
            self._recorder.write_due()
            time.sleep(TICK_S)
        if self._trainer.status is None:
            self._trainer.kill(f"no checkpoint within {self._grace_s:g} s of the worker's stop: killed (SIGKILL)")

    @property
    def _told_its_end(self) -> bool:
        return self._trained is not None or self._refused is not None

    def _lingers(self) -> bool:
        """It has told its end, but its process does not end."""
        return self._told_its_end and self._clock() - self._heard_at > LINGER_S

    def _silent(self) -> StopReason | None:
        silent = not self._told_its_end and self._clock() - self._heard_at > self._timeout_s
        return StopReason.SILENT if silent else None

    def _why(self, reason: StopReason | None) -> str:
        if reason is StopReason.SILENT:
            return f"nothing heard for train_timeout_s of {self._timeout_s:g} s: killed by its worker (SIGKILL)"
        return f"killed by its worker (SIGKILL): {reason or 'it had told its end and did not end'}"
