"""A run of a recipe that a library fits: the curve while it is fitted, its graph held against the library, the artifact.

There are no checkpoints: such a run takes minutes, and what the libraries can save of themselves are pickles. One that is stopped
begins anew.
"""  # fmt: skip

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.recipes import CLASSES
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    METRICS,
    TEST,
    TRAIN,
    VALIDATION,
    Event,
    Point,
    Trained,
    better,
)
from forebay.export.estimators import PREDICTION, PROBABILITIES, Graph, check_same
from forebay.worker.trainer.artifact import outputs, write_artifact
from forebay.worker.trainer.loading import Rows
from forebay.worker.trainer.preparation import PreparedTable, kept_confusion
from forebay.worker.trainer.recipes import FittedRecipe
from forebay.worker.trainer.stopping import Stop, Stopped

RUNTIME = "onnx"
CURVE_ROWS = 10_000  # of the training split, whose loss is told
CHECKED_ROWS = 20_000  # of each split, by which the graph is held against the library
IMPORTANCE_ROWS, SHUFFLES, MANY_COLUMNS = 1_000, 5, 50


def fit(folder: Path, ready: PreparedTable, tell: Callable[[Event], None], stop: Stop) -> None:
    """Fit the recipe and tell how it goes; the last event is `Trained`. Stopped between two steps when `stop` was asked.

    InvalidInput when the graph does not predict what the library does.
    """
    recipe = cast(FittedRecipe, ready.recipe)
    done, stopped_early = _learn(recipe, ready, tell, stop)
    graph = recipe.export(len(ready.artifact.target.classes))
    served = _Served(graph, recipe, ready)
    for rows in ready.rows.values():
        if len(rows):
            served.check(rows)
    held = next((ready.rows[name] for name in (TEST, VALIDATION) if len(ready.rows[name])), None)
    metrics: dict[str, float] = {}
    made, confusion, importance = None, None, dict[str, float]()
    if held is not None:
        made = served.outputs(_encoded(held))
        metrics, confusion = ready.score(made, held)
        importance = _importance(served, ready, held)
    write_artifact(folder / ARTIFACT_FOLDER, ready.artifact, graph, [torch.from_numpy(_encoded(ready.rows[TRAIN]))])
    tell(
        Trained(
            metrics=metrics, runtime=RUNTIME, inputs=recipe.inputs(), outputs=outputs(recipe.task, ready.artifact.target),
            steps=done, stopped_early=stopped_early, confusion=kept_confusion(confusion), importance=importance,
            reference=ready.reference(made),
        )
    )  # fmt: skip


def _learn(recipe: FittedRecipe, ready: PreparedTable, tell: Callable[[Event], None], stop: Stop) -> tuple[int, bool]:
    """Steps of the model that is kept, and whether it stopped before the planned ones."""
    rows, begun, done = ready.rows[TRAIN], time.monotonic(), 0
    x, y = _encoded(rows), rows.targets.numpy()
    weights = None if bool((rows.weights == 1).all()) else rows.weights.numpy()
    rounds = ready.params.get("early_stopping_rounds", 0)
    best: tuple[int, float] | None = None
    for done in recipe.learn(x, y, weights, ready.request.seed):
        if stop.asked:
            raise Stopped
        score = _tell_curve(recipe, ready, tell, done, time.monotonic() - begun)
        if not rounds:
            continue
        if score is None:
            raise InvalidInput(f"{ready.metric} cannot be measured on this validation split; name another metric")
        if best is None or better(ready.metric, score, best[1]):
            best = done, score
        if done - best[0] >= rounds:
            break
    if best is not None:
        recipe.go_back(best[0])
        return best[0], best[0] < recipe.steps
    return done, False


def _tell_curve(
    recipe: FittedRecipe, ready: PreparedTable, tell: Callable[[Event], None], done: int, took: float
) -> float | None:
    """The metric on the validation split, where there is one and it can be measured."""
    eta, rate = took / done * (recipe.steps - done), len(ready.rows[TRAIN]) * done / max(took, 1e-9)
    loss = _score(recipe, ready, _some(ready.rows[TRAIN], CURVE_ROWS))["loss"]
    tell(Point(done, 0, TRAIN, {"loss": loss}, rate, eta, recipe.steps))
    if not len(ready.rows[VALIDATION]):
        return None
    measured = _score(recipe, ready, ready.rows[VALIDATION])
    tell(Point(done, 0, VALIDATION, measured, steps=recipe.steps))
    return measured.get(ready.metric)


def _score(recipe: FittedRecipe, ready: PreparedTable, rows: Rows) -> dict[str, float]:
    made = recipe.predict(_encoded(rows), len(ready.artifact.target.classes))
    return ready.score(torch.from_numpy(made), rows)[0]


class _Served:
    """The graph, as it will be served, beside the library's own model."""

    def __init__(self, graph: bytes, recipe: FittedRecipe, ready: PreparedTable) -> None:
        self._graph = Graph(graph, torch.get_num_threads())
        self._recipe, self._classes = recipe, len(ready.artifact.target.classes)
        self._output = PROBABILITIES if recipe.task == CLASSES else PREDICTION

    def outputs(self, x: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(self._graph.run(self._output, x))

    def check(self, rows: Rows) -> None:
        x = _encoded(_some(rows, CHECKED_ROWS))
        own = self._recipe.predict(x, self._classes)
        check_same(own, self.outputs(x).numpy(), self._recipe.task == CLASSES)


def _importance(served: _Served, ready: PreparedTable, held: Rows) -> dict[str, float]:
    """By how much the metric gets worse when a column's values are shuffled among held-out rows; the largest first."""
    rows = _some(held, IMPORTANCE_ROWS)
    x, random = _encoded(rows), np.random.default_rng(ready.request.seed)
    blocks = cast(FittedRecipe, ready.recipe).blocks()

    def score(values: NDArray[np.float32]) -> float:
        found = ready.score(served.outputs(values), rows)[0]
        value = found.get(ready.metric, found["loss"])
        return value if METRICS[ready.metric if ready.metric in found else "loss"] else -value

    usual, made = score(x), {}
    for name, block in blocks.items():
        losses = []
        for _ in range(SHUFFLES if len(blocks) <= MANY_COLUMNS else 1):
            shuffled = x.copy()
            shuffled[:, block] = x[random.permutation(len(x)), block]
            losses.append(usual - score(shuffled))
        made[name] = float(np.mean(losses))
    return dict(sorted(made.items(), key=lambda item: -item[1]))


def _encoded(rows: Rows) -> NDArray[np.float32]:
    [x] = rows.inputs
    return cast(torch.Tensor, x).numpy()


def _some(rows: Rows, most: int) -> Rows:
    """Up to so many rows, from everywhere in the split."""
    if len(rows) <= most:
        return rows
    chosen = torch.linspace(0, len(rows) - 1, most).long()
    return Rows(tuple(part[chosen] for part in rows.inputs), rows.targets[chosen], rows.weights[chosen])
