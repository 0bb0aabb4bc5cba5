"""Flower's options: our defaults, then its own FLOWER_… variables, then what only Forebay decides.

Flower's options are one object for the whole process (tornado.options), so they are set once. A set of options that would
let strangers in is refused here, before anything listens.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from flower import command
from flower.options import DEFAULT_CONFIG_FILE
from tornado.options import Error as OptionError
from tornado.options import options

from forebay.contract.errors import InvalidInput

DEFAULTS = {
    # All our tasks are called forebay.predict; their arguments tell them apart.
    "tasks_columns": "name,args,state,result,received,runtime,worker,uuid",
    # Messages that its pages show, of up to 256 jobs each; each takes 4 KiB, and the ledger knows all jobs. With Flower's
    # default memory would grow to 400 MiB, and for days.
    "max_tasks": 1_000,
    # Our workers always send events.
    "enable_events": False,
    # Our workers refuse shutdown, revoke and the like, so Flower need not offer them.
    "read_only": True,
}


def read_options(host: str, port: int) -> None:
    """Set Flower's options for this process; InvalidInput when one is invalid, or strangers could get in.

    A configuration file is read only where FLOWER_CONF names one, never because it lies in the working folder.
    """
    for name, value in DEFAULTS.items():
        setattr(options, name, value)
    try:
        command.apply_env_options()
        options.logging = "none"  # or reading the file below would set up tornado's own logging
        if options.conf != DEFAULT_CONFIG_FILE:
            command.apply_options("forebay dashboard", [])
    except (ValueError, OptionError, OSError) as error:
        raise InvalidInput(f"one of Flower's options (FLOWER_… in the environment) is invalid: {error}") from error
    if options.persistent:
        raise InvalidInput(
            "FLOWER_PERSISTENT keeps pickles, which Forebay never reads; unset it, jobs are in the ledger"
        )
    if options.unix_socket:
        raise InvalidInput("FLOWER_UNIX_SOCKET is not supported; unset it, and give the dashboard a host and a port")
    options.address, options.port = host, port
    options.basic_auth = check_credentials(options.basic_auth)
    check_access(host, authenticated=bool(options.basic_auth or options.auth))
    command.extract_settings()
    command.setup_logging()


def check_credentials(given: list[str]) -> list[str]:
    """FLOWER_BASIC_AUTH's non-empty entries; InvalidInput for one that no login could match."""
    credentials = [entry for entry in given if entry]
    for entry in credentials:
        user, _, password = entry.partition(":")
        if not (user and password and entry.isascii()):  # the value is a secret and stays out of the message
            raise InvalidInput(
                "FLOWER_BASIC_AUTH must be user:password in ASCII, several of them separated by commas; "
                "a password cannot hold a comma"
            )
    return credentials


def check_access(host: str, *, authenticated: bool) -> None:
    """InvalidInput when a host cannot be resolved, or when other machines could get in without a login."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{host!r} is not an address to listen on: {error}") from error
    if authenticated or all(ip_address(str(entry[4][0])).is_loopback for entry in found):
        return
    raise InvalidInput(
        f"on {host!r} everyone who can reach this machine could open the dashboard: set FLOWER_BASIC_AUTH=user:password "
        "(or Flower's OAuth options, FLOWER_AUTH and FLOWER_AUTH_PROVIDER), or listen on 127.0.0.1"
    )
