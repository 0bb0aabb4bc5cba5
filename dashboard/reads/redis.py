"""Whether Redis answers, asked in a thread and at most once in a while, whoever wants to know."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import PING_S, ping_redis

MAX_AGE_S = 2.0


class RedisProbe:
    """Made and used on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redis")
        self._asking: asyncio.Future[str | None] | None = None
        self._asked_at = 0.0

    async def problem(self, max_age_s: float = MAX_AGE_S) -> str | None:
        """What Redis does instead of answering, None when it answers; not older than `max_age_s` seconds. It takes about
        PING_S at most, also while Redis hangs.
        """  # fmt: skip
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= max_age_s):
            self._asked_at = now
            self._asking = loop.run_in_executor(self._thread, ping_redis, self._settings)
        await asyncio.wait({self._asking}, timeout=PING_S + 0.5)
        return self._asking.result() if self._asking.done() else f"hangs: it has not answered within {PING_S:g} s"

    def close(self) -> None:
        """Without waiting for an answer."""
        self._thread.shutdown(wait=False, cancel_futures=True)
