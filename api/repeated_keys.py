"""Bodies in which an object has a key twice are refused: a decoder would keep the last value and drop the others."""

from __future__ import annotations

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

_NOT_BRACES = bytes(set(range(256)) - set(b"{}"))
# MessagePack's types by their first byte: how many bytes hold the length, and how many lie before what has this length.
_SIZED = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_MANY = {0xDC: (2, False), 0xDD: (4, False), 0xDE: (2, True), 0xDF: (4, True)}


def check_json_keys(data: bytes) -> None:
    """Refuse valid JSON in which an object has a key twice: the decoder would keep the last value and drop the others.

    Quotes within strings are escaped away first; then every other piece between quotes is a string, and it is a key when a
    colon follows. No step looks at numbers one by one: it takes less time than the decoder where there are many.
    """
    if b"\\" in data:
        data = data.replace(rb"\\", rb"\u005c").replace(rb"\"", rb"\u0022")
    pieces = data.split(b'"')
    open_objects: list[set[bytes]] = []
    for key, outside in zip([b"", *pieces[1::2]], pieces[::2], strict=True):
        if outside in (b",", b", "):
            continue
        if outside[:1] == b":" or outside.lstrip()[:1] == b":":
            if b"\\" in key:  # one key may be written in several ways
                key = msgspec.json.decode(b'"%s"' % key, type=str).encode()
            if key in open_objects[-1]:
                raise InvalidInput(f"an object has the key {shown(key.decode())} twice")
            open_objects[-1].add(key)
        if b"{" in outside:
            for brace in outside.translate(None, _NOT_BRACES):
                if brace == ord("{"):
                    open_objects.append(set())
                else:
                    open_objects.pop()
        elif ends := outside.count(b"}"):
            del open_objects[-ends:]


def check_msgpack_keys(data: bytes) -> None:
    """The same of valid MessagePack. What is written as msgspec writes it has no key twice; anything else is walked through."""
    if msgspec.msgpack.encode(msgspec.msgpack.decode(data)) == data:
        return
    at, left, keys = 0, [1], list[set[bytes] | None]([None])  # of each open array or map: items to come, keys so far
    while left:
        if not left[-1]:
            left.pop()
            keys.pop()
            continue
        left[-1] -= 1
        known = keys[-1]
        end, items, is_map = _item(data, at)
        if known is not None and left[-1] % 2:  # a key, whose value is to come
            key = data[at:end]
            text = msgspec.msgpack.encode(msgspec.msgpack.decode(key))  # one key may be written in several ways
            if text in known:
                raise InvalidInput(f"an object has the key {shown(msgspec.msgpack.decode(key))} twice")
            known.add(text)
        at = end
        if items is not None:
            left.append(2 * items if is_map else items)
            keys.append(set() if is_map else None)


def _item(data: bytes, at: int) -> tuple[int, int | None, bool]:
    """Where the item at `at` ends (of an array or map: its head), how many items it holds, and whether it is a map."""
    first = data[at]
    if first <= 0x7F or first >= 0xE0:
        return at + 1, None, False
    if first <= 0x9F:
        return at + 1, first & 0x0F, first <= 0x8F
    if first <= 0xBF:
        return at + 1 + (first & 0x1F), None, False
    if first in _MANY:
        size, is_map = _MANY[first]
        return at + 1 + size, int.from_bytes(data[at + 1 : at + 1 + size], "big"), is_map
    if first in _SIZED:
        size, more = _SIZED[first]
        return at + 1 + size + more + int.from_bytes(data[at + 1 : at + 1 + size], "big"), None, False
    return at + 1 + _FIXED[first], None, False
