"""Bodies that travel compressed: gzip, and deflate in the form that HTTP means, zlib's."""

from __future__ import annotations

import zlib

from forebay.contract.errors import InvalidInput, PayloadTooLarge
from forebay.contract.references import shown

_WBITS = {"gzip": 31, "deflate": 15}
_LEVEL = 1
_WORTH_IT = 1024  # bytes; below, a packet holds the answer either way


def decompressed(body: bytes, encoding: str | None, limit: int) -> bytes:
    """A request's body as it was before its Content-Encoding.

    InvalidInput for an unknown encoding and for what is not in it, PayloadTooLarge when more than `limit` bytes come out; no
    more than that is ever held.
    """
    name = (encoding or "identity").strip().lower()
    if name in ("identity", ""):
        return body
    wbits = _WBITS.get(name)
    if wbits is None:
        raise InvalidInput(f"Content-Encoding {shown(encoding)} is not supported; send gzip, deflate or none")
    stream = zlib.decompressobj(wbits)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {name}, as its Content-Encoding says: {error}") from error
    if len(plain) > limit:
        raise PayloadTooLarge(f"the body is larger than {limit} bytes once it is decompressed")
    if not stream.eof or stream.unused_data:
        raise InvalidInput(
            f"the body is not one complete {name} stream: it {'goes on' if stream.eof else 'is cut off'}"
        )
    return plain


def compressed(body: bytes, accepted: str | None) -> tuple[bytes, str | None]:
    """An answer's body in an encoding that Accept-Encoding names, and which; as it is when none is, or it is short."""
    encoding = _wanted(accepted or "") if len(body) >= _WORTH_IT else None
    if encoding is None:
        return body, None
    stream = zlib.compressobj(_LEVEL, wbits=_WBITS[encoding])
    return stream.compress(body) + stream.flush(), encoding


def _wanted(accepted: str) -> str | None:
    for part in accepted.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        if name in _WBITS and weight.strip("0."):  # a weight of 0 means never
            return name
    return None
