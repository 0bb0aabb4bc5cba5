"""Sizes, resources, declared queues, and the choice of a queue for a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput, NoQueueFits
from forebay.contract.job import JobKind
from forebay.contract.queues import DEFAULT_QUEUES, QueueSpec, Resources, format_bytes, parse_bytes, route

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (512, 512),
        (2147483648.0, 2 * GIB),
        ("512", 512),
        ("512B", 512),
        ("2GiB", 2 * GIB),
        ("2 gib", 2 * GIB),
        (" 2GB ", 2_000_000_000),
        ("1kb", 1000),
        ("1KiB", 1024),
        ("1.5MiB", 3 * 2**19),
        ("0.1GB", 100_000_000),
        ("3TiB", 3 * 2**40),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: int | float | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "value",
    [
        *["", "GiB", "-1", "1e3", "2Gi", "2iB", "2 G B", "1,5GB", "nan", "٣GB", "9" * 19 + "TiB", "9" * 30, "\ud800"],
        *[-1, 1.5, float("nan"), float("inf"), True, None, [1], b"1", 2**63, [10**5000]],
    ],
)
def test_what_is_no_size_is_refused_with_the_value(value: object) -> None:
    with pytest.raises(InvalidInput, match="is not a valid size"):
        parse_bytes(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (24 * GIB, "24 GiB"),
        (2**20 - 1, "1 MiB"),
        (2**40, "1 TiB"),
        (1500 * 2**40, "1500 TiB"),
    ],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**62))
def test_a_written_size_reads_back_to_within_its_two_decimals(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.006, abs=1)


def test_resources_are_read_from_a_table() -> None:
    parsed = Resources.parse({"cpu": 2, "memory": "1GiB", "gpu": 0.5, "gpu_memory": "2GiB"})
    assert parsed == Resources(2.0, GIB, 0.5, 2 * GIB)
    assert Resources.parse(parsed.as_dict()) == parsed
    assert Resources.parse(None) == Resources.parse({}) == Resources()


def test_gpu_memory_alone_asks_for_one_gpu() -> None:
    assert Resources.parse({"gpu_memory": "2GiB"}).gpu == 1.0


@pytest.mark.parametrize(
    "mapping",
    [
        {"gpus": 1},
        {"cpu": -1},
        {"cpu": float("nan")},
        {"cpu": float("inf")},
        {"cpu": "2"},
        {"cpu": True},
        {"cpu": None},
        {"memory": "lots"},
        {"memory": -1},
        {"gpu": 0, "gpu_memory": "1GiB"},
        [],
        "cpu",
        3,
    ],
)
def test_resources_of_unknown_names_or_impossible_amounts_are_refused(mapping: object) -> None:
    with pytest.raises(InvalidInput):
        Resources.parse(mapping)  # type: ignore[arg-type]


def test_an_unknown_resource_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"unknown 'gpus'; there are cpu, memory, gpu, gpu_memory"):
        Resources.parse({"gpus": 1})


def test_shortages_say_what_is_needed_and_what_is_there() -> None:
    need = Resources(cpu=16, memory=GIB, gpu=1, gpu_memory=80 * GIB)
    has = Resources(cpu=8, memory=GIB, gpu=1, gpu_memory=24 * GIB)
    assert need.shortages(has) == ["needs 16 cpu, it has 8", "needs 80 GiB gpu_memory, it has 24 GiB"]
    assert has.shortages(has) == []


def test_a_shortage_that_rounding_would_hide_is_told_in_bytes() -> None:
    assert Resources(memory=GIB + 1).shortages(Resources(memory=GIB)) == [
        "needs 1073741825 B memory, it has 1073741824 B"
    ]


def test_a_queue_is_read_from_a_table_and_written_back() -> None:
    spec = QueueSpec.parse(
        "gpu-large", {"gpu": 2, "gpu_memory": "80GiB", "kinds": ["predict", "train"], "max_queue_size": 9}
    )
    assert spec.capacity == Resources(gpu=2, gpu_memory=80 * GIB)
    assert spec.kinds == {JobKind.PREDICT, JobKind.TRAIN}
    assert QueueSpec.parse("gpu-large", spec.as_dict()) == spec
    for default in DEFAULT_QUEUES.values():
        assert QueueSpec.parse(default.name, default.as_dict()) == default


@pytest.mark.parametrize("name", ["", "GPU", "1gpu", "gpu_large", "a" * 33, "gpu\n", "gpu,cpu", None, "\ud800"])
def test_a_malformed_queue_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInput, match="queue name"):
        QueueSpec.parse(name, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mapping",
    [
        *[{"kinds": []}, {"kinds": "predict"}, {"kinds": ["nap"]}, {"kinds": [1]}, {"kinds": [[]]}, {"kinds": None}],
        *[
            {"max_queue_size": 0},
            {"max_queue_size": True},
            {"max_queue_size": "9"},
            {"color": 1},
            {"cpu": -1},
            None,
            [],
        ],
    ],
)
def test_a_malformed_queue_is_refused(mapping: object) -> None:
    with pytest.raises(InvalidInput):
        QueueSpec.parse("gpu", mapping)  # type: ignore[arg-type]


def test_a_job_goes_to_the_smallest_queue_that_holds_it() -> None:
    assert route(DEFAULT_QUEUES, Resources(), JobKind.PREDICT) == "cpu"
    assert route(DEFAULT_QUEUES, Resources(memory=40 * GIB), JobKind.PREDICT) == "gpu"
    assert route(DEFAULT_QUEUES, Resources.parse({"gpu_memory": "2GiB"}), JobKind.TRAIN) == "train-gpu"


def test_of_equal_queues_the_first_by_name_is_chosen() -> None:
    queues = {name: QueueSpec(name, Resources(cpu=1)) for name in ("b", "a", "c")}
    assert route(queues, Resources(cpu=1), JobKind.PREDICT) == "a"


def test_a_queue_that_does_not_take_the_kind_is_passed_over() -> None:
    queues = {
        "small": QueueSpec("small", Resources(cpu=1), frozenset({JobKind.PREDICT})),
        "large": QueueSpec("large", Resources(cpu=2), frozenset({JobKind.TRAIN})),
    }
    assert route(queues, Resources(cpu=1), JobKind.TRAIN) == "large"
    with pytest.raises(NoQueueFits, match="no queue accepts batch jobs"):
        route(queues, Resources(), JobKind.BATCH)
    with pytest.raises(NoQueueFits, match="'small' accepts no train jobs, only predict"):
        route(queues, Resources(), JobKind.TRAIN, queue="small")


def test_when_nothing_fits_the_message_names_the_largest_queue_and_what_was_short() -> None:
    with pytest.raises(NoQueueFits) as caught:
        route(DEFAULT_QUEUES, Resources.parse({"gpu_memory": "80GiB"}), JobKind.PREDICT)
    assert str(caught.value) == (
        "needs 80 GiB gpu_memory, the largest queue 'gpu' has 24 GiB; "
        "add a queue in forebay.toml or lower the resources"
    )


def test_a_queue_asked_for_by_name_is_taken_when_it_holds_the_job() -> None:
    assert route(DEFAULT_QUEUES, Resources(), JobKind.PREDICT, queue="gpu") == "gpu"
    with pytest.raises(NoQueueFits, match="needs 1 gpu, queue 'cpu' has 0"):
        route(DEFAULT_QUEUES, Resources(gpu=1), JobKind.PREDICT, queue="cpu")


def test_an_unknown_queue_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="no queue 'tpu'; the declared queues are cpu, gpu"):
        route(DEFAULT_QUEUES, Resources(), JobKind.PREDICT, queue="tpu")


@given(st.builds(Resources, cpu=st.floats(0, 64), memory=st.integers(0, 2**40), gpu=st.floats(0, 2)))
def test_what_is_routed_fits_and_what_fits_is_routed(need: Resources) -> None:
    fitting = [spec.name for spec in DEFAULT_QUEUES.values() if not need.shortages(spec.capacity)]
    if fitting:
        assert route(DEFAULT_QUEUES, need, JobKind.PREDICT) in fitting
    else:
        with pytest.raises(NoQueueFits):
            route(DEFAULT_QUEUES, need, JobKind.PREDICT)


def test_a_model_that_another_server_runs_goes_to_a_remote_queue_and_nothing_else_does() -> None:
    assert route(DEFAULT_QUEUES, Resources(), JobKind.BATCH, remote=True) == "remote"
    with pytest.raises(NoQueueFits, match="'cpu' is not for models that other servers run"):
        route(DEFAULT_QUEUES, Resources(), JobKind.PREDICT, "cpu", remote=True)
    with pytest.raises(NoQueueFits, match="'remote' is only for models that other servers run"):
        route(DEFAULT_QUEUES, Resources(), JobKind.PREDICT, "remote")
    alone = {"cpu": DEFAULT_QUEUES["cpu"]}
    with pytest.raises(NoQueueFits, match="declare one with remote = true"):
        route(alone, Resources(), JobKind.PREDICT, remote=True)
    assert route({"remote": DEFAULT_QUEUES["remote"]} | alone, Resources(), JobKind.PREDICT) == "cpu"


def test_a_remote_queue_is_declared_by_a_word_and_takes_no_training() -> None:
    made = QueueSpec.parse("far", {"remote": True})
    assert made.remote
    assert JobKind.TRAIN not in made.kinds
    assert QueueSpec.parse("far", made.as_dict()) == made
    for wrong in ({"remote": 1}, {"remote": True, "gpu": 1}):
        with pytest.raises(InvalidInput, match="remote is true or false"):
            QueueSpec.parse("far", wrong)
