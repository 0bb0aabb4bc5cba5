"""Estimators of scikit-learn, and model folders of MLflow, become versions that predict what they do, or lead to one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from forebay import Client, InvalidInput, ModelVersion, Settings
from forebay.export import estimators
from forebay.storage.ledger.connection import Ledger
from forebay.worker.runtimes import get_runtime

X, Y = load_digits(return_X_y=True)
X = X[:300].astype(np.float32)
DIGITS, NAMES = Y[:300], np.array([*"abcdefghij"])[Y[:300]]
NUMBERS = X @ np.linspace(0, 1, 64)


@pytest.fixture
def client(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    with Client(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as client:
        yield client


def served(client: Client, model: ModelVersion) -> list[Any]:
    """What a worker gives for all rows of X."""
    path = client.session.blobs.fetch(model.artifact, client.settings.home / "fetched")
    loaded = get_runtime(model.runtime).load(path, "cpu", model)
    rows = loaded.predict([model.signature.row({"x": row}) for row in X])
    return [model.signature.output(row) for row in rows]


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (make_pipeline(StandardScaler(), LogisticRegression()), DIGITS),
        (RandomForestClassifier(10, random_state=0), NAMES),
        (HistGradientBoostingClassifier(max_iter=3, random_state=0), NAMES),
    ],
    ids=["pipeline", "forest", "boosting"],
)
def test_a_classifier_gives_its_own_labels_and_probabilities_by_the_names_of_its_classes(
    client: Client, estimator: Any, target: Any
) -> None:
    estimator.fit(X, target)
    model = client.models.register("net", estimator, example=X[0], alias="champion")
    assert (model.runtime, model.classes) == ("onnx", tuple(map(str, estimator.classes_)))
    rows = served(client, model)
    assert [row["label"] for row in rows] == estimator.predict(X).tolist()
    np.testing.assert_allclose([row["probabilities"] for row in rows], estimator.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [LinearRegression(), make_pipeline(StandardScaler(), SVR()), HistGradientBoostingRegressor(max_iter=10)],
    ids=["linear", "pipeline", "boosting"],
)
def test_a_regressor_gives_its_own_numbers(client: Client, estimator: Any) -> None:
    estimator.fit(X, NUMBERS)
    model = client.models.register("net", estimator, example=X[0])
    assert model.signature.outputs_json() == {"prediction": {"dtype": "float32", "shape": []}}
    np.testing.assert_allclose(served(client, model), estimator.predict(X), rtol=1e-5, atol=1e-4)


def test_a_classifier_without_probabilities_gives_labels_alone(client: Client) -> None:
    estimator = RidgeClassifier().fit(X, NAMES)
    model = client.models.register("net", estimator, example=X[0])
    assert served(client, model) == estimator.predict(X).tolist()


@pytest.mark.parametrize(
    ("estimator", "example", "said"),
    [
        (LinearRegression(), X[0], "this LinearRegression is not fitted; call its fit"),
        (
            LinearRegression().fit(X, NUMBERS),
            None,
            "example: this LinearRegression takes one row of 64 numbers, .* none",
        ),
        (LinearRegression().fit(X, NUMBERS), X[:2], r"without a batch dimension; the one given has shape \[2, 64\]"),
        (LinearRegression().fit(X, NUMBERS), {"a": 1.0}, "a dict makes none .* StringTensorType"),
        (LinearRegression().fit(X, NUMBERS), ["red"] * 64, "a list makes none .*'red'.* StringTensorType"),
        (KMeans(2, n_init=1).fit(X), X[0], "a KMeans is neither a classifier nor a regressor"),
    ],
    ids=["unfitted", "no example", "two rows", "names", "texts", "clusters"],
)
def test_an_estimator_that_cannot_be_served_is_refused_before_anything_is_stored(
    client: Client, estimator: Any, example: Any, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        client.models.register("net", estimator, example=example)
    assert client.models.list() == []


def test_an_estimator_whose_graph_predicts_something_else_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = estimators.Graph.run
    monkeypatch.setattr(estimators.Graph, "run", lambda self, output, rows: real(self, output, rows) * 1.001)
    with pytest.raises(InvalidInput, match=r"as ONNX the model predicts .*, and scikit-learn .* apart"):
        client.models.register("net", LinearRegression().fit(X, NUMBERS), example=X[0])


@pytest.mark.parametrize(
    ("kind", "taken"),
    [(RandomForestClassifier, False), (HistGradientBoostingClassifier, True)],
    ids=["forest", "boosting"],
)
def test_gaps_are_taken_only_where_the_graph_treats_them_as_the_estimator_does(
    client: Client, kind: Any, taken: bool
) -> None:
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    model = client.models.register("net", kind(random_state=0).fit(gaps, NAMES), example=X[0])
    [field] = model.signature.inputs or ()
    assert field.allow_nan == taken


def test_truth_values_are_labels_as_such(client: Client) -> None:
    model = client.models.register(
        "net", make_pipeline(StandardScaler(), LogisticRegression()).fit(X, DIGITS > 4), example=X[0]
    )
    assert model.classes == ("false", "true")
    assert [bool(row["label"]) for row in served(client, model)][:9] == (DIGITS[:9] > 4).tolist()
    assert [field.dtype for field in model.signature.outputs or ()] == ["bool", "float32"]


def test_several_targets_at_once_are_refused(client: Client) -> None:
    for estimator, targets in ((RandomForestClassifier(2), DIGITS), (RandomForestRegressor(2), NUMBERS)):
        with pytest.raises(InvalidInput, match="register one estimator for each"):
            client.models.register("net", estimator.fit(X, np.stack([targets, targets], 1)), example=X[0])


def test_the_thresholds_of_boosting_keep_each_float32_on_its_side(client: Client) -> None:
    """Values next to one another as float32, between which the nearest float32 to a threshold is the upper one."""
    low = np.float32(1) + np.arange(64, dtype=np.float32) * np.finfo(np.float32).eps
    x = np.concatenate([low, np.nextafter(low, np.float32(2))])[:, None].repeat(5, 0)
    y = np.arange(len(x)) % 7
    estimator = HistGradientBoostingRegressor(max_iter=20, min_samples_leaf=1).fit(x, y)
    made = estimators.Graph(estimators.to_onnx(estimator, 1).SerializeToString()).run("prediction", x)
    np.testing.assert_allclose(made, estimator.predict(x), atol=1e-5)


def mlflow(folder: Path, flavours: str, **files: bytes) -> Path:
    """A folder as MLflow writes it."""
    folder.mkdir()
    (folder / "MLmodel").write_text(
        f"artifact_path: model\nflavors:\n{flavours}mlflow_version: 3.1.0\nmodel_uuid: 1\nsignature:\n  inputs: '[]'\n"
    )
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_an_mlflow_folder_with_an_onnx_flavour_is_registered_by_it(client: Client, tmp_path: Path) -> None:
    estimator = LinearRegression().fit(X, NUMBERS)
    graph = estimators.to_onnx(estimator, 64).SerializeToString()
    flavours = (
        "  onnx:\n    code: null\n    data: model.onnx\n    onnx_version: 1.18.0\n  python_function:\n    env: x\n"
    )
    model = client.models.register("net", mlflow(tmp_path / "m", flavours, model__onnx=graph))
    np.testing.assert_allclose(served(client, model), estimator.predict(X), rtol=1e-5, atol=1e-4)


def test_an_mlflow_folder_with_an_exported_program_is_registered_by_it(client: Client, tmp_path: Path) -> None:
    folder = mlflow(tmp_path / "m", "  pytorch:\n    model_data: data\n    pytorch_version: 2.9.0\n")
    (folder / "data").mkdir()
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(torch.nn.Linear(64, 2), (torch.zeros(2, 64),), dynamic_shapes=batch)
    torch.export.save(program, folder / "data" / "model.pt2")
    assert client.models.register("net", folder).runtime == "torch-export"


@pytest.mark.parametrize(
    ("flavours", "said"),
    [
        ("  pytorch:\n    model_data: data\n", 'mlflow.pytorch.load_model("m")'),
        ("  sklearn:\n    pickled_model: model.pkl\n", 'mlflow.sklearn.load_model("m")'),
        ("  transformers:\n    model_binary: model\n", "register the folder `model` in it"),
        ("  spacy:\n    data: model.spacy\n", "without a flavour that is served: log it with mlflow.onnx too"),
        ("  onnx:\n    data: ../../etc\n", "outside its folder"),
    ],
)
def test_an_mlflow_folder_with_neither_says_what_leads_to_a_version(
    client: Client, tmp_path: Path, flavours: str, said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        client.models.register("net", mlflow(tmp_path / "m", flavours, data_in_model__pth=b"\x80\x02"))
    assert said in str(refused.value)
