"""Our pages in Flower's navigation: our templates come first, and Flower's own include our tabs (tabs.html) and style sheet.

No template of Flower's is copied; the two that are extended are checked for the marks we know when they are loaded.
"""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

from forebay.contract.errors import ForebayError

TEMPLATES = Path(__file__).parents[1] / "templates"
FLOWER_TABS = '<ul class="app-nav navbar-nav">'
HEAD_END = "</head>"


class TemplateLoader(Loader):  # type: ignore[misc] # tornado's types are not followed
    """Flower's template loader, which looks in our folder first."""

    def _create_template(self, name: str) -> Template:
        """For a name that is not loaded yet: the one hook that tornado's Loader offers."""
        own = TEMPLATES / name
        path = own if own.is_file() else Path(self.root) / name
        source = path.read_text(encoding="utf-8")
        if name == "navbar.html":
            source = _insert_before(source, FLOWER_TABS, '{% include "tabs.html" %}\n')
            source = source.replace(
                FLOWER_TABS, '<ul class="app-nav app-nav-celery navbar-nav" aria-label="Celery">', 1
            )
        elif name == "base.html":
            source = _insert_before(source, HEAD_END, '<link rel="stylesheet" href="{{ asset(\'forebay.css\') }}">\n  ')
        return Template(source, name=name, loader=self)


def _insert_before(source: str, mark: str, addition: str) -> str:
    if mark not in source:
        raise ForebayError(
            f"this Flower's templates are not those that Forebay extends (no {mark}): install flower 2.2"
        )
    return source.replace(mark, addition + mark, 1)
