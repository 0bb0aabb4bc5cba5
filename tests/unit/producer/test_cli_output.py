"""How the commands speak: JSON, tables, durations, and one line for every error."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from forebay.contract import errors
from forebay.contract.job import JobError, JobInfo, JobKind, JobState, Progress
from forebay.contract.signature import Signature
from forebay.producer.cli import inputs, options, output
from forebay.producer.cli.views import results

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def info(**changes: object) -> JobInfo:
    given = {
        "id": "0" * 32, "kind": JobKind.PREDICT, "state": JobState.FAILED, "model": "digits", "version": 1, "queue": "cpu",
        "priority": 5, "attempt": 1, "max_attempts": 3, "worker": None, "created_at": NOW, "started_at": None,
        "finished_at": None, "deadline_at": None, "progress": Progress(), "error": JobError("ValueError", "no"),
    }  # fmt: skip
    return JobInfo(**(given | changes))  # type: ignore[arg-type]


def test_a_record_becomes_json_with_iso_times_and_plain_states() -> None:
    data = json.loads(json.dumps(output.json_data(info(metadata={"run": 7}))))
    assert data["state"] == "failed"
    assert data["created_at"] == "2030-01-31T12:00:00+00:00"
    assert data["error"] == {"type": "ValueError", "message": "no"}
    assert data["metadata"] == {"run": 7}


def test_arrays_bytes_paths_and_signatures_become_json() -> None:
    assert output.json_data({"a": np.arange(3, dtype="float32"), "b": b"\x00"}) == {
        "a": [0.0, 1.0, 2.0],
        "b": {"base64": "AA=="},
    }
    assert output.json_data((Path("a") / "b", np.float64("nan"))) == ["a/b", None]
    described = {"x": {"dtype": "float32", "shape": [64]}}
    assert output.json_data(Signature.parse(described)) == {"inputs": described, "outputs": None}


@given(ANY_JSON)
def test_json_data_stays_what_it_is(value: object) -> None:
    assert output.json_data(value) == value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None), (0, "0 ms"), (0.45, "450 ms"), (0.9999, "1.0 s"), (3.21, "3.2 s"), (59.94, "59.9 s"), (59.96, "1m"),
        (75, "1m 15s"), (3600, "1h"), (7500, "2h 5m"), (86400 * 3 + 4 * 3600 + 59, "3d 4h"),
    ],
)  # fmt: skip
def test_a_duration_reads_well(seconds: float | None, text: str | None) -> None:
    assert output.duration(seconds) == text


def test_an_age_is_never_negative() -> None:
    assert output.age(NOW + timedelta(seconds=5), NOW) == "0 ms"
    assert output.age(NOW - timedelta(seconds=75), NOW) == "1m 15s"
    assert output.age(None) is None


def test_a_table_is_plain_aligned_text_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("MODEL", "N", "NOTE"), [("a/1", 5, None), ("digits/12", 100, "x\ny")], right=("N",))
    assert capsys.readouterr().out == "MODEL        N  NOTE\na/1          5  -\ndigits/12  100  x y\n"


def test_a_table_on_a_narrow_terminal_keeps_ids_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(force_terminal=True, width=60, no_color=True)
    monkeypatch.setattr(output, "Console", lambda **_: terminal)
    output.print_table(("ID", "STATE", "NOTE"), [("f" * 32, JobState.FAILED, "a long reason " * 5)])
    assert "f" * 32 in capsys.readouterr().out


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    line = output.one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("x"), 2), (errors.PayloadTooLarge("x"), 2), (errors.ModelNotFound("x"), 2),
        (errors.JobNotFound("x"), 2), (errors.NoQueueFits("x"), 2), (errors.MissingExtra("x"), 2),
        (errors.ModelRefused("x"), 2), (errors.IllegalTransition("x"), 2), (errors.JobFailed("x"), 1),
        (errors.JobCanceled("x"), 1), (errors.JobExpired("x"), 1), (errors.ResultTimeout("x"), 1),
        (errors.BrokerUnavailable("x"), 1), (errors.LedgerUnavailable("x"), 1), (errors.QueueFull("x"), 1),
    ],
)  # fmt: skip
def test_every_error_is_one_line_and_a_status(
    error: errors.ForebayError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, output.clear_errors():
        raise type(error)("first\nsecond \x1b[31mred")
    assert stop.value.code == status
    assert capsys.readouterr() == ("", "error: first second \\x1b[31mred\n")


def test_ctrl_c_and_a_closed_pipe_end_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    for raised, status, said in ((KeyboardInterrupt(), 130, "interrupted\n"), (BrokenPipeError(), 141, "")):
        with pytest.raises(SystemExit) as stop, output.clear_errors():
            raise raised
        assert stop.value.code == status
        assert capsys.readouterr().err == said


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError), output.clear_errors():
        _ = 1 / 0


def test_pairs_read_json_where_it_is_json() -> None:
    given = ["a=1", "b=text", "c=[1, 2]", "d=", "e=x=y", 'f="7"', "g=NaN"]
    assert options.pairs(given, "--metadata") == {
        "a": 1, "b": "text", "c": [1, 2], "d": "", "e": "x=y", "f": "7", "g": "NaN",
    }  # fmt: skip
    assert options.pairs(None, "--metadata") is None


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="is not KEY=VALUE"):
        options.pairs([text], "--metadata")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="'a' twice"):
        options.pairs(["a=1", "a=2"], "--option")


def test_times_on_the_command_line() -> None:
    assert [options.timeout_s(text) for text in (None, "0", "30", "5m")] == [None, 0.0, 30.0, 300.0]
    assert options.deadline("15m") == 900.0
    assert options.deadline("2030-01-31T18:00+01:00") == datetime(2030, 1, 31, 18, tzinfo=timezone(timedelta(hours=1)))
    local = options.deadline("2030-01-31")
    assert isinstance(local, datetime)
    assert local.tzinfo is not None


@pytest.mark.parametrize("text", ["soon", "-5", "2030-13-01", "0001-01-01"])
def test_what_is_no_deadline_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="--deadline"):
        options.deadline(text)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, "1" * 5000])
def test_what_is_not_json_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="INPUT is not JSON") as refused:
        options.parse_json(text, "INPUT")
    assert len(str(refused.value)) < 300


TEXT = Signature.parse({"text": {"dtype": "str"}})
BYTES = Signature.parse({"image": {"dtype": "bytes"}})
FREE = Signature()


def read(signature: Signature, file: Path, **flags: bool) -> inputs.JobInputs:
    return inputs.read_inputs(signature, None, file, **({"each": False, "batched": False} | flags))


def test_lines_of_text_stay_beside_their_results(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\u2028still two\n".encode())
    assert read(TEXT, path) == inputs.JobInputs(["one", "", "two\u2028still two"], many=True)


def test_json_lines_skip_blank_lines_and_name_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n')
    assert read(FREE, path) == inputs.JobInputs([{"a": 1}, [2]], many=True)
    path.write_text("1\n\n{\n")
    with pytest.raises(errors.InvalidInput, match=r"a\.jsonl, line 3, is not JSON"):
        read(FREE, path)


def test_a_bytes_model_takes_any_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"\xff\xd8")
    assert read(BYTES, path).values == [b"\xff\xd8"]


def test_each_makes_a_row_of_every_array_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))
    rows = read(FREE, tmp_path / "a.npz", each=True)
    assert rows.many
    assert [(row["x"].tolist(), int(row["y"])) for row in rows.values] == [([0, 1], 0), ([2, 3], 1), ([4, 5], 2)]
    np.savez(tmp_path / "b.npz", x=np.arange(3), y=np.arange(2))
    with pytest.raises(errors.InvalidInput, match="'x' has 3, 'y' has 2"):
        read(FREE, tmp_path / "b.npz", each=True)


def test_a_numpy_file_with_pickled_objects_or_none_at_all_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04")
    for name in ("a.npy", "b.npy", "c.npz", "d.npy"):
        with pytest.raises(errors.InvalidInput, match="cannot read"):
            read(FREE, tmp_path / name)


def test_results_of_unlike_shapes_make_no_array(tmp_path: Path) -> None:
    for value in ([np.zeros(2), np.zeros(3)], {"a": 1}, [None]):
        with pytest.raises(errors.InvalidInput, match=r"\.jsonl"):
            results.save(value, tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []
