"""What the pages name is there: commands with their options, settings, extras, files, links and headings."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import typer
import yaml

from forebay.cli.root import WRONG_USAGE
from forebay.contract import errors
from forebay.contract.errors import ForebayError, MissingExtra
from forebay.contract.settings import SETTINGS
from support.command_lines import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXERCISE = "CONTRIBUTING.md"  # adds a command that is not there
# Of a command that is named without all that it needs.
NAMED_ONLY = ("NoArgsIsHelpError", "MissingParameter", "BadOptionUsage")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ |ExecStart=)?(?:sudo (?:-u \w+ )?)?(?:\w+=\S+ )*(?:/\S+/)?forebay((?: .*)?)$")
PART = re.compile(
    r"\b(?:contract|datasets|export|storage|producer|worker|dashboard|src|tests|bench|docs|examples)/[\w/.-]*\w"
)
HEADINGS = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> Iterator[str]:
    """What follows `forebay` in each command line of a page, in a block or between backticks."""
    text = text_of(page)
    for block in FENCE.finditer(text):
        lines = block[2].replace("\\\n", " ").splitlines() if block[1] in ("sh", "console", "ini") else []
        yield from (found[1] for line in lines if (found := COMMAND.match(line)))
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        if code.startswith("forebay ") and (found := COMMAND.match(code)):
            yield found[1]


@pytest.mark.parametrize("page", sorted({*PAGES} - {EXERCISE}))
def test_every_command_is_one_the_cli_takes(page: str) -> None:
    wrong = []
    for line in sorted(set(commands(page))):
        try:
            with suppress(typer.Exit):  # after an option that prints something, such as `--list-recipes`
                parse(shlex.split(re.split(r" [|>] ", line)[0], comments=True))
        except WRONG_USAGE as error:
            if type(error).__name__ not in NAMED_ONLY:
                wrong.append(f"forebay{line}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_is_a_setting(page: str) -> None:
    named = set(re.findall(r"\bFOREBAY_[A-Z_]*[A-Z]\b", re.sub(r"\(was [^)]*\)", "", text_of(page))))
    assert named <= {setting.variable for setting in SETTINGS.values()}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", FENCE.sub("", text_of(page))):
        address = target[0] or target[1]
        file, _, heading = address.partition("#")
        if address.startswith("http"):
            continue
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.exists() or (heading and heading not in headings(path)):
            dead.append(address)
    assert not dead


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADINGS.findall(path.read_text(encoding="utf-8")))
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", sorted({*PAGES} - {EXERCISE, "CHANGELOG.md"}))
def test_every_file_that_is_named_is_there(page: str) -> None:
    named = {found for found in PART.findall(FENCE.sub("", text_of(page))) if "NNNN" not in found}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_readme_is_short() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 130


def test_extras_that_are_named_are_declared() -> None:
    sources = [*(ROOT / page for page in PAGES), *(ROOT / "src" / "forebay").rglob("*.py"), ROOT / ".ci" / "run"]
    for part in ("datasets", "export", "storage", "producer", "worker", "dashboard", "api"):
        sources += (ROOT / part).rglob("*.py")
    named: set[str] = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        lists = re.findall(r"(?:forebay|\.whl\)?|'\.)\[([a-z,0-9]+)\]", text)
        lists += re.findall(r"MissingExtra\(\s*f?\"[^\"]*\", \"(\w+)\"\s*\)", text)
        named |= {extra for one in lists for extra in one.split(",")}
    assert named >= {"batch", "worker", "postgres", "dashboard", "embedded", "text"}
    assert named <= set(EXTRAS)


def test_a_missing_extra_says_how_it_is_installed() -> None:
    assert str(MissingExtra("data sets need pyarrow", "batch", "batch")) == (
        "data sets need pyarrow: pip install 'forebay[batch]' where Forebay is installed"
    )
    assert str(MissingExtra("install s3fs")) == "install s3fs"


TROUBLESHOOT = "docs/how-to/troubleshoot.md"


def test_every_alert_leads_to_its_heading_in_troubleshooting() -> None:
    (group,) = yaml.safe_load(text_of("docs/monitoring/alerts.yml"))["groups"]
    text, anchors = text_of(TROUBLESHOOT), headings(ROOT / TROUBLESHOOT)
    for rule in group["rules"]:
        page, _, anchor = rule["annotations"]["runbook_url"].rpartition("#")
        assert page.startswith("{{ with $externalLabels.forebay_docs }}")  # set once, in prometheus.yml
        assert (page.rpartition("/")[2], anchor) == ("troubleshoot.html", rule["alert"].lower())
        assert anchor in anchors, f"{rule['alert']} has no heading in {TROUBLESHOOT}"
        urgency = "Page" if rule["labels"]["severity"] == "critical" else "Ticket"
        assert f"### {rule['alert']}\n\n{urgency}" in text, f"{rule['alert']} should say {urgency}"


def test_every_error_has_its_row_in_troubleshooting() -> None:
    named = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ForebayError)
    }
    rows = re.findall(r"^\| `(\w+)` \| \S", text_of(TROUBLESHOOT), re.MULTILINE)
    assert named - {*rows} == set()
    assert len(rows) == len({*rows})
