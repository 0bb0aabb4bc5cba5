"""`forebay batch` as a user types it: a data set in, a data set out, its progress, its audit, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.user import User


def test_a_data_set_goes_in_and_one_comes_out(user: User, tmp_path: Path, direct: Any) -> None:
    rows = np.random.default_rng(0).random((700, 64), dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows)
    out = tmp_path / "out"
    asked = ("batch", "digits", str(tmp_path / "rows.npy"), str(out), "--shard-rows", "200")
    told = user.json(*asked)
    assert (told["state"], told["request_counts"]) == ("succeeded", {"total": 700, "completed": 700, "failed": 0})
    table = pq.read_table(out)
    assert table["row"].to_pylist() == list(range(700))
    np.testing.assert_allclose(np.array(table["output"].to_pylist()), direct(rows), rtol=1e-4, atol=1e-4)
    shown = user.ok("jobs", "show", told["id"])
    assert "700 completed, 0 failed, of 700" in shown
    assert "4 succeeded" in shown
    shown_batch = user.json("jobs", "show", told["id"])["batch"]
    assert shown_batch["shards"] == {"succeeded": 4}
    assert shown_batch["errors"] == {"rows": [], "shards": [], "complete": True}
    assert user.json("jobs", "audit", told["id"])["faults"] == []
    assert "holds what batch" in user.refused(*asked)
    (out / json.loads((out / "_manifest.json").read_text())["parts"][0]["name"]).unlink()
    audited = user.run("jobs", "audit", told["id"])
    assert audited.returncode == 1
    assert "it is missing" in audited.stderr


def test_a_batch_goes_on_without_the_command_that_submitted_it(user: User, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((100, 64), np.float32))
    id = user.ok("batch", "digits", str(tmp_path / "rows.npy"), str(tmp_path / "out"), "--no-wait").strip()
    assert user.json("jobs", "wait", id)[0]["state"] == "succeeded"
    assert user.json("jobs", "result", id)["result"]["counts"]["completed"] == 100


def test_a_batch_tells_why_rows_failed(user: User, tmp_path: Path) -> None:
    rows = [[0.5] * 64] * 30
    rows[7], rows[21] = [1.0], [2.0, 3.0]
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "in.parquet")
    told = user.json("batch", "digits", str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--columns", "x")
    assert told["request_counts"]["failed"] == 2
    assert [kind["type"] for kind in told["errors"]["rows"]] == ["InvalidInput"]
    again = user.run("batch", "digits", str(tmp_path / "in.parquet"), str(tmp_path / "again"), "--columns", "x")
    assert "_errors; why, with the first of each kind:" in again.stderr
    assert "  2 rows: InvalidInput" in again.stderr
    assert "    row 7: " in again.stderr
    shown = user.ok("jobs", "show", told["id"])
    assert "2 rows: InvalidInput" in shown
    assert "row 7: " in shown
    [kind] = user.json("jobs", "show", told["id"])["batch"]["errors"]["rows"]
    assert [sample["where"] for sample in kind["samples"]] == ["row 7", "row 21"]


def test_what_cannot_work_is_one_line_and_exit_status_2(user: User, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((3, 8), np.float32))
    narrow, out = str(tmp_path / "narrow.npy"), str(tmp_path / "out")
    said = user.refused("batch", "digits", narrow, out)
    assert "narrow.npy" in said
    assert "expected float32 of shape [64], found fixed_size_list" in said
    assert "'--max-errors': Input should be a valid integer" in user.refused(
        "batch", "digits", narrow, out, "--max-errors", "few"
    )
    assert not Path(out).exists()
