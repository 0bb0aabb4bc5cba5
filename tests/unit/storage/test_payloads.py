"""Small payloads lie in the row, larger ones in the blob store, too large ones nowhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import PayloadTooLarge
from forebay.contract.settings import Settings
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore


class Blobs(BlobStore):
    """A dict."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        self.held[f"sha256:{len(self.held):064x}"] = data
        return list(self.held)[-1]

    def get(self, ref: str) -> bytes:
        return self.held[ref]


def payloads(blobs: BlobStore) -> Payloads:
    settings = Settings.load({}, home=Path("/nowhere"), max_inline_bytes=10, max_payload_bytes=100)
    return Payloads(blobs, settings)


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
