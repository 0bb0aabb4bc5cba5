"""How large the shards of a batch are planned: by what a row of the batch took so far, and by the length of its texts."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from forebay.contract.requests.batch import BatchRequest, InputFile, Position, Shard
from forebay.contract.signature import Signature
from forebay.storage.batches.records import Totals
from forebay.worker.kinds.batch.planner import ShardPlanner
from support.language_models import version

SHORT, LONG, ROW = 3000, 300, 2100


def planned(path: Path, totals: Totals, **fields: object) -> list[Shard]:
    """The shards of short prompts and, behind them, of some a hundred times as long."""
    rows = [{"prompt": "x" * (20 if i < SHORT else 2000)} for i in range(SHORT + LONG)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = path.stat().st_size
    request = BatchRequest(
        (InputFile(str(path), size),), "", "jsonl", {"request": ("prompt",)}, row_bytes=size // len(rows)
    )
    planner, made, position, over = ShardPlanner(request, version(**fields), nullcontext), [], Position(), False
    while not over:
        some, position, over = planner.plan(position, 100, totals)
        made += some
    return made


def test_a_shard_of_long_texts_has_fewer_rows(tmp_path: Path) -> None:
    made = planned(tmp_path / "in.jsonl", Totals(), max_batch_size=16)
    assert sum(shard.rows for shard in made) == SHORT + LONG
    sizes = [shard.bytes for shard in made]
    assert max(sizes) <= 16 * 16 * (sum(sizes) // (SHORT + LONG)) + ROW  # else 256 rows of 2 kB
    assert made[0].rows == 16 * 16


def test_what_shards_have_taken_says_how_long_texts_may_be(tmp_path: Path) -> None:
    totals = Totals(done=1000, bytes_done=40_000.0, seconds=10.0)  # so 500 rows, or 20 kB, in five seconds
    made = planned(tmp_path / "in.jsonl", totals, max_batch_size=16)
    assert made[0].rows == 500
    assert max(shard.bytes for shard in made) <= 20_000 + ROW


def test_rows_that_take_the_same_whatever_their_bytes_are_counted_alone(tmp_path: Path) -> None:
    numbers = Signature.parse(
        {"prompt": {"dtype": "float32", "shape": [4]}}, {"out": {"dtype": "float32", "shape": []}}
    )
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": [1.5, 2, 3, 4]}) + " " * (i % 7 * 50) + "\n" for i in range(600)))
    request = BatchRequest(
        (InputFile(str(path), path.stat().st_size),), "", "jsonl", {"prompt": ("prompt",)}, row_bytes=20
    )
    planner = ShardPlanner(request, replace(version(max_batch_size=16), signature=numbers), nullcontext)
    shards, _, _ = planner.plan(Position(), 10, Totals())
    assert [shard.rows for shard in shards] == [256, 256, 88]
