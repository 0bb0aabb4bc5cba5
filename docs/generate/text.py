"""Markdown from values."""

from __future__ import annotations

import re
from collections.abc import Iterable

from forebay.contract import errors
from forebay.contract.settings import SETTINGS


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def listed(names: Iterable[str]) -> str:
    """The names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def linked(text: str) -> str:
    """The text with each setting and error that it names in backticks made a link to where the reference has it."""

    def link(found: re.Match[str]) -> str:
        if found[1] in SETTINGS:
            return f"[{found[0]}](settings.md#{found[1]})"
        return f"[{found[0]}](errors.md#{found[1].lower()})" if found[1] in ERRORS else found[0]

    return re.sub(r"(?<!\[)`(\w+)`(?!\])", link, text)


ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ForebayError)
}
