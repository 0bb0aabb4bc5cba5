"""Errors by kind: every row is counted once, and what is kept is bounded whatever the rows were."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.shards import ShardOutcome
from forebay.contract.row_errors import (
    MAX_KINDS,
    MAX_SAMPLES,
    MAX_TEXT_LENGTH,
    MAX_TYPE_LENGTH,
    OTHERS,
    ErrorCounts,
    ErrorKind,
    ErrorSample,
)

types = st.lists(st.sampled_from([f"Error{i}" for i in range(12)]) | st.text(max_size=300), max_size=60)


def metrics(names: list[str]) -> ErrorCounts:
    found = ErrorCounts()
    for i, name in enumerate(names):
        found.add(name, lambda i=i: ErrorSample(f"row {i}", "x" * 500))  # type: ignore[misc]
    return found


@given(types)
def test_every_error_counts_once_and_little_is_kept(names: list[str]) -> None:
    kinds = metrics(names).kinds()
    assert sum(kind.count for kind in kinds) == len(names)
    assert len(kinds) <= MAX_KINDS + 1
    for kind in kinds:
        assert len(kind.samples) == min(kind.count, MAX_SAMPLES)
        assert len(kind.type) <= MAX_TYPE_LENGTH
        assert all(len(sample.message) <= MAX_TEXT_LENGTH for sample in kind.samples)


@given(types)
def test_few_kinds_are_counted_exactly_and_come_most_frequent_first(names: list[str]) -> None:
    few = [name for name in names if name in {"Error1", "Error2", "Error3"}]
    kinds = metrics(few).kinds()
    assert {kind.type: kind.count for kind in kinds} == Counter(few)
    assert [kind.count for kind in kinds] == sorted((kind.count for kind in kinds), reverse=True)


@given(st.lists(types, max_size=5))
def test_tallies_added_up_count_what_each_of_them_has(shards: list[list[str]]) -> None:
    total = ErrorCounts()
    for names in shards:
        total.include(metrics(names).kinds())
    kinds = total.kinds()
    assert sum(kind.count for kind in kinds) == sum(map(len, shards))
    assert len(kinds) <= MAX_KINDS + 1
    assert all(len(kind.samples) <= MAX_SAMPLES for kind in kinds)
    assert OTHERS not in {kind.type for kind in kinds[:-1]}


@given(types)
def test_an_outcome_keeps_them_through_the_ledger(names: list[str]) -> None:
    outcome = ShardOutcome(1, len(names), 0.5, None, None, metrics(names).kinds())
    assert decode(encode(outcome), ShardOutcome) == outcome


def test_an_outcome_of_an_older_forebay_has_no_kinds() -> None:
    text = '{"rows": 3, "failed": 1, "seconds": 0.5, "part": null, "errors": null}'
    assert decode(text, ShardOutcome).kinds == ()


def test_what_a_database_refuses_is_written_out() -> None:
    found = ErrorCounts()
    found.add("Bad\0Type", lambda: ErrorSample("row 1", "\ud800 and \0"))
    assert found.kinds() == (ErrorKind("Bad\\x00Type", 1, (ErrorSample("row 1", "\\ud800 and \\x00"),)),)
