"""Recipes that scikit-learn fits: as good as scikit-learn itself, served through ONNX with the same labels and numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, make_friedman1
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import Event, Point, Split
from forebay.worker.trainer.recipes.learners import Trees
from forebay.worker.trainer.run import train
from forebay.worker.trainer.stopping import Stop, Stopped
from support.training_runs import Run, npz, quiet, request, run, serve


def fitted(folder: Path, recipe: str, x: NDArray[Any], y: NDArray[Any], **more: Any) -> tuple[Run, Any]:
    """A run on these columns, split by a column; and which rows were held out."""
    held = np.random.default_rng(0).random(len(y)) < 0.25
    files = npz(folder, **{f"x{i}": column for i, column in enumerate(x.T)}, y=y, part=np.where(held, "test", "train"))
    return run(request(recipe, files, "y", split=Split(column="part"), **more)), held


def predicted(done: Run, x: NDArray[Any]) -> list[Any]:
    model, spec = done.served()
    return serve(model, spec, {f"x{i}": column for i, column in enumerate(x.T)})


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("gradient-boosting", HistGradientBoostingClassifier(max_iter=40, random_state=0)),
        ("random-forest", RandomForestClassifier(40, random_state=0)),
    ],
)
def test_trees_on_breast_cancer_are_scikit_learns_own_and_served_with_the_same_labels(
    tmp_path: Path, method: str, theirs: Any
) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    done, held = fitted(tmp_path, "trees", x, y, params={"method": method, "rounds": 40})
    theirs.fit(x[~held], y[~held])
    assert done.trained.runtime == "onnx"
    assert done.trained.metrics["accuracy"] == pytest.approx(theirs.score(x[held], y[held]), abs=1e-6)
    rows = predicted(done, x)
    assert [row["label"] for row in rows] == [str(label) for label in theirs.predict(x)]
    np.testing.assert_allclose([row["probabilities"] for row in rows], theirs.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("gradient-boosting", HistGradientBoostingRegressor(max_iter=30, early_stopping=False, random_state=0)),
        ("random-forest", RandomForestRegressor(5, random_state=0)),
    ],
)
def test_trees_on_a_table_of_houses_come_as_near_to_its_numbers_as_scikit_learn(
    tmp_path: Path, method: str, theirs: Any
) -> None:
    x, y = make_friedman1(4000, 8, noise=1, random_state=0)
    x, y = x.astype(np.float32), 1e5 + 1e4 * y
    rounds = 30 if method == "gradient-boosting" else 5
    done, held = fitted(tmp_path, "trees", x, y, params={"method": method, "rounds": rounds, "task": "numbers"})
    theirs.fit(x[~held], y[~held])
    assert done.trained.metrics["r2"] == pytest.approx(theirs.score(x[held], y[held]), abs=1e-6)
    np.testing.assert_allclose(predicted(done, x[held][:200]), theirs.predict(x[held][:200]), rtol=1e-5)
    assert [*done.trained.importance][:4] != ["x5", "x6", "x7"], "which say nothing"
    assert max(done.trained.importance[name] for name in ("x5", "x6", "x7")) < 0.01 < done.trained.importance["x3"]


def test_an_svm_reads_digits_and_is_served_with_the_labels_of_scikit_learn(tmp_path: Path) -> None:
    digits = load_digits()
    x, y = digits.data.astype(np.float32), digits.target
    done, held = fitted(tmp_path, "svm", x, y, params={"normalize": False}, seed=4)
    assert done.trained.metrics["accuracy"] >= 0.98
    folds = StratifiedKFold(5, shuffle=True, random_state=4)
    theirs = CalibratedClassifierCV(SVC(), ensemble=False, cv=folds).fit(x[~held], y[~held])
    rows = predicted(done, x)
    assert [row["label"] for row in rows] == [str(label) for label in theirs.predict(x)]
    np.testing.assert_allclose([row["probabilities"] for row in rows], theirs.predict_proba(x), atol=1e-5)


def test_an_svm_learns_numbers_in_their_unit(tmp_path: Path) -> None:
    x, y = make_friedman1(400, 5, random_state=0)
    done, held = fitted(tmp_path, "svm", x, 1e6 + 1e3 * y, params={"task": "numbers", "c": 10})
    assert done.trained.metrics["r2"] > 0.9
    assert np.abs(np.array(predicted(done, x[held])) - (1e6 + 1e3 * y[held])).mean() < 1e3


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Categories, gaps, a class that only the held-out rows have, and balanced classes."""
    rng = np.random.default_rng(3)
    city, size = rng.choice(["Rome", "Oslo", "Bern"], 300), rng.normal(50, 20, 300)
    warm = np.where((city == "Rome") | (size > 60), "warm", "cold").astype(object)
    size[::7] = np.nan
    part = rng.choice(["train", "validation", "test"], 300, p=[0.6, 0.2, 0.2])
    warm[np.flatnonzero(part == "test")[0]] = "never seen"
    files = npz(tmp_path_factory.mktemp("mixed"), city=city, size=size, warm=warm.astype(str), part=part)
    params = {"class_weights": "balanced", "early_stopping_rounds": 10, "rounds": 200}
    return run(
        request("trees", files, "warm", params=params, missing="mean", metric="loss", split=Split(column="part"))
    )


def test_gaps_and_categories_are_served_as_they_were_trained_on(mixed: Run) -> None:
    assert mixed.trained.metrics["accuracy"] > 0.85
    assert [*mixed.trained.importance] == ["city", "size"] or [*mixed.trained.importance] == ["size", "city"]
    model, spec = mixed.served()
    rows = {"city": ["Rome", "Oslo", "Oslo", "Atlantis", ""], "size": [20.0, 110.0, 5.0, float("nan"), 70.0]}
    found = serve(model, spec, rows)
    assert [row["label"] for row in found[:3]] == ["warm", "warm", "cold"]
    unseen = model.classes.index("never seen")
    assert [row["probabilities"][unseen] for row in found] == [0.0] * 5, "a class without a training row has no chance"
    columns = {"city": ["Rome", "Oslo"], "size": np.array([20, np.nan], np.float32)}
    assert model.predict_columns(columns)["label"].tolist()[0] == "warm"


def test_boosting_stops_when_it_gets_no_better_and_goes_back_to_its_best(mixed: Run) -> None:
    curve = mixed.points("validation")
    best = min(curve, key=lambda point: point.values["loss"] or 0)
    assert mixed.trained.stopped_early
    assert mixed.trained.steps == best.step < curve[-1].step < 200
    assert {point.steps for point in curve} == {200}


def test_a_version_knows_the_rows_it_was_fitted_to(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    done, held = fitted(tmp_path, "trees", x[:, :5], y, params={"rounds": 5})
    model, _ = done.served()
    columns = {f"x{i}": column.astype(np.float32) for i, column in enumerate(x[:, :5].T)}
    known, seen = model.trained_on(columns)
    assert (known, seen) == (len(y), int((~held).sum()))


def test_a_run_that_is_stopped_ends_between_two_rounds(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    files, stop = npz(tmp_path, a=x[:, 0], b=x[:, 1], y=y), Stop()
    told: list[Event] = []

    def tell(event: Event) -> None:
        told.append(event)
        stop.asked = isinstance(event, Point)

    with quiet(), pytest.raises(Stopped):
        train(tmp_path, request("trees", files, "y", params={"rounds": 40}), tell, stop=stop)
    assert {point.step for point in told if isinstance(point, Point)} == {2}


def test_a_model_whose_graph_says_something_else_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    real = Trees.predict
    monkeypatch.setattr(Trees, "predict", lambda self, x, classes: real(self, x + 1, classes))
    with pytest.raises(InvalidInput, match=r"as ONNX the model predicts .* for row .*, and scikit-learn"):
        fitted(tmp_path, "trees", x, y, params={"rounds": 3})


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        ("trees", {"params": {"early_stopping_rounds": 5}}, "early_stopping_rounds needs a validation split"),
        ("trees", {"params": {"task": "numbers", "class_weights": "balanced"}}, "class_weights is for classes"),
        ("trees", {"params": {"method": "random-forest", "early_stopping_rounds": 5}}, "a forest does not stop early"),
        ("svm", {"params": {"categorical": ("z",)}}, "categorical: 'z' is not a feature"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path: Path, recipe: str, more: dict[str, Any], said: str) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(InvalidInput, match=said):
        fitted(tmp_path, recipe, x[:, :3], y, **more)


def test_a_value_beyond_float32_is_refused_for_no_served_row_can_have_it(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x[7, 0] = 1e300
    with pytest.raises(InvalidInput, match=r"column 'x0': 1e\+300 is beyond what float32 holds"):
        fitted(tmp_path, "trees", x[:, :3], y)


@pytest.mark.parametrize("recipe", ["trees", "svm"])
def test_a_class_in_the_middle_that_the_training_split_lacks_is_never_given(tmp_path: Path, recipe: str) -> None:
    x = np.random.default_rng(1).normal(size=(120, 2)).astype(np.float32)
    y = np.where(x[:, 0] > 0, 2, 0)
    y[np.flatnonzero(np.random.default_rng(0).random(120) < 0.25)[0]] = 1  # which is held out
    done, _ = fitted(tmp_path, recipe, x, y, params={"rounds": 5} if recipe == "trees" else {})
    rows = predicted(done, x)
    assert {row["label"] for row in rows} == {"0", "2"}
    assert {float(row["probabilities"][1]) for row in rows} == {0.0}
