"""How many requests an endpoint is sent at once, by a clock of the test's own."""

from forebay.worker.runtimes.remote.concurrency import LONGEST_PAUSE_S, START, Concurrency
from support.waiting import FakeClock


def window(clock: FakeClock) -> Concurrency:
    return Concurrency(clock, draw=lambda: 1.0)


def fill(of: Concurrency, most: int = 1000) -> int:
    """Send as many as may be; how many run then."""
    while of.free(most):
        of.running += 1
    return of.running


def answer_all(of: Concurrency) -> None:
    for _ in range(of.running):
        of.running -= 1
        of.succeeded()


def test_it_begins_with_ten_and_sends_one_more_after_each_window_that_went_well() -> None:
    of = window(FakeClock())
    seen = []
    for _ in range(4):
        seen.append(fill(of))
        answer_all(of)
    assert seen == [START, START + 1, START + 2, START + 3]


def test_a_version_that_allows_fewer_gets_fewer() -> None:
    assert fill(window(FakeClock()), most=3) == 3


def test_a_window_that_was_not_filled_lets_no_more_through() -> None:
    of = window(FakeClock())
    for _ in range(100):
        assert of.free(1000)
        of.running += 1
        answer_all(of)
    assert of.limit == START


def test_an_error_halves_it_once_for_all_requests_that_were_on_their_way() -> None:
    clock = FakeClock()
    of = window(clock)
    sent_at = clock()
    clock.forward(1)
    for _ in range(8):
        of.failed(sent_at)
    assert of.limit == START // 2
    of.failed(clock())
    assert of.limit == START // 4
    for _ in range(5):
        clock.forward(1)
        of.failed(clock())
    assert of.limit == 1


def test_nothing_is_sent_before_the_time_that_the_server_names() -> None:
    clock = FakeClock()
    of = window(clock)
    of.refused(clock(), 7.0)
    of.refused(clock() - 1, 2.0)  # of a request that was sent before; the longer of the two counts
    clock.forward(6.9)
    assert not of.free(1000)
    clock.forward(0.2)
    assert of.free(1000)


def test_a_server_that_names_no_time_is_left_alone_for_longer_each_time_in_a_row() -> None:
    clock = FakeClock()
    of = window(clock)
    pauses = []
    for _ in range(9):
        of.refused(clock(), None)
        pauses.append(of.pause_s())
        clock.forward(of.pause_s())
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    of.succeeded()
    of.refused(clock(), None)
    assert of.pause_s() <= 0
