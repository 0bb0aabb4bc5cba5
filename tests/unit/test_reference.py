"""The reference is what the code says, and leaves nothing out."""

import inspect
import re
from pathlib import Path

from docs.generate.cli import commands
from docs.generate.events import EVENTS
from docs.generate.http_api import DOCUMENT, OTHERS, TEXT, routes
from docs.generate.log_events import PARTS, logged
from docs.generate.pages import DOCS, generated

import forebay
from forebay.api.app import GROUPS
from forebay.api.inference.requests import InferenceRequest
from forebay.api.native.bodies import Submit
from forebay.api.openai.batches import CreateBatch
from forebay.contract import errors
from forebay.contract.metrics.declared import METRICS, PREFIX
from forebay.contract.settings import SETTINGS
from forebay.storage.ledger.tables import metadata

PAGES = generated()
INTERNAL = {
    "clear_outcome",
    "forget_future",
    "has_inline_result",
    "set_outcome",
    "submitting_for",
    "why_late",
}  # of Forebay's parts


def headings(page: str) -> list[str]:
    """The headings below a page's title, without the backslashes of Markdown."""
    found = re.findall(r"^##+ (.+)$", Path(DOCS, "reference", page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [heading.replace("\\", "") for heading in found]


def section(page: str, heading: str) -> str:
    text = Path(DOCS, "reference", page).read_text(encoding="utf-8")
    found = re.search(rf"^##+ {re.escape(heading)}$\n(.*?)(?=^##+ |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def test_every_generated_page_is_what_the_generator_gives() -> None:
    old = [name for name, text in PAGES.items() if Path(DOCS, name).read_text(encoding="utf-8") != text]
    assert not old, "run python -m docs.generate"


def test_no_page_has_two_headings_alike() -> None:
    for page in Path(DOCS, "reference").glob("*.md"):
        assert len(headings(page.name)) == len(set(headings(page.name))), page.name


def test_every_setting_is_there_with_its_variable_and_its_default() -> None:
    assert headings("settings.md") == list(SETTINGS)
    for name, setting in SETTINGS.items():
        text = section("settings.md", name)
        assert f"`FOREBAY_{name.upper()}`" in text
        if not setting.without and setting.default != ():  # else it says in words what holds
            (default,) = re.findall(r"^- Default: `(.+)`$", text, flags=re.MULTILINE)
            assert setting.kind.parse(default) == setting.default, name


def test_every_metric_is_there_with_its_labels() -> None:
    assert {PREFIX + name for name in METRICS} <= set(headings("metrics.md"))
    for name, metric in METRICS.items():
        assert all(f"`{label}`" in section("metrics.md", PREFIX + name) for label in metric.labels)


def test_every_event_that_is_logged_is_declared_and_the_other_way_round() -> None:
    assert {call.event for call in logged()} == set(EVENTS)
    assert headings("log-events.md") == sorted(EVENTS)


def test_no_event_is_overlooked_where_the_source_is_read_as_text() -> None:
    text = "".join(path.read_text("utf-8") for part in PARTS for path in Path(DOCS.parent, part).rglob("*.py"))
    found = set(
        re.findall(r'\b(?:log\.(?:debug|info|warning|error|exception)|write|log\.info\))\(\s*"([a-z_]+)"', text)
    )
    assert len(found) > 100
    assert found <= set(EVENTS)


def test_every_error_is_there_with_its_base() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ForebayError)]
    assert headings("errors.md") == [kind.__name__ for kind in kinds]
    assert all(f"`{kind.__bases__[0].__name__}`" in section("errors.md", kind.__name__) for kind in kinds)


def test_every_command_is_there_with_its_arguments_and_options() -> None:
    found = {context.command_path: command for context, command in commands()}
    assert headings("cli.md") == list(found)
    assert {"forebay up", "forebay jobs list", "forebay db upgrade"} <= set(found)
    for path, command in found.items():
        text = section("cli.md", path)
        for parameter in command.params if not hasattr(command, "list_commands") else ():
            wanted = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
            assert all(re.search(rf"[`, \[]{re.escape(name)}", text) for name in wanted if name != "--help"), (
                path,
                wanted,
            )


def test_every_public_name_is_there_with_its_methods_and_says_what_it_is() -> None:
    listed = {*headings("python.md"), *headings("errors.md")}
    assert set(forebay.__all__) <= listed
    for kind in (getattr(forebay, name) for name in forebay.__all__):
        assert kind.__doc__
        for owner in inspect.getmro(kind) if inspect.isclass(kind) else ():
            for name, value in vars(owner).items() if owner.__module__.startswith("forebay.") else ():
                if (
                    name[0] != "_"
                    and name not in INTERNAL
                    and (inspect.isfunction(value) or isinstance(value, property))
                ):
                    assert f"{owner.__name__}.{name}" in listed
                    assert value.__doc__, (owner, name)


def test_the_classes_that_the_client_leads_to_are_there() -> None:
    wanted = {
        "Models.register",
        "AsyncModels.register",
        "Retraining.add",
        "Trial",
        "PredictOptions",
        "Signature",
        "Drift",
    }
    assert wanted <= set(headings("python.md"))


def test_every_route_is_there_with_its_scope_and_every_body_with_its_fields() -> None:
    for route in (route for group in GROUPS for route in group.routes):
        path = re.sub(r":\w+}", "}", route.path)  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}:  # type: ignore[attr-defined]
            text = section("http.md", f"{method} {path}")
            assert re.match(r"\n[^-\n]{5}", text), (method, path)  # says what it does
            assert f"Scope: `{getattr(route.endpoint, 'scope', '')}`" in text or not hasattr(route.endpoint, "scope")  # type: ignore[attr-defined]
    for kind in (Submit, CreateBatch, InferenceRequest):
        assert all(f"`{field}`" in section("http.md", kind.__name__) for field in kind.__struct_fields__)
    there = {f"{method} {path}" for method, path, _ in routes()}
    assert not OTHERS.keys() - there
    known = {*OTHERS, *TEXT, *(f"{m.upper()} {path}" for path, of in DOCUMENT["paths"].items() for m in of)}
    assert {route for route in there - known if not route.startswith(("GET ", "DELETE "))} == {
        "POST /v2/repository/models/{name}/unload"  # its body is not read
    }


def test_every_table_and_column_says_what_it_means() -> None:
    silent = [
        f"{table}.{column.name}" for table in metadata.tables.values() for column in table.columns if not column.comment
    ]
    assert not silent + [name for name, table in metadata.tables.items() if not table.comment]


def test_every_table_is_there_with_its_columns_and_indexes() -> None:
    assert headings("database.md") == sorted(metadata.tables)
    for table in metadata.tables.values():
        text = section("database.md", table.name)
        assert all(f"| `{column.name}` |" in text for column in table.columns)
        assert all(f"`{index.name}`" in text for index in table.indexes)
