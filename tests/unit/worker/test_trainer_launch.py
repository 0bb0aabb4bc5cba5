"""What a worker reads of its trainer: events while they are written, how it ended, how far it is; and what it starts it with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import DataSummary, Event, Point, Saved, TrainRequest
from forebay.contract.settings import Settings
from forebay.worker.kinds.train.follow import EventReader
from forebay.worker.kinds.train.launch import (
    TORCHRUN,
    TRAINER,
    Rendezvous,
    command,
    environment,
    exit_reason,
    processes,
)
from forebay.worker.kinds.train.nodes import NodeRequest
from forebay.worker.kinds.train.record import progress

EVENTS: list[Event] = [
    DataSummary({"train": 8}, "ab" * 32),
    Point(5, 1, "train", {"loss": 0.5}),
    Saved(5, 1, "checkpoints/5.ckpt"),
]
REQUEST = TrainRequest("classifier", (), "parquet", nodes=2)
REPORT = ["E1122 22:10:00.1 7 torch/distributed/elastic/multiprocessing/api.py:1] failed", "  exitcode  : -9 (pid: 8)"]


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_events_are_read_once_each_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    data = b"".join(encode(event) + b"\n" for event in EVENTS)
    reader, found = EventReader(path), []
    assert reader.read() == []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        with path.open("ab") as file:
            file.write(data[start:stop])
        found += reader.read()
    assert found == EVENTS


def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "odd"}\n\n' + encode(EVENTS[2]) + b"\n")
    assert EventReader(path).read() == [EVENTS[2]]


@pytest.mark.parametrize(
    ("status", "lines", "words"),
    [
        (0, [], "exit status 0"),
        (1, [], "exit status 1"),
        (-15, [], "signal 15 (SIGTERM)"),
        (-99, [], "signal 99"),
        (1, REPORT, "signal 9 (SIGKILL)"),
        (1, ["  exitcode  : 7 (pid: 8)"], "exit status 7"),
    ],
)
def test_how_a_trainer_ended_is_told_by_torchruns_report_or_its_own_status(
    status: int, lines: list[str], words: str
) -> None:
    assert exit_reason(status, lines) == words


def test_progress_tells_epoch_metrics_pace_and_what_is_left() -> None:
    assert progress(Point(5, 2, "train", {"loss": 0.1234567}, 12345.6, 75.0)) == (
        "epoch 2: train loss 0.1235, 12,346 rows/s, 75 s left"
    )
    assert progress(Point(5, 2, "validation", {"accuracy": 0.5, "loss": None}, eta_s=600.0)) == (
        "epoch 2: validation accuracy 0.5, 10 min left"
    )


def settings(device: str = "cpu", threads: int = 8) -> Settings:
    given = {
        "FOREBAY_DEVICE": device,
        "FOREBAY_TORCH_THREADS": str(threads),
        "FOREBAY_DATABASE": "postgresql://u:secret@h/db",
    }
    return Settings.load(given)


def test_a_trainer_gets_its_share_of_threads_and_no_address_of_ledger_or_queue() -> None:
    given = environment(settings(), 3, 10)
    assert given["OMP_NUM_THREADS"] == "2"
    assert given["CUDA_VISIBLE_DEVICES"] == ""
    assert not any("secret" in value for value in given.values())
    assert "FOREBAY_DATABASE" not in given


@pytest.mark.parametrize(("given", "seen"), [("", "2,3"), ("4,5,6,7", "6,7")])
def test_a_trainer_sees_the_devices_of_its_worker_only(monkeypatch: pytest.MonkeyPatch, given: str, seen: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert environment(settings("cuda:2"), 2, 10)["CUDA_VISIBLE_DEVICES"] == seen


def test_processes_are_those_asked_for_on_the_cpu_and_one_per_device_of_the_queue_on_gpus() -> None:
    assert processes(settings(), 3, 0) == 3
    assert processes(settings("cuda:0"), 3, 2.0) == 2
    assert processes(settings("cuda:0"), 3, 0.5) == 1


def test_the_machine_that_holds_the_lease_is_the_first_of_its_run(tmp_path: Path) -> None:
    task = NodeRequest("ab", 2, "10.0.0.9:4000", 60.0, None, REQUEST)
    assert decode(encode(task), NodeRequest) == task
    host, other = (
        command(tmp_path, 1, [], task.rendezvous(host=is_host, address=address))
        for is_host, address in ((True, "10.0.0.9"), (False, "10.0.0.1"))
    )
    assert "--rdzv-endpoint=10.0.0.9:4000" in host
    addresses = [next(word for word in words if word.startswith("--local-addr")) for words in (host, other)]
    assert addresses == sorted(addresses)  # torchrun numbers machines by this order
    assert "--standalone" in command(tmp_path, 2, [])


def test_torchrun_is_told_of_the_grace_time_where_it_knows_such_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings(), 2, 7.6).items():
        monkeypatch.setenv(name, value)
    parser = get_args_parser()
    given = parser.parse_args(command(tmp_path, 2, [])[5:])
    known = any("--shutdown-timeout" in action.option_strings for action in parser._actions)
    assert getattr(given, "shutdown_timeout", None) == (8 if known else None)


@pytest.mark.parametrize(("nproc", "under_torchrun"), [(1, False), (2, True)])
def test_a_trainer_of_one_process_needs_no_torchrun(tmp_path: Path, nproc: int, under_torchrun: bool) -> None:
    words = command(tmp_path, nproc, ["a.b", "c.*"])
    assert (TORCHRUN in words) is under_torchrun
    assert words[-4:] == [TRAINER, str(tmp_path), "--allowed", "a.b,c.*"]


def test_a_rendezvous_is_of_one_attempt() -> None:
    first, second = (
        NodeRequest("ab", attempt, "h:1", 1.0, None, REQUEST).rendezvous(host=True, address="h") for attempt in (1, 2)
    )
    assert isinstance(first, Rendezvous)
    assert first.id != second.id
