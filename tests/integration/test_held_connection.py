"""A connection to Redis that is kept in hand, on a Redis that goes away, refuses and comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from forebay.contract.wire.held_connection import HeldConnection
from support.servers import ValkeyServer, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with running(ValkeyServer(tmp_path, append_only=True)) as server:
        yield server


def test_answers_come_in_turn_whatever_was_not_waited_for(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        held = HeldConnection(client)
        for n in range(3):
            held.send("RPUSH", "list", str(n))
        assert held.call("LLEN", "list") == 3
        held.close()


def test_a_refused_command_is_told_and_costs_no_later_one(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("text", "a")
        held = HeldConnection(client)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            held.call("LPUSH", "text", "b")
        assert held.call("STRLEN", "text") == 1
        held.send("LPUSH", "text", "b")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            held.call("STRLEN", "text")
        assert held.call("STRLEN", "text") == 1
        held.close()


def test_a_redis_that_was_restarted_is_found_again(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        held = HeldConnection(client)
        held.send("SET", "key", "1")
        assert held.call("STRLEN", "key") == 1
        server.stop()
        with pytest.raises(redis.ConnectionError):
            held.call("STRLEN", "key")
        server.start()
        assert held.call("STRLEN", "key") == 1
        server.stop()
        server.start()
        assert held.call("STRLEN", "key") == 1, "at the first try"
        held.close()
