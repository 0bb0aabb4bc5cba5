"""How schemathesis writes the bodies of media types that it does not know."""

import json
from typing import Any

import schemathesis

from forebay.contract.wire import codec


@schemathesis.serializer("application/x-ndjson")
def json_lines(_: Any, value: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in value) if isinstance(value, list) else b"{"


@schemathesis.serializer("application/msgpack")
def message_pack(_: Any, value: Any) -> bytes:
    return codec.encode([repr(value)])
