"""The Jobs page's form: what its fields mean, what is refused, and that a query string gives the same form again."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState
from forebay.dashboard.reads.job_filter import FIELDS, JobFilterForm
from forebay.storage.jobs.views import JobFilter

ID = "01a204c77c89704899d5c2d2d8f9b34e"


def test_an_empty_form_means_every_job() -> None:
    form = JobFilterForm.parse(dict.fromkeys(FIELDS, "  "))
    assert (form.filter, form.query()) == (JobFilter(), "")


def test_every_field_has_its_meaning() -> None:
    given = {
        "state": "failed", "kind": "predict", "model": "digits/3", "queue": "cpu", "worker": "cpu@host",
        "metadata": 'user=ada, n=1, flag=true, text="1", list=[1, 2]', "since": "2026-11-22T14:30",
        "until": "2026-11-22T14:30:00+01:00", "id": "01A2", "parent": ID,
    }  # fmt: skip
    assert JobFilterForm.parse(given).filter == JobFilter(
        JobState.FAILED, JobKind.PREDICT, "digits", 3, "cpu", "cpu@host", ID, "01a2", 1795357800.0, 1795354200.0,
        {"user": "ada", "n": 1, "flag": True, "text": "1", "list": [1, 2]},
    )  # fmt: skip


def test_an_alias_is_kept_until_it_is_resolved() -> None:
    form = JobFilterForm.parse({"model": "digits@champion"})
    assert form.model is not None
    assert form.model.alias == "champion"
    assert form.filter == JobFilter(model="digits")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("state", "done", "'done' is not a state; use one of queued"),
        ("kind", "<b>", "'<b>' is not a kind"),
        ("model", "a/b/c", "not a valid model reference"),
        ("metadata", "user", "metadata 'user' is not key=value"),
        ("metadata", "=1", "is not key=value"),
        ("since", "yesterday", "since 'yesterday' is not a time"),
        ("until", "9999-99-99T00:00", "is not a time"),
        ("id", "xyz", "is not the start of a job id"),
        ("id", "0" * 33, "is not the start of a job id"),
        ("parent", "01a2", "is not a valid job id"),
    ],
)
def test_an_invalid_field_is_refused_with_its_value(field: str, value: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words.replace("(", r"\(")):
        JobFilterForm.parse({field: value})


@given(st.fixed_dictionaries({name: st.text(max_size=20) for name in FIELDS}))
def test_any_text_is_understood_or_refused(fields: dict[str, str]) -> None:
    try:
        form = JobFilterForm.parse(fields)
    except InvalidInput:
        return
    assert JobFilterForm.parse(dict(parse_qsl(form.query().removeprefix("?"), keep_blank_values=True))) == form


def test_a_query_can_be_changed_in_one_field() -> None:
    form = JobFilterForm.parse({"state": "failed", "queue": "a&b"})
    assert form.query(state="queued", before=ID) == f"?state=queued&queue=a%26b&before={ID}"
    assert form.query(state=None) == "?queue=a%26b"
