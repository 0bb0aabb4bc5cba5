"""`forebay keys`: who may come in over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from forebay.contract.setting_kinds import seconds
from forebay.producer.cli.commands import command, root
from forebay.producer.cli.options import Connect, argument, option
from forebay.producer.cli.output import age, print_json, print_line, print_note, print_table
from forebay.storage.api_keys import SCOPES, ApiKey, ApiKeys

keys_app = typer.Typer(help="API keys: who may come in over HTTP.", no_args_is_help=True)
root.add_typer(keys_app, name="keys")

Name = Annotated[str, argument("NAME", "What the key is called; jobs keep it.")]


@command(keys_app, "forebay keys create ada --scope submit,read --expires 90d")
def create(
    connect: Connect,
    name: Name,
    as_json: bool,
    scope: Annotated[str, option("SCOPES", f"By comma: {', '.join(SCOPES)}.", "--scope")] = "submit,read",
    expires: Annotated[
        str | None, option("TIME", "How long it is good for: 90d, 12h.", "--expires", default="for ever")
    ] = None,
) -> None:
    """Make a key and print it, once. From the first key on, every request needs one."""
    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    key = _keys(connect).create(name, scopes, None if expires is None else seconds(expires))
    if as_json:
        print_json({"name": name, "key": key})
        return
    print_line(key)
    print_note("it is shown only now: send it as `Authorization: Bearer …`")


@command(keys_app, "forebay keys list --json", name="list")
def list_(connect: Connect, as_json: bool) -> None:
    """Show every key, never the key itself."""
    api_keys = _keys(connect)
    found, now = api_keys.list(), api_keys.ledger.now()
    if as_json:
        print_json([_public(key) for key in found])
        return
    rows = [(key.name, ",".join(key.scopes), age(key.created_at), _standing(key, now)) for key in found]
    print_table(("NAME", "SCOPES", "AGE", "STATE"), rows, right=("AGE",))


@command(keys_app, "forebay keys revoke ada")
def revoke(connect: Connect, name: Name) -> None:
    """Let nobody in by this key any more, within seconds. Its name is never used again."""
    _keys(connect).revoke(name)
    print_line(f"revoked {name}")


def _keys(connect: Connect) -> ApiKeys:
    return ApiKeys(connect().session.ledger)


def _public(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _standing(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if not key.holds(now):
        return "expired"
    return "in use" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d %H:%M} UTC"
