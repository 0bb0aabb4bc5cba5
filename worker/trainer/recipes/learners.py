"""`trees` and `svm`: what scikit-learn fits to the columns of a table.

The learners see float32 values, as served rows are, so that a value lies on the same side of a threshold in training and serving.
scikit-learn is imported when something is fitted: serving needs the columns only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.learners import BOOSTING
from forebay.contract.requests.recipes import CLASSES
from forebay.export.estimators import spread, to_onnx
from forebay.worker.trainer.preprocessing import width
from forebay.worker.trainer.recipes.tabular import Columns

LOOKS = 20  # at a model that is made in rounds, in a run
SMALL = 1_000_000  # numbers of a table; starting threads for less takes longer than they save
MAX_NODES = 5_000_000  # of a forest, whose graph has to stay below the 2 GB that a file of ONNX may have
MAX_SVM_ROWS = 50_000  # each is likened to every other one
FOLDS = 5  # that are held out in turn, to learn probabilities from


class Fitted(Columns):
    """What both have in common: an estimator of scikit-learn."""

    steps, centers = 1, True

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        super().__init__(params, state)
        self.task: str = params["task"]
        self._estimator: Any = None

    def blocks(self) -> dict[str, slice]:
        made, start = {}, 0
        for spec in self.state["columns"]:
            made[spec["name"]] = slice(start, start := start + width([spec]))
        return made

    def go_back(self, steps: int) -> None:
        del steps

    def predict(self, x: NDArray[np.float32], classes: int) -> NDArray[Any]:
        with self._threads(x):
            if self.task != CLASSES:
                return np.asarray(self._estimator.predict(x))
            made = np.zeros((len(x), classes))
            made[:, self._estimator.classes_] = self._estimator.predict_proba(x)
            return made

    def export(self, classes: int) -> bytes:
        model = to_onnx(self._estimator, self._estimator.n_features_in_)
        if self.task == CLASSES:
            spread(model, self._estimator.classes_.tolist(), classes)
        return bytes(model.SerializeToString())

    def _threads(self, x: NDArray[np.float32]) -> AbstractContextManager[object]:
        from threadpoolctl import threadpool_limits

        limits: AbstractContextManager[object] = threadpool_limits(1 if x.size < SMALL else torch.get_num_threads())
        return limits


class Trees(Fitted):
    """Gradient boosting on binned columns, or a random forest."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        super().__init__(params, state)
        self.steps = params["rounds"]
        self._boosts = self.centers = params["method"] == BOOSTING  # a forest's cuts depend on how its sums are rounded
        if params["early_stopping_rounds"] and not self._boosts:
            raise InvalidInput("early_stopping_rounds is for boosting; a forest does not stop early")

    def learn(
        self, x: NDArray[np.float32], y: NDArray[Any], weights: NDArray[np.float32] | None, seed: int
    ) -> Iterator[int]:
        """In steps of a twentieth of the rounds: the estimators go on from what they are."""
        self._estimator = self._boosting(seed) if self._boosts else self._forest(seed)
        every = math.ceil(self.steps / LOOKS)
        for done in (*range(every, self.steps, every), self.steps):
            self._estimator.set_params(**{"max_iter" if self._boosts else "n_estimators": done})
            with self._threads(x):
                self._estimator.fit(x, y, sample_weight=weights)
            if not self._boosts:
                self._check_size(done)
            yield done

    def go_back(self, steps: int) -> None:
        self._estimator = copy.copy(self._estimator)
        self._estimator._predictors = self._estimator._predictors[
            :steps
        ]  # which is all that tells one round from another

    def _boosting(self, seed: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        params = self._params
        kind = HistGradientBoostingClassifier if self.task == CLASSES else HistGradientBoostingRegressor
        return kind(
            learning_rate=params["lr"], max_leaf_nodes=params["max_leaves"] or 31, max_depth=params["max_depth"] or None,
            min_samples_leaf=params["min_leaf_rows"] or 20, l2_regularization=params["l2"],
            max_features=params["columns"] or 1.0, early_stopping=False, warm_start=True, random_state=seed,
        )  # fmt: skip

    def _forest(self, seed: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        params, classes = self._params, self.task == CLASSES
        kind = RandomForestClassifier if classes else RandomForestRegressor
        return kind(
            max_leaf_nodes=params["max_leaves"] or None, max_depth=params["max_depth"] or None,
            min_samples_leaf=params["min_leaf_rows"] or 1, max_features=params["columns"] or ("sqrt" if classes else 1.0),
            warm_start=True, random_state=seed, n_jobs=torch.get_num_threads(),
        )  # fmt: skip

    def _check_size(self, done: int) -> None:
        nodes = sum(tree.tree_.node_count for tree in self._estimator.estimators_)
        if nodes > MAX_NODES:
            raise InvalidInput(
                f"{done} trees have {nodes:,} nodes, more than the {MAX_NODES:,} that an ONNX file holds; raise min_leaf_rows, "
                "or lower max_depth, max_leaves or rounds"
            )


class Svm(Fitted):
    """A support vector machine. Of classes it learns probabilities from rows that are held out in turn."""

    def learn(
        self, x: NDArray[np.float32], y: NDArray[Any], weights: NDArray[np.float32] | None, seed: int
    ) -> Iterator[int]:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedKFold
        from sklearn.svm import SVC, SVR

        if len(x) > MAX_SVM_ROWS:
            raise InvalidInput(
                f"{len(x):,} training rows are too many for an svm, which likens each to every other one: at most "
                f"{MAX_SVM_ROWS:,}; use recipe trees, or fewer rows"
            )
        params = self._params
        told = {
            "kernel": params["kernel"], "C": params["c"], "gamma": params["gamma"] or "scale", "degree": params["degree"],
        }  # fmt: skip
        if self.task != CLASSES:
            self._estimator = SVR(epsilon=params["epsilon"], **told)
        else:
            least = int(np.unique(y, return_counts=True)[1].min())
            if least < 2:
                raise InvalidInput(
                    "a class has one row only in the training split; an svm needs two rows of each class"
                )
            folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)
            self._estimator = CalibratedClassifierCV(SVC(**told), ensemble=False, cv=folds)
        with self._threads(x):
            self._estimator.fit(x, y, sample_weight=weights)
        yield 1
