"""Jobs are merged into messages, and whatever a stranger puts into Redis is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins

from forebay.contract.errors import InvalidInput
from forebay.contract.job import new_ids
from forebay.contract.wire.messages import (
    IDS_PER_MESSAGE,
    BatchWait,
    JobMessage,
    RoutedJob,
    job_messages,
    parse_args,
    redis_keys,
)

JOB_ID = "0" * 32


def job_lists() -> st.SearchStrategy[list[RoutedJob]]:
    some = st.builds(
        RoutedJob,
        id=st.just(""),
        model=st.sampled_from(["m", "n"]),
        version=st.integers(0, 2),  # 0: a training job, which has none yet
        queue=st.sampled_from(["cpu", "gpu"]),
        priority=st.sampled_from([0, 5, 9]),
        crashes=st.sampled_from([0, 0, 1, 2]),
    )
    return st.lists(some, max_size=60).map(number)


def number(routed_jobs: list[RoutedJob]) -> list[RoutedJob]:
    ids = [f"{i:032x}" for i in range(len(routed_jobs))]
    return [
        RoutedJob(id, t.model, t.version, t.queue, t.priority, t.crashes)
        for id, t in zip(ids, routed_jobs, strict=True)
    ]


def address(item: RoutedJob | JobMessage) -> tuple[str, int, str, int]:
    subject = item.args if isinstance(item, JobMessage) else item
    return subject.model, subject.version, item.queue, item.priority


@given(job_lists(), st.integers(1, 7))
def test_every_job_travels_once_to_its_own_address_in_order(routed_jobs: list[RoutedJob], size: int) -> None:
    sent = list(job_messages(routed_jobs, size))
    for exclusive in (False, True):
        wanted: dict[Any, list[str]] = {}
        for routed_job in routed_jobs:
            if (routed_job.crashes > 0) is exclusive:
                wanted.setdefault(address(routed_job), []).append(routed_job.id)
        got: dict[Any, list[str]] = {}
        for job_message in sent:
            if job_message.args.exclusive is exclusive:
                got.setdefault(address(job_message), []).extend(job_message.args.ids)
        assert got == wanted


@given(job_lists(), st.integers(1, 7))
def test_a_message_keeps_to_its_size_and_an_exclusive_one_to_a_single_job(
    routed_jobs: list[RoutedJob], size: int
) -> None:
    sent = list(job_messages(routed_jobs, size))
    assert all(1 <= len(e.args.ids) <= (1 if e.args.exclusive else size) for e in sent)
    full = [e for e in sent if not e.args.exclusive and len(e.args.ids) < size]
    assert len({address(e) for e in full}) == len(full), "two job_messages to one address could have been one"


def test_ten_thousand_jobs_are_forty_messages() -> None:
    routed_jobs = [RoutedJob(id, "digits", 1, "cpu", 5) for id in new_ids(10_000)]
    sent = list(job_messages(routed_jobs))
    assert len(sent) == 40
    assert max(len(e.args.ids) for e in sent) == IDS_PER_MESSAGE == 256
    assert [id for e in sent for id in e.args.ids] == [t.id for t in routed_jobs]


@given(job_lists())
def test_what_messages_hold_passes_the_check(routed_jobs: list[RoutedJob]) -> None:
    for job_message in job_messages(routed_jobs, batch_wait=BatchWait(0.5, 4)):
        assert parse_args(to_builtins(job_message.args)) == job_message.args


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_any_other_json_is_refused_and_nothing_else_is_raised(junk: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_args(junk)


@given(st.lists(JSON, min_size=4, max_size=4))
def test_four_values_of_any_kind_pass_only_when_they_are_a_message(junk: list[Any]) -> None:
    try:
        args = parse_args(junk)
    except InvalidInput:
        return
    assert [args.model, args.version, args.ids, args.exclusive] == junk
    assert isinstance(args.model, str)
    assert type(args.version) is int
    assert args.ids == []


@pytest.mark.parametrize(
    "args",
    [
        [],
        None,
        "four",
        b"four",
        ["m", 1, [JOB_ID]],
        ["m", 1, [JOB_ID], False, 1],
        ["", 1, [JOB_ID], False],
        ["../m", 1, [JOB_ID], False],
        [7, 1, [JOB_ID], False],
        ["m", "1", [JOB_ID], False],
        ["m", 1.0, [JOB_ID], False],
        ["m", -1, [JOB_ID], False],
        ["m", True, [JOB_ID], False],
        ["m", 1, JOB_ID, False],
        ["m", 1, {JOB_ID: 1}, False],
        ["m", 1, [JOB_ID[1:]], False],
        ["m", 1, [JOB_ID.replace("0", "G")], False],
        ["m", 1, [[JOB_ID]], False],
        ["m", 1, [JOB_ID], 0],
        ["m", 1, [JOB_ID], None],
        ["m", 1, [JOB_ID + "\n"], False],
        ["m\n", 1, [JOB_ID], False],
        ["m", 1, [JOB_ID], False, [0, 1]],
        ["m", 1, [JOB_ID], False, [61, 1]],
        ["m", 1, [JOB_ID], False, [float("nan"), 1]],
        ["m", 1, [JOB_ID], False, [1, 0]],
        ["m", 1, [JOB_ID], False, [1, 1, 1]],
        ["m", 1, [JOB_ID], False, [1, 1], 1],
        ["m", 1, [JOB_ID] * 257, False],
        {"model": "m", "version": 1, "ids": [], "exclusive": False},
    ],
)
def test_what_is_nearly_a_message_is_refused(args: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_args(args)


def test_a_queue_is_four_lists_the_most_urgent_first() -> None:
    assert redis_keys("cpu") == ["cpu", "cpu:3", "cpu:6", "cpu:9"]
