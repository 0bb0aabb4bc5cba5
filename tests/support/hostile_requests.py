"""Requests to /v2 that no client should send, each told by its seed: bytes to write to a socket, as they are.

Each begins as a good request; a change or two make it lie about lengths, break off, swell, nest or name what is not there.
"""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308, "", "x", "é\0\n", "\ud800",
    "../../etc/passwd", "FP32",
    "BYTES", "BF16", [], {}, [[]], [None], [[1], [2, 3]], {"a": {"b": []}}, "A" * 5000, list(range(300)), "%s%n{0}",
    "<script>",
)  # fmt: skip
NUMBERS = (
    "-1",
    "0",
    "1",
    "7",
    "99999999999999999999",
    "1e3",
    "0x10",
    "+5",
    " 5",
    "5 ",
    "",
    "NaN",
    "٣",
    "5, 6",
    "-0",
    "18446744073709551616",
)
PATHS = (
    "/v2/models/{m}/infer", "/v2/models/{m}/versions/{v}/infer", "/v2/models/{m}", "/v2/models/{m}/versions/{v}",
    "/v2/models/{m}/stats",
    "/v2/models/{m}/config", "/v2/models/{m}/ready", "/v2/repository/models/{m}/load",
    "/v2/repository/models/{m}/unload",
    "/v2/repository/index", "/v2/{m}", "/v2/models/stats/{m}", "/v2/health/{m}",
)  # fmt: skip
NAMES = (
    "pair", "pair@champion", "pair%40champion", "nobody", "..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cboot.ini", "%00", "pair%00",
    "%ff%fe", "pair%0d%0aX-Injected:%201", "a" * 3000, "pair;x=1", "pair?x=1", "pair#x", "//", "pair//", "%25%32%65",
    "é", "{m}", "$(id)",
    "'%20OR%201=1--", "pair/../../metrics", "pair%2f1", "%E2%80%AE", "pair@", "@champion", "0", "-1",
)  # fmt: skip
VERSIONS = (
    "1", "0", "-1", "2147483648", "99999999999999999999", "1.0", "1e0", "%31", "latest", "..", "", "١", "1%00", "1/1",
)  # fmt: skip
HEADERS = (
    b"X-Request-Id: a\r\nX-Injected: 1", b"X-Request-Id: " + b"i" * 5000, b"Content-Encoding: br",
    b"Content-Encoding: gzip, gzip",
    b"Content-Encoding: \xff\xfe", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, identity",
    b"Content-Type: \x01", b"Expect: 100-continue",
    b"Accept-Encoding: gzip;q=\xff, deflate", b"Content-Length: 5", b"no colon", b": no name", b"Name : space",
    b" folded: x", b"Host: evil.example",
    b"Origin: https://evil.example", b"X: \0", b"Upgrade: websocket\r\nConnection: Upgrade", b"Range: bytes=0-",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate", b"Authorization: Bearer " + b"x" * 9000, b"X-HTTP-Method-Override: DELETE",
    b"Inference-Header-Content-Length: 3",
)  # fmt: skip


@dataclass
class Draft:
    """A request that is being made. `length` and `head_length` are what its headers say."""

    rng: random.Random
    request: Any
    blobs: list[bytes]
    method: str = "POST"
    path: str = "/v2/models/pair/infer"
    headers: list[bytes] = field(default_factory=list)
    body: bytes = b""
    length: str | None = None
    head_length: str | None = None

    def encode(self) -> None:
        """Write the JSON and the blobs behind it, with headers that tell the truth."""
        text = json.dumps(self.request).encode()
        self.body = text + b"".join(self.blobs)
        self.head_length = str(len(text)) if self.blobs else None


def hostile_request(seed: int, bomb_bytes: int) -> bytes:
    """The request of this seed; a bomb among them is of more than `bomb_bytes`."""
    rng = random.Random(seed)
    draft = _good(rng)
    how = rng.random()
    if how < 0.5:
        rng.choice(TREE_CHANGES)(draft)
    draft.encode()
    if how > 0.25:
        rng.choice(BODY_CHANGES)(draft)
    if seed % 97 == 0:
        _bomb(draft, bomb_bytes)
    return _written(draft)


def _good(rng: random.Random) -> Draft:
    rows, width = rng.randint(1, 3), rng.randint(1, 3)
    numbers = [float(rng.randint(-9, 9)) for _ in range(rows * width)]
    words = ["w" * rng.randint(0, 4) for _ in range(rows)]
    inputs: list[Any] = [
        {"name": "left", "shape": [rows, width], "datatype": "FP32"},
        {"name": "right", "shape": [rows, width], "datatype": "FP32", "data": numbers},
        {"name": "word", "shape": [rows], "datatype": "BYTES"},
    ]
    blobs = []
    if rng.random() < 0.6:
        blobs.append(struct.pack(f"<{len(numbers)}f", *numbers))
        inputs[0]["parameters"] = {"binary_data_size": len(blobs[-1])}
    else:
        inputs[0]["data"] = numbers
    if rng.random() < 0.6:
        blobs.append(b"".join(struct.pack("<I", len(word)) + word.encode() for word in words))
        inputs[2]["parameters"] = {"binary_data_size": len(blobs[-1])}
    else:
        inputs[2]["data"] = words
    return Draft(
        rng, {"id": "a", "inputs": inputs, "outputs": [{"name": "total"}], "parameters": {"priority": 1}}, blobs
    )


# In the JSON


def _junk_somewhere(draft: Draft) -> None:
    """Any value of the JSON, or a name in it, becomes something else."""
    node: Any = draft.request
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = draft.rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and draft.rng.random() < 0.75:
            node = node[key]
            continue
        how = draft.rng.random()
        if how < 0.7:
            node[key] = draft.rng.choice(JUNK)
        elif how < 0.85:
            del node[key]
        elif isinstance(node, dict):
            node[str(draft.rng.choice(JUNK))[:200]] = node.pop(key)
        else:
            node.append(node[key])
        return


def _lying_size(draft: Draft) -> None:
    one = draft.rng.choice(draft.request["inputs"])
    one["parameters"] = {
        "binary_data_size": draft.rng.choice([-1, 0, 1, 3, 2**31, 2**53, 2**53 + 1, 2**70, 1.5, "4", True, None])
    }


def _lying_shape(draft: Draft) -> None:
    one = draft.rng.choice(draft.request["inputs"])
    one["shape"] = draft.rng.choice(
        [[], [0], [-1, 2], [2**40], [2**31 - 1] * 4, [0, 2**31 - 1], [1] * 40, [1.0], ["2"], None, [[2]], 7, [2**70]]
    )


def _many(draft: Draft) -> None:
    draft.request["inputs"] *= draft.rng.choice([0, 2, 50])
    draft.request["outputs"] *= draft.rng.choice([0, 2, 50])


def _strange_parameters(draft: Draft) -> None:
    name = draft.rng.choice(
        [
            "priority",
            "timeout",
            "sequence_id",
            "binary_data_output",
            "shared_memory_region",
            "classification",
            "x" * 500,
        ]
    )
    draft.rng.choice([draft.request, *draft.request["inputs"], *draft.request["outputs"]])["parameters"] = {
        name: draft.rng.choice(JUNK)
    }


# In the bytes


def _cut(draft: Draft) -> None:
    draft.length = draft.rng.choice([None, str(len(draft.body))])
    draft.body = draft.body[: draft.rng.randrange(len(draft.body) + 1)]


def _stretch(draft: Draft) -> None:
    draft.body += draft.rng.randbytes(draft.rng.choice([1, 7, 4096]))


def _flip(draft: Draft) -> None:
    body = bytearray(draft.body)
    for _ in range(draft.rng.randint(1, 6)):
        body[draft.rng.randrange(len(body))] = draft.rng.randrange(256)
    draft.body = bytes(body)


def _lying_length(draft: Draft) -> None:
    draft.length = draft.rng.choice([*NUMBERS, str(len(draft.body) + draft.rng.randint(-9, 9))])


def _lying_head_length(draft: Draft) -> None:
    draft.head_length = draft.rng.choice([*NUMBERS, str(len(draft.body) + draft.rng.randint(-40, 9)), None])


def _deep(draft: Draft) -> None:
    opening = draft.rng.choice([b"[", b'{"a":', b'{"inputs":[', b'{"parameters":{"x":['])
    draft.body, draft.head_length = opening * draft.rng.choice([100, 2000, 60_000]), None


def _not_json(draft: Draft) -> None:
    draft.head_length = None
    draft.body = draft.rng.choice([
        b"", b"\0", b"null", b"[]", b"NaN", b'"x"', b"\xef\xbb\xbf{}", b"{'inputs': []}", b'{"inputs": NaN}',
        b'{"inputs": [Infinity]}', b"{}{}",
        b'{"inputs": [1e999]}', b'{"inputs": []', b'{"inputs": [], "inputs": 1}', b"\xff\xfe{\0}\0",
        draft.rng.randbytes(200), b"9" * 5000,
        json.dumps(draft.request).replace("1.0", "NaN").encode(), json.dumps(draft.request).replace("1.0", "-Infinity").encode(),
    ])  # fmt: skip


def _bad_stream(draft: Draft) -> None:
    name = draft.rng.choice(["gzip", "deflate"])
    packed = (gzip if name == "gzip" else zlib).compress(draft.body)
    at = draft.rng.randrange(len(packed))
    damaged = (packed[:at], packed + b"x", packed[:at] + b"\xff" + packed[at:], packed[2:], draft.body, packed + packed)
    draft.headers.append(f"Content-Encoding: {name}".encode())
    draft.body = draft.rng.choice(damaged)


def _strange_header(draft: Draft) -> None:
    draft.headers += draft.rng.sample(HEADERS, draft.rng.randint(1, 2))


def _strange_path(draft: Draft) -> None:
    path = draft.rng.choice(PATHS).replace("{m}", draft.rng.choice(NAMES)).replace("{v}", draft.rng.choice(VERSIONS))
    draft.path, draft.method = (
        path,
        draft.rng.choice(["POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]),
    )


def _bomb(draft: Draft, size: int) -> None:
    """A body that is small as it travels."""
    name, pack = draft.rng.choice([("gzip", gzip.compress), ("deflate", zlib.compress)])
    draft.headers.append(f"Content-Encoding: {name}".encode())
    draft.body = pack(
        draft.rng.choice([bytes(size + 1), b"[" * (size + 1), json.dumps(draft.request).encode() + b" " * size])
    )


Change = Callable[[Draft], None]
TREE_CHANGES: list[Change] = [
    _junk_somewhere,
    _junk_somewhere,
    _junk_somewhere,
    _lying_size,
    _lying_shape,
    _many,
    _strange_parameters,
]
BODY_CHANGES: list[Change] = [
    _cut, _cut, _stretch, _flip, _lying_length, _lying_head_length, _deep, _not_json, _bad_stream,
    _strange_header, _strange_path,
]  # fmt: skip


def _written(draft: Draft) -> bytes:
    lines = [
        f"{draft.method} {draft.path} HTTP/1.1".encode("utf-8", "surrogateescape"), b"Host: 127.0.0.1", b"Connection: close",
        f"Content-Length: {len(draft.body) if draft.length is None else draft.length}".encode(),
    ]  # fmt: skip
    if draft.head_length is not None:
        lines.append(f"Inference-Header-Content-Length: {draft.head_length}".encode())
    return b"\r\n".join([*lines, *draft.headers, b"", draft.body])
