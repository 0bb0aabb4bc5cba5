"""Callbacks of Lightning's loop: they tell points, keep the best state, write checkpoints, and stop the run on SIGTERM.

Only the first process writes anything. Lightning's own handler of SIGTERM is replaced: it talks to the other processes from
within a signal handler, at a moment when they may not listen.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import (
    CHECKPOINT_FOLDER,
    TRAIN,
    VALIDATION,
    Event,
    Point,
    Saved,
    TrainRequest,
    better,
)
from forebay.worker.trainer.module import TrainingModule
from forebay.worker.trainer.stopping import Stop, Stopped

Tell = Callable[[Event], None]

POINT_EVERY_S = 1.0  # between two points of a split, besides those at the end of an epoch
MANY_EPOCHS = 1000  # in a run of more, the end of an epoch makes no point either


class EventWriter(pl.Callback):
    """Tells how the run goes, and moves its position on."""

    def __init__(self, tell: Tell, epochs: int, steps: int, lr: float) -> None:
        self._tell = tell
        self._every_epoch = epochs <= MANY_EPOCHS
        self._epochs, self._steps, self._lr = epochs, steps, lr
        self._told = {TRAIN: 0.0, VALIDATION: 0.0}  # when
        self._rows, self._rows_at = 0, 0.0  # since the last point of the training split
        self._begun, self._begun_step = 0.0, 0
        self._before = torch.zeros(2)  # loss sums at the last point

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self._begun = self._rows_at = self._told[TRAIN] = time.monotonic()
        self._begun_step = trainer.global_step
        self._before = pl_module.loss_sums.cpu()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A point of the loss since the last one."""
        pl_module.position.batch = batch_idx + 1
        self._rows += len(batch.targets) * trainer.world_size
        ends = pl_module.position.batch == trainer.num_training_batches  # then the epoch's own point comes
        if trainer.is_global_zero and not ends and time.monotonic() - self._told[TRAIN] >= POINT_EVERY_S:
            loss, weight = (pl_module.loss_sums.cpu() - self._before).tolist()
            if weight:
                self._point(trainer, pl_module, pl_module.unit(loss / weight))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero and self._due(VALIDATION, pl_module):
            self._told[VALIDATION] = time.monotonic()
            measured, epoch = dict(pl_module.measured), pl_module.position.epoch + 1
            self._tell(Point(trainer.global_step, epoch, VALIDATION, measured, steps=self._steps))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """InvalidInput when the loss is not finite, for it does not become so again."""
        loss = pl_module.epoch_loss()
        if not math.isfinite(loss):
            raise InvalidInput(
                f"the training loss is {loss} in epoch {pl_module.position.epoch + 1}: lower lr (it is {self._lr:g}), or set clip"
            )
        if trainer.is_global_zero and self._due(TRAIN, pl_module):
            self._point(trainer, pl_module, loss)
        pl_module.position.epoch += 1
        pl_module.position.batch = 0
        pl_module.loss_sums = torch.zeros_like(pl_module.loss_sums)
        self._before = pl_module.loss_sums.cpu()

    def _due(self, split: str, module: TrainingModule) -> bool:
        last = module.position.epoch + 1 >= self._epochs
        return self._every_epoch or last or time.monotonic() - self._told[split] >= POINT_EVERY_S

    def _point(self, trainer: pl.Trainer, module: TrainingModule, loss: float) -> None:
        now, step = time.monotonic(), trainer.global_step
        done, took = step - self._begun_step, now - self._begun
        eta = (self._steps - step) * took / done if done else None
        rate = self._rows / (now - self._rows_at) if self._rows and now > self._rows_at else None
        self._tell(Point(step, module.position.epoch + 1, TRAIN, {"loss": loss}, rate, eta, self._steps))
        self._before = module.loss_sums.cpu()
        self._rows, self._rows_at, self._told[TRAIN] = 0, now, now


class BestWeights(pl.Callback):
    """Keeps the state with the best metric on the validation split; without one, the last state is the best."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.score: float | None = None
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Compares; InvalidInput when the split is too small or too uniform for the metric."""
        if self._metric not in pl_module.measured:
            there = ", ".join(pl_module.measured)
            raise InvalidInput(
                f"{self._metric} cannot be measured on this validation split, only {there}; name another metric"
            )
        score = pl_module.measured[self._metric]
        if self.score is None or better(self._metric, score, self.score):
            self.score = score
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.net.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.weights = state_dict["score"], state_dict["weights"]


class CheckpointSaver(pl.Callback):
    """Writes a checkpoint when it is time, and one more when the run is asked to stop.

    All processes agree at every step, so that none goes on alone. A file appears under its name when it is complete.
    """

    def __init__(self, folder: Path, when: TrainRequest, tell: Tell, stop: Stop) -> None:
        self._folder, self._when, self._tell, self._stop = folder, when, tell, stop
        self._step, self._time = 0, 0.0
        self._kept: list[Path] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Lightning has just put its own handler in the place of ours."""
        self._stop.listen()
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps. The end of an epoch is left to the next hook, when it has been validated."""
        ends = batch_idx + 1 == trainer.num_training_batches
        if not ends and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._save_or_stop(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Behind the validation; a run that is about to end goes on to it."""
        if not trainer.should_stop and pl_module.position.epoch < (trainer.max_epochs or 0):
            self._save_or_stop(trainer, pl_module)

    def _save_or_stop(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        wanted = 2 if self._stop.asked else 1 if self._is_time(trainer) else 0
        if trainer.world_size > 1:
            agreed = torch.tensor([wanted], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
            wanted = int(agreed)
        if wanted:
            self._save(trainer, module)
        if wanted == 2:
            raise Stopped

    def _is_time(self, trainer: pl.Trainer) -> bool:
        steps, minutes = self._when.checkpoint_steps, self._when.checkpoint_minutes
        by_steps = steps is not None and trainer.global_step - self._step >= steps
        return by_steps or (minutes is not None and time.monotonic() - self._time >= 60 * minutes)

    def _save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        name = f"{CHECKPOINT_FOLDER}/{trainer.global_step:09d}.ckpt"
        path = self._folder / name
        writing = path.with_suffix(".writing")
        trainer.save_checkpoint(writing, weights_only=False)
        if trainer.is_global_zero:
            put_in_place(writing, path)
            self._tell(Saved(trainer.global_step, module.position.epoch + 1, name))
            self._kept = [*(kept for kept in self._kept if kept != path), path]
            for old in self._kept[: -self._when.checkpoint_keep or None]:
                old.unlink(missing_ok=True)
            self._kept = self._kept[-self._when.checkpoint_keep :]
        self._step, self._time = trainer.global_step, time.monotonic()


def put_in_place(written: Path, path: Path) -> None:
    """Rename a file once it is on the disk."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
