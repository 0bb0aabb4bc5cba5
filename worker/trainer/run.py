"""One run from its data to its artifact: what the trainer process does between its arguments and its exit status.

Knows every part of worker/training; nothing outside knows it but the process, and the tests that want no process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import DDPStrategy

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.recipes import CLASSES, check_metric, check_params
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    CHECKPOINT_FOLDER,
    METRICS,
    RESUME_FILE,
    TEST,
    TRAIN,
    VALIDATION,
    DataSummary,
    Event,
    Trained,
    TrainRequest,
)
from forebay.worker.trainer.artifact import RUNTIME, Artifact, outputs, write_artifact
from forebay.worker.trainer.callbacks import Best, Journal, Saver
from forebay.worker.trainer.data import Data, Part, load_data
from forebay.worker.trainer.labels import served
from forebay.worker.trainer.loading import Position, Rows, TrainingBatches, ValidationBatches
from forebay.worker.trainer.loop import Fitting, score
from forebay.worker.trainer.place import Place
from forebay.worker.trainer.recipes import Recipe, get_recipe, loss_of
from forebay.worker.trainer.stopping import Stop, Stopped

MOST_CONFUSED = 100  # classes up to which the confusion matrix is told
MOST_VALIDATIONS = 1000  # of a run; one with more epochs is validated after several


@dataclass(slots=True)
class Prepared:
    """All that a run needs besides the loop: of the data only what is trained on, so that it is in memory once."""

    request: TrainRequest
    params: Mapping[str, Any]
    metric: str
    summary: DataSummary
    recipe: Recipe
    artifact: Artifact
    rows: Mapping[str, Rows]


def train(
    folder: Path,
    request: TrainRequest,
    tell: Callable[[Event], None],
    place: Place = Place(),  # noqa: B008 - frozen
    stop: Stop | None = None,
    allowed: Sequence[str] = (),
) -> None:
    """Trains, resuming when there is a checkpoint to resume from, and tells its events; the last is `Trained`.

    InvalidInput, or another ForebayError, for what no further try would mend; Stopped when `stop` was asked.
    """
    ready = prepare(request, place, allowed)
    if place.rank == 0:
        tell(ready.summary)
    if stop is not None and stop.asked:
        raise Stopped
    (folder / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
    module, batches = _module(ready, place)
    best = Best(ready.metric)
    trainer = _trainer(folder, ready, module, best, tell, place, stop or Stop())
    resume = folder / RESUME_FILE
    checkpoint = str(resume) if resume.exists() else None
    trainer.fit(module, batches, _validation(ready, place), ckpt_path=checkpoint, weights_only=True)
    if place.rank == 0:
        if best.weights is not None:
            module.net.load_state_dict(best.weights)
        tell(_finish(folder, ready, module, trainer))


def prepare(request: TrainRequest, place: Place, allowed: Sequence[str]) -> Prepared:
    """Data read and encoded, recipe fitted; everything that can be refused is."""
    kind = get_recipe(request.recipe, allowed)
    params, metric = check_params(request.recipe, request.params), check_metric(request.recipe, request.metric)
    data = load_data(request, kind.task, bool(params["normalize"]), place.on_this_machine(request.nodes))
    _check(kind, params, data)
    recipe = kind(params)
    recipe.fit(data.parts[TRAIN].features, request.missing)
    artifact = Artifact(request.recipe, params, recipe.state, data.summary.features, data.target)
    balanced = params["class_weights"] == "balanced"
    weights = _class_weights(data) if balanced else None
    rows = {name: _rows(recipe, part, data, weights if name == TRAIN else None) for name, part in data.parts.items()}
    return Prepared(request, params, metric, data.summary, recipe, artifact, rows)


def _check(kind: type[Recipe], params: Mapping[str, Any], data: Data) -> None:
    loss, classes = loss_of(kind, params), data.target.classes
    if loss == "bce" and len(classes) != 2:
        raise InvalidInput(f"loss bce is for two classes; the target has {len(classes)}: use cross-entropy")
    if params["class_weights"] != "none" and kind.task != CLASSES:
        raise InvalidInput("class_weights is for classes; this recipe learns numbers")
    if params["patience"] and not len(data.parts[VALIDATION]):
        raise InvalidInput("patience needs a validation split; give it a share, or leave patience 0")


def _rows(recipe: Recipe, part: Part, data: Data, class_weights: torch.Tensor | None) -> Rows:
    """A split as tensors; targets as they are trained on."""
    if not len(part):
        empty = torch.zeros(0)
        return Rows((), empty, empty)
    inputs = tuple(torch.from_numpy(array) for array in recipe.encode(part.features.columns))
    if data.target.classes:
        targets = torch.from_numpy(part.targets)
        weights = torch.ones(len(part)) if class_weights is None else class_weights[targets]
        return Rows(inputs, targets, weights)
    scaled = (part.targets - data.target.mean) / data.target.deviation
    return Rows(inputs, torch.from_numpy(scaled).float(), torch.ones(len(part)))


def _class_weights(data: Data) -> torch.Tensor:
    """rows / (classes · rows of the class), as scikit-learn balances; a class without rows weighs nothing."""
    counts = torch.bincount(torch.from_numpy(data.parts[TRAIN].targets), minlength=len(data.target.classes)).float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)


def _module(ready: Prepared, place: Place) -> tuple[Fitting, TrainingBatches]:
    request, params, rows = ready.request, ready.params, ready.rows[TRAIN]
    size = len(rows) if params["optimizer"] == "gd" else params["batch_size"]
    position = Position()
    batches = TrainingBatches(rows, size, request.seed, position, place.rank, place.world)
    steps = params["epochs"] * math.ceil(len(batches) / params["accumulate"])
    torch.manual_seed(request.seed)
    net = ready.artifact.network(ready.recipe)
    loss = loss_of(type(ready.recipe), params)
    target, data = ready.artifact.target, ready.summary.sha256
    module = Fitting(net, params, loss, target, ready.rows[VALIDATION], request.seed, data, steps, position)
    return module, batches


def _validation(ready: Prepared, place: Place) -> ValidationBatches | None:
    rows = ready.rows[VALIDATION]
    return ValidationBatches(rows, ready.request.max_batch_size, place.rank, place.world) if len(rows) else None


def _trainer(
    folder: Path, ready: Prepared, module: Fitting, best: Best, tell: Callable[[Event], None], place: Place, stop: Stop
) -> pl.Trainer:
    params, metric = ready.params, ready.metric
    every = math.ceil(params["epochs"] / MOST_VALIDATIONS)
    callbacks: list[pl.Callback] = [Journal(tell, params["epochs"], module.steps, params["lr"]), best]
    if params["patience"]:
        mode = "max" if METRICS[metric] else "min"
        patience, least = math.ceil(params["patience"] / every), params["min_delta"]
        callbacks.append(EarlyStopping(metric, least, patience, mode=mode, check_on_train_epoch_end=False))
    local = place.on_this_machine(ready.request.nodes)
    cuda = place.device == "cuda" or (place.device == "auto" and torch.cuda.device_count() >= local)
    several = DDPStrategy(process_group_backend="nccl" if cuda else "gloo")
    return pl.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=local,
        num_nodes=place.world // local,
        strategy=several if place.world > 1 else "auto",
        precision="bf16-mixed" if params["precision"] == "bf16-mixed" else "32-true",
        max_epochs=params["epochs"],
        check_val_every_n_epoch=every,
        accumulate_grad_batches=params["accumulate"],
        gradient_clip_val=params["clip"] or None,
        callbacks=[*callbacks, Saver(folder, ready.request.checkpoints, tell, stop)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,  # Saver does it: by minutes too, told when complete, and when a stop is asked
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _finish(folder: Path, ready: Prepared, module: Fitting, trainer: pl.Trainer) -> Trained:
    """The best state measured on what was held out (the validation split when nothing was), and written."""
    held = next((ready.rows[name] for name in (TEST, VALIDATION) if len(ready.rows[name])), None)
    metrics: dict[str, float] = {}
    confusion = None
    target = ready.artifact.target
    if held is not None:
        loss = loss_of(type(ready.recipe), ready.params)
        metrics, confusion = score(_outputs(module, held, loss, ready.request.max_batch_size), held.targets, target)
    write_artifact(folder / ARTIFACT_FOLDER, ready.artifact, module.net.state_dict())
    return Trained(
        metrics=metrics,
        runtime=RUNTIME,
        inputs=ready.recipe.inputs(),
        outputs=outputs(ready.recipe.task, target),
        epochs=module.position.epoch,
        steps=trainer.global_step,
        stopped_early=module.position.epoch < ready.params["epochs"],
        confusion=confusion if len(target.classes) <= MOST_CONFUSED else None,
    )


@torch.inference_mode()
def _outputs(module: Fitting, rows: Rows, loss: str, size: int) -> torch.Tensor:
    """Served outputs of all rows, on the device that trained."""
    net = module.net.eval()
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    parts = [net(*(tensor.to(device) for tensor in batch)) for batch in ValidationBatches(rows, size)]
    return torch.cat([served(part, loss).float().cpu() for part in parts])
