"""Small payloads lie in the row, larger ones in the blob store, too large ones nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import BlobMissing, PayloadTooLarge
from forebay.contract.settings import Settings
from forebay.contract.wire.codec import Part
from forebay.storage.blobs.payloads import THREADS, Payloads
from forebay.storage.blobs.store import BlobStore


class Blobs(BlobStore):
    """A dict."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.read: list[str] = []

    def put(self, *parts: Part) -> str:
        self.held[f"sha256:{len(self.held):064x}"] = b"".join(parts)
        return list(self.held)[-1]

    def get(self, ref: str) -> bytes:
        self.read.append(ref)
        if ref not in self.held:
            raise BlobMissing(ref)
        return self.held[ref]


def payloads(blobs: BlobStore, recent_bytes: int = 0) -> Payloads:
    settings = Settings.load({}, home=Path("/nowhere"), max_inline_bytes=10, max_payload_bytes=100)
    return Payloads(blobs, settings, recent_bytes)


@given(st.binary(max_size=30))
def test_what_is_stored_comes_back_and_lies_in_one_place(data: bytes) -> None:
    blobs = Blobs()
    inline, ref = payloads(blobs).store(data)
    assert payloads(blobs).load(inline, ref) == data
    assert (inline is None, ref is not None, len(blobs.held)) == (
        (True, True, 1) if len(data) > 10 else (False, False, 0)
    )


@pytest.mark.parametrize(("size", "where"), [(10, "row"), (11, "blob")])
def test_the_inline_limit_itself_is_still_inline(size: int, where: str) -> None:
    _, ref = payloads(Blobs()).store(b"x" * size)
    assert ("row" if ref is None else "blob") == where


def test_the_hard_limit_itself_is_accepted_and_one_byte_more_is_not() -> None:
    payloads(Blobs()).check(b"x" * 100)
    with pytest.raises(PayloadTooLarge, match=r"101 B, the limit is 100 B.*FOREBAY_MAX_PAYLOAD_BYTES"):
        payloads(Blobs()).check(b"x" * 101)


def test_nothing_stored_is_no_bytes() -> None:
    assert payloads(Blobs()).load(None, None) == b""


def test_a_large_payload_goes_through_a_real_blob_store(tmp_path: Path) -> None:
    stored = payloads(BlobStore(tmp_path.as_uri()))
    inline, ref = stored.store(b"y" * 50)
    assert inline is None
    assert stored.load(inline, ref) == b"y" * 50


def test_many_are_stored_in_order_and_few_are_taken_ahead() -> None:
    stored = payloads(Blobs())
    data = [bytes([n]) * (50 if n % 3 else 5) for n in range(30)]
    taken: list[int] = []

    def given() -> Iterator[list[bytes]]:
        for n, each in enumerate(data):
            taken.append(n)
            yield [each[:1], each[1:]]

    places = []
    for n, place in enumerate(stored.store_all(given())):
        assert len(taken) <= n + THREADS + 1
        places.append(place)
    assert [ref is not None for _, ref in places] == [n % 3 != 0 for n in range(30)]
    assert list(stored.load_all(places)) == data


def test_of_many_the_one_that_cannot_be_read_says_so_in_its_place() -> None:
    stored = payloads(Blobs())
    good = stored.store(b"y" * 50)
    one, missing, inline, two = stored.load_all([good, (None, "gone"), (b"x", None), good])
    assert isinstance(missing, BlobMissing)
    assert (one, inline, two) == (b"y" * 50, b"x", b"y" * 50)


def test_what_was_read_last_is_read_once_within_its_bound() -> None:
    blobs = Blobs()
    stored = payloads(blobs, recent_bytes=100)
    a, b, c, large = (stored.store(x * size) for x, size in ((b"a", 40), (b"b", 40), (b"c", 40), (b"d", 101)))
    for place in (a, b, a, c, a, b, large, large):
        stored.load(*place)
    assert blobs.read == [ref for _, ref in (a, b, c, b, large, large)], "c found no room beside a and b: b went"


def test_a_payload_in_parts_is_counted_whole() -> None:
    with pytest.raises(PayloadTooLarge, match="101 B"):
        payloads(Blobs()).check(b"x" * 60, b"y" * 41)
    assert payloads(Blobs()).store(b"x" * 4, b"y" * 6) == (b"xxxxyyyyyy", None)
