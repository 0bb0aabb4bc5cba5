"""Whether the rows of an ONNX file's batch know nothing of each other: its graph is run on rows alone and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.onnx.judge import FREE_BATCH, OnnxFile
from forebay.contract.signature import ARRAY_DTYPES, Field, Row, Signature

COUNT = 3  # rows of the batch
FREE_SIZES = (32, 224, 1)  # to try for the free dimensions of made rows
_AGAIN, _ALONE, _QUANTIZED = 1e-6, 1e-4, 0.1  # how far results of about 1 may lie apart
_OF_THE_BATCH = "DynamicQuantize"  # operators that take their scale from the whole batch, by how their names begin
_NO_ROOM = ("Failed to allocate memory", "bad_alloc", "out of memory")

Feed = dict[str, NDArray[Any]]


def check_rows(facts: OnnxFile, signature: Signature, example: Row | None) -> None:
    """InvalidInput when what the graph makes of a row depends on the other rows of its batch, is drawn at random, or does not
    come for every number of rows.

    The rows are the example and others like it, or made ones. Nothing is said of a graph that onnxruntime cannot load here, as
    a worker's may, or that takes none of the made ones.
    """
    fields = signature.inputs or ()
    session = _session(facts)
    if session is None or len(fields) != len(session.get_inputs()):
        return
    plain = np.ndarray | np.generic | str | int | float
    known = example is not None and all(isinstance(value, plain) for value in example.values())
    samples = [example] if known and example is not None else [_zeros(fields, size) for size in FREE_SIZES]
    for sample in samples:
        found = _batch(session, facts, fields, sample, known)
        if found is not None:
            _check(session, facts, _asked(signature, session), *found)
            return


def _session(facts: OnnxFile) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtra("running an ONNX file's rows alone and together needs onnxruntime", "onnx") from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(facts.path.parent))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(facts.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - onnxruntime raises whatever its layers raise, and a worker says it with its own version
        return None


def _zeros(fields: Sequence[Field], free: int) -> Row:
    return {
        field.name: "a b c" if field.dtype == "str"
        else np.zeros([free if length == -1 else length for length in field.shape], ARRAY_DTYPES[field.dtype])
        for field in fields
    }  # fmt: skip


def _batch(
    session: Any, facts: OnnxFile, fields: Sequence[Field], sample: Row, known: bool
) -> tuple[Feed, list[Any]] | None:
    """A batch that the graph takes, and what it makes of it; of copies of the sample where it takes no other values. None where
    it does not take the sample; InvalidInput if that is `known` to be good, or goes alone.
    """  # fmt: skip
    random = np.random.default_rng(0)
    others = [{name: _other(random, value) for name, value in sample.items()} for _ in range(COUNT)]
    for rows in ([sample if known else others[0], *others[1:]], [sample] * COUNT):
        feed = _feed(session, fields, rows)
        try:
            return feed, session.run(None, feed)
        except Exception as error:  # noqa: BLE001 - the graph's own: values that are not the sample's may be illegal
            reason = error
    try:
        session.run(None, _part(feed, 0))
    except Exception as error:
        if known and not any(words in str(error) for words in _NO_ROOM):
            raise InvalidInput(f"example: {facts.path.name} fails on it: {_brief(error)}") from error
        return None
    raise InvalidInput(f"{facts.path.name} takes one row, and fails on {COUNT}: {_brief(reason)}; {FREE_BATCH}")


def _asked(signature: Signature, session: Any) -> set[str]:
    """The outputs that rows get: those that are declared, or all."""
    names = [output.name for output in session.get_outputs()]
    declared = {field.name for field in signature.outputs or ()} & {*names}
    return declared or {*names}


def _check(session: Any, facts: OnnxFile, asked: set[str], feed: Feed, made: list[Any]) -> None:
    again, names = session.run(None, feed), [output.name for output in session.get_outputs()]
    try:
        alone = [session.run(None, _part(feed, i)) for i in range(COUNT)]
    except Exception as error:
        raise InvalidInput(
            f"{facts.path.name} takes {COUNT} rows, and fails on one: {_brief(error)}; {FREE_BATCH}"
        ) from error
    quantized = any(node.op_type.startswith(_OF_THE_BATCH) for node in _nodes(facts.proto))
    for i, name in enumerate(names):
        if name not in asked:
            continue
        where = f"{facts.path.name}: output {name!r}"
        for count, value in ((COUNT, made[i]), *((1, one[i]) for one in alone)):
            if not isinstance(value, np.ndarray) or value.shape[:1] != (count,):
                form = getattr(value, "shape", type(value).__name__)
                raise InvalidInput(
                    f"{where} is {form} for {count} rows; its first dimension must be that of the rows: {FREE_BATCH}"
                )
        if (apart := _apart(made[i], again[i], _AGAIN)) is not None:
            raise InvalidInput(
                f"{where} differs from call to call ({apart}), so it is drawn at random or remembers: export the model in eval "
                "mode, without dropout and sampling"
            )
        if quantized and made[i].dtype.kind != "f":
            continue  # a number or a label of the largest may well be another
        each = (
            _apart(made[i][row : row + 1], one[i], _QUANTIZED if quantized else _ALONE) for row, one in enumerate(alone)
        )
        if (apart := next(filter(None, each), None)) is not None:
            raise InvalidInput(
                f"{where} for one row depends on the other rows of its batch ({apart}), and workers batch whatever waits; have "
                "each row computed from itself: the first dimension of inputs and outputs is the batch's, and no operator may go "
                "along axis 0, as a Softmax, a sum or a BatchNormalization in training mode can"
            )


def _feed(session: Any, fields: Sequence[Field], rows: Sequence[Row]) -> Feed:
    only = len(fields) == 1
    by_name = {field.name: field for field in fields}
    feed: Feed = {}
    for value in session.get_inputs():
        field = fields[0] if only else by_name[value.name]
        cells = [row[field.name] for row in rows]
        if field.dtype == "str":
            feed[value.name] = np.array(cells, object).reshape(-1, *[1] * (len(value.shape) - 1))
        else:
            feed[value.name] = np.stack([np.asarray(cell, ARRAY_DTYPES[field.dtype]) for cell in cells])
    return feed


def _part(feed: Mapping[str, NDArray[Any]], row: int) -> Feed:
    return {name: value[row : row + 1] for name, value in feed.items()}


def _other(random: np.random.Generator, value: Any) -> Any:
    """A value like it: of floats about the same sizes, of all else the same values in another order."""
    if isinstance(value, str):
        return " ".join(random.permutation(value.split()))
    array = np.asarray(value)
    made: NDArray[Any]
    if array.dtype.kind == "f":
        made = array * random.uniform(0.5, 1.5, array.shape) if array.any() else random.standard_normal(array.shape)
    elif array.any():
        made = random.permutation(array.reshape(-1)).reshape(array.shape)
    else:
        made = random.integers(0, 2, array.shape)
    return made.astype(array.dtype)


def _nodes(model: Any) -> list[Any]:
    """Those of the graph, its functions and the graphs inside."""
    nodes, left = [], [*chain(model.graph.node, *(function.node for function in model.functions))]
    while left:
        node = left.pop()
        nodes.append(node)
        left += [
            inner for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) for inner in graph.node
        ]
    return nodes


def _apart(made: NDArray[Any], right: NDArray[Any], tolerance: float) -> str | None:
    """In what two results differ; None when they are as good as equal, NaN and infinity included."""
    if made.shape != right.shape:
        return f"{list(made.shape)}, not {list(right.shape)}"
    if right.dtype.kind != "f":
        differ = made != right
        if right.dtype.itemsize == 1 and right.dtype.kind in "iu":  # rounded to few values
            differ &= np.abs(made.astype(int) - right.astype(int)) > 1
        return f"{int(differ.sum())} of {differ.size} values" if differ.any() else None
    one, two = made.astype(np.float64), right.astype(np.float64)
    differs = (one != two) & ~(np.isnan(one) & np.isnan(two))
    if not differs.any():
        return None
    greatest = float(np.abs(two[np.isfinite(two)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        off, size = np.abs(one - two)[differs], np.abs(two)[differs]
        allowed = max(tolerance, 1e-2 if right.dtype == np.float16 else 0) * (min(1.0, greatest) + size + greatest / 10)
        return None if (off <= np.maximum(allowed, 1e-6)).all() else f"by up to {off.max():.2g}"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
