"""Who may send requests. Without any API key that is whoever works on this machine, and no website through their browser."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from forebay.api.context import ANYONE, Caller
from forebay.api.errors import Forbidden
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown


class Access:
    """Checks each request before its handler."""

    async def check(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Who calls; Unauthorized or Forbidden."""
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if not _is_local(host):
            raise Forbidden(f"{shown(host)} is not a name of this machine; without API keys no other is accepted")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != headers[b"host"].decode("latin-1"):
            raise Forbidden("another website's page may not send requests to this server")
        return ANYONE


def check_address(host: str) -> None:
    """InvalidInput when a host cannot be resolved, or when other machines could get in without an API key."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{host!r} is not an address to listen on: {error}") from error
    if not all(ip_address(str(entry[4][0])).is_loopback for entry in found):
        raise InvalidInput(f"on {host!r} everyone who can reach this machine could submit jobs: listen on 127.0.0.1")


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def _is_local(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
