"""Thousands of damaged files: none ends a client, none costs a worker more than its child, each is named in its error."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import digits
from support.damage import ENDINGS, Sweep, files, good_files

GROWS = 700 << 20  # what a client may take to decode the first rows of what it accepts


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path)
    yield sweep
    sweep.close()


@pytest.mark.parametrize("each", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damaged_file_ends_a_client_or_is_refused_without_its_name(sweep: Sweep, tmp_path: Path, each: int) -> None:
    good = good_files(tmp_path, digits.export(digits.network(), tmp_path / "good.pt2"))
    for format, whole in good.items():
        sweep.take(format, 999_999, whole[0])
        assert sweep.counts[format, "ran"] == 1, f"{format}: {sweep}"
    for format, number, data in files(good, each):
        sweep.take(format, number, data)
    print(sweep)  # noqa: T201 - figures to report
    assert sum(sweep.counts.values()) == (each + 1) * len(ENDINGS)
    assert all(sweep.counts[format, "refused"] >= each // 10 for format in ENDINGS)
    assert {outcome for _, outcome in sweep.counts} <= {"refused", "ran", "memory", "died"}, sweep
    assert sweep.grown < GROWS
    assert len(sweep.deaths) <= each // 100, sweep.deaths
