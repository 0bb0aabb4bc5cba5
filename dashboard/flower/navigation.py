"""One navigation for our pages and Flower's: our templates come first, and Flower's own have our name, our tabs (tabs.html,
with Flower's under "Celery") and our style sheet.

No template of Flower's is copied; the three that are extended are checked for the marks we know when they are loaded.
"""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

from forebay.contract.errors import ForebayError

TEMPLATES = Path(__file__).parents[1] / "templates"
BRAND = "<span>Flower</span>"
TABS_BEGIN, TABS_END = '<ul class="app-nav navbar-nav">', "</ul>"
HEAD_END = "</head>"
SCRIPT = '<script type="text/javascript">'  # the only one that stands in a page instead of in a file


class TemplateLoader(Loader):  # type: ignore[misc] # tornado's types are not followed
    """Flower's template loader, which looks in our folder first."""

    def _create_template(self, name: str) -> Template:
        """For a name that is not loaded yet: the one hook that tornado's Loader offers."""
        own = TEMPLATES / name
        path = own if own.is_file() else Path(self.root) / name
        source = path.read_text(encoding="utf-8")
        if name == "navbar.html":
            before, flowers = _split(source, TABS_BEGIN)
            source = f'{before}{{% include "tabs.html" %}}{_split(flowers, TABS_END)[1]}'
            before, after = _split(source, BRAND)
            source = f"{before}<span>Forebay</span>{after}"
        elif name == "base.html":
            before, after = _split(source, HEAD_END)
            source = f'{before}<link rel="stylesheet" href="{{{{ asset(\'forebay.css\') }}}}">\n  {HEAD_END}{after}'
        elif name == "workers.html":
            before, after = _split(source, SCRIPT)
            source = f'{before}<script nonce="{{{{ script_nonce() }}}}">{after}'
        for title in ("· Flower{% end %}", "{% block title %}Flower{% end %}"):
            source = source.replace(title, title.replace("Flower", "Forebay"), 1)
        return Template(source, name=name, loader=self)


def _split(source: str, mark: str) -> tuple[str, str]:
    before, found, after = source.partition(mark)
    if not found:
        raise ForebayError(
            f"this Flower's templates are not those that Forebay extends (no {mark}): install flower 2.2"
        )
    return before, after
