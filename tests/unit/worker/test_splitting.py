"""How rows are parted: every row once, the same each time, keys together; and what is in two splits is counted."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import TEST, TRAIN, VALIDATION, Split
from forebay.worker.trainer.splitting import count_leaked, row_hashes, split_rows

SHARES = st.floats(0.05, 0.4)


@given(st.integers(20, 300), SHARES, SHARES, st.integers(0, 5))
def test_every_row_is_in_one_split_and_the_shares_are_right(
    rows: int, validation: float, test: float, seed: int
) -> None:
    split = Split(validation=validation, test=test)
    places = split_rows(rows, {}, split, seed)
    assert sorted(np.concatenate(list(places.values()))) == list(range(rows))
    assert len(places[TEST]) == max(1, round(test * rows))
    assert len(places[VALIDATION]) == max(1, round(validation * rows))
    again = split_rows(rows, {}, split, seed)
    assert all((places[name] == again[name]).all() for name in places)


def test_another_seed_parts_the_rows_otherwise() -> None:
    one, other = (split_rows(100, {}, Split(), seed)[TEST] for seed in (0, 1))
    assert one.tolist() != other.tolist()


@given(st.lists(st.integers(0, 12), min_size=40, max_size=200), st.integers(0, 5))
@example([0] * 60 + [1, 2, 3, 4, 5, 6], 0)  # most rows have one key
def test_rows_of_one_key_stay_together(keys: list[int], seed: int) -> None:
    try:
        places = split_rows(len(keys), {"k": keys}, Split(0.2, 0.2, key="k"), seed)
    except InvalidInput:
        assert len(set(keys)) < 3
        return
    found = [{keys[i] for i in places[name]} for name in (TRAIN, VALIDATION, TEST)]
    assert sum(map(len, found)) == len(set(keys))


def test_a_column_may_name_the_split_of_each_row() -> None:
    columns = {"part": ["train", "test", "train", "validation"]}
    places = split_rows(4, columns, Split(column="part"), 0)
    assert {name: rows.tolist() for name, rows in places.items()} == {TRAIN: [0, 2], VALIDATION: [3], TEST: [1]}


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 rows leave none for train"):
        split_rows(2, {}, Split(), 0)


def test_rows_that_are_in_two_splits_are_counted() -> None:
    columns = {"a": np.array([1, 2, 1, 3, 1]), "b": ["x", "y", "x", "z", "other"]}
    hashes = row_hashes(columns, 5)
    places = {TRAIN: np.array([0, 1]), VALIDATION: np.array([2]), TEST: np.array([3, 4])}
    assert count_leaked(hashes, places) == 1
