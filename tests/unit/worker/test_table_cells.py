"""Whatever a table's column held when it was trained on, serving takes, and means the same by it: gaps, booleans, decimals."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.contract.cells import is_missing, label_among, label_text, number_cell
from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import BatchRequest, InputFile
from forebay.contract.requests.training import TrainRequest
from forebay.contract.signature import Signature
from forebay.datasets.formats.source import Chunk
from forebay.datasets.planning.checking import check_file
from forebay.datasets.reading.inputs import convert
from forebay.datasets.reading.table import read_table
from forebay.worker.kinds.evaluate.comparing import Comparison
from forebay.worker.trainer.data import load_data
from forebay.worker.trainer.preprocessing import encode_columns, fields, fit_columns
from forebay.worker.trainer.recipes.tabular import Classifier
from support.parts import files_of

FREE = 1 << 30


def table_of(files: tuple[InputFile, ...], format: str, names: list[str]) -> Any:
    return read_table(files, format, names, FREE).table


def written(folder: Path, format: str, column: pa.Array) -> tuple[InputFile, ...]:
    path = folder / f"c.{format}"
    if format == "parquet":
        pq.write_table(pa.table({"c": column}), path)
    elif format == "jsonl":
        path.write_text("".join(json.dumps({"c": value}) + "\n" for value in column.to_pylist()))
    else:
        texts = ["" if value is None else f'"{value}"' for value in column.to_pylist()]
        path.write_text("c,other\n" + "".join(f"{text},1\n" for text in texts))
    return files_of(path)


COLUMNS = {
    "numbers": (pa.array([1.5, None, 3.0, float("nan"), 2.0]), ("parquet", "csv"), ()),
    "integers": (pa.array([1, None, 3, 4]), ("parquet", "jsonl", "csv"), ()),
    "booleans": (pa.array([True, False, True]), ("parquet", "jsonl"), ()),
    "booleans with gaps": (pa.array([True, None, False]), ("parquet", "jsonl"), ()),
    "decimals": (pa.array([Decimal("1.50"), None, Decimal("2.25")]), ("parquet",), ()),
    "categories": (pa.array(["red", None, "", "NA", "blue", "red"]), ("parquet", "jsonl", "csv"), ()),
    "codes": (pa.array(["red", None, "blue"]).dictionary_encode(), ("parquet",), ()),
    "integer categories": (pa.array([10, 20, None, 10]), ("parquet", "jsonl", "csv"), ("c",)),
    "float categories": (pa.array([1.0, 2.5, 1.0]), ("parquet", "jsonl", "csv"), ("c",)),
    "decimal categories": (pa.array([Decimal("1.50"), Decimal("2.00")]), ("parquet",), ("c",)),
    "dates": (pa.array([datetime.date(2024, 1, 1), None, datetime.date(2024, 1, 2)]), ("parquet",), ()),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_batch_takes_the_very_rows_that_were_trained_on_and_encodes_them_alike(tmp_path: Path, case: str) -> None:
    column, formats, categorical = COLUMNS[case]
    for format in formats:
        files = written(tmp_path, format, column)
        table = table_of(files, format, ["c"])
        specs = json.loads(json.dumps(fit_columns(table, categorical, "mean", normalize=True)))
        signature = Signature.parse(fields(specs))
        request = BatchRequest(files, "", format, {"c": ("c",)}, row_bytes=10)
        check_file(request, signature, files[0])
        for other in formats:  # one may be trained on one format, and serve another
            rows = read_rows(written(tmp_path, other, column)[0], other, signature)
            assert len(rows) == len(column)
            served = encode_columns(specs, {"c": [row["c"] for row in rows]})
            np.testing.assert_allclose(served, encode_columns(specs, table.columns), rtol=1e-6)


def read_rows(file: InputFile, format: str, signature: Signature) -> list[Any]:
    from forebay.datasets.formats.source import get_source

    source = get_source(format)
    [block] = source.layout(file, ["c"], 10)
    [chunk] = source.read(file, block.first, block.last, ["c"])
    inputs = convert(chunk, {"c": ("c",)}, signature, format)
    assert inputs.bad == {}
    return inputs.rows()


GAPS = [None, float("nan"), np.float32("nan"), "", " ", "NA", "NaN"]


def test_all_gaps_are_one_in_predict_and_evaluate() -> None:
    number = Signature.parse({"n": {"dtype": "float32", "shape": [], "cell": True}})
    category = Signature.parse({"c": {"dtype": "str", "cell": True}})
    for gap in GAPS:
        assert is_missing(gap)
        assert np.isnan(number.row({"n": gap})["n"])
        assert category.row({"c": gap})["c"] == ""
    assert [row["n"].tolist() for row in number.rows({"n": [1, True, "2.5", Decimal("0.5")]})] == [1, 1, 2.5, 0.5]
    assert [category.row({"c": v})["c"] for v in (3, 3.0, "3", True, Decimal("2.50"))] == ["3", "3", "3", "true", "2.5"]
    comparison = Comparison(None, ("a", "b"), 10)
    comparison.add(["a"] * (len(GAPS) + 1), [*GAPS, "a"], {})
    assert (comparison.rows, comparison.failed) == (1, len(GAPS))


def test_a_model_trained_without_gaps_refuses_each_gap() -> None:
    strict: dict[str, Any] = {
        "n": {"dtype": "float32", "shape": [], "nan": False, "cell": True},
        "c": {"dtype": "str", "nan": False, "cell": True},
    }
    for name, field in strict.items():
        signature = Signature.parse({name: field})
        for gap in GAPS:
            with pytest.raises(InvalidInput, match="value is missing"):
                signature.row({name: gap})
        column = pa.array([None, "NA", ""], pa.string())
        inputs = convert(Chunk({"c": column}, np.arange(3)), {name: ("c",)}, signature, "parquet")
        assert sorted(inputs.bad) == [0, 1, 2]


def test_what_is_no_cell_is_refused_with_its_value() -> None:
    number = Signature.parse({"n": {"dtype": "float32", "shape": [], "cell": True}})
    category = Signature.parse({"c": {"dtype": "str", "cell": True}})
    with pytest.raises(InvalidInput, match="input 'n': 'twelve' is not a number"):
        number.row({"n": "twelve"})
    with pytest.raises(InvalidInput, match="input 'c': expected a category"):
        category.row({"c": ["a"]})
    with pytest.raises(InvalidInput, match="'v': a cell is a single float32, float64 or str"):
        Signature.parse({"v": {"dtype": "float32", "shape": [2], "cell": True}})


def test_whole_numbers_beyond_a_doubles_stay_what_they_are(tmp_path: Path) -> None:
    large = [2**53 + 1, None, 2**53, 5]
    files = written(tmp_path, "parquet", pa.array(large))
    assert table_of(files, "parquet", ["c"]).columns["c"] == large
    files = written(tmp_path, "jsonl", pa.array(large))
    assert table_of(files, "jsonl", ["c"]).columns["c"] == large
    files = written(tmp_path, "jsonl", pa.array([2**53 + 1, 2**53]))
    assert table_of(files, "jsonl", ["c"]).columns["c"].tolist() == [2**53 + 1, 2**53]
    files = written(tmp_path, "csv", pa.array([2**53 + 1, 2**53]))
    assert [label_text(v) for v in table_of(files, "csv", ["c"]).columns["c"]] == [str(2**53 + 1), str(2**53)]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_such_an_id_with_a_gap_is_refused_as_a_feature(tmp_path: Path, format: str) -> None:
    ids = pa.array([2**53 + 1, None, *range(2, 20)])
    files = written(tmp_path, format, ids)
    with pytest.raises(
        InvalidInput, match=r"column 'c' has gaps and whole numbers beyond 2\^53, such as 9007199254740993"
    ):
        fit_columns(table_of(files, format, ["c"]), (), "mean", normalize=True)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_long_doubles_are_refused_in_words(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = np.zeros((3, 2), np.longdouble)
    np.save(path, values) if suffix == "npy" else np.savez(path, array=values)
    request = BatchRequest(files_of(path), "", suffix, {"x": ("array",)})
    with pytest.raises(InvalidInput, match=r"numbers of up to 64 bits.*found dtype float128"):
        check_file(request, Signature(), request.files[0])


@pytest.mark.parametrize("target", ["y", "label"])
def test_a_gap_in_a_target_is_no_class(tmp_path: Path, target: str) -> None:
    rows = {"x": [1.0, 2.0, 3.0, 4.0] * 5, target: ["a", "b", "NA", ""] * 5}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    request = TrainRequest("classifier", files_of(tmp_path / "t.parquet"), "parquet", target)
    data = load_data(request, Classifier({}), normalize=True)
    assert data.summary.classes == ("a", "b")
    assert data.summary.dropped == 10


def test_a_text_is_the_number_that_a_label_stands_for_only_if_it_is_exactly_that() -> None:
    assert [label_among({"3", "0.5"}, text) for text in ("3.0", "+3", "0.50")] == ["3", "3", "0.5"]
    assert label_among({str(2**53)}, str(2**53 + 1)) == str(2**53 + 1)
    assert label_among({"10"}, "1_0") == "1_0"
    with pytest.raises(InvalidInput, match="is not a number"):
        number_cell("1_000", True, "x")
