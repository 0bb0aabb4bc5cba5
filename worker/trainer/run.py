"""One run from its data to its artifact: what the trainer process does between its arguments and its exit status."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import DDPStrategy

from forebay.contract.errors import MissingExtra
from forebay.contract.requests.recipes import FINETUNE, RECIPES
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    BASE_FOLDER,
    CHECKPOINT_FOLDER,
    METRICS,
    RESUME_FILE,
    TEST,
    TRAIN,
    VALIDATION,
    Event,
    Trained,
    TrainRequest,
)
from forebay.worker.trainer.callbacks import BestWeights, CheckpointSaver, EventWriter
from forebay.worker.trainer.fitted.run import fit
from forebay.worker.trainer.labels import served
from forebay.worker.trainer.loading import Position, Rows, TrainingBatches, ValidationBatches
from forebay.worker.trainer.module import TrainingModule
from forebay.worker.trainer.preparation import Prepared, PreparedTable, kept_confusion, prepare_table
from forebay.worker.trainer.rank import Rank
from forebay.worker.trainer.recipes import is_fitted
from forebay.worker.trainer.stopping import Stop, Stopped

FITTED_BY = ("sklearn", "skl2onnx", "onnxruntime")  # what recipes need that have no network
MAX_VALIDATIONS = 1000  # of a run; one with more epochs is validated after several


def train(
    folder: Path,
    request: TrainRequest,
    tell: Callable[[Event], None],
    rank: Rank = Rank(),  # noqa: B008 - frozen
    stop: Stop | None = None,
    allowed: Sequence[str] = (),
) -> None:
    """Train, from the checkpoint if there is one, and tell what happens; the last event is `Trained`.

    InvalidInput, or another ForebayError, for what no further attempt would mend; Stopped when `stop` was asked.
    """
    ready = _prepared(folder, request, rank, allowed)
    if rank.index == 0:
        tell(ready.summary)
    if stop is not None and stop.asked:
        raise Stopped
    if isinstance(ready, PreparedTable) and is_fitted(ready.recipe):
        fit(folder, ready, tell, stop or Stop())
        return
    (folder / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
    module, batches = _module(ready, rank)
    best = BestWeights(ready.metric)
    trainer = _trainer(folder, ready, module, best, tell, rank, stop or Stop())
    resume = folder / RESUME_FILE
    checkpoint = str(resume) if resume.exists() else None
    trainer.fit(module, batches, _validation(ready, rank), ckpt_path=checkpoint, weights_only=True)
    if rank.index == 0:
        if best.weights is not None:
            module.net.load_state_dict(best.weights)
        tell(_finish(folder, ready, module, trainer))


def _prepared(folder: Path, request: TrainRequest, rank: Rank, allowed: Sequence[str]) -> Prepared:
    if request.recipe != FINETUNE:
        missing = [module for module in FITTED_BY if find_spec(module) is None]
        if missing and request.recipe in RECIPES and RECIPES[request.recipe].fitted:
            raise MissingExtra(f"recipe {request.recipe!r} needs {', '.join(missing)}", "trees")
        return prepare_table(request, rank, allowed)
    try:
        from forebay.worker.trainer.texts.preparation import prepare_text  # transformers and peft take seconds to load
    except ImportError as error:
        raise MissingExtra(f"recipe {FINETUNE!r} needs {error.name}", "generation") from error
    return prepare_text(request, rank, folder / BASE_FOLDER)


def _module(ready: Prepared, rank: Rank) -> tuple[TrainingModule, TrainingBatches]:
    params, rows, seed = ready.params, ready.rows[TRAIN], ready.request.seed
    size = len(rows) if params["optimizer"] == "gd" else params["batch_size"]
    position = Position()
    batches = TrainingBatches(rows, size, seed, position, rank.index, rank.world)
    steps = params["epochs"] * math.ceil(len(batches) / params["accumulate"])
    torch.manual_seed(seed)
    return TrainingModule(ready, steps, position), batches


def _validation(ready: Prepared, rank: Rank) -> ValidationBatches | None:
    rows = ready.rows[VALIDATION]
    return ValidationBatches(rows, ready.at_once, rank.index, rank.world) if len(rows) else None


def _trainer(
    folder: Path,
    ready: Prepared,
    module: TrainingModule,
    best: BestWeights,
    tell: Callable[[Event], None],
    rank: Rank,
    stop: Stop,
) -> pl.Trainer:
    params, metric = ready.params, ready.metric
    every = math.ceil(params["epochs"] / MAX_VALIDATIONS)
    callbacks: list[pl.Callback] = [EventWriter(tell, params["epochs"], module.steps, params["lr"]), best]
    if params["early_stopping_epochs"]:
        mode = "max" if METRICS[metric] else "min"
        checks, least = math.ceil(params["early_stopping_epochs"] / every), params["min_delta"]
        callbacks.append(EarlyStopping(metric, least, checks, mode=mode, check_on_train_epoch_end=False))
    local = rank.processes_here(ready.request.nodes)
    cuda = rank.device == "cuda" or (rank.device == "auto" and torch.cuda.device_count() >= local)
    several = DDPStrategy(process_group_backend="nccl" if cuda else "gloo")
    return pl.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=local,
        num_nodes=rank.world // local,
        strategy=several if rank.world > 1 else "auto",
        precision="bf16-mixed" if params["precision"] == "bf16-mixed" else "32-true",
        max_epochs=params["epochs"],
        check_val_every_n_epoch=every,
        accumulate_grad_batches=params["accumulate"],
        gradient_clip_val=params["clip"] or None,
        callbacks=[*callbacks, CheckpointSaver(folder, ready.request, tell, stop)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,  # CheckpointSaver does it: by minutes too, told when complete, and when a stop is asked
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _finish(folder: Path, ready: Prepared, module: TrainingModule, trainer: pl.Trainer) -> Trained:
    """Measure the best state on what was held out (the validation split when nothing was), and write the artifact."""
    held = next((ready.rows[name] for name in (TEST, VALIDATION) if len(ready.rows[name])), None)
    metrics: dict[str, float] = {}
    outputs = confusion = None
    if held is not None:
        outputs = _outputs(module, held, ready.loss, ready.at_once)
        metrics, confusion = ready.score(outputs, held)
    return Trained(
        metrics=metrics,
        **ready.write(folder / ARTIFACT_FOLDER, module.net),
        epochs=module.position.epoch,
        steps=trainer.global_step,
        stopped_early=module.position.epoch < ready.params["epochs"],
        confusion=kept_confusion(confusion),
        reference=ready.reference(outputs),
    )


@torch.inference_mode()
def _outputs(module: TrainingModule, rows: Rows, loss: str, size: int) -> torch.Tensor:
    """Served outputs of all rows, on the device that trained."""
    net = module.net.eval()
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    parts = [net(*(tensor.to(device) for tensor in batch)) for batch in ValidationBatches(rows, size)]
    return torch.cat([served(part, loss).float().cpu() for part in parts])
