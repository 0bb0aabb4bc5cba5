"""Who may send requests: whoever has an API key. Before the first key was made that is whoever works on this machine."""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from forebay.api.context import ANYONE, NOBODY, Caller
from forebay.api.errors import Forbidden
from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.references import shown
from forebay.producer.async_client import AsyncClient
from forebay.storage.api_keys import PREFIX, SCOPES, ApiKey, ApiKeys, hash_of

KEEP_S = 2.0  # a key that was revoked is of no more use after so long


class Access:
    """Finds out who sends a request. Without any key only this machine's own names are accepted as Host, no other website as
    Origin, and no proxy: a page that resolves its name to 127.0.0.1 would come in otherwise.
    """  # fmt: skip

    def __init__(self, client: AsyncClient, origins: Collection[str] = ()) -> None:
        self._client = client
        self._keys = ApiKeys(client.sync.session.ledger)
        self._origins = origins
        self._known: Sequence[ApiKey] = ()
        self._known_until = 0.0
        self._clock_ahead = 0.0  # of the ledger, to this machine's monotonic clock
        self._reading: asyncio.Task[None] | None = None

    async def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Who calls: NOBODY without a key that holds. Forbidden for what a browser or a proxy sends where there are no keys."""
        if time.monotonic() >= self._known_until:
            await self._read()
        if not self._known:
            self._check_local(headers)
            return ANYONE
        kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else ""
        digest, now = hash_of(key), time.monotonic() + self._clock_ahead
        found = NOBODY
        for known in self._known:  # all of them, so that time tells nothing
            if hmac.compare_digest(known.sha256, digest) and key.startswith(PREFIX) and known.holds(now):
                found = Caller(known.name, frozenset(SCOPES if "admin" in known.scopes else known.scopes))
        return found

    async def _read(self) -> None:
        """Read the keys, once for all who ask at this moment."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        await asyncio.shield(self._reading)

    async def _refresh(self) -> None:
        try:
            self._known, self._clock_ahead = await self._client.call(self._look)
        except LedgerUnavailable:
            if (
                not self._known_until
            ):  # once known, they hold while the ledger is away: nothing can be changed meanwhile
                raise
        finally:
            self._reading = None
        self._known_until = time.monotonic() + KEEP_S

    def _look(self) -> tuple[Sequence[ApiKey], float]:
        return self._keys.list(), self._keys.ledger.now() - time.monotonic()

    def _check_local(self, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not _is_local(_host_name(host)):
            raise Forbidden(f"{shown(host)} is not a name of this machine; without API keys no other is accepted")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and origin.partition("://")[2] != host:
            raise Forbidden("another website's page may not send requests to this server")
        if b"x-forwarded-for" in headers or b"forwarded" in headers:
            raise Forbidden("a proxy lets others in: make API keys first, with `forebay keys create`")


def check_address(host: str, keys: Sequence[ApiKey]) -> None:
    """InvalidInput when a host cannot be resolved, or when other machines could get in without an API key."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{host!r} is not an address to listen on: {error}") from error
    if not keys and not all(ip_address(str(entry[4][0])).is_loopback for entry in found):
        raise InvalidInput(
            f"on {host!r} everyone who can reach this machine could submit jobs: make an API key with "
            "`forebay keys create NAME`, or listen on 127.0.0.1"
        )


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
