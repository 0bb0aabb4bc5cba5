"""How the file of a batch is read, line by line."""

import pytest

from forebay.api.openai.batch_input import LineTooLong, lines


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_are_the_same_in_whichever_pieces_they_come(size: int) -> None:
    data = b"a\n\n \t\r\nbb\r\nccc"
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert list(lines(chunks, 10)) == [(1, b"a"), (4, b"bb\r"), (5, b"ccc")]


def test_a_line_above_the_limit_is_named_before_it_is_whole() -> None:
    endless = iter([b"a\n"] + [b"x" * 100] * 10)
    with pytest.raises(LineTooLong, match="longer than 150 bytes") as found:
        list(lines(endless, 150))
    assert (found.value.number, len(list(endless))) == (2, 8)


def test_an_empty_file_has_no_lines() -> None:
    assert list(lines([], 10)) == list(lines([b"\n\n"], 10)) == []
