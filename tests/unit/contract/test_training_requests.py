"""A training job's request and its trainer's events, as bytes and back."""

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.fields import check, fields_of
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import (
    DataSummary,
    Point,
    Refused,
    Saved,
    Split,
    Trained,
    TrainRequest,
    better,
    decode_event,
)
from forebay.producer.options import SubmitOptions, TrainOptions

REQUEST = TrainRequest(
    recipe="classifier", files=(InputFile("in/a.parquet", 12), InputFile("s3://b/c.parquet", 9)), format="parquet",
    target="label", features=("x", "y"), missing="constant:0", split=Split(0.2, 0.3, key="person"), seed=7,
    params={"epochs": 3, "hidden": [8, 8]}, metric="f1", alias="champion", checkpoint_steps=10,
    checkpoint_minutes=None, checkpoint_keep=1, nproc=2,
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
    assert decode(encode(REQUEST), TrainRequest) == REQUEST


def test_requests_that_ask_for_the_same_of_the_same_model_have_equal_fingerprints() -> None:
    again = decode(encode(REQUEST), TrainRequest)
    assert again.fingerprint("digits") == REQUEST.fingerprint("digits")
    assert again.fingerprint("digits") != REQUEST.fingerprint("others")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"recipe": 1}', b"\xff", encode(REQUEST)[:-9]])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a valid TrainRequest"):
        decode(data, TrainRequest)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: DataSummary) -> None:
    assert decode_event(encode(event)) == event


def test_a_loss_that_is_no_number_is_told_as_null() -> None:
    line = encode(Point(1, 0, "train", {"loss": float("nan")}))
    assert decode_event(line) == Point(1, 0, "train", {"loss": None})


@pytest.mark.parametrize(
    "line", ["", "null", "[1]", '{"event": "other"}', '{"event": "point", "odd": 1}', '{"event": "po']
)
def test_a_line_that_is_no_event_is_passed_over(line: str) -> None:
    assert decode_event(line.encode()) is None


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"by": "chance"}, "unknown field `by`; expected a mapping with validation, test, column, key"),
        ({"column": ""}, r"split\.column: expected text, got ''"),
        ({"validation": 0.5, "test": 0.5}, r"split: validation 0\.5 and test 0\.5 leave no row to train on"),
        ({"validation": -0.1}, r"split\.validation: expected a number, from 0 to below 1, got -0\.1"),
        ({"validation": float("nan")}, r"split\.validation: .* got nan"),
    ],
)
def test_a_split_that_parts_nothing_is_refused(split: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check({"recipe": "classifier", "files": (), "format": "csv", "split": split}, TrainRequest)


def test_client_train_takes_every_field_of_the_request() -> None:
    taken = TrainOptions.__annotations__.keys() - SubmitOptions.__annotations__.keys()
    assert taken == fields_of(TrainRequest).keys() - {"files", "metadata"} | {"dataset"}


@pytest.mark.parametrize("missing", ["", "median", "constant:", "constant"])
def test_another_word_for_missing_values_is_refused(missing: str) -> None:
    with pytest.raises(InvalidInput, match="missing: expected drop, mean or constant:VALUE"):
        check({"recipe": "classifier", "files": (), "format": "csv", "missing": missing}, TrainRequest)


def test_more_accuracy_and_less_loss_are_better() -> None:
    assert better("accuracy", 0.9, 0.8)
    assert not better("accuracy", 0.8, 0.8)
    assert better("loss", 0.1, 0.2)
    assert not better("loss", 0.2, 0.1)
    with pytest.raises(InvalidInput, match="no metric 'beauty'"):
        better("beauty", 1, 2)
