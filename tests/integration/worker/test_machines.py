"""Redis and PostgreSQL by TLS, with the certificates and addresses of docs/how-to/machines.md, and blobs in S3."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import s3fs
from flower.utils.broker import Broker
from kombu.exceptions import OperationalError

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import TRANSPORT_OPTIONS, make_app, ping_redis
from forebay.storage.ledger.connection import Ledger
from support.s3 import open_bucket
from support.servers import PostgresServer, ValkeyServer, do_without, find_postgres, run_statement, running
from support.tls import TlsProxy
from support.worker_stack import WorkerStack

PAGE = (
    (Path(__file__).parents[3] / "docs" / "how-to" / "machines.md")
    .read_text(encoding="utf-8")
    .replace("store.internal", "localhost")
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands were run, and then once more below `other`, by another authority."""
    (commands,) = re.findall(r"^```sh\n((?:openssl .*\n)+)```$", PAGE, re.MULTILINE)
    keys = tmp_path_factory.mktemp("keys")
    (keys / "other").mkdir()
    for folder in (keys, keys / "other"):
        subprocess.run(["/bin/sh", "-eu", "-c", commands], cwd=folder, check=True, capture_output=True)
    return keys


@pytest.fixture(scope="module")
def queue(server: ValkeyServer, certificates: Path) -> Iterator[TlsProxy]:
    with closing(TlsProxy(server.port, certificates / "store.pem", certificates / "store.key")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tls_postgres(certificates: Path) -> Iterator[PostgresServer]:
    """A server that speaks TLS, and refuses who does not."""
    programs = find_postgres()
    if programs is None:
        do_without("no PostgreSQL: install Debian's package postgresql")
    with running(PostgresServer(programs)) as server:
        for name, value in (("cert", "store.pem"), ("key", "store.key")):
            copy = shutil.copy(certificates / value, server.folder)
            shutil.chown(copy, server.folder.owner())
            Path(copy).chmod(0o600)
            run_statement(server.url, f"ALTER SYSTEM SET ssl_{name}_file = '{copy}'")
        run_statement(server.url, "ALTER SYSTEM SET ssl = on")
        (server.folder / "data" / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        server.stop()
        server.start()
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with open_bucket(monkeypatch) as bucket:
        yield bucket


def addresses(server: ValkeyServer, queue: TlsProxy, tls_postgres: PostgresServer, authority: Path) -> tuple[str, str]:
    """FOREBAY_BROKER and FOREBAY_DATABASE of the page, for the servers of this test."""
    (broker,) = re.findall(r'^FOREBAY_BROKER="(.*)"$', PAGE, re.MULTILINE)
    (ledger,) = re.findall(r'^FOREBAY_DATABASE="(.*)"$', PAGE, re.MULTILINE)
    broker = broker.replace("PASSWORD", server.password).replace(":6379", f":{queue.port}")
    ledger = ledger.replace("forebay:PASSWORD", "postgres").replace(":5432/forebay", f":{tls_postgres.port}/postgres")
    authorities = ("/etc/forebay/ca.pem", str(authority))
    return broker.replace(*authorities), ledger.replace(*authorities)


@pytest.mark.postgres
def test_jobs_run_where_redis_and_postgresql_speak_tls_only_and_blobs_lie_in_s3(
    tmp_path: Path, server: ValkeyServer, queue: TlsProxy, tls_postgres: PostgresServer, certificates: Path, bucket: str
) -> None:
    broker, ledger = addresses(server, queue, tls_postgres, certificates / "ca.pem")
    with closing(WorkerStack(tmp_path, broker, ledger, BLOBS=f"{bucket}/blobs", MAX_INLINE_BYTES="50")) as stack:
        model, texts = stack.model("Echo"), [f"{n:0100}" for n in range(20)]
        stack.worker().ready()
        jobs = stack.client.predict_many(model, texts)
        assert [job.result(60) for job in jobs] == texts
        assert len(s3fs.S3FileSystem().find(f"{bucket}/blobs")) == 2 * len(texts), "the input and the result of each"
        conf = make_app(stack.settings).conf
        page = Broker(broker, broker_options=TRANSPORT_OPTIONS, broker_use_ssl=conf.broker_use_ssl)
        assert asyncio.run(page.queues(["cpu"])) == [{"name": "cpu", "messages": 0}]


@pytest.mark.postgres
def test_a_certificate_of_another_authority_is_refused_by_all(
    server: ValkeyServer, queue: TlsProxy, tls_postgres: PostgresServer, certificates: Path
) -> None:
    broker, ledger = addresses(server, queue, tls_postgres, certificates / "other" / "ca.pem")
    for address in (broker, broker.partition("?")[0]):
        settings = Settings.load({"FOREBAY_BROKER": address})
        assert "certificate verify failed" in str(ping_redis(settings))
        with (
            make_app(settings).connection_for_write() as connection,
            pytest.raises(OperationalError, match="verify failed"),
        ):
            connection.ensure_connection(max_retries=1)
    with (
        closing(Ledger(Settings.load({"FOREBAY_DATABASE": ledger}).database)) as refused,
        pytest.raises(LedgerUnavailable, match="certificate"),
        refused.read(),
    ):
        pass
