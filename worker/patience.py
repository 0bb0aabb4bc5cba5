"""Waiting for the ledger to come back, with growing and scattered pauses: an outage is no reason to throw work away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable

log = structlog.get_logger()

T = TypeVar("T")

FIRST_S, LONGEST_S = 0.1, 5.0


def wait_out(action: Callable[[], T], patience_s: float, away: tuple[type[Exception], ...] = (LedgerUnavailable,)) -> T:
    """What `action` gives once the ledger, or what else raises the errors `away`, answers; its error after `patience_s` seconds.

    Tables that are missing or too old do not come back by waiting: that error is raised at once.
    """
    return Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, away) and not isinstance(e, LedgerOutdated)),
        wait=wait_random_exponential(multiplier=FIRST_S, max=LONGEST_S),
        stop=stop_after_delay(patience_s),
        before_sleep=_say_once,
        reraise=True,
    )(action)


def _say_once(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        log.warning("ledger_awaited", error=str(state.outcome.exception()))
