"""How much each column of a fitted version counts, as people see it: bars on its page, a line of `forebay models show`."""

from typing import Any

import pytest

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.dashboard.pages.version import MAX_COLUMNS, VersionPageData
from forebay.producer.cli.views.training import version_fields

LINEAGE = {"recipe": "trees", "job": "1", "files": ["a.csv"], "rows": {"train": 2}}


def version(importance: Any) -> ModelVersion:
    metadata = {"importance": importance, "lineage": LINEAGE}
    return ModelVersion("m", 1, "onnx", "", "folder", 0, Signature.parse(None, None), metadata=metadata)


def shown(importance: Any) -> list[tuple[str, float, float]]:
    data = object.__new__(VersionPageData)
    object.__setattr__(data, "model", version(importance))
    return data.importance


def test_columns_are_shown_by_their_share_of_the_most_important_one() -> None:
    assert shown({"city": -0.1, "size": 0.4, "age": 0.1}) == [("size", 1, 0.4), ("age", 0.25, 0.1), ("city", 0, -0.1)]
    assert len(shown({f"x{i}": i for i in range(100)})) == MAX_COLUMNS
    assert shown({"a": 0.0}) == [("a", 0, 0)]


@pytest.mark.parametrize("odd", ["high", {"a": "high"}, ["a"], None])
def test_what_a_user_has_named_so_in_the_metadata_stays_there(odd: Any) -> None:
    assert shown(odd) == []
    assert version_fields(version(odd)) is not None


def test_the_command_names_the_columns_that_count_most() -> None:
    assert version_fields(version({"size": 0.4, "age": 0.1}))["importance"] == "size 0.4, age 0.1"
