"""Markdown from values."""

from __future__ import annotations

from collections.abc import Iterable


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def listed(names: Iterable[str]) -> str:
    """The names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)
