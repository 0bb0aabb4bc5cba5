"""Histograms of the Devices page: ranges in words, from the first value to the last."""

from forebay.contract.metrics.statistics import Statistics
from forebay.dashboard.pages.devices import Bar, bars


def test_bars_run_from_the_first_value_to_the_last_over_all_models() -> None:
    stats = Statistics()
    for model, rows, times in (("a", 1, 2), ("a", 3, 1), ("b", 4, 3), ("b", 2000, 1)):
        stats.observe("batch_rows", rows, model, "1", times=times)
    found = bars(stats, "batch_rows")
    assert found[:3] == [Bar("1", 2, 0.5), Bar("2", 0, 0.0), Bar("3 to 4", 4, 1.0)]
    assert found[-1] == Bar("more than 1024", 1, 0.25)
    assert len(found) == 12


def test_shares_are_percentages() -> None:
    stats = Statistics()
    for share in (0.0, 0.07, 0.9):
        stats.observe("batch_padding_ratio", share, "a", "1")
    titles = [bar.title for bar in bars(stats, "batch_padding_ratio", percent=True)]
    assert titles == [
        "0 %",
        "up to 5 %",
        "up to 10 %",
        "up to 20 %",
        "up to 30 %",
        "up to 50 %",
        "up to 70 %",
        "more than 70 %",
    ]


def test_nothing_counted_gives_no_bars() -> None:
    assert bars(Statistics(), "batch_rows") == []
