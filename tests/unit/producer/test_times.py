"""Times as users give them."""

import datetime as dt

import pytest

from forebay.contract.errors import InvalidInput
from forebay.producer.options import since_at


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), "60", True, None, dt.datetime(2126, 1, 1)])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="since "):
        since_at(value, 0.0)


def test_a_time_ago_is_counted_from_the_ledgers_clock() -> None:
    assert since_at(90, 1000.0) == since_at(dt.timedelta(seconds=90), 1000.0) == 910.0
