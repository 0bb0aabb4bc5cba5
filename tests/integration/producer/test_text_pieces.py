"""What running jobs generate, on its way from a worker's announcer to whoever asked for it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from forebay import Client, Settings
from forebay.contract.job import new_ids
from forebay.contract.wire.messages import TextPiece, text_channel
from forebay.storage.ledger.connection import Ledger
from forebay.worker.announcer import Announcer
from support.waiting import wait_until


@pytest.fixture
def client(sqlite_ledger: Ledger, broker: str, tmp_path: Path) -> Iterator[Client]:
    given = {"HOME": str(tmp_path), "DATABASE": sqlite_ledger.url, "BROKER": broker}
    with closing(Client(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()}))) as client:
        client.session.watcher.start()
        yield client


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[[]]", b'[["x", 0, 0, 0, "a"]]', b"[1"])
def test_text_comes_in_order_to_everyone_who_asked_for_its_job_whatever_else_comes(
    client: Client, broker: str, junk: bytes
) -> None:
    mine, other = new_ids(2)
    pieces = [TextPiece(mine, 0, 0, 0, "a dam"), TextPiece(mine, 0, 1, 0, "\u6c34"), TextPiece(mine, 0, 0, 5, " holds")]
    found: list[TextPiece] = []
    again: list[TextPiece] = []
    with redis.Redis.from_url(broker) as connection:
        announcer, name = Announcer(connection), client.session.id
        with client.session.watcher.text_of(mine, found.append):
            with client.session.watcher.text_of(mine, again.append):
                announcer.announce_text(name, [pieces[0], TextPiece(other, 0, 0, 0, "not mine"), pieces[1]])
                connection.publish(text_channel(name), junk)
                wait_until(lambda: len(again) == 2, "both pieces have come")
            announcer.announce_text(name, pieces[2:])
            wait_until(lambda: found == pieces, "the last one has come")
    assert again == pieces[:2]
