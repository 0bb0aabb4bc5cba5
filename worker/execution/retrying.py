"""Waiting for the ledger to come back, with growing, random pauses: an outage is no reason to throw work away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable, OutcomeUnknown

log = structlog.get_logger()

T = TypeVar("T")

FIRST_S, LONGEST_S = 0.1, 5.0

_waiting: dict[object, float] = {}  # actions that have failed because the ledger was away, and since when


def waiting_since() -> float:
    """Since when, by the monotonic clock, some action of this process has been waiting for the ledger; 0: none is."""
    return min([*_waiting.values()], default=0.0)


def retry_while_unavailable(
    action: Callable[[], T],
    outage_timeout_s: float,
    away: tuple[type[Exception], ...] = (LedgerUnavailable,),
    gives_way: Callable[[Exception], bool] = lambda _: False,
) -> T:
    """What `action` returns once it no longer raises one of the errors `away`.

    Raises its error after `outage_timeout_s` seconds; at once when tables are missing or too old, which waiting does not
    mend, when nobody knows whether the action was done, for it must not be done twice, and when whoever waits `gives_way`.
    """

    def passes(error: BaseException) -> bool:
        return isinstance(error, away) and not (isinstance(error, LedgerOutdated | OutcomeUnknown) or gives_way(error))

    try:  # nearly always: tenacity would cost more than the action
        return action()
    except Exception as error:
        if not passes(error):
            raise
        log.warning("ledger_awaited", error=str(error))
        if isinstance(error, LedgerUnavailable):
            _waiting[passes] = time.monotonic()
    try:
        time.sleep(random.uniform(0, FIRST_S))
        return Retrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=FIRST_S, max=LONGEST_S),
            stop=stop_after_delay(outage_timeout_s),
            reraise=True,
        )(action)
    finally:
        _waiting.pop(passes, None)
