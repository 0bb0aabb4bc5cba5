"""A child's runner on a real ledger, with a model that does what a test says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forebay.contract.job import JobInfo, JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.contract.wire.payload import pack_input
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.child.runner import Runner
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.kinds.predict import PredictHandler
from forebay.worker.shared_page import SharedPage

BATCH = 4


class Broker:
    """Takes the place of Redis, and remembers which ids were announced."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    @property
    def connection_pool(self) -> "Broker":
        return self

    def get_connection(self) -> "Broker":
        return self

    def send_packed_command(self, packed: list[bytes]) -> None:
        _, _, command, *_, ids, _ = b"".join(packed).decode().split("\r\n")
        assert command == "PUBLISH"
        self.ids += ids.split(",")

    @property
    def _sock(self) -> "Broker":
        return self

    def recv(self, _: int) -> bytes:
        return b":1\r\n"


class Bench:
    """One runner, its ledger, and a model: rows are numbers, `before` is called with each batch."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ran: list[int] = []
        self.before: Callable[[list[int]], None] = lambda _: None
        self.on_load: Callable[[], None] = lambda: None
        self.broker: Any = Broker()
        ModelRegistry(ledger).register(ModelVersion("m", 0, "python", "", "none", 0, Signature(), max_batch_size=BATCH))
        self.blobs = BlobStore((folder / "blobs").as_uri())
        given = {"HOME": str(folder), "MAX_INLINE_BYTES": "200", "WORKER_NAME": "w", "WORKER_QUEUES": "cpu"}
        settings = Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})
        cache = ModelCache(2**30, lambda _: None, "cpu", runtimes=lambda *_: self)
        ceilings = MemoryCeilings(CeilingStore(ledger, "cpu"))
        context = ChildContext(settings, ledger, self.blobs, self.broker, SharedPage(), ChildMetrics(), ceilings, cache)
        self.store, self.payloads, self.context = context.jobs, context.payloads, context
        self.runner = Runner(context)

    def load(self, *_: Any) -> "Bench":
        self.on_load()
        return self

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        self.before(list(rows))
        self.ran += rows
        return list(rows)

    def add(self, *rows: Any, batched: bool = False, **more: Any) -> list[str]:
        """A job for each row, or one for all of them."""
        packed = [pack_input(list(rows), True)] if batched else [pack_input([row], False) for row in rows]
        jobs = []
        for id, data in zip(new_ids(len(packed)), packed, strict=True):
            inline, ref = self.payloads.store(data)
            size = len(rows) if batched else 1
            given = {"model": "m", "version": 1, "queue": "cpu", "rows": size, "client": "c"} | more
            jobs.append(NewJob(id, JobKind.PREDICT, input=inline, input_ref=ref, **given))
        return self.store.add(jobs)

    def info(self, id: str) -> JobInfo:
        return self.store.queries.get(id)

    @property
    def handler(self) -> PredictHandler:
        [handler] = self.runner._handlers.values()
        assert isinstance(handler, PredictHandler)
        return handler

    def states(self, ids: Sequence[str]) -> str:
        """The first letters of their states."""
        return "".join(str(self.info(id).state)[0] for id in ids)
