"""/openapi.json tells of every native route, and of no other."""

import json

from forebay.api.context import SCOPES
from forebay.api.openapi import OPERATIONS, document, routes_by_operation


def test_every_native_route_is_described_and_nothing_else() -> None:
    assert OPERATIONS.keys() == routes_by_operation().keys()


def test_every_reference_in_the_document_leads_somewhere() -> None:
    text = document().decode()
    found = json.loads(text)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= found["components"]["schemas"].keys()
    assert all(op["summary"] for path in found["paths"].values() for op in path.values())


def test_every_native_handler_declares_the_scope_it_needs() -> None:
    for route in routes_by_operation().values():
        assert getattr(route.endpoint, "scope", None) in SCOPES, route.path
