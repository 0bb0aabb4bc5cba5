"""A training job's request and its trainer's events, as bytes and back."""

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.training import (
    Checkpoints,
    DataSummary,
    Point,
    Refused,
    Saved,
    Split,
    Trained,
    TrainRequest,
    better,
    dump_event,
    load_event,
)

REQUEST = TrainRequest(
    recipe="classifier", files=(InputFile("in/a.parquet", 12), InputFile("s3://b/c.parquet", 9)), format="parquet",
    target="label", features=("x", "y"), missing="constant:0", split=Split("key", "person", 0.2, 0.3), seed=7,
    params={"epochs": 3, "hidden": [8, 8]}, metric="f1", alias="champion", checkpoints=Checkpoints(10, None, 1), nproc=2,
    nodes=2, resources={"gpu": 1.0}, metadata={"why": "test"},
)  # fmt: skip

EVENTS = [
    DataSummary({"train": 8, "test": 2}, "ab" * 32, ("x",), ("no", "yes"), dropped=1, leaked=2),
    Point(3, 1, "train", {"loss": 0.5}, rows_per_s=10.0, eta_s=2.0, steps=30),
    Saved(3, 1, "checkpoints/3.ckpt"),
    Trained({"accuracy": 0.9}, "recipe", {"x": {"dtype": "float32", "shape": [1]}}, {"label": {"dtype": "str"}}),
    Refused("InvalidInput", "the target 'label' is missing in every row"),
]


def test_a_request_comes_back_as_it_was() -> None:
    assert TrainRequest.load(REQUEST.dump()) == REQUEST


def test_requests_that_ask_for_the_same_of_the_same_model_have_equal_fingerprints() -> None:
    again = TrainRequest.load(REQUEST.dump())
    assert again.fingerprint("digits") == REQUEST.fingerprint("digits")
    assert again.fingerprint("digits") != REQUEST.fingerprint("others")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"recipe": 1}', b"\xff", REQUEST.dump()[:-9]])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="no training request"):
        TrainRequest.load(data)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: DataSummary) -> None:
    assert load_event(dump_event(event)) == event


def test_a_loss_that_is_no_number_is_told_as_null() -> None:
    line = dump_event(Point(1, 0, "train", {"loss": float("nan")}))
    assert load_event(line) == Point(1, 0, "train", {"loss": None})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "line", ["", "null", "[1]", '{"event": "other"}', '{"event": "point", "odd": 1}', '{"event": "po']
)
def test_a_line_that_is_no_event_is_passed_over(line: str) -> None:
    assert load_event(line) is None


def test_more_accuracy_and_less_loss_are_better() -> None:
    assert better("accuracy", 0.9, 0.8)
    assert not better("accuracy", 0.8, 0.8)
    assert better("loss", 0.1, 0.2)
    assert not better("loss", 0.2, 0.1)
    with pytest.raises(InvalidInput, match="no metric 'beauty'"):
        better("beauty", 1, 2)
