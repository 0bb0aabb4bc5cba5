"""scikit-learn's estimators as ONNX graphs, by skl2onnx, and whether a graph predicts what the estimator does.

A graph computes in float32. Where scikit-learn compares a value with a threshold in float64, the threshold becomes the largest
float32 that is not above it: every float32 value then goes the same way in both.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.cells import label_text
from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.onnx.judge import CLASSES_KEY, GAPS_KEY

INPUT, LABEL, PROBABILITIES, PREDICTION = "x", "label", "probabilities", "prediction"  # of a graph
TOLERANCE = 1e-5  # of a probability
NUMBER_TOLERANCE = 1e-4  # of a number, in deviations of all that were predicted
COMPARED_ROWS = 256  # like the example
_NAMED_COLUMNS = (
    "One with columns of text or of names is written by you: skl2onnx.to_onnx(estimator, initial_types=[('age', "
    "FloatTensorType([None, 1])), ('city', StringTensorType([None, 1]))], options={'zipmap': False}); register that .onnx file"
)
_OPSETS = {"": 18, "ai.onnx.ml": 3}


def to_onnx(estimator: Any, width: int) -> Any:
    """The fitted estimator as an onnx.ModelProto: `x` `(rows, width)` float32 to `label` `(rows,)` and, where it tells them,
    `probabilities` `(rows, classes)`, or to `prediction` `(rows,)`, `(rows, n)` for several numbers.

    InvalidInput for one that is neither classifier nor regressor, or that skl2onnx cannot convert.
    """
    try:
        from skl2onnx import to_onnx as convert
        from skl2onnx.common.data_types import FloatTensorType
        from sklearn.base import is_classifier, is_regressor
    except ImportError as error:
        raise MissingExtra(f"a scikit-learn estimator becomes ONNX by {error.name}", "trees") from error
    kind = type(estimator).__name__
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise InvalidInput(
            f"a {kind} is neither a classifier nor a regressor; write it with skl2onnx and register the .onnx file"
        )
    _mend_hist_gradient_boosting()
    told: dict[str, Any] = {"initial_types": [(INPUT, FloatTensorType([None, width]))], "target_opset": _OPSETS}
    try:
        try:
            model = convert(estimator, options={id(estimator): {"zipmap": False}}, **told)
        except NameError:  # its converter has no such option
            model = convert(estimator, **told)
    except Exception as error:  # skl2onnx raises whatever its converters raise
        reason = str(error).strip().split("\n")[0][:300]
        named = f". {_NAMED_COLUMNS}" if hasattr(estimator, "feature_names_in_") else ""
        raise InvalidInput(f"skl2onnx cannot convert this {kind}: {type(error).__name__}: {reason}{named}") from error
    if getattr(getattr(estimator, "classes_", None), "dtype", None) == np.bool_:
        _label_as_bool(model)
    if not is_classifier(estimator):
        _name_prediction(model)
    elif not hasattr(estimator, "predict_proba"):
        del model.graph.output[1:]  # scores
    return model


def export_estimator(estimator: Any, example: Any, path: Path) -> None:
    """Write the fitted estimator, which takes samples like `example`, a vector of numbers. Its classes go with the file.

    InvalidInput, with what to do, when it cannot be converted, or when the graph predicts anything else than the estimator for
    the example and for rows like it.
    """
    kind, width = type(estimator).__name__, getattr(estimator, "n_features_in_", None)
    if width is None:
        raise InvalidInput(f"this {kind} is not fitted; call its fit, then register it")
    try:
        sample = np.asarray(example, np.float32) if example is not None else np.zeros(0, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"example: this {kind} takes one row of {width} numbers, in the order of its columns; a {type(example).__name__} "
            f"makes none ({error}). {_NAMED_COLUMNS}"
        ) from error
    if sample.shape != (width,):
        given = "none was given" if example is None else f"the one given has shape {list(sample.shape)}"
        raise InvalidInput(f"example: this {kind} takes one row of {width} numbers, without a batch dimension; {given}")
    model = to_onnx(estimator, width)
    classes = [label_text(label) for label in getattr(estimator, "classes_", ())]
    if len(model.graph.output) > 1:
        model.metadata_props.add(key=CLASSES_KEY, value=json.dumps(classes))
    graph, names = Graph(model.SerializeToString(), 1), [value.name for value in model.graph.output]
    random = np.random.default_rng(0)
    size = COMPARED_ROWS, width
    near = np.where(sample, sample * random.uniform(0.5, 1.5, size), random.integers(0, 3, size))
    with warnings.catch_warnings(action="ignore"):  # of columns that had names
        rows = _those_it_takes(estimator, sample, near)
        _compare(estimator, graph, names, rows)
        far = np.concatenate([rows, rows * random.normal(0, 2, rows.shape) + random.normal(size=rows.shape)])
        if not _takes_gaps(estimator, graph, names, np.where(random.random(far.shape) < 0.3, np.nan, far)):
            model.metadata_props.add(key=GAPS_KEY, value="false")
    path.write_bytes(model.SerializeToString())


def _those_it_takes(estimator: Any, sample: NDArray[Any], near: NDArray[Any]) -> NDArray[np.float32]:
    """The sample and rows near it; with its own zeros where the estimator takes no other numbers in their place."""
    for rows in (near, np.where(sample, near, 0)):
        made = np.concatenate([sample[None], rows]).astype(np.float32)
        try:
            estimator.predict(made)
        except Exception as error:  # noqa: BLE001 - an estimator raises what it likes at values that it was not fitted to
            reason = error
        else:
            return made
    raise InvalidInput(f"the estimator cannot predict rows like the example: {reason}") from reason


def _takes_gaps(estimator: Any, graph: Graph, names: Sequence[str], rows: NDArray[Any]) -> bool:
    """Whether the graph predicts what the estimator does for rows with NaN: skl2onnx lets trees forget where these go."""
    try:
        _compare(estimator, graph, names, rows.astype(np.float32))
    except Exception:  # noqa: BLE001 - InvalidInput, or what the estimator raises that takes none
        return False
    return True


def _compare(estimator: Any, graph: Graph, names: Sequence[str], rows: NDArray[np.float32]) -> None:
    """InvalidInput unless the graph predicts for each row what the estimator does."""
    own = np.asarray(estimator.predict(rows))
    if own.size != len(rows) and names != [PREDICTION]:
        raise InvalidInput("the estimator gives several labels for a row; register one estimator for each")
    if PROBABILITIES in names:
        check_same(np.asarray(estimator.predict_proba(rows)), graph.run(PROBABILITIES, rows), classes=True)
    if names == [PREDICTION]:
        made = graph.run(PREDICTION, rows)
        if len(made) != len(rows) or made.size != own.size:
            raise InvalidInput(
                f"as ONNX the estimator gives {made.size} numbers for {len(rows)} rows, and scikit-learn {own.size}; register "
                "one estimator for each number"
            )
        check_same(own.reshape(made.shape), made, classes=False)
        return
    made = graph.run(LABEL, rows)
    odd = np.flatnonzero(made != own)
    clear = odd if PROBABILITIES not in names else odd[_margins(np.asarray(estimator.predict_proba(rows)))[odd]]
    if len(clear):
        raise InvalidInput(
            f"as ONNX the estimator gives the label {made[clear[0]]!r} for a row like the example, and scikit-learn "
            f"{own[clear[0]]!r}; it is not registered"
        )


def spread(model: Any, learned: Sequence[int], classes: int) -> None:
    """Have `probabilities` a column for each of so many classes, zero where the estimator has not `learned` it."""
    if len(learned) == classes:
        return
    from onnx import helper, numpy_helper

    graph, some = model.graph, "probabilities_of_some"
    _rename(graph, PROBABILITIES, some)
    places = np.zeros((len(learned), classes), np.float32)
    places[np.arange(len(learned)), learned] = 1
    graph.initializer.append(numpy_helper.from_array(places, "places"))
    graph.node.append(helper.make_node("MatMul", [some, "places"], [PROBABILITIES]))
    graph.output[-1].type.tensor_type.shape.dim[1].dim_value = classes


class Graph:
    """A graph that `to_onnx` made, to be run here and now: it is judged by nobody."""

    def __init__(self, model: bytes, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, output: str, rows: NDArray[np.float32]) -> NDArray[Any]:
        """One output, for all rows."""
        made: NDArray[Any] = self._session.run([output], {INPUT: rows})[0]
        return made


def check_same(own: NDArray[Any], made: NDArray[Any], classes: bool) -> None:
    """InvalidInput unless the graph's outputs are the estimator's own: probabilities `(rows, classes)` and the largest of each,
    or numbers `(rows,)`.
    """  # fmt: skip
    allowed = TOLERANCE if classes else NUMBER_TOLERANCE * float(own.std())
    if not allowed:  # every row alike: what float32 rounds is all that can differ
        allowed = float(np.abs(own).max(initial=0.0)) * 1e-6
    off = np.abs(own - made)
    if not np.isfinite(made).all() or (off > allowed).any():
        worst = int(np.nan_to_num(off.reshape(len(off), -1).max(1), nan=np.inf).argmax())
        raise InvalidInput(
            f"as ONNX the model predicts {made[worst]} for row {worst}, and scikit-learn {own[worst]}: more than {allowed:.3g} "
            "apart, so it is not registered"
            + ("" if classes else "; where the target is large beside its spread, learn its difference from its mean")
        )
    if classes:
        odd = np.flatnonzero(_margins(own) & (own.argmax(1) != made.argmax(1)))
        if len(odd):
            raise InvalidInput(
                f"as ONNX the model gives row {odd[0]} another label than scikit-learn; it is not registered"
            )


def _margins(chances: NDArray[Any]) -> NDArray[np.bool_]:
    """For each row whether one class is likelier than any other by more than what rounding may move."""
    if chances.shape[1] < 2:
        return np.ones(len(chances), bool)
    best = np.sort(chances, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] > 2 * TOLERANCE)


def _name_prediction(model: Any) -> None:
    """The only output under its name, a single number for each row without a dimension of its own."""
    from onnx import TensorProto, helper

    [own] = model.graph.output
    dims = [dim.dim_value for dim in own.type.tensor_type.shape.dim]
    shape = [-1] if dims[1:] in ([], [1]) else [-1, dims[1]]
    model.graph.initializer.append(helper.make_tensor("prediction_shape", TensorProto.INT64, [len(shape)], shape))
    model.graph.node.append(helper.make_node("Reshape", [own.name, "prediction_shape"], [PREDICTION]))
    named = helper.make_tensor_value_info(PREDICTION, TensorProto.FLOAT, [None, *shape[1:]])
    del model.graph.output[:]
    model.graph.output.append(named)


def _rename(graph: Any, old: str, new: str) -> None:
    """A value, wherever it is made or used."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _label_as_bool(model: Any) -> None:
    """Truth values as such: skl2onnx makes whole numbers of them."""
    from onnx import TensorProto, helper

    label, number = model.graph.output[0], "label_as_number"
    _rename(model.graph, label.name, number)
    model.graph.node.append(helper.make_node("Cast", [number], [label.name], to=TensorProto.BOOL))
    label.type.tensor_type.elem_type = TensorProto.BOOL


@cache
def _mend_hist_gradient_boosting() -> None:
    """skl2onnx rounds these estimators' thresholds to the nearest float32, above some values that scikit-learn puts on the other
    side, and hands truth values to onnx as whole numbers, which newer ones refuse.
    """  # fmt: skip
    from skl2onnx.common._registration import _converter_pool

    for task in ("Classifier", "Regressor"):
        registered = _converter_pool[f"SklearnHistGradientBoosting{task}"]
        registered._fct = _mended(registered._fct)


def _mended(convert: Any) -> Any:
    def converted(scope: Any, operator: Any, container: Any) -> None:
        estimator = operator.raw_operator
        own = estimator._predictors
        estimator._predictors = [[_floored(tree) for tree in trees] for trees in own]
        try:
            convert(scope, operator, _WholeNumbers(container))
        finally:
            estimator._predictors = own

    return converted


class _WholeNumbers:
    """A container that takes truth values for 1 and 0."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, *args: Any, nodes_missing_value_tracks_true: Any, **attributes: Any) -> None:
        numbers = [int(value) for value in nodes_missing_value_tracks_true]
        self._container.add_node(*args, nodes_missing_value_tracks_true=numbers, **attributes)


def _floored(tree: Any) -> Any:
    made = copy.copy(tree)
    made.nodes = tree.nodes.copy()
    thresholds = made.nodes["num_threshold"]
    nearest = thresholds.astype(np.float32)
    made.nodes["num_threshold"] = np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return made
