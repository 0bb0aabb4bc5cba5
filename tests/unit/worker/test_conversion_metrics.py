"""A conversion has the metrics of its original only where its outputs are as good as the same."""

import pytest

from forebay.worker.execution.trying.output_difference import Difference
from forebay.worker.kinds.convert.handler import keeps_metrics


@pytest.mark.parametrize(
    ("scaled", "same_argmax", "kept"),
    [(1e-5, 1.0, True), (1e-5, None, True), (1e-5, 0.99, False), (0.1, 1.0, False), (0.1, None, False)],
)
def test_metrics_are_kept_where_classes_are_the_same_and_numbers_nearly(
    scaled: float, same_argmax: float | None, kept: bool
) -> None:
    assert keeps_metrics(Difference(100, scaled, scaled, scaled, same_argmax)) is kept
