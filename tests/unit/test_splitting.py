"""How rows are parted: every row once, the same each time, keys together; and what is in two splits is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import TEST, TRAIN, VALIDATION, Split
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.splitting import check_split, content_hash, count_leaked, part, row_hashes, split_column

SHARES = st.floats(0.05, 0.4)


@given(st.integers(20, 300), SHARES, SHARES, st.integers(0, 5))
def test_every_row_is_in_one_split_and_the_shares_are_right(
    rows: int, validation: float, test: float, seed: int
) -> None:
    split = Split(validation=validation, test=test)
    places = part(rows, None, split, seed)
    assert sorted(np.concatenate(list(places.values()))) == list(range(rows))
    assert len(places[TEST]) == max(1, round(test * rows))
    assert len(places[VALIDATION]) == max(1, round(validation * rows))
    again = part(rows, None, split, seed)
    assert all((places[name] == again[name]).all() for name in places)


def test_another_seed_parts_the_rows_otherwise() -> None:
    one, other = (part(100, None, Split(), seed)[TEST] for seed in (0, 1))
    assert one.tolist() != other.tolist()


@given(st.lists(st.integers(0, 12), min_size=40, max_size=200), st.integers(0, 5))
def test_rows_of_one_key_stay_together(keys: list[int], seed: int) -> None:
    try:
        places = part(len(keys), keys, Split("key", "k", 0.2, 0.2), seed)
    except InvalidInput:
        assert len(set(keys)) < 6
        return
    found = [{keys[i] for i in places[name]} for name in (TRAIN, VALIDATION, TEST)]
    assert sum(map(len, found)) == len(set(keys))


def test_a_column_may_name_the_split_of_each_row() -> None:
    table = Table({"part": ["train", "test", "train", "validation"]}, 4)
    split = Split("column", "part")
    places = part(4, split_column(table, split), split, 0)
    assert {name: rows.tolist() for name, rows in places.items()} == {TRAIN: [0, 2], VALIDATION: [3], TEST: [1]}


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (Split("chance"), "by ratio, column or key, not 'chance'"),
        (Split("ratio", "a"), "by ratio takes no column"),
        (Split("column"), "by column needs its column"),
        (Split(validation=-0.1), "shares that leave rows to train on, got -0.1"),
        (Split(validation=float("nan")), "got nan"),
    ],
)
def test_a_split_that_parts_nothing_is_refused(split: Split, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_split(split)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 rows leave none for train"):
        part(2, None, Split(), 0)


def test_rows_that_are_in_two_splits_are_counted() -> None:
    columns = {"a": np.array([1, 2, 1, 3, 1]), "b": ["x", "y", "x", "z", "other"]}
    hashes = row_hashes(columns, 5)
    places = {TRAIN: np.array([0, 1]), VALIDATION: np.array([2]), TEST: np.array([3, 4])}
    assert count_leaked(hashes, places) == 1


def test_the_hash_of_the_content_changes_with_any_value_name_or_order() -> None:
    def hashed(**columns: object) -> str:
        return content_hash(columns, row_hashes(columns, 2))  # type: ignore[arg-type]

    same = hashed(a=np.array([1, 2]), b=["x", "y"])
    assert same == hashed(a=np.array([1, 2]), b=["x", "y"])
    others = [
        hashed(a=np.array([1, 3]), b=["x", "y"]),
        hashed(a=np.array([2, 1]), b=["y", "x"]),
        hashed(a=np.array([1, 2]), c=["x", "y"]),
    ]
    assert same not in others
