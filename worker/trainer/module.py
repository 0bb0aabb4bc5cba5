"""What Lightning's Trainer trains: network, loss, optimizer and schedule, and validation by served outputs.

The loss of a batch is the weighted mean over its rows in all processes, so that the gradient does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import VALIDATION
from forebay.worker.trainer.labels import served
from forebay.worker.trainer.loading import Batch, Position, step_seed
from forebay.worker.trainer.preparation import OWN_LOSS, Prepared

OWN = "forebay"  # the key of a checkpoint under which is kept what Lightning does not know of


class TrainingModule(pl.LightningModule):
    """One run. `measured` are the metrics of the last validation; `position` is where the run stands."""

    def __init__(self, ready: Prepared, steps: int, position: Position) -> None:
        """`steps` are those planned in all."""
        super().__init__()
        self.net = ready.network()
        self.position, self.steps = position, steps
        self.measured: dict[str, float] = {}
        self.loss_sums = torch.zeros(
            2, dtype=torch.float64
        )  # weighted losses and weights of this process in this epoch
        self._ready, self._params, self._loss, self._loss_of = ready, ready.params, ready.loss, _LOSSES[ready.loss]
        self._validation = ready.rows[VALIDATION]
        self._seed, self._data_hash = ready.request.seed, ready.summary.sha256
        self._outputs: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The share of this process in the batch's loss, times the processes: their gradients are averaged."""
        torch.manual_seed(step_seed(self._seed, self.position.epoch, batch_idx, self.global_rank))
        losses = self._loss_of(self.net(*batch.inputs), batch.targets)  # (rows,)
        total = (losses * batch.weights).sum()
        self.loss_sums = self.loss_sums.to(total.device) + torch.stack([total.detach(), batch.weights.sum()])
        return total * (self.trainer.world_size / batch.total)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Outputs of this process's share."""
        del batch_idx
        self._outputs.append(served(self.net(*batch), self._loss).float())

    def on_validation_epoch_end(self) -> None:
        """The metrics of all rows, put together from all processes."""
        shares = self._from_all(torch.cat(self._outputs))  # (processes, share, ...)
        self._outputs = []
        outputs = shares.transpose(0, 1).flatten(0, 1)[: len(self._validation)]
        self.measured = self._ready.score(outputs.cpu(), self._validation)[0]
        # Here, for early stopping: Lightning calls callbacks before this hook, when the metrics are still the last ones.
        self.log_dict({name: torch.tensor(value) for name, value in self.measured.items()}, logger=False)

    def configure_optimizers(self) -> Any:
        optimizer = _OPTIMIZERS[self._params["optimizer"]](self.net.parameters(), self._params)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(self._params, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the run stands, and on which data. Each process calls it, and resumes with an equal share of the losses."""
        checkpoint[OWN] = {
            "data": self._data_hash,
            "epoch": self.position.epoch,
            "batch": self.position.batch,
            "loss_sums": self._from_all(self.loss_sums).mean(0).cpu(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """InvalidInput when the data has changed since."""
        kept = checkpoint[OWN]
        if kept["data"] != self._data_hash:
            raise InvalidInput("the data set has changed since the checkpoint was written; start a new run")
        self.position.epoch, self.position.batch = kept["epoch"], kept["batch"]
        self.loss_sums = kept["loss_sums"]

    def epoch_loss(self) -> float:
        """The mean training loss of this epoch, so far, over all processes, in the target's unit."""
        total = self._from_all(self.loss_sums).sum(0)
        return self._ready.unit(float(total[0]) / float(total[1]))

    def unit(self, loss: float) -> float:
        """A training loss in the target's unit, which may have been scaled."""
        return self._ready.unit(loss)

    def _from_all(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, `(processes, ...)`."""
        return tensor[None] if self.trainer.world_size == 1 else cast(Tensor, self.all_gather(tensor))


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(-1) - targets) ** 2


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.reshape(-1), targets.float(), reduction="none")


def _own(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return outputs


_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse, "cross-entropy": _cross_entropy, "bce": _bce, OWN_LOSS: _own,
}  # fmt: skip


def _sgd(parameters: Any, params: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, params["lr"], momentum=params["momentum"], weight_decay=params["weight_decay"])


_OPTIMIZERS: Mapping[str, Callable[[Any, Mapping[str, Any]], torch.optim.Optimizer]] = {
    "gd": _sgd,
    "sgd": _sgd,
    "adam": lambda parameters, params: torch.optim.Adam(parameters, params["lr"], weight_decay=params["weight_decay"]),
    "adamw": lambda parameters, params: torch.optim.AdamW(
        parameters, params["lr"], weight_decay=params["weight_decay"]
    ),
}


def _factor(params: Mapping[str, Any], steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at a step."""
    planned, warmup = _planned(params["schedule"], steps), max(1, params["warmup_steps"])
    return lambda step: min(1.0, (step + 1) / warmup) * planned(step)


def _planned(schedule: str, steps: int) -> Callable[[int], float]:
    if schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    if schedule == "step":
        return lambda step: 0.1 ** (3 * step // max(1, steps))
    return lambda _: 1.0
