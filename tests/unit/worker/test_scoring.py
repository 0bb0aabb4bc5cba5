"""Metrics from served outputs: checked against scikit-learn, whatever the form and the size of the batches."""

import numpy as np
import pytest
from sklearn import metrics as sk

from forebay.contract.cells import label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import better
from forebay.worker.trainer.scoring import Scorer

RNG = np.random.default_rng(0)
CLASSES = ("bird", "cat", "dog")


def classified(rows: int = 60) -> tuple[np.ndarray, list[str], list[str]]:
    chances = RNG.dirichlet(np.ones(3), rows).astype(np.float32)
    labels = [CLASSES[i] for i in chances.argmax(1)]
    return chances, labels, [CLASSES[i] for i in RNG.integers(0, 3, rows)]


def test_a_classifiers_metrics_are_those_of_scikit_learn() -> None:
    chances, labels, truth = classified()
    scorer = Scorer(CLASSES)
    for part in (slice(0, 7), slice(7, 60)):
        scorer.add({"label": labels[part], "probabilities": chances[part]}, truth[part])
    index = [CLASSES.index(label) for label in truth]
    expected = {
        "loss": -np.mean([np.log(row[i]) for row, i in zip(chances, index, strict=True)]),
        "accuracy": sk.accuracy_score(truth, labels),
        "precision": sk.precision_score(truth, labels, average="macro"),
        "recall": sk.recall_score(truth, labels, average="macro"),
        "f1": sk.f1_score(truth, labels, average="macro"),
        "auroc": np.mean([sk.roc_auc_score([i == j for j in index], chances[:, i]) for i in range(3)]),
    }
    assert scorer.metrics() == pytest.approx(expected, abs=1e-5)
    assert scorer.confusion() == sk.confusion_matrix(truth, labels, labels=CLASSES).tolist()
    assert scorer.rows == 60


def test_labels_and_probabilities_are_taken_together_or_alone() -> None:
    chances, labels, truth = classified()
    forms = [{"label": labels, "probabilities": chances}, {"probabilities": chances}]
    made = []
    for form in forms:
        scorer = Scorer(CLASSES)
        scorer.add(form, truth)
        made.append(scorer.metrics())
    assert all(one == pytest.approx(made[0]) for one in made)
    bare = Scorer(CLASSES)
    bare.add({"label": labels}, truth)
    assert bare.metrics() == {name: made[0][name] for name in ("accuracy", "precision", "recall", "f1")}


def test_a_class_that_no_row_has_spoils_no_average() -> None:
    scorer = Scorer(CLASSES)
    scorer.add({"probabilities": np.array([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0]])}, ["cat", "bird"])
    assert scorer.metrics()["auroc"] == scorer.metrics()["f1"] == 1


@pytest.mark.parametrize(("far", "size"), [(0, 1), (1e6, 1), (1.7e9, 1), (1e12, 1), (0, 1e-13)])
def test_numbers_are_scored_as_scikit_learn_does_even_far_from_zero_or_small(far: float, size: float) -> None:
    truth = far + size * RNG.normal(size=50)
    guess = truth + size * RNG.normal(scale=0.1, size=50)
    scorer = Scorer()
    scorer.add(guess[:20], truth[:20])
    scorer.add(guess[20:].tolist(), truth[20:].tolist())
    expected = {
        "loss": sk.mean_squared_error(truth, guess),
        "mae": sk.mean_absolute_error(truth, guess),
        "rmse": sk.mean_squared_error(truth, guess) ** 0.5,
        "r2": sk.r2_score(truth, guess),
    }
    assert scorer.metrics() == pytest.approx(expected, rel=1e-6)
    assert scorer.confusion() is None


def test_a_probability_that_is_rounded_above_one_leaves_the_area_as_it_is() -> None:
    chances, _, truth = classified(600)
    chances[5] = [1, 0, 0]
    areas = []
    for above in (0, 1e-6):
        scorer = Scorer(CLASSES)
        chances[5, 0] += above
        scorer.add({"probabilities": chances[:300]}, truth[:300])
        scorer.add({"probabilities": chances[300:]}, truth[300:])
        areas.append(scorer.metrics()["auroc"])
    assert areas[1] == pytest.approx(areas[0], abs=1e-9)


def test_what_is_no_probability_is_neither_scored_nor_better_than_another_score() -> None:
    with pytest.raises(InvalidInput, match="go from 0 to 70"):
        Scorer(CLASSES).add({"probabilities": np.array([[70, 20, 10.0]])}, ["cat"])
    scorer = Scorer(CLASSES)
    scorer.add({"probabilities": np.array([[np.nan] * 3, [0.1, 0.9, 0]])}, ["bird", "cat"])
    assert all(np.isnan(value) for value in scorer.metrics().values())
    assert better("accuracy", 0.1, np.nan)
    assert not better("loss", np.nan, 0.1)


def test_equal_targets_have_an_r2_as_in_scikit_learn() -> None:
    for guess in ([1.0, 1.0], [1.0, 2.0]):
        scorer = Scorer()
        scorer.add(guess, [1.0, 1.0])
        assert scorer.metrics()["r2"] == sk.r2_score([1.0, 1.0], guess)


def test_of_equal_probabilities_the_first_counts_as_it_is_served() -> None:
    scorer = Scorer([*"abcdefghijklmnopq"])
    chances = np.zeros((300, 17))
    chances[:, [2, 7, 16]] = 1 / 3
    scorer.add({"probabilities": chances}, ["c"] * 300)
    assert scorer.metrics()["accuracy"] == 1


def test_one_row_has_no_r2_and_no_row_has_no_metrics() -> None:
    scorer = Scorer()
    assert scorer.metrics() == {}
    scorer.add([1.0], [2.0])
    assert scorer.metrics() == {"loss": 1.0, "mae": 1.0, "rmse": 1.0}


@pytest.mark.parametrize(
    ("predictions", "targets", "said"),
    [
        ({"label": ["cat"]}, ["cow"], "target 'cow' is not one of the classes bird, cat, dog"),
        ({"label": ["cow"]}, ["cat"], "predicted label 'cow'"),
        ({"label": ["cat", "dog"]}, ["cat"], "2 predictions for 1 targets"),
        ({"probabilities": np.zeros((1, 2))}, ["cat"], r"shape \[1, 2\], expected \[rows, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(predictions: object, targets: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Scorer(CLASSES).add(predictions, targets)


def test_text_for_a_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="predictions must be numbers"):
        Scorer().add(["much"], [1.0])


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), ("3", "3"), (np.int8(3), "3"), (True, "true"), (0.5, "0.5")]
)
def test_a_label_reads_the_same_whatever_its_type(value: object, text: str) -> None:
    assert label_text(value) == text
