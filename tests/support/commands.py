"""The producer's commands in this process, each test in a home of its own with a real SQLite ledger; Redis is away."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from typer.testing import CliRunner

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.job import JobError
from forebay.contract.settings import SETTINGS
from forebay.contract.wire import codec
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import JobMessage
from forebay.producer.cli import attach
from forebay.storage.jobs.records import Finished
from forebay.storage.jobs.store import JobStore
from support.ledgers import new_ledger

PAIR = '{"x": {"dtype": "float32", "shape": [2]}}'

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
attach(app)


class Shell:
    """Runs commands in a home of their own."""

    def __init__(self, home: Path, store: JobStore) -> None:
        self.home = home
        self.store = store

    def run(self, *words: str, status: int = 0, stdin: str | None = None) -> Any:
        result = CliRunner().invoke(app, list(words), input=stdin)
        assert result.exit_code == status, (result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def out(self, *words: str, **more: Any) -> str:
        return str(self.run(*words, **more).stdout)

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.out(*words, **more))

    def lines(self, *words: str, **more: Any) -> list[Any]:
        return [json.loads(line) for line in self.out(*words, **more).splitlines()]

    def error(self, *words: str, status: int = 2, **more: Any) -> str:
        result = self.run(*words, status=status, **more)
        lines = [line for line in result.stderr.splitlines() if not line.startswith(("warning: ", "note: "))]
        assert lines[0].startswith("error: ")
        assert all(line.startswith("    ") for line in lines[1:]), result.stderr  # those to be copied
        return "\n".join(lines)

    def register(self, name: str = "double", inputs: str | None = PAIR, *more: str) -> None:
        described = [] if inputs is None else ["--inputs", inputs]
        self.run(
            "models", "register", name, "--runtime", "python", "--option", "class=shop.models:Any", *described, *more
        )

    def submit(self) -> str:
        return self.out("predict", "double", "[1, 2]", "--no-wait").strip()

    def end(self, id: str, result: Any = None, error: JobError | None = None) -> None:
        [job] = self.store.claim([id], "w@host", 30)
        self.store.finish([Finished(id, job.attempt, None if error else codec.encode(result), error=error)])


def open_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """What a fixture of this name gives."""
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("FOREBAY_BROKER", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("FOREBAY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Dispatcher, "send", refuse)
    logs = structlog.get_config()
    try:
        with new_ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
            yield Shell(tmp_path, JobStore(ledger))
    finally:
        structlog.configure(**logs)


def refuse(_self: Dispatcher, batch: Sequence[JobMessage]) -> None:
    """What the dispatcher does when Redis is away, without its seconds of patience."""
    if batch:
        raise BrokerUnavailable("cannot send to the queue at redis://127.0.0.1:1/0: connection refused")
