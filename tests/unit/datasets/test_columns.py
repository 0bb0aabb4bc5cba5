"""A data set as columns in memory: the same numbers out of every format, what is missing, and a bound on its size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.arrays import Npz
from forebay.datasets.reading.table import Read, column_names, read_table

ROWS = {"n": [1.5, None, 3.0], "word": ["a", None, "c d"], "pair": [[1, 2], [3, 4], [5, 6]], "i": [1, 2, 3]}
FREE = 1 << 30


def file(path: Path) -> InputFile:
    return InputFile(str(path), path.stat().st_size)


def write(folder: Path, format: str) -> InputFile:
    path = folder / f"rows.{format}"
    if format == "parquet":
        pq.write_table(pa.table(ROWS), path, row_group_size=2)
    elif format == "arrow":
        with pa.ipc.new_file(path, pa.table(ROWS).schema) as writer:
            writer.write_table(pa.table(ROWS), max_chunksize=2)
    elif format == "jsonl":
        rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("n,word,i\n1.5,a,1\n,,2\n3,c d,3\n")
    return file(path)


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl", "csv"])
def test_every_format_gives_the_same_columns(tmp_path: Path, format: str) -> None:
    given = write(tmp_path, format)
    names = column_names([given], format)
    read = read_table([given, given], format, names, FREE)
    np.testing.assert_array_equal(read.table.columns["n"], [1.5, np.nan, 3.0] * 2)
    np.testing.assert_array_equal(read.table.columns["i"], [1, 2, 3] * 2)
    assert read.table.columns["word"] == ["a", None, "c d"] * 2
    if format != "csv":
        np.testing.assert_array_equal(read.table.columns["pair"], [[1, 2], [3, 4], [5, 6]] * 2)
    assert len(read.table) == 6
    assert read.bad == {}


def npz(tmp_path: Path, **arrays: object) -> InputFile:
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    return file(tmp_path / "a.npz")


def test_the_arrays_of_an_npz_are_columns(tmp_path: Path) -> None:
    images = np.arange(24, dtype=">i2").reshape(3, 2, 4)
    given = npz(tmp_path, images=images, words=np.array(["a", "b", "c"]))
    read = read_table([given], "npz", ["images", "words"], FREE)
    np.testing.assert_array_equal(read.table.columns["images"], images)
    assert read.table.columns["words"] == ["a", "b", "c"]
    assert [chunk.where.tolist() for chunk in Npz().read(given, 1, 2, ["words"])] == [[1]]


def test_an_npz_of_unequal_arrays_or_with_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'a' has 2, 'b' has 3"):
        read_table([npz(tmp_path, a=np.zeros(2), b=np.zeros(3))], "npz", ["a", "b"], FREE)
    with pytest.raises(InvalidInput, match=r"cannot be read as a \.npz archive"):
        read_table([npz(tmp_path, a=np.array([{}, {}]))], "npz", ["a"], FREE)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match=r"cannot be read as a \.npz archive"):
        column_names([file(tmp_path / "a.npz")], "npz")


def test_an_image_folder_has_the_folders_name_as_a_column(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "train" / name / "1.png")
    files = [file(path) for path in sorted(tmp_path.rglob("*.png"))]
    read = read_table(files, "images", ["image", "label", "split"], FREE)
    assert read.table.columns["label"] == ["cat", "dog"]
    assert read.table.columns["split"] == ["train", "train"]
    assert all(data.startswith(b"\x89PNG") for data in read.table.columns["image"])


def test_lists_of_different_lengths_stay_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"s": [[1, 2], [3]], "t": [["a"], ["b"]]}), tmp_path / "a.parquet")
    read = read_table([file(tmp_path / "a.parquet")], "parquet", ["s", "t"], FREE)
    assert read.table.columns == {"s": [[1, 2], [3]], "t": [["a"], ["b"]]}


def test_a_line_that_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n5,6\n")
    read: Read = read_table([file(tmp_path / "a.csv")], "csv", ["a", "b"], FREE)
    assert list(read.bad) == [1]
    assert "a.csv" in read.bad[1]


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no column 'z'; there are 'n', 'word', 'pair', 'i'"):
        read_table([write(tmp_path, "parquet")], "parquet", ["z"], FREE)


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(InvalidInput, match="the data set is empty"):
        column_names([file(tmp_path / "a.csv")], "csv")


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((1000, 1000)))
    with pytest.raises(InvalidInput, match="takes up more than 1 MiB by row"):
        read_table([file(tmp_path / "a.npz")], "npz", ["a"], 1 << 20)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_true_and_false_stay_what_they_are_with_gaps_and_without(tmp_path: Path, format: str) -> None:
    rows = {"whole": [True, False], "gap": [True, None]}
    path = tmp_path / f"a.{format}"
    if format == "parquet":
        pq.write_table(pa.table(rows), path)
    else:
        path.write_text('{"whole": true, "gap": true}\n{"whole": false, "gap": null}\n')
    table = read_table([file(path)], format, ["whole", "gap"], FREE).table
    assert isinstance(table.columns["whole"], np.ndarray)
    assert (table.columns["whole"].dtype, table.columns["whole"].tolist()) == (np.dtype(bool), [True, False])
    assert table.columns["gap"] == [True, None]
