"""All parts of a batch have one schema that holds every kept value and output exactly, whatever types its files have."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.contract.signature import Signature
from forebay.datasets.formats.source import Sample
from forebay.datasets.planning.schema import KeptTypes
from forebay.datasets.widening import widened
from support.datasets import errors_of, rows_of
from support.parts import run_batch, write_tables

X = {"input": ("x",)}


def table(kept: pa.Array) -> pa.Table:
    return pa.table({"x": pa.array(range(len(kept)), pa.int64()), "k": kept})


def keep(tmp_path: Path, *kept: pa.Array) -> Path:
    """The output of a batch that keeps `k` of a file for each of these columns."""
    return run_batch(tmp_path / "out", write_tables(tmp_path / "in", *map(table, kept)), lambda x: x, X, keep=("k",))


def check_one_data_set(folder: Path) -> list[Any]:
    """The kept values, which every reader finds in the folder as one data set with one schema."""
    parts = sorted(folder.glob("part-*.parquet"))
    assert len({pq.read_schema(part).to_string() for part in parts}) == 1
    found = ds.dataset([str(part) for part in parts], format="parquet").to_table()
    assert len(pd.read_parquet(folder)) == len(found)
    assert pl.read_parquet(f"{folder}/part-*.parquet").height == len(found)
    assert len(duckdb.read_parquet(f"{folder}/part-*.parquet").fetchall()) == len(found)
    return list(found.column("k").to_pylist())


ZONE = datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
HELD = {
    "int32, int64": ([pa.array([1], pa.int32()), pa.array([3_000_000_000])], [1, 3_000_000_000]),
    "uint8, int8": ([pa.array([255], pa.uint8()), pa.array([-1], pa.int8())], [255, -1]),
    "float, double": ([pa.array([0.5], pa.float32()), pa.array([0.1])], [0.5, 0.1]),
    "int32, double": ([pa.array([2**31 - 1], pa.int32()), pa.array([0.5])], [2**31 - 1, 0.5]),
    "int32, float": ([pa.array([2**24 + 1], pa.int32()), pa.array([0.5], pa.float32())], [2**24 + 1, 0.5]),
    "null, text": ([pa.nulls(2), pa.array(["a"])], [None, None, "a"]),
    "text, null": ([pa.array(["a"]), pa.nulls(1)], ["a", None]),
    "all null": ([pa.nulls(1), pa.nulls(2)], [None] * 3),
    "typed nulls": ([pa.nulls(1, pa.int64()), pa.array([7])], [None, 7]),
    "large text": ([pa.array(["a"], pa.large_string()), pa.array(["b"]), pa.array(["c"], pa.string_view())], list("abc")),
    "codes": ([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()], list("abca")),
    "codes, text": ([pa.array(["a", None]).dictionary_encode(), pa.array(["b"])], ["a", None, "b"]),
    "same zone": (
        [pa.array([ZONE], pa.timestamp("ms", "UTC")), pa.array([ZONE], pa.timestamp("us", "UTC"))], [ZONE, ZONE],
    ),
    "decimals": (
        [pa.array([Decimal("1.5")], pa.decimal128(3, 1)), pa.array([Decimal("100.25")], pa.decimal128(5, 2))],
        [Decimal("1.50"), Decimal("100.25")],
    ),
    "lists": ([pa.array([[1, 2]], pa.list_(pa.int32(), 2)), pa.array([[3]], pa.list_(pa.int64()))], [[1, 2], [3]]),
    "lists of nulls": ([pa.array([[None]]), pa.array([["a"]])], [[None], ["a"]]),
    "structs": (
        [pa.array([{"a": 1}], pa.struct([("a", pa.int16())])), pa.array([{"a": 2**40}])], [{"a": 1}, {"a": 2**40}],
    ),
    "beyond a double's whole numbers": ([pa.array([2**53 + 1]), pa.array([None, -(2**53) - 1])], [2**53 + 1, None, -(2**53) - 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", HELD)
def test_kept_columns_of_different_types_have_one_type_that_holds_them_all(tmp_path: Path, case: str) -> None:
    columns, expected = HELD[case]
    assert check_one_data_set(keep(tmp_path, *columns)) == expected


REFUSED = {
    "int, text": (pa.array([1]), pa.array(["1"])),
    "bool, int": (pa.array([True]), pa.array([1])),
    "zones": (pa.array([ZONE], pa.timestamp("us", "UTC")), pa.array([ZONE], pa.timestamp("us", "Europe/Berlin"))),
    "zone and none": (pa.array([ZONE], pa.timestamp("us", "UTC")), pa.array([0], pa.timestamp("us"))),
    "int64, uint64": (pa.array([1], pa.int64()), pa.array([1], pa.uint64())),
    "date, timestamp": (pa.array([0], pa.date32()), pa.array([0], pa.timestamp("us"))),
    "structs": (pa.array([{"a": 1}]), pa.array([{"b": 1}])),
    "list, number": (pa.array([[1]]), pa.array([1])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_types_that_no_type_holds_are_refused_with_files_column_and_both_types(tmp_path: Path, case: str) -> None:
    one, other = REFUSED[case]
    with pytest.raises(InvalidInput, match=r"column 'k' is .* in '.*1\.parquet' but .* in '.*0\.parquet'") as caught:
        keep(tmp_path, one, other)
    assert str(one.type) in str(caught.value)
    assert str(other.type) in str(caught.value)


def test_a_column_that_parquet_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    from support.parts import files_of

    column = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    with pa.ipc.new_file(tmp_path / "in" / "a.arrow", table(column).schema) as writer:
        writer.write_table(table(column))
    files = files_of(tmp_path / "in" / "a.arrow")
    with pytest.raises(InvalidInput, match=r"column 'k' of '.*a\.arrow' is month_day_nano_interval"):
        run_batch(tmp_path / "out", files, lambda x: x, X, keep=("k",), format="arrow")


def test_a_whole_number_that_a_double_does_not_hold_is_that_rows_error(tmp_path: Path) -> None:
    out = keep(tmp_path, pa.array([2**53 + 1, 2**53, None]), pa.array([0.5, float("nan"), None]))
    found = check_one_data_set(out)
    assert found[:3] == [2.0**53, None, 0.5]
    assert np.isnan(found[3])
    [error] = errors_of(out)
    assert error["file"].endswith("0.parquet")
    assert error["row"] == 0
    assert "column 'k': expected double, got 9007199254740993" in error["message"]


@pytest.mark.parametrize("one", [pa.int8(), pa.uint32(), pa.int64(), pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("other", [pa.int16(), pa.uint64(), pa.int64(), pa.float32()])
def test_the_wider_of_two_types_is_the_same_from_both_sides(one: pa.DataType, other: pa.DataType) -> None:
    assert widened(one, other) == widened(other, one)


def test_a_file_that_has_changed_since_it_was_looked_at_is_no_reason_to_cast(tmp_path: Path) -> None:
    from contextlib import nullcontext

    from forebay.contract.requests.batch import BatchRequest
    from forebay.datasets.planning import schema as schemas

    files = write_tables(tmp_path / "in", table(pa.array([1], pa.int32())))
    request = BatchRequest(files, "", "parquet", X, ("k",))
    known = schemas.part_schema(request, Signature(), nullcontext)
    assert schemas.load_schema(schemas.dump_schema(known)) == known
    write_tables(tmp_path / "in", table(pa.array([3_000_000_000])))
    from unittest.mock import patch

    with patch("support.parts.part_schema", lambda *_: known):
        out = run_batch(tmp_path / "out", files, lambda x: x, X, keep=("k",))
    assert rows_of(out) == []
    assert "column 'k': expected int32, got 3000000000" in errors_of(out)[0]["message"]


# Outputs


def outputs(tmp_path: Path, made: list[Any], shard_rows: int = 2, **more: Any) -> Path:
    """The output of a model that gives these, one for each row."""
    files = write_tables(tmp_path / "in", pa.table({"x": range(len(made))}))
    return run_batch(tmp_path / "out", files, lambda x: made[int(x)], X, shard_rows=shard_rows, batch_rows=2, **more)


def test_keys_may_come_in_any_order_and_be_left_out(tmp_path: Path) -> None:
    out = outputs(tmp_path, [{"a": 1, "b": "x"}, {"b": "y", "a": 2}, {"a": 3}, {"b": None, "a": None}])
    assert rows_of(out) == [
        {"row": 0, "a": 1, "b": "x"}, {"row": 1, "a": 2, "b": "y"}, {"row": 2, "a": 3, "b": None},
        {"row": 3, "a": None, "b": None},
    ]  # fmt: skip
    assert len({pq.read_schema(part).to_string() for part in out.glob("*.parquet")}) == 1


def test_a_key_that_the_first_outputs_did_not_have_is_its_rows_error(tmp_path: Path) -> None:
    out = outputs(tmp_path, [{"a": 1}, {"a": 2}, {"a": 3, "z": 0.5}, {"a": 4}])
    assert [row["a"] for row in rows_of(out)] == [1, 2, 4]
    assert [error["row"] for error in errors_of(out)] == [2]
    assert "output 'z' is not among those" in errors_of(out)[0]["message"]


def test_an_output_of_another_type_is_its_rows_error_and_no_cast(tmp_path: Path) -> None:
    out = outputs(tmp_path, [np.float32(0.5), np.float32(1), 0.1, True, "x", None, np.float32(2)])
    assert [(row["row"], row["output"]) for row in rows_of(out)] == [(0, 0.5), (1, 1.0), (5, None), (6, 2.0)]
    assert [error["row"] for error in errors_of(out)] == [2, 3, 4]
    assert "expected float, got 0.1" in errors_of(out)[0]["message"]


def test_parts_without_a_value_have_the_type_of_the_others(tmp_path: Path) -> None:
    out = outputs(tmp_path, [1.5, 2.5, None, None, None, 3.5])
    assert [row["output"] for row in rows_of(out)] == [1.5, 2.5, None, None, None, 3.5]
    assert {str(pq.read_schema(part).field("output").type) for part in out.glob("*.parquet")} == {"double"}


class Widths:
    """Gives each batch of rows as many numbers as it has rows, the last one in single precision."""

    def predict_columns(self, columns: Any) -> Any:
        x = columns["input"]
        dtype = np.float32 if x[0] == 6 else np.float64
        return {"y": np.repeat(x[:, None], len(x), axis=1).astype(dtype) + dtype(0.1)}


def test_widths_and_dtypes_that_differ_between_batches_are_not_broadcast(tmp_path: Path) -> None:
    files = write_tables(tmp_path / "in", pa.table({"x": range(7)}))
    signature = Signature.parse({"input": {"dtype": "int64", "shape": []}})
    out = run_batch(tmp_path / "out", files, Widths(), X, signature=signature, batch_rows=3)
    assert [row["y"] for row in rows_of(out)] == [
        *([i + 0.1] * 3 for i in range(6)), [float(np.float32(6) + np.float32(0.1))],
    ]  # fmt: skip


def test_declared_outputs_of_another_width_are_errors(tmp_path: Path) -> None:
    files = write_tables(tmp_path / "in", pa.table({"x": range(4)}))
    signature = Signature.parse({"input": {"dtype": "int64", "shape": []}}, {"y": {"dtype": "float64", "shape": [3]}})
    out = run_batch(tmp_path / "out", files, Widths(), X, signature=signature, batch_rows=3)
    assert len(rows_of(out)) + len(errors_of(out)) == 4
    assert all(row["y"] == [row["row"] + 0.1] * 3 for row in rows_of(out))
    assert "expected float64 of shape [3]" in errors_of(out)[0]["message"]


def test_an_output_with_the_name_of_a_kept_column_does_not_replace_it(tmp_path: Path) -> None:
    files = write_tables(tmp_path / "in", table(pa.array(["a"])))
    with pytest.raises(InvalidInput, match="output 'k' has the name of a kept column"):
        run_batch(tmp_path / "out", files, lambda x: {"k": 1, "y": 2}, X, keep=("k",))


def test_null_stays_null_in_kept_text_of_json_lines(tmp_path: Path) -> None:
    from support.parts import files_of

    (tmp_path / "a.jsonl").write_text('{"x": 1, "k": "a"}\n{"x": 2, "k": null}\n{"x": 3}\n{"x": 4, "k": {"n": 1}}\n')
    files = files_of(tmp_path / "a.jsonl")
    out = run_batch(
        tmp_path / "out", files, lambda x: x, X, keep=("k",), format="jsonl", keep_types={"k": "string"}, row_bytes=10
    )
    assert [row["k"] for row in rows_of(out)] == ["a", None, None, '{"n": 1}']


def test_whether_parquet_holds_a_kept_type_is_tried_once_for_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[pa.DataType] = []
    monkeypatch.setattr(pq, "write_table", lambda table, _: tried.append(table.schema.field("k").type))
    kept = KeptTypes(["k"])
    for i, kind in enumerate([pa.int32(), pa.int32(), pa.int64(), pa.int32(), pa.int64()]):
        kept.add(InputFile(str(i), 1), Sample({"k": kind}, empty=False))
    assert tried == [pa.int32(), pa.int64()]
    assert kept.types() == {"k": pa.int64()}
