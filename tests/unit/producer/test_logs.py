"""`forebay logs -f`, whatever becomes of the files meanwhile."""

from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.cli import logs


def test_a_log_that_is_deleted_is_waited_for_and_a_new_one_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "worker.log"
    log.write_text("one\n")
    steps: list[Callable[[], object]] = [log.unlink, lambda: None, lambda: log.write_text("two\n")]

    def poll(_seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(logs.time, "sleep", poll)
    with pytest.raises(KeyboardInterrupt):
        logs.print_logs(tmp_path, "worker", 10, follow=True)
    assert capsys.readouterr().out == "one\ntwo\n"
