"""One request to an endpoint, and what its answer means: for the row, and for how much the endpoint is sent.

All requests of a process run on one event loop, in a thread, with one pool of connections. Redirects are not followed, and no
proxy of the environment is asked: requests go where the operator allows it, and nowhere else.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import aiohttp
import msgspec

from forebay.contract.errors import EndpointError
from forebay.contract.references import plain_text
from forebay.worker.runtimes.remote.concurrency import Concurrency

CONNECT_S = 10.0
KEEP_ALIVE_S = 3.0  # less than servers keep a connection that rests: none is written to while the server closes it
MAX_ANSWER_BYTES, MAX_ERROR_BYTES = 16 << 20, 64 << 10
MAX_WORDS = 500  # of a server's error
BUSY = (429, 503)  # not taken, or told to come later
MAY_PASS = (408, 409, 425)  # as OpenAI's own clients see it, beside 5xx


class NotTaken(Exception):
    """The endpoint has not begun with the request: it is too busy, or not there."""


class NotAnswered(Exception):
    """It may have begun with it, and failed or was not heard again."""


class Endpoint:
    """Where the requests of a version go. Used on the loop's thread only."""

    def __init__(self, url: str, key: str | None, window: Concurrency, timeout_s: float) -> None:
        self.url, self.window = url, window
        self._key, self._timeout_s = key, timeout_s

    async def ask(self, body: Mapping[str, Any]) -> bytes:
        """The answer's body. NotTaken, NotAnswered, or EndpointError with the server's words when asking again is no use."""
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, answer = await self._post(body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.window.refused(sent_at, None)
            raise NotTaken(f"{self.url} cannot be reached: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            self.window.failed(sent_at)
            late = isinstance(error, TimeoutError)
            why = f"no answer within {self._timeout_s:g} s" if late else f"the connection broke: {error!r}"
            raise NotAnswered(f"{self.url}: {why}") from error
        if status == 200:
            self.window.succeeded()
            return answer
        words, after_s = f"{self.url}: {status}: {self.words(answer)}", _retry_after_s(headers.get("Retry-After"))
        if status in BUSY or (after_s is not None and status >= 500):
            self.window.refused(sent_at, after_s)
            raise (NotTaken if status in BUSY else NotAnswered)(words)
        if status >= 500 or status in MAY_PASS:
            self.window.failed(sent_at)
            raise NotAnswered(words)
        self.window.succeeded()  # it has read the request: nothing says that there are too many
        raise EndpointError(words, status=status)

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = msgspec.json.encode(body)
        async with _session().post(self.url, data=data, headers=headers, allow_redirects=False) as response:
            most = MAX_ANSWER_BYTES if response.status == 200 else MAX_ERROR_BYTES
            answer = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                answer += chunk
                if len(answer) > most:
                    break
            if len(answer) > most and response.status == 200:
                raise EndpointError(f"{self.url}: the answer is larger than {most:,} bytes")
            return response.status, response.headers, bytes(answer)

    def words(self, answer: bytes) -> str:
        """What the server says, of an error if it is one, without the key should it repeat that."""
        try:
            said = msgspec.json.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            said = answer.decode("utf-8", "replace")
        for name in ("error", "message", "detail"):
            said = said.get(name, said) if isinstance(said, Mapping) else said
        text = said if isinstance(said, str) else msgspec.json.encode(said).decode()
        return plain_text(text.replace(self._key, "***") if self._key else text, MAX_WORDS) or "no words"


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process's requests."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="endpoints", daemon=True).start()
    return made


@cache
def _session() -> aiohttp.ClientSession:
    made = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "forebay"},
    )
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(made.close(), loop()).result(CONNECT_S))
    return made


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, from a number or a date; None for none, or one that cannot be read."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
