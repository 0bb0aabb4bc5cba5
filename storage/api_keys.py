"""The keys that let programs in over HTTP: their names, what they may do, how long. Only a key's hash is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import IntegrityError

from forebay.contract.errors import InvalidInput
from forebay.contract.job import at, utc
from forebay.contract.references import shown
from forebay.storage.ledger import tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

SCOPES = ("submit", "read", "models", "admin")  # admin may do everything
PREFIX = "fb_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

ALL = Statement(
    "SELECT name, sha256, scopes, created_at, expires_at, revoked_at FROM api_keys ORDER BY created_at, name"
)
REVOKE = Statement("UPDATE api_keys SET revoked_at = :now WHERE name = :name AND revoked_at IS NULL RETURNING name")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without itself."""

    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    sha256: str

    def holds(self, now: float) -> bool:
        """Whether it lets anybody in at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at.timestamp())


class ApiKeys:
    """The keys in the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def create(self, name: str, scopes: Collection[str], expires_s: float | None = None) -> str:
        """A new key, which nobody can be told again; InvalidInput for a name that was ever used, or no scope there is."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{shown(name)} is not a key's name: 1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first"
            )
        unknown = next((scope for scope in scopes if scope not in SCOPES), None)
        if unknown is not None or not scopes:
            raise InvalidInput(f"{shown(unknown or '')} is not a scope; there are {', '.join(SCOPES)}")
        key, now = PREFIX + secrets.token_urlsafe(32), self.ledger.now()
        row = {
            "name": name, "sha256": hash_of(key), "scopes": ",".join(s for s in SCOPES if s in scopes), "created_at": now,
            "expires_at": None if expires_s is None else now + expires_s, "revoked_at": None,
        }  # fmt: skip
        try:
            with self.ledger.write() as connection:
                connection.execute(tables.api_keys.insert(), row)
        except IntegrityError as error:
            raise InvalidInput(f"there is or was a key called {name!r}; choose another name") from error
        return key

    def list(self) -> tuple[ApiKey, ...]:
        """Every key, the oldest first, those that are revoked or have expired too."""
        return tuple(
            ApiKey(
                row.name,
                tuple(row.scopes.split(",")),
                at(row.created_at),
                utc(row.expires_at),
                utc(row.revoked_at),
                row.sha256,
            )
            for row in self.ledger.rows(ALL)
        )

    def revoke(self, name: str) -> None:
        """Let nobody in by this key any more; InvalidInput when there is none of this name, or it was revoked before."""
        with self.ledger.write() as connection:
            done = REVOKE.execute(connection, name=name, now=self.ledger.now()).fetchall()
        if not done:
            raise InvalidInput(f"no key in use is called {shown(name)}; `forebay keys list` shows which there are")


def hash_of(key: str) -> str:
    """What the ledger keeps of a key. It is random and long, so that a plain hash tells nothing of it."""
    return hashlib.sha256(key.encode()).hexdigest()
