"""Which machines an input or output may lie on: a user's URL must not lead into the network of the worker that reads it.

Hosts with private, loopback or link-local addresses are refused unless the setting `allowed_hosts` names them. Of HTTP each
connection is checked when it is made, so that neither a redirect nor a name that changes its address gets around it. Where
that cannot be done the setting has to name the host, whatever its address is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown

_CHECKED = {"http", "https"}
# Files of this machine, files within files, and stores in which a URL names a bucket: where they are the operator's
# configuration says, or the store's maker. Of any other protocol nobody can say where it connects to.
_WITHOUT_HOST = {
    "file", "local", "asynclocal", "data", "memory", "zip", "tar", "libarchive", "dir", "cached", "blockcache", "filecache",
    "simplecache", "async_wrapper", "asyncwrapper", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci",
    "ocilake", "tos", "tosfs", "hf", "github", "gist", "gdrive", "dropbox", "box", "dbfs", "lakefs", "wandb",
}  # fmt: skip
# What such a URL leads to is told by a file, or by another URL, that is not looked at here.
_INDIRECT = {"reference", "generic", "dask", "git", "dvc"}
_REMEDY = "allowed_hosts (FOREBAY_ALLOWED_HOSTS={}), for the client too"
_NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address is in the last 32 bits
_allowed: frozenset[str] = frozenset()


def allow_hosts(names: Iterable[str]) -> None:
    """Let this process read from these hosts, by the name that URLs give them, whatever their addresses are; "*" is all."""
    global _allowed
    _allowed = frozenset(name.lower() for name in names)


def allowed_hosts() -> list[str]:
    return sorted(_allowed)


def check_host(url: str) -> None:
    """InvalidInput when a URL, or one in a chain of them, leads to a host whose address is not public."""
    for part in url.split("::"):
        protocol, separator, _ = part.partition("://")
        if protocol in _WITHOUT_HOST or not (separator or protocol in _INDIRECT):
            continue
        try:
            host = urlsplit(part).hostname or ""
        except ValueError as error:
            raise InvalidInput(f"{shown(url)} is not a URL: {error}") from error
        if _is_allowed("" if protocol in _INDIRECT else host):
            continue
        if protocol not in _CHECKED:
            raise InvalidInput(
                f"{shown(url)}: nobody can check where {protocol} connects to; the operator of the worker may allow it: "
                f"{_REMEDY.format('*' if protocol in _INDIRECT else host)}"
            )
        for address in _addresses(host) if host else ():
            _refuse_private(host, address)


def http_options(url: str) -> dict[str, Any]:
    """fsspec's options for the HTTP in a URL: each connection is checked."""
    protocols = {part.partition("://")[0] for part in url.split("::")}
    return {protocol: {"get_client": _client} for protocol in ("http", "https") if protocol in protocols}


async def _client(**options: Any) -> Any:
    import aiohttp

    class Connector(aiohttp.TCPConnector):
        async def _resolve_host(self, host: str, port: int, traces: Any = None) -> Any:
            found = await super()._resolve_host(host, port, traces)
            if not _is_allowed(host):
                for address in found:
                    _refuse_private(host, address["host"])
            return found

    return aiohttp.ClientSession(**options, connector=Connector())


def _is_allowed(host: str) -> bool:
    return "*" in _allowed or host.lower().rstrip(".") in _allowed


def _addresses(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []  # whoever connects will say so


def _refuse_private(host: str, text: str) -> None:
    address = ip_address(text.partition("%")[0])
    special = False  # of a range that is global to Python and to nobody else
    if isinstance(address, IPv6Address):
        within = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        address = within or address.ipv4_mapped or address.sixtofour or address
        special = isinstance(address, IPv6Address) and (address.is_reserved or address.is_site_local)
    if special or not address.is_global or address.is_multicast:
        raise InvalidInput(
            f"{shown(host)} has the address {text}, which is not public; the operator of the worker may allow it: "
            f"{_REMEDY.format(host)}"
        )
