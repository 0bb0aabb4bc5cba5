"""`forebay batch` as a user types it: a data set in, a data set out, its progress, its audit, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from shell import User


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
    assert user.json("jobs", "show", told["id"])["batch"]["shards"] == {"succeeded": 4}
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


def test_what_cannot_work_is_one_line_and_exit_status_2(user: User, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((3, 8), np.float32))
    narrow, out = str(tmp_path / "narrow.npy"), str(tmp_path / "out")
    said = user.refused("batch", "digits", narrow, out)
    assert "narrow.npy" in said
    assert "expected float32 of shape [64], found fixed_size_list" in said
    assert "--error-threshold 'few'" in user.refused("batch", "digits", narrow, out, "--error-threshold", "few")
    assert not Path(out).exists()
