"""Which pages are generated, and what they are made of."""

from __future__ import annotations

from pathlib import Path

from docs.generate import cli, database, declared, error_tree, http_api, log_events, python_api, train_tables

DOCS = Path(__file__).resolve().parents[1]
TABLES = ("how-to/train.md", "how-to/tune.md")  # with tables among what is written by hand
NOTE = "<!-- Written by `python -m docs.generate`; change the code, not this page. -->"
REFERENCE = {
    "python": python_api.python,
    "cli": cli.cli,
    "settings": declared.settings,
    "metrics": declared.metrics,
    "log-events": log_events.log_events,
    "errors": error_tree.errors,
    "http": http_api.http,
    "database": database.database,
}


def generated() -> dict[str, str]:
    """Each page's text by its name below docs/."""
    pages = {f"reference/{name}.md": f"{NOTE}\n\n{page().strip()}\n" for name, page in REFERENCE.items()}
    return pages | {page: train_tables.written(DOCS.joinpath(page).read_text(encoding="utf-8")) for page in TABLES}
