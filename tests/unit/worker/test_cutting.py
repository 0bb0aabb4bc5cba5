"""Batches: no row lost, doubled or reordered, no bound exceeded."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.worker.execution.engine import cut

Row = tuple[int, str, str | None]  # a serial number, a key, and whom it stays alone with

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, None, "p", "q"])), max_size=80).map(
    lambda rows: [(i, key, alone) for i, (key, alone) in enumerate(rows)]
)


def batches(rows: list[Row], size: int) -> list[list[Row]]:
    return list(cut(rows, size, key=lambda row: row[1], alone=lambda row: row[2]))


@given(ROWS, st.integers(1, 12))
def test_every_row_is_in_one_batch_in_order_within_its_key(rows: list[Row], size: int) -> None:
    got = [row for batch in batches(rows, size) for row in batch]
    assert sorted(got) == rows
    for key in {row[1:] for row in rows}:
        assert [row for row in got if row[1:] == key] == [row for row in rows if row[1:] == key]


@given(ROWS, st.integers(1, 12))
def test_a_batch_has_one_key_one_company_and_at_most_its_size(rows: list[Row], size: int) -> None:
    for batch in batches(rows, size):
        assert 1 <= len(batch) <= size
        assert len({row[1:] for row in batch}) == 1


@given(ROWS, st.integers(1, 12))
def test_no_two_batches_could_have_been_one(rows: list[Row], size: int) -> None:
    short = [batch[0][1:] for batch in batches(rows, size) if len(batch) < size]
    assert len(set(short)) == len(short)


def test_rows_that_were_tried_before_meet_none_but_their_own() -> None:
    rows: list[Row] = [(0, "a", None), (1, "a", "p"), (2, "a", None), (3, "a", "q"), (4, "a", "p")]
    assert [[row[0] for row in batch] for batch in batches(rows, 8)] == [[0, 2], [1, 4], [3]]
