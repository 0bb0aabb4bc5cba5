"""Text cut into ranges of bytes: every line is read by the range it begins in, and by no other."""

import csv
import gzip
import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats import lines
from forebay.datasets.formats.csv import Csv
from forebay.datasets.formats.jsonl import JsonLines, OpenAI


def a_file(folder: Path, data: bytes, name: str = "a.txt") -> InputFile:
    path = folder / name
    path.write_bytes(data)
    return InputFile(str(path), len(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


TEXTS = st.lists(st.text("abc é", max_size=12), max_size=30).map(lambda rows: "\n".join(rows).encode())


@given(TEXTS, st.lists(st.integers(0, 200), max_size=5), st.integers(1, 40))
def test_ranges_that_cover_a_file_give_every_line_once(folder: Path, data: bytes, cuts: list[int], step: int) -> None:
    file = a_file(folder, data)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    before, lines.READ_BYTES = lines.READ_BYTES, step
    try:
        ranges = list(pairwise(edges))
        found = [block for first, last in ranges for block in lines.blocks(file, first, last)]
    finally:
        lines.READ_BYTES = before
    assert b"".join(part for _, part in found) == data
    assert all(data[at : at + len(part)] == part for at, part in found)
    assert all(at == 0 or data[at - 1 : at] == b"\n" for at, _ in found)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20), st.integers(1, 300))
def test_csv_in_two_ranges_gives_the_rows_that_the_csv_module_gives(
    folder: Path, rows: list[tuple[str, str]], cut: int
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    file = a_file(folder, text.getvalue().encode(), "a.csv")
    cut = min(cut, file.size)
    ranges = [(0, cut), (cut, file.size)] if cut < file.size else [(0, file.size)]
    chunks = [chunk for first, last in ranges for chunk in Csv().read(file, first, last, ["a", "b"])]
    assert [chunk.bad for chunk in chunks if chunk.bad] == []
    columns = [[value or "" for c in chunks for value in c.columns[name].to_pylist()] for name in ("a", "b")]  # type: ignore[union-attr]
    found = list(zip(*columns, strict=True))
    assert found == rows


def test_a_csv_line_with_too_few_values_a_stray_quote_or_no_utf8_is_a_bad_row_alone(folder: Path) -> None:
    data = b'id,x\n1,2\n3\n4,"5\n6,\xff\n\n8,9\n'
    [chunk] = Csv().read(a_file(folder, data, "b.csv"), 0, len(data), ["id", "x"])
    assert sorted(chunk.bad) == [1, 2, 3]
    assert [str(e).split(" ")[0] for _, e in sorted(chunk.bad.items())] == ["the", "a", "the"]
    assert [chunk.columns["x"][i].as_py() for i in (0, 4)] == ["2", "9"]  # type: ignore[union-attr]
    assert [data[at:].split(b"\n")[0] for at in chunk.where] == [b"1,2", b"3", b'4,"5', b"6,\xff", b"8,9"]


def test_a_csv_with_quoted_line_breaks_is_one_piece_and_read_whole(folder: Path) -> None:
    data = b'id,x\n1,"a\nb"\n2,c\n3,"d\n\ne"\n'
    file = a_file(folder, data, "c.csv")
    assert [block.last for block in Csv().layout(file, ["x"], 10)] == [TO_THE_END]
    [chunk] = Csv().read(file, 0, TO_THE_END, ["x"])
    assert chunk.columns["x"].to_pylist() == ["a\nb", "c", "d\n\ne"]  # type: ignore[union-attr]
    assert chunk.bad == {}


def test_semicolons_separate_where_the_header_says_so(folder: Path) -> None:
    file = a_file(folder, b"a;b;c,d\n1;2;3\n", "d.csv")
    assert list(Csv().sample(file).types) == ["a", "b", "c,d"]


def test_a_json_line_that_is_none_is_a_bad_row_and_says_where_it_begins(folder: Path) -> None:
    data = b'{"x": 1}\n{"x": \n[1]\n\n{"y": 2}\n'
    [chunk] = JsonLines().read(a_file(folder, data, "a.jsonl"), 0, len(data), ["x"])
    assert list(chunk.where) == [0, 9, 16, 21]
    assert sorted(chunk.bad) == [1, 2]
    assert chunk.columns["x"][0] == 1
    assert "missing" in str(chunk.columns["x"][3])


def test_compressed_lines_are_read_whole(folder: Path) -> None:
    data = gzip.compress(b'{"x": 1}\n{"x": 2}\n')
    file = a_file(folder, data, "a.jsonl.gz")
    assert [block.last for block in JsonLines().layout(file, ["x"], 9)] == [TO_THE_END]
    [chunk] = JsonLines().read(file, 0, TO_THE_END, ["x"])
    assert chunk.columns["x"] == [1, 2]


def test_a_request_without_custom_id_or_body_is_a_bad_row(folder: Path) -> None:
    data = b'{"custom_id": "a", "body": {"input": "hi"}}\n{"body": {"input": "hi"}}\n{"custom_id": "b", "body": 3}\n'
    [chunk] = OpenAI().read(a_file(folder, data, "o.jsonl"), 0, len(data), ["input", "custom_id", "url"])
    assert sorted(chunk.bad) == [1, 2]
    assert chunk.columns["custom_id"] == ["a", None, "b"]


def test_a_file_that_is_no_json_or_has_no_header_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"e\.jsonl.*none of its first lines is a JSON object"):
        JsonLines().sample(a_file(folder, b"nothing\nof the kind\n", "e.jsonl"))
    with pytest.raises(InvalidInput, match=r"f\.csv.*does not begin with a header line"):
        Csv().sample(a_file(folder, b"\n\n", "f.csv"))
