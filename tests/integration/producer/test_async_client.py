"""AsyncClient against a real ledger: what one turn of the loop submits is one commit, and waiting holds nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from forebay import (
    AsyncClient,
    AsyncJob,
    ForebayError,
    InvalidInput,
    JobNotFound,
    JobState,
    LedgerUnavailable,
    ResultTimeout,
    Settings,
)
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.contract.wire.messages import announce_channel
from forebay.storage.jobs.records import Finished
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from support.servers import ValkeyServer

AWAY = "redis://127.0.0.1:1/0"
RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def settings(ledger: Ledger, tmp_path: Path) -> Settings:
    ModelRegistry(ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature()))
    given = {"HOME": str(tmp_path / "home"), "DATABASE": ledger.url, "BROKER": AWAY}
    return Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})


@asynccontextmanager
async def counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AsyncClient, list[int], list[int]]]:
    """A client, how many jobs each of its commits carried, and how many ids each of its messages."""
    commits: list[int] = []
    sent: list[int] = []
    async with AsyncClient(settings) as client:
        session = client.sync.session
        add, send = session.jobs.add, session.dispatcher.send

        def counting_add(jobs: Sequence[Any], **kwargs: Any) -> list[str]:
            commits.append(len(jobs))
            return add(jobs, **kwargs)

        def counting_send(messages: Sequence[Any]) -> None:
            sent.extend(len(message.args.ids) for message in messages)
            send(messages)

        monkeypatch.setattr(session.jobs, "add", counting_add)
        monkeypatch.setattr(session.dispatcher, "send", counting_send)
        yield client, commits, sent


def finish(store: JobStore, ids: Sequence[str], broker: str | None = None) -> None:
    """End these jobs as a worker does, each with its place as the result; announced where there is a broker."""
    store.claim(ids, "w", 30)
    ended = store.finish([Finished(id, 1, result=codec.encode(n)) for n, id in enumerate(ids)])
    if broker is not None:
        with redis.Redis.from_url(broker) as connection:
            connection.publish(announce_channel(str(ended[0].client)), ",".join(ids))


@pytest.mark.parametrize("run", RUNNERS)
def test_a_thousand_submits_at_once_share_few_commits_and_messages(
    settings: Settings, valkey: ValkeyServer, store: JobStore, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    async def main() -> None:
        async with counted(replace(settings, broker=valkey.url), monkeypatch) as (client, commits, sent):
            jobs = await asyncio.gather(*(client.predict("m", n) for n in range(1000)))
            assert commits == [1000]
            assert sum(sent) == 1000
            assert len(sent) <= 1000 // 32 + 1
            assert len({job.id for job in jobs}) == 1000
            assert len(store.queries.states([job.id for job in jobs])) == 1000

    run(main())


def test_what_arrives_during_a_commit_shares_the_next(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with counted(settings, monkeypatch) as (client, commits, _):
            session, go_on, begun = client.sync.session, threading.Event(), threading.Event()
            add = session.jobs.add

            def held_add(jobs: Sequence[Any], **kwargs: Any) -> list[str]:
                begun.set()
                go_on.wait(60)
                return add(jobs, **kwargs)

            monkeypatch.setattr(session.jobs, "add", held_add)
            first = asyncio.create_task(client.predict("m", 0))
            await asyncio.to_thread(begun.wait, 60)
            later = [asyncio.create_task(client.predict("m", n)) for n in range(10)]
            for _ in range(3):
                await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(first, *later)
            assert commits == [1, 10]

    asyncio.run(main())


def test_one_that_is_refused_leaves_the_others_of_its_turn_alone(settings: Settings) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:
            good, bad, odd = await asyncio.gather(
                client.predict("m", 1), client.predict("m", object()), client.predict("m", 1, coloour="red"),  # type: ignore[call-arg]
                return_exceptions=True,
            )  # fmt: skip
            assert isinstance(good, AsyncJob)
            assert isinstance(bad, InvalidInput)
            assert isinstance(odd, TypeError)
            assert [info.id for info in await client.jobs()] == [good.id]

    asyncio.run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_results_wake_those_who_wait_without_a_thread_each(
    settings: Settings, valkey: ValkeyServer, store: JobStore, run: Run
) -> None:
    others = threading.active_count()  # of tests before this one, too

    async def main() -> None:
        async with AsyncClient(replace(settings, broker=valkey.url)) as client:
            jobs = await client.predict_many("m", range(500))
            waiting = asyncio.gather(*jobs)
            await asyncio.sleep(0)
            threads = threading.active_count()
            await asyncio.to_thread(finish, store, [job.id for job in jobs], valkey.url)
            assert await waiting == list(range(500))
            assert threads - others <= threading.active_count() + 1 - others < 20
            again = await client.job(jobs[7].id)
            assert (await again.result(60), await again.state()) == (7, JobState.SUCCEEDED)

    run(main())


def test_without_redis_submits_are_accepted_and_results_arrive(settings: Settings, store: JobStore) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:
            job = await client.predict("m", 1)
            await asyncio.to_thread(finish, store, [job.id])
            assert await job.result(60) == 0
            assert await job.exception() is None

    asyncio.run(main())


def test_a_task_that_is_canceled_while_it_waits_leaves_the_job_alone(settings: Settings, store: JobStore) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:
            submitting = asyncio.create_task(client.predict("m", 1))
            await asyncio.sleep(0)
            submitting.cancel()
            job = await client.predict("m", 2)
            waiting = asyncio.create_task(job.result())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert {info.state for info in await client.jobs()} == {JobState.QUEUED}
            assert len(await client.jobs()) == 2
            watcher = client.sync.session.watcher
            assert not watcher._awaited  # nobody asks the ledger for what nobody waits for
            assert await job.cancel() is JobState.CANCELED

    asyncio.run(main())


def test_one_who_gives_up_does_not_take_the_job_from_the_others(settings: Settings, store: JobStore) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:
            job = await client.predict("m", 1)
            patient = asyncio.create_task(job.result())
            assert await job.wait(0.01) is False
            with pytest.raises(ResultTimeout, match=r"goes on; no worker serves queue 'cpu' now"):
                await job.result(0.01)
            await asyncio.to_thread(finish, store, [job.id])
            assert await asyncio.wait_for(patient, 60) == 0

    asyncio.run(main())


def test_a_ledger_that_is_away_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:

            def away(*_: object, **__: object) -> list[str]:
                raise LedgerUnavailable("the ledger does not answer")

            with monkeypatch.context() as patch:
                patch.setattr(client.sync.session.jobs, "add", away)
                refused = await asyncio.gather(*(client.predict("m", n) for n in range(3)), return_exceptions=True)
            assert all(isinstance(error, LedgerUnavailable) for error in refused)
            assert await client.jobs() == []
            assert await client.predict("m", 1)

    asyncio.run(main())


def test_the_rest_of_client_is_there_and_awaited(settings: Settings) -> None:
    async def main() -> None:
        async with AsyncClient(settings) as client:
            assert (await client.models.get("m")).ref == "m/1"
            assert [version.ref for version in await client.models.list()] == ["m/1"]
            assert (await client.models.set_alias("m", "champion", 1)).aliases == ("champion",)
            job = await client.predict("m@champion", 1, metadata={"run": 7})
            assert [info.id for info in await client.jobs(metadata={"run": 7})] == [job.id]
            assert [event.event for event in await job.history()] == ["queued"]
            assert {queue.name for queue in await client.queues()} == set(settings.queues)
            await job.cancel()
            assert (await (await job.retry()).info()).state is JobState.QUEUED
            assert await client.retry_failed() == 0
            with pytest.raises(JobNotFound):
                await client.job("0" * 32)
        with pytest.raises(ForebayError, match="is closed"):
            await client.predict("m", 1)

    asyncio.run(main())
