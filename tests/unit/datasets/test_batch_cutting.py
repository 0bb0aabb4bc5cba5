"""A shard that is cut: its parts hold each row once and in order, in every format, and cutting on ends at single rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.requests.batch import TO_THE_END, BatchRequest, InputFile, Piece, Shard
from forebay.datasets.formats.source import get_source
from forebay.datasets.planning import cutting
from forebay.datasets.planning.cutting import cut
from forebay.datasets.reading.rows import columns_read, read_pieces
from forebay.datasets.reading.shard_range import ShardRange

ROWS = 37


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"n": list(range(ROWS))}), path, row_group_size=10)


def arrow(path: Path) -> None:
    table = pa.table({"n": list(range(ROWS))})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def npy(path: Path) -> None:
    np.save(path, np.arange(ROWS))


def text(path: Path) -> None:
    lines = [json.dumps({"n": i}) + "\n" * (1 + i % 3) for i in range(ROWS)]  # some lines are blank
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def table(path: Path) -> None:
    lines = ["n,said\n", *(f'{i},"one\nline ""{i}"" more"\n' for i in range(ROWS))]  # no planner cuts such a file
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


FILES = {
    "a.parquet": ("parquet", parquet), "a.arrow": ("arrow", arrow), "a.npy": ("npy", npy), "a.jsonl": ("jsonl", text),
    "a.jsonl.gz": ("jsonl", text), "a.csv": ("csv", table), "a.csv.gz": ("csv", table),
}  # fmt: skip


def planned(folder: Path, name: str, copies: int = 1) -> tuple[BatchRequest, Shard]:
    """A batch over `copies` of the file, in one shard."""
    format, write = FILES[name]
    files = []
    for i in range(copies):
        path = folder / f"{i}-{name}"
        write(path)
        files.append(InputFile(str(path), path.stat().st_size))
    column = "array" if format == "npy" else "n"
    request = BatchRequest(tuple(files), "out", format, {"x": (column,)}, row_bytes=9)
    pieces, rows, size = [], 0, 0
    for i, file in enumerate(files):
        blocks = get_source(format).layout(file, columns_read(request), 9)
        pieces.append(Piece(i, blocks[0].first, blocks[-1].last))
        rows, size = rows + sum(b.rows for b in blocks), size + sum(b.bytes for b in blocks)
    return request, Shard(tuple(pieces), rows, size)


def numbers(request: BatchRequest, shard: Shard) -> list[int]:
    """What a worker reads of the shard."""
    found: list[Any] = []
    for rows in read_pieces(request, ShardRange(shard.pieces)):
        column = next(iter(rows.columns.values()))
        found += column.to_pylist() if isinstance(column, pa.Array) else column
    return [int(n) for n in found]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ways", [2, 8])
def test_the_parts_hold_every_row_once_and_about_as_many_each(tmp_path: Path, name: str, ways: int) -> None:
    request, shard = planned(tmp_path, name)
    parts = cut(request, shard, ways)
    found = [numbers(request, part) for part in parts]
    assert [n for part in found for n in part] == list(range(ROWS))
    assert len(parts) == ways
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len({part.part for part in parts}) == ways, "each writes a file of its own"


@pytest.mark.parametrize("name", FILES)
def test_cutting_on_ends_at_single_rows(tmp_path: Path, name: str) -> None:
    request, shard = planned(tmp_path, name, copies=3)
    left, single, cuts = [shard], [], 0
    while left and cuts < 1000:
        parts = cut(request, left.pop(0), 8)
        cuts += 1
        single, left = (single + parts, left) if len(parts) == 1 else (single, left + parts)
    assert sorted(numbers(request, part)[0] for part in single) == sorted(3 * list(range(ROWS)))
    assert all(len(numbers(request, part)) == 1 for part in single)


def test_of_very_many_rows_only_some_places_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_POSITIONS", 5)
    request, shard = planned(tmp_path, "a.arrow")
    parts = cut(request, shard, 4)
    assert [n for part in parts for n in numbers(request, part)] == list(range(ROWS))
    assert len(parts) > 1


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(2, 16))
def test_ranges_of_rows_are_cut_without_a_look_at_the_file(first: int, rows: int, ways: int) -> None:
    request = BatchRequest((InputFile("/nowhere.parquet", 1),), "out", "parquet", {"x": ("n",)})
    parts = cut(request, Shard((Piece(0, first, first + rows),), rows, 8 * rows), ways)
    edges = [(piece.first, piece.last) for part in parts for piece in part.pieces]
    assert edges[0][0] == first
    assert edges[-1][1] == first + rows != TO_THE_END
    assert all(a < b for a, b in edges)
    assert all(edges[i][1] == edges[i + 1][0] for i in range(len(edges) - 1))
    assert max(b - a for a, b in edges) <= rows // ways + 1
    assert len(parts) == min(ways, rows)
