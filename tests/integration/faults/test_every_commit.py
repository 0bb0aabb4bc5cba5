"""A small run in which commits get no answer, each in turn: nothing is lost, doubled or falsely refused."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import structlog

from forebay.contract.errors import ForebayError
from forebay.worker.execution import backoff, retrying
from forebay.worker.execution.trying import measuring
from forebay.worker.kinds.batch import handler, pipeline, shards
from forebay.worker.kinds.train import follow
from support.commit_faults import faulty_database
from support.fault_proxy import Cut, Decide, Exchange
from support.ledgers import new_ledger
from support.model_run import ModelRun, UnreadableModelRun
from support.servers import new_database
from support.small_run import DisturbedRun, SmallRun, run_and_audit

log = structlog.get_logger()
_SPACES, _VALUES = re.compile(r"\s+"), re.compile(r"\$\d+|%\(\w+\)s|\?|:\w+")
Run = Callable[..., int]
FEWEST_KINDS = 30  # of transactions in a run


def label(exchange: Exchange) -> str:
    """What kind of transaction or statement it is, whatever its values are."""
    texts = exchange.transaction if exchange.is_commit else (exchange.text,)
    return " / ".join(_VALUES.sub("?", _SPACES.sub(" ", text)).strip()[:60] for text in texts)


class EachOnce:
    """Cuts before the first commit of each kind and after the second; of every exchange with `all_of_them`."""

    def __init__(self, all_of_them: bool = False) -> None:
        self._all = all_of_them
        self.seen: Counter[str] = Counter()

    def __call__(self, exchange: Exchange) -> Cut | None:
        if not (exchange.is_commit or self._all):
            return None
        name = label(exchange)
        self.seen[name] += 1
        return {1: Cut.BEFORE, 2: Cut.AFTER}.get(self.seen[name])


class Nth:
    """Cuts the nth commit of one kind, and notes the kinds that come."""

    def __init__(self, name: str, cut: Cut, number: int = 1) -> None:
        self._name, self._cut, self._left = name, cut, number
        self.seen: set[str] = set()
        self.struck = False

    def __call__(self, exchange: Exchange) -> Cut | None:
        if not exchange.is_commit:
            return None
        name = label(exchange)
        self.seen.add(name)
        self._left -= name == self._name
        if name != self._name or self._left != 0:
            return None
        self.struck = True
        return self._cut


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are split at once, and nothing waits for long."""
    monkeypatch.setattr(shards, "SPLIT_S", 0.005)
    monkeypatch.setattr(pipeline, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(handler, "GO_ON_S", 0.0)
    monkeypatch.setattr(backoff, "CAP_S", 0.1)
    monkeypatch.setattr(retrying, "LONGEST_S", 0.1)
    monkeypatch.setattr(follow, "TICK_S", 0.005)
    monkeypatch.setattr(measuring, "REPEATS", 1)
    monkeypatch.setattr(measuring, "LEAST_S", 0.0)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def small_run(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Run:
    """Run and audit, in a place of its own each time, with what is to be lost."""
    server = request.getfixturevalue("pg_url") if request.param == "postgres" else ""

    @contextmanager
    def place(folder: Path) -> Iterator[str]:
        if not server:
            yield f"sqlite:///{folder / 'ledger.db'}"
            return
        with new_database(server) as name:
            yield f"{server.replace('postgresql://', 'postgresql+psycopg://', 1)}/{name}"

    def run(lose: Decide, make: type[DisturbedRun] = SmallRun) -> int:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with place(folder) as database, faulty_database(database) as faulty:
            with new_ledger(database):
                pass
            faulty.lose(lose)
            return run_and_audit(folder, faulty, database, broker, make)

    return run


def test_a_run_survives_the_loss_of_each_kind_of_commit(small_run: Run) -> None:
    lose = EachOnce()
    assert small_run(lose), "shards were split"
    assert len(lose.seen) >= FEWEST_KINDS


ON_POSTGRES = pytest.mark.parametrize(
    "small_run", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


@ON_POSTGRES
def test_a_run_of_what_makes_and_watches_versions_survives_the_loss_of_each_kind_of_commit(small_run: Run) -> None:
    lose = EachOnce()
    small_run(lose, ModelRun)
    assert len(lose.seen) >= FEWEST_KINDS


@ON_POSTGRES
@pytest.mark.parametrize("make", [SmallRun, pytest.param(UnreadableModelRun, marks=pytest.mark.slow)])
def test_a_run_survives_a_cut_before_and_after_each_kind_of_statement(small_run: Run, make: type[DisturbedRun]) -> None:
    lose = EachOnce(all_of_them=True)
    small_run(lose, make)
    assert len(lose.seen) >= 2 * FEWEST_KINDS


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("make", "others"), [(SmallRun, None), (ModelRun, SmallRun)], ids=["small", "models"])
def test_each_commit_alone_may_get_no_answer(
    small_run: Run, make: type[DisturbedRun], others: type[DisturbedRun] | None
) -> None:
    """A run for each of the first two commits of each kind, cut before and after; of kinds that only a cut brings, too. Not of
    those that another run has already.
    """  # fmt: skip
    first, known = Nth("", Cut.BEFORE), Nth("", Cut.BEFORE)
    small_run(first, make)
    if others is not None:
        small_run(known, others)
    kinds, struck, faults = sorted(first.seen - known.seen), Counter[str](), list[str]()
    fewest = len(kinds)
    for number_of_kind, name in enumerate(kinds):
        for cut, number in product(Cut, (1, 2)):
            lose = Nth(name, cut, number)
            try:
                small_run(lose, make)
            except (AssertionError, ForebayError) as error:
                faults.append(f"{name}, {cut} number {number}: {type(error).__name__}: {error}"[:500])
            struck[cut] += lose.struck
            kinds += sorted(lose.seen - known.seen - set(kinds))  # the loop goes on to them
        log.info("kind_done", number=number_of_kind + 1, of=len(kinds), **struck, faults=len(faults), kind=name)
    assert not faults, "\n".join(faults)
    assert min(struck.values()) >= fewest
