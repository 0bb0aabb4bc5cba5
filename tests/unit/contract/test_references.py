"""Model references, aliases and job ids: what is accepted, and that everything else is refused in printable words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.job import new_ids
from forebay.contract.references import (
    MAX_VERSION,
    ModelRef,
    check_alias,
    check_job_id,
    check_name,
    described,
    shown,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(lambda name: ".." not in name)
ALIASES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,63}", fullmatch=True)
VERSIONS = st.integers(1, MAX_VERSION)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("digits", ModelRef("digits")),
        ("digits/3", ModelRef("digits", version=3)),
        ("digits@champion", ModelRef("digits", alias="champion")),
        ("all-MiniLM-L6_v2.1", ModelRef("all-MiniLM-L6_v2.1")),
        (f"m/{MAX_VERSION}", ModelRef("m", version=MAX_VERSION)),
        ("a" * 100, ModelRef("a" * 100)),
    ],
)
def test_the_three_forms_are_understood(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref


@given(NAMES, st.one_of(st.none(), VERSIONS), st.one_of(st.none(), ALIASES))
def test_a_reference_survives_being_written_and_read(name: str, version: int | None, alias: str | None) -> None:
    ref = ModelRef(name, version, None if version else alias)
    assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["../../x", "a..b", "..", ".hidden", "/etc/passwd", "a/../b", "a\\b"])
def test_a_name_that_climbs_out_of_the_registry_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a valid model reference"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\x00",
        "\x1b[31m",
        "modèle",
        "模型",
        "a\u202e",
        "\ud800",
        "a" * 101,
        "-a",
        "_a",
    ],
)
def test_a_name_of_other_characters_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelRef.parse(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["a/0", "a/-1", "a/+1", "a/03", "a/1.0", "a/x", "a/", "a//1", "a/3@x", "a/3/4", "a/٣", f"a/{MAX_VERSION + 1}"],
)
def test_a_version_that_is_no_positive_32_bit_integer_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="name/3"):
        ModelRef.parse(text)


@pytest.mark.parametrize("text", ["a@", "@x", "a@x/3", "a@x@y", "a@1", "a@x y", "a@" + "x" * 65])
def test_a_malformed_alias_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        ModelRef.parse(text)


@pytest.mark.parametrize("value", [None, 3, 3.5, b"digits", ["digits"], ModelRef("digits"), object(), [10**5000]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        ModelRef.parse(value)  # type: ignore[arg-type]


@given(st.text())
def test_any_text_is_a_reference_or_invalid_input_with_a_printable_message(text: str) -> None:
    said = ""
    try:
        assert str(ModelRef.parse(text)) == text
    except InvalidInput as error:
        said = str(error)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 400


def test_the_message_quotes_the_value_and_the_legal_forms() -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelRef.parse("../../x")
    for part in ("'../../x'", "'name'", "'name/3'", "'name@alias'"):
        assert part in str(caught.value)


def test_a_reference_cannot_be_built_with_illegal_parts() -> None:
    for parts in [("../x",), ("a", 0), ("a", True), ("a", 1, "x"), ("a", None, "1")]:
        with pytest.raises(InvalidInput):
            ModelRef(*parts)  # type: ignore[arg-type]


def test_names_aliases_and_job_ids_are_checked_by_themselves() -> None:
    assert check_name("digits") == "digits"
    assert check_alias("champion") == "champion"
    job_id = new_ids(1)[0]
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "value", ["", "x", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n", "g" * 32, 12, None, "\ud800"]
)
def test_what_has_not_the_form_of_a_job_id_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="32 digits"):
        check_job_id(value)  # type: ignore[arg-type]


@given(st.recursive(st.one_of(st.text(), st.binary(), st.integers(), st.none()), st.lists))
def test_any_value_is_shown_on_one_short_printable_line(value: object) -> None:
    assert len(shown(value)) <= 80
    assert shown(value).isascii()
    assert shown(value).isprintable()


def test_showing_a_value_survives_a_broken_repr() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "Broken" in shown(Broken())
    assert "Broken" in described(Broken())
