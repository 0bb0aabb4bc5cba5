"""Our pages in Flower's navigation: templates of ours come first, Flower's own get our tabs and style sheet added.

No template of Flower's is copied; the two that are added to are held against what we know of them when they are read.
"""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

from forebay.contract.errors import ForebayError

OURS = Path(__file__).parents[1] / "templates"
TABS = (
    ("overview", "Overview"),
    ("jobs", "Jobs"),
    ("batches", "Batches"),
    ("training", "Training"),
    ("models", "Models"),
    ("devices", "Devices"),
)

FLOWERS_TABS = '<ul class="app-nav navbar-nav">'
END_OF_HEAD = "</head>"

_TAB = """
<li class="nav-item">
  <a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}" href="{{{{ reverse_url('{name}') }}}}"
    {{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a>
</li>"""


class Templates(Loader):  # type: ignore[misc] # tornado's types are not followed
    """Flower's template loader, which looks in our folder first."""

    def _create_template(self, name: str) -> Template:
        """Called by tornado for a name it has not met; the one underscore hook that its Loader offers."""
        own = OURS / name
        path = own if own.is_file() else Path(self.root) / name
        source = path.read_text(encoding="utf-8")
        if name == "navbar.html":
            ours = f'<ul class="app-nav navbar-nav" aria-label="Forebay">{"".join(map(_tab, TABS))}</ul>\n'
            source = _put_before(source, FLOWERS_TABS, ours)
            source = source.replace(
                FLOWERS_TABS, '<ul class="app-nav app-nav-celery navbar-nav" aria-label="Celery">', 1
            )
        elif name == "base.html":
            source = _put_before(source, END_OF_HEAD, '<link rel="stylesheet" href="{{ asset(\'forebay.css\') }}">\n  ')
        return Template(source, name=name, loader=self)


def _tab(tab: tuple[str, str]) -> str:
    name, title = tab
    return _TAB.format(name=name, title=title)


def _put_before(source: str, mark: str, addition: str) -> str:
    if mark not in source:
        raise ForebayError(f"this Flower's pages are others than Forebay knows (no {mark}): install flower 2.2")
    return source.replace(mark, addition + mark, 1)
