"""A server with OpenAI's API whose moods a test decides: it answers a prompt with its words backwards, or does not."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Endpoint:
    """`moods` are for each prompt what its next requests meet: a status, "late" (429 with Retry-After 1), "slow", "cut" or
    "wrong"; then all is well. More than `capacity` requests at once meet 429. `asked` counts requests by prompt, `answered`
    those that were answered well; `gate` holds all back while it is clear.
    """

    moods: dict[str, list[Any]] = field(default_factory=dict)
    capacity: int = 1000
    seconds: float = 0.0
    key: str | None = None
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    running: int = 0
    peak: int = 0
    cut_off: int = 0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, f"wrong key {request.headers.get('Authorization')}")
        texts = _texts(body)
        self.asked.update(texts)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.running > self.capacity:
                self.refused += 1
                return _error(429, "too many at once")
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            return await self._answer(request, body, texts)
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], texts: list[str]) -> web.StreamResponse:
        mood = next((self.moods[text].pop(0) for text in texts if self.moods.get(text)), None)
        await asyncio.sleep(600 if mood == "slow" else self.seconds)
        if mood == "cut":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if mood == "wrong":
            return web.json_response({"choices": [{"text": 1}]})
        if mood == "late":
            return _error(429, "come back later", {"Retry-After": "1"})
        if isinstance(mood, int):
            headers = {"Location": "http://127.0.0.1:1/"} if mood == 307 else {}
            return _error(mood, f"no {texts[0]!r} today", headers)
        self.answered.update(texts)
        return web.json_response(_made(request.path, body, texts))


def _texts(body: dict[str, Any]) -> list[str]:
    if "messages" in body:
        return [str(body["messages"][-1]["content"])]
    given = body.get("prompt", body.get("input"))
    return list(given) if isinstance(given, list) and isinstance(given[0], str) else [str(given)]


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def backwards(text: str) -> str:
    return text[::-1]


def tokens(text: str) -> tuple[int, int]:
    """Of a prompt, and of its answer."""
    return len(text.split()), len(text)


def _made(path: str, body: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    counts = [tokens(text) for text in texts]
    usage = {"prompt_tokens": sum(p for p, _ in counts), "completion_tokens": sum(c for _, c in counts)}
    if path.endswith("/embeddings"):
        vectors = [{"index": i, "embedding": [float(len(text)), 0.5]} for i, text in enumerate(texts)]
        return {"data": vectors[::-1], "usage": {"prompt_tokens": usage["prompt_tokens"]}}
    several = range(body.get("n", 1))
    answer = backwards(texts[0])
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": answer}
        return {"choices": [{"index": i, "message": message, "finish_reason": "stop"} for i in several], "usage": usage}
    return {"choices": [{"index": i, "text": answer, "finish_reason": "length"} for i in several], "usage": usage}


@contextmanager
def endpoint(**how: Any) -> Iterator[Endpoint]:
    """One on loopback; `url` is its base URL."""
    served, loop = Endpoint(**how), asyncio.new_event_loop()
    served.gate.set()
    app = web.Application()
    app.router.add_post("/v1/{path:.*}", served.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    thread = threading.Thread(target=loop.run_forever, name="endpoint", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
