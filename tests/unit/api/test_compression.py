"""Compressed bodies: what comes out is what went in, and never more than the limit."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.api.inference.compression import compressed, decompressed
from forebay.contract.errors import InvalidInput, PayloadTooLarge

LIMIT = 10_000
ENCODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}


@given(st.binary(max_size=LIMIT), st.sampled_from([*ENCODINGS]))
def test_a_body_comes_out_as_its_client_had_it(body: bytes, encoding: str) -> None:
    assert decompressed(ENCODINGS[encoding](body), encoding.upper(), LIMIT) == body


@given(st.binary(min_size=1024, max_size=LIMIT), st.sampled_from([*ENCODINGS]))
def test_an_answer_is_compressed_as_its_client_asked(body: bytes, encoding: str) -> None:
    small, used = compressed(body, f"br, {encoding};q=0.5")
    assert used == encoding
    assert decompressed(small, used, LIMIT) == body


@pytest.mark.parametrize("accepted", [None, "", "identity", "br", "gzip;q=0", "gzip; q=0.000, deflate;q=0"])
def test_an_answer_is_not_compressed_unasked(accepted: str | None) -> None:
    assert compressed(bytes(2000), accepted) == (bytes(2000), None)


@pytest.mark.parametrize("encoding", [*ENCODINGS])
def test_a_bomb_is_refused_before_it_has_grown(encoding: str) -> None:
    bomb = ENCODINGS[encoding](bytes(LIMIT + 1))
    assert len(bomb) < 100
    with pytest.raises(PayloadTooLarge, match="larger than 10000 bytes once it is decompressed"):
        decompressed(bomb, encoding, LIMIT)
    assert decompressed(ENCODINGS[encoding](bytes(LIMIT)), encoding, LIMIT) == bytes(LIMIT)


@pytest.mark.parametrize("encoding", [*ENCODINGS])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "is cut off"),
        (lambda data: data + b"x", "goes on"),
        (lambda data: b"x" + data, "is not"),
        (lambda data: b"", "is cut off"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is not"),
    ],
)
def test_a_damaged_body_is_refused(encoding: str, damage, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        decompressed(damage(ENCODINGS[encoding](b"some text, several times, some text")), encoding, LIMIT)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "\x00"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(InvalidInput, match="is not supported; send gzip, deflate or none"):
        decompressed(b"{}", encoding, LIMIT)
