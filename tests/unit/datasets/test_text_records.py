"""CSV and JSON lines, read in shards of every size, against readers that know nothing of shards or bytes: the same rows, values,
order, offsets and counts, however unpleasant the file.
"""  # fmt: skip

import csv
import gzip
import io
import random
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import CSV, JSONL, TO_THE_END, BatchRequest, InputFile, Piece, Position, Shard
from forebay.datasets.formats import lines
from forebay.datasets.formats.csv_records import scan_csv
from forebay.datasets.formats.source import Size, get_source, get_text_source
from forebay.datasets.planning.cutting import cut, middle
from forebay.datasets.planning.shards import shards
from forebay.datasets.reading.rows import Rows, read_pieces
from forebay.datasets.reading.shard_range import Halves, ShardRange
from support.nasty_text import Row, nasty_csv, nasty_jsonl, rows_of_csv, rows_of_jsonl

FILES, MANY_FILES = 300, 5_000
WHOLE = 1 << 40


def request_for(path: Path, data: bytes, format: str, columns: Sequence[str]) -> BatchRequest:
    path.write_bytes(data)
    return BatchRequest((InputFile(str(path), len(data)),), "out", format, {"x": tuple(columns)}, row_bytes=9)


def planned(request: BatchRequest, rows: int) -> list[Shard]:
    text, size = get_text_source(request.format), Size(rows, WHOLE)
    assert text is not None
    made = shards(lambda i, first: text.counted(request.files[i], first, size), len(request.files), Position(), size)
    return [shard for shard, _ in made]


def read(request: BatchRequest, made: Sequence[Shard]) -> list[Row]:
    return [row for shard in made for rows in read_pieces(request, ShardRange(shard.pieces)) for row in rows_in(rows)]


def rows_in(rows: Rows) -> list[Row]:
    """The rows of a chunk: CSV's as lists of text, those of JSON lines as objects of the columns that a line has."""
    columns = {name: c.to_pylist() if isinstance(c, pa.Array) else c for name, c in rows.columns.items()}
    found = []
    for i, at in enumerate(rows.where.tolist()):
        values: Any = {name: column[i] for name, column in columns.items() if not isinstance(column[i], Exception)}
        if any(isinstance(c, pa.Array) for c in rows.columns.values()):
            values = [value or "" for value in values.values()]
        found.append(Row(at, None if i in rows.bad else values))
    return found


def check_csv(folder: Path, every: bool, seed: int) -> None:
    file = nasty_csv(seed)
    request = request_for(folder / "a.csv", file.data, CSV, file.names)
    check(request, rows_of_csv(file.data, file.delimiter), random.Random(seed), every)


def check_jsonl(folder: Path, every: bool, seed: int) -> None:
    data = nasty_jsonl(seed)
    request = request_for(folder / "a.jsonl", data, JSONL, ["x", "n"])
    check(request, rows_of_jsonl(data), random.Random(seed), every)


def check(request: BatchRequest, expected: list[Row], draw: random.Random, every: bool) -> None:
    """Read whole and in shards of every size, or of one that is drawn; cut, and halved meanwhile."""
    sizes = [*range(1, len(expected) + 1), WHOLE] if every else [draw.choice([1, 2, draw.randint(1, 12), WHOLE])]
    before, lines.READ_BYTES = lines.READ_BYTES, draw.choice([1, 7, 50, 1 << 20])
    try:
        for rows in sizes:
            made = planned(request, rows)
            assert read(request, made) == expected
            assert sum(shard.rows for shard in made) == len(expected)
            assert all(shard.rows == rows for shard in made[:-1])
        ways = draw.sample(["whole", "cut", "halved"], 3 if every else 1) if expected else ["whole"]
        if "cut" in ways:
            [whole] = planned(request, WHOLE)
            assert read(request, cut(request, whole, draw.randint(2, 9))) == expected
        if "halved" in ways:
            [whole] = planned(request, WHOLE)
            assert read_halved(request, whole, draw) == expected
        if "whole" in ways:
            assert read(request, [Shard((Piece(0, 0, TO_THE_END),), 0, 0)]) == expected
    finally:
        lines.READ_BYTES = before


def read_halved(request: BatchRequest, shard: Shard, draw: random.Random) -> list[Row]:
    """Half of what is left is given away after some chunk, and read afterwards."""
    shard_range, given = ShardRange(shard.pieces), []

    def give(halves: Halves) -> bool:
        given.append(Shard(halves.given, sum(piece.rows for piece in halves.given), 0))
        return True

    found, at = [], draw.randint(0, 5)
    for i, rows in enumerate(read_pieces(request, shard_range, chunk_rows=1)):
        found += rows_in(rows)
        if i == at:
            shard_range.halve(partial(middle, request), give)
    return found + [row for one in given for row in read_halved(request, one, draw)]


def sweep(checked: Callable[[int], Any], seeds: range) -> list[Any]:
    found = []
    for seed in seeds:
        try:
            found.append(checked(seed))
        except Exception as error:
            raise AssertionError(f"the file of seed {seed}") from error
    return found


def test_csv_in_shards_of_any_size_is_what_the_csv_module_reads(tmp_path: Path) -> None:
    sweep(partial(check_csv, tmp_path, False), range(FILES))


def test_json_lines_in_shards_of_any_size_are_what_the_json_module_reads(tmp_path: Path) -> None:
    sweep(partial(check_jsonl, tmp_path, False), range(FILES))


@pytest.mark.slow
def test_five_thousand_files_of_each_format_are_read_as_others_read_them(tmp_path: Path) -> None:
    sweep(partial(check_csv, tmp_path, True), range(MANY_FILES))
    sweep(partial(check_jsonl, tmp_path, True), range(MANY_FILES))
    sweep(partial(check_with_pandas_and_duckdb, tmp_path), range(MANY_FILES))


def check_with_pandas_and_duckdb(folder: Path, seed: int) -> bool:
    """Where a file is regular, what they read; whether it was."""
    file = nasty_csv(seed)
    expected = [row.values for row in rows_of_csv(file.data, file.delimiter)]
    if not file.regular or not expected:
        return False
    path = folder / "b.csv"
    path.write_bytes(file.data)
    frame = pd.read_csv(path, sep=file.delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    assert frame.to_numpy().tolist() == expected
    table = duckdb.read_csv(
        str(path), delimiter=file.delimiter, quotechar='"', escapechar='"', header=True, all_varchar=True,
        columns={f"c{i}": "VARCHAR" for i in range(len(file.names))}, auto_detect=False,
    )  # fmt: skip
    assert [[value or "" for value in row] for row in table.fetchall()] == expected
    return True


def test_pandas_and_duckdb_read_the_same_of_regular_files(tmp_path: Path) -> None:
    assert sum(sweep(partial(check_with_pandas_and_duckdb, tmp_path), range(FILES // 2))) > FILES // 6


def test_records_are_found_in_any_soup_of_quotes_and_breaks_and_whatever_was_read_so_far() -> None:
    draw = random.Random(0)
    for _ in range(3_000):
        text = "".join(draw.choice('a,"\n\r "","') for _ in range(draw.randint(0, 24)))
        records = scan_csv(text.encode(), True, ",")
        cut_at = draw.randint(0, len(text))
        begun = scan_csv(text[:cut_at].encode(), False, ",")
        rest = scan_csv(text[begun.end :].encode(), True, ",")
        assert begun.starts.tolist() + [begun.end + at for at in rest.starts] == records.starts.tolist(), repr(text)
        if records.open_at is None:
            bounds = [*records.starts.tolist(), len(text)]
            each = [csv_rows(text[a:b]) for a, b in pairwise(bounds)]
            assert [row for rows in each for row in rows] == csv_rows(text), repr(text)
            assert all(len(rows) == 1 for rows in each), repr(text)
        else:
            assert text[records.open_at] == '"'


def csv_rows(text: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


@pytest.mark.parametrize(
    ("text", "values"),
    {
        "a line of white space": ("text\nalpha\n \nbeta\ngamma\n", ["alpha", " ", "beta", "gamma"]),
        "a carriage return alone": ("text\nal\rpha\nbeta\n", ["al", "pha", "beta"]),
        "inch marks": (
            'id,text\n1,5" pipe\n2,valve\n3,bolt\n4,6" pipe\n5,nut\n', ['5" pipe', "valve", "bolt", '6" pipe', "nut"],
        ),
        "a quoted break behind the first mebibyte": (
            "text\n" + "plain line\n" * 120_000 + '"one\ntwo"\nlast\n', ["plain line"] * 120_000 + ["one\ntwo", "last"],
        ),
        "a header of several lines": ('"my\ntext"\none\n', ["one"]),
    }.values(),
    ids=lambda value: "",
)  # fmt: skip
def test_every_record_is_read_once_and_at_its_own_offset(tmp_path: Path, text: str, values: list[str]) -> None:
    file = InputFile(str(tmp_path / "a.csv"), len(text))
    Path(file.path).write_text(text, newline="")
    [*_, column] = get_source(CSV).sample(file).types
    request = BatchRequest((file,), "out", CSV, {"x": (column,)}, row_bytes=9)
    for rows in (WHOLE, 997) if len(values) > 99 else (WHOLE, 1, 2):
        found = read(request, planned(request, rows))
        assert [row.values for row in found] == [[value] for value in values]
        records = [text[a.offset : b.offset] for a, b in pairwise(found)]
        assert all(value in record for value, record in zip(values, records, strict=False))


def test_a_quote_that_is_never_closed_is_refused_and_one_closed_too_late_is_a_bad_row(tmp_path: Path) -> None:
    request = request_for(tmp_path / "a.csv", b'id,text\n1,"5 pipe\n2,valve\n', CSV, ["text"])
    with pytest.raises(InvalidInput, match=r"a\.csv'.*the quote at byte 10 is not closed"):
        planned(request, WHOLE)
    request = request_for(tmp_path / "b.csv", b'id,text\n1,"5 pipe\n2,valve\n3,"6 pipe\n4,nut\n', CSV, ["text"])
    [rows] = read_pieces(request, ShardRange([shard.pieces[0] for shard in planned(request, WHOLE)]))
    assert [row.values for row in rows_in(rows)] == [None, ["nut"]]
    assert "a quote is missing" in str(rows.bad[0])


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("damage", ["truncated", "a wrong byte", "not gzip", "no checksum"])
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    draw = random.Random(1)
    text = "x\n" + "".join(f'{{"x": {draw.random()}}}\n' for _ in range(9_000))
    data = bytearray(gzip.compress(text.encode()))
    if damage == "a wrong byte":
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    whole = {"truncated": data[: len(data) // 2], "not gzip": b"x\n1\n", "no checksum": data[:-8]}.get(damage, data)
    request = request_for(tmp_path / name, bytes(whole), CSV if "csv" in name else JSONL, ["x"])
    with pytest.raises(InvalidInput, match=rf"{name}' cannot be read as a gzip file"):
        read(request, [Shard((Piece(0, 0, TO_THE_END),), 0, 0)])


BOMBS = {"line.jsonl.gz": b'{"x": "', "header.csv.gz": b"x", "line.csv.gz": b"x\n1", "quote.csv.gz": b'x\n"'}


@pytest.mark.parametrize("name", BOMBS)
def test_a_gzip_file_of_few_bytes_and_one_endless_record_takes_no_more_memory_than_a_record_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(lines, "LONGEST_RECORD", 1 << 20)
    monkeypatch.setattr(lines, "READ_BYTES", 1 << 16)
    with gzip.open(tmp_path / name, "wb", 1) as file:
        file.write(BOMBS[name])
        for _ in range(64):
            file.write(b"a" * (1 << 20))
    file = InputFile(str(tmp_path / name), (tmp_path / name).stat().st_size)
    assert file.size < 1 << 19
    source = get_source(CSV if "csv" in name else JSONL)
    steps = [
        lambda: source.sample(file),
        lambda: source.layout(file, ["x"], 8),
        lambda: list(source.read(file, 0, TO_THE_END, ["x"])),
    ]
    tracemalloc.start()
    for step in steps:
        with pytest.raises(
            InvalidInput, match=rf"{name}'.*(is longer than 1048576 bytes|does not begin with a header line)"
        ):
            step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 << 20


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_text_that_is_not_utf8_is_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes("größe,x\n1,2\n".encode(encoding))
    with pytest.raises(InvalidInput, match=r"a\.csv'.*not UTF-8.*save it as UTF-8"):
        get_source(CSV).sample(InputFile(str(tmp_path / "a.csv"), (tmp_path / "a.csv").stat().st_size))
    if encoding != "latin-1":
        (tmp_path / "a.jsonl").write_bytes('{"x": 1}\n'.encode(encoding))
        with pytest.raises(InvalidInput, match=r"a\.jsonl'.*not UTF-8.*save it as UTF-8"):
            get_source(JSONL).sample(InputFile(str(tmp_path / "a.jsonl"), (tmp_path / "a.jsonl").stat().st_size))


@pytest.mark.parametrize("format", [CSV, JSONL])
def test_a_file_that_changes_under_way_is_refused_never_read_wrong(tmp_path: Path, format: str) -> None:
    lines_ = "".join(f'{{"x": {i}}}\n' for i in range(20))
    text = ("x\n" if format == CSV else "") + lines_
    request = request_for(tmp_path / "a", text.encode(), format, ["x"])
    made = planned(request, 5)
    for changed, words in (
        (text + lines_, "has grown"), (text[:-40], "ends at byte"), (text.replace("1}\n", "1} \n")[: len(text)], "held 5 rows"),
        (text.replace("\n", " "), "held 5 rows"),
    ):  # fmt: skip
        Path(request.files[0].path).write_text(changed)
        with pytest.raises(InvalidInput, match=rf"a'?:? .*{words}" if format == JSONL else "a'"):
            read(request, made)


def test_a_column_that_the_header_names_twice_is_refused_when_it_is_wanted(tmp_path: Path) -> None:
    request = request_for(tmp_path / "a.csv", b"a,b,b\n1,2,3\n", CSV, ["a"])
    assert read(request, planned(request, 1)) == [Row(6, ["1"])]
    request = request_for(tmp_path / "a.csv", b"a,b,b\n1,2,3\n", CSV, ["b"])
    with pytest.raises(InvalidInput, match=r"a\.csv': there are 2 columns 'b'"):
        read(request, planned(request, 1))
