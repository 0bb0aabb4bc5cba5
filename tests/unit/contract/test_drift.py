"""Sketches and how far apart two of them are: what is one distribution, and what is not."""

from typing import Any

import numpy as np
import pytest

from forebay.contract.drift.comparison import DRIFTED, LEAST_ROWS, Drift, compare
from forebay.contract.drift.sketch import MAX_ROWS, WIDTH, Reference, ReferenceBuilder, Sketcher
from forebay.contract.signature import Field, Signature

FIELDS = (
    Field("x", "float32", (6,)), Field("age", "float32", cell=True), Field("town", "str", cell=True),
    Field("rooms", "int64"), Field("note", "str"), Field("image", "uint8", (8, 8, 3)), Field("tags", "json"),
)  # fmt: skip
SEEDS = range(20)


def rows(seed: int, count: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "x": draw.normal(size=(count, 6)).astype(np.float32),
        "age": np.where(draw.random(count) < 0.1, np.nan, draw.exponential(30, count)).astype(np.float32),
        "town": [f"t{n}" for n in draw.zipf(1.6, count) % 60],
        "rooms": draw.poisson(2, count),
        "note": ["a" * n for n in draw.integers(1, 400, count)],
        "image": draw.integers(0, 256, (count, 8, 8, 3), np.uint8),
        "tags": [["json"]] * count,
    }


def referred(values: dict[str, Any], fields: tuple[Field, ...] = FIELDS) -> Reference:
    builder = ReferenceBuilder("input", fields)
    builder.add(values)
    return Reference(tuple(builder.columns()), "these", tuple(builder.unwatched))


def drift_of(reference: Reference, *served: dict[str, Any], fields: tuple[Field, ...] = FIELDS) -> Drift:
    sketcher = Sketcher(reference, Signature(fields))
    counts = sketcher.zeros()
    for values in served:
        sketcher.count("input", values, counts)
    return compare("m/1", 24, reference, 0, counts)


def named(drift: Drift) -> list[str]:
    return [column.name for column in drift.drifted]


@pytest.mark.parametrize(("before", "now"), [(2000, 2000), (200, 5000), (5000, LEAST_ROWS), (50, LEAST_ROWS)])
def test_the_same_distribution_raises_no_alarm_in_20_of_20_runs(before: int, now: int) -> None:
    alarms = [drift_of(referred(rows(seed, before)), rows(1000 + seed, now)).drifted for seed in SEEDS]
    assert alarms == [[]] * len(SEEDS)


@pytest.mark.parametrize("column", ["x[3]", "age", "rooms"])
def test_a_column_shifted_by_one_standard_deviation_is_named_and_no_other_is(column: str) -> None:
    found = []
    for seed in SEEDS:
        served = rows(1000 + seed, 500)
        field, _, element = column.partition("[")
        values = served[field][:, int(element[:-1])] if element else served[field]
        shift = np.nanstd(values)
        values += values.dtype.type(round(shift) if field == "rooms" else shift)
        found.append(named(drift_of(referred(rows(seed, 2000)), served)))
    assert found == [[column]] * len(SEEDS)


def test_the_psi_of_one_distribution_is_about_0_however_few_the_rows() -> None:
    psis = [
        c.psi or 0.0 for seed in SEEDS for c in drift_of(referred(rows(seed, 500)), rows(99 + seed, LEAST_ROWS)).columns
    ]
    assert np.mean(psis) < 0.03


def test_below_the_least_number_of_rows_nothing_is_said() -> None:
    served = rows(1, LEAST_ROWS - 1)
    served["x"] += 5
    drift = drift_of(referred(rows(0, 1000)), served)
    assert {(c.psi, c.drifted) for c in drift.columns} == {(None, False)}
    assert drift.worst is None


def test_missing_and_new_values_and_those_out_of_range_are_told_and_are_drift() -> None:
    served = rows(1, 1000)
    served["age"][:300] = np.nan
    served["rooms"] = served["rooms"] + 100
    served["town"] = ["elsewhere"] * 400 + served["town"][400:]
    drift = drift_of(referred(rows(0, 2000)), served)
    by_name = {column.name: column for column in drift.columns}
    assert sorted(named(drift)) == ["age", "rooms", "town"]
    assert by_name["age"].missing > 0.3 > 0.15 > by_name["age"].missing_before
    assert by_name["rooms"].out_of_range == 1.0
    assert 0.4 <= (by_name["town"].new or 0) < 0.45


def test_a_column_that_never_changed_drifts_when_it_does() -> None:
    fields = (Field("x", "float32"),)
    reference = referred({"x": np.zeros(500, np.float32)}, fields)
    assert named(drift_of(reference, {"x": np.zeros(500, np.float32)}, fields=fields)) == []
    assert named(drift_of(reference, {"x": np.ones(500, np.float32)}, fields=fields)) == ["x"]


def test_a_float32_falls_into_the_cell_of_the_float64_that_it_was_made_of() -> None:
    values = np.random.default_rng(0).choice([0.1, 0.2, 0.3], 3000)  # 0.1 as float32 is more than 0.1
    fields = (Field("x", "float32"),)
    drift = drift_of(referred({"x": values}, fields), {"x": values.astype(np.float32)}, fields=fields)
    assert drift.columns[0].psi == 0.0


def test_rows_as_lists_count_as_arrays_do() -> None:
    reference, values = referred(rows(0, 300)), rows(1, 200)
    listed = {name: list(column) for name, column in values.items()}
    assert drift_of(reference, values) == drift_of(reference, listed)
    parts = ({name: column[i : i + 50] for name, column in values.items()} for i in range(0, 200, 50))
    assert drift_of(reference, *parts) == drift_of(reference, values)


def test_arrays_are_watched_by_mean_and_deviation_texts_by_length_and_json_is_not() -> None:
    reference = referred(rows(0, 300))
    names = [column.name for column in reference.columns]
    elements = [f"x[{i}]" for i in range(6)]
    assert names == [*elements, "age", "town", "rooms", "note (length)", "image (mean)", "image (deviation)"]
    assert reference.unwatched == ("input tags: json is not watched",)


def test_arrays_of_free_size_are_watched_by_size_too() -> None:
    fields = (Field("x", "float32", (-1, 2)),)
    draw = np.random.default_rng(0)
    ragged = [draw.normal(size=(n, 2)).astype(np.float32) for n in draw.integers(0, 9, 400)]
    reference = referred({"x": ragged}, fields)
    assert [column.name for column in reference.columns] == ["x (mean)", "x (deviation)", "x (size)"]
    longer = [np.concatenate([part, np.zeros((20, 2), np.float32)]) for part in ragged]
    assert "x (size)" in named(drift_of(reference, {"x": longer}, fields=fields))


def test_few_texts_are_categories_and_a_classifier_s_probabilities_have_the_names_of_its_classes() -> None:
    fields = (Field("label", "str"), Field("probabilities", "float32", (2,), classes=("cat", "dog")))
    draw = np.random.default_rng(0)
    chances = draw.dirichlet([1, 1], 400).astype(np.float32)
    builder = ReferenceBuilder("output", fields)
    builder.add({"label": ["cat" if p > 0.5 else "dog" for p in chances[:, 0]], "probabilities": chances})
    assert [(c.name, c.kind) for c in builder.columns()] == [
        ("label", "category"), ("probabilities[cat]", "number"), ("probabilities[dog]", "number"),
    ]  # fmt: skip


def test_a_sketch_has_one_size_however_many_rows_it_has_seen() -> None:
    builder = ReferenceBuilder("input", FIELDS[:1])
    for seed in range(6):
        assert not builder.full
        builder.add({"x": rows(seed, 4000)["x"]})
        if builder.full:
            break
    [*columns] = builder.columns()
    assert {len(column.counts) for column in columns} == {WIDTH}
    assert {sum(column.counts) for column in columns} == {MAX_ROWS}
    assert DRIFTED == 0.2


def test_rows_of_as_many_texts_as_ids_have_do_not_drift_from_rows_like_them() -> None:
    chance, field = np.random.default_rng(0), Field("id", "str", cell=True)
    drawn, served = ([f"v{i}" for i in chance.integers(0, 1000, 2000)] for _ in range(2))
    builder = ReferenceBuilder("input", (field,))
    builder.add({"id": drawn})
    reference = Reference(tuple(builder.columns()), "a test")
    sketcher = Sketcher(reference, Signature((field,), None))
    counts = sketcher.zeros()
    sketcher.count("input", {"id": served}, counts)
    assert not compare("m/1", 24, reference, 2000, counts).drifted
