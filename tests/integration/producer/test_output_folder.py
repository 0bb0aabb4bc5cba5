"""An output folder that another request has made: what differs from it is said, in Python as on the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay import Client, InvalidInput
from support.commands import Shell


@pytest.fixture
def client(shell: Shell) -> Iterator[Client]:
    for _ in range(3):
        shell.register()
    for name, rows in (("a", 3), ("b", 3), ("c", 4)):
        table = {"x": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2)), "id": range(rows)}
        pq.write_table(pa.table(table | {"z": table["x"], "n": [0.5] * rows, "m": [0.5] * rows}), f"{name}.parquet")
    Path("list.csv").write_text("n,m\n1,2\n")
    with Client() as client:
        client.batch("double/2", "a.parquet", "out", columns="x")
        yield client


ASKED: dict[str, Any] = {"model": "double/2", "input": "a.parquet", "columns": "x"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"model": "double/3"}, "model: double/2 there, double/3 asked"),
        ({"model": "double"}, "model: double/2 there, double/3 asked"),
        ({"input": "b.parquet"}, "input: 1 file, with '{}/a.parquet', there, 1 file, with '{}/b.parquet', asked"),
        ({"input": ["a.parquet", "c.parquet"]}, "input: 1 file there, 2 files, with '{}/c.parquet', asked"),
        ({"columns": "z"}, "columns: x=x there, x=z asked"),
        ({"columns": ["n", "m"]}, "columns: x=x there, x=n,m asked"),
        ({"keep": "id"}, "keep: none there, id asked"),
        ({"keep": ["id", "n"], "max_errors": 5}, "keep: none there, id,n asked; max_errors: none there, 5 asked"),
        ({"output_format": "csv", "columns": ["n", "m"]}, "output_format: none there, csv asked"),
        ({"shard_rows": 7}, "shard_rows: none there, 7 asked"),
        ({"input": "list.csv", "columns": ["n", "m"]}, "format: parquet there, csv asked"),
    ],
)
def test_a_folder_of_another_request_is_refused_with_what_differs(
    client: Client, tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        client.batch(**(ASKED | other), output="out")
    message = str(refused.value)
    assert "which asked for something else: " in message
    assert message.endswith(". Name another folder")
    assert told.replace("{}", str(tmp_path)) in message
    assert client.batch(**ASKED, output="out").id in message, "the same request is that batch, as before"


def test_a_changed_file_or_several_are_named(client: Client, shell: Shell) -> None:
    pq.write_table(pa.table({"x": pa.array([[1.0, 2.0]] * 900, pa.list_(pa.float32(), 2))}), "a.parquet")
    told = shell.error("batch", "double/2", "a.parquet", "out", "--columns", "x", "--max-error-share", "0.5")
    assert "/a.parquet' had " in told
    assert " now; max_error_share: none there, 0.5 asked. Name another folder" in told
    assert "model:" not in told


def test_the_input_says_which_file_one_of_them_lacks(client: Client) -> None:
    client.batch(**(ASKED | {"input": ["a.parquet", "b.parquet"]}), output="two")
    with pytest.raises(InvalidInput, match=r"input: 2 files, with '\S*/b.parquet', there, 1 file asked\. Name"):
        client.batch(**ASKED, output="two")
    with pytest.raises(
        InvalidInput, match=r"2 files, with '\S*/b.parquet', there, 2 files, with '\S*/c.parquet', asked"
    ):
        client.batch(**(ASKED | {"input": ["a.parquet", "c.parquet"]}), output="two")
    with pytest.raises(InvalidInput, match="input: the same files in another order"):
        client.batch(**(ASKED | {"input": ["b.parquet", "a.parquet"]}), output="two")
