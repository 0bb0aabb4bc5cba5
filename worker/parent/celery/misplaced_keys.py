"""Keys of Redis that have the name of one of ours and another type: they are renamed, so that ours can be made again.

As long as such a key stands, Redis refuses every command that needs ours: `cpu` as a string stops the queue for everyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import redis
import structlog
from kombu.transport.redis import Channel

from forebay.contract.wire.messages import misplaced_key, redis_keys

log = structlog.get_logger()

BINDINGS = "_kombu.binding*"  # a set for each exchange of remote control and events
DEADLINES = Channel.keyprefix_binding_deadlines


def is_wrong_type(error: Exception) -> bool:
    return "WRONGTYPE" in str(error)


def set_aside_misplaced(client: redis.Redis, queues: Iterable[str]) -> int:
    """Rename the keys of a wrong type, among those of these queues and kombu's own; how many there were.

    What was under the new name before is overwritten. Many workers may do this at once.
    """
    return sum(_set_aside(client, key, type) for key, type in _expected(client, queues))


def _expected(client: redis.Redis, queues: Iterable[str]) -> Iterator[tuple[str, str]]:
    for queue in queues:
        yield from ((key, "list") for key in redis_keys(queue))
    for raw in client.scan_iter(match=BINDINGS, count=1000):
        key = _text(raw)
        yield key, "zset" if key == DEADLINES else "set"


def _set_aside(client: redis.Redis, key: str, type: str) -> bool:
    aside = misplaced_key(key)
    with client.pipeline() as pipe:
        try:
            # Between the look and the renaming somebody else may put it right.
            pipe.watch(key)  # type: ignore[no-untyped-call]
            found = _text(pipe.type(key))
            if found in (type, "none"):
                return False
            pipe.multi()
            pipe.rename(key, aside)
            pipe.execute()
        except redis.WatchError:
            return False
    log.error("misplaced_key_renamed", key=key, type=found, expected=type, renamed=aside)
    return True


def _text(answer: bytes | str) -> str:
    return answer.decode("utf-8", "surrogateescape") if isinstance(answer, bytes) else answer
