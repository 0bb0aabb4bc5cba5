"""A trainer without a process, for what is made of a training job's events."""

import json
from collections.abc import Iterator
from pathlib import Path

from forebay.contract.requests.request import encode
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    EVENTS_FILE,
    VALIDATION,
    DataSummary,
    Event,
    Point,
    Refused,
    Trained,
    TrainRequest,
)

STEPS = 20
FIELD = {"x": {"dtype": "float32", "shape": []}}


class ScriptedTrainer:
    """A trainer that tells one step with each look at its status: its validation accuracy grows to the parameter `accuracy`."""

    def __init__(self, folder: Path, request: TrainRequest) -> None:
        self._folder, self._script = folder, self._events(folder, request)
        self._status: int | None = None
        self.misused = False

    def _events(self, folder: Path, request: TrainRequest) -> Iterator[Event]:
        accuracy = float(request.params.get("accuracy", 0.5))
        yield DataSummary({"train": 80, "validation": 10, "test": 10}, "ab" * 32)
        if accuracy in request.params.get("refused", ()):
            yield Refused("InvalidInput", f"accuracy {accuracy:g} cannot be had")
            return
        for step in range(1, STEPS + 1):
            yield Point(step, step, VALIDATION, {"accuracy": accuracy * step / STEPS}, steps=STEPS)
        (folder / ARTIFACT_FOLDER).mkdir()
        (folder / ARTIFACT_FOLDER / "weights.json").write_text(json.dumps(accuracy))
        yield Trained({"accuracy": accuracy - 0.01}, "recipe", FIELD, FIELD)

    @property
    def status(self) -> int | None:
        if self._status is None:
            event = next(self._script, None)
            if event is None:
                self._status = 0
            else:
                with (self._folder / EVENTS_FILE).open("ab") as file:
                    file.write(encode(event) + b"\n")
        return self._status

    def kill(self, reason: str) -> None:
        self._status = -9

    stop = close = lambda self: None

    def evidence(self) -> str:
        return "it was killed"
