"""Outputs that name their classes: as a list with the names beside it in Parquet, by name in JSON lines and CSV."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import OPENAI
from forebay.contract.signature import Signature
from forebay.datasets.columns import classes_of
from support.parts import files_of, run_batch, write_tables

NAMES = ["cat", "a dog", "b,c"]
OUTPUTS: dict[str, Any] = {"label": {"dtype": "str"}, "p": {"dtype": "float32", "shape": [3], "classes": NAMES}}
SIGNATURE = Signature.parse({"x": {"dtype": "float32", "shape": []}}, OUTPUTS)
ROWS = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]


def model(row: Any) -> Any:
    return {"label": "cat", "p": np.array(ROWS[int(row["x"])], np.float32)}


def batch(tmp_path: Path, **more: Any) -> Path:
    table = pa.table({"x": pa.array([0.0, 1.0], pa.float32()), "p.cat": [1, 2]})
    return run_batch(
        tmp_path / "out", write_tables(tmp_path / "in", table), model, {"x": ("x",)}, signature=SIGNATURE, **more
    )


def test_parquet_keeps_the_names_beside_a_column_of_lists(tmp_path: Path) -> None:
    [part] = batch(tmp_path).glob("part-*.parquet")
    table = pq.read_table(part)
    assert table["p"].to_pylist() == ROWS
    assert [classes_of(field) for field in table.schema] == [[], [], NAMES]


def test_json_lines_have_each_value_by_its_class(tmp_path: Path) -> None:
    [part] = batch(tmp_path, output_format="jsonl").glob("part-*.jsonl")
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    assert [line["p"] for line in lines] == [dict(zip(NAMES, row, strict=True)) for row in ROWS]


def test_csv_has_a_column_for_each_class(tmp_path: Path) -> None:
    [part] = batch(tmp_path, output_format="csv").glob("part-*.csv")
    table = pd.read_csv(part)
    assert [*table.columns] == ["row", "label", "p.cat", "p.a dog", "p.b,c"]
    assert table[["p.cat", "p.a dog", "p.b,c"]].to_numpy().tolist() == ROWS


def test_two_columns_of_one_name_are_refused_in_csv(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"two columns 'p\.cat' in CSV; leave it out of keep"):
        batch(tmp_path, output_format="csv", keep=("p.cat",))


def test_answers_in_openai_form_have_each_value_by_its_class(tmp_path: Path) -> None:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/x", "body": {"x": 1}}
    (tmp_path / "in.jsonl").write_text(json.dumps(request) + "\n")
    out = run_batch(
        tmp_path / "out", files_of(tmp_path / "in.jsonl"), model, {"x": ("x",)}, format=OPENAI, signature=SIGNATURE
    )
    [part] = out.glob("part-*.jsonl")
    body = json.loads(part.read_text())["response"]["body"]
    assert body["output"] == {"label": "cat", "p": dict(zip(NAMES, ROWS[1], strict=True))}
