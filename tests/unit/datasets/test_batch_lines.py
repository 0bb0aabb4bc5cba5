"""What the readers of text make of headers, bad lines and compressed files. Records and ranges: test_text_records.py."""

import gzip
from pathlib import Path

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.csv import Csv
from forebay.datasets.formats.jsonl import JsonLines, OpenAI
from forebay.datasets.formats.source import Size


def a_file(folder: Path, data: bytes, name: str = "a.txt") -> InputFile:
    path = folder / name
    path.write_bytes(data)
    return InputFile(str(path), len(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


def test_a_csv_line_with_too_few_values_or_no_utf8_is_a_bad_row_alone(folder: Path) -> None:
    data = b'id,x\n1,2\n3\n4,5"\n6,\xff\n\n8,9\n'
    [chunk] = Csv().read(a_file(folder, data, "b.csv"), 0, len(data), ["id", "x"])
    assert {i: str(e) for i, e in chunk.bad.items()} == {
        1: "the line has 1 values, the header 2",
        3: "the line is not UTF-8",
    }
    assert [chunk.columns["x"][i].as_py() for i in (0, 2, 4)] == ["2", '5"', "9"]  # type: ignore[union-attr]
    assert [data[at:].split(b"\n")[0] for at in chunk.where] == [b"1,2", b"3", b'4,5"', b"6,\xff", b"8,9"]


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


@pytest.mark.parametrize("name", ["n.csv.gz", "n.jsonl.gz"])
@pytest.mark.parametrize("rows", [0, 1, 3000, 400_000])
def test_the_rows_of_compressed_text_are_counted_or_judged_by_its_beginning(folder: Path, name: str, rows: int) -> None:
    line = "{},abc\n" if name == "n.csv.gz" else '{{"x": {}, "t": "abc"}}\n'
    text = ("x,t\n" if name == "n.csv.gz" else "") + "".join(line.format(i) for i in range(rows))
    file = a_file(folder, gzip.compress(text.encode()), name)
    source = Csv() if name == "n.csv.gz" else JsonLines()
    layouts = [list(source.layout(file, ["x"], 9)), list(source.counted(file, 0, Size(10, 1 << 20)))]
    assert layouts[0] == layouts[1]
    found = [(block.rows, block.counted) for block in layouts[0]]
    if rows < 100_000:
        assert found == ([(rows, True)] if rows else [])
    else:
        [(guess, counted)] = found
        assert not counted
        assert guess == pytest.approx(rows, rel=0.1)


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
